//! The command operators of format strings, with Envoy's names (its access log documentation is the source of each).

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use xds_protos::value::{struct_to_json, to_json};

use super::time::TimeFormat;
use super::tls::{self, Side, TlsPart};
use super::wanted::Fields;
use super::{FormatError, LogContext, Of, Wanted, sizes};
use crate::codec::digits::{self, millis};
use crate::codec::headers::HeaderName;
use crate::codec::{Headers, RequestHead};
use crate::io::metadata::at_path;
use crate::telemetry::cel::{Expression, Seen};

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where a header operator looks.
#[derive(Clone, Debug)]
pub(super) enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Name(HeaderName),
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            other => Self::Name(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }

    fn of_request<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let found = match self {
            Self::Method => return Some(head.method.as_str().as_bytes()),
            Self::Path => &head.path,
            Self::Authority => &head.authority,
            Self::Scheme => &head.scheme,
            Self::Status => return None,
            Self::Name(name) => return head.headers.get(name).map(|v| v.as_bytes()),
        };
        (!found.is_empty()).then_some(found)
    }

    fn of_fields<'a>(&self, headers: &'a Headers) -> Option<&'a [u8]> {
        match self {
            Self::Name(name) => headers.get(name).map(|v| v.as_bytes()),
            _ => None,
        }
    }
}

/// A header field and the one to take where it is absent.
#[derive(Clone, Debug)]
pub(super) struct FieldOr(Field, Option<Field>);

impl FieldOr {
    fn parse(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        let bad = || FormatError::Arguments(name.to_owned(), "give it a header name, such as (X-REQUEST-ID)");
        let arguments = arguments.filter(|a| !a.is_empty()).ok_or_else(bad)?;
        let (first, other) = match arguments.split_once('?') {
            Some((first, other)) => (first, Some(other)),
            None => (arguments, None),
        };
        Ok(Self(
            Field::parse(first).ok_or_else(bad)?,
            other.map(|o| Field::parse(o).ok_or_else(bad)).transpose()?,
        ))
    }

    fn wants(&self, fields: &mut Fields) {
        for field in std::iter::once(&self.0).chain(&self.1) {
            if let Field::Name(name) = field {
                fields.add(name);
            }
        }
    }

    fn find<'a>(&self, look: impl Fn(&Field) -> Option<&'a [u8]>) -> Option<&'a [u8]> {
        look(&self.0).or_else(|| self.1.as_ref().and_then(look))
    }
}

/// How an address is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Whole,
    Ip,
    Port,
}

/// How a gRPC status is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum GrpcShape {
    Camel,
    Snake,
    Number,
}

/// A moment of a stream that `%COMMON_DURATION%` knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Point {
    RequestStart,
    RequestEnd,
    RequestSent,
    ResponseStart,
    Now,
}

impl Point {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "DS_RX_BEG" => Self::RequestStart,
            "DS_RX_END" => Self::RequestEnd,
            "US_TX_END" => Self::RequestSent,
            "US_RX_BEG" => Self::ResponseStart,
            "DS_TX_END" => Self::Now,
            _ => return None,
        })
    }

    fn of(self, context: &LogContext<'_>) -> Option<Instant> {
        let stream = context.stream;
        match self {
            Self::RequestStart => Some(stream.start),
            Self::RequestEnd => stream.request_end,
            Self::RequestSent => stream.request_sent,
            Self::ResponseStart => stream.upstream_first_byte,
            Self::Now => Some(Instant::now()),
        }
    }
}

/// What a duration is counted in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    fn count(self, duration: std::time::Duration) -> u128 {
        match self {
            Self::Millis => duration.as_millis(),
            Self::Micros => duration.as_micros(),
            Self::Nanos => duration.as_nanos(),
        }
    }
}

fn required<'a>(name: &str, arguments: Option<&'a str>, what: &'static str) -> Result<&'a str, FormatError> {
    arguments.filter(|a| !a.is_empty()).ok_or_else(|| FormatError::Arguments(name.to_owned(), what))
}

