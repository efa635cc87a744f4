//! VirtualService.

use std::collections::{BTreeMap, HashSet};

use base64::Engine;

use super::super::diagnostic::Findings;
use super::labels::{dns_label, labels};
use super::telemetry::format;
use super::{annotations, export_to, host, host_form, period, period_or_zero, port, regex};
use crate::model::host::covers;
use crate::model::labels::is_dns_label;
use crate::model::meta::Meta;
use crate::model::values::{Percent, StringMatch};
use crate::model::virtual_service::{
    CorsPolicy, Destination, GRPC_STATUSES, Headers, HttpBody, HttpFault, HttpMatch, HttpRedirect, HttpRetry,
    HttpRewrite, HttpRoute, RETRY_ANY_ANNOTATION, RouteDestination, TcpRoute, TlsRoute, VirtualService,
    grpc_status, routing_claim,
};

/// Conditions that Envoy knows for `retryOn`, HTTP's and gRPC's.
const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Methods that `corsPolicy.allowMethods` may name.
const CORS_METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// A fixed body beyond this is refused (Envoy's limit as Istio sets it), in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// A fixed body beyond this is doubtful, in bytes.
const LARGE_BODY: usize = 100 * 1024;

pub(in super::super) fn virtual_service(spec: &VirtualService, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[RETRY_ANY_ANNOTATION]);
    if let Some(other) =
        meta.annotations.get(RETRY_ANY_ANNOTATION).filter(|v| !matches!(v.as_str(), "true" | "false"))
    {
        let path = format!("metadata.annotations.{RETRY_ANY_ANNOTATION}");
        let help = "write \"true\" to have every request tried again, or leave it out";
        findings.error(path, format!("{other:?} is neither \"true\" nor \"false\""), help);
    }
    if spec.hosts.is_empty() {
        delegate(spec, findings);
    }
    let on_mesh = spec.gateways.iter().any(|gateway| gateway == "mesh");
    let mut seen = HashSet::new();
    for (index, name) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        host(findings, &path, name, true);
        if name == "*" && on_mesh {
            findings.error(
                &path,
                "the host * is not allowed in the mesh",
                "bind a gateway, or name the hosts",
            );
        }
        if !seen.insert(name.to_ascii_lowercase()) {
            findings.error(
                &path,
                format!("{name} is given twice"),
                "remove one (short names count as their full form)",
            );
        }
    }
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        findings.error("spec", "no rules", "give at least one of http, tls and tcp");
    }
    export_to(findings, &spec.export_to);
    let matched = spec.http.iter().flat_map(|rule| &rule.matches).flat_map(|one| &one.gateways);
    let matched = matched.chain(spec.tls.iter().flat_map(|rule| &rule.matches).flat_map(|one| &one.gateways));
    let matched = matched.chain(spec.tcp.iter().flat_map(|rule| &rule.matches).flat_map(|one| &one.gateways));
    // So are Gateways called that stand for listeners of the Gateway API, which say themselves whose routes they take.
    let is_none = |name: &&String| {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        !is_dns_label(namespace) || name.starts_with('*') || host_form(name, false).is_err()
    };
    if let Some(name) = spec.gateways.iter().chain(matched).find(is_none) {
        let help = "name a Gateway of networking.istio.io; for one of the Gateway API write an HTTPRoute";
        findings.error("spec.gateways", format!("{name:?} is no name of a Gateway"), help);
    }
    let mut catch_all: Option<usize> = None;
    for (index, rule) in spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        // A delegate may come to serve the mesh.
        http_route(findings, &path, rule, on_mesh || spec.gateways.is_empty());
        if let Some(before) = catch_all {
            findings.warn(
                &path,
                format!("never reached: spec.http[{before}] takes every request"),
                "put the rule without match last",
            );
        } else if rule.matches.is_empty() || rule.matches.iter().any(matches_everything) {
            catch_all = Some(index);
        }
    }
    for (index, rule) in spec.tls.iter().enumerate() {
        tls_route(findings, &format!("spec.tls[{index}]"), rule, &spec.hosts, &spec.gateways);
    }
    for (index, rule) in spec.tcp.iter().enumerate() {
        tcp_route(findings, &format!("spec.tcp[{index}]"), rule, &spec.gateways);
    }
}

