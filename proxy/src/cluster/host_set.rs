//! Host sets: the immutable lists that a pick reads.
//!
//! A set is rebuilt whenever membership, weights or health change, on the thread that noticed, and published whole. It
//! knows per priority which hosts are healthy, how the load spills over to lower priorities, and who is in panic; the
//! arithmetic is Envoy's (priority levels, overprovisioning, panic threshold, locality weights).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::balance::hash_table::HashTable;
use super::balance::ramp::{Moment, Ramps};
use super::endpoint::Locality;
use super::host::{Health, Host};

static NEXT_LIST: AtomicU64 = AtomicU64::new(1);

/// Hosts to choose among, with what balancers derive from them.
#[derive(Debug)]
pub struct HostList {
    id: u64,
    hosts: Box<[Arc<Host>]>,
    weights_differ: bool,
    /// The ramps of hosts that are on one, and when the last is over.
    ramps: Option<(Ramps, Moment)>,
    /// Ring or Maglev table; made on first use, as most lists never need one.
    pub(super) table: OnceLock<HashTable>,
}

impl HostList {
    /// A list of these hosts, with the ramps that one of them may be on.
    pub fn new(hosts: Vec<Arc<Host>>, ramps: Ramps) -> Arc<Self> {
        let weights_differ = hosts.windows(2).any(|w| w[0].weight() != w[1].weight());
        let ramps = if ramps == Ramps::default() {
            None
        } else {
            let now = Moment::now();
            hosts.iter().filter_map(|h| ramps.end(h, now)).max().map(|end| (ramps, end))
        };
        Arc::new(Self {
            id: NEXT_LIST.fetch_add(1, Relaxed),
            hosts: hosts.into_boxed_slice(),
            weights_differ,
            ramps,
            table: OnceLock::new(),
        })
    }

    /// Unique in this process; keys what a worker keeps for this list.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The hosts.
    #[inline]
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Whether balancing must look at weights: they differ, or a host is on a ramp.
    #[inline]
    pub fn is_weighted(&self) -> bool {
        self.weights_differ || self.ramps.is_some()
    }

    /// What tells the hosts' weights as they are now.
    #[inline]
    pub(super) fn weights(&self) -> Weights<'_> {
        Weights { hosts: &self.hosts, ramps: self.ramps.as_ref().map(|(ramps, _)| (ramps, Moment::now())) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// The weights of a list's hosts at one moment.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    hosts: &'a [Arc<Host>],
    ramps: Option<(&'a Ramps, Moment)>,
}

impl Weights<'_> {
    /// The weight of the host at this position: what it has of it, if it is on a ramp.
    #[inline]
    pub(super) fn of(&self, index: usize) -> f64 {
        let host = &self.hosts[index];
        let whole = f64::from(host.weight());
        match self.ramps {
            None => whole,
            Some((ramps, now)) => whole * ramps.share(host, now),
        }
    }
}

/// One locality's part of a priority, for locality weighted balancing.
#[derive(Debug)]
pub struct LocalityList {
    /// Where.
    pub locality: Arc<Locality>,
    /// Its healthy hosts.
    pub healthy: Arc<HostList>,
    /// Its degraded hosts.
    pub degraded: Arc<HostList>,
    /// Share of the healthy load, scaled by how healthy the locality is.
    pub healthy_weight: f64,
    /// Share of the degraded load.
    pub degraded_weight: f64,
}

/// One priority level.
#[derive(Debug)]
pub struct PrioritySet {
    /// All its hosts: what panic chooses from.
    pub all: Arc<HostList>,
    /// The healthy ones (the same list as `all` when all are).
    pub healthy: Arc<HostList>,
    /// The degraded ones.
    pub degraded: Arc<HostList>,
    /// Too few are healthy: health is ignored.
    pub panic: bool,
    /// How able it is to take load, in percent: its healthy and degraded hosts, overestimated.
    pub health: u32,
    /// Percent of all requests that go to its healthy hosts.
    pub healthy_load: u32,
    /// Percent of all requests that go to its degraded hosts.
    pub degraded_load: u32,
    /// Localities with weights; empty unless locality weighted balancing is configured.
    pub localities: Box<[LocalityList]>,
}

/// How sets are built; from the cluster's `common_lb_config` and the assignment's policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostSetPolicy {
    /// Percent of available hosts under which a priority panics; 0 switches panic off.
    pub panic_threshold: u32,
    /// Percent by which a priority's health is overestimated before load spills over.
    pub overprovisioning_factor: u32,
    /// Priorities are judged by the weights of their hosts, not by their number.
    pub weighted_health: bool,
    /// Balance among localities by their weights first.
    pub locality_weighted: bool,
    /// How new and returning hosts get their share.
    pub ramps: Ramps,
}

impl Default for HostSetPolicy {
    fn default() -> Self {
        Self {
            panic_threshold: 50,
            overprovisioning_factor: 140,
            weighted_health: false,
            locality_weighted: false,
            ramps: Ramps::default(),
        }
    }
}

/// Which hosts of a priority a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Healthy ones.
    Healthy,
    /// Degraded ones.
    Degraded,
    /// All: panic.
    All,
}

