//! Access logs as entries of Envoy's access log service (`envoy.access_loggers.http_grpc` and `tcp_grpc`), filled as Envoy does.
//!
//! Not measured, and so absent: when the first byte went upstream or downstream, and when the upstream's last byte came. Bytes on the
//! wire that were not counted are absent as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Instant, UNIX_EPOCH};

use http::{HeaderName, header};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::data::accesslog::v3 as proto;
use xds_protos::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use xds_protos::envoy::data::accesslog::v3::tls_properties as tls;
use xds_protos::prost_types;

use super::tls::hex;
use super::{LogContext, LogType, sizes};
use crate::codec::{Headers, Protocol};
use crate::io::TlsInfo;
use crate::telemetry::Flag;
use crate::telemetry::trace::Tag;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What entries say beside the usual.
#[derive(Debug, Default)]
pub struct Extras {
    /// Objects of the filter state.
    pub objects: Vec<String>,
    /// Tags, as spans have them.
    pub tags: Vec<Tag>,
    /// Header fields of the request.
    pub request: Vec<HeaderName>,
    /// Header fields of the answer.
    pub response: Vec<HeaderName>,
    /// Its trailers.
    pub trailers: Vec<HeaderName>,
}

impl Extras {
    /// The entry of a request.
    pub fn http(&self, context: &LogContext<'_>) -> proto::HttpAccessLogEntry {
        let (stream, empty) = (context.stream, Headers::with_capacity(0));
        let wire = stream.on_wire();
        let (near, far) = (wire.downstream.unwrap_or_default(), wire.upstream.unwrap_or_default());
        let version = match stream.protocol {
            None => HttpVersion::ProtocolUnspecified,
            Some(Protocol::Http10) => HttpVersion::Http10,
            Some(Protocol::Http11) => HttpVersion::Http11,
            Some(Protocol::Http2) => HttpVersion::Http2,
        };
        let fields = context.request.map_or(&empty, |head| &head.headers);
        let field = |name: &HeaderName| fields.get(name).map(text).unwrap_or_default();
        let mut request = proto::HttpRequestProperties {
            user_agent: field(&header::USER_AGENT),
            referer: field(&header::REFERER),
            forwarded_for: field(&FORWARDED_FOR),
            request_id: field(&REQUEST_ID),
            original_path: field(&ORIGINAL_PATH),
            request_body_bytes: stream.bytes_received,
            downstream_header_bytes_received: near.headers_received,
            upstream_header_bytes_sent: far.headers_sent,
            request_headers: chosen(&self.request, Some(fields)),
            ..proto::HttpRequestProperties::default()
        };
        if let Some(head) = context.request {
            let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let method = core::RequestMethod::from_str_name(head.method.as_str());
            request.request_method = method.unwrap_or(core::RequestMethod::MethodUnspecified).into();
            request.scheme = lossy(&head.scheme);
            request.authority = lossy(&head.authority);
            request.path = lossy(&head.path);
            request.request_headers_bytes = sizes::of_request(head) as u64;
        }
        let response = proto::HttpResponseProperties {
            response_code: stream.status.map(|status| u32::from(status.as_u16())),
            response_headers_bytes: context.response.map_or(0, sizes::of_response) as u64,
            response_body_bytes: stream.bytes_sent,
            downstream_header_bytes_sent: near.headers_sent,
            upstream_header_bytes_received: far.headers_received,
            response_headers: chosen(&self.response, context.response),
            response_trailers: chosen(&self.trailers, context.trailers),
            response_code_details: stream.code_details().map(Into::into).unwrap_or_default(),
        };
        proto::HttpAccessLogEntry {
            common_properties: Some(self.common(context)),
            protocol_version: version.into(),
            request: Some(request),
            response: Some(response),
        }
    }

    /// The entry of a connection.
    pub fn tcp(&self, context: &LogContext<'_>) -> proto::TcpAccessLogEntry {
        let (received, sent) = (context.stream.bytes_received, context.stream.bytes_sent);
        proto::TcpAccessLogEntry {
            common_properties: Some(self.common(context)),
            connection_properties: Some(proto::ConnectionProperties {
                received_bytes: received,
                sent_bytes: sent,
            }),
        }
    }

