//! Brings names into full form once, at the door: short hosts, gateways of the own namespace, old spellings.

use super::diagnostic::Findings;
use crate::model::destination_rule::{DestinationRule, OutlierDetection, TrafficPolicy};
use crate::model::health_check::HealthCheck;
use crate::model::host::{DEFAULT_DOMAIN, resolve_short};
use crate::model::rate_limit::RateLimit;
use crate::model::sidecar::Sidecar;
use crate::model::traffic_management::TrafficManagement;
use crate::model::values::{Percent, StringMatch};
use crate::model::virtual_service::{HttpMirror, HttpRoute, VirtualService};

/// What VirtualServices call the sidecars of the mesh.
const MESH: &str = "mesh";

/// Header names have no case, and the service's host is a full name.
pub(super) fn rate_limit(spec: &mut RateLimit, namespace: &str) {
    if let Some(service) = &mut spec.service {
        service.host = full_host(&service.host, namespace);
    }
    for rule in &mut spec.rules {
        if let Some(given) = &mut rule.matches {
            given.headers = std::mem::take(&mut given.headers)
                .into_iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value))
                .collect();
        }
        rule.by.iter_mut().for_each(|key| key.header.make_ascii_lowercase());
    }
}

/// The service's host is a full name.
pub(super) fn health_check(spec: &mut HealthCheck, namespace: &str) {
    spec.host = full_host(&spec.host, namespace);
}

/// The service is a full name.
pub(super) fn traffic_management(spec: &mut TrafficManagement, namespace: &str) {
    if let Some(canary) = &mut spec.canary_deployment {
        canary.service = full_host(&canary.service, namespace);
    }
    if let Some(circuit) = &mut spec.circuit_breaker_status {
        circuit.service = full_host(&circuit.service, namespace);
    }
}

/// The service that takes what the mesh does not know is a full name.
pub(super) fn sidecar(spec: &mut Sidecar, namespace: &str) {
    let proxy = spec.outbound_traffic_policy.as_mut().and_then(|policy| policy.egress_proxy.as_mut());
    if let Some(proxy) = proxy.filter(|proxy| !proxy.host.is_empty()) {
        proxy.host = full_host(&proxy.host, namespace);
    }
}

pub(super) fn virtual_service(spec: &mut VirtualService, namespace: &str, findings: &mut Findings) {
    for host in &mut spec.hosts {
        *host = full_host(host, namespace);
    }
    // One without hosts is a delegate, and has no gateways of its own.
    if spec.gateways.is_empty() && !spec.hosts.is_empty() {
        spec.gateways.push(MESH.to_owned());
    }
    full_gateways(&mut spec.gateways, namespace);
    for (index, rule) in spec.http.iter_mut().enumerate() {
        old_rule(rule, &format!("spec.http[{index}]"), findings);
        if let Some(delegate) = rule.delegate.as_mut().filter(|delegate| delegate.namespace.is_empty()) {
            namespace.clone_into(&mut delegate.namespace);
        }
        for mirror in &mut rule.mirrors {
            mirror.destination.host = full_host(&mirror.destination.host, namespace);
        }
        for matching in &mut rule.matches {
            full_gateways(&mut matching.gateways, namespace);
            // HTTP field names have no case; proxies hold them in lower case.
            for headers in [&mut matching.headers, &mut matching.without_headers] {
                *headers = std::mem::take(headers)
                    .into_iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), value))
                    .collect();
            }
        }
        for route in &mut rule.route {
            route.destination.host = full_host(&route.destination.host, namespace);
        }
    }
    for rule in &mut spec.tls {
        rule.matches.iter_mut().for_each(|matching| full_gateways(&mut matching.gateways, namespace));
        for route in &mut rule.route {
            route.destination.host = full_host(&route.destination.host, namespace);
        }
    }
    for rule in &mut spec.tcp {
        rule.matches.iter_mut().for_each(|matching| full_gateways(&mut matching.gateways, namespace));
        for route in &mut rule.route {
            route.destination.host = full_host(&route.destination.host, namespace);
        }
    }
}

