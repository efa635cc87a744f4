use serde_json::{Value, json};

use super::*;

const LISTENER: &str = "envoy.config.listener.v3.Listener";

fn problems(name: &str, value: &Value) -> Vec<String> {
    let bytes = xds_protos::json::encode(name, value).unwrap();
    unsupported(table::get(), name, &bytes).iter().map(ToString::to_string).collect()
}

fn with_http_filter(filter: Value) -> Value {
    json!({"name": "l", "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "http_filters": [filter],
    }}]}]})
}

#[test]
fn what_is_honoured_passes_and_what_is_not_is_refused_with_its_path() {
    let router = json!({"name": "r", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    assert_eq!(problems(LISTENER, &with_http_filter(router)), [""; 0]);
    let value =
        json!({"name": "l", "fcds_config": {"name": "x"}, "enable_mptcp": true, "enable_reuse_port": true});
    assert_eq!(
        problems(LISTENER, &value),
        ["enable_mptcp: is not supported", "fcds_config: is not supported"]
    );
}

#[test]
fn an_extension_that_is_not_here_is_refused_unless_it_says_that_it_is_optional() {
    let at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config";
    let csrf = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.csrf.v3.CsrfPolicy"});
    let one = |config: &Value, optional: bool| {
        problems(
            LISTENER,
            &with_http_filter(json!({"name": "f", "is_optional": optional, "typed_config": config})),
        )
    };
    let name = "envoy.extensions.filters.http.csrf.v3.CsrfPolicy";
    assert_eq!(one(&csrf, false), [format!("{at}: the type {name} is not supported")]);
    assert_eq!(one(&csrf, true), [""; 0]);
    let wasm =
        json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "value": "CgA="});
    assert_eq!(
        one(&wasm, false),
        [format!("{at}: the type envoy.extensions.filters.http.wasm.v3.Wasm is not supported")]
    );
    let typed = json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/nobody.Knows", "value": {"a": 1}});
    assert_eq!(one(&typed, false), [format!("{at}: the type nobody.Knows is not supported")]);
}

#[test]
fn a_type_in_the_wrong_place_is_refused() {
    let tls =
        json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"});
    let wrong = problems(LISTENER, &with_http_filter(json!({"name": "f", "typed_config": tls})));
    assert!(wrong[0].ends_with(
        "the type envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer is not supported in this place"
    ));
}

#[test]
fn a_typed_struct_is_judged_as_the_message_that_it_holds() {
    let config = |value: Value| {
        json!({"name": "istio.stats", "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": "type.googleapis.com/stats.PluginConfig", "value": value}})
    };
    assert_eq!(
        problems(LISTENER, &with_http_filter(config(json!({"disable_host_header_fallback": true})))),
        [""; 0]
    );
    let wrong = problems(LISTENER, &with_http_filter(config(json!({"no_such": 1}))));
    assert!(wrong[0].contains("typed_config.no_such: stats.PluginConfig has no such field"), "{wrong:?}");
}

#[test]
fn a_value_outside_of_those_supported_is_refused() {
    let value =
        json!({"name": "c", "type": "EDS", "lb_policy": "CLUSTER_PROVIDED", "dns_lookup_family": "V4_ONLY"});
    assert_eq!(problems("envoy.config.cluster.v3.Cluster", &value), [""; 0]);
    let quic = json!({"name": "l", "address": {"socket_address": {"protocol": "UDP", "address": "::", "port_value": 1}}});
    assert_eq!(
        problems(LISTENER, &quic),
        ["address.socket_address.protocol: UDP is not supported, only TCP"]
    );
}

#[test]
fn messages_and_bytes_from_nowhere_are_refused() {
    assert_eq!(check("nobody.Knows", b"").len(), 1);
    assert_eq!(check(LISTENER, &[0x0a, 0x7f])[0].message, "a field is cut off");
    let newer = check(LISTENER, &[0xc8, 0x3e, 0x01]);
    assert!(newer[0].message.contains("field number 1001 that is newer"), "{newer:?}");
}

#[test]
fn the_rules_of_the_schema_are_enforced_when_every_field_is_honoured() {
    let cluster = |value: Value| {
        let bytes = xds_protos::json::encode("envoy.config.cluster.v3.Cluster", &value).unwrap();
        check("envoy.config.cluster.v3.Cluster", &bytes).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(cluster(json!({"name": "c", "type": "EDS"})), [""; 0]);
    assert_eq!(cluster(json!({"type": "EDS"})), ["name: must not be empty"]);
    assert_eq!(cluster(json!({"preconnect_policy": {}})), ["preconnect_policy: is not supported"]);
}

#[test]
fn what_istiod_sends_to_an_ordinary_sidecar_is_accepted() {
    for (name, text) in [
        (LISTENER, include_str!("testdata/virtual_inbound.yaml")),
        ("envoy.config.cluster.v3.Cluster", include_str!("testdata/outbound_cluster.yaml")),
        ("envoy.config.route.v3.RouteConfiguration", include_str!("testdata/outbound_route.yaml")),
        ("envoy.config.endpoint.v3.ClusterLoadAssignment", include_str!("testdata/load_assignment.yaml")),
    ] {
        let value = xds_protos::json::value_from_yaml_str(text).unwrap();
        let bytes = xds_protos::json::encode(name, &value).unwrap();
        assert_eq!(check(name, &bytes), [], "{name}");
    }
}
