//! `health_checks`.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use xds_protos::envoy::config::cluster::v3 as pb;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::core::v3::health_check as hc;
use xds_protos::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use xds_protos::envoy::r#type::v3 as ty;

use super::{HttpMode, duration};
use crate::cluster::endpoint::Metadata;
use crate::cluster::health::{AddHeader, GrpcCheck, HealthCheck, HttpCheck, Intervals, Kind, TcpCheck};
use crate::state::ConfigError;

/// Compiles the check of a cluster that speaks `mode`. There can be one.
pub(super) fn health_check(proto: &pb::Cluster, mode: HttpMode) -> Result<Option<HealthCheck>, ConfigError> {
    match proto.health_checks.as_slice() {
        [] => Ok(None),
        [one] => compile(one, mode).map(Some).map_err(|e| e.at("health_checks[0]")),
        [_, ..] => Err(ConfigError::new("health_checks[1]", "a cluster has one health check, as in Envoy")),
    }
}

fn compile(proto: &core::HealthCheck, mode: HttpMode) -> Result<HealthCheck, ConfigError> {
    let time = |d: Option<&prost_types::Duration>, field: &str| duration(d, field);
    let needed = |d: Option<&prost_types::Duration>, field: &str| -> Result<Duration, ConfigError> {
        time(d, field)?.filter(|d| !d.is_zero()).ok_or_else(|| ConfigError::missing(field))
    };
    let interval = needed(proto.interval.as_ref(), "interval")?;
    let unhealthy = time(proto.unhealthy_interval.as_ref(), "unhealthy_interval")?.unwrap_or(interval);
    let no_traffic =
        time(proto.no_traffic_interval.as_ref(), "no_traffic_interval")?.unwrap_or(Duration::from_secs(60));
    let intervals = Intervals {
        healthy: interval,
        healthy_edge: time(proto.healthy_edge_interval.as_ref(), "healthy_edge_interval")?
            .unwrap_or(interval),
        unhealthy,
        unhealthy_edge: time(proto.unhealthy_edge_interval.as_ref(), "unhealthy_edge_interval")?
            .unwrap_or(unhealthy),
        no_traffic,
        no_traffic_healthy: time(proto.no_traffic_healthy_interval.as_ref(), "no_traffic_healthy_interval")?
            .unwrap_or(no_traffic),
    };
    let kind = match &proto.health_checker {
        Some(hc::HealthChecker::HttpHealthCheck(http)) => {
            Kind::Http(Box::new(self::http(http).map_err(|e| e.at("http_health_check"))?))
        }
        Some(hc::HealthChecker::TcpHealthCheck(tcp)) => {
            let path = |e: ConfigError| e.at("tcp_health_check");
            Kind::Tcp(TcpCheck {
                send: tcp
                    .send
                    .as_ref()
                    .map(payload)
                    .transpose()
                    .map_err(|e| path(e.at("send")))?
                    .unwrap_or_default(),
                receive: payloads(&tcp.receive).map_err(path)?,
            })
        }
        Some(hc::HealthChecker::GrpcHealthCheck(grpc)) => {
            if mode != HttpMode::Http2 {
                let message = "goes by HTTP/2, which this cluster does not speak; set http2_protocol_options";
                return Err(ConfigError::new("grpc_health_check", message));
            }
            Kind::Grpc(GrpcCheck {
                service: grpc.service_name.clone(),
                authority: grpc.authority.clone(),
                metadata: additions(&grpc.initial_metadata)
                    .map_err(|e| e.at("grpc_health_check.initial_metadata"))?,
            })
        }
        Some(hc::HealthChecker::CustomHealthCheck(custom)) => {
            let what = format!("the health checker {}", custom.name);
            return Err(ConfigError::unsupported("custom_health_check", what));
        }
        None => return Err(ConfigError::missing("http_health_check, tcp_health_check or grpc_health_check")),
    };
    let threshold = |n: Option<u32>, field: &str| n.ok_or_else(|| ConfigError::missing(field));
    Ok(HealthCheck {
        kind,
        timeout: needed(proto.timeout.as_ref(), "timeout")?,
        unhealthy_threshold: threshold(proto.unhealthy_threshold, "unhealthy_threshold")?,
        healthy_threshold: threshold(proto.healthy_threshold, "healthy_threshold")?,
        initial_jitter: time(proto.initial_jitter.as_ref(), "initial_jitter")?.unwrap_or_default(),
        interval_jitter: time(proto.interval_jitter.as_ref(), "interval_jitter")?.unwrap_or_default(),
        interval_jitter_percent: proto.interval_jitter_percent,
        intervals,
        reuse_connection: proto.reuse_connection.unwrap_or(true),
        alpn: proto
            .tls_options
            .iter()
            .flat_map(|t| &t.alpn_protocols)
            .map(|name| name.clone().into_bytes())
            .collect(),
        transport: proto
            .transport_socket_match_criteria
            .clone()
            .and_then(|criteria| Metadata::new([("envoy.transport_socket_match".to_owned(), criteria)])),
        log_failures: proto.always_log_health_check_failures,
        log_successes: proto.always_log_health_check_success,
        logs: logs(proto)?,
    })
}

