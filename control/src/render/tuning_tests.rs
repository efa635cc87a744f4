//! Settings and what goes before what: a DestinationRule of the destination's before the mesh's (one in the root namespace), that before
//! what is built in; the route's retries before the mesh's.

use serde_json::{Value, json};

use super::tests::{mesh, node, value};
use super::*;

/// Limits of the design's tuning block, which hold for the mesh.
const OF_MESH: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: limits, namespace: istio-system}
spec:
  host: '*.local'
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1024}
      http: {http1MaxPendingRequests: 1024, http2MaxRequests: 1024, maxRetries: 3}
---
";

/// Those that the design has for a service of its own.
const OF_SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: n}
spec:
  host: a
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 100}
      http: {http1MaxPendingRequests: 50, http2MaxRequests: 100, maxRequestsPerConnection: 10, maxRetries: 3}
---
";

/// `a` and `b`, with more; as a proxy of `n` gets it.
fn rendered(more: &str) -> Resources {
    let world = mesh(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: a, namespace: n}}
spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: b, namespace: n}}
spec: {{selector: {{app: b}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: n}}
spec: {{egress: [{{port: {{number: 80, protocol: HTTP, name: http}}, captureMode: NONE, hosts: ['*/*']}}]}}
---
{more}"
    ));
    render(&world, &node("sidecar", "127.0.9.1", "n"), false, &Memo::default())
}

/// Connections, waiting requests, requests, retries, and requests of a connection.
fn limits(service: &str, more: &str) -> [Value; 5] {
    let name = format!("outbound|80||{service}.n.svc.cluster.local");
    let cluster = value(&rendered(more), ResourceType::Cluster, &name);
    let limits = &cluster["circuit_breakers"]["thresholds"][0];
    let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    [
        limits["max_connections"].clone(),
        limits["max_pending_requests"].clone(),
        limits["max_requests"].clone(),
        limits["max_retries"].clone(),
        options["common_http_protocol_options"]["max_requests_per_connection"].clone(),
    ]
}

#[test]
fn limits_are_the_services_before_the_meshs_before_none() {
    let most = || json!(u32::MAX);
    let none = [most(), most(), most(), most(), Value::Null];
    assert_eq!(limits("a", ""), none, "built in: no limit");
    let of_mesh = [json!(1024), json!(1024), json!(1024), json!(3), Value::Null];
    assert_eq!(limits("a", OF_MESH), of_mesh);
    let own = [json!(100), json!(50), json!(100), json!(3), json!(10)];
    let both = format!("{OF_MESH}{OF_SERVICE}");
    assert_eq!(limits("a", &both), own);
    assert_eq!(limits("b", &both), of_mesh, "who has none of its own keeps the mesh's");
    // A port's own go before the service's.
    let of_port = OF_SERVICE.replace(
        "trafficPolicy:\n",
        "trafficPolicy:\n    portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 7}}}]\n",
    );
    assert_eq!(limits("a", &format!("{OF_MESH}{of_port}"))[0], 7);
}

#[test]
fn retries_are_the_routes_before_the_meshs_before_what_is_built_in() {
    let of_mesh = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'defaultHttpRetryPolicy: {attempts: 3, perTryTimeout: 10s, retryOn: 5xx}'}
---
";
    let route = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: n}
spec: {hosts: [a], http: [{retries: {attempts: 5, perTryTimeout: 2s}, route: [{destination: {host: a}}]}]}
---
";
    let of = |service: &str, more: &str| {
        let config = value(&rendered(more), ResourceType::Route, "80");
        let hosts = config["virtual_hosts"].as_array().unwrap();
        let host = hosts.iter().find(|h| h["name"] == format!("{service}.n.svc.cluster.local:80")).unwrap();
        let policy = &host["routes"][0]["route"]["retry_policy"];
        (policy["num_retries"].clone(), policy["per_try_timeout"].clone())
    };
    assert_eq!(of("a", ""), (json!(2), Value::Null));
    assert_eq!(of("a", of_mesh), (json!(3), json!("10s")));
    let both = format!("{of_mesh}{route}");
    assert_eq!(of("a", &both), (json!(5), json!("2s")));
    assert_eq!(of("b", &both), (json!(3), json!("10s")));
}

#[test]
fn where_a_request_could_be_done_twice_our_proxies_are_asked_for_care_unless_somebody_wants_that() {
    let rule = |retry_on: &str, annotations: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: n{annotations}}}
spec: {{hosts: [a], http: [{{retries: {{attempts: 3, retryOn: '{retry_on}'}}, route: [{{destination: {{host: a}}}}]}}]}}
---
"
        )
    };
    let of = |service: &str, resources: &Resources| {
        let config = value(resources, ResourceType::Route, "80");
        let hosts = config["virtual_hosts"].as_array().unwrap();
        let host = hosts.iter().find(|h| h["name"] == format!("{service}.n.svc.cluster.local:80")).unwrap();
        host["routes"][0]["metadata"]["filter_metadata"]["weft.dev"]["careful_retries"].clone()
    };
    for conditions in ["5xx", "reset,connect-failure", "gateway-error", "retriable-4xx", "503"] {
        assert_eq!(of("a", &rendered(&rule(conditions, ""))), json!(true), "{conditions}");
    }
    // Nothing was done where these hold, and what is built in has no others.
    for conditions in ["connect-failure,refused-stream", "unavailable,cancelled"] {
        assert_eq!(of("a", &rendered(&rule(conditions, ""))), Value::Null, "{conditions}");
    }
    let resources = rendered(&rule("5xx", ", annotations: {weft.dev/retry-any-request: 'true'}"));
    assert_eq!((of("a", &resources), of("b", &resources)), (Value::Null, Value::Null));
    let of_mesh = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'defaultHttpRetryPolicy: {attempts: 3, retryOn: 5xx}'}
---
";
    assert_eq!(of("b", &rendered(of_mesh)), json!(true));
}

#[test]
fn the_other_side_of_a_silent_connection_is_asked_after_five_minutes_unless_another_time_is_set() {
    let of = |more: &str| {
        let cluster = value(&rendered(more), ResourceType::Cluster, "outbound|80||a.n.svc.cluster.local");
        cluster["upstream_connection_options"]["tcp_keepalive"].clone()
    };
    let of_mesh = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'tcpKeepalive: {time: 60s}'}
---
";
    let of_service =
        OF_SERVICE.replace("maxConnections: 100", "tcpKeepalive: {time: 7200s, interval: 75s, probes: 9}");
    assert_eq!(of(""), json!({"keepalive_time": 300}));
    assert_eq!(of(OF_SERVICE), json!({"keepalive_time": 300}));
    assert_eq!(of(of_mesh), json!({"keepalive_time": 60}));
    let set = json!({"keepalive_probes": 9, "keepalive_time": 7200, "keepalive_interval": 75});
    assert_eq!(of(&of_service), set);
    assert_eq!(of(&format!("{of_mesh}{of_service}")), set);
}
