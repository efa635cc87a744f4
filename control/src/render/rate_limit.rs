//! RateLimits: a filter for each rule that holds at a proxy, so that each counts, is told and is refused by under its own name,
//! whichever proxy it is.

use serde_json::{Map, Value, json};

use super::cluster::outbound_name;
use super::filters::Way;
use super::{ProxyNode, authentication, seconds};
use crate::model::gateway::Gateway;
use crate::model::rate_limit::{
    FailurePolicy, LocalLimit, REMEMBERED, RateLimit, RateLimitKey, RateLimitMatch, RateLimitRule,
    RateLimitService,
};
use crate::model::values::StringMatch;
use crate::model::{Object, World};

/// What the names of filters begin with; our proxy tells what follows in its response code details.
const FILTER: &str = "weft.ratelimit/";
/// The field that says which rule refused a request.
const REFUSED_BY: &str = "x-weft-ratelimited";
/// The first key of a rule's descriptors.
const RULE: &str = "rule";
/// How long a service is waited for where nothing is said.
const PATIENCE: &str = "0.1s";

type Rule<'a> = (&'a Object<RateLimit>, &'a RateLimitRule, Option<&'a Object<Gateway>>);

fn rules<'a>(world: &'a World, node: &'a ProxyNode) -> impl Iterator<Item = Rule<'a>> {
    world.rate_limits_at(&node.namespace, node.selected_by(world)).flat_map(|(object, gateway)| {
        object.spec.rules.iter().map(move |rule| (&**object, rule, gateway.map(|g| &**g)))
    })
}

/// The filters, in the order of their rules.
pub(super) fn filters<'a>(
    world: &'a World,
    node: &'a ProxyNode,
    way: Way,
) -> impl Iterator<Item = Value> + 'a {
    // A route's rules are off except where the route turns them on; inbound there are no such routes.
    let here = move |(_, rule, _): &Rule<'_>| rule.route().is_none() || way == Way::Gateway;
    let of_requests = |(_, rule, _): &Rule<'_>| rule.connections.is_none();
    rules(world, node).filter(of_requests).filter(here).map(|(object, rule, gateway)| {
        let mut filter = json!({
            "name": format!("{FILTER}{}", object.bucket(rule)),
            "typed_config": match (&rule.local, &rule.global) {
                (Some(limit), _) => local(object, rule, gateway, limit),
                _ => global(object, rule, gateway),
            },
        });
        if rule.route().is_some() {
            filter["disabled"] = true.into();
        }
        filter
    })
}

/// Turns on the rules that are for a route of this name.
pub(super) fn turn_on(world: &World, node: &ProxyNode, name: &str, route: &mut Value) {
    let on: Map<String, Value> = rules(world, node)
        .filter(|(_, rule, _)| rule.route() == Some(name))
        .map(|(object, rule, _)| {
            let on = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}});
            (format!("{FILTER}{}", object.bucket(rule)), on)
        })
        .collect();
    match route["typed_per_filter_config"].as_object_mut() {
        Some(present) => present.extend(on),
        None if on.is_empty() => {}
        None => route["typed_per_filter_config"] = on.into(),
    }
}

/// The ports at which connections are counted.
pub(super) fn ports<'a>(world: &'a World, node: &'a ProxyNode) -> impl Iterator<Item = u16> + 'a {
    rules(world, node).filter_map(|(_, rule, _)| rule.connections.as_ref()).flat_map(|c| c.ports.clone())
}

/// The network filters that count connections to a port, or to any; `served` are the Gateways whose it is.
pub(super) fn of_connections<'a>(
    world: &'a World,
    node: &'a ProxyNode,
    port: Option<u16>,
    served: &'a [&Object<Gateway>],
) -> impl Iterator<Item = Value> + 'a {
    rules(world, node).filter_map(move |(object, rule, gateway)| {
        let ports = &rule.connections.as_ref()?.ports;
        let here = ports.is_empty() || port.is_some_and(|port| ports.contains(&port));
        let name = |g: &'a Object<Gateway>| (&g.meta.namespace, &g.meta.name);
        let its = gateway.is_none_or(|gateway| served.iter().any(|g| name(g) == name(gateway)));
        (here && its).then(|| connections(object, rule))
    })
}

