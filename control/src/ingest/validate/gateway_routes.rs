//! HTTPRoute, GRPCRoute and TLSRoute of the Gateway API.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::gateway_api::hostname;
use super::{period, period_or_zero, port, regex};
use crate::model::gateway_api::{
    BackendRef, CorsFilter, Filter, FilterKind, GrpcRoute, HeaderFilter, HttpPathMatch, HttpRoute,
    HttpRouteMatch, HttpRouteRule, MatchKind, MirrorFilter, ParentRef, PathKind, PathModifier,
    PathModifierKind, RedirectFilter, TlsRoute, ValueMatch,
};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const MAX_WEIGHT: u32 = 1_000_000;

pub(in super::super) fn http_route(spec: &HttpRoute, findings: &mut Findings) {
    parents(findings, &spec.parent_refs);
    hostnames(findings, &spec.hostnames);
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(findings, &format!("spec.rules[{index}]"), rule);
    }
}

pub(in super::super) fn grpc_route(spec: &GrpcRoute, findings: &mut Findings) {
    parents(findings, &spec.parent_refs);
    hostnames(findings, &spec.hostnames);
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        for (index, wanted) in rule.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            values(findings, &format!("{path}.headers"), &wanted.headers, true);
            let Some(method) = &wanted.method else { continue };
            for (name, value) in [("service", &method.service), ("method", &method.method)] {
                let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
                let path = format!("{path}.method.{name}");
                match method.kind {
                    MatchKind::RegularExpression => regex(findings, &path, value),
                    MatchKind::Exact if value.contains('/') => {
                        let help = "write package.Service and Method in a field each";
                        findings.error(path, format!("{value:?} has a slash"), help);
                    }
                    MatchKind::Exact => {}
                }
            }
        }
        filters(findings, &format!("{path}.filters"), &rule.filters, Place::Grpc);
        backends(findings, &path, &rule.backend_refs, Place::GrpcBackend);
    }
}

pub(in super::super) fn tls_route(spec: &TlsRoute, findings: &mut Findings) {
    parents(findings, &spec.parent_refs);
    hostnames(findings, &spec.hostnames);
    if spec.rules.len() > 1 {
        let help = "keep one: its backendRefs share by weight";
        findings.error("spec.rules[1]", "nothing would reach it: the first rule takes all connections", help);
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        if rule.backend_refs.is_empty() {
            findings.error(format!("{path}.backendRefs"), "missing", "name a Service and its port");
        }
        backends(findings, &path, &rule.backend_refs, Place::Tls);
    }
}

fn parents(findings: &mut Findings, all: &[ParentRef]) {
    if all.is_empty() {
        let help = "name a Gateway, or a Service (group: \"\", kind: Service)";
        findings.warn("spec.parentRefs", "without a parent it has no effect", help);
    }
    for (index, parent) in all.iter().enumerate() {
        let path = format!("spec.parentRefs[{index}]");
        if parent.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the Gateway or Service");
        }
        if parent.port.is_some() {
            port(findings, &format!("{path}.port"), parent.port.unwrap_or_default());
        }
        if parent.is_service() && parent.section_name.as_deref().is_some_and(|name| !name.is_empty()) {
            let help = "choose a port of the Service by port";
            findings.error(format!("{path}.sectionName"), "a Service has no listeners", help);
        }
        if !parent.is_gateway() && !parent.is_service() {
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            let group = parent.group.as_deref().unwrap_or(crate::model::gateway_api::GROUP);
            let reason = format!("Weft serves no parent of kind {kind} ({group:?})");
            let help = "name a Gateway, or a Service (group: \"\", kind: Service)";
            findings.warn(path, reason, help);
        }
    }
}

fn hostnames(findings: &mut Findings, all: &[String]) {
    for (index, name) in all.iter().enumerate() {
        hostname(findings, &format!("spec.hostnames[{index}]"), name);
    }
}

