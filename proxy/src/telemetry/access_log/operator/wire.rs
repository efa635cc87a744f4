//! What a stream takes on the wire (`%DOWNSTREAM_WIRE_BYTES_SENT%` and its like).

use super::super::LogContext;
use super::super::tls::Side;

/// Which of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Count {
    Sent,
    Received,
    HeadersSent,
    HeadersReceived,
    PlainHeadersSent,
    PlainHeadersReceived,
}

/// The operators. Each is spelt out, so that its name can be looked for.
const NAMES: [(&str, Side, Count); 12] = {
    use Count as C;
    use Side::{Downstream as Down, Upstream as Up};
    [
        ("DOWNSTREAM_WIRE_BYTES_SENT", Down, C::Sent),
        ("DOWNSTREAM_WIRE_BYTES_RECEIVED", Down, C::Received),
        ("DOWNSTREAM_HEADER_BYTES_SENT", Down, C::HeadersSent),
        ("DOWNSTREAM_HEADER_BYTES_RECEIVED", Down, C::HeadersReceived),
        ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Down, C::PlainHeadersSent),
        ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Down, C::PlainHeadersReceived),
        ("UPSTREAM_WIRE_BYTES_SENT", Up, C::Sent),
        ("UPSTREAM_WIRE_BYTES_RECEIVED", Up, C::Received),
        ("UPSTREAM_HEADER_BYTES_SENT", Up, C::HeadersSent),
        ("UPSTREAM_HEADER_BYTES_RECEIVED", Up, C::HeadersReceived),
        ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Up, C::PlainHeadersSent),
        ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Up, C::PlainHeadersReceived),
    ]
};

/// The operator of a name.
pub(super) fn named(name: &str) -> Option<(Side, Count)> {
    NAMES.iter().find(|(known, ..)| *known == name).map(|(_, side, count)| (*side, *count))
}

/// The name of an operator.
pub(super) fn name(side: Side, count: Count) -> &'static str {
    let found = NAMES.iter().find(|(_, of, what)| *of == side && *what == count);
    found.map_or("", |(name, ..)| name)
}

/// What a stream's record says of it; nothing where it was not counted.
pub(super) fn value(context: &LogContext<'_>, side: Side, count: Count) -> Option<u64> {
    let wire = context.stream.on_wire();
    let bytes = if side == Side::Downstream { wire.downstream? } else { wire.upstream? };
    Some(match count {
        Count::Sent => bytes.sent,
        Count::Received => bytes.received,
        Count::HeadersSent => bytes.headers_sent,
        Count::HeadersReceived => bytes.headers_received,
        Count::PlainHeadersSent => bytes.plain_headers_sent,
        Count::PlainHeadersReceived => bytes.plain_headers_received,
    })
}
