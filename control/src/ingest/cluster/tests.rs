//! States that follow from what an API server says, without one.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::kinds::{BUILT_IN, DEFINED, Kind};
use super::store::{Built, Raw, Store};
use crate::ingest::gateway_api::{Address, Because, Standing};
use crate::model::World;
use crate::model::gateway_api::CONTROLLER;

fn kind(name: &str) -> &'static Kind {
    BUILT_IN.iter().chain(&DEFINED).find(|kind| kind.id() == name).expect("a kind that is watched")
}

/// The same of an object.
fn kind_of(object: &Value) -> &'static Kind {
    let (version, name) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let all = BUILT_IN.iter().chain(&DEFINED);
    all.into_iter().find(|kind| kind.group == group && kind.kind == name).expect("a kind that is watched")
}

/// Takes an object; of which kind, it says itself.
fn take(store: &mut Store, object: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let kind = kind_of(object);
    store.take(Raw { kind, namespace, name, json: Some(object.clone()) })
}

fn gone(store: &mut Store, of: &str, namespace: &str, name: &str) -> bool {
    store.take(Raw { kind: kind(of), namespace: namespace.to_owned(), name: name.to_owned(), json: None })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.10", "selector": {"app": name}, "sessionAffinity": "None",
                 "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]},
    })
}

fn pod(name: &str, ip: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop",
                     "labels": {"app": "cart", "version": "v1", "security.istio.io/tlsMode": "istio"}},
        "spec": {"serviceAccountName": "cart", "nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn endpoint(pod: &str, ip: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"}})
}

fn slice(name: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
        "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"}}})
}

fn peer(mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop", "generation": 3},
        "spec": {"mtls": {"mode": mode}},
    })
}

/// Addresses of the service `cart`, with the port that its first port is at there.
fn cart(world: &World) -> Vec<String> {
    let service = world.services_with_host("cart.shop.svc.cluster.local").next().expect("the service");
    let at = |e: &std::sync::Arc<crate::model::Endpoint>| {
        format!("{}:{}", e.address, service.endpoint_port(&service.ports[0], e).unwrap_or_default())
    };
    service.endpoints.iter().map(at).collect()
}

