//! From a command's name and arguments to its operator.

use std::sync::Arc;

use super::super::time::TimeFormat;
use super::super::tls::Side;
use super::super::{FormatError, Of, tls};
use super::address::{HostAs, Part};
use super::fields::{FieldOr, PathOf, ServerName};
use super::grpc::GrpcShape;
use super::{Head, Operator, Recognition, coalesce, fields, metadata, moments, required, wire};
use crate::io::Rare;
use crate::telemetry::cel::Expression;

impl Operator {
    /// Compiles a command.
    pub(in super::super) fn parse(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        if let Some(taking) = with_arguments(name, arguments) {
            return taking;
        }
        let wire = || wire::named(name).map(|(side, count)| Self::Wire(side, count));
        let Some(plain) = plain(name).or_else(wire) else {
            return match tls::part(name, arguments) {
                Some(found) => found.map(|(side, part)| Self::Tls(side, part)),
                None => Err(FormatError::Unknown(name.to_owned())),
            };
        };
        match arguments {
            None => Ok(plain),
            Some(_) => Err(FormatError::Arguments(name.to_owned(), "takes no arguments")),
        }
    }
}

/// Those that take something in parentheses.
fn with_arguments(name: &str, arguments: Option<&str>) -> Option<Result<Operator, FormatError>> {
    use Operator as Op;
    Some(match name {
        "REQ" | "REQUEST_HEADER" => FieldOr::parse(name, arguments).map(|field| Op::Request(field, false)),
        "REQ_WITHOUT_QUERY" => FieldOr::parse(name, arguments).map(|field| Op::Request(field, true)),
        "RESP" | "RESPONSE_HEADER" => FieldOr::parse(name, arguments).map(Op::Response),
        "TRAILER" | "RESPONSE_TRAILER" => FieldOr::parse(name, arguments).map(Op::Trailer),
        "START_TIME" => TimeFormat::parse(arguments).map(Op::StartTime),
        "START_TIME_LOCAL" => TimeFormat::local(arguments).map(Op::StartTime),
        "EMIT_TIME" => TimeFormat::parse(arguments).map(Op::EmitTime),
        "EMIT_TIME_LOCAL" => TimeFormat::local(arguments).map(Op::EmitTime),
        "ENVIRONMENT" => required(name, arguments, "give it a variable's name")
            .map(|name| Op::Environment(std::env::var(name).ok())),
        "QUERY_PARAM" => fields::query_param(name, arguments),
        "QUERY_PARAMS" => fields::query_form(arguments),
        "PATH" => PathOf::parse(arguments.unwrap_or_default()).map(Op::Path),
        "REQUESTED_SERVER_NAME" => {
            ServerName::parse(arguments.unwrap_or_default()).map(Op::RequestedServerName)
        }
        "COMMON_DURATION" => moments::parse(arguments.unwrap_or_default()),
        "RESPONSE_CODE_DETAILS" => match arguments {
            None | Some("" | "ALLOW_WHITESPACES") => {
                Ok(Op::ResponseCodeDetails(arguments == Some("ALLOW_WHITESPACES")))
            }
            Some(_) => Err(FormatError::Arguments(name.to_owned(), "takes ALLOW_WHITESPACES or nothing")),
        },
        "GRPC_STATUS" => match arguments {
            None | Some("" | "CAMEL_STRING") => Ok(Op::GrpcStatus(GrpcShape::Camel)),
            Some("SNAKE_STRING") => Ok(Op::GrpcStatus(GrpcShape::Snake)),
            Some("NUMBER") => Ok(Op::GrpcStatus(GrpcShape::Number)),
            Some(_) => {
                Err(FormatError::Arguments(name.to_owned(), "takes CAMEL_STRING, SNAKE_STRING or NUMBER"))
            }
        },
        "FILTER_STATE" => {
            metadata::filter_state(name, arguments).map(|(key, plain)| Op::FilterState(key, plain))
        }
        // Nothing of ours leaves objects on its way to the upstream.
        "UPSTREAM_FILTER_STATE" => metadata::filter_state(name, arguments).map(|_| Op::Nothing),
        "CEL" => expression(name, arguments, false),
        "TYPED_CEL" => expression(name, arguments, true),
        "COALESCE" => coalesce::parse(arguments).map(Op::Coalesce),
        "DYNAMIC_METADATA" => metadata::path(name, arguments).map(Op::DynamicMetadata),
        "CLUSTER_METADATA" => metadata::configured(Of::Cluster, name, arguments),
        "UPSTREAM_METADATA" => metadata::configured(Of::Host, name, arguments),
        "METADATA" => metadata::of_any(name, arguments),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Part::without_port(name, arguments).map(Op::UpstreamRemote),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Part::without_port(name, arguments).map(Op::UpstreamLocal),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => {
            Part::without_port(name, arguments).map(Op::DownstreamLocal)
        }
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => {
            Part::without_port(name, arguments).map(Op::DownstreamRemote)
        }
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => {
            Part::without_port(name, arguments).map(Op::DownstreamDirectLocal)
        }
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            Part::without_port(name, arguments).map(Op::DownstreamDirectRemote)
        }
        _ => return None,
    })
}

