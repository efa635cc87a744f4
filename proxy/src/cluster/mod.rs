//! Upstream clusters: slots, host sets, balancers, limits, ejection, pools, upstream connections.
//!
//! A [`Cluster`] is shared by all workers; what is counted in it is exact. An attempt resolves its slot anew, picks a host
//! ([`Cluster::pick`]), takes a connection from this worker's pool ([`pool::acquire`]) and reports how it ended
//! ([`Cluster::report`]).

pub mod balance;
pub mod config;
pub mod connect;
pub mod dns;
pub mod endpoint;
pub mod host;
pub mod host_set;
pub mod limits;
pub mod outlier;
pub mod pool;
pub mod stats;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use self::balance::{NoHost, PickContext, Policy};
pub use self::config::{ClusterConfig, Discovery, HttpMode};
pub use self::connect::ConnectFailure;
pub use self::endpoint::{HostAddress, LoadAssignment};
pub use self::host::{ActiveRequest, Host, HostId};
pub use self::host_set::HostSet;
pub use self::limits::{Limits, RoutingPriority};
pub use self::outlier::Outcome;
pub use self::pool::{AcquireError, Upstream, Want, acquire};
pub use self::stats::{ClusterStats, LazyStats};

use self::balance::OriginalDst;
use self::host::{Facts, HealthFlag};
use self::host_set::{HostSetPolicy, LocalityHosts};
use self::outlier::Detector;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A cluster as it serves.
#[derive(Debug)]
pub struct Cluster {
    id: u64,
    config: ClusterConfig,
    hosts: ArcSwap<HostSet>,
    members: Mutex<Members>,
    limits: [Limits; 2],
    stats: Arc<LazyStats>,
    outlier: Option<Detector>,
    original: OriginalDst,
}

#[derive(Debug)]
struct Members {
    localities: Vec<LocalityHosts>,
    /// Hosts by address and priority: the identity that outlives an assignment.
    known: HashMap<HostAddress, Arc<Host>>,
    overprovisioning_factor: u32,
    assigned: bool,
}

/// A chosen host. While it is held, the host has one active request more.
#[derive(Debug)]
pub struct Picked {
    active: ActiveRequest,
}

impl Picked {
    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        self.active.host()
    }
}

