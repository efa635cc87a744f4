//! AuthorizationPolicy.

use std::net::IpAddr;

use super::super::diagnostic::Findings;
use super::annotations;
use super::labels::selected;
use crate::model::authorization_policy::{
    Attribute, AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Condition, DRY_RUN_ANNOTATION,
    Operation, Source, parse_bool,
};
use crate::model::gateway_api::{GROUP, TargetRef};
use crate::model::meta::Meta;
use crate::model::quarantine::{
    ACTOR_ANNOTATION, PREFIX, PROXY_ANNOTATION, QUARANTINE_ANNOTATION, REASON_ANNOTATION,
};
use crate::model::values::WorkloadSelector;

/// Most service accounts in one list, and the longest that one may be: Istio's bounds.
const MOST_ACCOUNTS: usize = 16;
const LONGEST_ACCOUNT: usize = 320;

pub(in super::super) fn authorization_policy(
    spec: &AuthorizationPolicy,
    meta: &Meta,
    findings: &mut Findings,
) {
    annotations(
        findings,
        meta,
        &[QUARANTINE_ANNOTATION, PROXY_ANNOTATION, REASON_ANNOTATION, ACTOR_ANNOTATION],
    );
    quarantine(spec, meta, findings);
    dry_run(spec, meta, findings);
    selector(findings, spec.selector.as_ref());
    targets(findings, &meta.namespace, spec.selector.is_some(), spec.target_ref.as_ref(), &spec.target_refs);
    let named = spec.provider.as_ref().is_some_and(|provider| !provider.name.is_empty());
    match spec.action {
        AuthorizationAction::Custom if named => {}
        AuthorizationAction::Custom => {
            let help = "name one of MeshConfig's extensionProviders";
            findings.error("spec.provider.name", "missing: CUSTOM asks somebody", help);
        }
        action if spec.provider.is_some() => {
            let reason = format!("{} asks nobody", action.as_str());
            findings.error("spec.provider", reason, "take it out, or make the action CUSTOM");
        }
        _ => {}
    }
    if spec.rules.is_empty() && matches!(spec.action, AuthorizationAction::Deny | AuthorizationAction::Custom)
    {
        let reason = format!("missing: {} without rules never happens", spec.action.as_str());
        findings.error("spec.rules", reason, "give rules; the empty rule {} matches every request");
    }
    for (index, one) in spec.rules.iter().enumerate() {
        rule(findings, &format!("spec.rules[{index}]"), one, spec.action);
    }
}

fn quarantine(spec: &AuthorizationPolicy, meta: &Meta, findings: &mut Findings) {
    let Some(workload) = meta.annotations.get(QUARANTINE_ANNOTATION) else { return };
    let path = format!("metadata.annotations.{QUARANTINE_ANNOTATION}");
    if workload.is_empty() {
        findings.error(&path, "names no workload", "write a workload's name, or take it out");
    }
    let everything = spec.rules.as_slice() == [AuthorizationRule::default()];
    if spec.action != AuthorizationAction::Deny
        || !everything
        || meta.annotations.contains_key(DRY_RUN_ANNOTATION)
    {
        let help = "action DENY, rules: [{}], no dry run; weft quarantine writes it";
        findings.error(&path, "a quarantine denies everything", help);
    }
    if !meta.name.starts_with(PREFIX) {
        let help = format!("call it {PREFIX}{workload}: proxies know a quarantine by that");
        findings.error("metadata.name", "is no name of a quarantine", help);
    }
}

fn dry_run(spec: &AuthorizationPolicy, meta: &Meta, findings: &mut Findings) {
    let Some(text) = meta.annotations.get(DRY_RUN_ANNOTATION) else { return };
    let path = format!("metadata.annotations.{DRY_RUN_ANNOTATION}");
    if parse_bool(text).is_none() {
        findings.error(&path, format!("{text:?} is neither true nor false"), "write \"true\"");
    }
    if !matches!(spec.action, AuthorizationAction::Allow | AuthorizationAction::Deny) {
        let reason = format!("{} cannot be tried", spec.action.as_str());
        findings.error(&path, reason, "it is for ALLOW and DENY; take it out");
    }
}

/// A selector of workloads: labels in full.
pub(super) fn selector(findings: &mut Findings, selector: Option<&WorkloadSelector>) {
    let Some(selector) = selector else { return };
    if selector.labels.is_empty() {
        let help = "give labels, or take it out";
        findings.warn("spec.selector", "without labels it holds for the whole namespace", help);
    }
    selected(findings, "spec.selector.matchLabels", selector);
}