#[test]
fn endpoints_are_those_that_slices_call_ready_with_what_their_pods_and_nodes_say() {
    let mut store = Store::default();
    let all = [
        service("cart"),
        node("n1", "a"),
        pod("p1", "10.0.0.1", "n1"),
        pod("p2", "10.0.0.2", "n1"),
        slice(
            "s",
            &[
                endpoint("p1", "10.0.0.1", json!({"ready": true})),
                endpoint("p2", "10.0.0.2", json!({"ready": false})),
            ],
        ),
    ];
    all.iter().for_each(|object| assert!(take(&mut store, object)));
    let Built { world, diagnostics, .. } = store.build();
    assert_eq!(diagnostics, []);
    assert_eq!(cart(&world), ["10.0.0.1:8080"], "the slice says which port `web` is");
    let service = world.services_with_host("cart.shop.svc.cluster.local").next().unwrap();
    let first = &service.endpoints[0];
    assert_eq!((first.service_account.as_str(), first.mutual_tls), ("cart", true));
    assert_eq!(first.labels["version"], "v1");
    let locality = first.locality.as_ref().unwrap();
    assert_eq!((locality.region.as_str(), locality.zone.as_str()), ("eu", "a"));
    // Its own proxy knows what it will serve before anybody sends it anything.
    let serves = |address: &str| {
        world.served_at(address).map(|(s, e)| format!("{} {}", s.hostname, e.address)).collect::<Vec<_>>()
    };
    assert_eq!(serves("10.0.0.2"), ["cart.shop.svc.cluster.local 10.0.0.2"]);
    assert_eq!(world.workload_at("10.0.0.2").unwrap().service_account(), "cart");

    // The kubelet's heartbeat means nothing here; another zone does.
    let mut beat = node("n1", "a");
    beat["status"] = json!({"conditions": [{"type": "Ready", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]});
    assert!(!take(&mut store, &beat));
    assert!(take(&mut store, &node("n1", "b")));
    let moved = store.build().world;
    assert_ne!(moved.version(), world.version());
    let service = moved.services_with_host("cart.shop.svc.cluster.local").next().unwrap();
    assert_eq!(service.endpoints[0].locality.as_ref().unwrap().zone, "b");
}

#[test]
fn an_endpoint_that_leaves_is_used_only_where_there_is_no_other() {
    let mut store = Store::default();
    [service("cart"), pod("p1", "10.0.0.1", ""), pod("p2", "10.0.0.2", "")]
        .iter()
        .for_each(|o| assert!(take(&mut store, o)));
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let dead = json!({"ready": false, "serving": false, "terminating": true});
    let mut with = |first: &Value, second: &Value| {
        take(
            &mut store,
            &slice(
                "s",
                &[endpoint("p1", "10.0.0.1", first.clone()), endpoint("p2", "10.0.0.2", second.clone())],
            ),
        );
        cart(&store.build().world)
    };
    assert_eq!(with(&json!({}), &leaving), ["10.0.0.1:8080"]);
    assert_eq!(with(&dead, &leaving), ["10.0.0.2:8080"]);
    assert_eq!(with(&dead, &dead), [""; 0]);
    assert_eq!(with(&json!({}), &json!({})), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    // A pod that is gone is no endpoint, whatever the slice still says; nor is one whose work is done.
    assert!(gone(&mut store, "Pod", "shop", "p1"));
    assert_eq!(cart(&store.build().world), ["10.0.0.2:8080"]);
    let mut done = pod("p2", "10.0.0.2", "");
    done["status"]["phase"] = "Succeeded".into();
    take(&mut store, &done);
    assert_eq!(cart(&store.build().world), [""; 0]);
    assert!(gone(&mut store, "EndpointSlice", "shop", "s"));
}

#[test]
fn what_is_wrong_keeps_its_last_good_version_and_is_told_once() {
    let mut store = Store::default();
    take(&mut store, &peer("STRICT"));
    let good = store.build();
    assert_eq!((good.diagnostics.len(), good.world.peer_authentications().len()), (0, 1));

    take(&mut store, &peer("STRICKT"));
    let bad = store.build();
    assert_eq!(bad.world.version(), good.world.version(), "the last good version stays");
    let text = bad.diagnostics[0].to_string();
    let expected = "kubernetes: PeerAuthentication shop/default: spec.mtls.mode: unknown value \"STRICKT\"";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(bad.news, bad.diagnostics);
    let verdict = &bad.verdicts[&("PeerAuthentication", "shop".to_owned(), "default".to_owned())];
    assert_eq!((verdict.generation, verdict.earlier, verdict.findings.len()), (Some(3), true, 1));
    assert_eq!(store.build().news, []);

    // Other objects go on changing.
    take(&mut store, &service("cart"));
    let more = store.build();
    assert_eq!((more.world.services().len(), more.world.peer_authentications().len()), (1, 1));
    take(&mut store, &peer("DISABLE"));
    assert_eq!(store.build().diagnostics, []);
    assert!(gone(&mut store, "PeerAuthentication", "shop", "default"));
    assert_eq!(store.build().world.peer_authentications().len(), 0);
}

#[test]
fn what_is_wrong_from_the_start_is_left_out_alone() {
    let mut store = Store::default();
    take(&mut store, &peer("STRICKT"));
    take(&mut store, &service("cart"));
    let filter = json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
        "metadata": {"name": "f", "namespace": "shop"}, "spec": {},
    });
    take(&mut store, &filter);
    let built = store.build();
    assert_eq!((built.world.services().len(), built.world.peer_authentications().len()), (1, 0));
    let texts: Vec<_> = built.diagnostics.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|t| t.contains("EnvoyFilter shop/f: not yet supported by Weft")), "{texts:?}");
    let verdict = &built.verdicts[&("PeerAuthentication", "shop".to_owned(), "default".to_owned())];
    assert!(!verdict.earlier);
}

