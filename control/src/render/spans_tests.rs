//! Who traces what and whom it is told, by the fields of the messages that proxies get.

use serde_json::{Value, json};

use super::filters::Way;
use super::spans::tracing;
use super::tests::{mesh, node, value};
use super::{Interception, Memo, ProxyNode, render};
use crate::model::World;
use crate::model::tracing::{ProxyTracing, ZipkinAddress};
use xds_protos::ResourceType;

const COLLECTORS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tempo, namespace: obs}
spec:
  hosts: [tempo.obs.svc.cluster.local]
  resolution: STATIC
  ports: [{name: grpc-otlp, number: 4317, protocol: GRPC}, {name: http-otlp, number: 4318, protocol: HTTP}, {name: http-zipkin, number: 9411, protocol: HTTP}]
  endpoints: [{address: 127.0.9.9}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a-1, namespace: n}
spec: {address: 127.0.9.1, labels: {app: a, version: v7}}
";

const PROVIDERS: &str = "
    extensionProviders:
    - {name: tempo, opentelemetry: {service: tempo.obs.svc.cluster.local, port: 4317, maxTagLength: 99, resourceDetectors: {environment: {}}, grpc: {timeout: 2s, initialMetadata: [{name: x-token, value: t}]}}}
    - {name: http, opentelemetry: {service: tempo.obs.svc.cluster.local, port: 4318, http: {path: /v1/traces, headers: [{name: x-token, value: t}]}}}
    - {name: zipkin, zipkin: {service: tempo.obs.svc.cluster.local, port: 9411}}
    - {name: design, zipkin: {service: tempo.obs.svc.cluster.local, port: 14268, path: /api/traces}}
    - {name: gone, zipkin: {service: gone.obs.svc.cluster.local, port: 9411}}
    - {name: logs, envoyFileAccessLog: {path: /dev/stdout}}
";

fn world(more_of_mesh: &str, telemetries: &[(&str, &str, &str)]) -> World {
    let mut text = format!(
        "{COLLECTORS}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |{PROVIDERS}{more_of_mesh}\n"
    );
    for (namespace, name, spec) in telemetries {
        text += &format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        );
    }
    mesh(&text)
}

fn of(world: &World, way: Way) -> Option<(Value, bool)> {
    let mut node = node("sidecar", "127.0.9.1", "n");
    node.labels = [("app".to_owned(), "a".to_owned()), ("version".to_owned(), "v7".to_owned())].into();
    node.mesh_id = "eco".to_owned();
    tracing(world, &node, way)
}

fn tag(tracing: &Value, name: &str) -> Option<Value> {
    tracing["custom_tags"].as_array()?.iter().find(|tag| tag["tag"] == name).cloned()
}

#[test]
fn nothing_is_traced_until_somebody_gets_spans() {
    assert!(of(&world("", &[]), Way::Inbound).is_none());
    let sampled = [("n", "own", "{tracing: [{randomSamplingPercentage: 50}]}")];
    assert!(of(&world("", &sampled), Way::Inbound).is_none());
    for name in ["gone", "logs", "unknown"] {
        let named = format!("{{tracing: [{{providers: [{{name: {name}}}]}}]}}");
        assert!(of(&world("", &[("n", "own", &named)]), Way::Inbound).is_none(), "{name}");
    }
    assert!(of(&world("    defaultProviders: {tracing: [tempo]}", &[]), Way::Inbound).is_some());
}

#[test]
fn providers_become_envoys_tracers() {
    let of = |name: &str| {
        let world = world(&format!("    defaultProviders: {{tracing: [{name}]}}"), &[]);
        self::of(&world, Way::Outbound).unwrap().0
    };
    let tempo = of("tempo");
    assert_eq!(tempo["max_path_tag_length"], 99);
    assert_eq!(tempo["spawn_upstream_span"], Value::Null);
    assert_eq!(tempo["random_sampling"]["value"], 1.0);
    let config = &tempo["provider"]["typed_config"];
    assert_eq!(config["service_name"], "a.n");
    assert_eq!(
        config["grpc_service"],
        json!({"envoy_grpc": {"cluster_name": "outbound|4317||tempo.obs.svc.cluster.local", "authority": "tempo.obs.svc.cluster.local"},
            "timeout": "2s", "initial_metadata": [{"key": "x-token", "value": "t"}]})
    );
    assert_eq!(config["resource_detectors"].as_array().unwrap().len(), 1);
    let config = &of("http")["provider"]["typed_config"]["http_service"];
    assert_eq!(config["http_uri"]["uri"], "http://tempo.obs.svc.cluster.local:4318/v1/traces");
    assert_eq!(config["http_uri"]["cluster"], "outbound|4318||tempo.obs.svc.cluster.local");
    assert_eq!(config["request_headers_to_add"][0]["header"]["key"], "x-token");
    let config = &of("zipkin")["provider"]["typed_config"];
    assert_eq!(config["collector_cluster"], "outbound|9411||tempo.obs.svc.cluster.local");
    assert_eq!(
        (&config["collector_endpoint"], &config["trace_id_128bit"]),
        (&json!("/api/v2/spans"), &json!(true))
    );
    assert_eq!(config["shared_span_context"], false);
    // Jaeger's port is meant for OTLP's.
    let config = &of("design")["provider"]["typed_config"];
    assert_eq!(
        config["grpc_service"]["envoy_grpc"]["cluster_name"],
        "outbound|4317||tempo.obs.svc.cluster.local"
    );
}

