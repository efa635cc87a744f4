//! Circuit breakers: how much of each resource a cluster may hold at once, over all workers, exactly.
//!
//! A holder keeps a [`Permit`]; dropping it gives the resource back. The `*_open` gauges move only on the transitions in
//! and out of the full state, which the atomic counter orders, so they are exact as well.

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::stats::{LazyStats, LimitCells};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Upstream connections (`max_connections`).
    Connections,
    /// Requests that wait for a connection (`max_pending_requests`).
    Pending,
    /// Requests on connections (`max_requests`).
    Requests,
    /// Retries under way (`max_retries` or the retry budget).
    Retries,
}

impl Resource {
    /// The setting that limits it.
    const fn setting(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
        }
    }
}

/// The routing priority that a request's limits are taken from (Envoy's `RoutingPriority`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoutingPriority {
    /// DEFAULT.
    #[default]
    Default,
    /// HIGH.
    High,
}

/// One priority's thresholds.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Connections.
    pub max_connections: u64,
    /// Pending requests.
    pub max_pending_requests: u64,
    /// Requests.
    pub max_requests: u64,
    /// Retries, where there is no budget.
    pub max_retries: u64,
    /// Retries as a share of requests.
    pub retry_budget: Option<RetryBudget>,
    /// Keep the `remaining_*` gauges.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// A limit on retries relative to the requests under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests.
    pub percent: f64,
    /// So many retries are always allowed.
    pub min_concurrency: u64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Held(AtomicU64);

/// One resource's limit.
#[derive(Debug)]
pub struct Limit {
    held: Held,
    max: u64,
    budget: Option<(RetryBudget, Arc<Limit>, Arc<Limit>)>,
    resource: Resource,
    priority: RoutingPriority,
    track_remaining: bool,
    stats: Arc<LazyStats>,
    /// When it was last told that it refuses, in milliseconds from [`TELLING`]'s beginning; 0 for never.
    told: AtomicU64,
}

/// A breaker that goes on refusing says so this often, in milliseconds.
const TELL_EVERY: u64 = 10_000;
static TELLING: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Limit {
    fn new(
        resource: Resource,
        priority: RoutingPriority,
        max: u64,
        track_remaining: bool,
        stats: &Arc<LazyStats>,
    ) -> Self {
        let held = Held(AtomicU64::new(0));
        Self {
            held,
            max,
            budget: None,
            resource,
            priority,
            track_remaining,
            stats: stats.clone(),
            told: AtomicU64::new(0),
        }
    }

    fn cells(&self) -> &LimitCells {
        self.stats.get().limit(self.resource, self.priority)
    }

    /// How much may be held now.
    pub fn max(&self) -> u64 {
        match &self.budget {
            None => self.max,
            Some((budget, requests, pending)) => {
                let under_way = (requests.held() + pending.held()) as f64;
                ((budget.percent * under_way / 100.0) as u64).max(budget.min_concurrency)
            }
        }
    }

    /// How much is held.
    pub fn held(&self) -> u64 {
        self.held.0.load(Acquire)
    }

    /// Takes one unless the limit is reached; counts an overflow if it is.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let max = self.max();
        let mut held = self.held();
        loop {
            if held >= max {
                self.stats.get().overflow(self.resource).inc();
                self.tell(max);
                return None;
            }
            match self.held.0.compare_exchange_weak(held, held + 1, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => held = now,
            }
        }
        self.account_taken(held, max);
        Some(Permit(self.clone()))
    }

    /// Takes one even over the limit: a worker without any connection to a host may always open one.
    pub fn acquire_over(self: &Arc<Self>) -> Permit {
        let held = self.held.0.fetch_add(1, AcqRel);
        self.account_taken(held, self.max());
        Permit(self.clone())
    }

    /// Tells that it refuses, now and then.
    fn tell(&self, max: u64) {
        let now = TELLING.elapsed().as_millis() as u64 + 1;
        let last = self.told.load(Acquire);
        let due = last == 0 || now >= last + TELL_EVERY;
        if !due || self.told.compare_exchange(last, now, AcqRel, Acquire).is_err() {
            return;
        }
        emit(Kind::Breaker, || {
            let (cluster, resource) = (self.stats.cluster(), self.resource.setting());
            let words = format!("{cluster} refuses: its {resource} ({max}) is reached");
            Event::new(Kind::Breaker, Outcome::Denied, Severity::Low, "circuit-breaker", words)
                .with("cluster", cluster)
                .with("limit", resource)
                .with("maximum", max)
        });
    }

    fn account_taken(&self, before: u64, max: u64) {
        if before + 1 == max {
            self.cells().open.add(1);
        }
        if self.track_remaining {
            self.cells().remaining.add(-1);
        }
    }

    fn release(&self) {
        let before = self.held.0.fetch_sub(1, AcqRel);
        // A budget's maximum moves, so its gauge can only be read as a hint; fixed limits are exact.
        if before == self.max {
            self.cells().open.add(-1);
        }
        if self.track_remaining {
            self.cells().remaining.add(1);
        }
    }
}

/// One unit of a limited resource.
#[derive(Debug)]
#[must_use = "dropping the permit gives the resource back"]
pub struct Permit(Arc<Limit>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The limits of one routing priority.
#[derive(Debug)]
pub struct Limits {
    /// Connections.
    pub connections: Arc<Limit>,
    /// Requests waiting for a connection.
    pub pending: Arc<Limit>,
    /// Requests on connections.
    pub requests: Arc<Limit>,
    /// Retries under way.
    pub retries: Arc<Limit>,
}

impl Limits {
    /// Limits that hold nothing yet.
    pub(super) fn new(thresholds: &Thresholds, priority: RoutingPriority, stats: &Arc<LazyStats>) -> Self {
        let limit = |resource, max| Limit::new(resource, priority, max, thresholds.track_remaining, stats);
        let requests = Arc::new(limit(Resource::Requests, thresholds.max_requests));
        let pending = Arc::new(limit(Resource::Pending, thresholds.max_pending_requests));
        let mut retries = limit(Resource::Retries, thresholds.max_retries);
        if let Some(budget) = thresholds.retry_budget {
            retries.budget = Some((budget, requests.clone(), pending.clone()));
            retries.max = u64::MAX;
            retries.track_remaining = false;
        }
        Self {
            connections: Arc::new(limit(Resource::Connections, thresholds.max_connections)),
            pending,
            requests,
            retries: Arc::new(retries),
        }
    }
}
