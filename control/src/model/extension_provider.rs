//! Extension providers of MeshConfig: whom proxies ask whether a request may pass (AuthorizationPolicy, CUSTOM), where
//! requests are logged, and who gets spans (Telemetry).

use serde::Deserialize;

use super::tracing::{OpenTelemetry, Zipkin};
use super::values::{Labels, Timespan};

/// Somebody whom policies name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// The name by which policies know it.
    pub name: String,
    /// It is asked by HTTP, request by request.
    pub envoy_ext_authz_http: Option<ExtAuthzHttp>,
    /// It is asked by gRPC (`envoy.service.auth.v3.Authorization`), requests and connections.
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    /// Requests are logged to a file.
    pub envoy_file_access_log: Option<FileAccessLog>,
    /// Requests are logged to a collector of OTLP.
    pub envoy_otel_als: Option<OtelAls>,
    /// Requests are logged to an access log service of Envoy's.
    pub envoy_http_als: Option<HttpAls>,
    /// Connections are.
    pub envoy_tcp_als: Option<TcpAls>,
    /// Metrics are there to be fetched, as they always are.
    pub prometheus: Option<Prometheus>,
    /// It gets spans by OTLP.
    pub opentelemetry: Option<OpenTelemetry>,
    /// It gets spans as Zipkin does.
    pub zipkin: Option<Zipkin>,
}

impl ExtensionProvider {
    /// The service and port that logs go to; none where none do.
    pub fn logs_to(&self) -> Option<(&str, u16)> {
        let otel = self.envoy_otel_als.as_ref().map(|a| (a.service.as_str(), a.port));
        let http = self.envoy_http_als.as_ref().map(|a| (a.service.as_str(), a.port));
        let tcp = self.envoy_tcp_als.as_ref().map(|a| (a.service.as_str(), a.port));
        otel.or(http).or(tcp)
    }
}

/// Metrics that are fetched: there is nothing to say about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Prometheus {}

/// A file that requests are logged to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileAccessLog {
    /// Where it is; `/dev/stdout` by default.
    pub path: String,
    /// How a line is written; Istio's text by default.
    pub log_format: Option<LogFormat>,
    /// What is absent is left out.
    pub omit_empty_values: bool,
}

/// A collector that requests are logged to by OTLP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OtelAls {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What the log is called there.
    pub log_name: String,
    /// The body of records, Istio's text by default, and their attributes.
    pub log_format: Option<LogFormat>,
}

/// An access log service that requests are logged to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpAls {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What the log is called there.
    pub log_name: String,
    /// Objects of the filter state that it is told; the peers by default.
    pub filter_state_objects_to_log: Vec<String>,
    /// Header fields of requests that it is told.
    pub additional_request_headers_to_log: Vec<String>,
    /// Header fields of answers.
    pub additional_response_headers_to_log: Vec<String>,
    /// Their trailers.
    pub additional_response_trailers_to_log: Vec<String>,
}

/// An access log service that connections are logged to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpAls {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What the log is called there.
    pub log_name: String,
    /// Objects of the filter state that it is told; the peers by default.
    pub filter_state_objects_to_log: Vec<String>,
}

/// How a line is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogFormat {
    /// As this text, with Envoy's operators.
    pub text: String,
    /// As an object of JSON with these fields.
    pub labels: Labels,
}

/// One that is asked by HTTP: status 200 is a yes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzHttp {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// How long its answer is waited for; unset means ten minutes.
    pub timeout: Option<Timespan>,
    /// What stands before the path of a request when it is asked about.
    pub path_prefix: String,
    /// Requests pass when it gives no answer.
    pub fail_open: bool,
    /// The status of the answer where it gives none; 403 unless set.
    pub status_on_error: String,
    /// Older name of `include_request_headers_in_check`, for where that is not given.
    pub include_headers_in_check: Vec<String>,
    /// Header fields of the request that it is told: a name, or one end of it and `*`.
    pub include_request_headers_in_check: Vec<String>,
    /// Header fields that it is told beside, and in the place of the request's own.
    pub include_additional_headers_in_check: Labels,
    /// Whether it is told the request's body.
    pub include_request_body_in_check: Option<RequestBody>,
    /// Header fields of its yes that the application gets.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Header fields of its no that the client gets, beside the usual ones; all of them where none is named.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Header fields of its yes that the client gets.
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// One that is asked by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzGrpc {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// How long its answer is waited for; unset means ten minutes.
    pub timeout: Option<Timespan>,
    /// Requests pass when it gives no answer.
    pub fail_open: bool,
    /// The status of the answer where it gives none; 403 unless set.
    pub status_on_error: String,
    /// Whether it is told the request's body.
    pub include_request_body_in_check: Option<RequestBody>,
}

/// How much of a request's body is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestBody {
    /// At most so many bytes are kept for it.
    pub max_request_bytes: u32,
    /// Of a longer body its beginning is told; else the answer is 413.
    pub allow_partial_message: bool,
    /// As bytes, and not as text (gRPC).
    pub pack_as_bytes: bool,
}
