//! DestinationRule.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::labels::{dns_label, labels, selected};
use super::load_balancer::load_balancer;
use super::{annotations, export_to, host, period, period_or_zero, port};
use crate::model::destination_rule::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, H2UpgradePolicy, LoadBalancer,
    OutlierDetection, PortTrafficPolicy, TcpKeepalive, TrafficPolicy,
};
use crate::model::lookup::RETURN_WINDOW_ANNOTATION;
use crate::model::meta::Meta;
use crate::model::values::Timespan;

pub(in super::super) fn destination_rule(spec: &DestinationRule, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[RETURN_WINDOW_ANNOTATION]);
    if let Some(text) = meta.annotations.get(RETURN_WINDOW_ANNOTATION) {
        let path = format!("metadata.annotations.{RETURN_WINDOW_ANNOTATION}");
        match Timespan::parse(text) {
            Ok(window) => period(findings, &path, Some(window)),
            Err(error) => findings.error(path, error.to_string(), "write it such as 30s"),
        }
    }
    if spec.host.is_empty() {
        findings.error("spec.host", "missing", "name the service");
    } else {
        host(findings, "spec.host", &spec.host, false);
    }
    export_to(findings, &spec.export_to);
    if spec.workload_selector.is_some() && !(spec.export_to.is_empty() || spec.export_to == ["."]) {
        let help = "export it to \".\" only, or take the selector out";
        findings.error("spec.exportTo", "a rule with a workloadSelector is private to its namespace", help);
    }
    if let Some(selector) = &spec.workload_selector {
        selected(findings, "spec.workloadSelector.matchLabels", selector);
    }
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(findings, "spec.trafficPolicy", policy);
    }
    let subsets = spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    let by_name = spec.traffic_policy.iter().chain(subsets).any(|policy| {
        let ports = policy.port_level_settings.iter().filter_map(|settings| settings.tls.as_ref());
        policy.tls.iter().chain(ports).any(|tls| !tls.credential_name.is_empty())
    });
    if by_name && spec.workload_selector.is_none() {
        let help = "select the workloads that may have the Secret, with spec.workloadSelector";
        findings.warn("spec", "credentialName counts at gateways only where no workload is selected", help);
    }
    let mut names = HashSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        if subset.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the subset");
        } else if !names.insert(&subset.name) {
            findings.error(format!("{path}.name"), format!("{:?} is given twice", subset.name), "rename one");
        } else {
            dns_label(findings, &format!("{path}.name"), "a subset", &subset.name);
        }
        labels(findings, &format!("{path}.labels"), &subset.labels);
        if subset.labels.is_empty() {
            findings.warn(&path, "without labels it is every endpoint", "give the labels that set it apart");
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(findings, &format!("{path}.trafficPolicy"), policy);
        }
    }
}

fn traffic_policy(findings: &mut Findings, path: &str, policy: &TrafficPolicy) {
    if *policy == TrafficPolicy::default() {
        findings.error(path, "empty", "give it settings, or take it out");
    }
    blocks(
        findings,
        path,
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
    );
    if let Some(percent) = policy.retry_budget.and_then(|budget| budget.percent)
        && !(0.0..=100.0).contains(&percent.value)
    {
        findings.error(
            format!("{path}.retryBudget.percent"),
            format!("{} %", percent.value),
            "give 0 to 100",
        );
    }
    let mut ports = HashSet::new();
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{index}]");
        port(findings, &format!("{path}.port.number"), settings.port.number);
        if settings.port.number != 0 && !ports.insert(settings.port.number) {
            let reason = format!("port {} is given twice", settings.port.number);
            findings.warn(format!("{path}.port.number"), reason, "only the first counts; remove one");
        }
        let nothing = PortTrafficPolicy { port: settings.port, ..PortTrafficPolicy::default() };
        if *settings == nothing {
            let help = "give loadBalancer, connectionPool, outlierDetection or tls, or take the port out";
            findings.error(&path, "says nothing of the port", help);
        }
        blocks(
            findings,
            &path,
            settings.load_balancer.as_ref(),
            settings.connection_pool.as_ref(),
            settings.outlier_detection.as_ref(),
            settings.tls.as_ref(),
        );
    }
}

fn blocks(
    findings: &mut Findings,
    path: &str,
    balancer: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
) {
    if let Some(balancer) = balancer {
        load_balancer(findings, &format!("{path}.loadBalancer"), balancer, outlier.is_some());
    }
    if let Some(pool) = pool {
        connection_pool(findings, &format!("{path}.connectionPool"), pool);
    }
    if let Some(outlier) = outlier {
        outlier_detection(findings, &format!("{path}.outlierDetection"), outlier);
    }
    if let Some(tls) = tls {
        client_tls(findings, &format!("{path}.tls"), tls);
    }
}

