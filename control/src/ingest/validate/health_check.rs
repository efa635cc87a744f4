//! HealthCheck.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use super::super::diagnostic::Findings;
use super::{annotations, host, period, port};
use crate::model::health_check::{HealthCheck, HttpCheck};
use crate::model::meta::Meta;

pub(in super::super) fn health_check(spec: &HealthCheck, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    host(findings, "spec.host", &spec.host, false);
    if spec.host.contains('*') {
        findings.error("spec.host", "a wildcard is no service", "name one service");
    }
    let mut seen = HashSet::new();
    for (index, number) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port(findings, &path, *number);
        if !seen.insert(number) {
            findings.error(&path, format!("{number} is given twice"), "remove one");
        }
    }
    for (field, value) in [
        ("interval", spec.interval),
        ("unhealthyInterval", spec.unhealthy_interval),
        ("idleInterval", spec.idle_interval),
        ("timeout", spec.timeout),
    ] {
        period(findings, &format!("spec.{field}"), value);
    }
    for (field, value) in
        [("unhealthyThreshold", spec.unhealthy_threshold), ("healthyThreshold", spec.healthy_threshold)]
    {
        if value == Some(0) {
            findings.error(format!("spec.{field}"), "0 checks decide nothing", "give 1 or more");
        }
    }
    if spec.min_health_percent.is_some_and(|percent| percent > 100) {
        findings.error("spec.minHealthPercent", "a share is 100 at most", "give 0 to 100");
    }
    let kinds = [spec.http.is_some(), spec.grpc.is_some(), spec.tcp.is_some()];
    match kinds.iter().filter(|given| **given).count() {
        1 => {}
        0 => {
            let help = "give one of http: {path: /healthz}, grpc: {} and tcp: {}";
            findings.error("spec", "does not say how to check", help);
        }
        _ => findings.error("spec", "has several of http, grpc and tcp", "keep one: proxies make one check"),
    }
    if let Some(given) = &spec.http {
        http(findings, given);
    }
    if let Some(tcp) = &spec.tcp
        && tcp.receive.iter().any(String::is_empty)
    {
        findings.error("spec.tcp.receive", "an empty text is in every answer", "take it out");
    }
}

fn http(findings: &mut Findings, check: &HttpCheck) {
    if !check.path.starts_with('/') {
        let help = "write the path that is asked for, such as /healthz";
        findings.error("spec.http.path", "missing, or does not begin with a slash", help);
    } else if check.path.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '#') {
        findings.error(
            "spec.http.path",
            format!("{:?} is no path", check.path),
            "encode what is no part of one",
        );
    }
    if HeaderValue::from_str(&check.host).is_err() {
        findings.error("spec.http.host", format!("{:?} is no authority", check.host), "write a host name");
    }
    for (name, value) in &check.headers {
        let path = format!("spec.http.headers.{name}");
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            let help = "method, path and host have fields of their own";
            findings.error(&path, format!("{name:?} is no header field of its own"), help);
        } else if HeaderName::from_bytes(name.as_bytes()).is_err() {
            let reason = format!("{name:?} is not the name of a header");
            findings.error(&path, reason, "write it as in x-probe");
        }
        if HeaderValue::from_str(value).is_err() {
            findings.error(&path, "has characters that header fields do not have", "take them out");
        }
    }
}