/// `%PATH(with or without query:which path)%`.
fn path(arguments: &str) -> Result<Operator, FormatError> {
    let bad = || {
        FormatError::Arguments(
            "PATH".to_owned(),
            "takes WQ or NQ, then a colon and ORIG, PATH or ORIG_OR_PATH",
        )
    };
    let (query, which) = arguments.split_once(':').unwrap_or((arguments, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err(bad()),
    };
    let original = match which {
        "PATH" => Some(false),
        "ORIG" => Some(true),
        "" | "ORIG_OR_PATH" => None,
        _ => return Err(bad()),
    };
    Ok(Operator::Path { query, original })
}

/// `%COMMON_DURATION(from:to:unit)%`.
fn common_duration(arguments: &str) -> Result<Operator, FormatError> {
    let bad = || {
        FormatError::Arguments(
            "COMMON_DURATION".to_owned(),
            "takes two of DS_RX_BEG, DS_RX_END, US_TX_END, US_RX_BEG, DS_TX_END, and one of ms, us, ns",
        )
    };
    let mut parts = arguments.split(':');
    let mut next = || parts.next().ok_or_else(bad);
    let (from, to) = (Point::parse(next()?).ok_or_else(bad)?, Point::parse(next()?).ok_or_else(bad)?);
    let unit = match next()? {
        "ms" => Unit::Millis,
        "us" => Unit::Micros,
        "ns" => Unit::Nanos,
        _ => return Err(bad()),
    };
    Ok(Operator::CommonDuration(from, to, unit))
}

/// The first value of a parameter; unlike those that routes match by, it is decoded.
fn query_value(path: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let query = &path[path.iter().position(|b| *b == b'?')? + 1..];
    query.split(|b| *b == b'&').find_map(|pair| {
        let end = pair.iter().position(|b| *b == b'=');
        let (key, value) = end.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        (!pair.is_empty() && decoded(key) == name).then(|| decoded(value))
    })
}

/// Text without percent-encoding (RFC 3986, section 2.1); what is none stays.
fn decoded(mut text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        (text, _) = match rest {
            [high, low, after @ ..] if *first == b'%' => match digit(*high).zip(digit(*low)) {
                Some((high, low)) => (after, out.push((high * 16 + low) as u8)),
                None => (rest, out.push(*first)),
            },
            _ => (rest, out.push(*first)),
        };
    }
    out
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
    Path {
        query: bool,
        original: Option<bool>,
    },
    CommonDuration(Point, Point, Unit),
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamHost(Part),
    UpstreamCluster,
    UpstreamLocal(Part),
    DownstreamLocal(Part),
    DownstreamRemote(Part),
    DownstreamDirectRemote(Part),
    RequestedServerName,
    RouteName,
    FilterChainName,
    ConnectionId,
    AttemptCount,
    Tls(Side, TlsPart),
    GrpcStatus(GrpcShape),
    Hostname(String),
    DynamicMetadata(Vec<String>),
    ConfiguredMetadata(Of, Vec<String>),
    TraceId,
    SpanId,
    HeaderBytes(Head),
    StreamId,
    UniqueId,
    /// An object of the filter state, as it is or as JSON.
    FilterState(String, bool),
    Cel(Arc<Expression>),
}

/// Whose bytes are counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    Request,
    Response,
    Trailers,
}