/// Fields that have newer forms: they become those.
fn old_rule(rule: &mut HttpRoute, path: &str, findings: &mut Findings) {
    let percent = |value: u32| Percent { value: f64::from(value) };
    if let Some(share) = rule.mirror_percent.take() {
        let at = format!("{path}.mirrorPercent");
        findings.warn(at, "deprecated; read as mirrorPercentage", "write mirrorPercentage: {value: 50}");
        rule.mirror_percentage.get_or_insert(percent(share));
    }
    if rule.mirrors.is_empty() {
        if let Some(destination) = rule.mirror.take() {
            rule.mirrors.push(HttpMirror { destination, percentage: rule.mirror_percentage.take() });
        } else if rule.mirror_percentage.take().is_some() {
            findings.error(
                format!("{path}.mirrorPercentage"),
                "there is no mirror",
                "give mirror, or take it out",
            );
        }
    } else if rule.mirror.is_some() || rule.mirror_percentage.is_some() {
        let help = "keep mirrors, which may hold several";
        findings.error(format!("{path}.mirror"), "both mirror and mirrors", help);
    }
    if let Some(delay) = rule.fault.as_mut().and_then(|fault| fault.delay.as_mut())
        && let Some(share) = delay.percent.take()
    {
        let at = format!("{path}.fault.delay.percent");
        findings.warn(at, "deprecated; read as percentage", "write percentage: {value: 50}");
        delay.percentage.get_or_insert(percent(share));
    }
    if let Some(policy) = &mut rule.cors_policy {
        let old = std::mem::take(&mut policy.allow_origin);
        if !old.is_empty() {
            let at = format!("{path}.corsPolicy.allowOrigin");
            findings.warn(
                at,
                "deprecated; read as allowOrigins",
                "write allowOrigins: [{exact: https://a.com}]",
            );
            if policy.allow_origins.is_empty() {
                policy.allow_origins.extend(old.into_iter().map(StringMatch::Exact));
            }
        }
    }
}

pub(super) fn destination_rule(spec: &mut DestinationRule, namespace: &str, findings: &mut Findings) {
    spec.host = full_host(&spec.host, namespace);
    if let Some(policy) = &mut spec.traffic_policy {
        old_spellings(policy, "spec.trafficPolicy", findings);
    }
    for (index, subset) in spec.subsets.iter_mut().enumerate() {
        if let Some(policy) = &mut subset.traffic_policy {
            old_spellings(policy, &format!("spec.subsets[{index}].trafficPolicy"), findings);
        }
    }
}

fn full_host(host: &str, namespace: &str) -> String {
    resolve_short(host, namespace, DEFAULT_DOMAIN)
}

/// `g` and `./g` become `namespace/g`, the old `g.ns.svc.cluster.local` becomes `ns/g`; `mesh` stays.
fn full_gateways(gateways: &mut [String], namespace: &str) {
    for gateway in gateways {
        if gateway == MESH {
            continue;
        }
        if let Some(name) = gateway.strip_prefix("./") {
            *gateway = format!("{namespace}/{name}");
        } else if !gateway.contains('/') {
            let mut labels = gateway.split('.');
            let name = labels.next().unwrap_or_default();
            let place = labels.next().unwrap_or(namespace);
            *gateway = format!("{place}/{name}");
        }
    }
}

fn old_spellings(policy: &mut TrafficPolicy, path: &str, findings: &mut Findings) {
    if let Some(outlier) = &mut policy.outlier_detection {
        old_outlier(outlier, &format!("{path}.outlierDetection"), findings);
    }
    for (index, settings) in policy.port_level_settings.iter_mut().enumerate() {
        if let Some(outlier) = &mut settings.outlier_detection {
            old_outlier(outlier, &format!("{path}.portLevelSettings[{index}].outlierDetection"), findings);
        }
    }
}

/// The old field counted gateway errors only.
fn old_outlier(outlier: &mut OutlierDetection, path: &str, findings: &mut Findings) {
    let Some(count) = outlier.consecutive_errors.take() else { return };
    findings.warn(
        format!("{path}.consecutiveErrors"),
        "deprecated; read as consecutiveGatewayErrors",
        "write consecutiveGatewayErrors (502, 503, 504) or consecutive5xxErrors (any 5xx)",
    );
    outlier.consecutive_gateway_errors.get_or_insert(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_with_their_namespace() {
        let mut names: Vec<String> =
            ["mesh", "g", "./g", "other/g", "g.infra.svc.cluster.local"].map(str::to_owned).to_vec();
        full_gateways(&mut names, "shop");
        assert_eq!(names, ["mesh", "shop/g", "shop/g", "other/g", "infra/g"]);
    }

    #[test]
    fn the_old_outlier_field_is_taken_with_a_warning() {
        let mut outlier = OutlierDetection { consecutive_errors: Some(7), ..OutlierDetection::default() };
        let mut findings = Findings::default();
        old_outlier(&mut outlier, "o", &mut findings);
        assert_eq!(outlier.consecutive_gateway_errors, Some(7));
        assert_eq!(findings.0.len(), 1);
    }
}