#[test]
fn what_went_while_nobody_watched_is_gone_after_the_next_list() {
    let mut store = Store::default();
    [service("cart"), service("stock"), pod("p1", "10.0.0.1", "")]
        .iter()
        .for_each(|o| assert!(take(&mut store, o)));
    let name = |name: &str| ("shop".to_owned(), name.to_owned());
    assert!(!store.keep(kind("Service"), &HashSet::from([name("cart"), name("stock")])));
    assert!(store.keep(kind("Service"), &HashSet::from([name("stock")])));
    assert!(store.keep(kind("Pod"), &HashSet::new()));
    let world = store.build().world;
    assert_eq!(
        world.services().iter().map(|s| &*s.hostname).collect::<Vec<_>>(),
        ["stock.shop.svc.cluster.local"]
    );
    assert!(world.workload_at("10.0.0.1").is_none());
}

#[test]
fn a_secret_that_is_named_is_taken_and_its_next_version_too() {
    let mut store = Store::default();
    let secret = |pem: &str| {
        let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "edge", "namespace": "shop", "resourceVersion": "7"},
            "data": {"tls.crt": pem, "tls.key": pem},
        })
    };
    let (first, second) = ("-----BEGIN A-----", "-----BEGIN B-----");
    assert!(take(&mut store, &secret(first)));
    let built = store.build();
    assert_eq!(built.diagnostics, []);
    assert_eq!(built.world.secret("shop", "edge").unwrap().spec.private_key, first.as_bytes());
    // The same again, as after a new list, is no change.
    assert!(!take(&mut store, &secret(first)));
    assert!(take(&mut store, &secret(second)));
    let next = store.build().world;
    assert_eq!(next.secret("shop", "edge").unwrap().spec.private_key, second.as_bytes());
    assert_ne!(next.version(), built.world.version());
}

#[test]
fn a_gateways_status_names_the_namespace_where_its_secret_is_and_where_it_has_to_be() {
    let mut store = Store::default();
    let secret = |namespace: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "edge", "namespace": namespace, "resourceVersion": "7"},
            "data": {"tls.crt": "LS0tLS1CRUdJTiBBLS0tLS0=", "tls.key": "LS0tLS1CRUdJTiBBLS0tLS0="},
        })
    };
    let mut router = pod("gw-1", "10.0.0.9", "n1");
    router["metadata"]["labels"] = json!({"istio": "ingressgateway"});
    router["metadata"]["annotations"] = json!({"inject.istio.io/templates": "gateway"});
    router["metadata"]["namespace"] = "istio-system".into();
    take(&mut store, &router);
    take(&mut store, &secret("shop"));
    take(
        &mut store,
        &json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "g", "namespace": "shop"},
            "spec": {"selector": {"istio": "ingressgateway"}, "servers": [{"hosts": ["a.example.com"],
                "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                "tls": {"mode": "SIMPLE", "credentialName": "edge"}}]},
        }),
    );
    let verdict = |store: &mut Store| {
        let verdicts = store.build().verdicts;
        verdicts[&("Gateway", "shop".to_owned(), "g".to_owned())].findings.clone()
    };
    let found = verdict(&mut store);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    let text = format!("{} {}", only.reason, only.help.as_deref().unwrap_or_default());
    assert!(text.contains("in the namespace shop") && text.contains("put it into istio-system"), "{text}");
    assert_eq!(only.path.as_deref(), Some("spec.servers[0].tls.credentialName"));
    take(&mut store, &secret("istio-system"));
    assert_eq!(verdict(&mut store), []);
}

