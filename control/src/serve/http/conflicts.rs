//! What connected proxies cannot have of the mesh's configuration, by istiod's names of these numbers.

use std::collections::{BTreeSet, HashMap};

use super::Pages;
use crate::model::World;
use crate::render::conflicts;

impl Pages {
    /// Looked at when the numbers are asked for.
    pub(super) fn conflicts(&self, world: &World) {
        let mut nodes = Vec::new();
        self.proxies.each(|proxy| nodes.push(proxy.node.clone()));
        let (mut no_service, mut not_ready) = (0, 0);
        let (mut inbound, mut outbound) = (BTreeSet::new(), BTreeSet::new());
        // Replicas reach the same.
        let mut reached: HashMap<_, BTreeSet<String>> = HashMap::new();
        for node in &nodes {
            let missing = conflicts::inbound(world, node);
            no_service += u32::from(missing.no_service);
            not_ready += u32::from(missing.not_ready);
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
        let gauge = |name: &'static str, value: usize| metrics::gauge!(name).set(value as f64);
        gauge("pilot_no_ip", no_service as usize);
        gauge("pilot_endpoint_not_ready", not_ready as usize);
        gauge("pilot_conflict_inbound_listener", inbound.len());
        gauge("pilot_conflict_outbound_listener_tcp_over_current_tcp", outbound.len());
        gauge("pilot_destrule_subsets", conflicts::subsets(world));
    }
}
