//! Host sets: the immutable lists that a pick reads.
//!
//! A set is rebuilt whenever membership, weights or health change, on the thread that noticed, and published whole. It
//! knows per priority which hosts are healthy, how the load spills over to lower priorities, and who is in panic; the
//! arithmetic is Envoy's (priority levels, overprovisioning, panic threshold, locality weights).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::balance::hash_table::HashTable;
use super::endpoint::Locality;
use super::host::{Health, Host};

static NEXT_LIST: AtomicU64 = AtomicU64::new(1);

/// Hosts to choose among, with what balancers derive from them.
#[derive(Debug)]
pub struct HostList {
    id: u64,
    hosts: Box<[Arc<Host>]>,
    weights_differ: bool,
    /// Ring or Maglev table; made on first use, as most lists never need one.
    pub(super) table: OnceLock<HashTable>,
}

impl HostList {
    /// A list of these hosts.
    pub fn new(hosts: Vec<Arc<Host>>) -> Arc<Self> {
        let weights_differ = hosts.windows(2).any(|w| w[0].weight() != w[1].weight());
        Arc::new(Self {
            id: NEXT_LIST.fetch_add(1, Relaxed),
            hosts: hosts.into_boxed_slice(),
            weights_differ,
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

    /// Whether balancing must look at weights.
    #[inline]
    pub fn weights_differ(&self) -> bool {
        self.weights_differ
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
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
    /// Balance among localities by their weights first.
    pub locality_weighted: bool,
}

impl Default for HostSetPolicy {
    fn default() -> Self {
        Self { panic_threshold: 50, overprovisioning_factor: 140, locality_weighted: false }
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
                let all = HostList::new(all);
                let healthy = if whole { all.clone() } else { HostList::new(healthy) };
                PrioritySet {
                    healthy,
                    degraded: HostList::new(degraded),
                    all,
                    panic: false,
                    healthy_load: 0,
                    degraded_load: 0,
                    localities,
                }
            })
            .collect();
        spread_load(&mut priorities, policy);
        let total = priorities.iter().map(|p| p.all.hosts.len()).sum();
        Self { priorities: priorities.into_boxed_slice(), total }
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
            healthy: HostList::new(healthy),
            degraded: HostList::new(degraded),
        }
    }
}

fn with_health(hosts: &[Arc<Host>], health: Health) -> Vec<Arc<Host>> {
    hosts.iter().filter(|h| h.health() == health).cloned().collect()
}

/// Envoy's load computation: priorities take what their (overestimated) health allows, healthy hosts first, then degraded
/// ones; priorities with too few available hosts panic; when all panic, load follows host counts.
fn spread_load(priorities: &mut [PrioritySet], policy: HostSetPolicy) {
    let health_of = |part: usize, all: usize| match all {
        0 => 0,
        _ => (u64::from(policy.overprovisioning_factor) * part as u64 / all as u64).min(100) as u32,
    };
    let healthy: Vec<u32> =
        priorities.iter().map(|p| health_of(p.healthy.hosts.len(), p.all.hosts.len())).collect();
    let degraded: Vec<u32> =
        priorities.iter().map(|p| health_of(p.degraded.hosts.len(), p.all.hosts.len())).collect();
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
        let all = set.all.hosts.len();
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
