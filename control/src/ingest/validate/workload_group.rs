//! WorkloadGroup.

use super::super::diagnostic::Findings;
use super::labels::labels;
use super::service_entry::entry;
use super::{annotations, port};
use crate::model::meta::Meta;
use crate::model::service_entry::WorkloadEntry;
use crate::model::workload_group::{GroupProbe, WorkloadGroup};

pub(in super::super) fn workload_group(spec: &WorkloadGroup, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    labels(findings, "spec.metadata.labels", &spec.metadata.labels);
    if spec.template == WorkloadEntry::default() {
        findings.error(
            "spec.template",
            "missing",
            "say what entries of the group have: serviceAccount, ports",
        );
        return;
    }
    if !spec.template.address.is_empty() {
        let help = "take it out; each workload brings its own";
        findings.error("spec.template.address", "the workloads of a group do not share an address", help);
    }
    if spec.template.service_account.is_empty() {
        let help = "name the service account by whose identity workloads may enter themselves";
        findings.error("spec.template.serviceAccount", "missing", help);
    }
    let checked = WorkloadEntry { address: "192.0.2.1".to_owned(), ..spec.template.clone() };
    entry(findings, "spec.template", &checked);
    if let Some(probe) = &spec.probe {
        self::probe(findings, probe);
    }
}

fn probe(findings: &mut Findings, probe: &GroupProbe) {
    for (name, number) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if number < 0 {
            findings.error(format!("spec.probe.{name}"), "is negative", "give 0 for the default, or more");
        }
    }
    let ways =
        [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    if ways.iter().filter(|given| **given).count() != 1 {
        let help = "give one of httpGet, tcpSocket, exec and grpc";
        findings.error("spec.probe", "asks in no way, or in several", help);
    }
    if let Some(get) = &probe.http_get {
        port(findings, "spec.probe.httpGet.port", get.port);
        for (index, header) in get.http_headers.iter().enumerate() {
            // Kubernetes takes fewer characters than HTTP does.
            let plain = header.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if header.name.is_empty() || !plain {
                let path = format!("spec.probe.httpGet.httpHeaders[{index}].name");
                let reason = format!("{:?} is not the name of a header", header.name);
                findings.error(path, reason, "use letters, digits and -");
            }
        }
        if !["", "HTTP", "HTTPS", "http", "https"].contains(&get.scheme.as_str()) {
            let reason = format!("{:?} is neither HTTP nor HTTPS", get.scheme);
            findings.error("spec.probe.httpGet.scheme", reason, "write HTTP or HTTPS");
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        port(findings, "spec.probe.tcpSocket.port", tcp.port);
    }
    if let Some(grpc) = &probe.grpc {
        port(findings, "spec.probe.grpc.port", grpc.port);
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        findings.error("spec.probe.exec.command", "empty", "give the command");
    }
}
