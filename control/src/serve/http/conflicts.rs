//! What connected proxies cannot have of the mesh's configuration, by istiod's names of these numbers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Pages;
use crate::model::World;
use crate::render::conflicts;

/// A state of the mesh, and of who is connected.
type State = (u64, (u64, usize));

/// What was found last: the state that it was found in, and the numbers.
pub type Found = Arc<Mutex<Option<(State, Numbers)>>>;

/// What is found in this state, by `look` unless it was found before. It takes long in a large mesh, and pages are threads of the
/// runtime: nobody waits for another one's look, and whoever asks meanwhile takes one, too.
fn found(last: &Found, state: State, look: impl FnOnce() -> Numbers) -> Numbers {
    let known = last.lock().as_ref().filter(|(of, _)| *of == state).map(|(_, numbers)| *numbers);
    known.unwrap_or_else(|| {
        let numbers = look();
        *last.lock() = Some((state, numbers));
        numbers
    })
}

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
        let numbers = found(&self.conflicts, state, || self.count_conflicts(world));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_looked_at_once_and_others_do_not_wait_meanwhile() {
        let last = Found::default();
        let numbers = |no_service| Numbers { no_service, ..Numbers::default() };
        let first = found(&last, (1, (1, 1)), || {
            assert!(last.try_lock().is_some(), "whoever asks meanwhile waits");
            numbers(3)
        });
        assert_eq!(first, numbers(3));
        assert_eq!(found(&last, (1, (1, 1)), || panic!("it is known")), numbers(3));
        assert_eq!(found(&last, (1, (2, 1)), || numbers(4)), numbers(4));
    }
}