impl Cluster {
    /// A cluster by this configuration; a static one has its hosts at once.
    pub fn new(config: ClusterConfig) -> Arc<Self> {
        let stats = LazyStats::new(&config.stat_name, config.thresholds.clone());
        let limits = [RoutingPriority::Default, RoutingPriority::High]
            .map(|p| Limits::new(&config.thresholds[p as usize], p, &stats));
        let cluster = Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            hosts: ArcSwap::from_pointee(HostSet::empty()),
            members: Mutex::new(Members {
                localities: Vec::new(),
                known: HashMap::new(),
                overprovisioning_factor: 140,
                assigned: false,
            }),
            limits,
            stats,
            outlier: config.outlier.clone().map(Detector::new),
            original: OriginalDst::new(None),
            config,
        });
        if let Discovery::Static(assignment) = &cluster.config.discovery {
            cluster.assign(assignment);
        }
        cluster
    }

    /// Takes over the hosts of the version before, with what they are in the middle of, before endpoints are assigned.
    pub fn adopt(&self, before: &Self) {
        self.members.lock().known = before.members.lock().known.clone();
        match (&self.outlier, &before.outlier) {
            (Some(detector), Some(earlier)) => detector.adopt(earlier, self.stats()),
            (None, Some(earlier)) => earlier.pardon(),
            (_, None) => {}
        }
    }

    /// Makes the host set anew from what hosts are now: they may have changed while this version was getting ready.
    pub fn refresh(&self) {
        self.rebuild(&self.members.lock());
    }

    /// A number that no other cluster of this process has, nor another version of this one.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it was compiled to.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Its hosts now.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
    }

    /// Its circuit breakers.
    pub fn limits(&self, priority: RoutingPriority) -> &Limits {
        &self.limits[priority as usize]
    }

    /// Its statistics.
    #[inline]
    pub fn stats(&self) -> &ClusterStats {
        self.stats.get()
    }

    /// Whether its endpoints have been assigned at least once (or need no assignment).
    pub fn is_assigned(&self) -> bool {
        matches!(self.config.discovery, Discovery::OriginalDst) || self.members.lock().assigned
    }

    /// Takes up a load assignment: hosts that stay are the same hosts, those that are gone drain.
    pub fn assign(&self, assignment: &LoadAssignment) {
        let mut members = self.members.lock();
        let mut known = HashMap::new();
        let mut changed = false;
        let mut localities = Vec::with_capacity(assignment.localities.len());
        for group in &assignment.localities {
            let mut hosts = Vec::with_capacity(group.endpoints.len());
            for endpoint in &group.endpoints {
                let facts = Facts {
                    locality: group.locality.clone(),
                    metadata: endpoint.metadata.clone(),
                    transport: self.config.transport_for(endpoint.metadata.as_deref()),
                };
                let host = match members.known.get(&endpoint.address).or(known.get(&endpoint.address)) {
                    Some(host) => {
                        host.update(endpoint, group.priority, facts);
                        host.clone()
                    }
                    None => {
                        changed = true;
                        Host::new(endpoint, group.priority, facts)
                    }
                };
                known.insert(endpoint.address.clone(), host.clone());
                hosts.push(host);
            }
            localities.push(LocalityHosts {
                locality: group.locality.clone(),
                weight: group.weight,
                priority: group.priority,
                hosts,
            });
        }
        for (address, host) in &members.known {
            if !known.contains_key(address) {
                changed = true;
                host.set_flag(HealthFlag::Removed, true);
            }
        }
        for host in known.values() {
            host.set_flag(HealthFlag::Removed, false);
        }
        members.localities = localities;
        members.known = known;
        members.overprovisioning_factor = assignment.overprovisioning_factor;
        members.assigned = true;
        self.rebuild(&members);
        drop(members);
        self.stats().update_success.inc();
        if changed {
            self.stats().membership_change.inc();
        }
    }

    fn rebuild(&self, members: &Members) {
        let policy = HostSetPolicy {
            panic_threshold: self.config.panic_threshold,
            overprovisioning_factor: members.overprovisioning_factor,
            locality_weighted: self.config.locality_weighted,
        };
        let set = HostSet::build(&members.localities, policy);
        let stats = self.stats();
        stats.membership_total.set(set.len() as i64);
        stats.membership_healthy.set(set.healthy_len() as i64);
        stats.membership_degraded.set(set.degraded_len() as i64);
        self.hosts.store(Arc::new(set));
    }

    /// Chooses a host.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Picked, NoHost> {
        if self.config.policy == Policy::OriginalDst {
            let to = context.original_dst.ok_or(NoHost::NoOriginalDestination)?;
            let transport = self.config.transport_for(None);
            let (host, _) =
                self.original.host(to, || Facts { locality: Arc::default(), metadata: None, transport });
            return Ok(Picked { active: host.start_request() });
        }
        let set = self.hosts.load();
        let panicked = || self.stats().lb_healthy_panic.inc();
        match balance::choose(&self.config.policy, &set, context, false, panicked) {
            Some(host) => Ok(Picked { active: host.start_request() }),
            None => {
                self.stats().upstream_cx_none_healthy.inc();
                Err(NoHost::NoHealthyUpstream)
            }
        }
    }

    /// Takes note of how an attempt at a host ended: its counters, and ejection.
    pub fn report(&self, host: &Arc<Host>, outcome: Outcome) {
        match outcome {
            Outcome::Answered(status) => {
                self.stats().answered(status);
                if status.is_server_error() {
                    host.count_error();
                } else {
                    host.count_success();
                }
            }
            Outcome::TimedOut => {
                self.stats().upstream_rq_timeout.inc();
                host.count_timeout();
                host.count_error();
            }
            Outcome::ConnectFailed => host.count_error(),
            Outcome::Reset => {
                self.stats().upstream_rq_rx_reset.inc();
                host.count_error();
            }
        }
        if let Some(detector) = &self.outlier
            && detector.report(host, outcome, self.hosts.load().len(), Instant::now(), self.stats())
        {
            self.rebuild(&self.members.lock());
        }
    }

    /// The time between two calls of [`Cluster::sweep`], if it has something to sweep.
    pub fn sweep_interval(&self) -> Option<std::time::Duration> {
        self.outlier.as_ref().map(|d| d.config().interval)
    }

    /// Lets ejected hosts return whose time is over. Called on the control thread, once an interval.
    pub fn sweep(&self, now: Instant) {
        self.original.sweep();
        let Some(detector) = &self.outlier else { return };
        let present: Vec<_> = self.hosts.load().hosts().cloned().collect();
        if detector.sweep(&present, now, self.stats()) {
            self.rebuild(&self.members.lock());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Statistics that two versions of a cluster share by name are summed at a scrape.
        if self.members.get_mut().assigned {
            let stats = self.stats.get();
            for gauge in [
                stats.membership_total,
                stats.membership_healthy,
                stats.membership_degraded,
                stats.ejections_active,
            ] {
                gauge.set(0);
            }
        }
    }
}