fn http_rule(findings: &mut Findings, path: &str, rule: &HttpRouteRule) {
    for (index, wanted) in rule.matches.iter().enumerate() {
        http_match(findings, &format!("{path}.matches[{index}]"), wanted);
    }
    filters(findings, &format!("{path}.filters"), &rule.filters, Place::Http);
    let redirects = rule.filters.iter().any(|filter| filter.request_redirect.is_some());
    if redirects && !rule.backend_refs.is_empty() {
        let help = "take one of both out";
        findings.error(format!("{path}.backendRefs"), "not used: the rule redirects", help);
    }
    for (index, filter) in rule.filters.iter().enumerate() {
        let redirect = filter.request_redirect.as_ref().and_then(|r| r.path.as_ref());
        let rewrite = filter.url_rewrite.as_ref().and_then(|r| r.path.as_ref());
        let replaces = redirect.or(rewrite).is_some_and(|p| p.replace_prefix_match.is_some());
        if replaces && rule.matches.iter().any(|one| !by_prefix(one)) {
            let reason = "replacePrefixMatch needs matches by PathPrefix";
            let help = "make every match of the rule PathPrefix, or use replaceFullPath";
            findings.error(format!("{path}.filters[{index}]"), reason, help);
        }
    }
    backends(findings, path, &rule.backend_refs, Place::HttpBackend);
    period_or_zero(findings, &format!("{path}.timeouts.request"), rule.timeouts.request);
    period_or_zero(findings, &format!("{path}.timeouts.backendRequest"), rule.timeouts.backend_request);
    let given = |time: Option<crate::model::Timespan>| time.map(|t| t.get()).filter(|t| !t.is_zero());
    if let (Some(whole), Some(each)) = (given(rule.timeouts.request), given(rule.timeouts.backend_request))
        && each > whole
    {
        let help = "make request at least as long as backendRequest";
        findings.error(
            format!("{path}.timeouts.backendRequest"),
            "longer than the whole request may take",
            help,
        );
    }
    if let Some(retry) = &rule.retry {
        for (index, code) in retry.codes.iter().enumerate().filter(|(_, c)| !(400..=599).contains(*c)) {
            let reason = format!("{code} is no status of an error");
            findings.error(format!("{path}.retry.codes[{index}]"), reason, "give one from 400 to 599");
        }
        period(findings, &format!("{path}.retry.backoff"), retry.backoff);
    }
}

fn by_prefix(wanted: &HttpRouteMatch) -> bool {
    wanted.path.as_ref().is_none_or(|path| path.kind == PathKind::PathPrefix)
}

fn http_match(findings: &mut Findings, path: &str, wanted: &HttpRouteMatch) {
    if let Some(given) = &wanted.path {
        path_match(findings, &format!("{path}.path.value"), given);
    }
    values(findings, &format!("{path}.headers"), &wanted.headers, true);
    values(findings, &format!("{path}.queryParams"), &wanted.query_params, false);
    if let Some(method) = wanted.method.as_deref().filter(|method| !METHODS.contains(method)) {
        let help = format!("it is one of {}", METHODS.join(", "));
        findings.error(format!("{path}.method"), format!("unknown method {method:?}"), help);
    }
}

fn path_match(findings: &mut Findings, path: &str, given: &HttpPathMatch) {
    let value = given.value.as_deref().unwrap_or("/");
    if given.kind == PathKind::RegularExpression {
        regex(findings, path, value);
        return;
    }
    let lower = value.to_ascii_lowercase();
    let bad = ["//", "/./", "/../", "%2f", "#"].iter().find(|bad| lower.contains(**bad));
    let end = ["/..", "/."].iter().find(|end| lower.ends_with(**end));
    if !value.starts_with('/') {
        findings.error(
            path,
            format!("{value:?} does not begin with /"),
            "write it as a path, from its first /",
        );
    } else if let Some(bad) = bad.or(end) {
        findings.error(
            path,
            format!("{value:?} has {bad:?}, which no request's path has"),
            "write it plainly",
        );
    }
}

fn values(findings: &mut Findings, path: &str, all: &[ValueMatch], header: bool) {
    let mut seen = HashSet::new();
    for (index, one) in all.iter().enumerate() {
        let path = format!("{path}[{index}]");
        name(findings, &format!("{path}.name"), &one.name, header);
        let folded = if header { one.name.to_ascii_lowercase() } else { one.name.clone() };
        if !seen.insert(folded) {
            findings.error(format!("{path}.name"), format!("{:?} is given twice", one.name), "remove one");
        }
        if one.kind == MatchKind::RegularExpression {
            regex(findings, &format!("{path}.value"), &one.value);
        } else if one.value.is_empty() {
            findings.error(
                format!("{path}.value"),
                "missing",
                "give the value, or match by RegularExpression",
            );
        }
    }
}

fn name(findings: &mut Findings, path: &str, name: &str, header: bool) {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() {
        findings.error(path, "missing", "give the name");
    } else if header && !name.bytes().all(token) {
        findings.error(path, format!("{name:?} is no name of a header"), "write letters, digits and hyphens");
    }
}

