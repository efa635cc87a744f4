//! Names and key fields for the EcoTrack mesh.

use std::path::Path;

use xds_protos::envoy::config::core::v3::Node;

use super::*;

fn world() -> World {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ecotrack");
    crate::ingest::load_dir(&directory).world.expect("the mesh loads")
}

pub(super) fn node(kind: &str, ip: &str, namespace: &str) -> ProxyNode {
    let id = format!("{kind}~{ip}~x.{namespace}~{namespace}.svc.cluster.local");
    let mut node = ProxyNode::parse(&Node { id, ..Node::default() }).unwrap();
    node.extensions = true;
    node.interception = Interception::None;
    node
}

pub(super) fn value(resources: &Resources, kind: ResourceType, name: &str) -> Value {
    let resource = resources[&kind]
        .get(name)
        .unwrap_or_else(|| panic!("{name} is not among {:?}", resources[&kind].keys().collect::<Vec<_>>()));
    xds_protos::json::bytes_to_value(kind.type_url().rsplit('/').next().unwrap(), &resource.bytes)
}

#[test]
fn a_sidecar_gets_istiods_names() {
    let world = world();
    let resources = render(&world, &node("sidecar", "127.0.12.1", "ecotrack"), true, &Memo::default());
    let clusters: Vec<_> = resources[&ResourceType::Cluster].keys().map(|n| &**n).collect();
    for name in [
        "BlackHoleCluster",
        "PassthroughCluster",
        "inbound|8080||",
        "outbound|8080||payment-service.ecotrack.svc.cluster.local",
        "outbound|8080|canary|user-service.ecotrack.svc.cluster.local",
        "outbound|8080|stable|user-service.ecotrack.svc.cluster.local",
    ] {
        assert!(clusters.contains(&name), "{name} is not in {clusters:?}");
    }
    let listeners: Vec<_> = resources[&ResourceType::Listener].keys().map(|n| &**n).collect();
    assert_eq!(listeners, ["127.0.12.1_15080", "127.0.12.1_8080"]);
    assert_eq!(resources[&ResourceType::Route].keys().map(|n| &**n).collect::<Vec<_>>(), ["http_proxy"]);
}

#[test]
fn the_designs_limits_are_on_the_cluster() {
    let resources = render(&world(), &node("sidecar", "127.0.12.1", "ecotrack"), true, &Memo::default());
    let cluster = value(
        &resources,
        ResourceType::Cluster,
        "outbound|8080|stable|user-service.ecotrack.svc.cluster.local",
    );
    let threshold = &cluster["circuit_breakers"]["thresholds"][0];
    assert_eq!(
        (
            &threshold["max_connections"],
            &threshold["max_pending_requests"],
            &threshold["max_requests"],
            &threshold["max_retries"]
        ),
        (&100.into(), &50.into(), &100.into(), &3.into())
    );
    let outlier = &cluster["outlier_detection"];
    assert_eq!((&outlier["consecutive_5xx"], &outlier["max_ejection_percent"]), (&5.into(), &50.into()));
    assert_eq!(cluster["common_lb_config"]["healthy_panic_threshold"]["value"], 30.0);
    assert_eq!(cluster["upstream_connection_options"]["tcp_keepalive"]["keepalive_time"], 7200);
    assert_eq!(cluster["lb_policy"], "LEAST_REQUEST");
    let tls = &cluster["transport_socket_matches"][0]["transport_socket"]["typed_config"];
    let validation = &tls["common_tls_context"]["combined_validation_context"]["default_validation_context"];
    assert_eq!(
        validation["match_typed_subject_alt_names"][0]["matcher"]["exact"],
        "spiffe://cluster.local/ns/ecotrack/sa/user-service"
    );
}