fn connections(object: &Object<RateLimit>, rule: &RateLimitRule) -> Value {
    let config = match &rule.local {
        Some(limit) => json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": stat_prefix(object, rule),
            "token_bucket": bucket(limit),
            // One bucket for all chains of all of its ports.
            "share_key": object.bucket(rule),
        }),
        None => {
            let service = object.spec.service.clone().unwrap_or_default();
            let mut entries = vec![json!({"key": RULE, "value": rule.name})];
            let addresses = rule.by.iter().filter(|key| key.client_address.is_some());
            entries.extend(addresses.map(
                |_| json!({"key": "remote_address", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}),
            ));
            json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.network.ratelimit.v3.RateLimit",
                "stat_prefix": stat_prefix(object, rule),
                "domain": service.domain,
                "timeout": patience(&service),
                "failure_mode_deny": service.failure_policy == FailurePolicy::Closed,
                "descriptors": [{"entries": entries}],
                "rate_limit_service": asked(&service),
            })
        }
    };
    json!({"name": format!("{FILTER}{}", object.bucket(rule)), "typed_config": config})
}

fn bucket(limit: &LocalLimit) -> Value {
    json!({
        "max_tokens": limit.most(),
        "tokens_per_fill": limit.requests,
        "fill_interval": seconds(limit.per.unwrap_or_default().get()),
    })
}

fn patience(service: &RateLimitService) -> Value {
    service.timeout.map_or_else(|| PATIENCE.into(), |given| seconds(given.get()))
}

fn asked(service: &RateLimitService) -> Value {
    json!({
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {
            "cluster_name": outbound_name(service.port, "", &service.host),
            "authority": service.host,
        }},
    })
}

fn share(on: bool) -> Value {
    json!({"default_value": {"numerator": if on { 100 } else { 0 }, "denominator": "HUNDRED"}})
}

fn refused_by(bucket: &str) -> Value {
    json!([{"header": {"key": REFUSED_BY, "value": bucket}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}])
}

/// Buckets in the proxy: one for all, or for each combination of the keys' values. A request without one of them does not get
/// away: such ones have a bucket together.
fn local(
    object: &Object<RateLimit>,
    rule: &RateLimitRule,
    gateway: Option<&Object<Gateway>>,
    limit: &LocalLimit,
) -> Value {
    let bucket = bucket(limit);
    let optional: Vec<bool> = rule.by.iter().map(may_be_missing).collect();
    let names: Vec<_> = rule.by.iter().map(key_name).collect();
    let subsets = (0..1_usize << names.len())
        .filter(|subset| optional.iter().enumerate().all(|(i, o)| *o || subset >> i & 1 == 1));
    let descriptors: Vec<Value> = subsets
        .map(|subset| {
            let mut entries = vec![json!({"key": RULE, "value": rule.name})];
            let present = names.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1);
            entries.extend(present.map(|(_, name)| json!({"key": name})));
            json!({"entries": entries, "token_bucket": bucket})
        })
        .collect();
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": stat_prefix(object, rule),
        "filter_enabled": share(true),
        "filter_enforced": share(!object.spec.dry_run),
        "rate_limited_as_resource_exhausted": true,
        "enable_retry_after_header": true,
        "response_headers_to_add": refused_by(&object.bucket(rule)),
        "rate_limits": [{"actions": actions(rule, gateway)}],
        "descriptors": descriptors,
    });
    if !rule.by.is_empty() {
        config["max_dynamic_descriptors"] = limit.max_keys.unwrap_or(REMEMBERED).into();
    }
    if object.spec.tell_clients {
        config["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03".into();
    }
    config
}

fn global(object: &Object<RateLimit>, rule: &RateLimitRule, gateway: Option<&Object<Gateway>>) -> Value {
    let service = object.spec.service.clone().unwrap_or_default();
    let mut limit = json!({"actions": actions(rule, gateway)});
    if let Some(hits) = rule.global.and_then(|g| g.hits) {
        limit["hits_addend"] = json!({"number": hits});
    }
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        "domain": service.domain,
        "timeout": patience(&service),
        "failure_mode_deny": service.failure_policy == FailurePolicy::Closed,
        "status_on_error": {"code": 503},
        "filter_enforced": share(!object.spec.dry_run),
        "rate_limited_as_resource_exhausted": true,
        "enable_retry_after_header": true,
        "stat_prefix": stat_prefix(object, rule),
        "response_headers_to_add": refused_by(&object.bucket(rule)),
        "rate_limits": [limit],
        "rate_limit_service": asked(&service),
    });
    if object.spec.tell_clients {
        config["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03".into();
    }
    config
}

fn stat_prefix(object: &Object<RateLimit>, rule: &RateLimitRule) -> String {
    format!("ratelimit.{}.{}.{}", object.meta.namespace, object.meta.name, rule.name)
}

