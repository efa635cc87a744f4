//! Istio's rules for each kind, beyond what the types say: one file per kind, and here what they share.
//!
//! Findings name the field; the line follows from it. Hosts are full names by now (see `normalize`).

mod acme_certificate;
mod across;
mod authorization_policy;
#[cfg(test)]
mod cases;
mod compression;
mod destination_rule;
mod extension_provider;
mod external_credential;
#[cfg(test)]
mod forms;
mod gateway;
mod gateway_api;
mod gateway_routes;
mod health_check;
mod ip_deny_list;
mod labels;
mod load_balancer;
mod mesh_config;
mod mesh_networks;
mod metric_definition;
mod peer_authentication;
mod proxy_config;
mod rate_limit;
mod request_authentication;
mod service;
mod service_entry;
mod service_mesh_config;
mod sidecar;
mod telemetry;
mod traffic_management;
mod virtual_service;
mod whole;
mod workload_group;

pub(super) use acme_certificate::acme_certificate;
pub(super) use across::across;
pub(super) use authorization_policy::authorization_policy;
pub(super) use compression::compression;
pub(super) use destination_rule::destination_rule;
pub(super) use external_credential::external_credential;
pub(super) use gateway::gateway;
pub(super) use gateway_api::{api_gateway, gateway_class, reference_grant};
pub(super) use gateway_routes::{grpc_route, http_route, tls_route};
pub(super) use health_check::health_check;
pub(super) use ip_deny_list::ip_deny_list;
pub(super) use mesh_config::mesh_config;
pub(super) use mesh_networks::mesh_networks;
pub(super) use metric_definition::metric_definition;
pub(super) use peer_authentication::peer_authentication;
pub(super) use proxy_config::proxy_config;
pub(super) use rate_limit::rate_limit;
pub(super) use request_authentication::request_authentication;
pub(super) use service::kubernetes_service;
pub(super) use service_entry::{service_entry, workload_entry};
pub(super) use service_mesh_config::service_mesh_config;
pub(super) use sidecar::sidecar;
pub(super) use telemetry::telemetry;
pub(super) use traffic_management::traffic_management;
pub(super) use virtual_service::virtual_service;
pub(super) use whole::{secrets_of_gateways, whole};
pub(super) use workload_group::workload_group;

use std::collections::HashSet;

use super::diagnostic::Findings;
use crate::model::authorization_policy::DRY_RUN_ANNOTATION;
use crate::model::meta::{Kind, Meta};
use crate::model::values::Timespan;

/// A host: a DNS name, or a wildcard whose `*` is the whole first label; an IP address where `address` allows it.
fn host(findings: &mut Findings, path: &str, host: &str, address: bool) {
    if let Err(reason) = host_form(host, address) {
        findings.error(
            path,
            format!("{host:?} is not a host: {reason}"),
            "write a DNS name such as api.example.com",
        );
    }
}

fn host_form(host: &str, address: bool) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("it is empty");
    }
    if address && host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if host == "*" {
        return Ok(());
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.contains('*') {
        return Err("a wildcard is allowed only as the whole first label, as in *.example.com");
    }
    if host.len() > 255 {
        return Err("it is longer than 255 characters");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("it has an empty label");
        }
        if label.len() > 63 {
            return Err("a label is longer than 63 characters");
        }
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Err("it has a character that DNS names do not have");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label begins or ends with a hyphen");
        }
    }
    Ok(())
}

fn port(findings: &mut Findings, path: &str, number: u16) {
    if number == 0 {
        findings.error(path, "a port is missing or 0", "give a port from 1 to 65535");
    }
}

/// A period that must be at least a millisecond, in whole milliseconds.
fn period(findings: &mut Findings, path: &str, value: Option<Timespan>) {
    let Some(value) = value else { return };
    if value.get().as_millis() == 0 {
        findings.error(path, format!("{value} is too short"), "give at least 1ms");
    } else if value.get().subsec_nanos() % 1_000_000 != 0 {
        findings.error(path, format!("{value} is too precise"), "round it to whole milliseconds");
    }
}

