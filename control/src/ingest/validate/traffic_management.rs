//! TrafficManagement.

use super::super::diagnostic::Findings;
use super::{annotations, host, period};
use crate::model::host::DEFAULT_DOMAIN;
use crate::model::meta::Meta;
use crate::model::traffic_management::{CanaryDeployment, Prometheus, StickyBy, TrafficManagement};

pub(in super::super) fn traffic_management(spec: &TrafficManagement, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    if let Some(canary) = &spec.canary_deployment {
        self::canary(findings, canary, meta);
    }
    match &spec.circuit_breaker_status {
        Some(circuit) => {
            let path = "spec.circuitBreakerStatus.service";
            host(findings, path, &circuit.service, false);
            if circuit.service.contains('*') {
                findings.error(path, "a wildcard is no service", "name one service");
            }
        }
        None if spec.canary_deployment.is_none() => {
            let help = "give canaryDeployment, for a version on trial, or circuitBreakerStatus: {service}";
            findings.error("spec", "says nothing", help);
        }
        None => {}
    }
}

fn canary(findings: &mut Findings, canary: &CanaryDeployment, meta: &Meta) {
    let path = "spec.canaryDeployment";
    host(findings, &format!("{path}.service"), &canary.service, false);
    if canary.service.contains('*') {
        findings.error(format!("{path}.service"), "a wildcard is no service", "name one service");
    }
    let inside = format!(".svc.{DEFAULT_DOMAIN}");
    if let Some(name) = canary.service.strip_suffix(&inside)
        && name.split_once('.').is_some_and(|(_, namespace)| namespace != meta.namespace)
    {
        let reason = format!("{} is not in the namespace {}", canary.service, meta.namespace);
        findings.error(format!("{path}.service"), reason, "write the resource in the service's namespace");
    }
    for (field, version) in
        [("stableVersion", &canary.stable_version), ("canaryVersion", &canary.canary_version)]
    {
        if version.is_empty() {
            let help = "give the label version of its workloads";
            findings.error(format!("{path}.{field}"), "missing", help);
        }
    }
    if canary.stable_version == canary.canary_version && !canary.stable_version.is_empty() {
        findings.error(format!("{path}.canaryVersion"), "is the stable one", "name the version on trial");
    }
    let split = canary.traffic_split;
    if split.stable.checked_add(split.canary) != Some(100) {
        let reason = format!("{} and {} are not 100 percent together", split.stable, split.canary);
        findings.error(format!("{path}.trafficSplit"), reason, "write it as in {stable: 90, canary: 10}");
    } else if split.canary == 0 || split.canary == 100 {
        let help = "give the version on trial a share from 1 to 99: without requests nothing is known of it";
        findings.error(format!("{path}.trafficSplit.canary"), format!("{} is no trial", split.canary), help);
    }
    let mut last = split.canary;
    for (index, step) in canary.steps.iter().enumerate() {
        if *step <= last || *step > 99 {
            let help = "steps grow, from more than trafficSplit.canary to 99; all comes after the last one";
            findings.error(
                format!("{path}.steps[{index}]"),
                format!("{step} does not come after {last}"),
                help,
            );
        }
        last = *step;
    }
    if let Some(sticky) = &canary.sticky_by {
        self::sticky_by(findings, &format!("{path}.stickyBy"), sticky);
    }
    if let Some(prometheus) = &canary.prometheus {
        self::prometheus(findings, &format!("{path}.prometheus"), prometheus);
    }
    let (success, rollback) = (&canary.success_criteria, &canary.rollback_criteria);
    period(findings, &format!("{path}.successCriteria.evaluationPeriod"), success.evaluation_period);
    if success.error_rate_threshold.is_none() && success.response_time_p95_threshold.is_none() {
        let help = "give errorRateThreshold (percent) or responseTimeP95Threshold (milliseconds)";
        findings.error(format!("{path}.successCriteria"), "says nothing of what is good", help);
    }
    if rollback.error_rate_threshold.is_none() && rollback.response_time_p95_threshold.is_none() {
        let help = "give errorRateThreshold (percent) or responseTimeP95Threshold (milliseconds)";
        findings.error(format!("{path}.rollbackCriteria"), "says nothing of what is bad", help);
    }
    for (field, good, bad, most) in [
        ("errorRateThreshold", success.error_rate_threshold, rollback.error_rate_threshold, Some(100.0)),
        (
            "responseTimeP95Threshold",
            success.response_time_p95_threshold,
            rollback.response_time_p95_threshold,
            None,
        ),
    ] {
        for (which, value) in [("successCriteria", good), ("rollbackCriteria", bad)] {
            let fits =
                |value: f64| value >= 0.0 && value.is_finite() && most.is_none_or(|most| value <= most);
            if value.is_some_and(|value| !fits(value)) {
                let help = "error rates are percent, from 0 to 100; times are milliseconds";
                findings.error(format!("{path}.{which}.{field}"), "out of range", help);
            }
        }
        if let (Some(good), Some(bad)) = (good, bad)
            && bad < good
        {
            let reason =
                format!("{bad} is less than successCriteria's {good}: what is good would be rolled back");
            findings.error(format!("{path}.rollbackCriteria.{field}"), reason, "give as much or more");
        }
    }
    // 0.02 would be two in ten thousand: a fraction in the place of a percentage, most likely.
    for (which, value) in [
        ("successCriteria", success.error_rate_threshold),
        ("rollbackCriteria", rollback.error_rate_threshold),
    ] {
        if value.is_some_and(|value| value > 0.0 && value < 0.1) {
            let reason = format!("{} is read as percent", value.unwrap_or_default());
            let help = "if it was meant as a fraction, multiply it by 100";
            findings.warn(format!("{path}.{which}.errorRateThreshold"), reason, help);
        }
    }
}

fn sticky_by(findings: &mut Findings, path: &str, sticky: &StickyBy) {
    let (header, cookie) = (&sticky.http_header_name, &sticky.http_cookie_name);
    let given = [!header.is_empty(), !cookie.is_empty(), sticky.use_source_ip];
    if given.iter().filter(|given| **given).count() != 1 {
        let help = "give one of httpHeaderName, httpCookieName, and useSourceIp: true";
        findings.error(path, "a client is known by one thing", help);
    }
    if !header.is_empty() && http::HeaderName::try_from(header.as_str()).is_err() {
        let reason = format!("{header:?} is no name of a header");
        findings.error(format!("{path}.httpHeaderName"), reason, "write it as in x-user");
    }
    let of_a_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if !cookie.chars().all(of_a_token) {
        let reason = format!("{cookie:?} is no name of a cookie");
        findings.error(format!("{path}.httpCookieName"), reason, "write it as in session");
    }
}

fn prometheus(findings: &mut Findings, path: &str, prometheus: &Prometheus) {
    let address = &prometheus.address;
    let uri = address.parse::<http::Uri>().ok();
    let fits = uri.is_some_and(|uri| {
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        matches!(uri.scheme_str(), Some("http" | "https")) && plain && uri.query().is_none()
    });
    if !fits {
        let reason =
            format!("{address:?} is no URL of http or https with a host and without a query or a user");
        let help = "write it as in http://prometheus.istio-system:9090, and who we are in credentialName";
        findings.error(format!("{path}.address"), reason, help);
    } else if !prometheus.credential_name.is_empty() && address.starts_with("http://") {
        let help = "use https: whoever sees the way there can take the credential";
        findings.warn(format!("{path}.credentialName"), "is sent in the clear", help);
    }
}
