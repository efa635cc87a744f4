//! Which Telemetry holds for whom, by the fields of the messages that proxies get.

use serde_json::{Value, json};

use super::filters::Way;
use super::telemetry::{access_log, metrics};
use super::tests::{mesh, node};
use crate::model::World;

const MESH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    extensionProviders:
    - {name: file, envoyFileAccessLog: {path: /var/log/a, logFormat: {text: '%RESPONSE_CODE%'}}}
    - {name: json, envoyFileAccessLog: {logFormat: {labels: {code: '%RESPONSE_CODE%'}}}}
    - {name: otel, envoyOtelAls: {service: collector.example, port: 4317, logFormat: {labels: {code: '%RESPONSE_CODE%'}}}}
    - {name: requests, envoyHttpAls: {service: n/collector.example, port: 4317, additionalRequestHeadersToLog: [x-a]}}
    - {name: connections, envoyTcpAls: {service: collector.example, port: 4317, logName: mine, filterStateObjectsToLog: [k]}}
    - {name: away, envoyOtelAls: {service: nowhere.example, port: 4317}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: collector, namespace: n}
spec:
  hosts: [collector.example]
  resolution: STATIC
  ports: [{name: grpc, number: 4317, protocol: GRPC}]
  endpoints: [{address: 127.0.9.9}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a-1, namespace: n}
spec: {address: 127.0.9.1, labels: {app: a}}
";

fn telemetry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn world(telemetries: &[String]) -> World {
    mesh(&[MESH, &telemetries.concat()].concat())
}

/// Path and filter of each logger.
fn logs(world: &World, way: Way) -> Vec<(String, Value)> {
    let all = access_log(world, &node("sidecar", "127.0.9.1", "n"), way, true);
    let of = |log: &Value| {
        let filter = log["filter"]["extension_filter"]["typed_config"]["expression"].clone();
        (log["typed_config"]["path"].as_str().unwrap().to_owned(), filter)
    };
    all.as_array().unwrap().iter().map(of).collect()
}

fn only(path: &str) -> Vec<(String, Value)> {
    vec![(path.to_owned(), Value::Null)]
}

#[test]
fn logs_are_the_meshs_unless_a_telemetry_says_otherwise_and_the_narrowest_counts() {
    assert_eq!(logs(&world(&[]), Way::Inbound), only("/dev/stdout"));
    let off = telemetry("istio-system", "mesh", "{accessLogging: [{disabled: true}]}");
    assert_eq!(logs(&world(std::slice::from_ref(&off)), Way::Inbound), []);
    let on = telemetry("n", "own", "{accessLogging: [{providers: [{name: file}]}]}");
    assert_eq!(logs(&world(&[off.clone(), on.clone()]), Way::Inbound), only("/var/log/a"));
    let workload = "{selector: {matchLabels: {app: a}}, accessLogging: [{providers: [{name: envoy}]}]}";
    let all = [off.clone(), on.clone(), telemetry("n", "workload", workload)];
    assert_eq!(logs(&world(&all), Way::Inbound), only("/dev/stdout"));
    let other = "{selector: {matchLabels: {app: b}}, accessLogging: [{providers: [{name: envoy}]}]}";
    let all = [off, on, telemetry("n", "workload", other)];
    assert_eq!(logs(&world(&all), Way::Inbound), only("/var/log/a"));
}

#[test]
fn a_side_has_logs_and_filters_of_its_own() {
    let spec = "{accessLogging: [{match: {mode: CLIENT}, disabled: true}, {match: {mode: SERVER}, filter: {expression: response.code >= 500}}]}";
    let world = self::world(&[telemetry("n", "own", spec)]);
    assert_eq!(logs(&world, Way::Outbound), []);
    assert_eq!(logs(&world, Way::Inbound), [("/dev/stdout".to_owned(), "response.code >= 500".into())]);
    let spec = "{accessLogging: [{providers: [{name: file}, {name: json}]}]}";
    let world = self::world(&[telemetry("n", "own", spec)]);
    let all = access_log(&world, &node("sidecar", "127.0.9.1", "n"), Way::Outbound, true);
    assert_eq!(all[1]["typed_config"]["log_format"], json!({"json_format": {"code": "%RESPONSE_CODE%"}}));
    assert_eq!(
        all[0]["typed_config"]["log_format"]["text_format_source"]["inline_string"],
        "%RESPONSE_CODE%\n"
    );
}

#[test]
fn metrics_are_dropped_and_relabelled_by_side_and_the_later_word_counts() {
    let node = node("sidecar", "127.0.9.1", "n");
    assert_eq!(metrics(&world(&[]), &node, Way::Inbound), json!({}));
    let root = "{metrics: [{reportingInterval: 10s, overrides: [{tagOverrides: {request_host: {value: request.host}, source_app: {operation: REMOVE}}}]}]}";
    let own = "{metrics: [{overrides: [
        {match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {request_host: {operation: REMOVE}}},
        {match: {metric: REQUEST_SIZE, mode: SERVER}, disabled: true}]}]}";
    let world = self::world(&[telemetry("istio-system", "mesh", root), telemetry("n", "own", own)]);
    let of = |way: Way, name: &str| {
        let config = metrics(&world, &node, way);
        assert_eq!(config["tcp_reporting_duration"], "10s");
        config["metrics"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
    };
    let relabelled = json!({"name": "requests_total", "dimensions": {"request_host": "request.host"}, "tags_to_remove": ["source_app"]});
    assert_eq!(of(Way::Inbound, "requests_total"), relabelled);
    let removed =
        json!({"name": "requests_total", "dimensions": {}, "tags_to_remove": ["request_host", "source_app"]});
    assert_eq!(of(Way::Outbound, "requests_total"), removed);
    assert_eq!(of(Way::Inbound, "request_bytes"), json!({"name": "request_bytes", "drop": true}));
    assert_eq!(of(Way::Outbound, "request_bytes")["drop"], Value::Null);
}

