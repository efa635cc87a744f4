//! Route configurations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::captured::outbound::{addresses, reached, routes_of};
use super::cluster::{INBOUND_PASSTHROUGH, Inbound, outbound_name, services};
use super::memo::Output;
use super::{
    Interception, ProxyNode, authentication, captured, external_credential, rate_limit, rules, seconds,
    traffic,
};
use crate::model::sidecar::CaptureMode;
use crate::model::traffic_management::StickyBy;
use crate::model::values::{StringMatch, selects};
use crate::model::virtual_service::{
    Destination, HeaderOperations, Headers, HttpMatch, HttpRetry, HttpRoute, HttpRouteDestination,
    RETRY_ANY_ANNOTATION, VirtualService, routing_claim,
};
use crate::model::{Object, Protocol, Service, ServicePort, World};

/// What istiod retries where nobody says anything.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// The port at which a sidecar takes its application's requests as an HTTP proxy.
pub(super) fn http_proxy_port(world: &World, node: &ProxyNode) -> Option<u16> {
    node.http_proxy_port.or(Some(world.mesh().proxy_http_port)).filter(|p| *p > 0)
}

/// The one route of inbound ports that no service has: where the request was going.
pub(super) fn inbound_passthrough() -> Value {
    let mut routes = inbound_route(INBOUND_PASSTHROUGH, "", 0);
    try_again(&mut routes);
    routes
}

/// Has what was not processed be tried again.
fn try_again(inbound: &mut Value) {
    inbound["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] =
        json!({"retry_on": "reset-before-request", "num_retries": 2});
}

/// The one route of an inbound port: to the application. What was not processed is tried again, except by gRPC.
pub(super) fn inbound(inbound: &Inbound) -> Value {
    let (host, port) = match &inbound.service {
        Some((service, port)) => (&*service.hostname, *port),
        None => ("localhost", inbound.port),
    };
    let mut routes = inbound_route(&inbound.cluster(), host, port);
    if !matches!(inbound.protocol, Protocol::Grpc | Protocol::GrpcWeb) {
        try_again(&mut routes);
    }
    routes
}

/// One route to a cluster, for what is called by this host and port.
fn inbound_route(cluster: &str, host: &str, port: u16) -> Value {
    json!({
        "name": cluster,
        "validate_clusters": false,
        "virtual_hosts": [{
            "name": format!("inbound|http|{port}"),
            "domains": ["*"],
            "routes": [{
                "name": "default",
                "match": {"prefix": "/"},
                "decorator": {"operation": format!("{host}:{port}/*")},
                "route": {
                    "cluster": cluster,
                    "timeout": "0s",
                    "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
                },
            }],
        }],
    })
}

pub(super) fn sidecar(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    // Proxies of one namespace with the same labels, as far as these matter, get the same routes.
    let labels = node.client_labels(world);
    let inputs = (world.shape_version(), &node.namespace, &labels, node.allocated_families());
    let all = services(world, node);
    if http_proxy_port(world, node).is_some() {
        out.put("http_proxy", inputs, || outbound(world, node, "http_proxy", &spoken(&all), By::Authority));
    }
    if node.interception != Interception::None {
        captured(world, node, out);
    }
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    for listener in sidecar.iter().flat_map(|s| &s.spec.egress) {
        let Some(given) = &listener.port else { continue };
        if node.interception != Interception::None && listener.capture_mode != CaptureMode::None {
            continue;
        }
        let (port, proxy) = (given.number, given.is_http_proxy());
        let name = port.to_string();
        out.put(&name, inputs, || {
            let imported = world.imported_services(&node.namespace, Some(listener));
            let at_port = imported.iter().filter(|s| s.port(port).is_some()).map(|s| (*s, port));
            let wanted = if proxy { spoken(&imported) } else { at_port.collect() };
            outbound(world, node, &name, &wanted, if proxy { By::Authority } else { By::Host })
        });
    }
}

/// The routes of what a captured application dials: for each port at which services of the mesh speak HTTP, and for each
/// service that is known by its address and may speak it.
fn captured(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let dialled = (node.interception, node.allocated_families());
    let labels = node.client_labels(world);
    let inputs = (world.shape_version(), &node.namespace, &labels, dialled);
    let all = reached(world, node);
    let mut shared: BTreeMap<u16, Vec<(&Arc<Service>, u16)>> = BTreeMap::new();
    for reached in &all {
        for port in reached.ports().filter(|p| p.protocol.is_http() || p.protocol.is_auto()) {
            shared.entry(port.number).or_default().push((reached.service, port.number));
            let name = routes_of(node, reached, port);
            if name != port.number.to_string() {
                let wanted = [(reached.service, port.number)];
                out.put(&name, inputs, || outbound(world, node, &name, &wanted, By::Address));
            }
        }
    }
    for (port, wanted) in shared {
        let name = port.to_string();
        out.put(&name, inputs, || outbound(world, node, &name, &wanted, By::Host));
    }
}

/// By what requests tell which service they are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The host, at a port that services share.
    Host,
    /// The host and the port, as at an HTTP proxy.
    Authority,
    /// The address that was dialled: there is one service.
    Address,
}