impl Operator {
    pub(super) fn parse(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        let plain = match name {
            "REQ" | "REQUEST_HEADER" => return Ok(Self::Request(FieldOr::parse(name, arguments)?, false)),
            "REQ_WITHOUT_QUERY" => return Ok(Self::Request(FieldOr::parse(name, arguments)?, true)),
            "RESP" | "RESPONSE_HEADER" => return Ok(Self::Response(FieldOr::parse(name, arguments)?)),
            "TRAILER" | "RESPONSE_TRAILER" => return Ok(Self::Trailer(FieldOr::parse(name, arguments)?)),
            "START_TIME" => return TimeFormat::parse(arguments).map(Self::StartTime),
            "EMIT_TIME" => return TimeFormat::parse(arguments).map(Self::EmitTime),
            "ENVIRONMENT" => {
                let name = required(name, arguments, "give it a variable's name")?;
                return Ok(Self::Environment(std::env::var(name).ok()));
            }
            "QUERY_PARAM" => {
                let parameter = required(name, arguments, "give it a parameter's name")?;
                return Ok(Self::Query(parameter.to_owned()));
            }
            "PATH" => return path(arguments.unwrap_or_default()),
            "COMMON_DURATION" => return common_duration(arguments.unwrap_or_default()),
            "GRPC_STATUS" => {
                return match arguments {
                    None | Some("" | "CAMEL_STRING") => Ok(Self::GrpcStatus(GrpcShape::Camel)),
                    Some("SNAKE_STRING") => Ok(Self::GrpcStatus(GrpcShape::Snake)),
                    Some("NUMBER") => Ok(Self::GrpcStatus(GrpcShape::Number)),
                    Some(_) => Err(FormatError::Arguments(
                        name.to_owned(),
                        "takes CAMEL_STRING, SNAKE_STRING or NUMBER",
                    )),
                };
            }
            "FILTER_STATE" => return filter_state(name, arguments),
            "CEL" => {
                let text = required(name, arguments, "give it an expression, such as request.method")?;
                return match Expression::compile(text) {
                    Ok(expression) => Ok(Self::Cel(Arc::new(expression))),
                    Err(_) => Err(FormatError::Arguments(
                        format!("CEL({text})"),
                        "is no expression in CEL, or asks for what no stream has",
                    )),
                };
            }
            "REQUEST_HEADERS_BYTES" => Self::HeaderBytes(Head::Request),
            "RESPONSE_HEADERS_BYTES" => Self::HeaderBytes(Head::Response),
            "RESPONSE_TRAILERS_BYTES" => Self::HeaderBytes(Head::Trailers),
            "STREAM_ID" => Self::StreamId,
            "UNIQUE_ID" => Self::UniqueId,
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus(GrpcShape::Number),
            "LOCAL_REPLY_BODY" => Self::LocalReplyBody,
            "ACCESS_LOG_TYPE" => Self::LogType,
            "VIRTUAL_CLUSTER_NAME" => Self::VirtualCluster,
            "UPSTREAM_PROTOCOL" => Self::UpstreamProtocol,
            "RESPONSE_FLAGS_LONG" => Self::ResponseFlags(true),
            "REQUEST_TX_DURATION" => Self::RequestTxDuration,
            "UPSTREAM_REMOTE_ADDRESS" => Self::UpstreamHost(Part::Whole),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::UpstreamHost(Part::Ip),
            "UPSTREAM_REMOTE_PORT" => Self::UpstreamHost(Part::Port),
            "DOWNSTREAM_DIRECT_REMOTE_PORT" => Self::DownstreamDirectRemote(Part::Port),
            "DYNAMIC_METADATA" => return metadata(name, arguments).map(Self::DynamicMetadata),
            "CLUSTER_METADATA" => return configured(Of::Cluster, name, arguments),
            "UPSTREAM_METADATA" => return configured(Of::Host, name, arguments),
            "METADATA" => {
                let (what, rest) = arguments.and_then(|a| a.split_once(':')).unwrap_or_default();
                return match what {
                    "DYNAMIC" => metadata(name, Some(rest)).map(Self::DynamicMetadata),
                    "CLUSTER" => configured(Of::Cluster, name, Some(rest)),
                    "ROUTE" => configured(Of::Route, name, Some(rest)),
                    "UPSTREAM_HOST" => configured(Of::Host, name, Some(rest)),
                    _ => Err(FormatError::Arguments(
                        name.to_owned(),
                        "takes DYNAMIC, CLUSTER, ROUTE or UPSTREAM_HOST, and behind a colon a namespace",
                    )),
                };
            }
            "TRACE_ID" => Self::TraceId,
            "SPAN_ID" => Self::SpanId,
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_FLAGS" => Self::ResponseFlags(false),
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => Self::ConnectionTerminationDetails,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::UpstreamTransportFailureReason,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DURATION" => Self::Duration,
            "REQUEST_DURATION" => Self::RequestDuration,
            "RESPONSE_DURATION" => Self::ResponseDuration,
            "RESPONSE_TX_DURATION" => Self::ResponseTxDuration,
            "UPSTREAM_HOST" => Self::UpstreamHost(Part::Whole),
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Self::UpstreamCluster,
            "UPSTREAM_LOCAL_ADDRESS" => Self::UpstreamLocal(Part::Whole),
            "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Self::UpstreamLocal(Part::Ip),
            "UPSTREAM_LOCAL_PORT" => Self::UpstreamLocal(Part::Port),
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::DownstreamLocal(Part::Whole),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Self::DownstreamLocal(Part::Ip),
            "DOWNSTREAM_LOCAL_PORT" => Self::DownstreamLocal(Part::Port),
            "DOWNSTREAM_REMOTE_ADDRESS" => Self::DownstreamRemote(Part::Whole),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::DownstreamRemote(Part::Ip),
            "DOWNSTREAM_REMOTE_PORT" => Self::DownstreamRemote(Part::Port),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Self::DownstreamDirectRemote(Part::Whole),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Self::DownstreamDirectRemote(Part::Ip),
            "REQUESTED_SERVER_NAME" => Self::RequestedServerName,
            "ROUTE_NAME" => Self::RouteName,
            "FILTER_CHAIN_NAME" => Self::FilterChainName,
            "CONNECTION_ID" => Self::ConnectionId,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::AttemptCount,
            "HOSTNAME" => Self::Hostname(std::env::var("HOSTNAME").unwrap_or_else(|_| "-".to_owned())),
            other => match tls::part(other, arguments) {
                Some(found) => return found.map(|(side, part)| Self::Tls(side, part)),
                None => return Err(FormatError::Unknown(name.to_owned())),
            },
        };
        if arguments.is_some() {
            return Err(FormatError::Arguments(name.to_owned(), "takes no arguments"));
        }
        Ok(plain)
    }

