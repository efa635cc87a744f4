//! Whether a try that failed is followed by another: Envoy's conditions, counts and pauses.

use std::time::{Duration, SystemTime};

use http::{HeaderName, StatusCode};

use super::attempt::Failure;
use crate::codec::{Headers, RequestHead, ResetReason, ResponseHead};
use crate::route::matching::{Field, HeaderMatch, HeaderRule};
use crate::route::retry::{RetryOn, RetryPolicy};

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");

/// What a request's retries go by: the route's policy and what a trusted caller asked for in header fields (the
/// connection manager has removed those of others).
#[derive(Clone, Debug)]
pub struct Retries {
    on: RetryOn,
    left: u32,
    status_codes: Vec<u16>,
    /// Fields of an answer that the caller named, beside the policy's.
    headers: Vec<HeaderMatch>,
    /// The range of the next pause.
    range: Duration,
    /// The pause that the last answer asked for.
    asked: Option<Duration>,
}

/// How long to wait before the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// By the policy's back-off.
    BackOff(Duration),
    /// By the upstream's answer.
    Asked(Duration),
}

impl Retries {
    /// The retries of a request; none where nothing asks for any.
    pub fn of(policy: Option<&RetryPolicy>, head: &mut RequestHead) -> Option<Self> {
        let asks = |name: &HeaderName| {
            name.as_str()
                .strip_prefix("x-envoy-")
                .is_some_and(|rest| rest.starts_with("retr") || rest == "max-retries")
        };
        // Nearly no request asks for retries itself: one pass that finds none costs less than ten.
        let asked = head.headers.iter().any(|(name, _)| asks(name));
        if policy.is_none() && !asked {
            return None;
        }
        let field = |name: &HeaderName| if asked { head.headers.get_str(name) } else { None };
        let conditions = |name: &HeaderName, grpc: bool| {
            field(name).map(|list| RetryOn::parse(list).0).unwrap_or_default().only(grpc)
        };
        let from_headers = conditions(&RETRY_ON, false).and(conditions(&RETRY_GRPC_ON, true));
        let count = field(&MAX_RETRIES).and_then(|v| v.trim().parse().ok());
        let codes = field(&STATUS_CODES)
            .map(|list| list.split(',').filter_map(|c| c.trim().parse().ok()).collect::<Vec<u16>>());
        let names = field(&HEADER_NAMES).map(present).unwrap_or_default();
        if asked {
            for name in [&RETRY_ON, &RETRY_GRPC_ON, &MAX_RETRIES, &STATUS_CODES, &HEADER_NAMES] {
                head.headers.remove(name);
            }
        }
        let allowed = policy.is_none_or(|p| {
            p.request_headers.is_empty() || p.request_headers.iter().any(|h| h.matches(head))
        });
        let own = |p: &RetryPolicy| match p.careful && !may_be_repeated(head) {
            true => p.on.unprocessed(),
            false => p.on,
        };
        let on = policy.map(own).unwrap_or_default().and(from_headers);
        if on.is_empty() || !allowed {
            return None;
        }
        let mut status_codes = policy.map(|p| p.status_codes.clone()).unwrap_or_default();
        status_codes.extend(codes.into_iter().flatten());
        Some(Self {
            on,
            left: count.or(policy.map(|p| p.retries)).unwrap_or(1),
            status_codes,
            headers: names,
            range: policy.map_or(Duration::from_millis(25), |p| p.base_interval),
            asked: None,
        })
    }

    /// Whether this answer asks for another try.
    pub fn wants_after_response(&self, policy: Option<&RetryPolicy>, head: &ResponseHead) -> bool {
        let on = self.on;
        if head.headers.contains(&RATE_LIMITED) {
            return on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        let status = head.status;
        (on.has(RetryOn::SERVER_ERROR) && status.is_server_error())
            || (on.has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504))
            || (on.has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT)
            || (on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.status_codes.contains(&status.as_u16()))
            || (on.has(RetryOn::RETRIABLE_HEADERS) && self.matches_any(policy, head))
            || head
                .headers
                .get_str(&GRPC_STATUS)
                .and_then(|s| s.parse().ok())
                .is_some_and(|code: u32| on.has(grpc_condition(code)))
    }

