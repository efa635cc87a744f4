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
pub mod health;
pub mod host;
pub mod host_set;
pub mod limits;
pub mod outlier;
pub mod pool;
pub mod proxy_header;
pub mod stats;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
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
pub use self::stats::{ClusterStats, LazyStats, Quiet};

use self::balance::OriginalDst;
use self::balance::ramp::Moment;
use self::endpoint::EndpointCheck;
use self::health::Health;
use self::host::{Facts, HealthFlag};
use self::host_set::{HostSetPolicy, LocalityHosts};
use self::outlier::Detector;
use crate::telemetry::StreamInfo;
use crate::telemetry::access_log::{Configured, Of};
use crate::telemetry::record::Compared;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A cluster as it serves.
#[derive(Debug)]
pub struct Cluster {
    id: u64,
    config: ClusterConfig,
    hosts: ArcSwap<HostSet>,
    members: Mutex<Members>,
    /// Made when they are first asked for: most clusters of a large mesh are never called.
    limits: [OnceLock<Box<Limits>>; 2],
    stats: Arc<LazyStats>,
    outlier: Option<Detector>,
    /// It ejects nobody, and a version before does so as long as it has calls.
    pardons: AtomicBool,
    health: Option<Arc<Health>>,
    original: OriginalDst,
}

