//! Choosing a host: one file per policy, and the choice of list (priority, panic, locality) that all share.
//!
//! Least request, random and the hash policies need no state beside the host list. Round robin and weighted least request
//! keep a schedule per worker, keyed by the list's number, so a pick takes no lock.

mod edf;
pub mod hash_table;
mod least_request;
mod original_dst;
mod round_robin;
pub mod xxhash;

use std::sync::Arc;

pub use self::original_dst::OriginalDst;
use super::host::{Host, HostId};
use super::host_set::{HostList, HostSet};

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
    /// Hash a host by its name in place of its address.
    pub use_hostname: bool,
}

/// Maglev's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Maglev {
    /// The table's size, a prime.
    pub table_size: u64,
    /// Hash a host by its name in place of its address.
    pub use_hostname: bool,
}

/// What a pick depends on beside the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// The request's hash, from the route's hash policy; random where there is none.
    pub hash: Option<u64>,
    /// Hosts that earlier attempts used: avoided while there is another one.
    pub tried: &'a [HostId],
    /// How often to pick again when a tried host came up (Envoy's `host_selection_retry_max_attempts`).
    pub repicks: u32,
    /// Where the downstream wanted to go, for ORIGINAL_DST clusters.
    pub original_dst: Option<std::net::SocketAddr>,
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
/// ignored.
#[inline]
pub fn choose(
    policy: &Policy,
    set: &HostSet,
    context: &PickContext<'_>,
    fail_on_panic: bool,
    mut panicked: impl FnMut(),
) -> Option<Arc<Host>> {
    let mut chosen = None;
    let attempts = if context.tried.is_empty() { 0 } else { context.repicks };
    for attempt in 0..=attempts {
        let hash = context.hash.unwrap_or_else(|| fastrand::u64(..));
        let (priority, availability) = set.choose(hash);
        if priority.panic {
            panicked();
            if fail_on_panic {
                return None;
            }
        }
        let list = priority.list(availability);
        let host = choose_in(policy, list, hash, attempt)?;
        if !context.tried.contains(&host.id()) {
            return Some(host.clone());
        }
        if attempt == attempts && attempts > 0 {
            // Chance brought up tried hosts only; another one in the list is still better.
            if let Some(other) = any_other(list, context.tried) {
                return Some(other.clone());
            }
        }
        chosen = Some(host.clone());
    }
    chosen
}

fn any_other<'a>(list: &'a HostList, tried: &[HostId]) -> Option<&'a Arc<Host>> {
    let hosts = list.hosts();
    let start = fastrand::usize(..hosts.len());
    hosts[start..].iter().chain(&hosts[..start]).find(|h| !tried.contains(&h.id()))
}

#[inline]
fn choose_in<'a>(policy: &Policy, list: &'a Arc<HostList>, hash: u64, attempt: u32) -> Option<&'a Arc<Host>> {
    match list.hosts() {
        [] => return None,
        [only] => return Some(only),
        _ => {}
    }
    match policy {
        Policy::LeastRequest(parameters) => Some(least_request::choose(parameters, list)),
        Policy::RoundRobin => round_robin::choose(list),
        Policy::Random => Some(&list.hosts()[fastrand::usize(..list.hosts().len())]),
        Policy::RingHash(parameters) => {
            Some(list.table.get_or_init(|| hash_table::HashTable::ring(list.hosts(), parameters)))
                .and_then(|table| table.choose(list.hosts(), hash, attempt))
        }
        Policy::Maglev(parameters) => {
            Some(list.table.get_or_init(|| hash_table::HashTable::maglev(list.hosts(), parameters)))
                .and_then(|table| table.choose(list.hosts(), hash, attempt))
        }
        Policy::OriginalDst => None,
    }
}