    /// Whether a try that ended without an answer asks for another.
    pub fn wants_after_failure(&self, failure: &Failure) -> bool {
        let on = self.on;
        let no_answer = on.has(RetryOn::RESET.and(RetryOn::SERVER_ERROR).and(RetryOn::GATEWAY_ERROR));
        match failure {
            Failure::NoCluster | Failure::NoHost | Failure::Overflow | Failure::Downstream(_) => false,
            Failure::Connect { .. } => {
                no_answer || on.has(RetryOn::CONNECT_FAILURE.and(RetryOn::RESET_BEFORE_REQUEST))
            }
            Failure::Reset { reason: ResetReason::Overflow, .. } => false,
            Failure::Reset { reason, head_sent, .. } => {
                no_answer
                    || (!head_sent && on.has(RetryOn::RESET_BEFORE_REQUEST))
                    || (*reason == ResetReason::RemoteRefused && on.has(RetryOn::REFUSED_STREAM))
            }
            Failure::PerTryTimeout | Failure::PerTryIdle => no_answer,
        }
    }

    /// Whether another try may follow.
    pub fn any_left(&self) -> bool {
        self.left > 0
    }

    /// Takes one retry from those that are left; false when there is none.
    pub fn take(&mut self) -> bool {
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }

    /// Takes note of the pause that an answer asks for which is followed by another try.
    pub fn heed(&mut self, policy: Option<&RetryPolicy>, headers: &Headers) {
        let Some(policy) = policy.filter(|p| !p.reset_headers.is_empty()) else { return };
        let now = SystemTime::now();
        let asked = policy.reset_headers.iter().filter_map(|h| h.interval(headers, now));
        self.asked = asked
            .into_iter()
            .find(|asked| *asked <= policy.reset_max)
            .filter(|asked| *asked > Duration::from_millis(1));
    }

    /// The pause before the next try: what the last answer asked for and up to half of that, else a random part of a range
    /// that doubles each time.
    pub fn pause(&mut self, policy: Option<&RetryPolicy>, random: u64) -> Pause {
        if let Some(asked) = self.asked.take() {
            let millis = u64::try_from(asked.as_millis()).unwrap_or(u64::MAX);
            return Pause::Asked(Duration::from_millis(millis + random % (millis / 2).max(1)));
        }
        let max = policy.map_or(Duration::from_millis(250), |p| p.max_interval);
        let range = self.range.min(max);
        self.range = (self.range * 2).min(max);
        let millis = u64::try_from(range.as_millis()).unwrap_or(u64::MAX).max(1);
        Pause::BackOff(Duration::from_millis(random % millis))
    }

    fn matches_any(&self, policy: Option<&RetryPolicy>, response: &ResponseHead) -> bool {
        // Header rules look at a request's head; a response has no pseudo-header that they could name.
        let head = RequestHead {
            method: http::Method::GET,
            scheme: bytes::Bytes::new(),
            authority: bytes::Bytes::new(),
            path: bytes::Bytes::new(),
            protocol: response.protocol,
            upgrade: None,
            headers: response.headers.clone(),
        };
        policy.iter().flat_map(|p| &p.headers).chain(&self.headers).any(|h| h.matches(&head))
    }
}

/// Whether doing it twice is as good as once: its method says so (RFC 9110, section 9.2.2), or its sender does by a key by which
/// the server knows it again.
fn may_be_repeated(head: &RequestHead) -> bool {
    head.method.is_idempotent() || head.headers.contains(&IDEMPOTENCY_KEY)
}

/// Rules that these fields be there.
fn present(list: &str) -> Vec<HeaderMatch> {
    let rule = |name: &str| {
        HeaderMatch {
            field: Field::Name(HeaderName::from_bytes(name.trim().as_bytes()).ok()?),
            rule: HeaderRule::Present(true),
            invert: false,
            missing_as_empty: false,
        }
        .into()
    };
    list.split(',').filter_map(rule).collect()
}

fn grpc_condition(code: u32) -> RetryOn {
    match code {
        1 => RetryOn::GRPC_CANCELLED,
        4 => RetryOn::GRPC_DEADLINE_EXCEEDED,
        8 => RetryOn::GRPC_RESOURCE_EXHAUSTED,
        13 => RetryOn::GRPC_INTERNAL,
        14 => RetryOn::GRPC_UNAVAILABLE,
        _ => RetryOn::default(),
    }
}
