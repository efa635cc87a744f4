//! The load balancer of a DestinationRule, and the locality setting that MeshConfig has as well.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::{period, period_or_zero};
use crate::model::destination_rule::{ConsistentHash, LoadBalancer, LocalityBalancer, SimpleBalancer};

/// Envoy's bound on Maglev's table: a prime not above this.
const MAGLEV_MOST: u64 = 5_000_011;

pub(super) fn load_balancer(findings: &mut Findings, path: &str, balancer: &LoadBalancer, outlier: bool) {
    if *balancer == LoadBalancer::default() {
        findings.warn(path, "empty", "give simple or consistentHash, or take it out");
    }
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        findings.error(path, "both simple and consistentHash", "keep one of them");
    }
    if let Some(hash) = &balancer.consistent_hash {
        consistent_hash(findings, &format!("{path}.consistentHash"), hash);
    }
    warm_up(findings, path, balancer);
    if let Some(locality) = &balancer.locality_lb_setting {
        let path = format!("{path}.localityLbSetting");
        locality_setting(findings, &path, locality);
        let fails_over = !locality.failover.is_empty() || !locality.failover_priority.is_empty();
        if fails_over && locality.enabled != Some(false) && !outlier {
            let help = "traffic fails over only from ejected endpoints; add outlierDetection";
            findings.warn(path, "failover without outlierDetection", help);
        }
    }
}

fn warm_up(findings: &mut Findings, path: &str, balancer: &LoadBalancer) {
    if let Some(duration) = balancer.warmup_duration_secs {
        let at = format!("{path}.warmupDurationSecs");
        period(findings, &at, Some(duration));
        if balancer.warmup.is_some() {
            findings.error(&at, "stands beside warmup", "keep warmup.duration");
        } else {
            findings.warn(&at, "deprecated", "write warmup: {duration: TIME}");
        }
    }
    if let Some(warmup) = &balancer.warmup {
        let path = format!("{path}.warmup");
        if warmup.duration.is_none() {
            findings.error(format!("{path}.duration"), "missing", "say how long an endpoint warms up");
        }
        period(findings, &format!("{path}.duration"), warmup.duration);
        if let Some(percent) = warmup.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
            let reason = format!("{percent} is no percentage");
            findings.error(format!("{path}.minimumPercent"), reason, "give 0 to 100");
        }
        if let Some(aggression) = warmup.aggression.filter(|n| !(n.is_finite() && *n > 0.0)) {
            let help = "1 grows in a line; more is faster at the start";
            findings.error(format!("{path}.aggression"), format!("{aggression} is not above 0"), help);
        }
    }
    let warms = matches!(
        balancer.simple,
        None | Some(SimpleBalancer::Unspecified | SimpleBalancer::LeastRequest | SimpleBalancer::RoundRobin)
    );
    if balancer.warm_up().is_some() && (!warms || balancer.consistent_hash.is_some()) {
        let help =
            "endpoints warm up with LEAST_REQUEST and ROUND_ROBIN only; choose one, or take warmup out";
        findings.warn(path, "this balancer does not warm endpoints up", help);
    }
}