#[test]
fn a_status_that_is_written_is_known_and_changes_nothing() {
    let mut store = Store::default();
    take(&mut store, &peer("STRICT"));
    let before = store.build().world.version();
    let mut told = peer("STRICT");
    told["status"] = json!({"conditions": [{"type": "Valid", "status": "True"}]});
    told["metadata"]["resourceVersion"] = "8".into();
    assert!(!take(&mut store, &told));
    let built = store.build();
    assert_eq!((built.world.version(), built.diagnostics.len()), (before, 0));
    let verdict = &built.verdicts[&("PeerAuthentication", "shop".to_owned(), "default".to_owned())];
    assert_eq!(verdict.status, told["status"]);
}

#[test]
fn secrets_that_nobody_names_are_nobodys_business() {
    let mut store = Store::default();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "api", "namespace": "shop"}, "data": {"key": "c2VjcmV0"},
    });
    take(&mut store, &secret);
    assert_eq!(store.build().diagnostics, []);
    let gateway = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "g", "namespace": "shop"},
        "spec": {"selector": {"istio": "gw"}, "servers": [{"hosts": ["a.example.com"],
            "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
            "tls": {"mode": "SIMPLE", "credentialName": "api"}}]},
    });
    take(&mut store, &gateway);
    let text = store.build().diagnostics[0].to_string();
    assert!(text.contains("Secret shop/api") && !text.contains("secret\""), "{text}");
}

fn settings(mesh: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": mesh}})
}

#[test]
fn settings_of_the_mesh_that_never_were_right_are_told_apart_from_those_that_were() {
    let mut store = Store::default();
    assert!(store.mesh_refused().is_none());
    take(&mut store, &settings("trustDomain: one.example\nenablePrometheusMerge: true\n"));
    let wrong = store.mesh_refused().expect("it is refused");
    assert!(wrong.contains("enablePrometheusMerge"), "{wrong}");
    take(&mut store, &settings("trustDomain: one.example\n"));
    assert!(store.mesh_refused().is_none());
    take(&mut store, &settings("trustDomain: [one]\n"));
    assert!(store.mesh_refused().is_none(), "the last good version holds");
    assert_eq!(store.build().world.mesh().trust_domain, "one.example");
}

#[test]
fn a_slice_of_nothing_is_read() {
    let mut store = Store::default();
    let mut empty = slice("s", &[]);
    (empty["endpoints"], empty["ports"]) = (Value::Null, Value::Null);
    for object in [
        &service("cart"),
        &pod("p1", "10.0.0.1", "n1"),
        &slice("s", &[endpoint("p1", "10.0.0.1", json!({}))]),
    ] {
        take(&mut store, object);
    }
    assert_eq!(cart(&store.build().world).len(), 1);
    take(&mut store, &empty);
    assert!(cart(&store.build().world).is_empty());
}

#[test]
fn certificates_of_acme_are_for_one_control_plane() {
    let mut store = Store::default();
    take(
        &mut store,
        &json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AcmeCertificate", "metadata": {"name": "a", "namespace": "edge"},
            "spec": {"credentialName": "c", "dnsNames": ["a.example"], "server": "https://acme.example/directory"}}),
    );
    let Built { world, diagnostics, .. } = store.build();
    assert!(world.acme_certificates().is_empty());
    assert!(
        diagnostics
            .iter()
            .any(|d| d.is_error() && d.help.as_ref().is_some_and(|h| h.contains("cert-manager"))),
        "{diagnostics:?}"
    );
}

#[test]
fn a_pod_is_who_it_is_only_at_its_own_address() {
    let mut store = Store::default();
    take(&mut store, &pod("p1", "10.0.0.1", "n1"));
    let world = store.build().world;
    assert!(world.vouches("10.0.0.1", "shop", "cart"));
    for (address, namespace, account) in
        [("10.0.0.2", "shop", "cart"), ("10.0.0.1", "other", "cart"), ("10.0.0.1", "shop", "app")]
    {
        assert!(!world.vouches(address, namespace, account), "{address} {namespace} {account}");
    }
    // A directory does not say who is where.
    assert!(World::default().vouches("10.0.0.9", "a", "b"));
}

