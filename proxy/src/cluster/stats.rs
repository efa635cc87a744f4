//! What a cluster counts, under Envoy's names (`cluster.<name>.`); made at its first use, so that a thousand clusters that
//! nobody calls cost nothing.

use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;

use super::limits::{Resource, RoutingPriority, Thresholds};
use super::outlier::Kind;
use crate::identity::tls::TlsStats;
use crate::telemetry::codes::Codes;
use crate::telemetry::registry::{Counter, Entry, Gauge, Group, Histogram, Template};

/// A cluster's statistics, made when first asked for.
#[derive(Debug)]
pub struct LazyStats {
    prefix: Arc<str>,
    thresholds: [Thresholds; 2],
    made: OnceLock<Box<ClusterStats>>,
    quiet: Mutex<Quiet>,
}

/// What there is to be told of a cluster that nobody has called: how many hosts it has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quiet {
    /// All, those that are healthy, and those that are degraded.
    pub hosts: [i64; 3],
    /// How often it has become others.
    pub changes: u64,
    /// How often they were assigned.
    pub updates: u64,
}

impl LazyStats {
    /// For a cluster of this name in statistics, with these limits (default and high priority).
    pub fn new(name: &str, thresholds: [Thresholds; 2]) -> Arc<Self> {
        // Istio ends alternative names with a semicolon, its delimiter; it is no part of the name.
        let name = name.strip_suffix(';').unwrap_or(name);
        Arc::new(Self {
            prefix: format!("cluster.{name}").into(),
            thresholds,
            made: OnceLock::new(),
            quiet: Mutex::default(),
        })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        self.prefix.strip_prefix("cluster.").unwrap_or(&self.prefix)
    }

    /// The statistics.
    #[inline]
    pub fn get(&self) -> &ClusterStats {
        match self.made.get() {
            Some(made) => made,
            None => self.make(),
        }
    }

    /// They begin with what was told before. Whoever tells more meanwhile waits.
    #[cold]
    fn make(&self) -> &ClusterStats {
        let quiet = self.quiet.lock();
        self.made.get_or_init(|| {
            let made = Box::new(ClusterStats::new(&self.prefix, &self.thresholds));
            made.tell(&quiet, &Quiet::default());
            made
        })
    }

    /// The statistics, if somebody has made them.
    pub fn made(&self) -> Option<&ClusterStats> {
        self.made.get().map(|made| &**made)
    }

    /// What there is to be told as long as nobody has made them.
    pub fn quiet(&self) -> Option<(&Arc<str>, Quiet)> {
        let quiet = *self.quiet.lock();
        self.made.get().is_none().then_some((&self.prefix, quiet))
    }

    /// Tells of hosts.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Quiet)) {
        let mut quiet = self.quiet.lock();
        let before = *quiet;
        change(&mut quiet);
        if let Some(made) = self.made.get() {
            made.tell(&quiet, &before);
        }
    }
}

/// Gauges of one circuit breaker.
#[derive(Clone, Copy, Debug)]
pub struct LimitCells {
    /// 1 while it is full.
    pub open: Gauge,
    /// What is left of it.
    pub remaining: Gauge,
}

/// The names of a statistic by kind of ejection, in the order of [`Kind`].
macro_rules! by_kind {
    ($prefix:literal) => {
        [
            concat!($prefix, "consecutive_5xx"),
            concat!($prefix, "consecutive_gateway_failure"),
            concat!($prefix, "consecutive_local_origin_failure"),
            concat!($prefix, "success_rate"),
            concat!($prefix, "local_origin_success_rate"),
            concat!($prefix, "failure_percentage"),
            concat!($prefix, "local_origin_failure_percentage"),
        ]
    };
}

