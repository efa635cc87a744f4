//! How long a request may take: the route's timeout, the gRPC timeout header, and what trusted callers ask for.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::codec::{Headers, RequestHead, digits};
use crate::route::Forward;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const REQUEST: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");

/// A request's limits; zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For the whole answer, retries included.
    pub global: Duration,
    /// For one try.
    pub per_try: Duration,
}

/// The limits of a request. Fields that asked for others are taken out of it.
pub fn of(route: &Forward, head: &mut RequestHead, is_grpc: bool, respect_expected: bool) -> Timeouts {
    let mut global = match (route.durations, route.max_grpc_timeout) {
        // `max_stream_duration` replaces the route's timeout; the connection manager watches it.
        (Some(_), _) => Duration::ZERO,
        (None, Some(max)) if is_grpc => {
            let asked = grpc_timeout(&head.headers).unwrap_or_default();
            let offset = route.grpc_timeout_offset.unwrap_or_default();
            let asked = if offset < asked { asked - offset } else { asked };
            if !max.is_zero() && (asked.is_zero() || asked > max) { max } else { asked }
        }
        _ => route.timeout,
    };
    // Where the stream's duration follows that field, the upstream is told what became of it.
    let follows = route.durations.is_some_and(|d| d.grpc_max.is_some());
    if follows && grpc_timeout(&head.headers).is_some() {
        let millis =
            u64::try_from(max_duration(Some(route), &head.headers, None).as_millis()).unwrap_or(u64::MAX);
        if let Ok(value) = HeaderValue::try_from(grpc_text(millis)) {
            head.headers.set(GRPC_TIMEOUT, value);
        }
    }
    let mut per_try = route.retry.as_ref().map_or(Duration::ZERO, |r| r.per_try_timeout);
    let expected = head.headers.get_str(&EXPECTED).and_then(|v| v.parse().ok()).map(Duration::from_millis);
    match expected.filter(|_| respect_expected) {
        Some(expected) => global = expected,
        None => {
            if let Some(asked) = take_millis(&mut head.headers, &REQUEST) {
                global = asked;
            }
        }
    }
    if let Some(asked) = take_millis(&mut head.headers, &PER_TRY) {
        per_try = asked;
    }
    if !global.is_zero() && per_try >= global {
        per_try = Duration::ZERO;
    }
    Timeouts { global, per_try }
}

/// What an upstream is told of a request's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announce {
    /// By `x-envoy-expected-rq-timeout-ms`.
    pub expected: bool,
    /// By `grpc-timeout`: where the route lets that field decide, it tells the upstream what was decided.
    pub grpc: bool,
}

impl Timeouts {
    /// Tells the upstream how long we will wait for a try that begins so long after the request's end.
    pub fn announce(self, headers: &mut Headers, what: Announce, elapsed: Duration) {
        let left = match self.global.is_zero() {
            true => Duration::ZERO,
            // A try that begins when the time is over is told the least that there is.
            false => self.global.saturating_sub(elapsed).max(Duration::from_millis(1)),
        };
        let wait = match (self.per_try.is_zero(), left.is_zero()) {
            (true, _) => left,
            (false, true) => self.per_try,
            (false, false) => self.per_try.min(left),
        };
        if wait.is_zero() {
            return;
        }
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        if what.expected {
            headers.set(EXPECTED, digits::value(millis));
        }
        if what.grpc
            && let Ok(value) = HeaderValue::try_from(grpc_text(millis))
        {
            headers.set(GRPC_TIMEOUT, value);
        }
    }
}

/// The longest duration of a stream: the gRPC timeout header within its limits, the route's, or the connection manager's.
/// Zero for none.
pub fn max_duration(route: Option<&Forward>, headers: &Headers, of_manager: Option<Duration>) -> Duration {
    let Some(durations) = route.and_then(|r| r.durations) else { return of_manager.unwrap_or_default() };
    let Some((asked, max)) = grpc_timeout(headers).zip(durations.grpc_max) else {
        return durations.max.or(of_manager).unwrap_or_default();
    };
    let asked = if !max.is_zero() && asked > max { max } else { asked };
    asked.saturating_sub(durations.grpc_offset.unwrap_or_default())
}

fn take_millis(headers: &mut Headers, name: &HeaderName) -> Option<Duration> {
    let millis = headers.get(name)?.to_str().ok().and_then(|v| v.parse().ok());
    headers.remove(name);
    millis.map(Duration::from_millis)
}

/// The value of `grpc-timeout`: up to eight digits and a unit.
pub fn grpc_timeout(headers: &Headers) -> Option<Duration> {
    let text = headers.get_str(&GRPC_TIMEOUT)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        // Envoy counts in milliseconds, rounding up.
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// `grpc-timeout`'s text for so many milliseconds: the finest unit whose digits fit.
fn grpc_text(millis: u64) -> String {
    const MOST: u64 = 99_999_999;
    for (unit, per) in [("m", 1), ("S", 1000), ("M", 60_000), ("H", 3_600_000)] {
        if millis / per <= MOST {
            return format!("{}{unit}", millis / per);
        }
    }
    format!("{MOST}H")
}