    /// The value that a JSON log shows as it is, where the operator has such values.
    pub(super) fn json(&self, context: &LogContext<'_>) -> Option<serde_json::Value> {
        let found = match self {
            Self::DynamicMetadata(path) => found(context, path),
            Self::ConfiguredMetadata(of, path) => found_configured(context, *of, path),
            _ => return None,
        };
        Some(found.unwrap_or(serde_json::Value::Null))
    }

    /// Whether a JSON log shows it as a number.
    pub(super) fn is_number(&self) -> bool {
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
                | Self::HeaderBytes(_)
                | Self::AttemptCount
                | Self::RequestTxDuration
                | Self::CommonDuration(..)
                | Self::UpstreamHost(Part::Port)
                | Self::DownstreamDirectRemote(Part::Port)
                | Self::GrpcStatus(GrpcShape::Number)
                | Self::UpstreamLocal(Part::Port)
                | Self::DownstreamLocal(Part::Port)
                | Self::DownstreamRemote(Part::Port)
        )
    }

    /// Adds what it reads of the heads.
    pub(super) fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Request(field, _) => field.wants(&mut wanted.request),
            Self::Response(field) => field.wants(&mut wanted.response),
            Self::Path { .. } => wanted.request.add(&ORIGINAL_PATH),
            Self::StreamId => wanted.request.add(&REQUEST_ID),
            Self::HeaderBytes(Head::Request) => wanted.request.all(),
            Self::HeaderBytes(Head::Response) => wanted.response.all(),
            Self::Cel(_) => wanted.whole(),
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
            | Self::CommonDuration(..)
            | Self::ResponseCodeDetails
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
            | Self::UpstreamCluster
            | Self::UpstreamLocal(_)
            | Self::DownstreamLocal(_)
            | Self::DownstreamRemote(_)
            | Self::DownstreamDirectRemote(_)
            | Self::RequestedServerName
            | Self::RouteName
            | Self::FilterChainName
            | Self::ConnectionId
            | Self::AttemptCount
            | Self::Tls(..)
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
                let cut = |v: &[u8]| v.iter().position(|b| *b == b'?').unwrap_or(v.len());
                bytes(out, found.map(|v| if *without_query { &v[..cut(v)] } else { v }))
            }
            Self::Response(field) => {
                if let FieldOr(Field::Status, _) = field {
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
                bytes(out, query_value(path, name.as_bytes()).as_deref())
            }
            Self::Path { query, original } => {
                let Some(head) = context.request else { return false };
                let before = || head.headers.get(&ORIGINAL_PATH).map(|v| v.as_bytes());
                let path = match original {
                    Some(true) => before(),
                    Some(false) => Some(&head.path[..]),
                    None => before().or(Some(&head.path[..])),
                };
                let cut = |v: &[u8]| v.iter().position(|b| *b == b'?').unwrap_or(v.len());
                bytes(out, path.filter(|p| !p.is_empty()).map(|v| if *query { v } else { &v[..cut(v)] }))
            }
            Self::CommonDuration(from, to, unit) => match (from.of(context), to.of(context)) {
                (Some(from), Some(to)) if to >= from => number(out, unit.count(to.duration_since(from))),
                _ => false,
            },
            Self::ResponseCode => number(out, stream.status.map_or(0, |s| s.as_u16())),
            // Envoy writes a dash for no flags wherever it may stand.
            Self::ResponseFlags(true) if !stream.flags.is_empty() => show(out, stream.flags.long()),
            Self::ResponseFlags(_) if stream.flags.is_empty() => text(out, Some("-")),
            Self::ResponseFlags(_) => show(out, stream.flags),
            Self::ResponseCodeDetails => text(out, stream.code_details().as_deref()),
            Self::ConnectionTerminationDetails => text(out, stream.connection_termination_details.as_deref()),
            Self::UpstreamTransportFailureReason => text(out, stream.upstream_failure.as_deref()),
            Self::BytesReceived => number(out, stream.bytes_received),
            Self::BytesSent => number(out, stream.bytes_sent),
            Self::Duration => number(out, millis(stream.took())),
            Self::RequestDuration => since(out, stream.start, stream.request_end),
            Self::RequestTxDuration => since(out, stream.start, stream.request_sent),
            Self::ResponseDuration => since(out, stream.start, stream.upstream_first_byte),
            Self::ResponseTxDuration => match stream.upstream_first_byte {
                Some(first) => number(out, millis(first.elapsed())),
                None => false,
            },
            Self::UpstreamHost(part) => address(out, stream.upstream_host, *part),
            Self::UpstreamCluster => text(out, stream.cluster.as_deref()),
            Self::UpstreamLocal(part) => address(out, stream.upstream_local, *part),
            Self::DownstreamLocal(part) => address(out, Some(connection.local), *part),
            Self::DownstreamRemote(part) => {
                address(out, Some(stream.client.unwrap_or(connection.remote)), *part)
            }
            Self::DownstreamDirectRemote(part) => address(out, Some(connection.direct_remote), *part),
            Self::RequestedServerName => text(out, connection.sni.as_deref()),
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
            Self::GrpcStatus(shape) => match (stream.grpc_status, shape) {
                (Some(code), GrpcShape::Number) => number(out, code),
                (Some(code), GrpcShape::Camel) => text(out, Some(grpc_name(code))),
                (Some(code), GrpcShape::Snake) => text(out, Some(grpc_snake(code))),
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
            Self::StreamId => {
                bytes(out, context.request.and_then(|r| r.headers.get(&REQUEST_ID)).map(|v| v.as_bytes()))
            }
            Self::UniqueId => show(out, unique_id()),
            Self::FilterState(key, plain) => match super::object(context, key) {
                None => false,
                Some(found) if *plain => text(out, Some(found)),
                Some(found) => show(out, serde_json::Value::from(found)),
            },
            Self::Cel(expression) => {
                let seen = Seen {
                    stream,
                    connection,
                    request: context.request,
                    response: context.response,
                    trailers: context.trailers,
                    far: None,
                };
                text(out, expression.whole(seen).as_deref())
            }
            Self::TraceId => text(out, stream.trace.as_ref().map(|t| t.trace_id()).as_deref()),
            Self::SpanId => text(out, stream.trace.as_ref().and_then(|t| t.span_id()).as_deref()),
            Self::DynamicMetadata(path) => value(out, found(context, path)),
            Self::ConfiguredMetadata(of, path) => value(out, found_configured(context, *of, path)),
        }
    }
}