#[test]
fn a_metric_of_ones_own_is_counted_where_it_holds_and_the_narrower_namespace_changes_no_name_that_is_taken() {
    let text = "
apiVersion: weft.dev/v1alpha1
kind: MetricDefinition
metadata: {name: shop-orders, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  type: HISTOGRAM
  value: double(request.headers['amount'])
  dimensions:
    who: {header: X-User-Id, default: anonymous, hash: true}
    kind: {expression: request.method}
  maxSeries: 7
  idleTimeout: 30s
---
apiVersion: weft.dev/v1alpha1
kind: MetricDefinition
metadata: {name: all, namespace: istio-system}
spec: {metric: everything, mode: CLIENT_AND_SERVER}
---
apiVersion: weft.dev/v1alpha1
kind: MetricDefinition
metadata: {name: everything, namespace: shop}
spec: {type: GAUGE}
";
    let world = crate::ingest::load_str("x.yaml", text).into_result().unwrap();
    let of = |namespace: &str, app: &str, way: Way| {
        let mut node = node("sidecar", "127.0.9.9", namespace);
        node.labels = [("app".to_owned(), app.to_owned())].into();
        super::metric_definition::definitions(&world, &node, way)
    };
    let at_cart = of("shop", "cart", Way::Inbound);
    let names: Vec<_> = at_cart.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["everything", "shop_orders"]);
    assert_eq!((&at_cart[0]["type"], &at_cart[0]["value"]), (&json!("COUNTER"), &json!("1")));
    assert_eq!((&at_cart[0]["max_series"], &at_cart[0]["idle_timeout"]), (&json!(1000), &json!("3600s")));
    assert_eq!(
        at_cart[1]["dimensions"],
        json!([
            {"name": "kind", "value": "request.method", "hash": false, "otherwise": "unknown"},
            {"name": "who", "value": "request.headers['x-user-id']", "hash": true, "otherwise": "anonymous"},
        ])
    );
    assert_eq!((&at_cart[1]["max_series"], &at_cart[1]["idle_timeout"]), (&json!(7), &json!("30s")));
    assert_eq!(of("shop", "cart", Way::Outbound).len(), 1);
    assert_eq!(of("shop", "other", Way::Inbound).len(), 1);
}

#[test]
fn collectors_of_logs_get_what_istio_gives_them_and_each_its_own_kind() {
    let names = ["otel", "requests", "connections", "away"].map(|name| format!("{{name: {name}}}"));
    let spec = format!("{{accessLogging: [{{providers: [{}]}}]}}", names.join(", "));
    let world = self::world(&[telemetry("n", "own", &spec)]);
    let node = node("sidecar", "127.0.9.1", "n");
    let all = access_log(&world, &node, Way::Outbound, true);
    let service = json!({"envoy_grpc":
        {"cluster_name": "outbound|4317||collector.example", "authority": "collector.example"}});
    assert_eq!(
        all.as_array().unwrap().len(),
        2,
        "one for connections, and one that is away, are not there: {all}"
    );
    let otel = &all[0]["typed_config"];
    assert_eq!(otel["common_config"]["grpc_service"], service);
    assert_eq!(otel["common_config"]["log_name"], "otel_envoy_accesslog");
    assert_eq!(otel["disable_builtin_labels"], true);
    assert!(otel["body"]["string_value"].as_str().unwrap().starts_with("[%START_TIME%]"));
    let code = json!({"values": [{"key": "code", "value": {"string_value": "%RESPONSE_CODE%"}}]});
    assert_eq!(otel["attributes"], code);
    let http = &all[1]["typed_config"];
    assert_eq!(http["common_config"]["grpc_service"], service);
    let objects = &http["common_config"]["filter_state_objects_to_log"];
    assert_eq!(
        (objects, &http["additional_request_headers_to_log"]),
        (&json!(["upstream_peer", "downstream_peer"]), &json!(["x-a"]))
    );
    let all = access_log(&world, &node, Way::Outbound, false);
    assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
    let tcp = &all[1]["typed_config"];
    assert_eq!(all[1]["name"], "envoy.access_loggers.tcp_grpc");
    assert_eq!(
        (&tcp["common_config"]["log_name"], &tcp["common_config"]["filter_state_objects_to_log"]),
        (&json!("mine"), &json!(["k"]))
    );
}

#[test]
fn what_a_filter_does_not_take_is_sampled_where_an_annotation_says_so() {
    let filter = "{accessLogging: [{filter: {expression: response.code >= 500}}]}";
    let all = telemetry("n", "own", filter)
        .replace("name: own", "name: own, annotations: {weft.dev/access-log-sampling: '0.5'}");
    let log = access_log(&world(&[all]), &node("sidecar", "127.0.9.1", "n"), Way::Inbound, true);
    let filters = &log[0]["filter"]["or_filter"]["filters"];
    assert_eq!(filters[0]["extension_filter"]["typed_config"]["expression"], "response.code >= 500");
    assert_eq!(
        filters[1]["runtime_filter"]["percent_sampled"],
        json!({"numerator": 50, "denominator": "TEN_THOUSAND"})
    );
}