/// What a policy is for, instead of a selector.
pub(super) fn targets(
    findings: &mut Findings,
    namespace: &str,
    selects: bool,
    one: Option<&TargetRef>,
    several: &[TargetRef],
) {
    if selects && (one.is_some() || !several.is_empty()) {
        findings.error("spec.selector", "given beside targetRefs", "keep one of both");
    }
    if one.is_some() && !several.is_empty() {
        findings.error("spec.targetRef", "given beside targetRefs", "keep targetRefs");
    }
    let paths = (0..several.len()).map(|index| format!("spec.targetRefs[{index}]"));
    let all = one.map(|one| ("spec.targetRef".to_owned(), one)).into_iter().chain(paths.zip(several));
    for (path, target) in all {
        if !matches!(
            (target.group.as_str(), target.kind.as_str()),
            (GROUP, "Gateway" | "GatewayClass") | ("" | "core", "Service")
        ) {
            let reason = format!("Weft has no policies for a {} ({:?})", target.kind, target.group);
            let help = format!("name a Gateway or GatewayClass (group: {GROUP}) or a Service (group: \"\")");
            findings.error(format!("{path}.kind"), reason, help);
        }
        if target.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the Gateway or Service");
        }
        if !target.namespace.is_empty() && target.namespace != namespace {
            let help = "put the policy into the namespace of its target";
            findings.error(format!("{path}.namespace"), "not the policy's own", help);
        }
    }
}

fn rule(findings: &mut Findings, path: &str, rule: &AuthorizationRule, action: AuthorizationAction) {
    for (index, from) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{index}].source");
        match &from.source {
            Some(given) if *given != Source::default() => source(findings, &path, given, action),
            _ => findings.error(path, "empty", "say who asks, or take it out"),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        match &to.operation {
            Some(given) if *given != Operation::default() => operation(findings, &path, given),
            _ => findings.error(path, "empty", "say what is asked for, or take it out"),
        }
    }
    for (index, when) in rule.when.iter().enumerate() {
        condition(findings, &format!("{path}.when[{index}]"), when, action);
    }
    let requests = |operation: &Operation| {
        let Operation { hosts, not_hosts, methods, not_methods, paths, not_paths, ports, not_ports } =
            operation;
        let http = [hosts, not_hosts, methods, not_methods, paths, not_paths];
        http.iter().any(|list| !list.is_empty()) && ports.is_empty() && not_ports.is_empty()
    };
    let of_http = !rule.to.is_empty() && rule.to.iter().filter_map(|to| to.operation.as_ref()).all(requests);
    let ports = rule.when.iter().any(|when| when.key == "destination.port");
    if action == AuthorizationAction::Deny && of_http && !ports {
        let help = "name the HTTP ports that are meant, with ports";
        let reason =
            "connections to TCP ports have no host, method or path: there it denies whatever else fits";
        findings.warn(path, reason, help);
    }
}

fn source(findings: &mut Findings, path: &str, source: &Source, action: AuthorizationAction) {
    let identities = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ];
    let accounts =
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)];
    let tokens = [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
    ];
    let domains = [("trustDomains", &source.trust_domains), ("notTrustDomains", &source.not_trust_domains)];
    let addresses = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    let names = identities.iter().chain(&accounts).chain(&tokens).chain(&domains);
    for (name, list) in names.clone().chain(&addresses) {
        not_empty(findings, &format!("{path}.{name}"), list);
    }
    for (name, list) in &addresses {
        ips(findings, &format!("{path}.{name}"), list);
    }
    if action == AuthorizationAction::Custom {
        for (name, _) in names.filter(|(_, list)| !list.is_empty()) {
            let help = "who is asked decides on identities; select by address, operation or header";
            findings.error(format!("{path}.{name}"), "not allowed with CUSTOM", help);
        }
    }
    let beside = identities.iter().find(|(_, list)| !list.is_empty());
    for (name, list) in accounts.iter().filter(|(_, list)| !list.is_empty()) {
        let path = format!("{path}.{name}");
        if let Some((other, _)) = beside {
            let help = "write the accounts' namespaces as NAMESPACE/ACCOUNT";
            findings.error(&path, format!("stands beside {other}"), help);
        }
        if list.len() > MOST_ACCOUNTS {
            findings.error(&path, format!("{} of them", list.len()), "give 16 at most, or use principals");
        }
        service_accounts(findings, &path, list);
    }
    for (name, list) in &domains {
        trust_domains(findings, &format!("{path}.{name}"), list);
    }
}

fn service_accounts(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, account) in list.iter().enumerate().filter(|(_, a)| !a.is_empty()) {
        let parts: Vec<&str> = account.split('/').collect();
        let fits = parts.len() <= 2 && parts.iter().all(|part| !part.is_empty());
        let characters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/');
        if !fits || account.len() > LONGEST_ACCOUNT || !account.chars().all(characters) {
            let reason = format!("{account:?} is no service account");
            findings.error(format!("{path}[{index}]"), reason, "write ACCOUNT or NAMESPACE/ACCOUNT");
        }
    }
}

/// Trust domains, in full or open at one end.
fn trust_domains(findings: &mut Findings, path: &str, list: &[String]) {
    let open = |domain: &str| {
        let inner = domain.strip_prefix('*').or(domain.strip_suffix('*')).unwrap_or(domain);
        inner.contains('*')
    };
    for (index, domain) in list.iter().enumerate().filter(|(_, d)| d.contains('/') || open(d)) {
        let help = "write it in full, or with * at the beginning or at the end";
        findings.error(format!("{path}[{index}]"), format!("{domain:?} is no trust domain"), help);
    }
}