fn logs(proto: &core::HealthCheck) -> Result<Vec<std::path::PathBuf>, ConfigError> {
    #[allow(deprecated, reason = "control planes may still send it")]
    let old = &proto.event_log_path;
    let mut paths = Vec::new();
    if !old.is_empty() {
        paths.push(old.into());
    }
    for (i, logger) in proto.event_logger.iter().enumerate() {
        let path = format!("event_logger[{i}].typed_config");
        let any = logger.typed_config.as_ref().ok_or_else(|| ConfigError::missing(path.clone()))?;
        let sink: HealthCheckEventFileSink =
            any.unpack().map_err(|e| ConfigError::new(path, e.to_string()))?;
        paths.push(sink.event_log_path.into());
    }
    Ok(paths)
}

fn http(proto: &hc::HttpHealthCheck) -> Result<HttpCheck, ConfigError> {
    if proto.path.is_empty() {
        return Err(ConfigError::missing("path"));
    }
    let method = match proto.method() {
        core::RequestMethod::MethodUnspecified | core::RequestMethod::Get => Method::GET,
        core::RequestMethod::Head => Method::HEAD,
        core::RequestMethod::Post => Method::POST,
        core::RequestMethod::Put => Method::PUT,
        core::RequestMethod::Delete => Method::DELETE,
        core::RequestMethod::Options => Method::OPTIONS,
        core::RequestMethod::Trace => Method::TRACE,
        core::RequestMethod::Patch => Method::PATCH,
        core::RequestMethod::Connect => {
            return Err(ConfigError::new("method", "a health check cannot be a CONNECT"));
        }
    };
    let send = proto.send.as_ref().map(payload).transpose().map_err(|e| e.at("send"))?.unwrap_or_default();
    if !send.is_empty() && !matches!(method, Method::POST | Method::PUT | Method::PATCH | Method::OPTIONS) {
        let message = format!("{method} takes no body; set method to POST, PUT, PATCH or OPTIONS");
        return Err(ConfigError::new("send", message));
    }
    let mut expected = ranges(&proto.expected_statuses, "expected_statuses")?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    let remove = proto.request_headers_to_remove.iter().enumerate().map(|(i, name)| {
        HeaderName::try_from(name.as_str()).map_err(|_| {
            ConfigError::new(
                format!("request_headers_to_remove[{i}]"),
                format!("{name:?} is not a header's name"),
            )
        })
    });
    Ok(HttpCheck {
        host: proto.host.clone(),
        path: proto.path.clone().into(),
        method,
        http2: proto.codec_client_type() == ty::CodecClientType::Http2,
        expected,
        retriable: ranges(&proto.retriable_statuses, "retriable_statuses")?,
        add: additions(&proto.request_headers_to_add).map_err(|e| e.at("request_headers_to_add"))?,
        remove: remove.collect::<Result<_, _>>()?,
        send,
        receive: payloads(&proto.receive)?,
        buffer: match proto.response_buffer_size {
            None => 1024,
            // All of it, as far as memory goes.
            Some(0) => 1 << 20,
            Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        },
    })
}

fn ranges(proto: &[ty::Int64Range], field: &str) -> Result<Vec<Range<u16>>, ConfigError> {
    proto
        .iter()
        .enumerate()
        .map(|(i, range)| {
            let ok = range.start < range.end && range.start >= 100 && range.end <= 600;
            match (u16::try_from(range.start), u16::try_from(range.end)) {
                (Ok(start), Ok(end)) if ok => Ok(start..end),
                _ => Err(ConfigError::new(
                    format!("{field}[{i}]"),
                    "must be a range of statuses, start below end, from 100 to 600 exclusive",
                )),
            }
        })
        .collect()
}

fn additions(proto: &[core::HeaderValueOption]) -> Result<Vec<AddHeader>, ConfigError> {
    use core::header_value_option::HeaderAppendAction as A;
    proto
        .iter()
        .enumerate()
        .map(|(i, option)| {
            let header = option.header.clone().unwrap_or_default();
            let name = HeaderName::try_from(header.key.as_str()).map_err(|_| {
                ConfigError::new(
                    format!("[{i}].header.key"),
                    format!("{:?} is not a header's name", header.key),
                )
            })?;
            let raw = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
            if raw.contains(&b'%') {
                let message = "must be plain: there is no request whose fields could stand in it";
                return Err(ConfigError::new(format!("[{i}].header.value"), message));
            }
            let value = HeaderValue::from_bytes(raw)
                .map_err(|_| ConfigError::new(format!("[{i}].header.value"), "is not a header's value"))?;
            #[allow(deprecated, reason = "control planes may still send it")]
            let replaces = option.append == Some(false);
            let action = option.append_action();
            Ok(AddHeader {
                name,
                value,
                append: action == A::AppendIfExistsOrAdd && !replaces,
                if_absent: action == A::AddIfAbsent,
                if_present: action == A::OverwriteIfExists,
            })
        })
        .collect()
}

fn payloads(proto: &[hc::Payload]) -> Result<Vec<Bytes>, ConfigError> {
    let one = |(i, p): (usize, &hc::Payload)| payload(p).map_err(|e| e.at(format!("receive[{i}]")));
    proto.iter().enumerate().map(one).collect()
}

fn payload(proto: &hc::Payload) -> Result<Bytes, ConfigError> {
    match &proto.payload {
        Some(hc::payload::Payload::Binary(bytes)) => Ok(bytes.to_vec().into()),
        Some(hc::payload::Payload::Text(text)) => {
            let digits = text.as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
            match bytes {
                Some(bytes) if digits.len().is_multiple_of(2) && !bytes.is_empty() => Ok(bytes.into()),
                _ => Err(ConfigError::new("text", "must be bytes in hexadecimal, such as 50494e47")),
            }
        }
        None => Err(ConfigError::missing("text or binary")),
    }
}
