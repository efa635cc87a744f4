//! What is counted for a route (`Route.stat_prefix`) or a virtual cluster: answers by status, timeouts and retries, under
//! Envoy's names (`vhost.<name>.route.<prefix>.`, `vhost.<name>.vcluster.<name>.`).

use std::sync::Arc;

use crate::telemetry::codes::Codes;
use crate::telemetry::registry::{Counter, Group, Histogram};

/// The counters; the names are Envoy's.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are Envoy's")]
pub struct RouteStats {
    _group: Arc<Group>,
    /// Answers.
    pub codes: Codes,
    pub upstream_rq_total: Counter,
    pub upstream_rq_timeout: Counter,
    pub upstream_rq_retry: Counter,
    pub upstream_rq_retry_success: Counter,
    pub upstream_rq_retry_overflow: Counter,
    pub upstream_rq_retry_limit_exceeded: Counter,
    pub upstream_rq_time: Histogram,
}

impl RouteStats {
    /// Counters with this prefix.
    pub fn new(prefix: impl Into<Arc<str>>) -> Arc<Self> {
        let group = Group::new(prefix, Vec::new());
        Arc::new(Self {
            codes: Codes::new(&group),
            upstream_rq_total: group.counter("upstream_rq_total"),
            upstream_rq_timeout: group.counter("upstream_rq_timeout"),
            upstream_rq_retry: group.counter("upstream_rq_retry"),
            upstream_rq_retry_success: group.counter("upstream_rq_retry_success"),
            upstream_rq_retry_overflow: group.counter("upstream_rq_retry_overflow"),
            upstream_rq_retry_limit_exceeded: group.counter("upstream_rq_retry_limit_exceeded"),
            upstream_rq_time: group.histogram("upstream_rq_time"),
            _group: group,
        })
    }
}
