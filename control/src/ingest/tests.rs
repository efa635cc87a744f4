//! What a user sees: configuration in, a World or diagnostics out.

use super::{LoadOutcome, load_dir, load_str};
use crate::model::destination_rule::SimpleBalancer;
use crate::model::{EffectivePeerMode, Labels, World, effective_policy, served_hosts};

/// The design's DestinationRule as it was written, with outlier settings in the connection pool.
const DESIGN_RULE: &str = "\
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: user-service
  namespace: ecotrack
spec:
  host: user-service
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 50
        http2MaxRequests: 100
        maxRequestsPerConnection: 10
        maxRetries: 3
        consecutiveGatewayErrors: 5
        interval: 30s
        baseEjectionTime: 30s
        maxEjectionPercent: 50
    loadBalancer:
      simple: LEAST_CONN
  subsets:
    - name: stable
      labels:
        version: stable
    - name: canary
      labels:
        version: canary
";

/// The design's own objects, the DestinationRule mended.
const DESIGN: &str = include_str!("../../tests/fixtures/design.yaml");

fn texts(outcome: &LoadOutcome) -> Vec<String> {
    outcome.diagnostics.iter().map(ToString::to_string).collect()
}

fn world(text: &str) -> World {
    let outcome = load_str("x.yaml", text);
    outcome.world.clone().unwrap_or_else(|| panic!("{:#?}", texts(&outcome)))
}

/// The only diagnostic of a text.
fn only(text: &str) -> String {
    let outcome = load_str("x.yaml", text);
    let mut texts = texts(&outcome);
    assert_eq!(texts.len(), 1, "{texts:#?}");
    texts.remove(0)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_designs_rule_is_refused_with_the_place_where_its_outlier_fields_belong() {
    let outcome = load_str("deploy/dr.yaml", DESIGN_RULE);
    assert!(outcome.world.is_none());
    let texts = texts(&outcome);
    let expected: Vec<String> = [
        (17, "consecutiveGatewayErrors"),
        (18, "interval"),
        (19, "baseEjectionTime"),
        (20, "maxEjectionPercent"),
    ]
    .into_iter()
    .map(|(line, field)| {
        format!(
            "deploy/dr.yaml:{line}: DestinationRule ecotrack/user-service: \
                     spec.trafficPolicy.connectionPool.http.{field}: unknown field; \
                     did you mean trafficPolicy.outlierDetection.{field}?"
        )
    })
    .collect();
    assert_eq!(texts, expected);
}

#[test]
fn the_designs_objects_are_taken() {
    let world = world(DESIGN);
    let user = world.service("user-service.ecotrack.svc.cluster.local", "ecotrack").cloned();
    let user = user.expect("the service");
    let rule = world.destination_rule("ecotrack", &Labels::new(), &user).expect("its rule");
    let policy = effective_policy(&rule.spec, Some("canary"), 8080);
    assert_eq!(policy.load_balancer.and_then(|balancer| balancer.simple), Some(SimpleBalancer::LeastRequest));
    assert_eq!(policy.outlier_detection.and_then(|outlier| outlier.consecutive_gateway_errors), Some(5));
    let rules = world.virtual_service_for_host("ecotrack", "mesh", &user.hostname).expect("its routes");
    assert_eq!(rules.spec.http.len(), 2);
    assert_eq!(rules.spec.http[0].route[0].destination.host, "user-service.ecotrack.svc.cluster.local");
    assert_eq!(world.peer_mode("ecotrack", &Labels::new(), Some(8080)), EffectivePeerMode::Strict);
    assert_eq!(world.peer_mode("elsewhere", &Labels::new(), None), EffectivePeerMode::Permissive);
    let gateways = world.gateways_for("istio-system", &labels(&[("istio", "ingressgateway")]));
    assert_eq!(gateways.len(), 1);
    let bound = world.virtual_services_for("istio-system", "ecotrack/ecotrack-gateway");
    assert_eq!(bound.len(), 1);
    assert_eq!(
        served_hosts(&gateways[0].spec.servers[0], "ecotrack", bound[0]),
        ["api.ecotrack.platform.dev"]
    );
    let stripe = world.service("api.stripe.com", "ecotrack").expect("the entry");
    assert_eq!(stripe.endpoints[0].address, "api.stripe.com");
}

#[test]
fn the_example_mesh_is_taken_without_a_word() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ecotrack");
    let outcome = load_dir(&dir);
    assert_eq!(texts(&outcome), [] as [&str; 0]);
    let world = outcome.world.expect("a world");
    assert_eq!(world.mesh().proxy_http_port, 15080);
    let user = world.service("user-service.ecotrack.svc.cluster.local", "ecotrack").expect("user-service");
    assert_eq!(user.endpoints.len(), 4);
    assert!(user.endpoints.iter().all(|endpoint| endpoint.mutual_tls));
    let gateway = world.workload_at("127.0.2.1").expect("the gateway");
    assert!(gateway.is_gateway());
    assert_eq!(world.gateway_ports(&["127.0.2.1".to_owned()], 80), [8080]);
    let stable = world.workload_at("127.0.10.1").expect("an instance");
    assert_eq!(stable.command(), Some("weft app --calls product-service"));
    let sidecar = world.sidecar_for("ecotrack", stable.labels()).expect("the namespace's Sidecar");
    let reached = world.imported_services("ecotrack", Some(&sidecar.spec.egress[0]));
    assert_eq!(reached.len(), 5);
}