macro_rules! stats {
    ($($field:ident: $kind:ident $name:literal,)*) => {
        /// The cells; the field names are Envoy's.
        #[derive(Debug)]
        #[allow(missing_docs, reason = "the names are Envoy's")]
        pub struct ClusterStats {
            _group: Arc<Group>,
            $(pub $field: stats!(@type $kind),)*
            /// Answers.
            pub codes: Codes,
            /// `outlier_detection.ejections_detected_*`, by kind.
            pub ejections_detected: [Counter; Kind::COUNT],
            /// `outlier_detection.ejections_enforced_*`, by kind.
            pub ejections_enforced: [Counter; Kind::COUNT],
            /// `ssl.*`.
            pub tls: TlsStats,
            limits: [[LimitCells; 4]; 2],
        }

        impl ClusterStats {
            fn new(prefix: &Arc<str>, thresholds: &[Thresholds; 2]) -> Self {
                Self::within(&Group::alike(&ALIKE, prefix.clone()), thresholds)
            }

            fn within(group: &Arc<Group>, thresholds: &[Thresholds; 2]) -> Self {
                Self {
                    $($field: group.$kind($name),)*
                    codes: Codes::new(group),
                    ejections_detected: by_kind!("outlier_detection.ejections_detected_").map(|n| group.counter(n)),
                    ejections_enforced: by_kind!("outlier_detection.ejections_enforced_").map(|n| group.counter(n)),
                    tls: TlsStats::new(group),
                    limits: limit_cells(group, thresholds),
                    _group: group.clone(),
                }
            }
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
}

stats! {
    upstream_cx_total: counter "upstream_cx_total",
    upstream_cx_active: gauge "upstream_cx_active",
    upstream_cx_http1_total: counter "upstream_cx_http1_total",
    upstream_cx_http2_total: counter "upstream_cx_http2_total",
    upstream_cx_connect_fail: counter "upstream_cx_connect_fail",
    upstream_cx_connect_attempts_exceeded: counter "upstream_cx_connect_attempts_exceeded",
    upstream_cx_connect_timeout: counter "upstream_cx_connect_timeout",
    upstream_cx_connect_ms: histogram "upstream_cx_connect_ms",
    upstream_cx_destroy: counter "upstream_cx_destroy",
    upstream_cx_idle_timeout: counter "upstream_cx_idle_timeout",
    upstream_cx_max_requests: counter "upstream_cx_max_requests",
    upstream_cx_none_healthy: counter "upstream_cx_none_healthy",
    upstream_cx_overflow: counter "upstream_cx_overflow",
    upstream_cx_pool_overflow: counter "upstream_cx_pool_overflow",
    upstream_rq_total: counter "upstream_rq_total",
    upstream_rq_active: gauge "upstream_rq_active",
    upstream_rq_pending_total: counter "upstream_rq_pending_total",
    upstream_rq_pending_active: gauge "upstream_rq_pending_active",
    upstream_rq_pending_overflow: counter "upstream_rq_pending_overflow",
    upstream_rq_active_overflow: counter "upstream_rq_active_overflow",
    upstream_rq_timeout: counter "upstream_rq_timeout",
    upstream_rq_per_try_timeout: counter "upstream_rq_per_try_timeout",
    upstream_rq_retry: counter "upstream_rq_retry",
    upstream_rq_retry_success: counter "upstream_rq_retry_success",
    upstream_rq_retry_overflow: counter "upstream_rq_retry_overflow",
    upstream_rq_retry_limit_exceeded: counter "upstream_rq_retry_limit_exceeded",
    upstream_rq_retry_backoff_exponential: counter "upstream_rq_retry_backoff_exponential",
    upstream_rq_retry_backoff_ratelimited: counter "upstream_rq_retry_backoff_ratelimited",
    retry_or_shadow_abandoned: counter "retry_or_shadow_abandoned",
    upstream_rq_per_try_idle_timeout: counter "upstream_rq_per_try_idle_timeout",
    upstream_rq_max_duration_reached: counter "upstream_rq_max_duration_reached",
    upstream_internal_redirect_succeeded_total: counter "upstream_internal_redirect_succeeded_total",
    upstream_internal_redirect_failed_total: counter "upstream_internal_redirect_failed_total",
    upstream_rq_rx_reset: counter "upstream_rq_rx_reset",
    upstream_rq_tx_reset: counter "upstream_rq_tx_reset",
    upstream_rq_time: histogram "upstream_rq_time",
    membership_total: gauge "membership_total",
    membership_healthy: gauge "membership_healthy",
    membership_degraded: gauge "membership_degraded",
    membership_change: counter "membership_change",
    update_success: counter "update_success",
    update_no_rebuild: counter "update_no_rebuild",
    lb_healthy_panic: counter "lb_healthy_panic",
    ejections_active: gauge "outlier_detection.ejections_active",
    ejections_enforced_total: counter "outlier_detection.ejections_enforced_total",
    ejections_overflow: counter "outlier_detection.ejections_overflow",
    ejections_total: counter "outlier_detection.ejections_total",
    ejections_consecutive_5xx: counter "outlier_detection.ejections_consecutive_5xx",
    ejections_success_rate: counter "outlier_detection.ejections_success_rate",
}

/// What every cluster counts.
static ALIKE: LazyLock<Template> =
    LazyLock::new(|| Template::of(|group| ClusterStats::within(group, &Default::default())));

impl ClusterStats {
    /// What every cluster counts.
    pub fn all() -> &'static [Entry] {
        ALIKE.entries()
    }

    fn tell(&self, now: &Quiet, before: &Quiet) {
        let gauges = [self.membership_total, self.membership_healthy, self.membership_degraded];
        for (gauge, (now, before)) in gauges.iter().zip(now.hosts.iter().zip(&before.hosts)) {
            if now != before {
                gauge.add(now - before);
            }
        }
        self.membership_change.add(now.changes - before.changes);
        self.update_success.add(now.updates - before.updates);
    }

    /// The gauges of a breaker.
    pub fn limit(&self, resource: Resource, priority: RoutingPriority) -> &LimitCells {
        &self.limits[priority as usize][resource as usize]
    }

    /// What counts that a breaker was full.
    pub fn overflow(&self, resource: Resource) -> Counter {
        match resource {
            Resource::Connections => self.upstream_cx_overflow,
            Resource::Pending => self.upstream_rq_pending_overflow,
            Resource::Requests => self.upstream_rq_active_overflow,
            Resource::Retries => self.upstream_rq_retry_overflow,
        }
    }
}

fn limit_cells(group: &Group, thresholds: &[Thresholds; 2]) -> [[LimitCells; 4]; 2] {
    const NAMES: [[[&str; 2]; 4]; 2] = [
        [
            ["circuit_breakers.default.cx_open", "circuit_breakers.default.remaining_cx"],
            ["circuit_breakers.default.rq_pending_open", "circuit_breakers.default.remaining_pending"],
            ["circuit_breakers.default.rq_open", "circuit_breakers.default.remaining_rq"],
            ["circuit_breakers.default.rq_retry_open", "circuit_breakers.default.remaining_retries"],
        ],
        [
            ["circuit_breakers.high.cx_open", "circuit_breakers.high.remaining_cx"],
            ["circuit_breakers.high.rq_pending_open", "circuit_breakers.high.remaining_pending"],
            ["circuit_breakers.high.rq_open", "circuit_breakers.high.remaining_rq"],
            ["circuit_breakers.high.rq_retry_open", "circuit_breakers.high.remaining_retries"],
        ],
    ];
    std::array::from_fn(|priority| {
        let t = &thresholds[priority];
        let maxima = [t.max_connections, t.max_pending_requests, t.max_requests, t.max_retries];
        std::array::from_fn(|i| {
            let cells = LimitCells {
                open: group.gauge(NAMES[priority][i][0]),
                remaining: group.gauge(NAMES[priority][i][1]),
            };
            if t.track_remaining {
                cells.remaining.add(i64::try_from(maxima[i]).unwrap_or(i64::MAX));
            }
            cells
        })
    })
}