/// `KEY:PLAIN` or `KEY:TYPED`.
fn filter_state(name: &str, arguments: Option<&str>) -> Result<Operator, FormatError> {
    let arguments = required(name, arguments, "give it an object's name, such as (KEY:PLAIN)")?;
    let (key, plain) = match arguments.rsplit_once(':') {
        Some((key, "PLAIN")) => (key, true),
        Some((key, "TYPED")) => (key, false),
        Some((_, _)) if arguments.contains(":FIELD:") => {
            return Err(FormatError::Arguments(name.to_owned(), "objects are texts and have no fields"));
        }
        // Names of objects have colons in them, too.
        _ => (arguments, false),
    };
    Ok(Operator::FilterState(key.to_owned(), plain))
}

/// A random UUID (RFC 9562, version 4).
fn unique_id() -> String {
    let id = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// `NAMESPACE:KEY:KEY...`; without keys it is the whole namespace.
fn metadata(name: &str, arguments: Option<&str>) -> Result<Vec<String>, FormatError> {
    let path: Vec<_> = arguments.unwrap_or_default().split(':').map(str::to_owned).collect();
    if path[0].is_empty() {
        return Err(FormatError::Arguments(name.to_owned(), "give it a namespace, such as a filter's name"));
    }
    Ok(path)
}

fn configured(of: Of, name: &str, arguments: Option<&str>) -> Result<Operator, FormatError> {
    metadata(name, arguments).map(|path| Operator::ConfiguredMetadata(of, path))
}

fn found_configured(context: &LogContext<'_>, of: Of, path: &[String]) -> Option<serde_json::Value> {
    let (namespace, keys) = path.split_first()?;
    let fields = context.configured?.namespace(of, context.stream, namespace)?;
    match keys {
        [] => Some(struct_to_json(&fields)),
        keys => at_path(&fields, keys).map(to_json),
    }
}

fn value(out: &mut Vec<u8>, found: Option<serde_json::Value>) -> bool {
    match found {
        None => false,
        Some(serde_json::Value::String(s)) => text(out, Some(&s)),
        Some(other) => show(out, other),
    }
}

fn found(context: &LogContext<'_>, path: &[String]) -> Option<serde_json::Value> {
    let (namespace, keys) = path.split_first()?;
    match keys {
        [] => context.stream.metadata.namespace(namespace).as_ref().map(struct_to_json),
        keys => context.stream.metadata.get(namespace, keys).map(|v| to_json(&v)),
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

fn since(out: &mut Vec<u8>, start: Instant, end: Option<Instant>) -> bool {
    match end {
        Some(end) => number(out, millis(end.saturating_duration_since(start))),
        None => false,
    }
}

fn address(out: &mut Vec<u8>, value: Option<SocketAddr>, part: Part) -> bool {
    let Some(address) = value else { return false };
    match part {
        Part::Whole => digits::socket(out, address),
        Part::Ip => digits::ip(out, address.ip()),
        Part::Port => digits::number(out, address.port()),
    }
    true
}

fn grpc_snake(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(code as usize).copied().unwrap_or("INVALID_CODE")
}

fn grpc_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(code as usize).copied().unwrap_or("Unknown")
}
