//! The command operators of format strings, with Envoy's names (its access log documentation is the source of each).

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use time::OffsetDateTime;

use super::{FormatError, LogContext};
use crate::codec::headers::HeaderName;
use crate::codec::{Headers, RequestHead};

/// Where a header operator looks.
#[derive(Clone, Debug)]
pub(super) enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Name(HeaderName),
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            other => Self::Name(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }

    fn of_request<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let found = match self {
            Self::Method => return Some(head.method.as_str().as_bytes()),
            Self::Path => &head.path,
            Self::Authority => &head.authority,
            Self::Scheme => &head.scheme,
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

/// One command.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    Request(FieldOr, bool),
    Response(FieldOr),
    Trailer(FieldOr),
    StartTime(TimeFormat),
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamHost,
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
    PeerUriSan,
    PeerDnsSan,
    PeerSubject,
    LocalUriSan,
    TlsVersion,
    TlsCipher,
    GrpcStatus(bool),
    Hostname(String),
}

impl Operator {
    pub(super) fn parse(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        let plain = match name {
            "REQ" => return Ok(Self::Request(FieldOr::parse(name, arguments)?, false)),
            "REQ_WITHOUT_QUERY" => return Ok(Self::Request(FieldOr::parse(name, arguments)?, true)),
            "RESP" => return Ok(Self::Response(FieldOr::parse(name, arguments)?)),
            "TRAILER" => return Ok(Self::Trailer(FieldOr::parse(name, arguments)?)),
            "START_TIME" => return TimeFormat::parse(arguments).map(Self::StartTime),
            "GRPC_STATUS" => {
                return match arguments {
                    None | Some("CAMEL_STRING") => Ok(Self::GrpcStatus(false)),
                    Some("NUMBER") => Ok(Self::GrpcStatus(true)),
                    Some(_) => Err(FormatError::Arguments(name.to_owned(), "takes CAMEL_STRING or NUMBER")),
                };
            }
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus(true),
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_FLAGS" => Self::ResponseFlags,
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => Self::ConnectionTerminationDetails,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::UpstreamTransportFailureReason,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DURATION" => Self::Duration,
            "REQUEST_DURATION" => Self::RequestDuration,
            "RESPONSE_DURATION" => Self::ResponseDuration,
            "RESPONSE_TX_DURATION" => Self::ResponseTxDuration,
            "UPSTREAM_HOST" => Self::UpstreamHost,
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
            "DOWNSTREAM_PEER_URI_SAN" => Self::PeerUriSan,
            "DOWNSTREAM_PEER_DNS_SAN" => Self::PeerDnsSan,
            "DOWNSTREAM_PEER_SUBJECT" => Self::PeerSubject,
            "DOWNSTREAM_LOCAL_URI_SAN" => Self::LocalUriSan,
            "DOWNSTREAM_TLS_VERSION" => Self::TlsVersion,
            "DOWNSTREAM_TLS_CIPHER" => Self::TlsCipher,
            "HOSTNAME" => Self::Hostname(std::env::var("HOSTNAME").unwrap_or_else(|_| "-".to_owned())),
            _ => return Err(FormatError::Unknown(name.to_owned())),
        };
        if arguments.is_some() {
            return Err(FormatError::Arguments(name.to_owned(), "takes no arguments"));
        }
        Ok(plain)
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
                | Self::AttemptCount
                | Self::GrpcStatus(true)
                | Self::UpstreamLocal(Part::Port)
                | Self::DownstreamLocal(Part::Port)
                | Self::DownstreamRemote(Part::Port)
        )
    }

    /// Appends the value; false, with nothing appended, where there is none.
    pub(super) fn write(&self, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
        let (stream, connection) = (context.stream, context.connection);
        let tls = connection.tls.as_deref();
        match self {
            Self::Request(field, without_query) => {
                let found = field.find(|f| context.request.and_then(|r| f.of_request(r)));
                let cut = |v: &[u8]| v.iter().position(|b| *b == b'?').unwrap_or(v.len());
                bytes(out, found.map(|v| if *without_query { &v[..cut(v)] } else { v }))
            }
            Self::Response(field) => {
                bytes(out, field.find(|f| context.response.and_then(|h| f.of_fields(h))))
            }
            Self::Trailer(field) => bytes(out, field.find(|f| context.trailers.and_then(|h| f.of_fields(h)))),
            Self::StartTime(format) => {
                format.write(stream.start_time, out);
                true
            }
            Self::Protocol => text(out, stream.protocol.map(|p| p.as_str())),
            Self::ResponseCode => show(out, stream.status.map_or(0, |s| s.as_u16())),
            Self::ResponseFlags => !stream.flags.is_empty() && show(out, stream.flags),
            Self::ResponseCodeDetails => text(out, stream.details),
            Self::ConnectionTerminationDetails => text(out, stream.connection_termination_details),
            Self::UpstreamTransportFailureReason => text(out, stream.upstream_failure.as_deref()),
            Self::BytesReceived => show(out, stream.bytes_received),
            Self::BytesSent => show(out, stream.bytes_sent),
            Self::Duration => show(out, stream.start.elapsed().as_millis()),
            Self::RequestDuration => since(out, stream.start, stream.request_end),
            Self::ResponseDuration => since(out, stream.start, stream.upstream_first_byte),
            Self::ResponseTxDuration => match stream.upstream_first_byte {
                Some(first) => show(out, first.elapsed().as_millis()),
                None => false,
            },
            Self::UpstreamHost => address(out, stream.upstream_host, Part::Whole),
            Self::UpstreamCluster => text(out, stream.cluster.as_deref()),
            Self::UpstreamLocal(part) => address(out, stream.upstream_local, *part),
            Self::DownstreamLocal(part) => address(out, Some(connection.local), *part),
            Self::DownstreamRemote(part) => address(out, Some(connection.remote), *part),
            Self::DownstreamDirectRemote(part) => address(out, Some(connection.direct_remote), *part),
            Self::RequestedServerName => text(out, connection.sni.as_deref()),
            Self::RouteName => text(out, stream.route.as_deref()),
            Self::FilterChainName => text(out, Some(&*connection.filter_chain).filter(|n| !n.is_empty())),
            Self::ConnectionId => show(out, connection.id),
            Self::AttemptCount => show(out, stream.attempts),
            Self::PeerUriSan => list(out, tls.map(|t| t.peer_uri_sans.as_slice())),
            Self::PeerDnsSan => list(out, tls.map(|t| t.peer_dns_sans.as_slice())),
            Self::PeerSubject => text(out, tls.map(|t| t.peer_subject.as_str()).filter(|s| !s.is_empty())),
            Self::LocalUriSan => text(out, tls.and_then(|t| t.local_id.as_deref())),
            Self::TlsVersion => text(out, tls.map(|t| t.version)),
            Self::TlsCipher => text(out, tls.map(|t| t.cipher)),
            Self::GrpcStatus(number) => match stream.grpc_status {
                Some(code) if *number => show(out, code),
                Some(code) => text(out, Some(grpc_name(code))),
                None => false,
            },
            Self::Hostname(name) => text(out, Some(name)),
        }
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

fn since(out: &mut Vec<u8>, start: Instant, end: Option<Instant>) -> bool {
    match end {
        Some(end) => show(out, end.saturating_duration_since(start).as_millis()),
        None => false,
    }
}

fn address(out: &mut Vec<u8>, value: Option<SocketAddr>, part: Part) -> bool {
    match (value, part) {
        (None, _) => false,
        (Some(a), Part::Whole) => show(out, a),
        (Some(a), Part::Ip) => show(out, a.ip()),
        (Some(a), Part::Port) => show(out, a.port()),
    }
}

fn list(out: &mut Vec<u8>, values: Option<&[String]>) -> bool {
    match values {
        Some(values) if !values.is_empty() => text(out, Some(&values.join(","))),
        _ => false,
    }
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

/// The pieces of `%START_TIME(...)%`, a subset of strftime.
#[derive(Clone, Debug)]
pub(super) struct TimeFormat(Vec<TimePiece>);

#[derive(Clone, Debug)]
enum TimePiece {
    Text(String),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Fraction(u32),
    Epoch,
}

impl TimeFormat {
    fn parse(source: Option<&str>) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::Arguments(
                "START_TIME".to_owned(),
                "takes %Y %m %d %H %M %S %s %3f %6f %9f %E3S %E6S %F %T and text",
            )
        };
        let mut rest = source.unwrap_or("%Y-%m-%dT%H:%M:%E3SZ");
        let mut pieces = Vec::new();
        let seconds =
            |digits| vec![TimePiece::Second, TimePiece::Text(".".to_owned()), TimePiece::Fraction(digits)];
        while let Some(start) = rest.find('%') {
            if start > 0 {
                pieces.push(TimePiece::Text(rest[..start].to_owned()));
            }
            let spec = &rest[start + 1..];
            let colon = || TimePiece::Text(":".to_owned());
            let dash = || TimePiece::Text("-".to_owned());
            let (length, mut made) = match spec.as_bytes() {
                [b'E', b'3', b'S', ..] => (3, seconds(3)),
                [b'E', b'6', b'S', ..] => (3, seconds(6)),
                [b'3', b'f', ..] => (2, vec![TimePiece::Fraction(3)]),
                [b'6', b'f', ..] => (2, vec![TimePiece::Fraction(6)]),
                [b'9', b'f', ..] => (2, vec![TimePiece::Fraction(9)]),
                [b'Y', ..] => (1, vec![TimePiece::Year]),
                [b'm', ..] => (1, vec![TimePiece::Month]),
                [b'd', ..] => (1, vec![TimePiece::Day]),
                [b'H', ..] => (1, vec![TimePiece::Hour]),
                [b'M', ..] => (1, vec![TimePiece::Minute]),
                [b'S', ..] => (1, vec![TimePiece::Second]),
                [b's', ..] => (1, vec![TimePiece::Epoch]),
                [b'F', ..] => (1, vec![TimePiece::Year, dash(), TimePiece::Month, dash(), TimePiece::Day]),
                [b'T', ..] => {
                    (1, vec![TimePiece::Hour, colon(), TimePiece::Minute, colon(), TimePiece::Second])
                }
                _ => return Err(bad()),
            };
            pieces.append(&mut made);
            rest = &spec[length..];
        }
        if !rest.is_empty() {
            pieces.push(TimePiece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        let at = OffsetDateTime::from(at);
        for piece in &self.0 {
            let _ = match piece {
                TimePiece::Text(t) => out.write_all(t.as_bytes()),
                TimePiece::Year => write!(out, "{:04}", at.year()),
                TimePiece::Month => write!(out, "{:02}", u8::from(at.month())),
                TimePiece::Day => write!(out, "{:02}", at.day()),
                TimePiece::Hour => write!(out, "{:02}", at.hour()),
                TimePiece::Minute => write!(out, "{:02}", at.minute()),
                TimePiece::Second => write!(out, "{:02}", at.second()),
                TimePiece::Fraction(3) => write!(out, "{:03}", at.millisecond()),
                TimePiece::Fraction(6) => write!(out, "{:06}", at.microsecond()),
                TimePiece::Fraction(_) => write!(out, "{:09}", at.nanosecond()),
                TimePiece::Epoch => write!(out, "{}", at.unix_timestamp()),
            };
        }
    }
}
