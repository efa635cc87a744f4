//! Round robin, per worker: a rotation when weights are equal, else a weighted schedule.

use std::sync::Arc;

use super::edf::{Edf, Schedule, with_schedule};
use crate::cluster::host::Host;
use crate::cluster::host_set::HostList;

/// The next host.
pub(super) fn choose(list: &HostList) -> Option<&Arc<Host>> {
    let hosts = list.hosts();
    let weights = list.weights();
    let weight = |index| weights.of(index);
    let index = with_schedule(
        list.id(),
        || {
            if list.is_weighted() {
                Schedule::Weighted(Edf::new(hosts.len(), weight))
            } else {
                // Workers start at different hosts, or a burst of their first requests meets on one.
                Schedule::Rotation(fastrand::usize(..hosts.len()))
            }
        },
        |schedule| match schedule {
            Schedule::Rotation(at) => {
                *at = (*at + 1) % hosts.len();
                Some(*at)
            }
            Schedule::Weighted(edf) => edf.next(weight),
        },
    );
    hosts.get(index?)
}
