//! An active health check, compiled (`envoy.config.core.v3.HealthCheck`).

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use super::state::{Transition, Verdict};
use crate::cluster::endpoint::Metadata;

/// A check and when it is made.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: Kind,
    /// The longest that one check takes.
    pub timeout: Duration,
    /// A healthy host becomes unhealthy after so many failures.
    pub unhealthy_threshold: u32,
    /// An unhealthy host becomes healthy after so many successes.
    pub healthy_threshold: u32,
    /// The first check waits for a random part of this.
    pub initial_jitter: Duration,
    /// Every further one waits longer by a random part of this,
    pub interval_jitter: Duration,
    /// and of this percentage of the interval.
    pub interval_jitter_percent: u32,
    /// The times between checks.
    pub intervals: Intervals,
    /// Ask again on the same connection.
    pub reuse_connection: bool,
    /// The protocols to offer in place of the transport's.
    pub alpn: Vec<Vec<u8>>,
    /// What the transport is chosen by in place of the host's metadata.
    pub transport: Option<Arc<Metadata>>,
    /// Write every failure to the event log.
    pub log_failures: bool,
    /// Write every success to the event log.
    pub log_successes: bool,
    /// Where events are written.
    pub logs: Vec<PathBuf>,
}

/// Times from the end of a check to the next one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intervals {
    /// After a success.
    pub healthy: Duration,
    /// After a success that does not yet make the host healthy.
    pub healthy_edge: Duration,
    /// After a failure.
    pub unhealthy: Duration,
    /// After a failure that does not yet make the host unhealthy.
    pub unhealthy_edge: Duration,
    /// While nobody has used the cluster.
    pub no_traffic: Duration,
    /// So, after a success.
    pub no_traffic_healthy: Duration,
}

impl Intervals {
    /// The time to the next check.
    pub fn after(&self, verdict: Verdict, transition: Transition, used: bool) -> Duration {
        let pending = transition == Transition::Pending;
        match (used, matches!(verdict, Verdict::Healthy { .. })) {
            (true, true) if pending => self.healthy_edge,
            (true, true) => self.healthy,
            (true, false) if pending => self.unhealthy_edge,
            (true, false) => self.unhealthy,
            (false, true) if !pending => self.no_traffic_healthy,
            (false, _) => self.no_traffic,
        }
    }
}

impl HealthCheck {
    /// The time to the next check, with jitter.
    pub fn wait(&self, verdict: Verdict, transition: Transition, used: bool) -> Duration {
        let base = self.intervals.after(verdict, transition, used);
        let part = base * self.interval_jitter_percent / 100;
        // Never nothing at all, or one host could keep the thread busy.
        (base + random(part) + random(self.interval_jitter)).max(Duration::from_millis(1))
    }
}

/// A random time below this, in milliseconds.
pub(super) fn random(below: Duration) -> Duration {
    match below.as_millis() as u64 {
        0 => Duration::ZERO,
        millis => Duration::from_millis(fastrand::u64(..millis)),
    }
}

/// What is asked of a host.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An HTTP request.
    Http(Box<HttpCheck>),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcCheck),
    /// A connection, and perhaps an exchange of bytes.
    Tcp(TcpCheck),
}

impl Kind {
    /// Its name in events (`HealthCheckerType`).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http(_) => "HTTP",
            Self::Grpc(_) => "GRPC",
            Self::Tcp(_) => "TCP",
        }
    }
}

/// An HTTP check.
#[derive(Clone, Debug)]
pub struct HttpCheck {
    /// The authority, where the endpoint does not say another; the cluster's name if empty.
    pub host: String,
    /// The path.
    pub path: Bytes,
    /// The method.
    pub method: Method,
    /// Speak HTTP/2.
    pub http2: bool,
    /// Statuses of a healthy host.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count as failures which may pass.
    pub retriable: Vec<Range<u16>>,
    /// Fields to add.
    pub add: Vec<AddHeader>,
    /// Fields to leave out.
    pub remove: Vec<HeaderName>,
    /// The request's body.
    pub send: Bytes,
    /// What the answer's body must have in it, in this order.
    pub receive: Vec<Bytes>,
    /// How much of the answer's body is looked at.
    pub buffer: usize,
}

/// A field to add.
#[derive(Clone, Debug, PartialEq)]
pub struct AddHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// Add it beside what is there, in place of replacing it.
    pub append: bool,
    /// Only if it is not there.
    pub if_absent: bool,
    /// Only if it is there.
    pub if_present: bool,
}

/// A gRPC check.
#[derive(Clone, Debug)]
pub struct GrpcCheck {
    /// The service to ask for; the whole server if empty.
    pub service: String,
    /// The authority; the cluster's name if empty.
    pub authority: String,
    /// Metadata to add.
    pub metadata: Vec<AddHeader>,
}

/// A TCP check.
#[derive(Clone, Debug)]
pub struct TcpCheck {
    /// What to write.
    pub send: Bytes,
    /// What must come, in this order; nothing for a check of the connection alone.
    pub receive: Vec<Bytes>,
}
