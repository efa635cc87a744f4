//! ServiceMeshConfig. What depends on other objects is found where it is expanded (`model::expand`).

use std::collections::HashSet;

use http::Method;

use super::super::diagnostic::Findings;
use super::{annotations, host, period};
use crate::model::meta::Meta;
use crate::model::service_mesh_config::{
    MeshObservability, MeshRule, MeshSecurityPolicy, MeshService, MeshTrafficPolicy, ServiceMeshConfig,
};

pub(in super::super) fn service_mesh_config(spec: &ServiceMeshConfig, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    if spec.services.is_empty() {
        findings.error("spec.services", "missing", "name at least one service");
    }
    let mut names = HashSet::new();
    for (index, service) in spec.services.iter().enumerate() {
        let path = format!("spec.services[{index}]");
        if !names.insert(&service.name) {
            findings.error(
                format!("{path}.name"),
                format!("{:?} is given twice", service.name),
                "remove one",
            );
        }
        self::service(findings, &path, service);
    }
}

fn service(findings: &mut Findings, path: &str, service: &MeshService) {
    host(findings, &format!("{path}.name"), &service.name, false);
    if service.name.contains('*') {
        findings.error(format!("{path}.name"), "a wildcard is no service", "name one service");
    }
    if let Some(policy) = &service.traffic_policy {
        traffic(findings, &format!("{path}.trafficPolicy"), policy);
    }
    if let Some(policy) = &service.security_policy {
        security(findings, &format!("{path}.securityPolicy"), policy);
    }
    if let Some(told) = &service.observability {
        observability(findings, &format!("{path}.observability"), told);
    }
}

fn traffic(findings: &mut Findings, path: &str, policy: &MeshTrafficPolicy) {
    if *policy == MeshTrafficPolicy::default() {
        findings.error(path, "empty", "give loadBalancer, connectionPool or circuitBreaker, or take it out");
    }
    let Some(breaker) = &policy.circuit_breaker else { return };
    let path = format!("{path}.circuitBreaker");
    for (field, value) in [("interval", breaker.interval), ("baseEjectionTime", breaker.base_ejection_time)] {
        period(findings, &format!("{path}.{field}"), value);
    }
    for (field, value) in [
        ("maxEjectionPercent", breaker.max_ejection_percent),
        ("minHealthPercent", breaker.min_health_percent),
    ] {
        if value.is_some_and(|percent| percent > 100) {
            findings.error(format!("{path}.{field}"), "a share is 100 at most", "give 0 to 100");
        }
    }
}

fn security(findings: &mut Findings, path: &str, policy: &MeshSecurityPolicy) {
    for (index, rule) in policy.authorization_rules.iter().enumerate() {
        self::rule(findings, &format!("{path}.authorizationRules[{index}]"), rule);
    }
}

fn rule(findings: &mut Findings, path: &str, rule: &MeshRule) {
    if rule.from.is_empty() {
        findings.error(format!("{path}.from"), "missing", "name the service accounts that may");
    }
    for (index, name) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{index}]");
        let fits = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        };
        if !name.split('/').all(fits) || name.matches('/').count() > 1 {
            let help = "write ACCOUNT, or NAMESPACE/ACCOUNT";
            findings.error(path, format!("{name:?} is no service account"), help);
        }
    }
    for (index, text) in rule.operations.iter().enumerate() {
        let path = format!("{path}.operations[{index}]");
        let help = "write VERB PATH, as in GET /api/users/*";
        let Some((verb, place)) = MeshRule::operation(text) else {
            findings.error(path, format!("{text:?} is no operation"), help);
            continue;
        };
        let known = verb == "*"
            || (Method::from_bytes(verb.as_bytes()).is_ok() && verb.bytes().all(|b| b.is_ascii_uppercase()));
        if !known {
            findings.error(path, format!("{verb:?} is no method of HTTP"), help);
        } else if !place.starts_with(['/', '*']) || place.contains(char::is_whitespace) {
            findings.error(path, format!("{place:?} is no path"), help);
        } else if place.trim_matches('*').contains('*') {
            let help = "a star stands at the beginning or the end of a path, as in AuthorizationPolicies";
            findings.error(path, format!("{place:?} has a star inside"), help);
        }
    }
}

fn observability(findings: &mut Findings, path: &str, told: &MeshObservability) {
    if let Some(rate) = told.sampling_rate
        && !(0.0..=1.0).contains(&rate)
    {
        let reason = format!("{rate} is no share of requests from 0 to 1");
        findings.error(format!("{path}.samplingRate"), reason, "write 0.01 for one of a hundred, 1 for all");
    }
}
