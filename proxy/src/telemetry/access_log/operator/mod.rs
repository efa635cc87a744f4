//! The command operators of format strings, with Envoy's names (its documentation of them is the source of each): what they are,
//! what they read of a stream, and what they write. Their names are in [`parse`].

mod address;
mod coalesce;
mod fields;
mod grpc;
mod metadata;
mod moments;
mod parse;
mod wire;

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use self::address::{HostAs, Part, address};
use self::coalesce::Choice;
use self::fields::{FieldOr, ORIGINAL_PATH, PathOf, ServerName};
use self::grpc::GrpcShape;
use self::moments::{Point, Unit, since};
use self::wire::Count;
use super::time::TimeFormat;
use super::tls::{Side, TlsPart};
use super::{FormatError, LogContext, LogType, Of, Wanted, sizes};
use crate::codec::digits::{self, millis};
use crate::codec::headers::HeaderName;
use crate::telemetry::Flag;
use crate::telemetry::cel::{Expression, Seen};
use crate::telemetry::closing::CloseType;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn required<'a>(name: &str, arguments: Option<&'a str>, what: &'static str) -> Result<&'a str, FormatError> {
    arguments.filter(|a| !a.is_empty()).ok_or_else(|| FormatError::Arguments(name.to_owned(), what))
}

/// One command.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    Request(FieldOr, bool),
    Response(FieldOr),
    Trailer(FieldOr),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseFlags(bool),
    LocalReplyBody,
    LogType,
    VirtualCluster,
    Environment(Option<String>),
    Query(String),
    QueryWhole,
    Path(PathOf),
    CommonDuration(Point, Point, Unit),
    /// With blanks as they are, or as underscores.
    ResponseCodeDetails(bool),
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    PoolReadyDuration,
    HandshakeDuration,
    UpstreamHost(Part),
    /// Its address where there was a connection to it.
    UpstreamRemote(Part),
    UpstreamHostName(HostAs),
    Attempted(HostAs),
    UpstreamConnectionId,
    /// By its own name, or by that of its statistics.
    UpstreamCluster(bool),
    UpstreamLocal(Part),
    DownstreamLocal(Part),
    DownstreamDirectLocal(Part),
    DownstreamRemote(Part),
    DownstreamDirectRemote(Part),
    RequestedServerName(ServerName),
    RouteName,
    FilterChainName,
    ConnectionId,
    AttemptCount,
    Tls(Side, TlsPart),
    CloseType(Side),
    CloseReason(Side),
    Fingerprint(Recognition),
    RoundTrip,
    GrpcStatus(GrpcShape),
    Hostname(String),
    DynamicMetadata(Vec<String>),
    ConfiguredMetadata(Of, Vec<String>),
    TraceId,
    SpanId,
    HeaderBytes(Head),
    /// What is on the wire.
    Wire(Side, Count),
    StreamId,
    UniqueId,
    /// An object of the filter state, as it is or as JSON.
    FilterState(String, bool),
    /// An expression; its value in JSON is a text, or of its own type.
    Cel(Arc<Expression>, bool),
    Coalesce(Vec<Choice>),
    /// A number that nothing here counts.
    Zero,
    /// What no stream has.
    Nothing,
    /// A text that is there and empty, where there is an upstream or always.
    Empty {
        upstream: bool,
    },
}

/// Whose bytes are counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    Request,
    Response,
    Trailers,
}

/// By what a TLS client is recognised.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recognition {
    Ja3,
    Ja4,
}

impl Operator {
    /// The value that a JSON log shows as it is, where the operator has such values.
    fn json(&self, context: &LogContext<'_>) -> Option<serde_json::Value> {
        let found = match self {
            Self::DynamicMetadata(path) => metadata::found(context, path),
            Self::ConfiguredMetadata(of, path) => metadata::found_configured(context, *of, path),
            Self::Cel(expression, true) => expression.json(seen(context)),
            Self::Coalesce(choices) => coalesce::json(choices, context),
            _ => return None,
        };
        Some(found.unwrap_or(serde_json::Value::Null))
    }

    /// The value as a JSON log has it: numbers stay numbers, what is absent is null.
    pub(super) fn value(&self, context: &LogContext<'_>) -> serde_json::Value {
        if let Some(value) = self.json(context) {
            return value;
        }
        let mut text = Vec::new();
        if !self.write(context, &mut text) {
            return serde_json::Value::Null;
        }
        let text = String::from_utf8_lossy(&text);
        match self.is_number().then(|| text.parse::<i64>().ok()).flatten() {
            Some(n) => n.into(),
            None => text.into_owned().into(),
        }
    }

