//! Who and what is at each address: workloads and pods, and the services that are served there.
//!
//! Every proxy asks by its own address, and every change of an endpoint changes a few addresses among thousands. So the index is
//! in parts, of which the next state shares those that are as they were.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::kubernetes::Pod;
use super::service::{Service, Workload};

/// Parts of the index. A change copies one of them.
const PARTS: usize = 256;

/// One of those who are at an address.
#[derive(Clone, Debug, PartialEq)]
struct Occupant {
    workload: Arc<Workload>,
    pod: bool,
    /// The address is its own, and not its node's.
    own: bool,
}

/// What is at one address.
#[derive(Clone, Debug, Default, PartialEq)]
struct AtAddress {
    /// WorkloadEntries before pods, each in their order.
    occupants: Vec<Occupant>,
    /// Indexes of services, each with the index of its endpoint.
    serves: Vec<(usize, usize)>,
}

/// Workloads that are entered, and pods.
pub(super) type Everybody<'a> = (&'a [Arc<Workload>], &'a [Arc<Pod>]);

/// The index.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    parts: Vec<Arc<HashMap<Arc<str>, AtAddress>>>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { parts: vec![Arc::default(); PARTS] }
    }
}

fn part_of(address: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    usize::try_from(hasher.finish() % PARTS as u64).unwrap_or_default()
}

impl Addresses {
    /// The index of all of these.
    pub(super) fn new(entries: &[Arc<Workload>], pods: &[Arc<Pod>], services: &[Arc<Service>]) -> Self {
        let mut new = Self::default();
        for occupant in occupants(entries, pods) {
            new.at(occupant.workload.address()).occupants.push(occupant);
        }
        for (index, service) in services.iter().enumerate() {
            new.serve(index, service);
        }
        new
    }

    /// Changes who is where, from those before to those now.
    pub(super) fn settle(&mut self, before: Everybody<'_>, now: Everybody<'_>) {
        let touched = moved(before, now);
        for address in &touched {
            self.at(address).occupants.clear();
        }
        for occupant in occupants(now.0, now.1) {
            if touched.contains(occupant.workload.address()) {
                self.at(occupant.workload.address()).occupants.push(occupant);
            }
        }
        touched.iter().for_each(|address| self.tidy(address));
    }

    /// The service at `index` is another one now, of the same name.
    pub(super) fn replace(&mut self, index: usize, before: &Service, now: &Service) {
        for endpoint in before.endpoints.iter().chain(&before.waiting) {
            self.at(&endpoint.address).serves.retain(|(service, _)| *service != index);
        }
        self.serve(index, now);
        for endpoint in before.endpoints.iter().chain(&before.waiting) {
            self.tidy(&endpoint.address);
        }
    }

    /// Puts a service at the addresses of its endpoints; where it has several at one, the first counts.
    fn serve(&mut self, index: usize, service: &Service) {
        for (place, endpoint) in service.endpoints.iter().chain(&service.waiting).enumerate() {
            let serves = &mut self.at(&endpoint.address).serves;
            if let Err(at) = serves.binary_search_by_key(&index, |(service, _)| *service) {
                serves.insert(at, (index, place));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn same(&self, other: &Self) -> bool {
        self.parts == other.parts
    }

    fn at(&mut self, address: &str) -> &mut AtAddress {
        let part = Arc::make_mut(&mut self.parts[part_of(address)]);
        part.entry(address.into()).or_default()
    }

    fn tidy(&mut self, address: &str) {
        let part = Arc::make_mut(&mut self.parts[part_of(address)]);
        if part.get(address).is_some_and(|at| at.occupants.is_empty() && at.serves.is_empty()) {
            part.remove(address);
        }
    }

    fn get(&self, address: &str) -> Option<&AtAddress> {
        self.parts[part_of(address)].get(address)
    }

    /// The first workload whose own address this is. One that said itself where it is comes behind those that others say.
    pub(super) fn workload(&self, address: &str) -> Option<&Arc<Workload>> {
        let at = self.get(address)?;
        let own = || at.occupants.iter().filter(|occupant| occupant.own).map(|occupant| &occupant.workload);
        own().find(|workload| !workload.entered_itself()).or_else(|| own().next())
    }

    /// Every pod at this address, in its own network or its node's.
    pub(super) fn pods(&self, address: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let occupants = self.get(address).map(|at| at.occupants.as_slice()).unwrap_or_default();
        occupants.iter().filter(|occupant| occupant.pod).map(|occupant| &occupant.workload)
    }

    /// Indexes of the services that are served at this address, each with that of its endpoint (ready ones before waiting ones).
    pub(super) fn serves(&self, address: &str) -> &[(usize, usize)] {
        self.get(address).map(|at| at.serves.as_slice()).unwrap_or_default()
    }
}

/// The addresses at which not the same are as before.
pub(super) fn moved(before: Everybody<'_>, now: Everybody<'_>) -> HashSet<Arc<str>> {
    let all = |(entries, pods): Everybody<'_>| -> HashSet<*const u8> {
        let entries = entries.iter().map(|w| Arc::as_ptr(w).cast());
        entries.chain(pods.iter().map(|p| Arc::as_ptr(p).cast())).collect()
    };
    let mut touched = HashSet::new();
    for (these, those) in [(all(before), now), (all(now), before)] {
        let entries = those.0.iter().filter(|w| !these.contains(&Arc::as_ptr(w).cast()));
        let pods = those.1.iter().filter(|p| !these.contains(&Arc::as_ptr(p).cast()));
        touched.extend(entries.map(|w| w.address()).chain(pods.map(|p| p.workload.address())).map(Arc::from));
    }
    touched
}

fn occupants(entries: &[Arc<Workload>], pods: &[Arc<Pod>]) -> impl Iterator<Item = Occupant> {
    let entries = entries.iter().map(|w| Occupant { workload: w.clone(), pod: false, own: true });
    let of_pod = |p: &Arc<Pod>| Occupant { workload: p.workload.clone(), pod: true, own: !p.host_network };
    entries.chain(pods.iter().map(of_pod))
}