#[test]
fn a_subset_has_only_its_endpoints() {
    let resources = render(&world(), &node("sidecar", "127.0.12.1", "ecotrack"), true, &Memo::default());
    let addresses = |subset: &str| -> Vec<String> {
        let name = format!("outbound|8080|{subset}|user-service.ecotrack.svc.cluster.local");
        let assignment = value(&resources, ResourceType::Endpoint, &name);
        assignment["endpoints"][0]["lb_endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["endpoint"]["address"]["socket_address"]["address"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(addresses("canary"), ["127.0.10.11"]);
    assert_eq!(addresses("stable"), ["127.0.10.1", "127.0.10.2", "127.0.10.3"]);
}

#[test]
fn the_canary_header_goes_first_and_retries_are_the_designs() {
    let resources = render(&world(), &node("sidecar", "127.0.12.1", "ecotrack"), true, &Memo::default());
    let routes = value(&resources, ResourceType::Route, "http_proxy");
    let hosts = routes["virtual_hosts"].as_array().unwrap();
    let users = hosts.iter().find(|h| h["name"] == "user-service.ecotrack.svc.cluster.local:8080").unwrap();
    assert!(users["domains"].as_array().unwrap().contains(&"user-service:8080".into()));
    let [canary, stable] = users["routes"].as_array().unwrap().as_slice() else { panic!("{users}") };
    assert_eq!(canary["match"]["headers"][0]["string_match"]["exact"], "true");
    assert_eq!(canary["route"]["cluster"], "outbound|8080|canary|user-service.ecotrack.svc.cluster.local");
    assert_eq!(stable["route"]["timeout"], "30s");
    let policy = &stable["route"]["retry_policy"];
    assert_eq!((&policy["num_retries"], &policy["per_try_timeout"]), (&3.into(), &"10s".into()));
    assert_eq!(policy["retry_host_predicate"][0]["name"], "envoy.retry_host_predicates.previous_hosts");
    assert_eq!(hosts.last().unwrap()["name"], "block_all");
}

#[test]
fn a_strict_port_has_only_a_mutual_tls_chain() {
    let resources = render(&world(), &node("sidecar", "127.0.10.1", "ecotrack"), true, &Memo::default());
    let listener = value(&resources, ResourceType::Listener, "127.0.10.1_8080");
    let chains = listener["filter_chains"].as_array().unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0]["filter_chain_match"]["transport_protocol"], "tls");
    assert_eq!(chains[0]["transport_socket"]["typed_config"]["require_client_certificate"], true);
    let inbound = value(&resources, ResourceType::Cluster, "inbound|8080||");
    let address = &inbound["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socket_address"], serde_json::json!({"address": "127.0.10.1", "port_value": 18080}));
}

#[test]
fn a_gateway_listens_at_its_services_target_port() {
    let resources = render(&world(), &node("router", "127.0.2.1", "istio-system"), true, &Memo::default());
    let listeners: Vec<_> = resources[&ResourceType::Listener].keys().map(|n| &**n).collect();
    assert_eq!(listeners, ["127.0.2.1_8080"]);
    let routes = value(&resources, ResourceType::Route, "http.8080");
    let host = &routes["virtual_hosts"][0];
    assert_eq!(host["domains"][0], "api.ecotrack.platform.dev");
    let clusters: Vec<_> =
        host["routes"].as_array().unwrap().iter().map(|r| &r["route"]["cluster"]).collect();
    assert_eq!(
        clusters,
        [
            "outbound|8080|canary|user-service.ecotrack.svc.cluster.local",
            "outbound|8080|stable|user-service.ecotrack.svc.cluster.local",
            "outbound|8080||product-service.ecotrack.svc.cluster.local",
            "outbound|8080||order-service.ecotrack.svc.cluster.local",
        ]
    );
}