    /// Whether a JSON log shows it as a number.
    fn is_number(&self) -> bool {
        matches!(
            self,
            Self::ResponseCode
                | Self::BytesReceived
                | Self::BytesSent
                | Self::Duration
                | Self::RequestDuration
                | Self::ResponseDuration
                | Self::ResponseTxDuration
                | Self::ConnectionId
                | Self::UpstreamConnectionId
                | Self::PoolReadyDuration
                | Self::HandshakeDuration
                | Self::Zero
                | Self::RoundTrip
                | Self::HeaderBytes(_)
                | Self::Wire(..)
                | Self::AttemptCount
                | Self::RequestTxDuration
                | Self::CommonDuration(..)
                | Self::UpstreamRemote(Part::Port)
                | Self::DownstreamDirectRemote(Part::Port)
                | Self::GrpcStatus(GrpcShape::Number)
                | Self::UpstreamLocal(Part::Port)
                | Self::DownstreamLocal(Part::Port)
                | Self::DownstreamDirectLocal(Part::Port)
                | Self::DownstreamRemote(Part::Port)
        )
    }

    /// Adds what it reads of the heads.
    pub(super) fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Request(field, _) => field.wants(&mut wanted.request),
            Self::Response(field) => field.wants(&mut wanted.response),
            Self::Path(_) => wanted.request.add(&ORIGINAL_PATH),
            Self::RequestedServerName(which) => which.wants(&mut wanted.request),
            Self::StreamId => wanted.request.add(&REQUEST_ID),
            Self::HeaderBytes(Head::Request) => wanted.request.all(),
            Self::HeaderBytes(Head::Response) => wanted.response.all(),
            Self::Cel(..) => wanted.whole(),
            Self::Coalesce(choices) => choices.iter().for_each(|choice| choice.operator.wants(wanted)),
            Self::CommonDuration(from, to, _) => wanted.moments |= from.is_rare() || to.is_rare(),
            Self::PoolReadyDuration => wanted.moments = true,
            Self::Wire(side, count) => {
                wanted.wire.get_or_insert(wire::name(*side, *count));
                wanted.upstream_wire |= *side == Side::Upstream;
            }
            // These read none of their fields. A new one that does must be above.
            Self::Trailer(_)
            | Self::HeaderBytes(Head::Trailers)
            | Self::Query(_)
            | Self::StartTime(_)
            | Self::EmitTime(_)
            | Self::Protocol
            | Self::UpstreamProtocol
            | Self::ResponseCode
            | Self::ResponseFlags(_)
            | Self::LocalReplyBody
            | Self::LogType
            | Self::VirtualCluster
            | Self::Environment(_)
            | Self::QueryWhole
            | Self::ResponseCodeDetails(_)
            | Self::DownstreamTransportFailureReason
            | Self::HandshakeDuration
            | Self::UpstreamHostName(_)
            | Self::Attempted(_)
            | Self::UpstreamConnectionId
            | Self::DownstreamDirectLocal(_)
            | Self::Zero
            | Self::Nothing
            | Self::Empty { .. }
            | Self::ConnectionTerminationDetails
            | Self::UpstreamTransportFailureReason
            | Self::BytesReceived
            | Self::BytesSent
            | Self::Duration
            | Self::RequestDuration
            | Self::RequestTxDuration
            | Self::ResponseDuration
            | Self::ResponseTxDuration
            | Self::UpstreamHost(_)
            | Self::UpstreamRemote(_)
            | Self::UpstreamCluster(_)
            | Self::UpstreamLocal(_)
            | Self::DownstreamLocal(_)
            | Self::DownstreamRemote(_)
            | Self::DownstreamDirectRemote(_)
            | Self::RouteName
            | Self::FilterChainName
            | Self::ConnectionId
            | Self::AttemptCount
            | Self::Tls(..)
            | Self::CloseType(_)
            | Self::CloseReason(_)
            | Self::Fingerprint(_)
            | Self::RoundTrip
            | Self::GrpcStatus(_)
            | Self::Hostname(_)
            | Self::DynamicMetadata(_)
            | Self::ConfiguredMetadata(..)
            | Self::TraceId
            | Self::SpanId
            | Self::UniqueId
            | Self::FilterState(..) => {}
        }
    }

    /// Appends the value; false, with nothing appended, where there is none.
    pub(super) fn write(&self, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
        let (stream, connection) = (context.stream, context.connection);
        match self {
            Self::Request(field, without_query) => {
                let found = field.find(|f| context.request.and_then(|r| f.of_request(r)));
                bytes(out, found.map(|v| if *without_query { fields::without_query(v) } else { v }))
            }
            Self::Response(field) => {
                if field.is_status() {
                    return stream.status.is_some_and(|s| number(out, s.as_u16()));
                }
                bytes(out, field.find(|f| context.response.and_then(|h| f.of_fields(h))))
            }
            Self::Trailer(field) => bytes(out, field.find(|f| context.trailers.and_then(|h| f.of_fields(h)))),
            Self::StartTime(format) => {
                format.write(stream.start_time, out);
                true
            }
            Self::EmitTime(format) => {
                format.write(SystemTime::now(), out);
                true
            }
            Self::Protocol => text(out, stream.protocol.map(|p| p.as_str())),
            Self::UpstreamProtocol => text(out, stream.upstream_protocol.map(|p| p.as_str())),
            Self::LocalReplyBody => bytes(out, context.body),
            Self::LogType => text(out, Some(context.occasion.as_str())),
            Self::VirtualCluster => text(out, stream.virtual_cluster.as_deref()),
            Self::Environment(value) => text(out, value.as_deref()),
            Self::Query(name) => {
                let path = context.request.map(|r| &r.path[..]).unwrap_or_default();
                bytes(out, fields::query_value(path, name.as_bytes()).as_deref())
            }
            Self::QueryWhole => bytes(out, context.request.and_then(|r| fields::query_whole(&r.path))),
            Self::Path(which) => which.write(context, out),
            Self::CommonDuration(from, to, unit) => moments::write(context, (*from, *to), *unit, out),
            Self::ResponseCode => number(out, stream.status.map_or(0, |s| s.as_u16())),
            // Envoy writes a dash for no flags wherever it may stand.
            Self::ResponseFlags(true) if !stream.flags.is_empty() => show(out, stream.flags.long()),
            Self::ResponseFlags(_) if stream.flags.is_empty() => text(out, Some("-")),
            Self::ResponseFlags(_) => show(out, stream.flags),
            Self::ResponseCodeDetails(true) => text(out, stream.code_details().as_deref()),
            Self::ResponseCodeDetails(false) => {
                let start = out.len();
                let there = text(out, stream.code_details().as_deref());
                out[start..].iter_mut().filter(|b| b.is_ascii_whitespace()).for_each(|b| *b = b'_');
                there
            }
            Self::ConnectionTerminationDetails => text(out, stream.connection_termination_details.as_deref()),
            Self::UpstreamTransportFailureReason => text(out, stream.upstream_failure.as_deref()),
            Self::DownstreamTransportFailureReason => text(out, connection.failure.as_deref()),
            Self::BytesReceived => number(out, stream.bytes_received),
            Self::BytesSent => number(out, stream.bytes_sent),
            Self::Duration => number(out, millis(stream.took())),
            Self::RequestDuration => since(out, Some(stream.start), stream.request_end),
            Self::RequestTxDuration => since(out, Some(stream.start), stream.request_sent),
            Self::ResponseDuration => since(out, Some(stream.start), stream.upstream_first_byte),
            Self::ResponseTxDuration => match stream.upstream_first_byte {
                Some(first) => number(out, millis(stream.now().saturating_duration_since(first))),
                None => false,
            },
            Self::PoolReadyDuration => since(out, stream.trail.began, stream.trail.ready),
            // Of connections of bytes alone, as in Envoy.
            Self::HandshakeDuration => match connection.handshake.filter(|_| stream.protocol.is_none()) {
                Some(took) => number(out, millis(took)),
                None => false,
            },
            Self::UpstreamHostName(how) => address::host(out, context, stream.upstream_host, *how),
            Self::Attempted(how) => address::attempted(out, context, *how),
            Self::UpstreamConnectionId => number(out, stream.trail.line.as_deref().map_or(0, |line| line.id)),
            Self::UpstreamHost(part) => address(out, stream.upstream_host, *part),
            Self::UpstreamRemote(part) => {
                address(out, stream.upstream_host.filter(|_| stream.upstream_local.is_some()), *part)
            }
            Self::UpstreamCluster(true) => text(out, stream.cluster.as_deref()),
            Self::UpstreamCluster(false) => address::cluster(out, context),
            Self::UpstreamLocal(part) => address(out, stream.upstream_local, *part),
            Self::DownstreamLocal(part) => address(out, Some(connection.local), *part),
            Self::DownstreamDirectLocal(part) => address(out, Some(connection.direct_local), *part),
            Self::DownstreamRemote(part) => {
                address(out, Some(stream.client.unwrap_or(connection.remote)), *part)
            }
            Self::DownstreamDirectRemote(part) => address(out, Some(connection.direct_remote), *part),
            Self::RequestedServerName(which) => which.write(context, out),
            Self::RouteName => text(out, stream.route.as_deref()),
            Self::FilterChainName => text(out, Some(&*connection.filter_chain).filter(|n| !n.is_empty())),
            Self::ConnectionId => number(out, connection.id),
            Self::AttemptCount => number(out, stream.attempts),
            Self::Tls(side, part) => {
                let tls = match side {
                    Side::Downstream => connection.tls.as_deref(),
                    Side::Upstream => stream.upstream_tls.as_deref(),
                };
                tls.is_some_and(|tls| part.write(tls, out))
            }
            Self::CloseType(side) => text(out, close_type(context, *side).map(CloseType::as_str)),
            Self::CloseReason(Side::Downstream) => {
                text(out, stream.closing.as_ref().and_then(|c| c.downstream.why))
            }
            Self::CloseReason(Side::Upstream) => {
                text(out, stream.closing.as_ref().and_then(|c| c.upstream.why))
            }
            Self::Fingerprint(which) => {
                let found = connection.fingerprints.as_deref().and_then(|found| match which {
                    Recognition::Ja3 => found.ja3.as_deref(),
                    Recognition::Ja4 => found.ja4.as_deref(),
                });
                text(out, found)
            }
            Self::RoundTrip => match &connection.round_trip {
                Some(time) => number(out, time.millis()),
                None => false,
            },
            Self::GrpcStatus(shape) => match (stream.grpc_status, shape) {
                (Some(code), GrpcShape::Number) => number(out, code),
                (Some(code), GrpcShape::Camel) => text(out, Some(grpc::camel(code))),
                (Some(code), GrpcShape::Snake) => text(out, Some(grpc::snake(code))),
                (None, _) => false,
            },
            Self::Hostname(name) => text(out, Some(name)),
            Self::HeaderBytes(of) => {
                let bytes = match of {
                    Head::Request => context.request.map(sizes::of_request),
                    Head::Response => context.response.map(sizes::of_response),
                    Head::Trailers => context.trailers.map(sizes::of_fields),
                };
                number(out, bytes.unwrap_or(0))
            }
            Self::Wire(side, count) => match wire::value(context, *side, *count) {
                Some(value) => number(out, value),
                None => false,
            },
            Self::StreamId => {
                bytes(out, context.request.and_then(|r| r.headers.get(&REQUEST_ID)).map(|v| v.as_bytes()))
            }
            Self::UniqueId => show(out, unique_id()),
            Self::FilterState(key, plain) => match super::object(context, key) {
                None => false,
                Some(found) if *plain => text(out, Some(found)),
                Some(found) => show(out, serde_json::Value::from(found)),
            },
            Self::Cel(expression, _) => text(out, expression.whole(seen(context)).as_deref()),
            Self::Coalesce(choices) => coalesce::write(choices, context, out),
            Self::Zero => number(out, 0_u8),
            Self::Nothing => false,
            Self::Empty { upstream } => !upstream || stream.upstream_local.is_some(),
            Self::TraceId => text(out, stream.trace.as_ref().map(|t| t.trace_id()).as_deref()),
            Self::SpanId => text(out, stream.trace.as_ref().and_then(|t| t.span_id()).as_deref()),
            Self::DynamicMetadata(path) => metadata::value(out, metadata::found(context, path)),
            Self::ConfiguredMetadata(of, path) => {
                metadata::value(out, metadata::found_configured(context, *of, path))
            }
        }
    }
}