fn operation(findings: &mut Findings, path: &str, operation: &Operation) {
    for (name, list) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        not_empty(findings, &format!("{path}.{name}"), list);
    }
    for (name, list) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        ports(findings, &format!("{path}.{name}"), list);
    }
    for (name, list) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for (index, text) in list.iter().enumerate() {
            if let Err(reason) = template(text) {
                let help = "a segment is a text, {*} for any one, or {**} for any number";
                let reason = format!("{text:?} is no template of paths: {reason}");
                findings.error(format!("{path}.{name}[{index}]"), reason, help);
            }
        }
    }
}

/// Whether a path that is a template is a sound one.
fn template(path: &str) -> Result<(), &'static str> {
    if !path.contains("{*}") && !path.contains("{**}") {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else { return Err("it does not begin with a slash") };
    let mut any_number = false;
    for segment in rest.split('/') {
        match segment {
            "{*}" | "{**}" if any_number => return Err("nothing but texts may follow {**}"),
            "{*}" => {}
            "{**}" => any_number = true,
            text if text.contains(['{', '}', '*']) => {
                return Err("braces and stars stand for whole segments, as {*} or {**}");
            }
            _ => {}
        }
    }
    Ok(())
}

fn condition(findings: &mut Findings, path: &str, when: &Condition, action: AuthorizationAction) {
    let at = format!("{path}.key");
    if when.key.is_empty() {
        findings.error(at, "missing", "name an attribute, such as request.headers[x-version]");
        return;
    }
    if when.values.is_empty() && when.not_values.is_empty() {
        findings.error(format!("{path}.values"), "missing", "give values or notValues");
    }
    let attribute = match Attribute::parse(&when.key) {
        Ok(attribute) => attribute,
        Err(reason) => {
            let help = if when.key.starts_with("source.labels") {
                "Istio has no such attribute: labels of a client are not authenticated. Tell clients apart by identity \
                 (from.source.principals or serviceAccounts)"
            } else {
                "known are source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, \
                 remote.ip, destination.ip, destination.port, connection.sni, request.headers[], request.auth.principal, request.auth.audiences, \
                 request.auth.presenter, request.auth.claims[] and experimental.envoy.filters.*[]"
            };
            findings.error(at, reason, help);
            return;
        }
    };
    for (name, list) in [("values", &when.values), ("notValues", &when.not_values)] {
        let at = format!("{path}.{name}");
        not_empty(findings, &at, list);
        match attribute {
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => ips(findings, &at, list),
            Attribute::DestinationPort => ports(findings, &at, list),
            Attribute::SourceServiceAccount => {
                if list.len() > MOST_ACCOUNTS {
                    findings.error(&at, format!("{} of them", list.len()), "give 16 at most");
                }
                service_accounts(findings, &at, list);
            }
            Attribute::SourceTrustDomain => trust_domains(findings, &at, list),
            _ => {}
        }
    }
    if let Attribute::Header(name) = attribute
        && http::HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).is_err()
        && !name.starts_with(':')
    {
        findings.error(&at, format!("{name:?} is not the name of a header"), "");
    }
    let identity = matches!(
        attribute,
        Attribute::SourceNamespace
            | Attribute::SourcePrincipal
            | Attribute::SourceServiceAccount
            | Attribute::SourceTrustDomain
            | Attribute::RequestPrincipal
            | Attribute::Audiences
            | Attribute::Presenter
            | Attribute::Claims(_)
    );
    if identity && action == AuthorizationAction::Custom {
        let help = "who is asked decides on identities; select by address, operation or header";
        findings.error(&at, "not allowed with CUSTOM", help);
    }
}

fn not_empty(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
        findings.error(format!("{path}[{index}]"), "empty", "give a value; \"*\" is any that is there");
    }
}

fn ips(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        let (address, length) = value.split_once('/').map_or((value.as_str(), None), |(a, l)| (a, Some(l)));
        let fits = address.parse::<IpAddr>().is_ok_and(|ip| {
            let most = if ip.is_ipv6() { 128 } else { 32 };
            length.is_none_or(|l| {
                l.parse::<u8>().is_ok_and(|l| l <= most) && l.bytes().all(|b| b.is_ascii_digit())
            })
        });
        if !fits {
            let reason = format!("{value:?} is neither an IP address nor a CIDR range");
            findings.error(format!("{path}[{index}]"), reason, "write 10.0.0.1 or 10.0.0.0/8");
        }
    }
}

fn ports(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        if value.parse::<u16>().is_err() {
            findings.error(format!("{path}[{index}]"), format!("{value:?} is no port"), "give 0 to 65535");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_templates_braces_stand_for_segments() {
        for good in ["/a", "/a/*", "*", "/{*}", "/a/{*}/b", "/a/{**}", "/{*}/a/{**}", "/{**}/a"] {
            assert_eq!(template(good), Ok(()), "{good}");
        }
        for bad in
            ["{*}", "/a{*}", "/{**}/{*}", "/{**}/{**}", "/{*}/*", "/{*}/{name}", "/{*}/a*", "/{x=*}/{*}"]
        {
            assert!(template(bad).is_err(), "{bad}");
        }
    }
}