/// One without hosts speaks where another delegates to it, for HTTP only.
fn delegate(spec: &VirtualService, findings: &mut Findings) {
    for (field, given) in [
        ("gateways", !spec.gateways.is_empty()),
        ("tls", !spec.tls.is_empty()),
        ("tcp", !spec.tcp.is_empty()),
    ] {
        if given {
            let help = "name the hosts that it speaks for, or take the field out";
            findings.error(
                format!("spec.{field}"),
                "not allowed without spec.hosts: such a VirtualService is a delegate",
                help,
            );
        }
    }
    for (index, _) in spec.http.iter().enumerate().filter(|(_, rule)| rule.delegate.is_some()) {
        let at = format!("spec.http[{index}].delegate");
        findings.error(
            at,
            "a delegate cannot delegate further",
            "put the rules here, or give this one hosts",
        );
    }
}

fn matches_everything(matching: &HttpMatch) -> bool {
    let (name, stat_prefix) = (matching.name.clone(), matching.stat_prefix.clone());
    let named = HttpMatch { name, stat_prefix, ..HttpMatch::default() };
    let root = HttpMatch { uri: Some(StringMatch::Prefix("/".to_owned())), ..named.clone() };
    *matching == named || *matching == root
}

fn http_route(findings: &mut Findings, path: &str, rule: &HttpRoute, in_mesh: bool) {
    let actions = [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some()]
        .iter()
        .filter(|on| **on)
        .count();
    if let Some(named) = &rule.delegate {
        if named.name.is_empty() {
            findings.error(format!("{path}.delegate.name"), "missing", "name a VirtualService without hosts");
        }
        if actions != 0 {
            let help = "the delegate's rules say where requests go; keep one of the two";
            findings.error(format!("{path}.delegate"), "stands beside an action of its own", help);
        }
    } else if actions != 1 {
        let reason = if actions == 0 { "no action" } else { "more than one action" };
        findings.error(path, reason, "give exactly one of route, redirect and directResponse");
    }
    for (index, matching) in rule.matches.iter().enumerate() {
        http_match(findings, &format!("{path}.match[{index}]"), matching, in_mesh);
    }
    weights(findings, path, rule.route.iter().map(|route| route.weight));
    for (index, route) in rule.route.iter().enumerate() {
        let path = format!("{path}.route[{index}]");
        destination(findings, &format!("{path}.destination"), &route.destination);
        headers(findings, &path, route.headers.as_ref());
    }
    headers(findings, path, rule.headers.as_ref());
    period_or_zero(findings, &format!("{path}.timeout"), rule.timeout);
    if let Some(policy) = &rule.retries {
        retries(findings, &format!("{path}.retries"), policy);
    }
    if let Some(redirect) = &rule.redirect {
        http_redirect(findings, &format!("{path}.redirect"), redirect);
        if rule.rewrite.is_some() {
            findings.error(
                format!("{path}.rewrite"),
                "a redirect cannot be rewritten",
                "remove one of the two",
            );
        }
        if rule.fault.is_some() {
            findings.error(format!("{path}.fault"), "a redirect cannot fail", "remove one of the two");
        }
    }
    if let Some(made) = &rule.fault {
        fault(findings, &format!("{path}.fault"), made);
    }
    for (index, mirror) in rule.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        destination(findings, &format!("{path}.destination"), &mirror.destination);
        percentage(findings, &format!("{path}.percentage"), mirror.percentage);
    }
    if let Some(policy) = &rule.cors_policy {
        cors(findings, &format!("{path}.corsPolicy"), policy);
    }
    if let Some(rewrite) = &rule.rewrite {
        http_rewrite(findings, &format!("{path}.rewrite"), rewrite);
    }
    if let Some(response) = &rule.direct_response {
        let path = format!("{path}.directResponse");
        if !(200..=600).contains(&response.status) {
            findings.error(
                format!("{path}.status"),
                format!("{} is no status", response.status),
                "give 200 to 600",
            );
        }
        if let Some(body) = &response.body {
            http_body(findings, &format!("{path}.body"), body);
        }
    }
}

/// 0, or from a ten-thousandth of a percent up, which is what proxies can draw.
fn percentage(findings: &mut Findings, path: &str, percent: Option<Percent>) {
    let Some(Percent { value }) = percent else { return };
    if value != 0.0 && !(0.0001..=100.0).contains(&value) {
        findings.error(path, format!("{value} is no percentage"), "give 0, or 0.0001 to 100");
    }
}

