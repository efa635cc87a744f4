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

static TABLE: LazyLock<Box<[Option<HeaderName>]>> = LazyLock::new(|| {
    let mut table = vec![None; PLACES];
    for name in USUAL {
        let place = &mut table[place(name.as_bytes())];
        if place.is_none() {
            *place = Some(HeaderName::from_static(name));
        }
    }
    table.into()
});

fn place(name: &[u8]) -> usize {
    let letter = |at: usize| name.get(at).map_or(0, |b| usize::from(*b));
    let (last, before) = (letter(name.len().wrapping_sub(1)), letter(name.len().wrapping_sub(2)));
    (name.len() * 5 + last * 23 + before * 59 + letter(name.len() / 2) * 12) % PLACES
}

/// A field's name as it came; none if it is no name.
pub(super) fn name(text: &[u8]) -> Option<HeaderName> {
    match TABLE.get(place(text)) {
        Some(Some(usual)) if usual.as_str().as_bytes() == text => Some(usual.clone()),
        _ => HeaderName::from_bytes(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_wherever_it_comes_from() {
        for text in USUAL.iter().chain(&["x-a", "X-Request-Id", "Host", "x-envoy-retry-on", "TE"]) {
            assert_eq!(name(text.as_bytes()), HeaderName::from_bytes(text.as_bytes()).ok(), "{text}");
        }
        assert_eq!(name(b""), None);
        assert_eq!(name(b"a b"), None);
        let made_once = USUAL.iter().filter(|n| TABLE[place(n.as_bytes())].as_ref().is_some_and(|k| k == *n));
        assert!(made_once.count() * 10 >= USUAL.len() * 9, "nearly each has a place of its own");
    }
}