/// Where a filter stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Http,
    HttpBackend,
    Grpc,
    GrpcBackend,
    Tls,
}

impl Place {
    fn takes(self, kind: FilterKind) -> bool {
        use FilterKind::{
            CORS, RequestHeaderModifier, RequestMirror, RequestRedirect, ResponseHeaderModifier, URLRewrite,
        };
        match kind {
            RequestHeaderModifier | ResponseHeaderModifier => self != Self::Tls,
            RequestMirror => matches!(self, Self::Http | Self::Grpc),
            RequestRedirect | URLRewrite | CORS => self == Self::Http,
            FilterKind::ExtensionRef | FilterKind::ExternalAuth => false,
        }
    }
}

fn filters(findings: &mut Findings, path: &str, all: &[Filter], place: Place) {
    let mut seen: Vec<FilterKind> = Vec::new();
    for (index, filter) in all.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(kind) = filter.kind else {
            findings.error(format!("{path}.type"), "missing", "say which filter it is");
            continue;
        };
        if !place.takes(kind) {
            let where_to = match place {
                Place::Tls => "in a TLSRoute",
                Place::HttpBackend | Place::GrpcBackend => "for one backend",
                Place::Grpc => "in a GRPCRoute",
                Place::Http => "by Weft",
            };
            findings.error(
                format!("{path}.type"),
                format!("{kind:?} is not supported {where_to}"),
                "take it out",
            );
            continue;
        }
        if kind != FilterKind::RequestMirror && seen.contains(&kind) {
            findings.error(format!("{path}.type"), format!("{kind:?} is given twice"), "make one of both");
        }
        seen.push(kind);
        let parts = [
            (
                FilterKind::RequestHeaderModifier,
                "requestHeaderModifier",
                filter.request_header_modifier.is_some(),
            ),
            (
                FilterKind::ResponseHeaderModifier,
                "responseHeaderModifier",
                filter.response_header_modifier.is_some(),
            ),
            (FilterKind::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
            (FilterKind::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
            (FilterKind::URLRewrite, "urlRewrite", filter.url_rewrite.is_some()),
            (FilterKind::CORS, "cors", filter.cors.is_some()),
        ];
        for (of, name, given) in parts {
            if given && of != kind {
                findings.error(format!("{path}.{name}"), format!("not used by a {kind:?}"), "take it out");
            } else if !given && of == kind {
                findings.error(
                    format!("{path}.{name}"),
                    format!("missing for a {kind:?}"),
                    "say what it does",
                );
            }
        }
        filter_parts(findings, &path, filter);
    }
    if seen.contains(&FilterKind::RequestRedirect) && seen.contains(&FilterKind::URLRewrite) {
        findings.error(path, "RequestRedirect and URLRewrite exclude each other", "take one of both out");
    }
}

fn filter_parts(findings: &mut Findings, path: &str, filter: &Filter) {
    for (field, modifier) in [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ] {
        if let Some(modifier) = modifier {
            headers(findings, &format!("{path}.{field}"), modifier);
        }
    }
    if let Some(mirror) = &filter.request_mirror {
        mirrored(findings, &format!("{path}.requestMirror"), mirror);
    }
    if let Some(redirect) = &filter.request_redirect {
        redirected(findings, &format!("{path}.requestRedirect"), redirect);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        let path = format!("{path}.urlRewrite");
        if let Some(name) = &rewrite.hostname {
            hostname(findings, &format!("{path}.hostname"), name);
        }
        rewritten(findings, &path, rewrite.path.as_ref());
    }
    if let Some(cors) = &filter.cors {
        origins(findings, &format!("{path}.cors"), cors);
    }
}

fn headers(findings: &mut Findings, path: &str, modifier: &HeaderFilter) {
    for (field, list) in [("set", &modifier.set), ("add", &modifier.add)] {
        for (index, header) in list.iter().enumerate() {
            name(findings, &format!("{path}.{field}[{index}].name"), &header.name, true);
        }
    }
    for (index, header) in modifier.remove.iter().enumerate() {
        name(findings, &format!("{path}.remove[{index}]"), header, true);
    }
}

fn mirrored(findings: &mut Findings, path: &str, mirror: &MirrorFilter) {
    backend(findings, &format!("{path}.backendRef"), &mirror.backend_ref);
    if mirror.backend_ref.weight.is_some() || !mirror.backend_ref.filters.is_empty() {
        let help = "give percent or fraction for a share";
        findings.error(format!("{path}.backendRef"), "a mirror has neither weight nor filters", help);
    }
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        findings.error(format!("{path}.fraction"), "given beside percent", "keep one of both");
    }
    if mirror.percent.is_some_and(|percent| percent > 100) {
        findings.error(format!("{path}.percent"), "more than 100", "give 0 to 100");
    }
    if let Some(fraction) = mirror.fraction {
        let denominator = fraction.denominator.unwrap_or(100);
        if denominator == 0 || fraction.numerator > denominator {
            let help = "the numerator is at most the denominator, which is 100 unless given";
            findings.error(format!("{path}.fraction"), "no share", help);
        }
    }
}