#[test]
fn an_unknown_field_names_file_line_object_path_and_what_was_meant() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: user-service
  namespace: ecotrack
spec:
  hosts: [user-service]
  http:
    - route:
        - destination: {host: user-service}
      retries:
        atempts: 3
";
    assert_eq!(
        only(text),
        "x.yaml:12: VirtualService ecotrack/user-service: spec.http[0].retries.atempts: unknown field; \
         did you mean \"attempts\"?"
    );
}

#[test]
fn what_weft_does_not_honour_yet_is_refused_by_name() {
    let kind = "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a, namespace: n}\nspec: {}\n";
    assert!(
        only(kind).starts_with("x.yaml:1: EnvoyFilter n/a: not yet supported by Weft: "),
        "{}",
        only(kind)
    );
    let field = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: v}
spec:
  host: a
  trafficPolicy:
    outlierDetection: {}
    tunnel: {targetHost: b}
";
    assert_eq!(
        only(field),
        "x.yaml:8: DestinationRule default/v: spec.trafficPolicy.tunnel: not supported by Weft yet; take the field out"
    );
    let value = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e}
spec:
  hosts: ['*.a.com']
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
";
    let text = only(value);
    assert!(text.contains(":7: ") && text.contains("DYNAMIC_DNS is not supported by Weft yet"), "{text}");
}

#[test]
fn foreign_objects_are_skipped_with_one_line() {
    let outcome = load_str(
        "x.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {what: ever}\n",
    );
    assert!(outcome.world.is_some());
    let lines: Vec<String> = outcome.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["x.yaml:1: skipped Deployment web (apps/v1): not part of the mesh's configuration"]);
}

#[test]
fn a_duplicate_names_both_places() {
    let one = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: n}\n";
    let text = only(&format!("{one}---\n{one}"));
    assert_eq!(
        text,
        "x.yaml:7: PeerAuthentication n/default: metadata.name: PeerAuthentication n/default is already defined at \
         x.yaml:1; rename or remove one of the two"
    );
}

#[test]
fn broken_yaml_names_its_line() {
    let text = only("apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: 1\n");
    assert!(text.starts_with("x.yaml:") && text.contains("not valid YAML"), "{text}");
}

