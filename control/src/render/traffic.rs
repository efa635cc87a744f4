//! What a rule does to requests beside routing them: faults, copies for others, CORS, and what makes requests alike.

use serde_json::{Value, json};

use super::ProxyNode;
use crate::model::destination_rule::ConsistentHash;
use crate::model::lookup::effective_policy;
use crate::model::traffic_management::StickyBy;
use crate::model::values::{Percent, StringMatch};
use crate::model::virtual_service::{
    CorsPolicy, Destination, HttpFault, HttpMirror, UnmatchedPreflights, grpc_status,
};
use crate::model::{Service, World};

/// A share of requests, in millionths.
fn fraction(percent: Percent) -> Value {
    json!({"numerator": (percent.value * 10_000.0) as u32, "denominator": "MILLION"})
}

/// The fault filter's settings for a route.
pub(super) fn fault(fault: &HttpFault) -> Value {
    let mut rendered =
        json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"});
    if let Some(delay) = &fault.delay {
        let time = delay.fixed_delay.unwrap_or_default();
        // Without a percentage it never happens.
        rendered["delay"] = json!({
            "fixed_delay": super::seconds(time.get()),
            "percentage": fraction(delay.percentage.unwrap_or_default()),
        });
    }
    if let Some(abort) = &fault.abort {
        rendered["abort"] = json!({"percentage": fraction(abort.percentage.unwrap_or_default())});
        if let Some(status) = abort.http_status {
            rendered["abort"]["http_status"] = status.into();
        }
        if let Some(number) = abort.grpc_status.as_deref().and_then(grpc_status) {
            rendered["abort"]["grpc_status"] = number.into();
        }
    }
    rendered
}

/// The CORS filter's settings for a route.
pub(super) fn cors(policy: &CorsPolicy) -> Value {
    let origins: Vec<Value> = policy
        .allow_origins
        .iter()
        .map(|origin| match origin {
            // Istio's star stands for every origin.
            StringMatch::Exact(text) => json!({"exact": text}),
            other => super::route::string_match(other),
        })
        .collect();
    let mut rendered = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": origins,
        "filter_enabled": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
        "forward_not_matching_preflights": policy.unmatched_preflights != UnmatchedPreflights::Ignore,
    });
    for (field, list) in [
        ("allow_methods", &policy.allow_methods),
        ("allow_headers", &policy.allow_headers),
        ("expose_headers", &policy.expose_headers),
    ] {
        if !list.is_empty() {
            rendered[field] = list.join(",").into();
        }
    }
    if let Some(age) = policy.max_age {
        rendered["max_age"] = age.get().as_secs().to_string().into();
    }
    if let Some(allowed) = policy.allow_credentials {
        rendered["allow_credentials"] = allowed.into();
    }
    rendered
}

/// Who gets copies; those whose share is 0 are left out. `cluster` names a destination's cluster.
pub(super) fn mirrors(mirrors: &[HttpMirror], cluster: impl Fn(&Destination) -> String) -> Vec<Value> {
    let asked = mirrors.iter().filter(|mirror| mirror.percentage.is_none_or(|percent| percent.value > 0.0));
    asked
        .map(|mirror| {
            let share = match mirror.percentage {
                Some(percent) => fraction(percent),
                None => json!({"numerator": 100, "denominator": "HUNDRED"}),
            };
            json!({
                "cluster": cluster(&mirror.destination),
                "runtime_fraction": {"default_value": share},
                "trace_sampled": false,
            })
        })
        .collect()
}

/// What makes requests alike whose client stays with its version. What else makes requests alike counts only where they do not have it.
pub(super) fn sticky(by: &StickyBy) -> Value {
    let mut policy = match by {
        StickyBy { http_header_name, .. } if !http_header_name.is_empty() => {
            json!({"header": {"header_name": http_header_name}})
        }
        StickyBy { http_cookie_name, .. } if !http_cookie_name.is_empty() => {
            json!({"cookie": {"name": http_cookie_name}})
        }
        _ => json!({"connection_properties": {"source_ip": true}}),
    };
    policy["terminal"] = true.into();
    policy
}

/// What makes requests to a service alike, when its DestinationRule balances by that.
pub(super) fn hash_policy(
    world: &World,
    node: &ProxyNode,
    service: &Service,
    subset: &str,
    port: u16,
) -> Option<Value> {
    let rule = world.destination_rule(&node.namespace, node.selected_by(world), service)?;
    let subset = (!subset.is_empty()).then_some(subset);
    let hash = effective_policy(&rule.spec, subset, port).load_balancer?.consistent_hash?;
    Some(hashed(&hash))
}

fn hashed(hash: &ConsistentHash) -> Value {
    if let Some(name) = &hash.http_header_name {
        return json!({"header": {"header_name": name}});
    }
    if let Some(cookie) = &hash.http_cookie {
        let mut rendered = json!({"name": cookie.name});
        if let Some(ttl) = cookie.ttl {
            rendered["ttl"] = super::seconds(ttl.get());
        }
        if !cookie.path.is_empty() {
            rendered["path"] = cookie.path.as_str().into();
        }
        if !cookie.attributes.is_empty() {
            let attributes = cookie.attributes.iter().map(|a| json!({"name": a.name, "value": a.value}));
            rendered["attributes"] = attributes.collect();
        }
        return json!({"cookie": rendered});
    }
    if let Some(name) = &hash.http_query_parameter_name {
        return json!({"query_parameter": {"name": name}});
    }
    json!({"connection_properties": {"source_ip": hash.use_source_ip.unwrap_or_default()}})
}
