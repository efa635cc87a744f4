//! What DNS counts, under the names of Istio's agent where it has them.

use std::fmt::Write;
use std::sync::Arc;

use crate::telemetry::registry::{Counter, Group};

/// The counters; clones share.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    /// Questions of applications.
    pub(super) requests: Counter,
    /// Of these, answered from the mesh's names.
    pub(super) local: Counter,
    /// From what was answered before.
    pub(super) cached: Counter,
    /// From what was answered before and is past its time.
    pub(super) stale: Counter,
    /// Not answered at all, because too many were being.
    pub(super) dropped: Counter,
    /// Answered by SERVFAIL of our own.
    pub(super) failures: Counter,
    /// Questions to servers.
    pub(super) upstream_requests: Counter,
    /// Those without a useful answer.
    pub(super) upstream_failures: Counter,
    /// Questions of our own that came back to us.
    pub(super) loops: Counter,
    _group: Arc<Group>,
}

const NAMES: [(&str, &str); 9] = [
    ("requests_total", "Questions of applications."),
    ("local_total", "Questions that were answered from the mesh's names."),
    ("cached_total", "Questions that were answered from what servers said before."),
    ("stale_total", "Questions that were answered from what servers said before, after its time."),
    ("dropped_total", "Questions that were not answered, because too many were being."),
    ("failures_total", "Questions that were answered by SERVFAIL, because no server helped."),
    ("upstream_requests_total", "Questions to servers."),
    ("upstream_failures_total", "Questions to servers that brought no useful answer."),
    ("loops_total", "Questions to servers that the kernel sent back here."),
];

impl Stats {
    pub(super) fn new() -> Self {
        let group = Group::new("dns", Vec::new());
        let counter = |n: usize| group.counter(NAMES[n].0);
        Self {
            requests: counter(0),
            local: counter(1),
            cached: counter(2),
            stale: counter(3),
            dropped: counter(4),
            failures: counter(5),
            upstream_requests: counter(6),
            upstream_failures: counter(7),
            loops: counter(8),
            _group: group,
        }
    }

    pub(super) fn all(&self) -> [(&'static str, &'static str, u64); NAMES.len()] {
        let counters = [
            self.requests,
            self.local,
            self.cached,
            self.stale,
            self.dropped,
            self.failures,
            self.upstream_requests,
            self.upstream_failures,
            self.loops,
        ];
        std::array::from_fn(|n| (NAMES[n].0, NAMES[n].1, counters[n].value()))
    }

    /// In Prometheus' text form.
    pub(super) fn prometheus(&self) -> String {
        let mut text = String::new();
        for (name, help, value) in self.all() {
            let _ = writeln!(text, "# HELP dns_{name} {help}\n# TYPE dns_{name} counter\ndns_{name} {value}");
        }
        text
    }
}