#[test]
fn the_mesh_config_is_checked_inside_its_config_map() {
    let text = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |
    trustDomain: cluster.local
    outboundTraficPolicy:
      mode: REGISTRY_ONLY
";
    assert_eq!(
        only(text),
        "x.yaml:9: MeshConfig: outboundTraficPolicy: unknown field; did you mean \"outboundTrafficPolicy\"?"
    );
    let file = world("trustDomain: td.example\nconnectTimeout: 3s\n");
    assert_eq!((file.mesh().trust_domain.as_str(), file.mesh().enable_auto_mtls), ("td.example", true));
}

#[test]
fn roots_of_other_trust_domains_are_given_once_and_in_one_way() {
    for (entry, words) in [
        ("{pem: x, spiffeBundleUrl: 'https://a/b', trustDomains: [b.example]}", "exactly one of pem"),
        ("{trustDomains: [b.example]}", "exactly one of pem"),
        ("{spiffeBundleUrl: 'https://a/b'}", "trustDomains"),
        ("{pem: nonsense, trustDomains: [b.example]}", "caCertificates[0].pem"),
        ("{spiffeBundleUrl: 'ftp://a/b', trustDomains: [b.example]}", "file:///PATH"),
        ("{spiffeBundleUrl: 'https://a/b', trustDomains: [B]}", "is no trust domain"),
        ("{spiffeBundleUrl: 'https://a/b', trustDomains: [td.example]}", "has roots already"),
        ("{spiffeBundleUrl: 'https://a/b', trustDomains: [b.example], certSigners: [x]}", "certSigners"),
    ] {
        let said = only(&format!("trustDomain: td.example\ncaCertificates: [{entry}]\n"));
        assert!(said.contains(words), "{words}: {said}");
    }
    let good = "trustDomain: td.example\ncaCertificates: [{spiffeBundleUrl: 'file:///b.json', trustDomains: [b.example]}]\n";
    assert_eq!(world(good).mesh().ca_certificates[0].trust_domains, ["b.example"]);
}

#[test]
fn objects_may_come_in_a_list_or_as_json() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n  metadata: {name: default, namespace: n}\n  spec: {mtls: {mode: STRICT}}\n";
    assert_eq!(world(list).namespace_peer_mode("n"), EffectivePeerMode::Strict);
    let json = r#"{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default", "namespace": "n"}, "spec": {"mtls": {"mode": "DISABLE"}}}"#;
    assert_eq!(world(json).namespace_peer_mode("n"), EffectivePeerMode::Disable);
}

#[test]
fn secrets_are_read_and_never_shown() {
    let text = "\
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {name: ecotrack-tls-secret, namespace: istio-system}
stringData:
  tls.crt: '-----BEGIN CERTIFICATE-----'
  tls.key: '-----BEGIN PRIVATE KEY----- hush'
";
    let world = world(text);
    let secret = world.secret("istio-system", "ecotrack-tls-secret").expect("the secret");
    assert!(secret.spec.private_key.ends_with(b"hush"));
    assert!(!format!("{world:?}").contains("hush"));
    let broken = text.replace("stringData", "data");
    let outcome = load_str("x.yaml", &broken);
    assert!(outcome.world.is_none());
    assert!(!format!("{:?}", outcome.diagnostics).contains("hush"));
}

#[test]
fn a_state_does_not_depend_on_the_order_of_independent_files() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = |names: [&str; 2]| {
        let dir = dir.path().join(names.join("-"));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join(names[0]), DESIGN).unwrap();
        std::fs::write(dir.join("sub").join(names[1]), "trustDomain: a.b\n").unwrap();
        std::fs::write(dir.join(".hidden.yaml"), "nonsense").unwrap();
        std::fs::write(dir.join("notes.txt"), "nonsense").unwrap();
        load_dir(&dir).into_result().unwrap()
    };
    let (first, second) = (outcome(["a.yaml", "z.yml"]), outcome(["z.yaml", "a.json"]));
    assert_eq!(first.version(), second.version());
    assert_ne!(first.version(), world(DESIGN).version());
}