fn edge(kind: &str, name: &str, spec: Value) -> Value {
    let namespace = if kind == "GatewayClass" { "" } else { "shop" };
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "spec": spec,
           "metadata": {"name": name, "namespace": namespace, "generation": 2, "resourceVersion": "5"}})
}

#[test]
fn objects_of_the_gateway_api_are_told_how_they_stand_if_they_are_ours() {
    const GATEWAY: &str = "Gateway.gateway.networking.k8s.io";
    let mut store = Store::default();
    let class =
        |name: &str, controller: &str| edge("GatewayClass", name, json!({"controllerName": controller}));
    let gateway = |name: &str, class: &str| {
        let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
        edge("Gateway", name, json!({"gatewayClassName": class, "listeners": listeners}))
    };
    let route = |parent: &str, more: &str| {
        let mut rule = json!({"backendRefs": [{"name": "cart", "port": 80}]});
        rule[more] = json!({});
        edge("HTTPRoute", "cart", json!({"parentRefs": [{"name": parent}], "rules": [rule]}))
    };
    // Istio's Gateway of the same name is another object.
    let istios = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "ours", "namespace": "shop"},
        "spec": {"selector": {"istio": "gw"}, "servers": [{"hosts": ["*"], "port": {"number": 80, "name": "h", "protocol": "HTTP"}}]},
    });
    for object in [
        class("weft", "weft.dev/gateway-controller"),
        class("theirs", "theirs.example/controller"),
        gateway("ours", "weft"),
        gateway("theirs", "theirs"),
        istios,
        service("cart"),
        route("ours", "timeouts"),
    ] {
        assert!(take(&mut store, &object));
    }
    let built = store.build();
    let verdict = |built: &Built, kind: &'static str, name: &str| {
        let namespace = if kind == "GatewayClass" { "" } else { "shop" };
        built.verdicts.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    };
    let standing = |built: &Built, kind: &'static str, name: &str| {
        verdict(built, kind, name).and_then(|verdict| verdict.standing)
    };
    assert!(matches!(standing(&built, "GatewayClass", "weft"), Some(Standing::Class(_))));
    assert!(verdict(&built, "GatewayClass", "theirs").is_none());
    assert!(verdict(&built, GATEWAY, "theirs").is_none(), "another controller's");
    assert!(matches!(standing(&built, GATEWAY, "ours"), Some(Standing::Gateway { .. })));
    assert!(verdict(&built, "Gateway", "ours").is_some_and(|verdict| verdict.standing.is_none()));
    let parents = |built: &Built| match standing(built, "HTTPRoute", "cart") {
        Some(Standing::Route(parents)) => parents,
        other => panic!("{other:?}"),
    };
    assert!(parents(&built)[0].conditions.iter().all(|condition| condition.holds));
    let version = built.world.version();

    // One that is wrong says so, and its last good version stays.
    assert!(take(&mut store, &route("ours", "sessionPersistence")));
    let built = store.build();
    assert_eq!(built.world.version(), version);
    let accepted = &parents(&built)[0].conditions[0];
    assert_eq!((accepted.holds, accepted.reason), (false, "UnsupportedValue"));
    assert!(accepted.message.contains("spec.rules[0].sessionPersistence"), "{}", accepted.message);

    // One that leaves is told so where it still says that it was ours, and only there.
    let mut left = route("theirs", "timeouts");
    assert!(take(&mut store, &left));
    assert!(verdict(&store.build(), "HTTPRoute", "cart").is_none());
    left["status"] = json!({"parents": [{"controllerName": "weft.dev/gateway-controller"}]});
    left["metadata"]["resourceVersion"] = "6".into();
    assert!(take(&mut store, &left), "whose status changes is looked at again");
    let built = store.build();
    assert_eq!(parents(&built), []);
    assert_eq!(verdict(&built, "HTTPRoute", "cart").unwrap().resource_version, "6");
}

