//! MeshConfig.

use super::super::diagnostic::Findings;
use super::extension_provider::{extension_providers, jaeger};
use super::load_balancer::locality_setting;
use super::telemetry::{format, sampling, span_tags};
use super::virtual_service::retries;
use super::{destination_rule, gateway_api, period, period_or_zero};
use crate::model::gateway::TlsVersion;
use crate::model::mesh_config::{AccessLogEncoding, MeshConfig};

pub(in super::super) fn mesh_config(spec: &MeshConfig, findings: &mut Findings) {
    if spec.trust_domain.is_empty() {
        findings.error("trustDomain", "empty", "name the trust domain, such as cluster.local");
    }
    let aliases = spec.trust_domain_aliases.iter().enumerate();
    let federated = spec.ca_certificates.iter().enumerate().flat_map(|(i, data)| {
        let domains = data.trust_domains.iter().enumerate();
        domains.map(move |(j, domain)| (format!("caCertificates[{i}].trustDomains[{j}]"), domain))
    });
    for (path, domain) in std::iter::once(("trustDomain".to_owned(), &spec.trust_domain))
        .chain(aliases.map(|(index, alias)| (format!("trustDomainAliases[{index}]"), alias)))
        .chain(federated)
    {
        // SPIFFE ID, section 2.1: lower-case letters, digits, dot, dash and underscore.
        let fits = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
        };
        if domain.len() > 255 || !domain.bytes().all(fits) {
            let help = "use lower-case letters, digits, dots, dashes and underscores";
            findings.error(path, format!("{domain:?} is no trust domain"), help);
        }
    }
    ca_certificates(spec, findings);
    extension_providers(findings, &spec.extension_providers);
    if spec.root_namespace.is_empty() {
        findings.error(
            "rootNamespace",
            "empty",
            "name the namespace of mesh-wide policies, such as istio-system",
        );
    }
    for (index, selector) in spec.discovery_selectors.iter().enumerate() {
        gateway_api::selector(findings, &format!("discoverySelectors[{index}]"), selector);
    }
    period(findings, "connectTimeout", Some(spec.connect_timeout));
    period(findings, "dnsRefreshRate", Some(spec.dns_refresh_rate));
    period_or_zero(findings, "protocolDetectionTimeout", Some(spec.protocol_detection_timeout));
    period_or_zero(findings, "defaultConfig.drainDuration", spec.default_config.drain_duration);
    period_or_zero(
        findings,
        "defaultConfig.terminationDrainDuration",
        spec.default_config.termination_drain_duration,
    );
    access_log(spec, findings);
    let tracing = &spec.default_config.tracing;
    sampling(findings, "defaultConfig.tracing.sampling", tracing.sampling);
    span_tags(findings, "defaultConfig.tracing.customTags", &tracing.custom_tags);
    if let Some(zipkin) = &tracing.zipkin {
        let path = "defaultConfig.tracing.zipkin.address";
        match zipkin.parts() {
            None => {
                let reason = format!("{:?} is no address", zipkin.address);
                findings.error(
                    path,
                    reason,
                    "write HOST:PORT, such as zipkin.istio-system.svc.cluster.local:9411",
                );
            }
            Some((_, port, _)) => jaeger(findings, path, port),
        }
    }
    if let Some(keepalive) = &spec.tcp_keepalive {
        destination_rule::tcp_keepalive(findings, "tcpKeepalive", keepalive);
    }
    if let Some(setting) = &spec.locality_lb_setting {
        locality_setting(findings, "localityLbSetting", setting);
    }
    if let Some(policy) = &spec.default_http_retry_policy {
        retries(findings, "defaultHttpRetryPolicy", policy);
    }
    if matches!(spec.mesh_mtls.min_protocol_version, TlsVersion::V1_0 | TlsVersion::V1_1) {
        let help = "use TLSV1_2 or TLSV1_3";
        findings.error("meshMTLS.minProtocolVersion", "TLS below 1.2 is not supported by Weft", help);
    }
}

/// How lines of access logs are written.
fn access_log(spec: &MeshConfig, findings: &mut Findings) {
    const PATH: &str = "accessLogFormat";
    let given = spec.access_log_format.as_str();
    match (spec.access_log_encoding, given) {
        (_, "") => {}
        (AccessLogEncoding::Text, _) => format(findings, PATH, given),
        (AccessLogEncoding::Json, _) => match serde_json::from_str::<serde_json::Map<_, _>>(given) {
            Ok(object) => {
                object.iter().for_each(|(key, value)| strings(findings, &format!("{PATH}.{key}"), value))
            }
            Err(error) => {
                let help = "write an object, such as {\"code\": \"%RESPONSE_CODE%\"}, or set accessLogEncoding: TEXT";
                findings.error(PATH, format!("is no object of JSON (accessLogEncoding): {error}"), help);
            }
        },
    }
}