#[test]
fn a_check_that_nobody_makes_is_told() {
    let told = |spec: &str| -> Vec<String> {
        let text = format!(
            "
{{apiVersion: v1, kind: Service, metadata: {{name: a, namespace: n}}, spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80}}, {{name: grpc, port: 81}}]}}}}
---
{{apiVersion: weft.dev/v1alpha1, kind: HealthCheck, metadata: {{name: first, namespace: n}}, spec: {{host: a, ports: [82], tcp: {{}}}}}}
---
{{apiVersion: weft.dev/v1alpha1, kind: HealthCheck, metadata: {{name: x, namespace: n}}, spec: {{{spec}}}}}
"
        );
        let outcome = load_str("x.yaml", &text);
        let of_x = outcome.diagnostics.iter().filter(|d| d.object.as_deref() == Some("HealthCheck n/x"));
        of_x.map(|d| format!("{}: {}", d.path.as_deref().unwrap_or_default(), d.reason)).collect()
    };
    assert!(told("host: a, tcp: {}").is_empty());
    assert!(told("host: a, ports: [81], grpc: {}").is_empty());
    let one = |spec: &str, wanted: &str| {
        let told = told(spec);
        assert!(matches!(told.as_slice(), [only] if only.starts_with(wanted)), "{spec}: {told:#?}");
    };
    one("host: b, tcp: {}", "spec.host: no service is called b.n.svc.cluster.local");
    one("host: a, ports: [83], tcp: {}", "spec.ports[0]: a.n.svc.cluster.local has no port 83");
    one(
        "host: a, ports: [80], grpc: {}",
        "spec.grpc: port 80 of a.n.svc.cluster.local is not said to speak HTTP/2",
    );
    let twice = "host: a, tcp: {}}}\n---\n{apiVersion: weft.dev/v1alpha1, kind: HealthCheck, metadata: {name: y, namespace: n}, spec: {host: a, tcp: {}";
    let outcome = told(twice);
    assert!(outcome.is_empty(), "the older one holds: {outcome:#?}");
}

#[test]
fn a_trial_that_splits_nothing_is_told() {
    let told = |port: &str, version: &str| -> Vec<String> {
        let trial = |name: &str| {
            format!(
                "{{apiVersion: weft.dev/v1alpha1, kind: TrafficManagement, metadata: {{name: {name}, namespace: n}}, spec: {{canaryDeployment: {{service: a, \
                 stableVersion: v1, canaryVersion: {version}, trafficSplit: {{stable: 90, canary: 10}}, successCriteria: {{errorRateThreshold: 1}}, \
                 rollbackCriteria: {{errorRateThreshold: 2}}}}}}}}\n---\n"
            )
        };
        let entry = |n: u8| {
            format!(
                "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: w{n}, namespace: n}}, spec: {{address: 10.0.0.{n}, labels: {{app: a, version: v{n}}}}}}}\n---\n"
            )
        };
        let service = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: a, namespace: n}}, spec: {{selector: {{app: a}}, ports: [{{name: {port}, port: 80}}]}}}}\n---\n"
        );
        let outcome = load_str("x.yaml", &(service + &entry(1) + &entry(2) + &trial("one") + &trial("two")));
        let line = |d: &super::Diagnostic| {
            format!("{} {:?} {}", d.object.as_deref().unwrap_or_default(), d.severity, d.reason)
        };
        outcome.diagnostics.iter().map(line).collect()
    };
    let second = "TrafficManagement n/two Warning TrafficManagement n/one (x.yaml:7) is about a.n.svc.cluster.local already";
    let fine = told("http", "v2");
    assert!(matches!(fine.as_slice(), [only] if only.starts_with(second)), "{fine:#?}");
    let wanted =
        "TrafficManagement n/one Warning no port of a.n.svc.cluster.local speaks HTTP: nothing is split";
    assert!(told("tcp", "v2").contains(&wanted.to_owned()), "{:#?}", told("tcp", "v2"));
    let wanted = "TrafficManagement n/one Info no endpoint of a.n.svc.cluster.local has the label version=v3: it gets nothing";
    assert!(told("http", "v3").contains(&wanted.to_owned()), "{:#?}", told("http", "v3"));
}
