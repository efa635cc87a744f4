//! A host: one upstream endpoint with the identity that it keeps over assignment updates, its health, its counters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU32, AtomicU64};

use arc_swap::{ArcSwap, Guard};

use super::balance::ramp::Moment;
use super::endpoint::{Endpoint, EndpointCheck, EndpointHealth, HostAddress, Locality, Metadata};
use super::outlier::{Origin, Streaks};

/// A host's number, unique in this process; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// What an assignment update may change of a host without making it another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Where it is.
    pub locality: Arc<Locality>,
    /// Its metadata.
    pub metadata: Option<Arc<Metadata>>,
    /// Which of the cluster's transport sockets it is reached by.
    pub transport: usize,
    /// How it is checked.
    pub check: EndpointCheck,
}

/// Reasons not to use a host; each has one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HealthFlag {
    /// The assignment says UNHEALTHY, TIMEOUT or DRAINING.
    FailedEds = 1,
    /// The assignment says DEGRADED.
    DegradedEds = 2,
    /// The assignment says DRAINING.
    DrainingEds = 4,
    /// Ejected as an outlier.
    FailedOutlier = 8,
    /// No longer in the cluster: its idle connections close, its streams finish.
    Removed = 16,
    /// An active health check failed, or none has been made yet.
    FailedActiveHc = 32,
    /// An active health check said that it is degraded.
    DegradedActiveHc = 64,
    /// The last active health check took too long.
    ActiveHcTimeout = 128,
    /// New: no active health check has come to an end yet.
    PendingActiveHc = 256,
    /// It told so itself in an answer to a request (`x-envoy-immediate-health-check-fail`).
    ExcludedViaImmediateHcFail = 512,
    /// No longer in the assignment, but kept because it passes its active health checks.
    PendingDynamicRemoval = 1024,
}

const UNHEALTHY: u32 =
    HealthFlag::FailedEds as u32 | HealthFlag::FailedOutlier as u32 | HealthFlag::FailedActiveHc as u32;
const DEGRADED: u32 = HealthFlag::DegradedEds as u32 | HealthFlag::DegradedActiveHc as u32;

/// Whether new requests go to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Healthy,
    /// When the healthy ones do not suffice.
    Degraded,
    /// Only in panic.
    Unhealthy,
}

/// The counters that every request touches, on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Hot {
    active_requests: AtomicU32,
    active_connections: AtomicU32,
    requests: AtomicU64,
    successes: AtomicU64,
    errors: AtomicU64,
    timeouts: AtomicU64,
    connections: AtomicU64,
    connect_failures: AtomicU64,
}

/// A host's totals as `/clusters` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are Envoy's.
pub struct HostTotals {
    pub cx_active: u32,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u32,
    pub rq_error: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
}

/// An upstream endpoint. Shared by all workers; everything that changes is atomic.
pub struct Host {
    hot: Hot,
    id: HostId,
    address: HostAddress,
    hostname: Arc<str>,
    weight: AtomicU32,
    priority: AtomicU32,
    flags: AtomicU32,
    facts: ArcSwap<Facts>,
    /// When it became one to send to, for slow start; 0 for never.
    started: AtomicU64,
    /// When it last came back from ejection or failed health checks; 0 for never.
    returned: AtomicU64,
    pub(super) streaks: Streaks,
}

impl Host {
    /// A host for this endpoint.
    pub fn new(endpoint: &Endpoint, priority: u32, facts: Facts) -> Arc<Self> {
        let host = Self {
            hot: Hot::default(),
            id: HostId(NEXT.fetch_add(1, Relaxed)),
            address: endpoint.address.clone(),
            hostname: endpoint.hostname.clone(),
            weight: AtomicU32::new(endpoint.weight.max(1)),
            priority: AtomicU32::new(priority),
            flags: AtomicU32::new(0),
            facts: ArcSwap::from_pointee(facts),
            started: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            streaks: Streaks::default(),
        };
        host.set_eds_health(endpoint.health);
        Arc::new(host)
    }

