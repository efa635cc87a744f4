//! RateLimit.

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderName, Method};

use super::super::diagnostic::Findings;
use super::authorization_policy::selector;
use super::{annotations, host, period, port, regex};
use crate::model::meta::Meta;
use crate::model::rate_limit::{
    ClientAddress, LocalLimit, MOST_KEYS, RateLimit, RateLimitKey, RateLimitMatch, RateLimitRule,
    RateLimitService,
};
use crate::model::values::StringMatch;

/// What proxies take as the least time in which a bucket fills.
const LEAST: Duration = Duration::from_millis(50);

pub(in super::super) fn rate_limit(spec: &RateLimit, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    if spec.selector.is_some() && !spec.gateway.is_empty() {
        findings.error("spec.gateway", "stands beside selector", "give one of the two");
    }
    if spec.gateway.contains('/') {
        let help = "write its name alone; limits of a Gateway stand in its namespace";
        findings.error("spec.gateway", format!("{:?} has a namespace", spec.gateway), help);
    }
    let asks = spec.rules.iter().any(|rule| rule.global.is_some());
    match &spec.service {
        Some(service) => self::service(findings, service, asks),
        None if asks => {
            let help = "say who counts: host, port and domain of a service of envoy.service.ratelimit.v3";
            findings.error("spec.service", "missing, though a rule is global", help);
        }
        None => {}
    }
    if spec.rules.is_empty() {
        findings.error("spec.rules", "missing", "give at least one rule; without one nothing is limited");
    }
    let mut names = HashSet::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if rule.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the rule: refusals are told with it");
        } else if !rule.name.chars().all(fits) {
            let reason = format!("{:?} has characters that names of rules have not", rule.name);
            findings.error(format!("{path}.name"), reason, "use letters, digits and -");
        } else if !names.insert(&rule.name) {
            findings.error(
                format!("{path}.name"),
                format!("another rule is called {:?}", rule.name),
                "rename one",
            );
        }
        self::rule(findings, &path, rule, spec);
    }
}

fn service(findings: &mut Findings, service: &RateLimitService, asked: bool) {
    if !asked {
        let help = "make a rule global, or take it out";
        findings.error("spec.service", "no rule is global, so nobody asks it", help);
    }
    host(findings, "spec.service.host", &service.host, false);
    if service.host.contains('*') {
        findings.error("spec.service.host", "a wildcard is no service", "name one service");
    }
    port(findings, "spec.service.port", service.port);
    if service.domain.is_empty() {
        findings.error("spec.service.domain", "missing", "give the domain of the service's configuration");
    }
    period(findings, "spec.service.timeout", service.timeout);
}

fn rule(findings: &mut Findings, path: &str, rule: &RateLimitRule, spec: &RateLimit) {
    match (&rule.local, &rule.global) {
        (None, None) => {
            let help = "give local: {requests, per}, or global: {}";
            findings.error(path, "says neither local nor global", help);
        }
        (Some(_), Some(_)) => {
            findings.error(format!("{path}.global"), "stands beside local", "make two rules of it");
        }
        (Some(limit), None) => local(findings, &format!("{path}.local"), limit, !rule.by.is_empty()),
        (None, Some(limit)) => {
            if limit.hits.is_some() && rule.connections.is_some() {
                let help = "take it out; the service's configuration has the limit";
                findings.error(format!("{path}.global.hits"), "a connection counts for one", help);
            } else if limit.hits == Some(0) {
                findings.error(format!("{path}.global.hits"), "0 counts for nothing", "give 1 or more");
            }
        }
    }
    if rule.connections.is_some() {
        connections(findings, path, rule, spec);
    }
    if let Some(given) = &rule.matches {
        let path = format!("{path}.match");
        if *given == RateLimitMatch::default() {
            findings.error(&path, "empty", "say which requests, or take it out for all");
        }
        matches(findings, &path, given);
        let at_gateways = spec.selector.is_some() || !spec.gateway.is_empty();
        if !given.route.is_empty() && !at_gateways {
            let help = "name the gateway, or select gateway workloads";
            findings.error(
                format!("{path}.route"),
                "routes of VirtualServices are for gateways, and none is named",
                help,
            );
        }
    }
    if rule.by.len() > MOST_KEYS {
        let help = format!("give {MOST_KEYS} at most, or make several rules");
        findings.error(format!("{path}.by"), format!("{} keys are too many", rule.by.len()), help);
    }
    let mut seen = Vec::new();
    for (index, given) in rule.by.iter().enumerate() {
        let path = format!("{path}.by[{index}]");
        key(findings, &path, given);
        if seen.contains(&given) {
            findings.error(&path, "is given twice", "remove one");
        }
        seen.push(given);
    }
}