#[test]
fn a_networks_gateway_of_type_node_port_is_found_at_the_nodes_that_its_annotation_selects() {
    let mut store = Store::default();
    let with = |name: &str, edge: &str, addresses: Value| {
        let mut node = node(name, "a");
        node["metadata"]["labels"]["edge"] = edge.into();
        node["status"] = json!({"addresses": addresses, "conditions": [{"type": "Ready"}]});
        node
    };
    let at = |kind: &str, address: &str| json!({"type": kind, "address": address});
    let mut gateway = service("eastwest");
    gateway["metadata"]["labels"] = json!({"topology.istio.io/network": "two"});
    gateway["metadata"]["annotations"] = json!({"traffic.istio.io/nodeSelector": "{\"edge\": \"true\"}"});
    gateway["spec"]["type"] = "NodePort".into();
    gateway["spec"]["ports"] = json!([{"name": "tls", "port": 15443, "nodePort": 31443}]);
    let two =
        [at("InternalIP", "10.0.0.1"), at("ExternalIP", "203.0.113.1"), at("ExternalIP", "203.0.113.9")];
    let all = [
        gateway.clone(),
        with("n1", "true", json!(two)),
        with("n2", "true", json!([at("InternalIP", "10.0.0.2")])),
        with("n3", "false", json!([at("ExternalIP", "203.0.113.3")])),
    ];
    all.iter().for_each(|object| assert!(take(&mut store, object)));
    let gateways = |store: &mut Store| {
        let world = store.build().world;
        let found: Vec<_> =
            world.networks().gateways("two").iter().map(|g| format!("{}:{}", g.address, g.port)).collect();
        (found, crate::analyze::analyze(&world).iter().filter(|m| m.name == "NetworkGatewayNotFound").count())
    };
    assert_eq!(gateways(&mut store), (vec!["203.0.113.1:31443".to_owned()], 0));
    // A heartbeat is no change; a label and an address are.
    assert!(!take(&mut store, &with("n1", "true", json!(two))));
    assert!(take(&mut store, &with("n3", "true", json!([at("ExternalIP", "203.0.113.3")]))));
    assert_eq!(gateways(&mut store).0, ["203.0.113.1:31443", "203.0.113.3:31443"]);
    assert!(gone(&mut store, "Node", "", "n1"));
    assert!(take(&mut store, &with("n3", "true", json!([at("ExternalIP", "203.0.113.4")]))));
    assert_eq!(gateways(&mut store).0, ["203.0.113.4:31443"]);
    assert!(gone(&mut store, "Node", "", "n3"));
    assert_eq!(gateways(&mut store), (Vec::new(), 1), "the analysis says so");
    // Without the annotation nodes are not meant.
    gateway["metadata"]["annotations"] = json!({});
    take(&mut store, &gateway);
    take(&mut store, &with("n3", "true", json!([at("ExternalIP", "203.0.113.4")])));
    assert_eq!(gateways(&mut store).0, [] as [&str; 0]);
    gateway["metadata"]["annotations"] = json!({"traffic.istio.io/nodeSelector": "edge=true"});
    take(&mut store, &gateway);
    let said: Vec<_> = store.build().diagnostics.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|one| one.contains("nodeSelector: \"edge=true\" is no object of texts")),
        "{said:?}"
    );
}