/// All hosts of a cluster at one moment.
#[derive(Debug)]
pub struct HostSet {
    priorities: Box<[PrioritySet]>,
    total: usize,
    ramps_end: Option<Moment>,
}

/// One locality's hosts as membership keeps them.
#[derive(Clone, Debug)]
pub struct LocalityHosts {
    /// Where.
    pub locality: Arc<Locality>,
    /// The locality's weight.
    pub weight: Option<u32>,
    /// The priority.
    pub priority: u32,
    /// The hosts.
    pub hosts: Vec<Arc<Host>>,
}

impl HostSet {
    /// A set without hosts.
    pub fn empty() -> Self {
        Self::build(&[], HostSetPolicy::default())
    }

    /// Builds the set from membership and the hosts' health as it is now.
    pub fn build(members: &[LocalityHosts], policy: HostSetPolicy) -> Self {
        let levels = members.iter().map(|m| m.priority as usize + 1).max().unwrap_or(1);
        let mut priorities: Vec<PrioritySet> = (0..levels)
            .map(|level| {
                let groups = || members.iter().filter(move |m| m.priority as usize == level);
                let all: Vec<_> = groups().flat_map(|m| m.hosts.iter().cloned()).collect();
                let healthy = with_health(&all, Health::Healthy);
                let degraded = with_health(&all, Health::Degraded);
                let localities = if policy.locality_weighted {
                    groups().map(|m| LocalityList::build(m, policy)).collect()
                } else {
                    Box::default()
                };
                let whole = healthy.len() == all.len();
                let all = HostList::new(all, policy.ramps);
                let healthy = if whole { all.clone() } else { HostList::new(healthy, policy.ramps) };
                PrioritySet {
                    healthy,
                    degraded: HostList::new(degraded, policy.ramps),
                    all,
                    panic: false,
                    health: 0,
                    healthy_load: 0,
                    degraded_load: 0,
                    localities,
                }
            })
            .collect();
        spread_load(&mut priorities, policy);
        let total = priorities.iter().map(|p| p.all.hosts.len()).sum();
        let ramps_end = priorities.iter().filter_map(|p| p.all.ramps.map(|(_, end)| end)).max();
        Self { priorities: priorities.into_boxed_slice(), total, ramps_end }
    }

    /// When the last ramp of its hosts is over, and a set without ramps can take its place.
    pub(super) fn ramps_end(&self) -> Option<Moment> {
        self.ramps_end
    }

    /// The priority levels, 0 first; always at least one.
    pub fn priorities(&self) -> &[PrioritySet] {
        &self.priorities
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| p.all.hosts.iter())
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many hosts are healthy.
    pub fn healthy_len(&self) -> usize {
        self.priorities.iter().map(|p| p.healthy.hosts.len()).sum()
    }

    /// How many hosts are degraded.
    pub fn degraded_len(&self) -> usize {
        self.priorities.iter().map(|p| p.degraded.hosts.len()).sum()
    }

    /// The priority and the part of it that a request with this hash (or random number) goes to.
    #[inline]
    pub fn choose(&self, hash: u64) -> (&PrioritySet, Availability) {
        let first = &self.priorities[0];
        let (set, availability) = if first.healthy_load == 100 {
            (first, Availability::Healthy)
        } else {
            self.choose_by_load((hash % 100) as u32)
        };
        (set, if set.panic { Availability::All } else { availability })
    }

    /// The same with these shares of load in place of those that health makes.
    pub fn choose_by(&self, load: &[u32], hash: u64) -> (&PrioritySet, Availability) {
        let point = (hash % 100) as u32;
        let mut reached = 0;
        let chosen = self.priorities.iter().zip(load).find(|(_, share)| {
            reached += **share;
            point < reached
        });
        let set = chosen.map_or(&self.priorities[0], |(set, _)| set);
        (set, if set.panic { Availability::All } else { Availability::Healthy })
    }

    fn choose_by_load(&self, point: u32) -> (&PrioritySet, Availability) {
        let mut reached = 0;
        for set in &self.priorities {
            reached += set.healthy_load;
            if point < reached {
                return (set, Availability::Healthy);
            }
        }
        for set in &self.priorities {
            reached += set.degraded_load;
            if point < reached {
                return (set, Availability::Degraded);
            }
        }
        (&self.priorities[0], Availability::Healthy)
    }
}

impl PrioritySet {
    /// The list to balance over: the whole part, or one locality's share of it chosen by weight.
    #[inline]
    pub fn list(&self, availability: Availability) -> &Arc<HostList> {
        match availability {
            Availability::All => &self.all,
            Availability::Healthy if self.localities.is_empty() => &self.healthy,
            Availability::Degraded if self.localities.is_empty() => &self.degraded,
            Availability::Healthy => {
                self.by_locality(|l| (l.healthy_weight, &l.healthy)).unwrap_or(&self.healthy)
            }
            Availability::Degraded => {
                self.by_locality(|l| (l.degraded_weight, &l.degraded)).unwrap_or(&self.degraded)
            }
        }
    }