fn consistent_hash(findings: &mut Findings, path: &str, hash: &ConsistentHash) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    let given = keys.iter().filter(|given| **given).count();
    if given != 1 {
        let reason = if given == 0 { "nothing to hash" } else { "more than one thing to hash" };
        let help = "give one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
        findings.error(path, reason, help);
    }
    for (field, name) in [
        ("httpHeaderName", &hash.http_header_name),
        ("httpQueryParameterName", &hash.http_query_parameter_name),
    ] {
        if name.as_ref().is_some_and(String::is_empty) {
            findings.error(format!("{path}.{field}"), "empty", "give the name");
        }
    }
    if let Some(name) = hash.http_header_name.as_ref().filter(|name| !name.is_empty())
        && http::HeaderName::from_bytes(name.as_bytes()).is_err()
    {
        findings.error(format!("{path}.httpHeaderName"), format!("{name:?} is not the name of a header"), "");
    }
    if let Some(cookie) = &hash.http_cookie {
        let path = format!("{path}.httpCookie");
        if cookie.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the cookie");
        }
        period_or_zero(findings, &format!("{path}.ttl"), cookie.ttl);
        let mut seen = HashSet::new();
        for (index, attribute) in cookie.attributes.iter().enumerate() {
            let at = format!("{path}.attributes[{index}].name");
            if attribute.name.is_empty() {
                findings.error(at, "missing", "name the attribute");
            } else if !seen.insert(attribute.name.to_ascii_lowercase()) {
                findings.error(at, format!("{:?} is given twice", attribute.name), "remove one");
            }
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(path, "both ringHash and maglev", "keep one of them");
    }
    if hash.minimum_ring_size.is_some() {
        let at = format!("{path}.minimumRingSize");
        if hash.ring_hash.is_some() || hash.maglev.is_some() {
            findings.error(at, "stands beside ringHash or maglev", "write ringHash: {minimumRingSize: N}");
        } else {
            findings.warn(at, "deprecated", "write ringHash: {minimumRingSize: N}");
        }
    }
    if let Some(size) = hash.maglev.and_then(|maglev| maglev.table_size)
        && (size > MAGLEV_MOST || !prime(size))
    {
        let reason = format!("{size} is no prime up to {MAGLEV_MOST}");
        findings.error(format!("{path}.maglev.tableSize"), reason, "leave it out for 65537");
    }
}

fn prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// Shared with MeshConfig.
pub(super) fn locality_setting(findings: &mut Findings, path: &str, setting: &LocalityBalancer) {
    let fails_over = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    if fails_over && !setting.distribute.is_empty() {
        findings.error(path, "both distribute and failover", "keep one of them");
    }
    let mut from: Vec<&str> = Vec::new();
    for (index, share) in setting.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{index}]");
        locality(findings, &format!("{path}.from"), &share.from);
        if let Some(other) = from.iter().find(|other| overlap(other, &share.from)) {
            findings.error(
                format!("{path}.from"),
                format!("{} overlaps {other}", share.from),
                "keep them apart",
            );
        }
        from.push(&share.from);
        let mut to: Vec<&str> = Vec::new();
        for (name, weight) in &share.to {
            let at = format!("{path}.to.{name}");
            locality(findings, &at, name);
            if !(1..=100).contains(weight) {
                findings.error(&at, format!("{weight} is no share"), "give 1 to 100");
            }
            if let Some(other) = to.iter().find(|other| overlap(other, name)) {
                findings.error(&at, format!("{name} overlaps {other}"), "keep them apart");
            }
            to.push(name);
        }
        let total: u64 = share.to.values().map(|weight| u64::from(*weight)).sum();
        if total != 100 {
            findings.error(format!("{path}.to"), format!("the shares add up to {total}"), "make them 100");
        }
    }
    for (index, pair) in setting.failover.iter().enumerate() {
        let path = format!("{path}.failover[{index}]");
        for (field, region) in [("from", &pair.from), ("to", &pair.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                findings.error(
                    format!("{path}.{field}"),
                    format!("{region:?} is no region"),
                    "name one region",
                );
            }
        }
        if pair.from == pair.to {
            findings.error(&path, "a region cannot stand in for itself", "name another");
        }
    }
    for (index, label) in setting.failover_priority.iter().enumerate() {
        if label.split('=').next().is_none_or(str::is_empty) {
            findings.error(format!("{path}.failoverPriority[{index}]"), "empty", "name a label");
        }
    }
}

/// `region/zone/subzone`, of which the later parts may be left out, and the last one given may be `*`.
fn locality(findings: &mut Findings, path: &str, text: &str) {
    let parts: Vec<&str> = text.split('/').collect();
    let star = parts.iter().position(|part| *part == "*");
    let reason = if parts.len() > 3 {
        "more than region, zone and sub-zone"
    } else if parts.iter().any(|part| part.is_empty()) {
        "a part is empty"
    } else if star.is_some_and(|at| at + 1 < parts.len()) {
        "* is only allowed at the end"
    } else if parts.iter().any(|part| part.contains('*') && *part != "*") {
        "* stands for a whole part"
    } else {
        return;
    };
    findings.error(path, format!("{text:?} is no locality: {reason}"), "write region/zone/subzone");
}

fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None | Some("*"), _) | (_, None | Some("*")) => return true,
            (Some(a), Some(b)) if a != b => return false,
            _ => {}
        }
    }
}