/// A period that may also be 0, which turns something off.
fn period_or_zero(findings: &mut Findings, path: &str, value: Option<Timespan>) {
    if value.is_some_and(|value| !value.get().is_zero()) {
        period(findings, path, value);
    }
}

/// Istio's `exportTo`: no repetition, and nothing beside `*` or `~`.
fn export_to(findings: &mut Findings, list: &[String]) {
    let mut seen = HashSet::new();
    for (index, entry) in list.iter().enumerate() {
        let path = format!("spec.exportTo[{index}]");
        if !matches!(entry.as_str(), "" | "." | "*" | "~") {
            labels::dns_label(findings, &path, "a namespace", entry);
        }
        if !seen.insert(entry) {
            findings.error(&path, format!("{entry:?} is given twice"), "remove one");
        }
        if matches!(entry.as_str(), "*" | "~") && list.len() > 1 {
            findings.error(&path, format!("{entry:?} stands beside other entries"), "give it alone");
        }
        if entry.is_empty() {
            findings.error(&path, "empty", "write a namespace, \".\" for this one or \"*\" for all");
        }
    }
}

/// Annotations of Weft's own that an object cannot have.
fn annotations(findings: &mut Findings, meta: &Meta, known: &[&str]) {
    for name in meta.annotations.keys().filter(|name| name.starts_with("weft.dev/")) {
        if !known.contains(&name.as_str()) {
            let help = match super::suggest::closest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None if known.is_empty() => format!("{} has none; take it out", meta.kind),
                None => format!("known are {}", known.join(" and ")),
            };
            findings.error(format!("metadata.annotations.{name}"), "unknown annotation of Weft's", help);
        }
    }
}

/// Annotations of Istio's that are not for whoever writes objects, or not for objects of this kind.
pub(super) fn istios_annotations(meta: &Meta, findings: &mut Findings) {
    if !meta.api_version.contains(".istio.io/") {
        return;
    }
    for name in meta.annotations.keys() {
        let path = || format!("metadata.annotations.{name}");
        if name.starts_with("internal.istio.io/") {
            findings.error(path(), "it is for the control plane's own objects", "take it out");
        } else if name == DRY_RUN_ANNOTATION && meta.kind != Kind::AuthorizationPolicy {
            let reason = format!("a {} cannot be tried", meta.kind);
            findings.error(path(), reason, "take it out; AuthorizationPolicies can");
        }
    }
}

/// A regular expression that both RE2 and the proxy take.
fn regex(findings: &mut Findings, path: &str, pattern: &str) {
    if pattern.len() > 1024 {
        findings.error(path, "a regular expression of more than 1024 characters", "shorten it");
    } else if let Err(error) = regex::Regex::new(pattern) {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or("it does not parse").trim().to_owned();
        findings.error(path, format!("not a regular expression (RE2 syntax): {reason}"), "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_leading_wildcards() {
        for good in ["a", "a.b.c", "*.b.c", "*", "a-b.c", "x_y.svc", "a.b."] {
            assert_eq!(host_form(good, false), Ok(()), "{good}");
        }
        for bad in ["", "a..b", "a.*.b", "*a.b", "a b", "-a.b", "http://a", "a:80"] {
            assert!(host_form(bad, false).is_err(), "{bad}");
        }
        assert!(host_form("10.0.0.1", true).is_ok());
        assert!(host_form("::1", true).is_ok());
    }

    #[test]
    fn periods_are_whole_milliseconds() {
        let count = |value: Timespan| {
            let mut findings = Findings::default();
            period(&mut findings, "p", Some(value));
            findings.0.len()
        };
        assert_eq!(count(Timespan::millis(1)), 0);
        assert_eq!(count(Timespan::default()), 1);
        assert_eq!(count(Timespan(std::time::Duration::from_micros(1500))), 1);
    }
}
