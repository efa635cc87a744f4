//! Which endpoints are near and which far, as the client sees it: their priorities, or their shares of the traffic.
//!
//! Without outlier detection nothing would ever fail over, so that then only shares (`distribute`) count.

use std::collections::BTreeMap;

use super::ProxyNode;
use super::node::{REGION_LABEL, SUB_ZONE_LABEL, ZONE_LABEL};
use crate::model::destination_rule::LocalityBalancer;
use crate::model::lookup::PortPolicy;
use crate::model::networks::NETWORK_LABEL;
use crate::model::place::{CLUSTER_LABEL, Place};
use crate::model::values::Locality;
use crate::model::{Endpoint, Labels, World};

/// How one client tells a service's endpoints apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Nearness {
    /// It does not.
    Alike,
    /// By region, zone and sub-zone; with the regions that stand in for its own, if some are named.
    Places { own: Locality, stand_ins: Vec<String> },
    /// By labels, from the most important on: what an endpoint must carry.
    Labels(Vec<(String, String)>),
    /// By share of the traffic, for each locality pattern.
    Shares(BTreeMap<String, u32>),
}

impl Nearness {
    pub(super) fn new(world: &World, node: &ProxyNode, policy: &PortPolicy) -> Self {
        let default = LocalityBalancer::default();
        let given = policy.load_balancer.as_ref().and_then(|l| l.locality_lb_setting.as_ref());
        let setting = given.or(world.mesh().locality_lb_setting.as_ref()).unwrap_or(&default);
        if setting.enabled == Some(false) {
            return Self::Alike;
        }
        let own = node.locality(world);
        if !setting.distribute.is_empty() {
            let share = setting.distribute.iter().find(|share| matches(&share.from, own));
            return share.map_or(Self::Alike, |share| Self::Shares(share.to.clone()));
        }
        if policy.outlier_detection.is_none() {
            return Self::Alike;
        }
        if !setting.failover_priority.is_empty() {
            let labels = node.selected_by(world);
            let wanted = setting.failover_priority.iter().map(|entry| match entry.split_once('=') {
                Some((label, value)) => (label.to_owned(), value.to_owned()),
                None => {
                    let at = (node.network(world), node.cluster());
                    (entry.clone(), label(labels, Some(own), at, entry).to_owned())
                }
            });
            return Self::Labels(wanted.collect());
        }
        let named = setting.failover.iter().filter(|pair| pair.from == own.region);
        Self::Places { own: own.clone(), stand_ins: named.map(|pair| pair.to.clone()).collect() }
    }

    /// A hash of it, 0 where all are alike: part of what an assignment is made from.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Alike => String::new(),
            other => format!("{other:?}"),
        }
    }

    /// How far an endpoint is, which is in this network; 0 is nearest. Gaps are closed later.
    pub(super) fn distance(&self, endpoint: &Endpoint, network: &str) -> u32 {
        let nowhere = Locality::default();
        match self {
            Self::Alike | Self::Shares(_) => 0,
            Self::Places { own, stand_ins } => {
                let there = endpoint.locality.as_ref().unwrap_or(&nowhere);
                if there.region != own.region {
                    return if stand_ins.is_empty() || stand_ins.contains(&there.region) { 3 } else { 4 };
                }
                match (there.zone == own.zone, there.sub_zone == own.sub_zone) {
                    (true, true) => 0,
                    (true, false) => 1,
                    (false, _) => 2,
                }
            }
            Self::Labels(wanted) => {
                let all = wanted.len() as u32;
                let carries = |(key, value): &(String, String)| {
                    let at = (network, Place::here().cluster.as_str());
                    label(&endpoint.labels, endpoint.locality.as_ref(), at, key) == value
                };
                // Another network is far, but what follows still tells its endpoints apart.
                let (other_network, rest) = match wanted.split_first() {
                    Some((first, rest)) if first.0 == NETWORK_LABEL => (!carries(first), rest),
                    _ => (false, wanted.as_slice()),
                };
                let skipped = (wanted.len() - rest.len()) as u32;
                let mismatch = rest.iter().zip(skipped..).find(|(pair, _)| !carries(pair));
                mismatch.map_or(0, |(_, index)| all - index) + if other_network { all } else { 0 }
            }
        }
    }

    /// The weights of localities by their shares, given each one's own weight; 0 gets nothing. None: as they are.
    pub(super) fn shares(&self, localities: &[(Locality, u64)]) -> Option<Vec<u64>> {
        let Self::Shares(to) = self else { return None };
        let mut weights = vec![0; localities.len()];
        let mut taken = vec![false; localities.len()];
        // From the narrowest pattern on: `*` sorts before letters.
        for (pattern, share) in to.iter().rev() {
            let here: Vec<usize> =
                (0..localities.len()).filter(|i| !taken[*i] && matches(pattern, &localities[*i].0)).collect();
            let total: u64 = here.iter().map(|i| localities[*i].1).sum();
            for i in here {
                taken[i] = true;
                weights[i] = (localities[i].1 * u64::from(*share)).div_ceil(total.max(1));
            }
        }
        Some(weights)
    }
}

/// A label, those of the place included, which follow from locality, network and cluster where they are not written down.
fn label<'a>(
    labels: &'a Labels,
    place: Option<&'a Locality>,
    (network, cluster): (&'a str, &'a str),
    key: &str,
) -> &'a str {
    if let Some(value) = labels.get(key) {
        return value;
    }
    match (key, place) {
        (REGION_LABEL, Some(place)) => &place.region,
        (ZONE_LABEL, Some(place)) => &place.zone,
        (SUB_ZONE_LABEL, Some(place)) => &place.sub_zone,
        (NETWORK_LABEL, _) => network,
        (CLUSTER_LABEL, _) => cluster,
        _ => "",
    }
}

/// Whether `region/zone/subzone`, where `*` or nothing stands for the rest, takes a locality.
fn matches(pattern: &str, place: &Locality) -> bool {
    let mut parts = pattern.split('/');
    for own in [&place.region, &place.zone, &place.sub_zone] {
        match parts.next() {
            None | Some("*" | "") => return true,
            Some(part) if part != own => return false,
            Some(_) => {}
        }
    }
    true
}
