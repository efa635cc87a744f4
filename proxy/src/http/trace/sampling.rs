//! Whether a request's trace is kept, and why: forced by the client, forced by a service, or by chance that the request's id
//! decides, so that every proxy that looks at the id decides alike.

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;
use crate::http::request_id::{self, REQUEST_ID};
use crate::route::RouteTracing;
use crate::route::matching::Chance;
use crate::telemetry::trace::ids;

const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE: HeaderName = HeaderName::from_static("x-envoy-force-trace");

/// Why a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not.
    Not,
    /// By chance.
    Sampled,
    /// A service wants it.
    Forced,
    /// The client wants it.
    Client,
}

impl Reason {
    /// The digit of the request's id that tells it.
    pub fn digit(self) -> u8 {
        match self {
            Self::Not => b'4',
            Self::Sampled => b'9',
            Self::Forced => b'a',
            Self::Client => b'b',
        }
    }

    /// What a request's id tells.
    pub fn told(id: &[u8]) -> Self {
        match request_id::told(id) {
            Some(b'9') => Self::Sampled,
            Some(b'a') => Self::Forced,
            Some(b'b') => Self::Client,
            _ => Self::Not,
        }
    }
}

/// The three shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Of requests whose client wants a trace.
    pub client: Chance,
    /// Of all others.
    pub random: Chance,
    /// Of what was chosen so far.
    pub overall: Chance,
}

impl Sampling {
    /// A route's, which go before the connection manager's all together.
    pub fn of_route(route: &RouteTracing) -> Self {
        Self { client: route.client, random: route.random, overall: route.overall }
    }

    /// Decides by the request's fields. What its id tells already holds, unless the overall share is against it.
    pub fn decide(self, headers: &Headers) -> Reason {
        let Some(id) = headers.get(&REQUEST_ID).map(HeaderValue::as_bytes) else { return Reason::Not };
        // Whatever such an id tells, it is none.
        let Some(number) = number(id) else { return Reason::Not };
        let reason = match Reason::told(id) {
            Reason::Not => {
                if headers.contains(&CLIENT_TRACE_ID) && self.client.hits(number) {
                    Reason::Client
                } else if headers.contains(&FORCE) {
                    Reason::Forced
                } else if self.random.hits(number) {
                    Reason::Sampled
                } else {
                    Reason::Not
                }
            }
            before => before,
        };
        if reason != Reason::Not && !self.overall.hits(number) { Reason::Not } else { reason }
    }
}

/// The number by which chance decides: the first eight digits of the request's id.
fn number(id: &[u8]) -> Option<u64> {
    ids::number(id.get(..8)?).and_then(|number| u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sampling =
        Sampling { client: Chance::ALWAYS, random: Chance::ALWAYS, overall: Chance::ALWAYS };
    const NONE: Sampling = Sampling { random: Chance::NEVER, ..ALL };

    fn headers(id: &'static str, more: &[&'static str]) -> Headers {
        let more = more.iter().map(|n| (HeaderName::from_static(n), HeaderValue::from_static("")));
        std::iter::once((REQUEST_ID, HeaderValue::from_static(id))).chain(more).collect()
    }

    #[test]
    fn a_trace_is_kept_for_client_service_or_chance_and_the_overall_share_has_the_last_word() {
        const ID: &str = "11111111-2222-4333-8444-555555555555";
        let (client, force) = ("x-client-trace-id", "x-envoy-force-trace");
        assert_eq!(ALL.decide(&headers(ID, &[])), Reason::Sampled);
        assert_eq!(NONE.decide(&headers(ID, &[])), Reason::Not);
        assert_eq!(NONE.decide(&headers(ID, &[force])), Reason::Forced);
        assert_eq!(NONE.decide(&headers(ID, &[client, force])), Reason::Client);
        let unasked = Sampling { client: Chance::NEVER, ..NONE };
        assert_eq!(unasked.decide(&headers(ID, &[client])), Reason::Not);
        assert_eq!(unasked.decide(&headers(ID, &[client, force])), Reason::Forced);
        let closed = Sampling { overall: Chance::NEVER, ..ALL };
        assert_eq!(closed.decide(&headers(ID, &[client])), Reason::Not);
        assert_eq!(closed.decide(&headers("11111111-2222-9333-8444-555555555555", &[])), Reason::Not);
    }

    #[test]
    fn an_id_that_tells_is_believed_and_one_that_is_none_decides_nothing() {
        for (id, reason) in [
            ("11111111-2222-9333-8444-555555555555", Reason::Sampled),
            ("11111111-2222-a333-8444-555555555555", Reason::Forced),
            ("11111111-2222-b333-8444-555555555555", Reason::Client),
        ] {
            assert_eq!(NONE.decide(&headers(id, &[])), reason);
        }
        assert_eq!(ALL.decide(&headers("short", &[])), Reason::Not);
        assert_eq!(ALL.decide(&headers("zzzzzzzz-2222-4333-8444-555555555555", &[])), Reason::Not);
    }

    #[test]
    fn one_per_cent_of_ids_is_one_per_cent_of_traces() {
        let one = Sampling { random: Chance { numerator: 100, denominator: 10_000 }, ..ALL };
        fastrand::seed(7);
        let hits = (0..10_000).filter(|_| {
            let id = format!("{:08x}-2222-4333-8444-555555555555", fastrand::u32(..));
            let fields = [(REQUEST_ID, HeaderValue::try_from(id).unwrap())].into_iter().collect();
            one.decide(&fields) == Reason::Sampled
        });
        let hits = hits.count();
        assert!((50..=150).contains(&hits), "100 of 10,000 within five standard deviations, not {hits}");
    }
}