/// Every port of the services at which HTTP may be spoken.
fn spoken<'a>(services: &[&'a Arc<Service>]) -> Vec<(&'a Arc<Service>, u16)> {
    let http = |p: &&ServicePort| p.protocol.is_http() || p.protocol.is_auto();
    services.iter().flat_map(|s| s.ports.iter().filter(http).map(|p| (*s, p.number))).collect()
}

/// The routes to these services and ports.
fn outbound(world: &World, node: &ProxyNode, name: &str, wanted: &[(&Arc<Service>, u16)], by: By) -> Value {
    let proxy = by == By::Authority;
    let imported = rules::imported(world, node);
    let mut taken = std::collections::BTreeSet::new();
    let mut hosts = Vec::new();
    for (service, port) in wanted {
        // A port that the address must carry, as at a proxy port, where every port of every service meets.
        let mut domains: Vec<String> = Vec::new();
        for domain in domains_of(world, service, node) {
            if !proxy || *port == 80 {
                domains.push(domain.clone());
            }
            if proxy {
                domains.push(format!("{domain}:{port}"));
            }
        }
        if by == By::Address {
            domains = vec!["*".to_owned()];
        }
        domains.retain(|d| taken.insert(d.to_ascii_lowercase()));
        if domains.is_empty() {
            continue;
        }
        let routes = match rules::of_host(&imported, &service.hostname) {
            Some(rules) => http_routes(world, node, rules, "mesh", *port),
            None => vec![default_route(world, node, service, *port)],
        };
        hosts.push(json!({
            "name": format!("{}:{port}", service.hostname),
            "domains": domains,
            "routes": routes,
            "include_request_attempt_count": true,
        }));
    }
    if let (By::Host, Ok(port)) = (by, name.parse::<u16>()) {
        for (host, rules) in rules::of_unknown(&imported, &services(world, node), port) {
            let mut domains = absolute(host);
            domains.retain(|d| taken.insert(d.to_ascii_lowercase()));
            let routes = http_routes(world, node, rules, "mesh", port);
            if !domains.is_empty() && !routes.is_empty() {
                hosts.push(json!({
                    "name": format!("{host}:{port}"),
                    "domains": domains,
                    "routes": routes,
                    "include_request_attempt_count": true,
                }));
            }
        }
    }
    hosts.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let cluster = captured::unknown_cluster(world, node);
    hosts.extend((by != By::Address).then(|| match cluster {
        None => json!({"name": "block_all", "domains": ["*"], "routes": [{
            "name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}]}),
        Some(cluster) => json!({"name": "allow_any", "domains": ["*"], "routes": [{
            "name": "allow_any", "match": {"prefix": "/"}, "route": {
                "cluster": cluster, "timeout": "0s", "max_grpc_timeout": "0s"}}],
            "include_request_attempt_count": true}),
    }));
    json!({
        "name": name,
        "virtual_hosts": hosts,
        "validate_clusters": false,
        "max_direct_response_body_size_bytes": 1_048_576,
        "ignore_port_in_host_matching": !proxy,
    })
}

/// The names by which a node calls a host of this namespace, the full one first.
fn names_of(full: &str, own: &str, world: &World, node: &ProxyNode) -> Vec<String> {
    let mut names = absolute(full);
    if let Some(short) = full.strip_suffix(&format!(".{own}.svc.{}", world.domain())) {
        if own == node.namespace {
            names.push(short.to_owned());
        }
        names.push(format!("{short}.{own}"));
        names.push(format!("{short}.{own}.svc"));
    }
    names
}

/// The names and addresses by which a node calls a service.
fn domains_of(world: &World, service: &Service, node: &ProxyNode) -> Vec<String> {
    let mut names = names_of(&service.hostname, service.namespace(), world, node);
    if service.headless {
        // Its members have names below it.
        let below: Vec<_> = names.iter().map(|name| format!("*.{name}")).collect();
        names.extend(below);
    }
    for alias in &service.aliases {
        names.extend(names_of(&alias.hostname, &alias.namespace, world, node));
    }
    names.extend(addresses(service, node).into_iter().map(str::to_owned));
    names
}

/// A host name, and the same as resolvers write it that were told not to search.
fn absolute(host: &str) -> Vec<String> {
    match host.starts_with('*') {
        true => vec![host.to_owned()],
        false => vec![host.to_owned(), format!("{host}.")],
    }
}

fn default_route(world: &World, node: &ProxyNode, service: &Service, port: u16) -> Value {
    let mut route = json!({"timeout": "0s", "max_grpc_timeout": "0s"});
    let cluster = |subset: &str| outbound_name(port, subset, &service.hostname);
    let mut alike = Vec::new();
    match world.split(&node.namespace, node.selected_by(world), service).as_deref() {
        None => route["cluster"] = cluster("").into(),
        Some([(only, _)]) => route["cluster"] = cluster(only).into(),
        Some(several) => {
            let clusters =
                several.iter().map(|(subset, share)| json!({"name": cluster(subset), "weight": share}));
            route["weighted_clusters"] = json!({"clusters": clusters.collect::<Vec<_>>()});
            if let Some(by) = world.sticky(service) {
                route["weighted_clusters"]["use_hash_policy"] = true.into();
                alike.push(traffic::sticky(by));
            }
        }
    }
    let hash = traffic::hash_policy(world, node, service, "", port);
    if let Some(policy) = retry_policy(world.mesh().default_http_retry_policy.as_ref(), false) {
        route["retry_policy"] = policy;
    }
    alike.extend(hash);
    if !alike.is_empty() {
        route["hash_policy"] = alike.into();
    }
    let mut whole = json!({
        "name": "default",
        "match": {"prefix": "/"},
        "route": route,
        "decorator": {"operation": format!("{}:{port}/*", service.hostname)},
    });
    be_careful(node, world.mesh().default_http_retry_policy.as_ref(), &mut whole);
    external_credential::turn_on(world, node, &service.hostname, &mut whole);
    whole
}

/// Has a proxy of ours try again requests that must not be done twice only where nothing was done. Envoy cannot be told so.
fn be_careful(node: &ProxyNode, retries: Option<&HttpRetry>, route: &mut Value) {
    if node.extensions && retries.is_some_and(|r| r.attempts > 0 && r.after_processing().next().is_some()) {
        route["metadata"]["filter_metadata"]["weft.dev"] = json!({"careful_retries": true});
    }
}

/// `hashed`: the one destination balances by a hash. Its requests are tried again at the same host, where they belong.
fn retry_policy(retries: Option<&HttpRetry>, hashed: bool) -> Option<Value> {
    let previous = json!([{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type":
        "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]);
    let Some(retries) = retries else {
        let mut policy = json!({
            "retry_on": DEFAULT_RETRY_ON,
            "num_retries": 2,
            "host_selection_retry_max_attempts": 5,
        });
        if !hashed {
            policy["retry_host_predicate"] = previous;
        }
        return Some(policy);
    };
    if retries.attempts == 0 {
        return None;
    }
    let mut policy = json!({"num_retries": retries.attempts, "host_selection_retry_max_attempts": 5});
    let mut tokens = Vec::new();
    let mut codes = Vec::new();
    for token in retries.retry_on.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match token.parse::<u32>() {
            Ok(code) => codes.push(code),
            Err(_) => tokens.push(token),
        }
    }
    if !codes.is_empty() {
        policy["retriable_status_codes"] = codes.into();
        if !tokens.contains(&"retriable-status-codes") {
            tokens.push("retriable-status-codes");
        }
    }
    policy["retry_on"] =
        if tokens.is_empty() { DEFAULT_RETRY_ON.to_owned() } else { tokens.join(",") }.into();
    if retries.retry_ignore_previous_hosts.unwrap_or(!hashed) {
        policy["retry_host_predicate"] = previous;
    }
    if let Some(timeout) = retries.per_try_timeout {
        policy["per_try_timeout"] = seconds(timeout.get());
    }
    if let Some(backoff) = retries.backoff {
        policy["retry_back_off"] = json!({"base_interval": seconds(backoff.get())});
    }
    if retries.retry_remote_localities == Some(true) {
        policy["retry_priority"] = json!({"name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 2}});
    }
    Some(policy)
}

/// The routes that a VirtualService makes for a port, in order; nothing after one that matches everything.
pub(super) fn http_routes(
    world: &World,
    node: &ProxyNode,
    rules: &Object<VirtualService>,
    gateway: &str,
    port: u16,
) -> Vec<Value> {
    let mut routes = Vec::new();
    'rules: for http in &rules.spec.http {
        let everything = [HttpMatch::default()];
        let matches = if http.matches.is_empty() { &everything[..] } else { &http.matches };
        for wanted in matches {
            if !applies(world, node, wanted, gateway, port) {
                continue;
            }
            let rendered = match_of(wanted);
            let all = rendered == json!({"prefix": "/"});
            if let Some(mut route) = route(world, node, rules, http, wanted, rendered, port) {
                if gateway != "mesh" && !http.name.is_empty() {
                    rate_limit::turn_on(world, node, &http.name, &mut route);
                }
                routes.push(route);
            }
            if all {
                break 'rules;
            }
        }
    }
    routes
}

/// Whether a match can hold at this node, gateway and port: what is known when rendering. As with istiod the source is the proxy
/// that has the rule, at a gateway too, and one that names gateways does not ask for it.
fn applies(world: &World, node: &ProxyNode, wanted: &HttpMatch, gateway: &str, port: u16) -> bool {
    let source = || {
        selects(&wanted.source_labels, node.selected_by(world))
            && (wanted.source_namespace.is_empty() || wanted.source_namespace == node.namespace)
    };
    let here = match wanted.gateways.as_slice() {
        [] => source(),
        named => named.iter().any(|g| g == gateway),
    };
    here && wanted.port.is_none_or(|p| p == port)
}

pub(super) fn string_match(wanted: &StringMatch) -> Value {
    match wanted {
        StringMatch::Exact(text) => json!({"exact": text}),
        StringMatch::Prefix(text) => json!({"prefix": text}),
        StringMatch::Regex(text) => json!({"safe_regex": {"regex": text}}),
        StringMatch::Present => json!({"safe_regex": {"regex": ".*"}}),
    }
}

fn header(name: &str, wanted: &StringMatch, invert: bool) -> Value {
    let present = match wanted {
        StringMatch::Present => true,
        StringMatch::Regex(text) => text == "*",
        StringMatch::Exact(text) => text.is_empty(),
        StringMatch::Prefix(_) => false,
    };
    let mut matcher = if present {
        json!({"name": name, "present_match": true})
    } else {
        json!({"name": name, "string_match": string_match(wanted)})
    };
    if invert {
        matcher["invert_match"] = true.into();
        if !present {
            matcher["treat_missing_header_as_empty"] = true.into();
        }
    }
    matcher
}

/// A claim of a verified token, itself or one of its list.
fn claim(path: &[&str], wanted: &StringMatch, invert: bool) -> Value {
    let text = match wanted {
        StringMatch::Present => json!({"safe_regex": {"regex": ".+"}}),
        StringMatch::Regex(text) if text == "*" => json!({"safe_regex": {"regex": ".+"}}),
        other => string_match(other),
    };
    let one = json!({"string_match": text});
    let path: Vec<Value> =
        std::iter::once(&authentication::PAYLOAD).chain(path).map(|key| json!({"key": key})).collect();
    json!({
        "filter": authentication::FILTER,
        "path": path,
        "value": {"or_match": {"value_matchers": [{"list_match": {"one_of": one}}, one]}},
        "invert": invert,
    })
}

fn match_of(wanted: &HttpMatch) -> Value {
    let mut rendered = match &wanted.uri {
        None | Some(StringMatch::Present) => json!({"prefix": "/"}),
        Some(StringMatch::Exact(path)) => json!({"path": path}),
        Some(StringMatch::Prefix(prefix)) if wanted.whole_segments => {
            json!({"path_separated_prefix": prefix})
        }
        Some(StringMatch::Prefix(prefix)) => json!({"prefix": prefix}),
        Some(StringMatch::Regex(regex)) => json!({"safe_regex": {"regex": regex}}),
    };
    if wanted.ignore_uri_case {
        rendered["case_sensitive"] = false.into();
    }
    let (mut headers, mut claims) = (Vec::new(), Vec::new());
    for (all, invert) in [(&wanted.headers, false), (&wanted.without_headers, true)] {
        for (name, value) in all {
            match routing_claim(name) {
                Some(Ok(path)) => claims.push(claim(&path, value, invert)),
                _ => headers.push(header(name, value, invert)),
            }
        }
    }
    if !claims.is_empty() {
        rendered["dynamic_metadata"] = claims.into();
    }
    for (name, part) in
        [(":method", &wanted.method), (":authority", &wanted.authority), (":scheme", &wanted.scheme)]
    {
        headers.extend(part.as_ref().map(|m| header(name, m, false)));
    }
    if !headers.is_empty() {
        rendered["headers"] = headers.into();
    }
    let parameters: Vec<Value> = wanted
        .query_params
        .iter()
        .map(|(name, m)| match m {
            StringMatch::Present => json!({"name": name, "present_match": true}),
            m => json!({"name": name, "string_match": string_match(m)}),
        })
        .collect();
    if !parameters.is_empty() {
        rendered["query_parameters"] = parameters.into();
    }
    rendered
}

fn route(
    world: &World,
    node: &ProxyNode,
    rules: &Object<VirtualService>,
    http: &HttpRoute,
    wanted: &HttpMatch,
    rendered: Value,
    port: u16,
) -> Option<Value> {
    let mut name = http.name.clone();
    if !wanted.name.is_empty() {
        name = if name.is_empty() { wanted.name.clone() } else { format!("{name}.{}", wanted.name) };
    }
    let mut route = json!({"match": rendered});
    if !name.is_empty() {
        route["name"] = name.into();
    }
    if !wanted.stat_prefix.is_empty() {
        route["stat_prefix"] = wanted.stat_prefix.as_str().into();
    }
    let (meta, kind) = (&rules.meta, "virtual-service");
    let config = http.origin.clone().unwrap_or_else(|| {
        format!("/apis/networking.istio.io/v1/namespaces/{}/{kind}/{}", meta.namespace, meta.name)
    });
    route["metadata"] = json!({"filter_metadata": {"istio": {"config": config}}});
    if let Some(headers) = &http.headers {
        operations(&mut route, "request", headers.request.as_ref());
        operations(&mut route, "response", headers.response.as_ref());
    }
    let mut own = json!({});
    if let Some(made) = &http.fault {
        own["envoy.filters.http.fault"] = traffic::fault(made);
    }
    if let Some(policy) = &http.cors_policy {
        own["envoy.filters.http.cors"] = traffic::cors(policy);
    }
    if own.as_object().is_some_and(|own| !own.is_empty()) {
        route["typed_per_filter_config"] = own;
    }
    if let Some(redirect) = &http.redirect {
        route["redirect"] = redirect_of(redirect, port);
        return Some(route);
    }
    if let Some(direct) = &http.direct_response {
        let mut answer = json!({"status": direct.status});
        if let Some(body) = &direct.body {
            answer["body"] = match (&body.string, &body.bytes) {
                (Some(text), _) => json!({"inline_string": text}),
                (_, Some(bytes)) => json!({"inline_bytes": bytes}),
                _ => json!({"inline_string": ""}),
            };
        }
        route["direct_response"] = answer;
        return Some(route);
    }
    route["route"] = action(world, node, http, port)?;
    // What the only destination does comes behind the rule's; what one of several does comes before it, as Envoy has it.
    if let ([only], true) = (http.route.as_slice(), route["route"]["cluster"].is_string())
        && let Some(headers) = &only.headers
    {
        operations(&mut route, "request", headers.request.as_ref());
        operations(&mut route, "response", headers.response.as_ref());
    }
    if rules.meta.annotations.get(RETRY_ANY_ANNOTATION).is_none_or(|value| value != "true") {
        let retries = http.retries.as_ref().or(world.mesh().default_http_retry_policy.as_ref());
        be_careful(node, retries, &mut route);
    }
    if let [only] = weighted(http).as_slice() {
        external_credential::turn_on(world, node, &only.destination.host, &mut route);
    }
    route["decorator"] = json!({"operation": format!("{}:{port}/*", http.route.first()?.destination.host)});
    Some(route)
}

fn redirect_of(redirect: &crate::model::virtual_service::HttpRedirect, port: u16) -> Value {
    use crate::model::virtual_service::DerivePort;
    let mut rendered = json!({});
    // Istio's word for "what stands behind the matched prefix stays".
    if let Some(regex) = &redirect.regex {
        rendered["regex_rewrite"] =
            json!({"pattern": {"regex": regex.pattern}, "substitution": regex.rewrite});
    } else if let Some(rest) = redirect.uri.strip_prefix("%PREFIX()%") {
        rendered["prefix_rewrite"] = rest.into();
    } else if !redirect.uri.is_empty() {
        rendered["path_redirect"] = redirect.uri.as_str().into();
    }
    if !redirect.authority.is_empty() {
        rendered["host_redirect"] = redirect.authority.as_str().into();
    }
    if !redirect.scheme.is_empty() {
        rendered["scheme_redirect"] = redirect.scheme.as_str().into();
    }
    let port = match (redirect.port, redirect.derive_port) {
        (Some(given), _) => Some(given),
        (None, Some(DerivePort::FromRequestPort)) => Some(port),
        // The scheme's own, which goes without saying.
        (None, Some(DerivePort::FromProtocolDefault) | None) => None,
    };
    let unsaid = matches!((redirect.scheme.as_str(), port), ("http", Some(80)) | ("https", Some(443)));
    if let Some(port) = port.filter(|_| !unsaid) {
        rendered["port_redirect"] = port.into();
    }
    rendered["response_code"] = match redirect.redirect_code {
        Some(302) => "FOUND",
        Some(303) => "SEE_OTHER",
        Some(307) => "TEMPORARY_REDIRECT",
        Some(308) => "PERMANENT_REDIRECT",
        _ => "MOVED_PERMANENTLY",
    }
    .into();
    rendered
}

/// The destinations that get requests.
fn weighted(http: &HttpRoute) -> Vec<&HttpRouteDestination> {
    match http.route.as_slice() {
        [only] => vec![only],
        several => several.iter().filter(|d| d.weight > 0).collect(),
    }
}

/// The same, where those without a subset whose service has a version on trial become the two versions. What names a subset is
/// meant so.
fn split<'a>(
    world: &World,
    node: &ProxyNode,
    destinations: Vec<&'a HttpRouteDestination>,
) -> Vec<Cow<'a, HttpRouteDestination>> {
    let of = |destination: &Destination| {
        let service = world.services_with_host(&destination.host).next()?;
        world
            .split(&node.namespace, node.selected_by(world), service)
            .filter(|_| destination.subset.is_empty())
    };
    let splits: Vec<_> = destinations.iter().map(|d| of(&d.destination)).collect();
    if splits.iter().all(Option::is_none) {
        return destinations.into_iter().map(Cow::Borrowed).collect();
    }
    let alone = destinations.len() == 1;
    let mut all = Vec::new();
    for (destination, split) in destinations.into_iter().zip(splits) {
        // A destination that stands alone has no weight.
        let weight = if alone { 1 } else { destination.weight };
        for (subset, share) in split.unwrap_or_else(|| vec![(destination.destination.subset.clone(), 100)]) {
            let mut part = destination.clone();
            part.destination.subset = subset;
            part.weight = weight * share;
            all.push(Cow::Owned(part));
        }
    }
    all
}

/// What clients are known by that stay with their version, where one of the destinations is split between two.
fn sticky<'w>(
    world: &'w World,
    node: &ProxyNode,
    destinations: &[&HttpRouteDestination],
) -> Option<&'w StickyBy> {
    destinations.iter().filter(|d| d.destination.subset.is_empty()).find_map(|d| {
        let service = world.services_with_host(&d.destination.host).next()?;
        world.split(&node.namespace, node.selected_by(world), service).filter(|parts| parts.len() > 1)?;
        world.sticky(service)
    })
}

fn action(world: &World, node: &ProxyNode, http: &HttpRoute, port: u16) -> Option<Value> {
    let timeout = http.timeout.map_or_else(|| json!("0s"), |t| seconds(t.get()));
    let mut action = json!({"timeout": timeout, "max_grpc_timeout": timeout});
    let retries = http.retries.as_ref().or(world.mesh().default_http_retry_policy.as_ref());
    let mut hashes: Vec<Value> =
        http.route.iter().filter_map(|d| hash_of(world, node, &d.destination, port)).collect();
    if let Some(policy) = retry_policy(retries, http.route.len() == 1 && !hashes.is_empty()) {
        action["retry_policy"] = policy;
    }
    let sticky = sticky(world, node, &weighted(http));
    if let Some(by) = sticky {
        hashes.insert(0, traffic::sticky(by));
    }
    if !hashes.is_empty() {
        action["hash_policy"] = hashes.into();
    }
    if http.broken_is_500 {
        action["cluster_not_found_response_code"] = "INTERNAL_SERVER_ERROR".into();
    }
    let copies = traffic::mirrors(&http.mirrors, |destination| cluster_of(world, destination, port));
    if !copies.is_empty() {
        action["request_mirror_policies"] = copies.into();
    }
    if let Some(host) = authority_set(http.headers.as_ref()) {
        action["host_rewrite_literal"] = host.into();
    }
    if let Some(rewrite) = &http.rewrite {
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            action["regex_rewrite"] =
                json!({"pattern": {"regex": regex.pattern}, "substitution": regex.rewrite});
        } else if !rewrite.uri.is_empty() {
            action["prefix_rewrite"] = rewrite.uri.as_str().into();
        }
        if !rewrite.authority.is_empty() {
            action["host_rewrite_literal"] = rewrite.authority.as_str().into();
        }
    }
    match split(world, node, weighted(http)).as_slice() {
        [] => return None,
        [only] if only.headers.is_none() || http.route.len() == 1 => {
            action["cluster"] = cluster_of(world, &only.destination, port).into();
            // The rule's own authority goes before the destination's.
            if let (Value::Null, Some(host)) =
                (&action["host_rewrite_literal"], authority_set(only.headers.as_ref()))
            {
                action["host_rewrite_literal"] = host.into();
            }
        }
        several => {
            let clusters: Vec<_> = several
                .iter()
                .map(|d| {
                    let mut entry =
                        json!({"name": cluster_of(world, &d.destination, port), "weight": d.weight.max(1)});
                    if let Some(host) = authority_set(d.headers.as_ref()) {
                        entry["host_rewrite_literal"] = host.into();
                    }
                    if several.len() > 1 {
                        external_credential::turn_on(world, node, &d.destination.host, &mut entry);
                    }
                    if let Some(headers) = &d.headers {
                        operations(&mut entry, "request", headers.request.as_ref());
                        operations(&mut entry, "response", headers.response.as_ref());
                    }
                    entry
                })
                .collect();
            action["weighted_clusters"] = json!({"clusters": clusters});
            if sticky.is_some() {
                action["weighted_clusters"]["use_hash_policy"] = true.into();
            }
        }
    }
    Some(action)
}

/// The authority that header operations set or add: the route rewrites it, since no header does.
fn authority_set(headers: Option<&Headers>) -> Option<&str> {
    let request = headers?.request.as_ref()?;
    let found = request
        .set
        .iter()
        .chain(&request.add)
        .find(|(name, _)| *name == ":authority" || name.eq_ignore_ascii_case("host"));
    found.map(|(_, value)| value.as_str())
}

/// Whether a name is none of a header that can be changed: the authority is rewritten by the route itself.
fn is_fixed(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

/// What makes requests to a destination alike.
fn hash_of(world: &World, node: &ProxyNode, destination: &Destination, port: u16) -> Option<Value> {
    let service = world.services_with_host(&destination.host).next()?;
    let port = port_of(world, destination, port);
    traffic::hash_policy(world, node, service, &destination.subset, port)
}

/// The cluster of a destination: by its port, else the service's only one, else the port of the request.
fn cluster_of(world: &World, destination: &Destination, port: u16) -> String {
    outbound_name(port_of(world, destination, port), &destination.subset, &destination.host)
}

fn port_of(world: &World, destination: &Destination, port: u16) -> u16 {
    let only = || {
        let mut services = world.services_with_host(&destination.host);
        match services.next().map(|s| s.ports.as_slice()) {
            Some([only]) => Some(only.number),
            _ => None,
        }
    };
    destination.port.as_ref().map(|p| p.number).or_else(only).unwrap_or(port)
}

/// Puts more behind what a list has, and makes no empty one.
fn behind(target: &mut Value, list: String, more: Vec<Value>) {
    match target.get_mut(&list).and_then(Value::as_array_mut) {
        Some(there) => there.extend(more),
        None if more.is_empty() => {}
        None => target[list] = more.into(),
    }
}

/// Puts header operations behind those that stand there.
fn operations(target: &mut Value, side: &str, operations: Option<&HeaderOperations>) {
    let Some(operations) = operations else { return };
    let mut add = Vec::new();
    for (list, action) in
        [(&operations.set, "OVERWRITE_IF_EXISTS_OR_ADD"), (&operations.add, "APPEND_IF_EXISTS_OR_ADD")]
    {
        for (key, value) in list {
            if !is_fixed(key) {
                add.push(json!({"header": {"key": key, "value": value}, "append_action": action}));
            }
        }
    }
    let remove = operations.remove.iter().filter(|name| !is_fixed(name)).map(|name| json!(name));
    behind(target, format!("{side}_headers_to_add"), add);
    behind(target, format!("{side}_headers_to_remove"), remove.collect());
}
