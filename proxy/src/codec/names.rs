//! Names of fields that many messages have, made once: a name that is not one of HTTP's own would take a piece of memory of its own in
//! each message.

use std::sync::LazyLock;

use http::HeaderName;

/// In the order of how often they come: of two that would have one place, the first has it.
const USUAL: &[&str] = &[
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "traceparent",
    "tracestate",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-envoy-attempt-count",
    "x-forwarded-client-cert",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-envoy-decorator-operation",
    "x-envoy-internal",
    "x-envoy-external-address",
    "x-envoy-original-path",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "b3",
    "baggage",
    "grpc-timeout",
    "grpc-status",
    "grpc-message",
    "grpc-encoding",
    "grpc-accept-encoding",
    "user-agent",
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "etag",
    "host",
    "last-modified",
    "location",
    "origin",
    "referer",
    "server",
    "set-cookie",
    "te",
    "transfer-encoding",
    "vary",
    "via",
    "x-requested-with",
    "x-correlation-id",
    "x-client-trace-id",
    "x-envoy-force-trace",
    "x-envoy-original-host",
    "x-envoy-upstream-rq-timeout-ms",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "upgrade-insecure-requests",
    "pragma",
    "priority",
    "dnt",
    "expires",
    "age",
    "strict-transport-security",
    "x-content-type-options",
    "x-frame-options",
];

const PLACES: usize = 512;

/// A name, at its place or at one after it.
type Entry = Option<(&'static str, HeaderName)>;

static TABLE: LazyLock<Box<[Entry]>> = LazyLock::new(|| {
    let mut table = vec![None; PLACES];
    for name in USUAL {
        let place = &mut table[Place::of(name.as_bytes()).0 % PLACES];
        if place.is_none() {
            *place = Some((*name, HeaderName::from_static(name)));
        }
    }
    table.into()
});

/// A number of a name's, by its length and three of its letters: the factors keep apart the names above, and in fewer places what
/// messages usually have and what is usually looked for in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub(super) usize);

impl Place {
    /// Of a name, in lower case.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let letter = usize::from;
        Self(match name {
            [.., before, last] => {
                name.len() * 5 + letter(*last) * 12 + letter(name[name.len() / 2]) * 56 + letter(*before) * 30
            }
            [only] => 5 + letter(*only) * 68,
            [] => 0,
        })
    }
}

/// A field's name as it came, with its place; none if it is no name. In line, for every field of every message comes by here.
#[inline(always)]
pub(super) fn name(text: &[u8]) -> Option<(HeaderName, Place)> {
    let place = Place::of(text);
    match TABLE.get(place.0 % PLACES) {
        Some(Some((usual, name))) if usual.as_bytes() == text => Some((name.clone(), place)),
        _ => {
            let name = HeaderName::from_bytes(text).ok()?;
            // It may have come in capitals.
            let place = Place::of(name.as_str().as_bytes());
            Some((name, place))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_wherever_it_comes_from() {
        for text in USUAL.iter().chain(&["x-a", "X-Request-Id", "Host", "x-envoy-retry-on", "TE", "b"]) {
            let (found, place) = name(text.as_bytes()).unwrap();
            assert_eq!(found, HeaderName::from_bytes(text.as_bytes()).unwrap());
            assert_eq!(place, Place::of(found.as_str().as_bytes()), "{text}");
        }
        assert_eq!(name(b""), None);
        assert_eq!(name(b"a b"), None);
        let made_once = TABLE.iter().flatten().count();
        assert_eq!(made_once, USUAL.len(), "each has a place of its own");
    }
}