/// What makes a rule's descriptor: nothing for requests that it is not for.
fn actions(rule: &RateLimitRule, gateway: Option<&Object<Gateway>>) -> Vec<Value> {
    let mut headers = rule.matches.as_ref().map(matchers).unwrap_or_default();
    headers.extend(gateway.and_then(hosts_of));
    let first = if headers.is_empty() {
        json!({"generic_key": {"descriptor_key": RULE, "descriptor_value": rule.name}})
    } else {
        json!({"header_value_match":
            {"descriptor_key": RULE, "descriptor_value": rule.name, "headers": headers}})
    };
    std::iter::once(first).chain(rule.by.iter().map(key)).collect()
}

fn key_name(key: &RateLimitKey) -> &str {
    match key {
        _ if key.client_address.is_some() => "masked_remote_address",
        RateLimitKey { header, .. } if !header.is_empty() => header,
        RateLimitKey { query_parameter, .. } if !query_parameter.is_empty() => query_parameter,
        RateLimitKey { claim, .. } => claim,
    }
}

fn may_be_missing(key: &RateLimitKey) -> bool {
    key.client_address.is_none()
}

fn key(key: &RateLimitKey) -> Value {
    let name = key_name(key);
    if let Some(address) = key.client_address {
        return json!({"masked_remote_address": {
            "v4_prefix_mask_len": address.ipv4_prefix.unwrap_or(32),
            "v6_prefix_mask_len": address.ipv6_prefix.unwrap_or(64),
        }});
    }
    if !key.header.is_empty() {
        return json!({"request_headers":
            {"header_name": name, "descriptor_key": name, "skip_if_absent": true}});
    }
    if !key.query_parameter.is_empty() {
        return json!({"query_parameters":
            {"query_parameter_name": name, "descriptor_key": name, "skip_if_absent": true}});
    }
    json!({"metadata": {
        "descriptor_key": name,
        "source": "DYNAMIC",
        "skip_if_absent": true,
        "metadata_key": {
            "key": authentication::FILTER,
            "path": [{"key": authentication::PAYLOAD}, {"key": name}],
        },
    }})
}

/// What all of the request's fields must be.
fn matchers(given: &RateLimitMatch) -> Vec<Value> {
    let mut matchers = Vec::new();
    let one_of = |patterns: Vec<String>| patterns.join("|");
    if !given.hosts.is_empty() {
        matchers.push(matcher(":authority", &authority(given.hosts.iter().map(String::as_str))));
    }
    if !given.paths.is_empty() {
        let pattern = |wanted: &StringMatch| match wanted {
            StringMatch::Exact(text) => regex::escape(text),
            StringMatch::Prefix(text) => format!("{}[^?]*", regex::escape(text)),
            StringMatch::Regex(pattern) => format!("(?:{pattern})"),
            StringMatch::Present => "[^?]*".to_owned(),
        };
        let paths = one_of(given.paths.iter().map(pattern).collect());
        matchers.push(matcher(":path", &format!("(?:{paths})(?:\\?.*)?")));
    }
    if !given.methods.is_empty() {
        matchers.push(matcher(":method", &one_of(given.methods.iter().map(|m| regex::escape(m)).collect())));
    }
    for (name, wanted) in &given.headers {
        matchers.push(match wanted {
            StringMatch::Exact(text) => json!({"name": name, "string_match": {"exact": text}}),
            StringMatch::Prefix(text) => json!({"name": name, "string_match": {"prefix": text}}),
            StringMatch::Regex(pattern) => matcher(name, pattern),
            StringMatch::Present => json!({"name": name, "present_match": true}),
        });
    }
    matchers
}

fn matcher(name: &str, pattern: &str) -> Value {
    json!({"name": name, "string_match": {"safe_regex": {"regex": pattern}}})
}

/// The hosts that a Gateway's servers have, if they have not all.
fn hosts_of(gateway: &Object<Gateway>) -> Option<Value> {
    let bare = |host: &'_ str| host.rsplit_once('/').map_or(host, |(_, host)| host).to_owned();
    let hosts: Vec<_> = gateway.spec.servers.iter().flat_map(|s| &s.hosts).map(|h| bare(h)).collect();
    (!hosts.iter().any(|host| host == "*"))
        .then(|| matcher(":authority", &authority(hosts.iter().map(String::as_str))))
}

/// What an authority looks like that is one of these hosts, at whatever port.
fn authority<'a>(hosts: impl Iterator<Item = &'a str>) -> String {
    let pattern = |host: &str| match host.strip_prefix('*') {
        Some("") => ".*".to_owned(),
        Some(end) => format!(".+{}", regex::escape(end)),
        None => regex::escape(host),
    };
    format!("(?i)(?:{})(?::[0-9]+)?", hosts.map(pattern).collect::<Vec<_>>().join("|"))
}
