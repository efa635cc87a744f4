//! What connected proxies cannot have of the mesh's configuration, by istiod's names of these numbers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Pages;
use crate::model::World;
use crate::render::conflicts;

/// What was found last: the state that it was found in, and the numbers.
pub type Found = Arc<Mutex<Option<((u64, (u64, usize)), Numbers)>>>;

/// What proxies cannot have, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    no_service: usize,
    not_ready: usize,
    inbound: usize,
    outbound: usize,
    subsets: usize,
}

impl Pages {
    /// Told when the numbers are asked for; looked for once in each state of the mesh and of who is connected, for it takes a look
    /// at every service from every kind of proxy.
    pub(super) fn conflicts(&self, world: &World) {
        let state = (world.version(), self.proxies.state());
        let mut last = self.conflicts.lock();
        let numbers = match *last {
            Some((of, numbers)) if of == state => numbers,
            _ => self.count_conflicts(world),
        };
        *last = Some((state, numbers));
        let gauge = |name: &'static str, value: usize| metrics::gauge!(name).set(value as f64);
        gauge("pilot_no_ip", numbers.no_service);
        gauge("pilot_endpoint_not_ready", numbers.not_ready);
        gauge("pilot_conflict_inbound_listener", numbers.inbound);
        gauge("pilot_conflict_outbound_listener_tcp_over_current_tcp", numbers.outbound);
        gauge("pilot_destrule_subsets", numbers.subsets);
    }

    fn count_conflicts(&self, world: &World) -> Numbers {
        let mut nodes = Vec::new();
        self.proxies.each(|proxy| nodes.push(proxy.node.clone()));
        let (mut no_service, mut not_ready) = (0, 0);
        let (mut inbound, mut outbound) = (BTreeSet::new(), BTreeSet::new());
        // Replicas reach the same.
        let mut reached: HashMap<_, BTreeSet<String>> = HashMap::new();
        for node in &nodes {
            let missing = conflicts::inbound(world, node);
            no_service += usize::from(missing.no_service);
            not_ready += usize::from(missing.not_ready);
            inbound.extend(missing.inbound);
            let v6: Vec<bool> = node.addresses.iter().map(|address| address.contains(':')).collect();
            let dns = (node.dns_capture, node.dns_auto_allocate);
            let alike = (
                &node.namespace,
                node.selected_by(world),
                node.kind,
                node.interception,
                v6,
                dns,
                node.extensions,
            );
            let found = reached.entry(alike).or_insert_with(|| conflicts::outbound(world, node));
            outbound.extend(found.iter().cloned());
        }
        Numbers {
            no_service,
            not_ready,
            inbound: inbound.len(),
            outbound: outbound.len(),
            subsets: conflicts::subsets(world),
        }
    }
}