fn strings(findings: &mut Findings, path: &str, value: &serde_json::Value) {
    match value {
        serde_json::Value::String(text) => format(findings, path, text),
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| strings(findings, &format!("{path}.{key}"), value));
        }
        serde_json::Value::Array(all) => {
            all.iter().enumerate().for_each(|(i, value)| strings(findings, &format!("{path}[{i}]"), value));
        }
        _ => {}
    }
}

/// Roots of other trust domains.
fn ca_certificates(spec: &MeshConfig, findings: &mut Findings) {
    let mut seen: Vec<&String> =
        std::iter::once(&spec.trust_domain).chain(&spec.trust_domain_aliases).collect();
    for (i, data) in spec.ca_certificates.iter().enumerate() {
        let at = |field: &str| format!("caCertificates[{i}].{field}");
        if data.trust_domains.is_empty() {
            let help = "name the trust domains whose roots these are; roots of the mesh's own domains come from its authority";
            findings.error(at("trustDomains"), "empty", help);
        }
        for (j, domain) in data.trust_domains.iter().enumerate() {
            if seen.contains(&domain) {
                let help = "a domain's roots are given once, and the mesh's own domains are its authority's";
                findings.error(
                    at(&format!("trustDomains[{j}]")),
                    format!("{domain:?} has roots already"),
                    help,
                );
            }
            seen.push(domain);
        }
        let url = &data.spiffe_bundle_url;
        match (data.pem.is_empty(), url.is_empty()) {
            (false, true) => {
                if let Err(error) = weft_certs::pem::certificates(data.pem.as_bytes()) {
                    findings.error(at("pem"), error.to_string(), "give the roots as PEM, CERTIFICATE blocks");
                }
            }
            (true, false) => {
                if !["https://", "http://", "file:///"].iter().any(|scheme| url.starts_with(scheme)) {
                    let help = "give a URL of https or http, or file:///PATH";
                    findings.error(at("spiffeBundleUrl"), format!("{url:?} is not such a URL"), help);
                }
            }
            _ => {
                let help = "give the roots as pem, or where their SPIFFE bundle is as spiffeBundleUrl";
                findings.error(at("pem"), "exactly one of pem and spiffeBundleUrl is needed", help);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ingest::load_str;

    #[test]
    fn formats_of_logs_that_no_proxy_compiles_are_refused() {
        let said = |settings: &str| {
            let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    ";
            let outcome = load_str("mesh.yaml", &format!("{map}{settings}\n"));
            outcome.errors().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(said("accessLogFormat: '%REQ(:PATH)% %RESPONSE_CODE%'"), "");
        assert_eq!(said(r#"{accessLogEncoding: JSON, accessLogFormat: '{"code": "%RESPONSE_CODE%"}'}"#), "");
        let provider = |kind: &str, format: &str| {
            format!(
                "extensionProviders: [{{name: x, {kind}: {{service: a.b, port: 1, logFormat: {format}}}}}]"
            )
            .replace(if kind == "envoyFileAccessLog" { "service: a.b, port: 1, " } else { "\0" }, "")
        };
        for (settings, words) in [
            (
                "accessLogFormat: '%REQUEST_PATH%'".to_owned(),
                "accessLogFormat: unknown command operator %REQUEST_PATH%",
            ),
            ("accessLogFormat: '%RESPONSE_CODES%'".to_owned(), "did you mean %RESPONSE_CODE%?"),
            (
                "{accessLogEncoding: JSON, accessLogFormat: '%RESPONSE_CODE%'}".to_owned(),
                "accessLogFormat: is no object of JSON",
            ),
            (
                r#"{accessLogEncoding: JSON, accessLogFormat: '{"a": {"b": ["%DURATION(x)%"]}}'}"#.to_owned(),
                "accessLogFormat.a.b[0]: command %DURATION%: takes no arguments",
            ),
            (
                provider("envoyFileAccessLog", "{labels: {a: '%X%'}}"),
                "extensionProviders[0].envoyFileAccessLog.logFormat.labels.a: unknown command",
            ),
            (
                provider("envoyOtelAls", "{text: '%START_TIME(%Q)%'}"),
                "extensionProviders[0].envoyOtelAls.logFormat.text: command %START_TIME%: takes %Y",
            ),
        ] {
            let said = said(&settings);
            assert!(said.contains(words), "{settings}: {said}");
        }
    }
}
