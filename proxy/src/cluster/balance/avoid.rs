//! What a retry keeps away from: hosts by what is said of them, and priorities that earlier tries went to.

use prost_types::Value;
use prost_types::value::Kind;

use super::super::host::Host;
use super::super::host_set::HostSet;

/// The namespace of an endpoint's metadata that speaks to balancers.
const LB: &str = "envoy.lb";

/// Hosts that a retry policy's host predicates name by their metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Omit {
    /// Canaries (`omit_canary_hosts`).
    pub canary: bool,
    /// Hosts with all the labels of one of these sets (`omit_host_metadata`).
    pub labels: Vec<Vec<(String, Value)>>,
}

impl Omit {
    /// Whether it names any host.
    pub fn is_some(&self) -> bool {
        self.canary || !self.labels.is_empty()
    }

    /// Whether this is one of them.
    pub fn names(&self, host: &Host) -> bool {
        let facts = host.facts();
        let labels = facts.metadata.as_deref().and_then(|m| m.namespace(LB));
        let of_host = |key: &str| labels.and_then(|l| l.fields.get(key));
        let is_canary =
            || matches!(of_host("canary").and_then(|v| v.kind.as_ref()), Some(Kind::BoolValue(true)));
        (self.canary && is_canary())
            || self.labels.iter().any(|set| set.iter().all(|(k, v)| of_host(k).is_some_and(|own| is(own, v))))
    }
}

/// Whether a host's label has this value, alone or in a list.
fn is(own: &Value, wanted: &Value) -> bool {
    match &own.kind {
        Some(Kind::ListValue(list)) => list.values.contains(wanted),
        _ => own == wanted,
    }
}

/// The load that is left to priorities when those that were tried take none
/// (`envoy.extensions.retry.priority.previous_priorities`).
#[derive(Clone, Debug)]
pub struct TriedPriorities {
    every: u32,
    tried: Vec<u32>,
    left_out: Vec<u32>,
    load: Option<Box<[u32]>>,
}

impl TriedPriorities {
    /// Nothing tried yet. The load is made anew after every so many tries.
    pub fn new(every: u32) -> Self {
        Self { every: every.max(1), tried: Vec::new(), left_out: Vec::new(), load: None }
    }

    /// A host of this priority was tried.
    pub fn add(&mut self, priority: u32) {
        self.tried.push(priority);
    }

    /// The share of each priority for the next try, in percent; none while the usual one holds.
    pub fn load(&mut self, set: &HostSet) -> Option<&[u32]> {
        let tries = u32::try_from(self.tried.len()).unwrap_or(u32::MAX);
        if tries < self.every {
            return None;
        }
        if tries % self.every == 0 {
            self.left_out.clone_from(&self.tried);
            self.load = self.spread(set);
        }
        self.load.as_deref()
    }

    fn spread(&mut self, set: &HostSet) -> Option<Box<[u32]>> {
        let mut health = self.health(set);
        if health.iter().sum::<u32>() == 0 {
            // Every priority had its turn: all of them may take load again.
            self.tried.clear();
            self.left_out.clear();
            health = self.health(set);
        }
        let total: u32 = health.iter().sum();
        if total == 0 {
            return None;
        }
        let mut load = vec![0; health.len()];
        let mut left = 100;
        // What rounding leaves goes to the first that has any health.
        while left > 0 {
            for (share, health) in load.iter_mut().zip(&health) {
                let more = left.min(health * 100 / total);
                *share += more;
                left -= more;
            }
        }
        Some(load.into())
    }

    fn health(&self, set: &HostSet) -> Vec<u32> {
        let of = |(level, priority): (usize, &super::super::host_set::PrioritySet)| {
            if self.left_out.contains(&(level as u32)) { 0 } else { priority.health }
        };
        set.priorities().iter().enumerate().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::endpoint::{Endpoint, EndpointHealth, Metadata};
    use crate::cluster::host::Facts;
    use crate::cluster::host_set::{HostSetPolicy, LocalityHosts};

    fn host(health: EndpointHealth, priority: u32, metadata: Option<Arc<Metadata>>) -> Arc<Host> {
        let endpoint = Endpoint { health, ..Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], 80))) };
        let facts = Facts { locality: Arc::default(), metadata, transport: 0, check: Default::default() };
        Host::new(&endpoint, priority, facts)
    }

    fn set(levels: &[EndpointHealth]) -> HostSet {
        let members: Vec<_> = levels
            .iter()
            .enumerate()
            .map(|(level, health)| LocalityHosts {
                locality: Arc::default(),
                weight: None,
                priority: level as u32,
                hosts: vec![host(*health, level as u32, None)],
            })
            .collect();
        HostSet::build(&members, HostSetPolicy::default())
    }

    #[test]
    fn priorities_that_were_tried_take_no_load_until_all_were() {
        use EndpointHealth::{Healthy, Unhealthy};
        let hosts = set(&[Healthy, Healthy, Unhealthy]);
        let mut tried = TriedPriorities::new(2);
        tried.add(0);
        assert_eq!(tried.load(&hosts), None);
        tried.add(0);
        assert_eq!(tried.load(&hosts), Some(&[0, 100, 0][..]));
        tried.add(1);
        // Between two updates the load stays.
        assert_eq!(tried.load(&hosts), Some(&[0, 100, 0][..]));
        tried.add(1);
        // Both healthy ones had their turn.
        assert_eq!(tried.load(&hosts), Some(&[50, 50, 0][..]));
        assert_eq!(
            TriedPriorities { tried: vec![0], ..TriedPriorities::new(1) }.load(&set(&[Unhealthy])),
            None
        );
    }

    #[test]
    fn hosts_are_left_out_by_their_labels() {
        let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
        let labels = |fields: Vec<(&str, Value)>| {
            let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            Metadata::new([(LB.to_owned(), prost_types::Struct { fields })])
        };
        let one = host(EndpointHealth::Healthy, 0, labels(vec![("version", text("v1"))]));
        let canary = Value { kind: Some(Kind::BoolValue(true)) };
        let two = host(EndpointHealth::Healthy, 0, labels(vec![("canary", canary), ("version", text("v2"))]));
        let bare = host(EndpointHealth::Healthy, 0, None);
        let names = |omit: &Omit| [&one, &two, &bare].map(|h| omit.names(h));
        assert_eq!(names(&Omit { canary: true, labels: vec![] }), [false, true, false]);
        let set = vec![("version".to_owned(), text("v1"))];
        assert_eq!(names(&Omit { canary: false, labels: vec![set] }), [true, false, false]);
        assert!(!Omit::default().is_some());
    }
}