    /// Takes over what a newer assignment says of the same address.
    pub(super) fn update(&self, endpoint: &Endpoint, priority: u32, facts: Facts) {
        self.weight.store(endpoint.weight.max(1), Relaxed);
        self.priority.store(priority, Relaxed);
        self.set_eds_health(endpoint.health);
        if **self.facts.load() != facts {
            self.facts.store(Arc::new(facts));
        }
    }

    fn set_eds_health(&self, health: EndpointHealth) {
        use HealthFlag::{DegradedEds, DrainingEds, FailedEds};
        self.set_flag(FailedEds, matches!(health, EndpointHealth::Unhealthy | EndpointHealth::Draining));
        self.set_flag(DrainingEds, health == EndpointHealth::Draining);
        self.set_flag(DegradedEds, health == EndpointHealth::Degraded);
    }

    /// Its number.
    #[inline]
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Where it is.
    pub fn address(&self) -> &HostAddress {
        &self.address
    }

    /// Its host name; may be empty.
    pub fn hostname(&self) -> &Arc<str> {
        &self.hostname
    }

    /// Its weight, at least 1.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Its priority; 0 is used first.
    pub fn priority(&self) -> u32 {
        self.priority.load(Relaxed)
    }

    /// Locality, metadata, transport socket; for a moment, not to be held over an await.
    pub fn facts(&self) -> Guard<Arc<Facts>> {
        self.facts.load()
    }

    /// Whether a flag is set.
    pub fn has_flag(&self, flag: HealthFlag) -> bool {
        self.flags.load(Acquire) & flag as u32 != 0
    }

    /// Sets or clears a flag; says whether that changed it.
    pub(super) fn set_flag(&self, flag: HealthFlag, on: bool) -> bool {
        let bit = flag as u32;
        let before = if on { self.flags.fetch_or(bit, AcqRel) } else { self.flags.fetch_and(!bit, AcqRel) };
        (before & bit != 0) != on
    }

    /// Whether new requests go to it.
    pub fn health(&self) -> Health {
        let flags = self.flags.load(Acquire);
        if flags & UNHEALTHY != 0 {
            Health::Unhealthy
        } else if flags & DEGRADED != 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// Whether no active health check says that it is unhealthy, nor the assignment.
    pub(super) fn passes_checks(&self) -> bool {
        !self.has_flag(HealthFlag::FailedActiveHc) && !self.has_flag(HealthFlag::FailedEds)
    }

    /// There are no active health checks any more: what they found is forgotten.
    pub(super) fn forget_checks(&self) {
        for flag in [
            HealthFlag::FailedActiveHc,
            HealthFlag::DegradedActiveHc,
            HealthFlag::ActiveHcTimeout,
            HealthFlag::PendingActiveHc,
            HealthFlag::ExcludedViaImmediateHcFail,
        ] {
            self.set_flag(flag, false);
        }
    }

    /// Whether it counts nowhere when a priority's health is judged.
    pub(super) fn is_excluded(&self) -> bool {
        self.has_flag(HealthFlag::PendingActiveHc) || self.has_flag(HealthFlag::ExcludedViaImmediateHcFail)
    }

    /// The flags as they are, in their bits.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.flags.load(Acquire)
    }

    /// The flags as `/clusters` prints them: `healthy`, or `/failed_eds_health/failed_outlier_check`.
    pub fn health_text(&self) -> String {
        Self::text_of(self.flags())
    }

