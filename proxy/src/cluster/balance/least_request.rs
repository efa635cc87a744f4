//! Least request: the power of two (or more) choices on active requests; with weights, a schedule whose weights shrink as
//! requests pile up. As in Envoy, choices are drawn with replacement.

use std::cell::Cell;
use std::sync::Arc;

use super::edf::{Edf, Schedule, with_schedule};
use super::{LeastRequest, candidate};
use crate::cluster::host::Host;
use crate::cluster::host_set::HostList;
use crate::telemetry::record::Compared;

/// Chooses among at least two hosts.
#[inline]
pub(super) fn choose<'a>(
    parameters: &LeastRequest,
    list: &'a HostList,
    compared: Option<&Cell<Compared>>,
) -> &'a Arc<Host> {
    let hosts = list.hosts();
    if list.is_weighted() {
        return weighted(parameters, list);
    }
    if parameters.full_scan {
        return least_of_all(hosts);
    }
    let random = fastrand::u64(..);
    let first = &hosts[scale(random as u32, hosts.len())];
    let second = &hosts[scale((random >> 32) as u32, hosts.len())];
    if let Some(compared) = compared {
        let candidates = [Some(candidate(first)), Some(candidate(second))];
        compared.set(Compared { candidates, ..compared.get() });
    }
    let mut best = if second.active_requests() < first.active_requests() { second } else { first };
    for _ in 2..parameters.choices {
        let next = &hosts[fastrand::usize(..hosts.len())];
        if next.active_requests() < best.active_requests() {
            best = next;
        }
    }
    best
}

/// Maps 32 random bits to `0..n` without a division; n is far below 2^32, so the bias is negligible.
#[inline]
fn scale(random: u32, n: usize) -> usize {
    ((u64::from(random) * n as u64) >> 32) as usize
}

/// The least busy of all, ties broken evenly.
fn least_of_all(hosts: &[Arc<Host>]) -> &Arc<Host> {
    let mut best = &hosts[0];
    let mut least = best.active_requests();
    let mut ties = 1;
    for host in &hosts[1..] {
        let active = host.active_requests();
        if active < least {
            (best, least, ties) = (host, active, 1);
        } else if active == least {
            ties += 1;
            if fastrand::u32(..ties) == 0 {
                best = host;
            }
        }
    }
    best
}

fn weighted<'a>(parameters: &LeastRequest, list: &'a HostList) -> &'a Arc<Host> {
    let hosts = list.hosts();
    let weights = list.weights();
    let weight = |index: usize| {
        let crowd = f64::from(hosts[index].active_requests()) + 1.0;
        let divisor = if parameters.bias == 1.0 { crowd } else { crowd.powf(parameters.bias) };
        weights.of(index) / divisor
    };
    let index = with_schedule(
        list.id(),
        || Schedule::Weighted(Edf::new(hosts.len(), weight)),
        |schedule| match schedule {
            Schedule::Weighted(edf) => edf.next(weight),
            Schedule::Rotation(_) => None,
        },
    );
    &hosts[index.unwrap_or_default()]
}
