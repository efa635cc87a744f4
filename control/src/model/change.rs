//! What is different between one state and another, as far as it can be told without rendering either.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::service::{Endpoint, Service};
use super::world::World;

/// How one state differs from another.
#[derive(Clone, Debug)]
pub enum Change {
    /// In endpoints and workloads alone.
    Endpoints(Moved),
    /// In something that may be everybody's business.
    Anything,
}

/// Endpoints and workloads that came, went or changed.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Indexes of the services whose endpoints are others now: the same in both states.
    pub services: BTreeSet<usize>,
    /// The addresses at which something else is now: the proxies there serve other things, or are others.
    pub addresses: HashSet<Arc<str>>,
}

impl Moved {
    /// Takes in what else has moved.
    pub fn absorb(&mut self, other: &Self) {
        self.services.extend(&other.services);
        self.addresses.extend(other.addresses.iter().cloned());
    }
}

impl World {
    /// How this state differs from `before`.
    pub fn since(&self, before: &Self) -> Change {
        // The shape has every service in it, in order.
        if !self.says_the_same_beside_endpoints(before) || self.services().len() != before.services().len() {
            return Change::Anything;
        }
        let mut moved = Moved::default();
        for (index, (was, is)) in before.services().iter().zip(self.services()).enumerate() {
            if Arc::ptr_eq(was, is) || (was.versions == is.versions && was.waiting == is.waiting) {
                continue;
            }
            moved.services.insert(index);
            let (was, is) = (endpoints(was), endpoints(is));
            moved.addresses.extend(was.symmetric_difference(&is).map(|(_, e)| Arc::from(e.address.as_str())));
        }
        moved.addresses.extend(self.moved_workloads(before));
        // What is behind a network's gateways has moved with them.
        let networks = self.networks().moved(before.networks());
        if !networks.is_empty() {
            let behind = |service: &Service| {
                let mut of = service.endpoints.iter().map(|endpoint| self.networks().of(endpoint));
                of.any(|network| networks.contains(network))
            };
            let services = self.services().iter().enumerate().filter(|(_, service)| behind(service));
            moved.services.extend(services.map(|(index, _)| index));
        }
        Change::Endpoints(moved)
    }
}

/// Endpoints, each with whether it takes requests.
fn endpoints(service: &Service) -> HashSet<(bool, &Endpoint)> {
    let ready = service.endpoints.iter().map(|endpoint| (true, &**endpoint));
    ready.chain(service.waiting.iter().map(|endpoint| (false, &**endpoint))).collect()
}
