use prost::Message;
use serde_json::{Value as Json, json};

use super::*;
use crate::json;

fn problems(name: &str, value: Json) -> Vec<String> {
    let bytes = json::encode(name, &value).unwrap();
    check(name, &bytes).into_iter().map(|v| format!("{}: {}", v.path, v.message)).collect()
}

#[test]
fn every_rule_of_the_schema_is_implemented() {
    let unknown: Vec<_> = crate::pool().all_messages().flat_map(|m| MessageRules::of(&m).unknown).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn what_envoy_requires_is_required_also_inside_any() {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let listener = json!({"filter_chains": [{"filters": [
        {"name": "hcm", "typed_config": {"@type": hcm, "route_config": {"virtual_hosts": [{"name": "v"}]}}}
    ]}]});
    let at = "filter_chains[0].filters[0].typed_config";
    assert_eq!(
        problems("envoy.config.listener.v3.Listener", listener),
        [
            format!("{at}.stat_prefix: must not be empty"),
            format!("{at}.route_config.virtual_hosts[0].domains: must not be empty"),
        ]
    );
    assert_eq!(problems("envoy.config.core.v3.Address", json!({})).len(), 1);
    assert_eq!(problems("envoy.type.matcher.v3.StringMatcher", json!({"prefix": "a"})), [""; 0]);
}

#[test]
fn numbers_durations_enums_and_texts_are_held_to_their_bounds() {
    let cluster = |value: Json| {
        let mut cluster = json!({"name": "c"});
        cluster.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        problems("envoy.config.cluster.v3.Cluster", cluster)
    };
    assert_eq!(cluster(json!({})), [""; 0]);
    assert_eq!(
        cluster(json!({"connect_timeout": "0s"})),
        ["connect_timeout: must be more than 0s, and is 0s"]
    );
    assert_eq!(
        cluster(json!({"outlier_detection": {"max_ejection_percent": 101}})),
        ["outlier_detection.max_ejection_percent: must be less than 100 or equal, and is 101"]
    );
    assert_eq!(cluster(json!({"lb_policy": 99})), ["lb_policy: 99 is not one of its values"]);
    assert_eq!(problems("envoy.config.core.v3.HeaderValue", json!({"key": "a\nb"})).len(), 1);
    assert_eq!(problems("envoy.config.core.v3.HeaderValue", json!({"key": "a", "value": "b c"})), [""; 0]);
    assert_eq!(
        problems("envoy.config.route.v3.RouteAction", json!({"cluster": "c", "max_internal_redirects": 1})),
        [""; 0]
    );
}

#[test]
fn bytes_that_are_no_message_are_one_violation() {
    assert_eq!(check("envoy.config.cluster.v3.Cluster", &[0x0a, 0x7f]).len(), 1);
    assert_eq!(check("nobody.Knows", &[1, 2, 3]), []);
}

#[test]
fn any_inside_any_without_end_is_a_violation() {
    let deep = (0..10_000).fold(Any::default(), |inner, _| Any::pack(&inner));
    let found = check("google.protobuf.Any", &deep.encode_to_vec());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, "is nested too deep");
}