    /// The same of flags that were read earlier.
    pub fn text_of(flags: u32) -> String {
        const NAMES: [(HealthFlag, &str); 10] = [
            (HealthFlag::FailedActiveHc, "/failed_active_hc"),
            (HealthFlag::FailedOutlier, "/failed_outlier_check"),
            (HealthFlag::FailedEds, "/failed_eds_health"),
            (HealthFlag::DegradedActiveHc, "/degraded_active_hc"),
            (HealthFlag::DegradedEds, "/degraded_eds_health"),
            (HealthFlag::PendingDynamicRemoval, "/pending_dynamic_removal"),
            (HealthFlag::PendingActiveHc, "/pending_active_hc"),
            (HealthFlag::ExcludedViaImmediateHcFail, "/excluded_via_immediate_hc_fail"),
            (HealthFlag::ActiveHcTimeout, "/active_hc_timeout"),
            (HealthFlag::DrainingEds, "/eds_status_draining"),
        ];
        let set: String =
            NAMES.iter().filter(|(flag, _)| flags & *flag as u32 != 0).map(|(_, name)| *name).collect();
        if set.is_empty() { "healthy".to_owned() } else { set }
    }

    /// Its success rate in the last interval of outlier detection, in percent; -1 where too little was asked of it.
    pub fn success_rate(&self, origin: Origin) -> f64 {
        self.streaks.rate(origin)
    }

    /// When it became one to send to: it was added healthy, or passed its health checks.
    pub(super) fn started(&self) -> Option<Moment> {
        Some(self.started.load(Relaxed)).filter(|at| *at > 0).map(Moment)
    }

    /// Says when it became one to send to.
    pub(super) fn start_at(&self, at: Moment) {
        self.started.store(at.0, Relaxed);
    }

    /// When it last came back from ejection or failed health checks.
    pub(super) fn returned(&self) -> Option<Moment> {
        Some(self.returned.load(Relaxed)).filter(|at| *at > 0).map(Moment)
    }

    /// Says when it came back; none while it is out.
    pub(super) fn return_at(&self, at: Option<Moment>) {
        self.returned.store(at.map_or(0, |at| at.0), Relaxed);
    }

    /// Requests (or TCP connections) that are on this host now, over all workers.
    #[inline]
    pub fn active_requests(&self) -> u32 {
        self.hot.active_requests.load(Relaxed)
    }

    /// The totals.
    pub fn totals(&self) -> HostTotals {
        HostTotals {
            cx_active: self.hot.active_connections.load(Relaxed),
            cx_connect_fail: self.hot.connect_failures.load(Relaxed),
            cx_total: self.hot.connections.load(Relaxed),
            rq_active: self.hot.active_requests.load(Relaxed),
            rq_error: self.hot.errors.load(Relaxed),
            rq_success: self.hot.successes.load(Relaxed),
            rq_timeout: self.hot.timeouts.load(Relaxed),
            rq_total: self.hot.requests.load(Relaxed),
        }
    }

    /// Counts one request as active until the guard is dropped.
    #[inline]
    pub fn start_request(self: &Arc<Self>) -> ActiveRequest {
        self.hot.active_requests.fetch_add(1, Relaxed);
        ActiveRequest(self.clone())
    }

    /// Counts one open connection until the guard is dropped.
    pub(super) fn start_connection(self: &Arc<Self>) -> OpenConnection {
        self.hot.active_connections.fetch_add(1, Relaxed);
        self.hot.connections.fetch_add(1, Relaxed);
        OpenConnection(self.clone())
    }

    pub(super) fn count_request(&self) {
        self.hot.requests.fetch_add(1, Relaxed);
    }

    pub(super) fn count_success(&self) {
        self.hot.successes.fetch_add(1, Relaxed);
    }

    pub(super) fn count_error(&self) {
        self.hot.errors.fetch_add(1, Relaxed);
    }

    pub(super) fn count_timeout(&self) {
        self.hot.timeouts.fetch_add(1, Relaxed);
    }

    pub(super) fn count_connect_failure(&self) {
        self.hot.connect_failures.fetch_add(1, Relaxed);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({} {} {})", self.id.0, self.address, self.health_text())
    }
}

/// One active request on a host; dropping it ends the count.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Host>);

impl ActiveRequest {
    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        &self.0
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.hot.active_requests.fetch_sub(1, Relaxed);
    }
}

/// One open connection to a host; dropping it ends the count.
#[derive(Debug)]
pub struct OpenConnection(Arc<Host>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.hot.active_connections.fetch_sub(1, Relaxed);
    }
}