/// Those that take nothing.
fn plain(name: &str) -> Option<Operator> {
    use Operator as Op;
    Some(match name {
        "REQUEST_HEADERS_BYTES" => Op::HeaderBytes(Head::Request),
        "RESPONSE_HEADERS_BYTES" => Op::HeaderBytes(Head::Response),
        "RESPONSE_TRAILERS_BYTES" => Op::HeaderBytes(Head::Trailers),
        "STREAM_ID" => Op::StreamId,
        "UNIQUE_ID" => Op::UniqueId,
        "GRPC_STATUS_NUMBER" => Op::GrpcStatus(GrpcShape::Number),
        "LOCAL_REPLY_BODY" => Op::LocalReplyBody,
        "ACCESS_LOG_TYPE" => Op::LogType,
        "VIRTUAL_CLUSTER_NAME" => Op::VirtualCluster,
        "UPSTREAM_PROTOCOL" => Op::UpstreamProtocol,
        "RESPONSE_FLAGS_LONG" => Op::ResponseFlags(true),
        "REQUEST_TX_DURATION" => Op::RequestTxDuration,
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Op::PoolReadyDuration,
        "DOWNSTREAM_HANDSHAKE_DURATION" => Op::HandshakeDuration,
        "UPSTREAM_REMOTE_ADDRESS" => Op::UpstreamRemote(Part::Whole),
        "UPSTREAM_REMOTE_PORT" => Op::UpstreamRemote(Part::Port),
        "UPSTREAM_HOST_NAME" => Op::UpstreamHostName(HostAs::Name),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Op::UpstreamHostName(HostAs::NameWithoutPort),
        "UPSTREAM_HOSTS_ATTEMPTED" => Op::Attempted(HostAs::Address),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Op::Attempted(HostAs::AddressWithoutPort),
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => Op::Attempted(HostAs::Name),
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => Op::Attempted(HostAs::NameWithoutPort),
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Op::Attempted(HostAs::Connection),
        "UPSTREAM_CONNECTION_ID" => Op::UpstreamConnectionId,
        "TRACE_ID" => Op::TraceId,
        "SPAN_ID" => Op::SpanId,
        "PROTOCOL" => Op::Protocol,
        "RESPONSE_CODE" => Op::ResponseCode,
        "RESPONSE_FLAGS" => Op::ResponseFlags(false),
        "CONNECTION_TERMINATION_DETAILS" => Op::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Op::UpstreamTransportFailureReason,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Op::DownstreamTransportFailureReason,
        "BYTES_RECEIVED" => Op::BytesReceived,
        "BYTES_SENT" => Op::BytesSent,
        // Both are QUIC's alone.
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Op::Zero,
        "ROUNDTRIP_DURATION" => Op::Nothing,
        "DURATION" => Op::Duration,
        "REQUEST_DURATION" => Op::RequestDuration,
        "RESPONSE_DURATION" => Op::ResponseDuration,
        "RESPONSE_TX_DURATION" => Op::ResponseTxDuration,
        "UPSTREAM_HOST" => Op::UpstreamHost(Part::Whole),
        "UPSTREAM_CLUSTER" => Op::UpstreamCluster(false),
        "UPSTREAM_CLUSTER_RAW" => Op::UpstreamCluster(true),
        "UPSTREAM_LOCAL_ADDRESS" => Op::UpstreamLocal(Part::Whole),
        "UPSTREAM_LOCAL_PORT" => Op::UpstreamLocal(Part::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Op::DownstreamLocal(Part::Whole),
        "DOWNSTREAM_LOCAL_PORT" => Op::DownstreamLocal(Part::Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Op::DownstreamDirectLocal(Part::Whole),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => Op::DownstreamDirectLocal(Part::Port),
        "DOWNSTREAM_REMOTE_ADDRESS" => Op::DownstreamRemote(Part::Whole),
        "DOWNSTREAM_REMOTE_PORT" => Op::DownstreamRemote(Part::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Op::DownstreamDirectRemote(Part::Whole),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Op::DownstreamDirectRemote(Part::Port),
        // Addresses within the process have ids; the others have none, which Envoy writes as an empty text.
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => {
            Op::Empty { upstream: false }
        }
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => Op::Empty { upstream: true },
        // No filter of ours sets any.
        "CUSTOM_FLAGS" => Op::Empty { upstream: false },
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => Op::CloseType(Side::Downstream),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => Op::CloseType(Side::Upstream),
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => Op::CloseReason(Side::Downstream),
        "UPSTREAM_LOCAL_CLOSE_REASON" => Op::CloseReason(Side::Upstream),
        "TLS_JA3_FINGERPRINT" => Op::Fingerprint(Recognition::Ja3),
        "TLS_JA4_FINGERPRINT" => Op::Fingerprint(Recognition::Ja4),
        "DOWNSTREAM_CX_RTT" => {
            Rare::RoundTrip.want();
            Op::RoundTrip
        }
        "ROUTE_NAME" => Op::RouteName,
        "FILTER_CHAIN_NAME" => Op::FilterChainName,
        "CONNECTION_ID" => Op::ConnectionId,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Op::AttemptCount,
        "HOSTNAME" => Op::Hostname(std::env::var("HOSTNAME").unwrap_or_else(|_| "-".to_owned())),
        _ => return None,
    })
}

fn expression(name: &str, arguments: Option<&str>, typed: bool) -> Result<Operator, FormatError> {
    let text = required(name, arguments, "give it an expression, such as request.method")?;
    match Expression::compile(text) {
        Ok(expression) => Ok(Operator::Cel(Arc::new(expression), typed)),
        Err(_) => Err(FormatError::Arguments(
            format!("{name}({text})"),
            "is no expression in CEL, or asks for what no stream has",
        )),
    }
}