fn redirected(findings: &mut Findings, path: &str, redirect: &RedirectFilter) {
    if let Some(scheme) = redirect.scheme.as_deref().filter(|s| !matches!(*s, "http" | "https")) {
        findings.error(format!("{path}.scheme"), format!("{scheme:?} is neither http nor https"), "");
    }
    if let Some(name) = &redirect.hostname {
        hostname(findings, &format!("{path}.hostname"), name);
    }
    if redirect.port == Some(0) {
        port(findings, &format!("{path}.port"), 0);
    }
    if let Some(code) = redirect.status_code.filter(|code| !matches!(code, 301..=303 | 307 | 308)) {
        let help = "it is 301, 302, 303, 307 or 308";
        findings.error(format!("{path}.statusCode"), format!("{code} does not redirect"), help);
    }
    rewritten(findings, path, redirect.path.as_ref());
}

fn rewritten(findings: &mut Findings, path: &str, modifier: Option<&PathModifier>) {
    let Some(modifier) = modifier else { return };
    let (full, prefix) = (modifier.replace_full_path.is_some(), modifier.replace_prefix_match.is_some());
    let right = match modifier.kind {
        Some(PathModifierKind::ReplaceFullPath) => full && !prefix,
        Some(PathModifierKind::ReplacePrefixMatch) => prefix && !full,
        None => false,
    };
    if !right {
        let help = "write type: ReplaceFullPath with replaceFullPath, or type: ReplacePrefixMatch with replacePrefixMatch";
        findings.error(format!("{path}.path"), "type and value do not belong together", help);
    }
}

fn origins(findings: &mut Findings, path: &str, cors: &CorsFilter) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        let stars = origin.matches('*').count();
        let wild = origin == "*" || (stars == 1 && origin.contains("://*."));
        if !wild && (stars > 0 || !origin.contains("://")) {
            let help = "write it as https://a.example, https://*.example or \"*\"";
            findings.error(format!("{path}.allowOrigins[{index}]"), format!("{origin:?} is no origin"), help);
        }
    }
    if cors.allow_credentials == Some(true) {
        for (field, list) in [
            ("allowMethods", &cors.allow_methods),
            ("allowHeaders", &cors.allow_headers),
            ("exposeHeaders", &cors.expose_headers),
        ] {
            if list.iter().any(|one| one == "*") {
                let help = "name them: with credentials a browser takes the star for a name";
                findings.error(format!("{path}.{field}"), "\"*\" beside allowCredentials", help);
            }
        }
    }
    if cors.max_age == Some(0) {
        findings.error(format!("{path}.maxAge"), "0 seconds", "give at least 1");
    }
}

fn backends(findings: &mut Findings, path: &str, all: &[BackendRef], place: Place) {
    for (index, one) in all.iter().enumerate() {
        let path = format!("{path}.backendRefs[{index}]");
        backend(findings, &path, one);
        if one.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
            findings.error(
                format!("{path}.weight"),
                format!("more than {MAX_WEIGHT}"),
                "give a smaller share",
            );
        }
        filters(findings, &format!("{path}.filters"), &one.filters, place);
    }
}

/// A kind that is not served is said of the route's references, not of its form.
fn backend(findings: &mut Findings, path: &str, one: &BackendRef) {
    if one.name.is_empty() {
        findings.error(format!("{path}.name"), "missing", "name the Service");
    }
    let service = one.group.as_deref().unwrap_or_default().is_empty()
        && one.kind.as_deref().unwrap_or("Service") == "Service";
    match one.port {
        Some(0) => port(findings, &format!("{path}.port"), 0),
        None if service => findings.error(format!("{path}.port"), "missing", "give the port of the Service"),
        _ => {}
    }
}