fn fault(findings: &mut Findings, path: &str, fault: &HttpFault) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(path, "empty", "give delay or abort, or take it out");
    }
    let never = |findings: &mut Findings, path: String| {
        let help = "without a percentage it never happens; write percentage: {value: 100} for every request";
        findings.warn(path, "no percentage", help);
    };
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        if delay.fixed_delay.is_none() {
            findings.error(format!("{path}.fixedDelay"), "missing", "say how long, such as 5s");
        }
        period(findings, &format!("{path}.fixedDelay"), delay.fixed_delay);
        percentage(findings, &format!("{path}.percentage"), delay.percentage);
        if delay.percentage.is_none() {
            never(findings, path);
        }
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        match (abort.http_status, &abort.grpc_status) {
            (None, None) => findings.error(&path, "no status", "give httpStatus or grpcStatus"),
            (Some(_), Some(_)) => findings.error(&path, "both httpStatus and grpcStatus", "keep one of them"),
            (Some(status), None) if !(200..=599).contains(&status) => {
                findings.error(
                    format!("{path}.httpStatus"),
                    format!("{status} is no status"),
                    "give 200 to 599",
                );
            }
            (None, Some(name)) if grpc_status(name).is_none() => {
                let help = match super::super::suggest::closest(name, GRPC_STATUSES) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => format!("it is one of {}", GRPC_STATUSES.join(", ")),
                };
                findings.error(format!("{path}.grpcStatus"), format!("unknown status {name:?}"), help);
            }
            _ => {}
        }
        percentage(findings, &format!("{path}.percentage"), abort.percentage);
        if abort.percentage.is_none() {
            never(findings, path);
        }
    }
}

fn cors(findings: &mut Findings, path: &str, policy: &CorsPolicy) {
    for (index, origin) in policy.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{index}]");
        if *origin == StringMatch::Present {
            findings.error(&path, "empty", "give exact, prefix or regex");
        }
        string_match(findings, &path, origin);
    }
    for (index, method) in policy.allow_methods.iter().enumerate() {
        if !CORS_METHODS.contains(&method.as_str()) {
            let help = format!("it is one of {}", CORS_METHODS.join(", "));
            findings.error(format!("{path}.allowMethods[{index}]"), format!("{method:?} is no method"), help);
        }
    }
    for (field, names) in [("allowHeaders", &policy.allow_headers), ("exposeHeaders", &policy.expose_headers)]
    {
        for (index, name) in names.iter().enumerate() {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                let path = format!("{path}.{field}[{index}]");
                findings.error(path, format!("{name:?} is not the name of a header"), "");
            }
        }
    }
    if let Some(age) = policy.max_age {
        period(findings, &format!("{path}.maxAge"), Some(age));
        if age.get().subsec_nanos() != 0 {
            findings.error(format!("{path}.maxAge"), "browsers count whole seconds", "round it");
        }
    }
}

fn http_match(findings: &mut Findings, path: &str, matching: &HttpMatch, in_mesh: bool) {
    let single = [
        ("uri", &matching.uri),
        ("scheme", &matching.scheme),
        ("method", &matching.method),
        ("authority", &matching.authority),
    ];
    for (name, value) in single {
        if let Some(value) = value {
            string_match(findings, &format!("{path}.{name}"), value);
        }
    }
    let maps: [(&str, &BTreeMap<String, StringMatch>); 3] = [
        ("headers", &matching.headers),
        ("withoutHeaders", &matching.without_headers),
        ("queryParams", &matching.query_params),
    ];
    for (field, map) in maps {
        for (name, value) in map {
            let path = format!("{path}.{field}.{name}");
            if field != "queryParams" {
                if let Some(claim) = routing_claim(name) {
                    if let Err(reason) = claim {
                        findings.error(&path, reason, "write @request.auth.claims.NAME");
                    } else if in_mesh {
                        let help = "bind gateways alone (spec.gateways): sidecars find routes before they see tokens";
                        findings.error(&path, "claims of tokens choose routes at gateways only", help);
                    }
                } else if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                    findings.error(&path, format!("{name:?} is not the name of a header"), "");
                }
            }
            string_match(findings, &path, value);
            if let StringMatch::Regex(pattern) = value
                && pattern == "*"
            {
                regex(findings, &path, pattern);
            }
        }
    }
    labels(findings, &format!("{path}.sourceLabels"), &matching.source_labels);
    if let Some(number) = matching.port {
        port(findings, &format!("{path}.port"), number);
    }
}

fn string_match(findings: &mut Findings, path: &str, value: &StringMatch) {
    match value {
        StringMatch::Exact(text) | StringMatch::Prefix(text) if text.is_empty() => {
            findings.error(
                path,
                "an empty text matches nothing in particular",
                "leave the match out, or give a text",
            );
        }
        StringMatch::Regex(pattern) if pattern.is_empty() => {
            findings.error(path, "an empty regular expression", "leave the match out, or give a pattern");
        }
        // Istio takes a bare star as "anything", other than in headers and parameters.
        StringMatch::Regex(pattern) if pattern != "*" => regex(findings, path, pattern),
        _ => {}
    }
}