/// How a connection was seen to end. Where a request's line is written both live, and where there is no upstream nothing ended.
fn close_type(context: &LogContext<'_>, side: Side) -> Option<CloseType> {
    let stream = context.stream;
    let closing = stream.closing.as_deref().copied().unwrap_or_default();
    match side {
        Side::Downstream => Some(closing.downstream.how),
        // Envoy's of bytes has one from the beginning, whether it is reached or not; a listener's own line has none.
        Side::Upstream if context.occasion == LogType::TcpConnectionEnd => Some(closing.upstream.how),
        Side::Upstream => {
            // One that had no room was chosen, too.
            let chosen = stream.upstream_host.is_some() || stream.flags.has(Flag::UpstreamOverflow);
            chosen.then_some(closing.upstream.how)
        }
    }
}

/// A random UUID (RFC 9562, version 4).
fn unique_id() -> String {
    let id = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// What expressions are asked of.
fn seen<'a>(context: &LogContext<'a>) -> Seen<'a> {
    Seen {
        stream: context.stream,
        connection: context.connection,
        request: context.request,
        response: context.response,
        trailers: context.trailers,
        far: None,
    }
}

fn bytes(out: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    if let Some(value) = value {
        out.extend_from_slice(value);
    }
    value.is_some()
}

fn text(out: &mut Vec<u8>, value: Option<&str>) -> bool {
    bytes(out, value.map(str::as_bytes))
}

fn show(out: &mut Vec<u8>, value: impl std::fmt::Display) -> bool {
    // Writing to memory cannot fail.
    let _ = write!(out, "{value}");
    true
}

fn number(out: &mut Vec<u8>, value: impl itoa::Integer + Copy + TryInto<u16>) -> bool {
    digits::number(out, value);
    true
}