#[derive(Debug)]
struct Members {
    localities: Vec<LocalityHosts>,
    /// Hosts by address and priority: the identity that outlives an assignment.
    known: HashMap<HostAddress, Arc<Host>>,
    overprovisioning_factor: u32,
    weighted_health: bool,
    assigned: bool,
    /// The next version tells of hosts.
    retired: bool,
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
        let cluster = Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            hosts: ArcSwap::from_pointee(HostSet::empty()),
            members: Mutex::new(Members {
                localities: Vec::new(),
                known: HashMap::new(),
                overprovisioning_factor: 140,
                weighted_health: false,
                assigned: false,
                retired: false,
            }),
            limits: Default::default(),
            stats,
            outlier: config.outlier.clone().map(|outlier| {
                let window = config.balancing.ramps.back.map(|ramp| ramp.window);
                Detector::new(config.name.clone(), outlier, window)
            }),
            pardons: AtomicBool::new(false),
            health: config.health_check.clone().map(|check| Arc::new(Health::new(*check, &config.stat_name))),
            original: OriginalDst::new(config.original_dst.port),
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
        if self.health.is_none() && before.health.is_some() {
            // Nobody would ever say that they are well again.
            for host in self.members.lock().known.values() {
                host.forget_checks();
            }
        }
        match (&self.outlier, &before.outlier) {
            // Whether or not that one was called: it may be called yet, while this one gets ready.
            (Some(detector), Some(earlier)) => {
                detector.adopt(earlier);
                if before.stats.made().is_some() {
                    detector.tell(self.stats());
                }
            }
            (None, earlier) => {
                self.pardons.store(earlier.is_some() || before.pardons.load(Relaxed), Relaxed);
                self.pardon(self.members.lock().known.values());
            }
            (Some(_), None) => {}
        }
    }

    /// Serves from now on in place of the version before. That one's hosts may have changed while this one was getting ready.
    pub fn take_over(&self) {
        self.pardon(self.members.lock().known.values());
        self.refresh();
        if let Some(detector) = &self.outlier
            && !self.is_uncalled(detector)
        {
            detector.tell(self.stats());
        }
    }

    /// Tells no more of hosts, for the next version does: what two versions of a cluster say under one name is summed. It may have
    /// requests for long yet.
    pub fn retire(&self) {
        let mut members = self.members.lock();
        members.retired = true;
        self.tell_of_none();
    }

    fn tell_of_none(&self) {
        self.stats.tell(|quiet| quiet.hosts = [0; 3]);
        if let Some(stats) = self.stats.made() {
            stats.ejections_active.set(0);
        }
    }

    /// Lets hosts return that a version before has ejected, if this one ejects nobody. True if there were any.
    fn pardon<'a>(&self, hosts: impl Iterator<Item = &'a Arc<Host>>) -> bool {
        if !self.pardons.load(Relaxed) {
            return false;
        }
        // All of them, not only the first.
        hosts.filter(|host| host.set_flag(HealthFlag::FailedOutlier, false)).count() > 0
    }

    /// Whether nobody has called any version of it.
    fn is_uncalled(&self, detector: &Detector) -> bool {
        self.stats.made().is_none() && detector.remembers_nobody()
    }

    /// Makes the host set anew from what hosts are now.
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
        let make = || Limits::new(&self.config.thresholds[priority as usize], priority, &self.stats);
        self.limits[priority as usize].get_or_init(|| Box::new(make()))
    }

    /// Its statistics, for those who may count when it is gone.
    pub fn kept_stats(&self) -> &Arc<LazyStats> {
        &self.stats
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
        let now = Moment::now();
        for group in &assignment.localities {
            let mut hosts = Vec::with_capacity(group.endpoints.len());
            for endpoint in &group.endpoints {
                let facts = Facts {
                    locality: group.locality.clone(),
                    metadata: endpoint.metadata.clone(),
                    transport: self.config.transport_for(endpoint.metadata.as_deref()),
                    check: endpoint.check.clone(),
                };
                let host = match members.known.get(&endpoint.address).or(known.get(&endpoint.address)) {
                    Some(host) => {
                        host.update(endpoint, group.priority, facts);
                        host.clone()
                    }
                    None => {
                        changed = true;
                        let host = Host::new(endpoint, group.priority, facts);
                        if self.health.is_some() && !endpoint.check.disabled {
                            host.set_flag(HealthFlag::FailedActiveHc, true);
                            host.set_flag(HealthFlag::PendingActiveHc, self.config.ignore_new_hosts);
                        } else if host.health() == host::Health::Healthy {
                            host.start_at(now);
                        }
                        host
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
        let mut kept = Vec::new();
        for (address, host) in &members.known {
            if !known.contains_key(address) {
                if self.keeps_healthy() && host.passes_checks() {
                    // It may serve on: the control plane may know less than its health checks do.
                    host.set_flag(HealthFlag::PendingDynamicRemoval, true);
                    kept.push((address.clone(), host.clone()));
                    continue;
                }
                changed = true;
                host.set_flag(HealthFlag::Removed, true);
            }
        }
        for host in known.values() {
            host.set_flag(HealthFlag::Removed, false);
            host.set_flag(HealthFlag::PendingDynamicRemoval, false);
        }
        for (address, host) in kept {
            keep(&mut localities, &host);
            known.insert(address, host);
        }
        members.localities = localities;
        members.known = known;
        members.overprovisioning_factor = assignment.overprovisioning_factor;
        members.weighted_health = assignment.weighted_priority_health;
        members.assigned = true;
        self.rebuild(&members);
        drop(members);
        if let Some(health) = &self.health {
            health.members_changed();
        }
        self.stats.tell(|quiet| {
            quiet.updates += 1;
            quiet.changes += u64::from(changed);
        });
    }

    /// Whether a host stays while it passes its checks, though it is no longer assigned.
    fn keeps_healthy(&self) -> bool {
        let fixed = matches!(self.config.discovery, Discovery::Static(_));
        self.health.is_some() && !fixed && !self.config.remove_healthy
    }

    fn rebuild(&self, members: &Members) {
        let policy = HostSetPolicy {
            panic_threshold: self.config.panic_threshold,
            overprovisioning_factor: members.overprovisioning_factor,
            weighted_health: members.weighted_health,
            locality_weighted: self.config.balancing.locality_weighted,
            ramps: self.config.balancing.ramps,
        };
        let set = HostSet::build(&members.localities, policy);
        if members.retired {
            self.tell_of_none();
        } else {
            self.stats.tell(|quiet| {
                quiet.hosts = [set.len(), set.healthy_len(), set.degraded_len()].map(|n| n as i64);
            });
        }
        if let Some(health) = &self.health {
            health.count(&set);
        }
        self.hosts.store(Arc::new(set));
    }

    /// Chooses a host.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Picked, NoHost> {
        let balancing = &self.config.balancing;
        if balancing.policy == Policy::OriginalDst {
            let to = context.original_dst.ok_or(NoHost::NoOriginalDestination)?;
            let transport = self.config.transport_for(None);
            let (host, _) = self.original.host(to, || Facts {
                locality: Arc::default(),
                metadata: None,
                transport,
                check: EndpointCheck::default(),
            });
            return Ok(Picked { active: host.start_request() });
        }
        let set = self.hosts.load();
        if let Some(compared) = context.compared {
            let (hosts, healthy) = (set.len() as u32, set.healthy_len() as u32);
            compared.set(Compared { hosts, healthy, ..Compared::default() });
        }
        let panicked = || self.stats().lb_healthy_panic.inc();
        let in_flight = match balancing.policy.balance_factor() {
            Some(_) => self.limits.iter().filter_map(OnceLock::get).map(|l| l.requests.held()).sum(),
            None => 0,
        };
        match balance::choose(&balancing.policy, &set, context, in_flight, balancing.fail_on_panic, panicked)
        {
            Some(host) => Ok(Picked { active: host.start_request() }),
            None => {
                self.stats().upstream_cx_none_healthy.inc();
                Err(NoHost::NoHealthyUpstream)
            }
        }
    }

    /// Takes note that a request has its connection to a host.
    #[inline]
    pub fn connected(&self, host: &Host) {
        if let Some(detector) = &self.outlier {
            detector.connected(host);
        }
    }

    /// Its active health checks, if it has any.
    pub fn health(&self) -> Option<&Arc<Health>> {
        self.health.as_ref()
    }

    /// Whether its hosts were checked once, if they are.
    pub fn is_checked(&self) -> bool {
        self.health.as_ref().is_none_or(|h| h.is_settled())
    }

    /// An active health check of a host came to its end. `was_out`: it had failed before; `first`: it was the first one.
    fn checked(&self, host: &Arc<Host>, healthy: bool, was_out: bool, first: bool, changed: bool) {
        let now = Instant::now();
        if healthy && was_out {
            host.start_at(Moment::of(now));
            if !first && self.config.balancing.ramps.back.is_some() && host.passes_checks() {
                host.return_at(Some(Moment::of(now)));
            }
        }
        let mut changed = changed;
        if healthy
            && host.passes_checks()
            && let Some(detector) = &self.outlier
        {
            changed |= detector.health_check_passed(host, now, self.stats());
        }
        if !healthy && !host.passes_checks() {
            host.return_at(None);
            if host.has_flag(HealthFlag::PendingDynamicRemoval) {
                self.remove(host);
            }
        }
        if changed {
            self.refresh();
        }
    }

    /// A host said in an answer to a request that it is not well (`x-envoy-immediate-health-check-fail`).
    pub fn told_unhealthy(&self, host: &Host) {
        let Some(health) = &self.health else { return };
        host.set_flag(HealthFlag::ExcludedViaImmediateHcFail, true);
        self.fail_passively(host, health);
    }

    fn fail_passively(&self, host: &Host, health: &Health) {
        health.stats().failure.inc();
        health.stats().passive_failure.inc();
        host.return_at(None);
        if host.set_flag(HealthFlag::FailedActiveHc, true) {
            self.refresh();
        }
    }

    /// Takes out a host that is no longer assigned and no longer passes its checks.
    fn remove(&self, host: &Arc<Host>) {
        let mut members = self.members.lock();
        for locality in &mut members.localities {
            locality.hosts.retain(|h| h.id() != host.id());
        }
        members.known.retain(|_, h| h.id() != host.id());
        host.set_flag(HealthFlag::Removed, true);
        self.rebuild(&members);
        drop(members);
        self.stats.tell(|quiet| quiet.changes += 1);
        if let Some(health) = &self.health {
            health.members_changed();
        }
    }

    /// Whether a host may have one connection more (`per_host_thresholds`); counts an overflow if not.
    pub fn allows_connection(&self, host: &Host, priority: RoutingPriority) -> bool {
        let Some(most) = self.config.connections_per_host[priority as usize] else { return true };
        let allowed = host.totals().cx_active < most;
        if !allowed {
            self.stats().upstream_cx_overflow.inc();
        }
        allowed
    }

    /// Its outlier detection, if it has one.
    pub fn outlier(&self) -> Option<&Detector> {
        self.outlier.as_ref()
    }

    /// Where a host's circuit is, in a cluster with a return window: `open` while nothing is sent there, `half-open` while it
    /// ramps up again, else `closed`.
    pub fn circuit(&self, host: &Host) -> Option<&'static str> {
        let window = self.config.balancing.ramps.back?.window;
        let out = host.has_flag(HealthFlag::FailedOutlier) || host.has_flag(HealthFlag::FailedActiveHc);
        let ramps = |at| Moment::now().since(at) < window;
        Some(match host.returned() {
            _ if out => "open",
            Some(at) if ramps(at) => "half-open",
            _ => "closed",
        })
    }

    /// Takes note of how an attempt at a host ended: its counters, and ejection.
    pub fn report(&self, host: &Arc<Host>, outcome: Outcome) {
        match outcome {
            Outcome::Answered(status) => {
                if status.is_server_error() {
                    host.count_error();
                } else {
                    host.count_success();
                }
            }
            Outcome::TimedOut => {
                host.count_timeout();
                host.count_error();
            }
            Outcome::ConnectFailed => host.count_error(),
            Outcome::Reset => host.count_error(),
        }
        let failed = !matches!(outcome, Outcome::Answered(status) if !status.is_server_error());
        if failed
            && self.outlier.is_none()
            && self.circuit(host) == Some("half-open")
            && let Some(health) = &self.health
        {
            self.fail_passively(host, health);
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

    /// Makes the host set anew once the ramps of its hosts are over, so that balancing costs no more than it must. Called
    /// on the control thread, often.
    pub fn settle(&self, now: Instant) {
        if self.hosts.load().ramps_end().is_some_and(|end| end <= Moment::of(now)) {
            self.refresh();
        }
    }

    /// Lets ejected hosts return whose time is over. Called on the control thread, once an interval.
    pub fn sweep(&self, now: Instant) {
        self.original.sweep();
        let Some(detector) = &self.outlier else {
            if self.pardon(self.hosts.load().hosts()) {
                self.refresh();
            }
            return;
        };
        if self.is_uncalled(detector) {
            return;
        }
        let present: Vec<_> = self.hosts.load().hosts().cloned().collect();
        if detector.sweep(&present, now, self.stats()) {
            self.rebuild(&self.members.lock());
        }
    }
}

/// Keeps a host that is no longer assigned in its locality and priority.
fn keep(localities: &mut Vec<LocalityHosts>, host: &Arc<Host>) {
    let (locality, priority) = (host.facts().locality.clone(), host.priority());
    match localities.iter_mut().find(|l| l.priority == priority && l.locality == locality) {
        Some(group) => group.hosts.push(host.clone()),
        None => {
            localities.push(LocalityHosts { locality, weight: None, priority, hosts: vec![host.clone()] })
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Statistics that two versions of a cluster share by name are summed at a scrape.
        if self.members.get_mut().assigned {
            self.tell_of_none();
        }
    }
}

impl Configured for Cluster {
    fn namespace(
        &self,
        of: Of,
        stream: &StreamInfo,
        namespace: &str,
    ) -> Option<xds_protos::prost_types::Struct> {
        match of {
            Of::Cluster => self.config().namespace(namespace),
            Of::Host => {
                let (address, hosts) = (stream.upstream_host?, self.hosts());
                let host = hosts.hosts().find(|host| host.address().ip() == Some(address))?;
                let facts = host.facts();
                facts.metadata.as_ref()?.namespace(namespace).cloned()
            }
            Of::Route | Of::VirtualHost | Of::Listener | Of::Chain => None,
        }
    }

    fn host_name(&self, address: SocketAddr) -> Option<Arc<str>> {
        let hosts = self.hosts();
        let host = hosts.hosts().find(|host| host.address().ip() == Some(address))?;
        Some(host.hostname().clone()).filter(|name| !name.is_empty())
    }

    fn stat_name(&self) -> Option<Arc<str>> {
        Some(self.config().stat_name.as_str().into())
    }
}