fn weights(findings: &mut Findings, path: &str, weights: impl ExactSizeIterator<Item = u32>) {
    if weights.len() > 1 && weights.map(u64::from).sum::<u64>() == 0 {
        let help = "give each its share, such as weight: 90 and weight: 10";
        findings.error(format!("{path}.route"), "the weights of several destinations add up to 0", help);
    }
}

/// A service that is named; `path` is where. Shared with Sidecar.
pub(super) fn destination(findings: &mut Findings, path: &str, destination: &Destination) {
    if destination.host.is_empty() {
        findings.error(format!("{path}.host"), "missing", "name the service");
    } else {
        host(findings, &format!("{path}.host"), &destination.host, false);
        if destination.host.starts_with('*') {
            findings.error(format!("{path}.host"), "a destination cannot be a wildcard", "name one service");
        }
    }
    if !destination.subset.is_empty() {
        dns_label(findings, &format!("{path}.subset"), "a subset", &destination.subset);
    }
    if let Some(selector) = destination.port {
        port(findings, &format!("{path}.port.number"), selector.number);
    }
}

fn headers(findings: &mut Findings, path: &str, headers: Option<&Headers>) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        let Some(operations) = operations else { continue };
        let changed = operations
            .set
            .keys()
            .map(|name| ("set", name))
            .chain(operations.add.keys().map(|name| ("add", name)))
            .chain(operations.remove.iter().map(|name| ("remove", name)));
        for (what, name) in changed {
            let name = name.strip_prefix(':').unwrap_or(name);
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                let path = format!("{path}.headers.{side}.{what}");
                findings.error(path, format!("{name:?} is not the name of a header"), "");
            }
        }
        let values = operations
            .set
            .iter()
            .map(|pair| ("set", pair))
            .chain(operations.add.iter().map(|pair| ("add", pair)));
        for (what, (name, value)) in values {
            if http::HeaderValue::from_str(value).is_err() {
                let path = format!("{path}.headers.{side}.{what}.{name}");
                findings.error(path, "the value has a character that headers cannot carry", "");
            } else if value.contains('%') {
                // Proxies put something in the place of commands.
                format(findings, &format!("{path}.headers.{side}.{what}.{name}"), value);
            }
        }
    }
}

/// Shared with the mesh-wide default policy.
pub(super) fn retries(findings: &mut Findings, path: &str, policy: &HttpRetry) {
    let others = policy.per_try_timeout.is_some()
        || !policy.retry_on.is_empty()
        || policy.retry_remote_localities.is_some()
        || policy.backoff.is_some();
    if policy.attempts == 0 && others {
        let help = "give the number of attempts, or remove the other settings";
        findings.error(format!("{path}.attempts"), "0 turns retries off, yet other settings are given", help);
    }
    period(findings, &format!("{path}.perTryTimeout"), policy.per_try_timeout);
    period(findings, &format!("{path}.backoff"), policy.backoff);
    for token in policy.retry_on.split(',').map(str::trim).filter(|token| !token.is_empty()) {
        if RETRY_CONDITIONS.contains(&token) {
            continue;
        }
        let status = token.parse::<u16>().is_ok_and(|status| (100..=599).contains(&status));
        if !status {
            let help = match super::super::suggest::closest(token, RETRY_CONDITIONS.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("it is a status code or one of {}", RETRY_CONDITIONS.join(", ")),
            };
            findings.error(format!("{path}.retryOn"), format!("unknown condition {token:?}"), help);
        }
    }
}

fn http_redirect(findings: &mut Findings, path: &str, redirect: &HttpRedirect) {
    if let Some(code) = redirect.redirect_code
        && !matches!(code, 301 | 302 | 303 | 307 | 308)
    {
        let help = "give 301, 302, 303, 307 or 308";
        findings.error(
            format!("{path}.redirectCode"),
            format!("{code} is no redirect that can be sent"),
            help,
        );
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        findings.error(
            format!("{path}.scheme"),
            format!("unknown scheme {:?}", redirect.scheme),
            "give http or https",
        );
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        findings.error(path, "both port and derivePort", "keep one of them");
    }
    if let Some(number) = redirect.port {
        port(findings, &format!("{path}.port"), number);
    }
    if *redirect == HttpRedirect::default() {
        findings.error(path, "a redirect to nowhere", "give at least one of uri, authority, scheme and port");
    }
}