    #[allow(deprecated, reason = "Envoy still sets the old mark of entries that are not the last")]
    fn common(&self, context: &LogContext<'_>) -> proto::AccessLogCommon {
        let (stream, connection) = (context.stream, context.connection);
        let now = stream.now();
        let since = |at: Option<Instant>| at.map(|at| length(at.saturating_duration_since(stream.start)));
        let ended = !matches!(context.occasion, LogType::DownstreamStart | LogType::DownstreamPeriodic);
        let end = ended.then_some(now);
        let start = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_tcp = stream.protocol.is_none();
        let wire = stream.on_wire();
        let (near, far) = (wire.downstream.unwrap_or_default(), wire.upstream.unwrap_or_default());
        let metadata = stream.metadata.all();
        proto::AccessLogCommon {
            downstream_remote_address: Some(address(stream.client.unwrap_or(connection.remote))),
            downstream_local_address: Some(address(connection.local)),
            downstream_direct_remote_address: Some(address(connection.direct_remote)),
            tls_properties: self.tls(context),
            start_time: Some(prost_types::Timestamp {
                seconds: start.as_secs() as i64,
                nanos: start.subsec_nanos() as i32,
            }),
            time_to_last_rx_byte: since(stream.request_end),
            time_to_last_upstream_tx_byte: since(stream.request_sent),
            time_to_first_upstream_rx_byte: since(stream.upstream_first_byte),
            time_to_last_downstream_tx_byte: since(end.filter(|_| !is_tcp)),
            duration: since(end),
            upstream_remote_address: stream.upstream_host.map(address),
            upstream_local_address: stream.upstream_local.map(address),
            upstream_cluster: stream.cluster.as_deref().unwrap_or_default().to_owned(),
            response_flags: flags(context),
            metadata: (!metadata.is_empty())
                .then_some(core::Metadata { filter_metadata: metadata, ..core::Metadata::default() }),
            upstream_transport_failure_reason: stream
                .upstream_failure
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            route_name: stream.route.as_deref().unwrap_or_default().to_owned(),
            upstream_request_attempt_count: stream.attempts,
            connection_termination_details: stream
                .connection_termination_details
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            stream_id: context
                .request
                .map_or_else(String::new, |head| head.headers.get(&REQUEST_ID).map(text).unwrap_or_default()),
            intermediate_log_entry: !ended,
            filter_state_objects: self.objects.iter().filter_map(|key| object(context, key)).collect(),
            custom_tags: self
                .tags
                .iter()
                .filter_map(|tag| Some((tag.name.to_string(), tag.source.value(context)?)))
                .collect(),
            downstream_wire_bytes_sent: near.sent,
            downstream_wire_bytes_received: near.received,
            upstream_wire_bytes_sent: far.sent,
            upstream_wire_bytes_received: far.received,
            access_log_type: kind(context.occasion).into(),
            ..proto::AccessLogCommon::default()
        }
    }

    fn tls(&self, context: &LogContext<'_>) -> Option<proto::TlsProperties> {
        let connection = context.connection;
        let sni = connection.sni.as_deref().unwrap_or_default();
        let ja3 = connection.fingerprints.as_ref().and_then(|found| found.ja3.clone()).unwrap_or_default();
        let Some(info) = connection.tls.as_deref() else {
            return (!sni.is_empty() || !ja3.is_empty()).then(|| proto::TlsProperties {
                tls_sni_hostname: sni.to_owned(),
                ja3_fingerprint: ja3,
                ..proto::TlsProperties::default()
            });
        };
        let names = |uris: &[String]| {
            let name = |uri: &String| tls::certificate_properties::SubjectAltName {
                san: Some(tls::certificate_properties::subject_alt_name::San::Uri(uri.clone())),
            };
            uris.iter().map(name).collect()
        };
        let local: Vec<String> = info.local_id.iter().map(|id| id.to_string()).collect();
        Some(proto::TlsProperties {
            tls_version: match info.version {
                "TLSv1.2" => tls::TlsVersion::TlSv12,
                "TLSv1.3" => tls::TlsVersion::TlSv13,
                _ => tls::TlsVersion::VersionUnspecified,
            }
            .into(),
            tls_cipher_suite: cipher(info),
            tls_sni_hostname: sni.to_owned(),
            ja3_fingerprint: ja3,
            tls_session_id: hex(&info.session_id),
            local_certificate_properties: Some(tls::CertificateProperties {
                subject_alt_name: names(&local),
                ..tls::CertificateProperties::default()
            }),
            peer_certificate_properties: Some(tls::CertificateProperties {
                subject_alt_name: names(&info.peer_uri_sans),
                subject: info.peer_subject.clone(),
                ..tls::CertificateProperties::default()
            }),
        })
    }
}

