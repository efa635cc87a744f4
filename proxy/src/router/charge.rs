//! Who counts what becomes of a request: its cluster, its virtual cluster and its route.
//!
//! An answer counts once for a request, with the status that the client gets; answers that were followed by another try
//! count apart.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, StatusCode};

use super::attempt::Event;
use crate::cluster::{Cluster, LazyStats};
use crate::codec::{Headers, RequestHead};
use crate::route::Matched;
use crate::route::stats::RouteStats;
use crate::state::Slot;
use crate::telemetry::codes::Share;

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const CANARY: HeaderName = HeaderName::from_static("x-envoy-upstream-canary");

/// The counters of a request that is on its way to a cluster: those of the version that it was sent to, as in Envoy.
#[derive(Debug)]
pub struct Charge {
    cluster: Arc<LazyStats>,
    virtual_cluster: Option<Arc<RouteStats>>,
    route: Option<Arc<RouteStats>>,
    internal: bool,
}

impl Charge {
    /// For a request with this route to the cluster with these statistics.
    pub fn new(cluster: Arc<LazyStats>, matched: &Matched, head: &RequestHead) -> Self {
        Self {
            cluster,
            virtual_cluster: matched.virtual_cluster(head).map(|c| c.stats.clone()),
            route: matched.route().stats.clone(),
            internal: head.headers.contains(&INTERNAL),
        }
    }

    fn of_route(&self) -> impl Iterator<Item = &RouteStats> {
        self.virtual_cluster.iter().chain(&self.route).map(|s| &**s)
    }

    /// The client gets an answer of this status; `upstream` are its fields where it is an upstream's.
    pub fn answered(&self, status: StatusCode, upstream: Option<&Headers>) {
        let codes = &self.cluster.get().codes;
        codes.count(Share::All, status);
        codes.count(if self.internal { Share::Internal } else { Share::External }, status);
        if upstream.is_some_and(|h| h.get(&CANARY).is_some_and(|v| v == "true")) {
            codes.count(Share::Canary, status);
        }
        self.of_route().for_each(|s| s.codes.count(Share::All, status));
    }

    /// The time for the whole answer is over.
    pub fn timed_out(&self) {
        self.cluster.get().upstream_rq_timeout.inc();
        self.of_route().for_each(|s| s.upstream_rq_timeout.inc());
    }

    /// A try has a connection.
    pub fn began(&self) {
        self.of_route().for_each(|s| s.upstream_rq_total.inc());
    }

    /// The upstream's answer is whole; the request was at this time.
    pub fn completed(&self, request_end: Instant) {
        let millis = request_end.elapsed().as_secs_f64() * 1000.0;
        self.cluster.get().upstream_rq_time.record(millis);
        self.of_route().for_each(|s| s.upstream_rq_time.record(millis));
    }

    /// Something of the retry loop's.
    pub fn event(&self, event: Event) {
        let stats = self.cluster.get();
        match event {
            Event::Retry => stats.upstream_rq_retry.inc(),
            Event::RetrySuccess => stats.upstream_rq_retry_success.inc(),
            Event::RetryLimitExceeded => stats.upstream_rq_retry_limit_exceeded.inc(),
            // Counted where the permit was refused.
            Event::RetryOverflow => {}
            Event::BackOff => stats.upstream_rq_retry_backoff_exponential.inc(),
            Event::RateLimitedBackOff => stats.upstream_rq_retry_backoff_ratelimited.inc(),
            Event::Retried(status) => stats.codes.count(Share::Retry, status),
        }
        self.of_route().for_each(|stats| match event {
            Event::Retry => stats.upstream_rq_retry.inc(),
            Event::RetrySuccess => stats.upstream_rq_retry_success.inc(),
            Event::RetryLimitExceeded => stats.upstream_rq_retry_limit_exceeded.inc(),
            Event::RetryOverflow => stats.upstream_rq_retry_overflow.inc(),
            Event::BackOff | Event::RateLimitedBackOff | Event::Retried(_) => {}
        });
    }
}

/// A mirror answered a copy: its cluster counts it, as an internal request's.
pub fn copy_answered(cluster: &Slot<Cluster>, status: StatusCode) {
    if let Some(cluster) = &*cluster.load() {
        let codes = &cluster.stats().codes;
        codes.count(Share::All, status);
        codes.count(Share::Internal, status);
    }
}