fn http_rewrite(findings: &mut Findings, path: &str, rewrite: &HttpRewrite) {
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && rewrite.uri_regex_rewrite.is_none() {
        findings.error(path, "nothing to rewrite", "give uri, authority or uriRegexRewrite");
    }
    if let Some(by_regex) = &rewrite.uri_regex_rewrite {
        if !rewrite.uri.is_empty() {
            findings.error(path, "both uri and uriRegexRewrite", "keep one of them");
        }
        let at = format!("{path}.uriRegexRewrite.match");
        if by_regex.pattern.is_empty() {
            findings.error(at, "missing", "give the pattern to replace");
        } else {
            regex(findings, &at, &by_regex.pattern);
        }
    }
}

fn http_body(findings: &mut Findings, path: &str, body: &HttpBody) {
    let length = match (&body.string, &body.bytes) {
        (Some(_), Some(_)) => {
            findings.error(path, "both string and bytes", "keep one of them");
            return;
        }
        (Some(text), None) => text.len(),
        (None, Some(encoded)) => match base64::engine::general_purpose::STANDARD.decode(encoded) {
            Ok(bytes) => bytes.len(),
            Err(_) => {
                findings.error(format!("{path}.bytes"), "not base64", "encode the bytes, or use string");
                return;
            }
        },
        (None, None) => {
            findings.error(path, "empty", "give string or bytes");
            return;
        }
    };
    if length > MAX_BODY {
        findings.error(
            path,
            format!("{length} bytes are more than the limit of {MAX_BODY}"),
            "serve it from a service",
        );
    } else if length > LARGE_BODY {
        findings.warn(
            path,
            format!("{length} bytes in every proxy's configuration"),
            "better serve it from a service",
        );
    }
}

fn l4_routes(findings: &mut Findings, path: &str, routes: &[RouteDestination]) {
    if routes.is_empty() {
        findings.error(format!("{path}.route"), "missing", "say where connections go");
    }
    weights(findings, path, routes.iter().map(|route| route.weight));
    for (index, route) in routes.iter().enumerate() {
        destination(findings, &format!("{path}.route[{index}].destination"), &route.destination);
    }
}

/// The gateways that a match is for.
fn of<'a>(own: &'a [String], all: &'a [String]) -> &'a [String] {
    if own.is_empty() { all } else { own }
}

fn tls_route(findings: &mut Findings, path: &str, rule: &TlsRoute, hosts: &[String], gateways: &[String]) {
    if rule.matches.is_empty() {
        findings.error(format!("{path}.match"), "missing", "match on sniHosts");
    }
    for (index, matching) in rule.matches.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        if matching.sni_hosts.is_empty() {
            findings.error(format!("{path}.sniHosts"), "missing", "name the server names to match");
        }
        for (index, name) in matching.sni_hosts.iter().enumerate() {
            let path = format!("{path}.sniHosts[{index}]");
            host(findings, &path, name, false);
            if !hosts.iter().any(|host| covers(host, name)) {
                let help = "add it to spec.hosts, or match a name that is there";
                findings.error(&path, format!("{name} is not among the hosts of this VirtualService"), help);
            }
        }
        subnets(findings, &path, &matching.destination_subnets, of(&matching.gateways, gateways));
        labels(findings, &format!("{path}.sourceLabels"), &matching.source_labels);
        if let Some(number) = matching.port {
            port(findings, &format!("{path}.port"), number);
        }
    }
    l4_routes(findings, path, &rule.route);
}

fn tcp_route(findings: &mut Findings, path: &str, rule: &TcpRoute, gateways: &[String]) {
    for (index, matching) in rule.matches.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        subnets(findings, &path, &matching.destination_subnets, of(&matching.gateways, gateways));
        labels(findings, &format!("{path}.sourceLabels"), &matching.source_labels);
        if let Some(number) = matching.port {
            port(findings, &format!("{path}.port"), number);
        }
    }
    l4_routes(findings, path, &rule.route);
}

fn subnets(findings: &mut Findings, path: &str, subnets: &[String], gateways: &[String]) {
    if !subnets.is_empty() && gateways.iter().any(|gateway| gateway != "mesh") {
        let path = format!("{path}.destinationSubnets");
        let reason = "connections to a gateway are all made to the gateway's own address: this match holds in the mesh alone";
        findings.warn(path, reason, "match a gateway's connections by port or sniHosts");
    }
    for (index, subnet) in subnets.iter().enumerate() {
        if subnet.parse::<ipnet::IpNet>().is_err() && subnet.parse::<std::net::IpAddr>().is_err() {
            let path = format!("{path}.destinationSubnets[{index}]");
            findings.error(path, format!("{subnet:?} is no address"), "write 10.0.0.0/8 or 10.0.0.1");
        }
    }
}