/// Shared with Sidecar, whose inbound pools have the same form.
pub(super) fn connection_pool(findings: &mut Findings, path: &str, pool: &ConnectionPool) {
    if pool.tcp.is_none() && pool.http.is_none() {
        findings.error(path, "empty", "give tcp or http, or take it out");
    }
    if let Some(tcp) = &pool.tcp {
        let path = format!("{path}.tcp");
        period(findings, &format!("{path}.connectTimeout"), tcp.connect_timeout);
        period(findings, &format!("{path}.maxConnectionDuration"), tcp.max_connection_duration);
        period_or_zero(findings, &format!("{path}.idleTimeout"), tcp.idle_timeout);
        if let Some(keepalive) = &tcp.tcp_keepalive {
            tcp_keepalive(findings, &format!("{path}.tcpKeepalive"), keepalive);
        }
    }
    if let Some(http) = &pool.http {
        let path = format!("{path}.http");
        period(findings, &format!("{path}.idleTimeout"), http.idle_timeout);
        if http.use_client_protocol && http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) {
            let help = "keep one of useClientProtocol and h2UpgradePolicy: UPGRADE";
            findings.error(&path, "the client's protocol cannot be both kept and upgraded", help);
        }
        if let Some(pings) = http.http2_keep_alive {
            for (name, value) in [("interval", pings.interval), ("timeout", pings.timeout)] {
                let at = format!("{path}.http2KeepAlive.{name}");
                if value.is_none() {
                    findings.error(&at, "missing", "give both interval and timeout");
                }
                period(findings, &at, value);
            }
        }
    }
}

/// Shared with MeshConfig.
pub(super) fn tcp_keepalive(findings: &mut Findings, path: &str, keepalive: &TcpKeepalive) {
    for (name, value) in [("time", keepalive.time), ("interval", keepalive.interval)] {
        period(findings, &format!("{path}.{name}"), value);
        // The kernel counts in whole seconds.
        if value.is_some_and(|value| value.get().as_millis() > 0 && value.get().subsec_nanos() != 0) {
            findings.error(format!("{path}.{name}"), "TCP keep-alive counts whole seconds", "round it");
        }
    }
}

fn outlier_detection(findings: &mut Findings, path: &str, outlier: &OutlierDetection) {
    period(findings, &format!("{path}.interval"), outlier.interval);
    period(findings, &format!("{path}.baseEjectionTime"), outlier.base_ejection_time);
    for (name, value) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        if let Some(percent) = value.filter(|percent| *percent > 100) {
            findings.error(format!("{path}.{name}"), format!("{percent} is no percentage"), "give 0 to 100");
        }
    }
    if outlier.consecutive_local_origin_failures.is_some() && !outlier.split_external_local_origin_errors {
        findings.error(
            format!("{path}.consecutiveLocalOriginFailures"),
            "local failures are not counted apart",
            "set splitExternalLocalOriginErrors: true, or take the field out",
        );
    }
}

fn client_tls(findings: &mut Findings, path: &str, tls: &ClientTls) {
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
    ];
    if !tls.ca_crl.is_empty() && !tls.credential_name.is_empty() {
        let help = "keep the files, or put the roots of the server in the Secret and take the list out";
        findings.error(format!("{path}.caCrl"), "given beside credentialName", help);
    }
    if !tls.ca_crl.is_empty() && tls.insecure_skip_verify == Some(true) {
        findings.error(format!("{path}.caCrl"), "the server's certificate is not verified", "remove one");
    }
    match tls.mode {
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            for (name, value) in &files[..2] {
                if value.is_empty() {
                    let help = "give clientCertificate and privateKey, or credentialName";
                    findings.error(format!("{path}.{name}"), "MUTUAL needs a client certificate", help);
                }
            }
        }
        ClientTlsMode::Mutual => {
            for (name, value) in files {
                if !value.is_empty() {
                    let help = "keep either files or credentialName";
                    findings.error(format!("{path}.{name}"), "given beside credentialName", help);
                }
            }
        }
        ClientTlsMode::IstioMutual => {
            let more = [("caCrl", &tls.ca_crl), ("credentialName", &tls.credential_name)];
            for (name, value) in files.into_iter().chain(more) {
                if !value.is_empty() {
                    let help = "take it out: ISTIO_MUTUAL uses the workload's own certificate";
                    findings.error(format!("{path}.{name}"), "not allowed with ISTIO_MUTUAL", help);
                }
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Disable => {}
    }
}