/// The number of the cipher suite (IANA's, TLS Cipher Suites); the names are OpenSSL's.
fn cipher(info: &TlsInfo) -> Option<u32> {
    Some(match info.cipher {
        "TLS_AES_128_GCM_SHA256" => 0x1301,
        "TLS_AES_256_GCM_SHA384" => 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256" => 0x1303,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => 0xC02B,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => 0xC02C,
        "ECDHE-RSA-AES128-GCM-SHA256" => 0xC02F,
        "ECDHE-RSA-AES256-GCM-SHA384" => 0xC030,
        "ECDHE-RSA-CHACHA20-POLY1305" => 0xCCA8,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => 0xCCA9,
        _ => return None,
    })
}

fn text(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Fields by name, those of one name joined.
fn chosen(names: &[HeaderName], fields: Option<&Headers>) -> BTreeMap<String, String> {
    let Some(fields) = fields else { return BTreeMap::new() };
    let found = names.iter().filter(|name| fields.contains(name));
    let joined = |name: &HeaderName| fields.get_all(name).map(text).collect::<Vec<_>>().join(",");
    found.map(|name| (name.as_str().to_owned(), joined(name))).collect()
}

fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn length(of: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: of.as_secs() as i64, nanos: of.subsec_nanos() as i32 }
}

/// An object of the filter state, packed as Envoy packs text.
fn object(context: &LogContext<'_>, key: &str) -> Option<(String, xds_protos::Any)> {
    let text = super::object(context, key)?.to_owned();
    let value = xds_protos::prost::Message::encode_to_vec(&text);
    let type_url = "type.googleapis.com/google.protobuf.StringValue".to_owned();
    Some((key.to_owned(), xds_protos::Any { type_url, value: value.into() }))
}

fn kind(occasion: LogType) -> proto::AccessLogType {
    match occasion {
        LogType::NotSet => proto::AccessLogType::NotSet,
        LogType::TcpConnectionEnd => proto::AccessLogType::TcpConnectionEnd,
        LogType::DownstreamStart => proto::AccessLogType::DownstreamStart,
        LogType::DownstreamPeriodic => proto::AccessLogType::DownstreamPeriodic,
        LogType::DownstreamEnd => proto::AccessLogType::DownstreamEnd,
    }
}

fn flags(context: &LogContext<'_>) -> Option<proto::ResponseFlags> {
    use proto::response_flags::{Unauthorized, unauthorized::Reason};
    let flags = context.stream.flags;
    if flags.is_empty() {
        return None;
    }
    let has = |flag| flags.has(flag);
    Some(proto::ResponseFlags {
        failed_local_healthcheck: has(Flag::FailedLocalHealthCheck),
        no_healthy_upstream: has(Flag::NoHealthyUpstream),
        upstream_request_timeout: has(Flag::UpstreamRequestTimeout),
        local_reset: has(Flag::LocalReset),
        upstream_remote_reset: has(Flag::UpstreamRemoteReset),
        upstream_connection_failure: has(Flag::UpstreamConnectionFailure),
        upstream_connection_termination: has(Flag::UpstreamConnectionTermination),
        upstream_overflow: has(Flag::UpstreamOverflow),
        no_route_found: has(Flag::NoRouteFound),
        delay_injected: has(Flag::DelayInjected),
        fault_injected: has(Flag::FaultInjected),
        rate_limited: has(Flag::RateLimited),
        unauthorized_details: has(Flag::UnauthorizedExternalService)
            .then(|| Unauthorized { reason: Reason::ExternalService.into() }),
        rate_limit_service_error: has(Flag::RateLimitServiceError),
        downstream_connection_termination: has(Flag::DownstreamConnectionTermination),
        upstream_retry_limit_exceeded: has(Flag::UpstreamRetryLimitExceeded),
        stream_idle_timeout: has(Flag::StreamIdleTimeout),
        invalid_envoy_request_headers: has(Flag::InvalidEnvoyRequestHeaders),
        downstream_protocol_error: has(Flag::DownstreamProtocolError),
        upstream_max_stream_duration_reached: has(Flag::UpstreamMaxStreamDurationReached),
        no_filter_config_found: has(Flag::NoFilterConfigFound),
        duration_timeout: has(Flag::DurationTimeout),
        upstream_protocol_error: has(Flag::UpstreamProtocolError),
        no_cluster_found: has(Flag::NoClusterFound),
        overload_manager: has(Flag::OverloadManager),
        dns_resolution_failure: has(Flag::DnsResolutionFailed),
        downstream_remote_reset: has(Flag::DownstreamRemoteReset),
        ..proto::ResponseFlags::default()
    })
}