/// What a rule may not say of connections, of which nothing but the addresses is known when they come.
fn connections(findings: &mut Findings, path: &str, rule: &RateLimitRule, spec: &RateLimit) {
    let given = rule.connections.iter().flat_map(|given| &given.ports);
    let mut seen = HashSet::new();
    for (index, number) in given.enumerate() {
        let path = format!("{path}.connections.ports[{index}]");
        port(findings, &path, *number);
        if !seen.insert(number) {
            findings.error(&path, format!("{number} is given twice"), "remove one");
        }
    }
    if rule.matches.is_some() {
        let help = "take one of the two out: match is about requests";
        findings.error(format!("{path}.match"), "stands beside connections", help);
    }
    if spec.dry_run {
        let help = "move the rule to a RateLimit of its own, without dryRun";
        findings.error(
            "spec.dryRun",
            format!("{:?} counts connections, and they are not tried", rule.name),
            help,
        );
    }
    if spec.tell_clients && spec.rules.iter().all(|rule| rule.connections.is_some()) {
        let help = "take it out: a connection is told nothing";
        findings.error("spec.tellClients", "every rule counts connections", help);
    }
    for (index, key) in rule.by.iter().enumerate() {
        let path = format!("{path}.by[{index}]");
        let Some(address) = key.client_address else {
            let help = "a connection has no header, parameter or claim; give clientAddress";
            findings.error(&path, "is not known of a connection", help);
            continue;
        };
        if rule.local.is_some() {
            let help = "take it out for one bucket in each proxy, or make the rule global";
            findings.error(&path, "proxies have no buckets for connections by address", help);
        }
        if address != ClientAddress::default() {
            let help = "give clientAddress: {}, which is the whole address";
            findings.error(&path, "addresses of connections are not cut to networks", help);
        }
    }
}

fn local(findings: &mut Findings, path: &str, limit: &LocalLimit, by: bool) {
    if limit.requests == 0 {
        findings.error(format!("{path}.requests"), "missing or 0", "give 1 or more; to deny, write a policy");
    }
    match limit.per {
        None => findings.error(format!("{path}.per"), "missing", "give a time, such as 1s or 1m"),
        Some(per) if per.get() < LEAST => {
            findings.error(format!("{path}.per"), format!("{per} is too short"), "give at least 50ms");
        }
        per => period(findings, &format!("{path}.per"), per),
    }
    if limit.burst == Some(0) {
        let help = "give how many may come at once, or take it out for as many as requests";
        findings.error(format!("{path}.burst"), "0 lets nothing pass", help);
    }
    match limit.max_keys {
        Some(0) => findings.error(format!("{path}.maxKeys"), "0 remembers nothing", "give 1 or more"),
        Some(_) if !by => {
            findings.error(format!("{path}.maxKeys"), "the rule has no keys", "give by, or take it out");
        }
        _ => {}
    }
}

fn matches(findings: &mut Findings, path: &str, given: &RateLimitMatch) {
    for (index, name) in given.hosts.iter().enumerate() {
        host(findings, &format!("{path}.hosts[{index}]"), name, true);
    }
    for (index, wanted) in given.paths.iter().enumerate() {
        let path = format!("{path}.paths[{index}]");
        match wanted {
            StringMatch::Exact(text) | StringMatch::Prefix(text) if !text.starts_with('/') => {
                findings.error(
                    path,
                    format!("{text:?} does not begin with a slash"),
                    "no path does otherwise",
                );
            }
            StringMatch::Exact(text) | StringMatch::Prefix(text) if text.contains('?') => {
                findings.error(path, format!("{text:?} has a query"), "paths are compared without it");
            }
            StringMatch::Regex(pattern) => regex(findings, &path, pattern),
            StringMatch::Present => {
                findings.error(path, "empty", "give exact, prefix or regex");
            }
            StringMatch::Exact(_) | StringMatch::Prefix(_) => {}
        }
    }
    for (index, method) in given.methods.iter().enumerate() {
        if method.is_empty() || Method::from_bytes(method.as_bytes()).is_err() {
            let reason = format!("{method:?} is no method");
            findings.error(format!("{path}.methods[{index}]"), reason, "write it as in GET");
        }
    }
    for (name, wanted) in &given.headers {
        let path = format!("{path}.headers.{name}");
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            let help = "write it as in x-plan; method, path and host have fields of their own";
            findings.error(&path, format!("{name:?} is not the name of a header"), help);
        }
        if let StringMatch::Regex(pattern) = wanted {
            regex(findings, &path, pattern);
        }
    }
}

fn key(findings: &mut Findings, path: &str, key: &RateLimitKey) {
    let given = [
        key.client_address.is_some(),
        !key.header.is_empty(),
        !key.query_parameter.is_empty(),
        !key.claim.is_empty(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        let help = "give one of clientAddress, header, queryParameter and claim";
        findings.error(path, "is not one key", help);
    }
    if !key.header.is_empty() && HeaderName::from_bytes(key.header.as_bytes()).is_err() {
        let reason = format!("{:?} is not the name of a header", key.header);
        findings.error(format!("{path}.header"), reason, "write it as in x-user");
    }
    let address = key.client_address.unwrap_or_default();
    for (field, bits, most) in
        [("ipv4Prefix", address.ipv4_prefix, 32), ("ipv6Prefix", address.ipv6_prefix, 128)]
    {
        if bits.is_some_and(|bits| bits > most) {
            let path = format!("{path}.clientAddress.{field}");
            findings.error(path, format!("such an address has {most} bits"), format!("give 0 to {most}"));
        }
    }
}
