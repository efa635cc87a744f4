//! MeshConfig's extension providers.

use xds_protos::envoy::r#type::v3::StatusCode;

use super::super::diagnostic::Findings;
use super::telemetry::format;
use super::{host_form, period, port};
use crate::model::extension_provider::{
    ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, FileAccessLog, HttpAls, LogFormat, RequestBody,
};
use crate::model::tracing::{JAEGER_PORT, OTLP_GRPC_PORT, OTLP_HTTP_PORT, OpenTelemetry, Zipkin};

pub(super) fn extension_providers(findings: &mut Findings, providers: &[ExtensionProvider]) {
    for (index, provider) in providers.iter().enumerate() {
        let path = format!("extensionProviders[{index}]");
        if provider.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name it, so that policies can");
        } else if providers[..index].iter().any(|other| other.name == provider.name) {
            let reason = format!("{:?} is another's name already", provider.name);
            findings.error(format!("{path}.name"), reason, "rename one of the two");
        }
        let kinds = usize::from(provider.envoy_ext_authz_http.is_some())
            + usize::from(provider.envoy_ext_authz_grpc.is_some())
            + usize::from(provider.envoy_file_access_log.is_some())
            + usize::from(provider.envoy_otel_als.is_some())
            + usize::from(provider.envoy_http_als.is_some())
            + usize::from(provider.envoy_tcp_als.is_some())
            + usize::from(provider.prometheus.is_some())
            + usize::from(provider.opentelemetry.is_some())
            + usize::from(provider.zipkin.is_some());
        let help = "give one of envoyExtAuthzHttp, envoyExtAuthzGrpc, envoyFileAccessLog, envoyOtelAls, envoyHttpAls, envoyTcpAls, \
            prometheus, opentelemetry and zipkin";
        match kinds {
            0 => findings.error(&path, "does not say what it is", help),
            1 => {}
            _ => findings.error(&path, "is several things", help),
        }
        if let Some(given) = &provider.envoy_ext_authz_http {
            http(findings, &format!("{path}.envoyExtAuthzHttp"), given);
        }
        if let Some(given) = &provider.envoy_ext_authz_grpc {
            grpc(findings, &format!("{path}.envoyExtAuthzGrpc"), given);
        }
        if let Some(given) = &provider.opentelemetry {
            opentelemetry(findings, &format!("{path}.opentelemetry"), given);
        }
        if let Some(given) = &provider.zipkin {
            zipkin(findings, &format!("{path}.zipkin"), given);
        }
        if let Some(given) = &provider.envoy_file_access_log {
            file(findings, &format!("{path}.envoyFileAccessLog"), given);
        }
        if let Some(given) = &provider.envoy_otel_als {
            place(findings, &format!("{path}.envoyOtelAls"), &given.service, given.port);
            log_format(findings, &format!("{path}.envoyOtelAls"), given.log_format.as_ref());
        }
        if let Some(given) = &provider.envoy_http_als {
            http_als(findings, &format!("{path}.envoyHttpAls"), given);
        }
        if let Some(given) = &provider.envoy_tcp_als {
            place(findings, &format!("{path}.envoyTcpAls"), &given.service, given.port);
        }
    }
}