#[test]
fn an_address_in_the_proxys_settings_is_a_collector_unless_tracing_is_off() {
    let with = |more: &str, address: &str| {
        let text = format!(
            "    defaultConfig: {{tracing: {{sampling: 10, zipkin: {{address: '{address}'}}}}}}\n{more}"
        );
        of(&world(&text, &[]), Way::Inbound)
    };
    let zipkin = with("", "tempo.obs.svc.cluster.local:9411").unwrap().0;
    assert_eq!(zipkin["provider"]["name"], "envoy.tracers.zipkin");
    assert_eq!(zipkin["random_sampling"]["value"], 10.0);
    assert!(with("    enableTracing: false", "tempo.obs.svc.cluster.local:9411").is_none());
    // As the design writes it.
    let tempo = with("", "http://tempo.obs.svc.cluster.local:14268/api/traces").unwrap().0;
    assert_eq!(tempo["provider"]["name"], "envoy.tracers.opentelemetry");
}

#[test]
fn telemetries_are_merged_as_istio_does() {
    let root = "{tracing: [{providers: [{name: tempo}, {name: zipkin}], randomSamplingPercentage: 5, customTags: {user.id: {header: {name: user-id}}, transaction.id: {header: {name: transaction-id}}}}]}";
    let all = world("", &[("istio-system", "mesh", root)]);
    let (tracing, by_id) = of(&all, Way::Inbound).unwrap();
    assert!(by_id);
    assert_eq!(tracing["provider"]["name"], "envoy.tracers.opentelemetry", "of several the first");
    assert_eq!(tag(&tracing, "user.id").unwrap()["request_header"]["name"], "user-id");
    // The narrower scope's tags come in the place of all of the wider one's; the rest shines through.
    let own = "{selector: {matchLabels: {app: a}}, tracing: [{match: {mode: SERVER}, useRequestIdForTraceSampling: false, customTags: {http.response.status_code: {formatter: {value: '%RESPONSE_CODE%'}}}}]}";
    let both = world("", &[("istio-system", "mesh", root), ("n", "own", own)]);
    let (inbound, by_id) = of(&both, Way::Inbound).unwrap();
    assert!(!by_id);
    assert_eq!(inbound["random_sampling"]["value"], 5.0);
    assert_eq!(tag(&inbound, "http.response.status_code").unwrap()["value"], "%RESPONSE_CODE%");
    assert!(tag(&inbound, "user.id").is_none());
    assert!(tag(&of(&both, Way::Outbound).unwrap().0, "user.id").is_some(), "it is for the other side");
    let off = "{tracing: [{disableSpanReporting: true}]}";
    assert!(of(&world("", &[("istio-system", "mesh", root), ("n", "own", off)]), Way::Inbound).is_none());
}

#[test]
fn spans_tell_istios_tags_and_urls_without_queries() {
    let default = "    defaultProviders: {tracing: [tempo]}";
    let tracing = of(&world(default, &[]), Way::Inbound).unwrap().0;
    let literal = |name: &str| tag(&tracing, name).unwrap()["literal"]["value"].clone();
    for (name, value) in [
        ("istio.canonical_service", "a"),
        ("istio.canonical_revision", "v7"),
        ("istio.mesh_id", "eco"),
        ("istio.namespace", "n"),
        ("istio.cluster_id", "unknown"),
        ("service.version", "v7"),
    ] {
        assert_eq!(literal(name), value, "{name}");
    }
    assert_eq!(
        tag(&tracing, "http.url").unwrap()["value"],
        "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ:ORIG_OR_PATH):99%"
    );
    assert!(tag(&tracing, "user.id").is_none() && tag(&tracing, "transaction.id").is_none());
    let spec =
        "{tracing: [{enableIstioTags: false, customTags: {http.url: {formatter: {value: '%REQ(:PATH)%'}}}}]}";
    let tracing = of(&world(default, &[("n", "own", spec)]), Way::Inbound).unwrap().0;
    assert_eq!(
        tracing["custom_tags"],
        json!([{"tag": "http.url", "value": "%REQ(:PATH)%"}]),
        "who asks for it gets it"
    );
}

#[test]
fn a_proxys_own_settings_go_before_the_meshs() {
    let world =
        world("    defaultProviders: {tracing: [tempo]}\n    defaultConfig: {tracing: {sampling: 10}}", &[]);
    let mut node = node("router", "127.0.9.1", "n");
    let share = |node: &super::ProxyNode| {
        tracing(&world, node, Way::Gateway).unwrap().0["random_sampling"]["value"].as_f64()
    };
    assert_eq!(share(&node), Some(10.0));
    node.own_tracing = Some(serde_json::from_value(json!({"sampling": 42.5})).unwrap());
    assert_eq!(share(&node), Some(42.5));
    let (tracing, _) = tracing(&world, &node, Way::Gateway).unwrap();
    assert_eq!(tracing["spawn_upstream_span"], true, "a gateway is a hop of its own");
}

/// Two proxies that share everything that is rendered for both, but for what they say of tracing themselves.
#[test]
fn what_a_proxy_says_of_tracing_is_in_no_other_proxys_listeners() {
    let world = world("", &[]);
    let address = "tempo.obs.svc.cluster.local:9411".to_owned();
    let own = ProxyTracing { zipkin: Some(ZipkinAddress { address }), ..ProxyTracing::default() };
    let of = |own: Option<ProxyTracing>| ProxyNode {
        own_tracing: own,
        interception: Interception::Redirect,
        ..node("sidecar", "127.0.9.1", "n")
    };
    let memo = Memo::default();
    let traced = |node: &ProxyNode| {
        let all = render(&world, node, false, &memo);
        ["0.0.0.0_4318", "virtualInbound"]
            .map(|name| value(&all, ResourceType::Listener, name).to_string().contains("\"tracing\":"))
    };
    let (with, without) = (of(Some(own)), of(None));
    assert!(traced(&with)[0]);
    assert_eq!(traced(&without), [false; 2]);
    assert!(traced(&with)[0]);
}