#[test]
fn a_node_id_that_is_not_istios_is_refused() {
    for (id, words) in [("", "no node.id"), ("a~b", "four parts"), ("ztunnel~1.2.3.4~a~b", "not served")] {
        let error = ProxyNode::parse(&Node { id: id.to_owned(), ..Node::default() }).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

pub(super) fn mesh(text: &str) -> World {
    crate::ingest::load_str("mesh.yaml", text).into_result().unwrap_or_else(|d| panic!("{d:#?}"))
}

const DATABASE: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data}
spec: {selector: {app: db}, ports: [{name: tcp, port: 5432}, {name: tls, port: 5433}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: data}
spec:
  egress:
    - {port: {number: 5432, protocol: TCP, name: tcp}, captureMode: NONE, hosts: ['./*']}
    - {port: {number: 5433, protocol: TLS, name: tls}, captureMode: NONE, hosts: ['./*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: data}
spec:
  hosts: [db]
  tcp:
    - match: [{port: 9}]
      route: [{destination: {host: db, subset: never}}]
    - route:
        - {destination: {host: db, subset: a, port: {number: 5432}}, weight: 90}
        - {destination: {host: db, subset: b, port: {number: 5432}}, weight: 10}
  tls:
    - match: [{port: 5433, sniHosts: [db.data.svc.cluster.local]}]
      route: [{destination: {host: db, subset: b, port: {number: 5433}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: data}
spec:
  host: db
  subsets: [{name: a, labels: {v: a}}, {name: b, labels: {v: b}}, {name: never, labels: {v: c}}]
";

#[test]
fn connections_follow_the_tcp_and_tls_rules() {
    let world = mesh(DATABASE);
    let resources = render(&world, &node("sidecar", "127.0.9.1", "data"), false, &Memo::default());
    let tcp = value(&resources, ResourceType::Listener, "127.0.9.1_5432");
    let filters = tcp["filter_chains"][0]["filters"].as_array().unwrap();
    let clusters = &filters.last().unwrap()["typed_config"]["weighted_clusters"]["clusters"];
    assert_eq!(clusters[0]["name"], "outbound|5432|a|db.data.svc.cluster.local");
    assert_eq!((&clusters[0]["weight"], &clusters[1]["weight"]), (&90.into(), &10.into()));
    let tls = value(&resources, ResourceType::Listener, "127.0.9.1_5433");
    assert_eq!(tls["listener_filters"][0]["name"], "envoy.filters.listener.tls_inspector");
    let chain = &tls["filter_chains"][0];
    assert_eq!(chain["filter_chain_match"]["server_names"][0], "db.data.svc.cluster.local");
    let filters = chain["filters"].as_array().unwrap();
    let cluster = &filters.last().unwrap()["typed_config"]["cluster"];
    assert_eq!(cluster, "outbound|5433|b|db.data.svc.cluster.local");
}

#[test]
fn a_gateways_tls_settings_are_on_its_context() {
    let world = mesh(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: edge}
spec:
  selector: {istio: ingress}
  servers:
    - port: {number: 8443, protocol: HTTPS, name: https}
      hosts: ['*']
      tls:
        mode: OPTIONAL_MUTUAL
        serverCertificate: /certs/cert.pem
        privateKey: /certs/key.pem
        caCertificates: /certs/ca.pem
        minProtocolVersion: TLSV1_3
        subjectAltNames: ['spiffe://partner/client']
",
    );
    let mut gateway = node("router", "127.0.9.2", "edge");
    gateway.labels = [("istio".to_owned(), "ingress".to_owned())].into();
    let resources = render(&world, &gateway, true, &Memo::default());
    let listener = value(&resources, ResourceType::Listener, "127.0.9.2_8443");
    let context = &listener["filter_chains"][0]["transport_socket"]["typed_config"];
    assert_ne!(context["require_client_certificate"], true);
    let common = &context["common_tls_context"];
    assert_eq!(common["tls_params"]["tls_minimum_protocol_version"], "TLSv1_3");
    assert_eq!(common["tls_certificates"][0]["private_key"]["filename"], "/certs/key.pem");
    assert_eq!(common["validation_context"]["trusted_ca"]["filename"], "/certs/ca.pem");
    let names = &common["validation_context"]["match_typed_subject_alt_names"];
    assert_eq!(names[0]["matcher"]["exact"], "spiffe://partner/client");
}

#[test]
fn an_egress_port_may_be_an_http_proxy_for_every_service_it_imports() {
    let world = mesh(
        "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {selector: {app: users}, ports: [{name: http, port: 8080}, {name: http-admin, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  egress:
    - {port: {number: 3128, protocol: HTTP_PROXY, name: proxy}, captureMode: NONE, hosts: ['./*']}
",
    );
    let resources = render(&world, &node("sidecar", "127.0.9.3", "shop"), false, &Memo::default());
    let listener = value(&resources, ResourceType::Listener, "127.0.9.3_3128");
    let hcm = &listener["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(hcm["rds"]["route_config_name"], "3128");
    let routes = value(&resources, ResourceType::Route, "3128");
    let domains = |port: u16| -> Vec<String> {
        let name = format!("users.shop.svc.cluster.local:{port}");
        let hosts = routes["virtual_hosts"].as_array().unwrap();
        let host = hosts.iter().find(|h| h["name"] == name.as_str()).unwrap();
        host["domains"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect()
    };
    assert!(domains(8080).contains(&"users:8080".to_owned()) && !domains(8080).contains(&"users".to_owned()));
    assert!(domains(80).contains(&"users".to_owned()));
}