#[test]
fn where_others_have_found_room_for_a_networks_gateway_is_read_from_its_status() {
    let mut store = Store::default();
    let gateway = |addresses: Value| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "far", "namespace": "edge", "labels": {"topology.istio.io/network": "two"}},
            "spec": {"gatewayClassName": "istio-remote", "listeners": [
                {"name": "tls", "port": 15443, "protocol": "TLS", "tls": {"mode": "Passthrough"}}]},
            "status": {"addresses": addresses}})
    };
    assert!(take(&mut store, &gateway(json!([{"type": "IPAddress", "value": "203.0.113.1"}]))));
    let found = |store: &mut Store| format!("{:?}", store.build().world.networks().gateways("two"));
    assert!(found(&mut store).contains("203.0.113.1"));
    assert!(take(
        &mut store,
        &gateway(json!([{"value": "203.0.113.2"}, {"type": "Hostname", "value": "lb.example"}]))
    ));
    let now = found(&mut store);
    assert!(now.contains("203.0.113.2") && !now.contains("203.0.113.1"), "{now}");
    assert!(store.build().world.networks().names().contains("lb.example"));
}

#[test]
fn a_gateway_is_found_at_its_load_balancer_once_that_has_an_address() {
    let mut store = Store::default();
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let mut gateway = pod("edge-1", "10.0.0.1", "n1");
    let label = "gateway.networking.k8s.io/gateway-name";
    gateway["metadata"]["labels"] = json!({label: "edge"});
    let front = |kind: &str, status: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "edge-weft", "namespace": "shop"},
            "spec": {"type": kind, "clusterIP": "10.96.0.9", "selector": {label: "edge"}, "ports": [{"name": "http", "port": 80}]},
            "status": status,
        })
    };
    for object in [
        edge("GatewayClass", "weft", json!({"controllerName": "weft.dev/gateway-controller"})),
        edge("Gateway", "edge", json!({"gatewayClassName": "weft", "listeners": listeners})),
        gateway,
    ] {
        assert!(take(&mut store, &object));
    }
    let host = Address::Host("edge-weft.shop.svc.cluster.local".to_owned());
    let given = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "lb.example"}]}});
    let at_balancer = [Address::Ip("203.0.113.7".to_owned()), Address::Host("lb.example".to_owned())];
    for (kind, status, programmed, expected) in [
        ("LoadBalancer", json!({}), "AddressNotAssigned", Vec::new()),
        ("LoadBalancer", given, "Programmed", at_balancer.to_vec()),
        ("ClusterIP", json!({}), "Programmed", vec![host]),
    ] {
        assert!(take(&mut store, &front(kind, status)));
        let verdicts = store.build().verdicts;
        let verdict = &verdicts[&("Gateway.gateway.networking.k8s.io", "shop".to_owned(), "edge".to_owned())];
        let Some(Standing::Gateway { conditions, addresses, .. }) = &verdict.standing else {
            panic!("{verdict:?}");
        };
        let found = conditions.iter().find(|one| one.kind == "Programmed").unwrap();
        assert_eq!((found.reason, addresses), (programmed, &expected), "{kind}");
    }
}

