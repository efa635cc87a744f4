//! Choosing a host: one file per policy, and the choice of list (priority, panic, locality) that all share.
//!
//! Least request, random and the hash policies need no state beside the host list. Round robin and weighted least request
//! keep a schedule per worker, keyed by the list's number, so a pick takes no lock.

mod avoid;
mod edf;
pub mod hash_table;
mod least_request;
mod murmur;
mod original_dst;
pub mod ramp;
mod round_robin;
pub mod xxhash;

use std::cell::Cell;
use std::sync::Arc;

pub use self::avoid::{Omit, TriedPriorities};
pub use self::original_dst::OriginalDst;
pub use self::xxhash::xxh64;
use super::host::{Host, HostId};
use super::host_set::{HostList, HostSet};
use crate::telemetry::record::{Candidate, Compared};

/// A load balancing policy, compiled.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// The least busy of a few random hosts.
    LeastRequest(LeastRequest),
    /// In turn, by weight.
    RoundRobin,
    /// Any, evenly.
    Random,
    /// Consistent hashing on a ring.
    RingHash(RingHash),
    /// Consistent hashing by Maglev's table.
    Maglev(Maglev),
    /// Where the downstream wanted to go.
    OriginalDst,
}

/// Least request's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct LeastRequest {
    /// How many random hosts compete; at least 2.
    pub choices: u32,
    /// Compare all hosts in place of random ones.
    pub full_scan: bool,
    /// With weights: weight is divided by (active requests + 1) to this power.
    pub bias: f64,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choices: 2, full_scan: false, bias: 1.0 }
    }
}

/// Ring hash's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct RingHash {
    /// The ring has at least so many entries.
    pub minimum_size: u64,
    /// And at most so many.
    pub maximum_size: u64,
    /// Hash by MurmurHash64A in place of XXH64.
    pub murmur: bool,
    /// What both hashing policies have.
    pub hashing: Hashing,
}

/// Maglev's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Maglev {
    /// The table's size, a prime.
    pub table_size: u64,
    /// What both hashing policies have.
    pub hashing: Hashing,
}

/// What both hashing policies have (Envoy's `consistent_hashing_lb_config`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hashing {
    /// Hash a host by its name in place of its address.
    pub use_hostname: bool,
    /// The most of the load that a host takes, in percent of its fair share; at least 100.
    pub balance_factor: Option<u32>,
}

/// A host as it is now.
#[inline]
pub fn candidate(host: &Host) -> Candidate {
    Candidate { address: host.address().ip(), active: host.active_requests(), health: host.flags() }
}

impl Policy {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LeastRequest(_) => "least request",
            Self::RoundRobin => "round robin",
            Self::Random => "random",
            Self::RingHash(_) => "ring hash",
            Self::Maglev(_) => "Maglev",
            Self::OriginalDst => "original destination",
        }
    }

    /// The bound on a host's load, where there is one.
    pub fn balance_factor(&self) -> Option<u32> {
        match self {
            Self::RingHash(RingHash { hashing, .. }) | Self::Maglev(Maglev { hashing, .. }) => {
                hashing.balance_factor
            }
            _ => None,
        }
    }
}

/// What a pick depends on beside the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// The request's hash, from the route's hash policy; random where there is none.
    pub hash: Option<u64>,
    /// Hosts that earlier attempts used: avoided while there is another one.
    pub tried: &'a [HostId],
    /// Hosts that this retry avoids for what is said of them.
    pub omit: Option<&'a Omit>,
    /// The share of each priority, in percent, where it is not what their health makes it.
    pub load: Option<&'a [u32]>,
    /// How often to pick again when a host to be avoided came up (Envoy's `host_selection_retry_max_attempts`).
    pub repicks: u32,
    /// Where the downstream wanted to go, for ORIGINAL_DST clusters.
    pub original_dst: Option<std::net::SocketAddr>,
    /// Takes note of what was looked at.
    pub compared: Option<&'a Cell<Compared>>,
}

/// Why there is no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHost {
    /// No host, or none that may be used (`UH`, `no_healthy_upstream`).
    #[error("no healthy upstream")]
    NoHealthyUpstream,
    /// The cluster goes where the downstream wanted to go, which is not known.
    #[error("no original destination address on this connection")]
    NoOriginalDestination,
}

/// Chooses a host of `set`, or none if the part that the load falls on is empty. `panicked` is called when health was
/// ignored. `in_flight` is the requests under way in the cluster, where the policy has a [`Policy::balance_factor`].
#[inline]
pub fn choose(
    policy: &Policy,
    set: &HostSet,
    context: &PickContext<'_>,
    in_flight: u64,
    fail_on_panic: bool,
    mut panicked: impl FnMut(),
) -> Option<Arc<Host>> {
    let mut chosen = None;
    let avoids = !context.tried.is_empty() || context.omit.is_some();
    let attempts = if avoids { context.repicks } else { 0 };
    let avoided = |h: &Arc<Host>| context.tried.contains(&h.id()) || context.omit.is_some_and(|o| o.names(h));
    for attempt in 0..=attempts {
        let hash = context.hash.unwrap_or_else(|| fastrand::u64(..));
        let (priority, availability) = match context.load {
            None => set.choose(hash),
            Some(load) => set.choose_by(load, hash),
        };
        if priority.panic {
            panicked();
            if fail_on_panic {
                return None;
            }
        }
        let list = priority.list(availability);
        let host = choose_in(policy, list, hash, attempt, in_flight, context.compared)?;
        if !avoided(host) {
            return Some(host.clone());
        }
        if attempt == attempts && attempts > 0 {
            // Chance brought up hosts to be avoided only; another one in the list is still better.
            if let Some(other) = any_other(list, avoided) {
                return Some(other.clone());
            }
        }
        chosen = Some(host.clone());
    }
    chosen
}

fn any_other(list: &HostList, avoided: impl Fn(&Arc<Host>) -> bool) -> Option<&Arc<Host>> {
    let hosts = list.hosts();
    let start = fastrand::usize(..hosts.len());
    hosts[start..].iter().chain(&hosts[..start]).find(|h| !avoided(h))
}

#[inline]
fn choose_in<'a>(
    policy: &Policy,
    list: &'a Arc<HostList>,
    hash: u64,
    attempt: u32,
    in_flight: u64,
    compared: Option<&Cell<Compared>>,
) -> Option<&'a Arc<Host>> {
    match list.hosts() {
        [] => return None,
        [only] => return Some(only),
        _ => {}
    }
    let (table, hashing) = match policy {
        Policy::LeastRequest(parameters) => return Some(least_request::choose(parameters, list, compared)),
        Policy::RoundRobin => return round_robin::choose(list),
        Policy::Random => return Some(&list.hosts()[fastrand::usize(..list.hosts().len())]),
        Policy::RingHash(parameters) => {
            let make = || hash_table::HashTable::ring(list.hosts(), parameters);
            (list.table.get_or_init(make), parameters.hashing)
        }
        Policy::Maglev(parameters) => {
            let make = || hash_table::HashTable::maglev(list.hosts(), parameters);
            (list.table.get_or_init(make), parameters.hashing)
        }
        Policy::OriginalDst => return None,
    };
    let chosen = table.choose(list.hosts(), hash, attempt)?;
    Some(match hashing.balance_factor {
        None => chosen,
        Some(factor) => hash_table::bounded(list.hosts(), chosen, hash, factor, in_flight),
    })
}