    fn by_locality<'a>(
        &'a self,
        part: impl Fn(&'a LocalityList) -> (f64, &'a Arc<HostList>),
    ) -> Option<&'a Arc<HostList>> {
        let total: f64 = self.localities.iter().map(|l| part(l).0).sum();
        if total <= 0.0 {
            return None;
        }
        let mut point = fastrand::f64() * total;
        for locality in &self.localities {
            let (weight, list) = part(locality);
            point -= weight;
            if point < 0.0 {
                return Some(list);
            }
        }
        self.localities.iter().map(part).filter(|(weight, _)| *weight > 0.0).map(|(_, list)| list).next_back()
    }
}

impl LocalityList {
    fn build(group: &LocalityHosts, policy: HostSetPolicy) -> Self {
        let healthy = with_health(&group.hosts, Health::Healthy);
        let degraded = with_health(&group.hosts, Health::Degraded);
        // A locality takes its full share until fewer than 1/overprovisioning of its hosts are available.
        let effective = |available: usize| {
            if group.hosts.is_empty() {
                return 0.0;
            }
            let ratio = available as f64 / group.hosts.len() as f64;
            let scaled = (ratio * f64::from(policy.overprovisioning_factor) / 100.0).min(1.0);
            f64::from(group.weight.unwrap_or(0)) * scaled
        };
        Self {
            locality: group.locality.clone(),
            healthy_weight: effective(healthy.len()),
            degraded_weight: effective(degraded.len()),
            healthy: HostList::new(healthy, policy.ramps),
            degraded: HostList::new(degraded, policy.ramps),
        }
    }
}

fn with_health(hosts: &[Arc<Host>], health: Health) -> Vec<Arc<Host>> {
    hosts.iter().filter(|h| h.health() == health).cloned().collect()
}

/// What a part of a priority counts for: its hosts, or their weights. Hosts that are excluded count nowhere.
fn measure(hosts: &[Arc<Host>], weighted: bool) -> u64 {
    let counted = hosts.iter().filter(|h| !h.is_excluded());
    if weighted { counted.map(|h| u64::from(h.weight())).sum() } else { counted.count() as u64 }
}

/// Envoy's load computation: priorities take what their (overestimated) health allows, healthy hosts first, then degraded
/// ones; priorities with too few available hosts panic; when all panic, load follows host counts.
fn spread_load(priorities: &mut [PrioritySet], policy: HostSetPolicy) {
    let health_of = |part: &HostList, all: &HostList| {
        let (part, all) =
            (measure(&part.hosts, policy.weighted_health), measure(&all.hosts, policy.weighted_health));
        (u64::from(policy.overprovisioning_factor) * part).checked_div(all).unwrap_or(0).min(100) as u32
    };
    let healthy: Vec<u32> = priorities.iter().map(|p| health_of(&p.healthy, &p.all)).collect();
    let degraded: Vec<u32> = priorities.iter().map(|p| health_of(&p.degraded, &p.all)).collect();
    for (set, (healthy, degraded)) in priorities.iter_mut().zip(healthy.iter().zip(&degraded)) {
        set.health = healthy + degraded;
    }
    let total = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let share = |part: u32| (part * 100).checked_div(total).unwrap_or_default();
    if total == 0 {
        priorities[0].healthy_load = 100;
    } else {
        let mut left = 100;
        let mut first = None;
        for (at, set) in priorities.iter_mut().enumerate() {
            set.healthy_load = left.min(share(healthy[at]));
            left -= set.healthy_load;
            first = first.or((healthy[at] > 0).then_some((at, true)));
        }
        for (at, set) in priorities.iter_mut().enumerate() {
            set.degraded_load = left.min(share(degraded[at]));
            left -= set.degraded_load;
            first = first.or((degraded[at] > 0).then_some((at, false)));
        }
        // Rounding leaves a few percent: they go to the first part that has anybody.
        match first {
            Some((at, true)) => priorities[at].healthy_load += left,
            Some((at, false)) => priorities[at].degraded_load += left,
            None => {}
        }
    }
    if policy.panic_threshold == 0 || total == 100 {
        return;
    }
    for set in priorities.iter_mut() {
        let all = measure(&set.all.hosts, false);
        let available = set.healthy.hosts.len() + set.degraded.hosts.len();
        let percent = if all == 0 { 0.0 } else { 100.0 * available as f64 / all as f64 };
        set.panic = percent < f64::from(policy.panic_threshold);
    }
    if priorities.iter().all(|p| p.panic) {
        spread_by_count(priorities);
    }
}

fn spread_by_count(priorities: &mut [PrioritySet]) {
    let hosts: usize = priorities.iter().map(|p| p.all.hosts.len()).sum();
    if hosts == 0 {
        return;
    }
    let mut left = 100;
    for set in priorities.iter_mut() {
        set.healthy_load = (100 * set.all.hosts.len() / hosts) as u32;
        set.degraded_load = 0;
        left -= set.healthy_load;
    }
    if let Some(set) = priorities.iter_mut().find(|p| !p.all.is_empty()) {
        set.healthy_load += left;
    }
}