#[test]
fn what_was_made_for_a_gateway_is_spare_when_somebody_else_serves_it() {
    let mut store = Store::default();
    let class = |name: &str, spec: Value| edge("GatewayClass", name, spec);
    let gateway = |class: &str, annotations: Value, more: Value| {
        let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
        let mut spec = json!({"gatewayClassName": class, "listeners": listeners});
        more.as_object().unwrap().iter().for_each(|(key, value)| spec[key] = value.clone());
        let mut gateway = edge("Gateway", "gw", spec);
        gateway["metadata"]["uid"] = "17".into();
        gateway["metadata"]["annotations"] = annotations;
        gateway
    };
    let mut front = service("front");
    front["spec"]["selector"] = json!({"app": "front"});
    for object in [
        class("weft", json!({"controllerName": CONTROLLER})),
        // What it says beside is nobody's business here.
        class("theirs", json!({"controllerName": "theirs.example/c", "parametersRef": {"name": "x"}})),
        front,
    ] {
        assert!(take(&mut store, &object));
    }
    assert!(!store.build().diagnostics.iter().any(crate::ingest::Diagnostic::is_error));
    let spare = |store: &mut Store, gateway: Value| {
        take(store, &gateway);
        let plan = store.build().gateways;
        let spare: Vec<_> = plan.spare.into_iter().map(|one| (one.owner, one.because)).collect();
        (plan.wanted.len(), spare)
    };
    let one = |because: Because| vec![("17".to_owned(), because)];
    let of_class = |name: &str| one(Because::Class(name.to_owned()));
    assert_eq!(spare(&mut store, gateway("weft", json!({}), json!({}))), (1, vec![]));
    assert_eq!(spare(&mut store, gateway("theirs", json!({}), json!({}))), (0, of_class("theirs")));
    assert_eq!(
        spare(&mut store, gateway("istio-remote", json!({}), json!({}))),
        (0, of_class("istio-remote"))
    );
    // A class that is not there may come back.
    assert_eq!(spare(&mut store, gateway("gone", json!({}), json!({}))), (0, vec![]));
    let by_hand = json!({"gateway.weft.dev/managed": "false"});
    // Served by hand, perhaps by what was made: that stays, whatever else is said.
    assert_eq!(spare(&mut store, gateway("weft", by_hand.clone(), json!({}))), (0, vec![]));
    assert_eq!(spare(&mut store, gateway("theirs", by_hand, json!({}))), (0, vec![]));

    // A Service of its own: when there are workloads behind it, and those are not the ones that were made.
    let host = "front.shop.svc.cluster.local";
    let named = || gateway("weft", json!({}), json!({"addresses": [{"type": "Hostname", "value": host}]}));
    assert_eq!(spare(&mut store, named()), (0, vec![]));
    let with = |name: &str, address: &str, labels: Value| {
        let mut pod = pod(name, address, "n1");
        pod["metadata"]["labels"] = labels;
        pod
    };
    let made = "gateway.networking.k8s.io/gateway-name";
    take(&mut store, &with("p1", "10.0.0.1", json!({"app": "front", made: "gw"})));
    assert_eq!(spare(&mut store, named()), (0, vec![]));
    let mut front = with("p1", "10.0.0.1", json!({"app": "front"}));
    front["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    take(&mut store, &front);
    assert_eq!(spare(&mut store, named()), (0, vec![]), "none of them is ready");
    front["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    take(&mut store, &front);
    assert_eq!(spare(&mut store, named()), (0, one(Because::Address(host.to_owned()))));

    // Whose it is, a Gateway says whatever else Weft would refuse: it is another controller's, and served no more.
    let ours = |store: &mut Store| store.build().world.gateways().len();
    assert_eq!(spare(&mut store, gateway("weft", json!({}), json!({}))), (1, vec![]));
    assert_eq!(ours(&mut store), 1);
    let parameters = json!({"infrastructure": {"parametersRef": {"name": "x"}}});
    assert_eq!(spare(&mut store, gateway("theirs", json!({}), parameters.clone())), (0, of_class("theirs")));
    assert_eq!(ours(&mut store), 0);
    // What is ours and wrong stays as it was when it was right.
    assert_eq!(spare(&mut store, gateway("weft", json!({}), parameters)).0, 1);
    assert_eq!(ours(&mut store), 1);
}

#[test]
fn a_class_of_ours_with_parameters_is_told_that_it_has_none() {
    let mut store = Store::default();
    let spec = json!({"controllerName": CONTROLLER, "parametersRef": {"name": "x"}});
    assert!(take(&mut store, &edge("GatewayClass", "weft", spec)));
    let built = store.build();
    let verdict = &built.verdicts[&("GatewayClass", String::new(), "weft".to_owned())];
    let Some(Standing::Class(conditions)) = &verdict.standing else { panic!("{verdict:?}") };
    assert_eq!((conditions[0].holds, conditions[0].reason), (false, "InvalidParameters"));
    assert!(conditions[0].message.contains("spec.parametersRef: not supported"), "{conditions:?}");
}
