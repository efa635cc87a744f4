//! ServiceMeshConfigs, from the design's own text to the objects that they stand for.

use super::{LoadOutcome, load_str};
use crate::model::destination_rule::SimpleBalancer;
use crate::model::peer_authentication::PeerMode;
use crate::model::{World, effective_policy};

const MESH: &str = "
{apiVersion: v1, kind: Service, metadata: {name: user-service, namespace: ecotrack}, spec: {selector: {app: user}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: u1, namespace: ecotrack}, spec: {address: 10.0.0.1, labels: {app: user, version: v1.2.0}, serviceAccount: user-service}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: o1, namespace: ecotrack}, spec: {address: 10.0.0.2, labels: {app: order}, serviceAccount: order-service}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: g1, namespace: edge}, spec: {address: 10.0.0.3, labels: {app: gw}, serviceAccount: api-gateway}}
---
";

/// The design's own, but for what is not there, and for the account of another namespace.
const CONFIG: &str = "
apiVersion: weft.dev/v1alpha1
kind: ServiceMeshConfig
metadata:
  name: mesh
  namespace: ecotrack
spec:
  services:
    - name: user-service
      version: v1.2.0
      replicas: 1
      traffic_policy:
        load_balancer: LEAST_CONN
        connection_pool:
          max_connections: 100
          max_pending_requests: 50
        circuit_breaker:
          consecutive_errors: 5
          interval: 30s
      security_policy:
        mtls_mode: STRICT
        authorization_rules:
          - from: [\"order-service\", \"edge/api-gateway\"]
            operations: [\"GET /api/users/*\", \"POST /api/users\"]
      observability:
        metrics_enabled: true
---
";

fn load(config: &str, more: &str) -> LoadOutcome {
    load_str("x.yaml", &format!("{MESH}{config}{more}"))
}

fn told(outcome: &LoadOutcome) -> Vec<String> {
    let of_config =
        outcome.diagnostics.iter().filter(|d| d.object.as_deref() == Some("ServiceMeshConfig ecotrack/mesh"));
    of_config.map(|d| format!("{}: {}", d.path.as_deref().unwrap_or_default(), d.reason)).collect()
}

fn world(outcome: &LoadOutcome) -> &World {
    outcome.world.as_ref().unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics))
}

