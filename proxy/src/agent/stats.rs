//! What an agent counts, in Prometheus' text form.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::identity::workload::{Current, Status};

/// Numbers of one agent; clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    counters: [AtomicU64; COUNTERS.len()],
    last_relay_error: Mutex<Option<String>>,
}

/// A number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    SdsStreams,
    SdsResponses,
    SdsRejections,
    RelayStreams,
    RelayActive,
    RelayRequests,
    RelayResponses,
    RelayFailures,
}

const COUNTERS: [(&str, &str, &str); 8] = [
    ("weft_agent_sds_streams_total", "counter", "SDS streams that the proxy opened."),
    ("weft_agent_sds_responses_total", "counter", "Answers and pushes of secrets."),
    ("weft_agent_sds_rejections_total", "counter", "Secrets that the proxy refused (NACK)."),
    ("weft_agent_xds_streams_total", "counter", "ADS streams that were relayed to the control plane."),
    ("weft_agent_xds_active_streams", "gauge", "ADS streams being relayed now."),
    ("weft_agent_xds_requests_total", "counter", "ADS messages from the proxy to the control plane."),
    ("weft_agent_xds_responses_total", "counter", "ADS messages from the control plane to the proxy."),
    (
        "weft_agent_xds_failures_total",
        "counter",
        "ADS streams that could not be opened, or that the control plane ended.",
    ),
];

impl Stats {
    pub(super) fn add(&self, counter: Counter) {
        self.shared.counters[counter as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn subtract(&self, counter: Counter) {
        self.shared.counters[counter as usize].fetch_sub(1, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.shared.counters[counter as usize].load(Relaxed)
    }

    /// Why the control plane is not to be had; none since it last answered.
    pub(super) fn set_relay_error(&self, error: Option<String>) {
        *self.shared.last_relay_error.lock() = error;
    }

    pub(super) fn relay_error(&self) -> Option<String> {
        self.shared.last_relay_error.lock().clone()
    }

    /// All, with the certificate's.
    pub(super) fn prometheus(&self, certificate: &Status, current: &Current) -> String {
        let mut text = String::new();
        let mut line = |(name, kind, help): (&str, &str, &str), value: u64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        for (description, value) in COUNTERS.into_iter().zip(&self.shared.counters) {
            line(description, value.load(Relaxed));
        }
        line(
            ("weft_agent_certificate_rotations_total", "counter", "Certificates that replaced another."),
            certificate.rotations,
        );
        line(
            ("weft_agent_certificate_failures_total", "counter", "Requests for a certificate that failed."),
            certificate.failures,
        );
        if let Some(own) = &*current.borrow() {
            let expires = u64::try_from(own.validity().expires.unix_timestamp()).unwrap_or_default();
            line(
                (
                    "weft_agent_certificate_expiration_timestamp_seconds",
                    "gauge",
                    "When the certificate expires, in seconds since 1970.",
                ),
                expires,
            );
        }
        text
    }
}