fn opentelemetry(findings: &mut Findings, path: &str, provider: &OpenTelemetry) {
    place(findings, path, &provider.service, provider.port);
    jaeger(findings, &format!("{path}.port"), provider.port);
    if provider.http.is_some() && provider.grpc.is_some() {
        findings.error(format!("{path}.grpc"), "stands beside http", "give one of the two");
    }
    let mut fields = Vec::new();
    if let Some(http) = &provider.http {
        period(findings, &format!("{path}.http.timeout"), http.timeout);
        if !http.path.starts_with('/') {
            let reason = format!("{:?} does not begin with a slash", http.path);
            findings.error(format!("{path}.http.path"), reason, "write /v1/traces");
        }
        fields.extend(http.headers.iter().enumerate().map(|(i, f)| (format!("{path}.http.headers[{i}]"), f)));
    }
    if let Some(grpc) = &provider.grpc {
        period(findings, &format!("{path}.grpc.timeout"), grpc.timeout);
        let all = grpc.initial_metadata.iter().enumerate();
        fields.extend(all.map(|(i, f)| (format!("{path}.grpc.initialMetadata[{i}]"), f)));
    }
    for (path, field) in fields {
        let fits = http::HeaderName::from_bytes(field.name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(&field.value).is_ok();
        if !fits {
            findings.error(path, "not a header field", "give a name and a value that HTTP can carry");
        }
    }
}

fn zipkin(findings: &mut Findings, path: &str, provider: &Zipkin) {
    place(findings, path, &provider.service, provider.port);
    jaeger(findings, &format!("{path}.port"), provider.port);
    if !provider.path.is_empty() && !provider.path.starts_with('/') {
        let reason = format!("{:?} does not begin with a slash", provider.path);
        findings.error(format!("{path}.path"), reason, "write /PATH, or leave it out for /api/v2/spans");
    }
}

/// Collectors took Jaeger's own format at one port, which neither Envoy nor Weft speaks.
pub(super) fn jaeger(findings: &mut Findings, path: &str, port: u16) {
    if port == JAEGER_PORT {
        let reason = format!(
            "port {JAEGER_PORT} takes Jaeger's Thrift, which no proxy sends any more: spans go to the same host by OTLP, \
             over gRPC at port {OTLP_GRPC_PORT} (where http is given, at {OTLP_HTTP_PORT})"
        );
        let help = "write the port of OTLP, and see that the host has it; Tempo and Jaeger take it";
        findings.warn(path, reason, help);
    }
}

fn file(findings: &mut Findings, path: &str, provider: &FileAccessLog) {
    if !provider.path.is_empty() && !provider.path.starts_with('/') {
        let reason = format!("{:?} is no absolute path", provider.path);
        findings.error(format!("{path}.path"), reason, "write /PATH, or leave it out for /dev/stdout");
    }
    log_format(findings, path, provider.log_format.as_ref());
    if provider.log_format.as_ref().is_some_and(|format| format.text.is_empty() == format.labels.is_empty()) {
        findings.error(
            format!("{path}.logFormat"),
            "is neither a text nor labels, or both",
            "give one of text and labels",
        );
    }
}

fn log_format(findings: &mut Findings, path: &str, given: Option<&LogFormat>) {
    let Some(given) = given else { return };
    format(findings, &format!("{path}.logFormat.text"), &given.text);
    for (name, value) in &given.labels {
        format(findings, &format!("{path}.logFormat.labels.{name}"), value);
    }
}

fn http_als(findings: &mut Findings, path: &str, provider: &HttpAls) {
    place(findings, path, &provider.service, provider.port);
    for (name, list) in [
        ("additionalRequestHeadersToLog", &provider.additional_request_headers_to_log),
        ("additionalResponseHeadersToLog", &provider.additional_response_headers_to_log),
        ("additionalResponseTrailersToLog", &provider.additional_response_trailers_to_log),
    ] {
        for (index, field) in list.iter().enumerate() {
            if http::HeaderName::from_bytes(field.as_bytes()).is_err() {
                let reason = format!("{field:?} is no header name");
                findings.error(format!("{path}.{name}[{index}]"), reason, "write a name, such as x-user");
            }
        }
    }
}

fn http(findings: &mut Findings, path: &str, provider: &ExtAuthzHttp) {
    place(findings, path, &provider.service, provider.port);
    period(findings, &format!("{path}.timeout"), provider.timeout);
    status(findings, path, &provider.status_on_error);
    body(findings, path, provider.include_request_body_in_check.as_ref());
    if !provider.path_prefix.is_empty() && !provider.path_prefix.starts_with('/') {
        let reason = format!("{:?} does not begin with a slash", provider.path_prefix);
        findings.error(format!("{path}.pathPrefix"), reason, "write /PATH");
    }
    for (name, list) in [
        ("includeHeadersInCheck", &provider.include_headers_in_check),
        ("includeRequestHeadersInCheck", &provider.include_request_headers_in_check),
        ("headersToUpstreamOnAllow", &provider.headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", &provider.headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", &provider.headers_to_downstream_on_allow),
    ] {
        for (index, pattern) in list.iter().enumerate() {
            let path = format!("{path}.{name}[{index}]");
            let inner = pattern.strip_prefix('*').or_else(|| pattern.strip_suffix('*')).unwrap_or(pattern);
            if inner.is_empty() || inner.contains('*') {
                let reason = format!("{pattern:?} names no header fields");
                findings.error(path, reason, "write a name, or one end of it and *, such as x-user-*");
            }
        }
    }
    for (name, value) in &provider.include_additional_headers_in_check {
        let fits = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(value).is_ok();
        if !fits {
            let path = format!("{path}.includeAdditionalHeadersInCheck.{name}");
            findings.error(path, "not a header field", "give a name and a value that HTTP can carry");
        }
    }
}

fn grpc(findings: &mut Findings, path: &str, provider: &ExtAuthzGrpc) {
    place(findings, path, &provider.service, provider.port);
    period(findings, &format!("{path}.timeout"), provider.timeout);
    status(findings, path, &provider.status_on_error);
    body(findings, path, provider.include_request_body_in_check.as_ref());
}

fn place(findings: &mut Findings, path: &str, service: &str, number: u16) {
    let host = service.split_once('/').map_or(service, |(_, host)| host);
    let fits = host_form(host, false).and_then(|()| match host.contains('*') {
        true => Err("a wildcard is nobody's name"),
        false => Ok(()),
    });
    if let Err(reason) = fits {
        let reason = format!("{service:?} is no service: {reason}");
        findings.error(format!("{path}.service"), reason, "write HOST or NAMESPACE/HOST, the host in full");
    }
    port(findings, &format!("{path}.port"), number);
}

fn status(findings: &mut Findings, path: &str, status: &str) {
    let known = |code: i32| code != 0 && StatusCode::try_from(code).is_ok();
    if !status.is_empty() && !status.parse().is_ok_and(known) {
        let reason = format!("{status:?} is no status that can be sent");
        findings.error(format!("{path}.statusOnError"), reason, "write a status code, such as \"503\"");
    }
}

fn body(findings: &mut Findings, path: &str, body: Option<&RequestBody>) {
    if body.is_some_and(|body| body.max_request_bytes == 0) {
        let path = format!("{path}.includeRequestBodyInCheck.maxRequestBytes");
        findings.error(path, "missing or 0", "say how many bytes of a body may be kept");
    }
}
