//! When and how often an attempt is repeated (`envoy.config.route.v3.RetryPolicy`).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderName;

use super::matching::HeaderMatch;
use crate::cluster::balance::Omit;
use crate::codec::Headers;

/// Conditions of `retry_on`, `retry_grpc_on` and their request headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

impl RetryOn {
    /// `5xx`: any 5xx answer, or none at all.
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`: 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`: no answer (reset, disconnect, timeout of the try).
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`: reset before the request's head was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `refused-stream`: REFUSED_STREAM.
    pub const REFUSED_STREAM: Self = Self(1 << 5);
    /// `retriable-4xx`: 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// `retriable-status-codes`: those of the list.
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 7);
    /// `retriable-headers`: an answer with one of these fields.
    pub const RETRIABLE_HEADERS: Self = Self(1 << 8);
    /// `envoy-ratelimited`: an answer with `x-envoy-ratelimited` (which otherwise is never retried).
    pub const ENVOY_RATE_LIMITED: Self = Self(1 << 9);
    /// `http3-post-connect-failure`: nothing without HTTP/3.
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 10);
    /// gRPC `cancelled`.
    pub const GRPC_CANCELLED: Self = Self(1 << 16);
    /// gRPC `deadline-exceeded`.
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 17);
    /// gRPC `resource-exhausted`.
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 18);
    /// gRPC `unavailable`.
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 19);
    /// gRPC `internal`.
    pub const GRPC_INTERNAL: Self = Self(1 << 20);

    /// The condition of this name.
    pub fn token(name: &str) -> Option<Self> {
        Some(match name {
            "5xx" => Self::SERVER_ERROR,
            "gateway-error" => Self::GATEWAY_ERROR,
            "reset" => Self::RESET,
            "reset-before-request" => Self::RESET_BEFORE_REQUEST,
            "connect-failure" => Self::CONNECT_FAILURE,
            "refused-stream" => Self::REFUSED_STREAM,
            "retriable-4xx" => Self::RETRIABLE_4XX,
            "retriable-status-codes" => Self::RETRIABLE_STATUS_CODES,
            "retriable-headers" => Self::RETRIABLE_HEADERS,
            "envoy-ratelimited" => Self::ENVOY_RATE_LIMITED,
            "http3-post-connect-failure" => Self::HTTP3_POST_CONNECT_FAILURE,
            "cancelled" => Self::GRPC_CANCELLED,
            "deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
            "resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
            "unavailable" => Self::GRPC_UNAVAILABLE,
            "internal" => Self::GRPC_INTERNAL,
            _ => return None,
        })
    }

    const GRPC: Self = Self(
        Self::GRPC_CANCELLED.0
            | Self::GRPC_DEADLINE_EXCEEDED.0
            | Self::GRPC_RESOURCE_EXHAUSTED.0
            | Self::GRPC_UNAVAILABLE.0
            | Self::GRPC_INTERNAL.0,
    );

    /// Those that speak of a gRPC status (true), or the others.
    #[must_use]
    pub fn only(self, grpc: bool) -> Self {
        Self(if grpc { self.0 & Self::GRPC.0 } else { self.0 & !Self::GRPC.0 })
    }

    /// What is left of the conditions for a request that must not be done twice: tries of which it is certain that nothing was
    /// done, and gRPC's own conditions, which a client of gRPC has to bear anyway.
    #[must_use]
    pub fn unprocessed(self) -> Self {
        let certain = Self::CONNECT_FAILURE.and(Self::RESET_BEFORE_REQUEST).and(Self::REFUSED_STREAM);
        let kept = Self(self.0 & (certain.0 | Self::ENVOY_RATE_LIMITED.0 | Self::GRPC.0));
        let any = self.has(Self::SERVER_ERROR.and(Self::GATEWAY_ERROR).and(Self::RESET));
        if any { kept.and(certain) } else { kept }
    }

    /// The conditions of a comma-separated list, and the names in it that are none.
    pub fn parse(list: &str) -> (Self, Vec<&str>) {
        let mut on = Self::default();
        let mut unknown = Vec::new();
        for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match Self::token(name) {
                Some(token) => on = on.and(token),
                None => unknown.push(name),
            }
        }
        (on, unknown)
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether one of `other` is in here.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no condition.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// A response field that says when the upstream takes requests again (`RetryPolicy.ResetHeader`).
#[derive(Clone, Debug)]
pub struct ResetHeader {
    /// The field.
    pub name: HeaderName,
    /// Its value is a time (seconds since 1970) and not a number of seconds from now.
    pub timestamp: bool,
}

impl ResetHeader {
    /// How long the answer asks to wait, where it does so.
    pub fn interval(&self, headers: &Headers, now: SystemTime) -> Option<Duration> {
        let asked = Duration::from_secs(headers.get_str(&self.name)?.parse().ok()?);
        if !self.timestamp {
            return Some(asked);
        }
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        (asked.as_secs() >= now.as_secs()).then(|| asked.saturating_sub(now))
    }
}

/// The policy.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// When.
    pub on: RetryOn,
    /// Requests that must not be done twice are tried again only where nothing was done: what our own control plane says of a
    /// route by its metadata.
    pub careful: bool,
    /// How often beside the first attempt.
    pub retries: u32,
    /// For each attempt, from when it has a connection and the request is complete, to the answer's head; zero for none.
    pub per_try_timeout: Duration,
    /// Between two pieces of an attempt's answer; zero for none.
    pub per_try_idle_timeout: Duration,
    /// The range that the first pause is drawn from; doubled each time.
    pub base_interval: Duration,
    /// The longest range.
    pub max_interval: Duration,
    /// For `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// For `retriable-headers`; any of them.
    pub headers: Vec<HeaderMatch>,
    /// Only requests with any of these are retried, where there are some.
    pub request_headers: Vec<HeaderMatch>,
    /// Avoid hosts that were tried.
    pub avoid_tried_hosts: bool,
    /// Avoid these hosts on retries.
    pub omit: Option<Arc<Omit>>,
    /// How often to choose again when a host to be avoided came up.
    pub host_attempts: u32,
    /// After so many tries, and every so many, priorities that were tried take no more load.
    pub priority_update: Option<u32>,
    /// Fields by which an answer says how long to wait; the first that does so within `reset_max` counts.
    pub reset_headers: Vec<ResetHeader>,
    /// A longer wait is not believed.
    pub reset_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryOn::default(),
            careful: false,
            retries: 1,
            per_try_timeout: Duration::ZERO,
            per_try_idle_timeout: Duration::ZERO,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            status_codes: Vec::new(),
            headers: Vec::new(),
            request_headers: Vec::new(),
            avoid_tried_hosts: false,
            omit: None,
            host_attempts: 1,
            priority_update: None,
            reset_headers: Vec::new(),
            reset_max: Duration::from_secs(300),
        }
    }
}