#[test]
fn the_designs_model_stands_for_the_objects_that_one_would_write() {
    let outcome = load(CONFIG, "");
    assert_eq!(
        told(&outcome),
        ["spec.services[0]: stands for DestinationRule ecotrack/mesh-user-service, PeerAuthentication \
          ecotrack/mesh-user-service, AuthorizationPolicy ecotrack/mesh-user-service, Telemetry ecotrack/mesh-user-service"]
    );
    let written = load_str(
        "y.yaml",
        &format!(
            "{MESH}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: a, namespace: ecotrack}}
spec:
  host: user-service
  trafficPolicy:
    loadBalancer: {{simple: LEAST_REQUEST}}
    connectionPool: {{tcp: {{maxConnections: 100}}, http: {{http1MaxPendingRequests: 50}}}}
    outlierDetection: {{consecutive5xxErrors: 5, interval: 30s}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: a, namespace: ecotrack}}
spec: {{selector: {{matchLabels: {{app: user}}}}, mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: a, namespace: ecotrack}}
spec:
  selector: {{matchLabels: {{app: user}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/ecotrack/sa/order-service, cluster.local/ns/edge/sa/api-gateway]}}}}]
    to: [{{operation: {{methods: [GET], paths: [/api/users/*]}}}}, {{operation: {{methods: [POST], paths: [/api/users]}}}}]
"
        ),
    );
    let (ours, theirs) = (world(&outcome), world(&written));
    assert_eq!(ours.destination_rules()[0].spec, theirs.destination_rules()[0].spec);
    assert_eq!(ours.peer_authentications()[0].spec, theirs.peer_authentications()[0].spec);
    assert_eq!(ours.all_authorization_policies()[0].spec, theirs.all_authorization_policies()[0].spec);
    // Where it comes from is said by whoever explains.
    let source = &ours.destination_rules()[0].meta.source;
    assert_eq!((&*source.file, source.line), ("x.yaml", ours.service_mesh_configs()[0].meta.source.line));
    // Written in the way of other resources it says the same.
    let mut camel = CONFIG.to_owned();
    for (old, new) in [
        ("traffic_policy", "trafficPolicy"),
        ("load_balancer", "loadBalancer"),
        ("connection_pool", "connectionPool"),
        ("max_connections", "maxConnections"),
        ("max_pending_requests", "maxPendingRequests"),
        ("circuit_breaker", "circuitBreaker"),
        ("consecutive_errors", "consecutiveErrors"),
        ("security_policy", "securityPolicy"),
        ("mtls_mode", "mtlsMode"),
        ("authorization_rules", "authorizationRules"),
        ("metrics_enabled", "metricsEnabled"),
    ] {
        camel = camel.replace(old, new);
    }
    assert!(!camel.replace("LEAST_CONN", "").contains('_'), "{camel}");
    let camel = load(&camel, "");
    assert_eq!(world(&camel).service_mesh_configs()[0].spec, ours.service_mesh_configs()[0].spec);
}

#[test]
fn what_is_told_of_a_services_requests_is_a_telemetry_for_its_workloads() {
    let config =
        CONFIG.replace("metrics_enabled: true", "metrics_enabled: false\n        access_logging: true");
    let outcome = load(&config, "");
    let written = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: own, namespace: ecotrack}
spec:
  selector: {matchLabels: {app: user}}
  metrics: [{overrides: [{disabled: true}]}]
  accessLogging: [{disabled: false}]
";
    let ours = world(&outcome).telemetries();
    let both = load(&config, written);
    let theirs = world(&both).telemetries();
    assert_eq!(ours[0].spec, theirs[0].spec);
    // What is written explicitly holds alone.
    assert_eq!(theirs.len(), 1);
    let said = told(&both).into_iter().find(|text| text.contains("observability")).unwrap_or_default();
    assert!(said.contains("Telemetry ecotrack/own") && said.contains("holds for these workloads"), "{said}");
    let elsewhere = load(&config, &written.replace("app: user", "app: order"));
    assert_eq!(world(&elsewhere).telemetries().len(), 2);
}

#[test]
fn a_sampling_rate_is_a_share_and_is_told_in_per_cent() {
    let config = CONFIG.replace("metrics_enabled: true", "sampling_rate: 0.01");
    let outcome = load(&config, "");
    let spec = &world(&outcome).telemetries()[0].spec;
    assert_eq!(spec.tracing[0].random_sampling_percentage.unwrap().percent(), 1.0);
    assert!(
        told(&outcome).iter().any(|t| t.contains("samplingRate of 0.01, which is 1 %")),
        "{:?}",
        told(&outcome)
    );
    let outcome = load(&CONFIG.replace("metrics_enabled: true", "tracing_enabled: false"), "");
    assert_eq!(world(&outcome).telemetries()[0].spec.tracing[0].disable_span_reporting, Some(true));
    let outcome = load(&CONFIG.replace("metrics_enabled: true", "sampling_rate: 1.5"), "");
    assert!(outcome.world.is_none() && told(&outcome).iter().any(|t| t.contains("no share of requests")));
}

#[test]
fn what_is_written_explicitly_wins_block_by_block() {
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: own, namespace: ecotrack}
spec:
  host: user-service
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets: [{name: new, labels: {version: v1.2.0}}]
";
    let outcome = load(CONFIG, rule);
    let told_of = told(&outcome);
    assert!(
        told_of.iter().any(|t| t.starts_with(
            "spec.services[0].trafficPolicy.loadBalancer: DestinationRule ecotrack/own (x.yaml:"
        )),
        "{told_of:#?}"
    );
    assert!(
        told_of
            .iter()
            .any(|t| t.contains("connectionPool and outlierDetection of DestinationRule ecotrack/own")),
        "{told_of:#?}"
    );
    let world = world(&outcome);
    let [only] = world.destination_rules() else { panic!("{:#?}", world.destination_rules()) };
    let policy = effective_policy(&only.spec, Some("new"), 8080);
    assert_eq!(policy.load_balancer.unwrap().simple, Some(SimpleBalancer::Random));
    assert_eq!(policy.connection_pool.unwrap().tcp.unwrap().max_connections, Some(100));
    assert_eq!(policy.outlier_detection.unwrap().consecutive_5xx_errors, Some(5));

    let wide = rule.replace("host: user-service", "host: '*.ecotrack.svc.cluster.local'");
    let outcome = load(CONFIG, &wide);
    assert_eq!(outcome.world.as_ref().unwrap().destination_rules().len(), 1);
    assert!(
        told(&outcome).iter().any(|t| t.ends_with("the traffic policy has no effect")),
        "{:#?}",
        told(&outcome)
    );
}

#[test]
fn explicit_policies_of_the_same_workloads_win() {
    let policies = "
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: own, namespace: ecotrack}, spec: {selector: {matchLabels: {app: user}}, mtls: {mode: PERMISSIVE}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: own, namespace: ecotrack}, spec: {selector: {matchLabels: {app: user}}, rules: [{from: [{source: {namespaces: [edge]}}]}]}}
";
    let outcome = load(CONFIG, policies);
    let world = world(&outcome);
    assert_eq!(world.peer_authentications().len() + world.all_authorization_policies().len(), 2);
    assert_eq!(world.peer_authentications()[0].spec.mtls.unwrap().mode, PeerMode::Permissive);
    for field in ["mtlsMode", "authorizationRules"] {
        let wanted = format!("spec.services[0].securityPolicy.{field}: ");
        assert!(told(&outcome).iter().any(|t| t.starts_with(&wanted)), "{:#?}", told(&outcome));
    }
}

#[test]
fn an_account_that_nobody_has_refuses_it() {
    let outcome = load(&CONFIG.replace("edge/api-gateway", "api-gateway"), "");
    assert!(outcome.world.is_none());
    let wanted = "spec.services[0].securityPolicy.authorizationRules[0].from[1]: no workload of ecotrack has the service \
                  account \"api-gateway\"; did you mean edge/api-gateway?";
    assert_eq!(told(&outcome)[0], wanted);
    let outcome = load(&CONFIG.replace("name: user-service", "name: nobody"), "");
    assert!(outcome.world.is_none(), "nobody would be protected");
}

#[test]
fn versions_and_replicas_are_looked_at() {
    let drift = |from: &str, to: &str| -> Vec<String> {
        told(&load(&CONFIG.replace(from, to), "")).into_iter().filter(|t| t.contains("drift")).collect()
    };
    let host = "user-service.ecotrack.svc.cluster.local";
    assert_eq!(
        drift("replicas: 1", "replicas: 3"),
        [format!(
            "spec.services[0].replicas: drift: 3 are wanted, and {host} has 1 with the label version=v1.2.0"
        )]
    );
    assert_eq!(
        drift("version: v1.2.0\n      replicas: 1", "version: v2"),
        [format!("spec.services[0].version: drift: {host} has no endpoint with the label version=v2")]
    );
    assert_eq!(drift("replicas: 1", "replicas: 1"), [""; 0]);
}

/// What it stands for selects workloads by the Service's selector: who is selected is part of what proxies are told by versions.
#[test]
fn another_selector_of_the_service_is_another_policy() {
    let with = |app: &str| {
        let text = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: user-service, namespace: ecotrack}}
spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: weft.dev/v1alpha1
kind: ServiceMeshConfig
metadata: {{name: mesh, namespace: ecotrack}}
spec: {{services: [{{name: user-service, securityPolicy: {{mtlsMode: STRICT}}}}]}}
"
        );
        super::load_str("x.yaml", &text).into_result().unwrap_or_else(|wrong| panic!("{wrong:#?}"))
    };
    let (one, other) = (with("a"), with("b"));
    assert_eq!(one.peer_authentications().len(), 1);
    assert_ne!(one.peer_version(), other.peer_version());
    assert_ne!(one.shape_version(), other.shape_version());
}
