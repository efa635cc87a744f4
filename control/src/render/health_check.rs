//! Checks of endpoints (HealthCheck), as the cluster's `health_checks`.

use serde_json::{Value, json};

use super::seconds;
use crate::model::health_check::{GrpcCheck, HealthCheck, HttpCheck, StatusRange, TcpCheck};
use crate::model::values::Timespan;

/// How a cluster speaks to its endpoints, as far as it matters to a check.
pub(super) struct Spoken {
    /// It speaks HTTP/2 and nothing else.
    pub(super) http2: bool,
    /// Endpoints of the mesh are spoken to by mutual TLS.
    pub(super) mutual: bool,
}

/// Puts a check on a cluster.
pub(super) fn put(check: &HealthCheck, host: &str, spoken: &Spoken, cluster: &mut Value) {
    let or = |given: Option<Timespan>, other: Timespan| seconds(given.unwrap_or(other).get());
    let interval = check.interval.unwrap_or(Timespan::secs(10));
    let mut rendered = json!({
        "interval": seconds(interval.get()),
        "unhealthy_interval": or(check.unhealthy_interval, interval),
        // Envoy's own would be a minute, and nobody expects that of an interval that they have given.
        "no_traffic_interval": or(check.idle_interval, interval),
        "timeout": or(check.timeout, Timespan::secs(1)),
        "unhealthy_threshold": check.unhealthy_threshold.unwrap_or(3),
        "healthy_threshold": check.healthy_threshold.unwrap_or(2),
        // Many proxies that began together are not to ask together for ever.
        "interval_jitter_percent": 10,
    });
    // gRPC goes by HTTP/2, whatever the port is called.
    let http2 = spoken.http2 || check.grpc.is_some();
    if let Some(given) = &check.http {
        rendered["http_health_check"] = http(given, host, http2);
    } else if let Some(given) = &check.grpc {
        rendered["grpc_health_check"] = grpc(given, host);
    } else {
        rendered["tcp_health_check"] = tcp(&check.tcp.clone().unwrap_or_default());
    }
    // Sidecars know requests of the mesh by these names; without them they would be taken for bytes.
    if spoken.mutual && check.tcp.is_none() {
        let names = if http2 { ["istio-h2", "istio", "h2"] } else { ["istio-http/1.1", "istio", "http/1.1"] };
        rendered["tls_options"] = json!({"alpn_protocols": names});
    }
    cluster["health_checks"] = json!([rendered]);
    // An endpoint that is gone is gone, though its last check was good.
    cluster["ignore_health_on_host_removal"] = true.into();
    if let Some(percent) = check.min_health_percent {
        cluster["common_lb_config"]["healthy_panic_threshold"] = json!({"value": percent});
    }
}

fn http(check: &HttpCheck, host: &str, http2: bool) -> Value {
    let expected = match check.expected_statuses.as_slice() {
        [] => &[StatusRange(200, 200)],
        given => given,
    };
    let ranges: Vec<_> =
        expected.iter().map(|range| json!({"start": range.0, "end": u32::from(range.1) + 1})).collect();
    let mut rendered = json!({
        "host": if check.host.is_empty() { host } else { &check.host },
        "path": check.path,
        "method": check.method.as_str(),
        "expected_statuses": ranges,
        // Envoy would take an endpoint out at the first other answer, whatever the threshold.
        "retriable_statuses": [{"start": 100, "end": 600}],
        "codec_client_type": if http2 { "HTTP2" } else { "HTTP1" },
    });
    let fields = check.headers.iter().map(|(name, value)| {
        json!({"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
    });
    let fields: Vec<_> = fields.collect();
    if !fields.is_empty() {
        rendered["request_headers_to_add"] = fields.into();
    }
    rendered
}

fn grpc(check: &GrpcCheck, host: &str) -> Value {
    let authority = if check.authority.is_empty() { host } else { &check.authority };
    json!({"service_name": check.service_name, "authority": authority})
}

fn tcp(check: &TcpCheck) -> Value {
    // Envoy's texts are hexadecimal.
    let payload = |text: &str| {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        json!({"text": hex})
    };
    let mut rendered = json!({});
    if !check.send.is_empty() {
        rendered["send"] = payload(&check.send);
    }
    if !check.receive.is_empty() {
        rendered["receive"] = check.receive.iter().map(|text| payload(text)).collect();
    }
    rendered
}
