//! Names and matches of what captured workloads get.

use serde_json::{Value, json};
use xds_protos::ResourceType;

use super::super::tests::{mesh, node, value};
use super::super::{Interception, Memo, ProxyNode, Resources, render};
use crate::model::World;

fn captured(ip: &str) -> ProxyNode {
    let mut node = node("sidecar", ip, "shop");
    node.interception = Interception::Redirect;
    node.labels = [("app".to_owned(), "users".to_owned())].into();
    node
}

fn resources(world: &World, node: &ProxyNode) -> Resources {
    render(world, node, false, &Memo::default())
}

fn names(resources: &Resources, kind: ResourceType) -> Vec<String> {
    resources[&kind].keys().map(|n| n.to_string()).collect()
}

fn listener(resources: &Resources, name: &str) -> Value {
    value(resources, ResourceType::Listener, name)
}

/// Where a chain's TCP goes, or by which routes its HTTP.
fn end(chain: &Value) -> &str {
    let last = chain["filters"].as_array().and_then(|f| f.last()).unwrap_or(&Value::Null);
    let config = &last["typed_config"];
    let found = config["cluster"].as_str().or(config["rds"]["route_config_name"].as_str());
    found.or(config["route_config"]["name"].as_str()).unwrap_or_else(|| panic!("{chain}"))
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: users}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 5432}, {name: x, port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: members, namespace: shop}
spec: {clusterIP: None, selector: {app: users}, ports: [{name: tcp, port: 6000}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: users}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: b, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: users}}
---
";

#[test]
fn listeners_have_istiods_names() {
    let resources = resources(&mesh(SERVICES), &captured("10.0.0.1"));
    assert_eq!(
        names(&resources, ResourceType::Listener),
        // The node's own place in the headless service is no place that it dials.
        [
            "0.0.0.0_80",
            "10.0.0.2_6000",
            "10.96.0.1_5432",
            "10.96.0.1_7000",
            "virtualInbound",
            "virtualOutbound"
        ]
    );
    assert_eq!(names(&resources, ResourceType::Route), ["7000", "80", "users.shop.svc.cluster.local:7000"]);
    let outbound = listener(&resources, "virtualOutbound");
    assert_eq!((&outbound["use_original_dst"], outbound.get("transparent")), (&true.into(), None));
    let ends: Vec<_> = outbound["filter_chains"].as_array().unwrap().iter().map(end).collect();
    assert_eq!(ends, ["BlackHoleCluster", "PassthroughCluster"]);
    // Servers may speak first at a declared port.
    let tcp = listener(&resources, "10.96.0.1_5432");
    assert_eq!((tcp.get("listener_filters"), &tcp["bind_to_port"]), (None, &false.into()), "{tcp}");
    assert_eq!(end(&tcp["filter_chains"][0]), "outbound|5432||users.shop.svc.cluster.local");
    // HTTP, and what is none, at a port of no declared protocol.
    let auto = listener(&resources, "10.96.0.1_7000");
    assert_eq!(end(&auto["filter_chains"][0]), "users.shop.svc.cluster.local:7000");
    assert_eq!(end(&auto["default_filter_chain"]), "outbound|7000||users.shop.svc.cluster.local");
    let routes = value(&resources, ResourceType::Route, "users.shop.svc.cluster.local:7000");
    assert_eq!(routes["virtual_hosts"].as_array().unwrap().len(), 1, "{routes}");
    assert_eq!(routes["virtual_hosts"][0]["domains"], json!(["*"]));
    // What is not HTTP at a port of HTTP is not the mesh's.
    let http = listener(&resources, "0.0.0.0_80");
    assert_eq!(end(&http["default_filter_chain"]), "PassthroughCluster");
    let routes = value(&resources, ResourceType::Route, "80");
    let last = routes["virtual_hosts"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["name"], &routes["ignore_port_in_host_matching"]), (&"allow_any".into(), &true.into()));
}

#[test]
fn inbound_chains_are_by_port_and_inspect_only_where_they_must() {
    let world = mesh(
        &(SERVICES.to_owned()
            + "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: users, namespace: shop}
spec:
  selector: {matchLabels: {app: users}}
  mtls: {mode: STRICT}
  portLevelMtls: {7000: {mode: PERMISSIVE}, 5432: {mode: DISABLE}, 9100: {mode: DISABLE}}
"),
    );
    let resources = resources(&world, &captured("10.0.0.1"));
    let inbound = listener(&resources, "virtualInbound");
    let chains: Vec<(u64, &str, &str)> = inbound["filter_chains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|chain| {
            let matched = &chain["filter_chain_match"];
            let port = matched["destination_port"].as_u64().unwrap_or_default();
            (port, matched["transport_protocol"].as_str().unwrap_or_default(), end(chain))
        })
        .collect();
    let all = "InboundPassthroughCluster";
    assert_eq!(
        chains,
        [
            (15006, "", "BlackHoleCluster"),
            (0, "tls", all),
            (0, "tls", all),
            (9100, "raw_buffer", all),
            (9100, "raw_buffer", all),
            (8080, "tls", "inbound|8080||"),
            (5432, "raw_buffer", "inbound|5432||"),
            (7000, "tls", "inbound|7000||"),
            (7000, "raw_buffer", "inbound|7000||"),
            (7000, "tls", "inbound|7000||"),
            (7000, "raw_buffer", "inbound|7000||"),
            (7000, "tls", "inbound|7000||"),
            (6000, "tls", "inbound|6000||"),
        ]
    );
    let filters = inbound["listener_filters"].as_array().unwrap();
    let names: Vec<_> = filters.iter().map(|f| f["name"].as_str().unwrap()).collect();
    let prefixed =
        ["original_dst", "tls_inspector", "http_inspector"].map(|n| format!("envoy.filters.listener.{n}"));
    assert_eq!(names, prefixed);
    let ports = |filter: &Value| -> Vec<u64> {
        let rules = &filter["filter_disabled"]["or_match"]["rules"];
        rules
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["destination_port_range"]["start"].as_u64().unwrap())
            .collect()
    };
    // No TLS where none is taken; HTTP is looked for where nothing is declared, and in plain text.
    assert_eq!((ports(&filters[1]), ports(&filters[2])), (vec![5432, 9100], vec![5432, 6000, 8080]));
    let cluster = value(&resources, ResourceType::Cluster, "inbound|8080||");
    assert_eq!(
        (&cluster["type"], &cluster["lb_policy"]),
        (&"ORIGINAL_DST".into(), &"CLUSTER_PROVIDED".into())
    );
    assert_eq!(cluster["upstream_bind_config"]["source_address"]["address"], "127.0.0.6");
}

#[test]
fn a_transparent_sidecar_keeps_the_clients_address() {
    let mut node = captured("10.0.0.1");
    node.interception = Interception::Transparent;
    let resources = resources(&mesh(SERVICES), &node);
    let inbound = listener(&resources, "virtualInbound");
    assert_eq!(inbound["transparent"], true);
    let source = &inbound["listener_filters"][1];
    assert_eq!(
        (&source["name"], &source["typed_config"]["mark"]),
        (&"envoy.filters.listener.original_src".into(), &1337.into())
    );
    let cluster = value(&resources, ResourceType::Cluster, "inbound|8080||");
    assert_eq!(cluster.get("upstream_bind_config"), None);
}

#[test]
fn a_node_of_both_versions_of_ip_is_captured_by_both() {
    let mut node = captured("10.0.0.1");
    node.addresses.push("fd00::1".to_owned());
    let resources = resources(&mesh(SERVICES), &node);
    for name in ["virtualInbound", "virtualOutbound", "0.0.0.0_80"] {
        let found = listener(&resources, name);
        assert_eq!(found["additional_addresses"][0]["address"]["socket_address"]["address"], "::", "{name}");
    }
    let cluster = value(&resources, ResourceType::Cluster, "InboundPassthroughCluster");
    let bind = &cluster["upstream_bind_config"];
    assert_eq!(bind["extra_source_addresses"][0]["address"]["address"], "::6");
    node.addresses.remove(0);
    let resources = render(&mesh(SERVICES), &node, false, &Memo::default());
    assert_eq!(listener(&resources, "virtualInbound")["address"]["socket_address"]["address"], "::");
    assert!(names(&resources, ResourceType::Listener).contains(&"::_80".to_owned()));
}

#[test]
fn services_that_share_a_place_share_its_listener() {
    let world = mesh(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec: {hosts: [web.example], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: range, namespace: shop}
spec: {hosts: [range.example], addresses: [192.0.2.0/24], resolution: NONE, ports: [{number: 443, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: rest, namespace: shop}
spec: {hosts: [rest.example], resolution: NONE, ports: [{number: 443, name: tcp, protocol: TCP}, {number: 80, name: tcp80, protocol: TCP}]}
",
    );
    let resources = resources(&world, &captured("10.0.0.1"));
    let https = listener(&resources, "0.0.0.0_443");
    let [by_name, by_range] = https["filter_chains"].as_array().unwrap().as_slice() else {
        panic!("{https}")
    };
    assert_eq!(by_name["filter_chain_match"]["server_names"], json!(["web.example"]));
    assert_eq!(by_range["filter_chain_match"]["prefix_ranges"][0]["address_prefix"], "192.0.2.0");
    assert_eq!(end(&https["default_filter_chain"]), "outbound|443||rest.example");
    assert_eq!(https["listener_filters"][0]["name"], "envoy.filters.listener.tls_inspector");
    // HTTP and bytes at one port.
    let http = listener(&resources, "0.0.0.0_80");
    assert_eq!(
        (end(&http["filter_chains"][0]), end(&http["default_filter_chain"])),
        ("80", "outbound|80||rest.example")
    );
}

#[test]
fn a_sidecars_egress_takes_its_ports_from_the_others() {
    let world = mesh(
        &(SERVICES.to_owned()
            + "
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}, {name: http-more, port: 81}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress:
    - {port: {number: 80, protocol: HTTP, name: http}, hosts: ['./users.shop.svc.cluster.local']}
    - {port: {number: 9000, protocol: HTTP, name: own}, captureMode: NONE, bind: 127.0.0.1, hosts: ['./*']}
    - {hosts: ['./other.shop.svc.cluster.local']}
"),
    );
    let resources = resources(&world, &captured("10.0.0.1"));
    assert_eq!(
        names(&resources, ResourceType::Listener),
        ["0.0.0.0_80", "0.0.0.0_81", "127.0.0.1_9000", "virtualInbound", "virtualOutbound"]
    );
    let routes = value(&resources, ResourceType::Route, "80");
    let hosts: Vec<_> =
        routes["virtual_hosts"].as_array().unwrap().iter().map(|h| h["name"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["users.shop.svc.cluster.local:80", "block_all"]);
    let outbound = listener(&resources, "virtualOutbound");
    assert_eq!(end(&outbound["filter_chains"][1]), "BlackHoleCluster");
    assert_eq!(end(&listener(&resources, "0.0.0.0_81")["default_filter_chain"]), "BlackHoleCluster");
}

#[test]
fn an_application_on_the_loopback_address_is_reached_there_where_the_mesh_says_so() {
    let world = mesh(
        &(SERVICES.to_owned()
            + "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'inboundTrafficPolicy: {mode: LOCALHOST}'}
"),
    );
    let resources = resources(&world, &captured("10.0.0.1"));
    let cluster = value(&resources, ResourceType::Cluster, "inbound|8080||");
    let address = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socket_address"], json!({"address": "127.0.0.1", "port_value": 8080}));
}

#[test]
fn tcp_rules_tell_addresses_apart() {
    let world = mesh(
        &(SERVICES.to_owned()
            + "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: users, namespace: shop}
spec:
  hosts: [users]
  tcp:
    - match: [{port: 5432, destinationSubnets: [10.96.0.1, 10.1.0.0/16]}]
      route: [{destination: {host: members, port: {number: 6000}}}]
    - match: [{port: 5432, destinationSubnets: [10.1.0.0/16, 10.2.0.0/16]}]
      route: [{destination: {host: users, port: {number: 7000}}}]
    - route: [{destination: {host: users, port: {number: 5432}}}]
    - match: [{destinationSubnets: [10.3.0.0/16]}]
      route: [{destination: {host: members, port: {number: 6000}}}]
"),
    );
    let resources = resources(&world, &captured("10.0.0.2"));
    let tcp = listener(&resources, "10.96.0.1_5432");
    let chains = tcp["filter_chains"].as_array().unwrap();
    let seen: Vec<_> = chains
        .iter()
        .map(|c| {
            let range = &c["filter_chain_match"]["prefix_ranges"][0];
            (range["address_prefix"].as_str().unwrap(), range["prefix_len"].as_u64().unwrap(), end(c))
        })
        .collect();
    let [members, x] = ["outbound|6000||members", "outbound|7000||users"];
    let of = |name: &str| format!("{name}.shop.svc.cluster.local");
    let (members, x) = (of(members), of(x));
    // The first rule that speaks for an address has it, and none that comes behind the one for all.
    let wanted: Vec<(&str, u64, &str)> =
        vec![("10.96.0.1", 32, &members), ("10.1.0.0", 16, &members), ("10.2.0.0", 16, &x)];
    assert_eq!(seen, wanted);
    assert_eq!(end(&tcp["default_filter_chain"]), "outbound|5432||users.shop.svc.cluster.local");
}

#[test]
fn a_port_that_no_service_has_is_limited_all_the_same() {
    let limit = "
apiVersion: weft.dev/v1alpha1
kind: RateLimit
metadata: {name: l, namespace: shop}
spec:
  selector: {matchLabels: {app: users}}
  rules: [{name: r, connections: {ports: [9999]}, local: {requests: 5, per: 1s}}]
";
    let world = mesh(&(SERVICES.to_owned() + limit));
    let inbound = listener(&resources(&world, &captured("10.0.0.1")), "virtualInbound");
    let at: Vec<&Value> = inbound["filter_chains"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|chain| chain["filter_chain_match"]["destination_port"] == 9999)
        .collect();
    assert!(!at.is_empty(), "{inbound}");
    for chain in at {
        assert!(chain.to_string().contains("local_ratelimit"), "{chain}");
        assert_eq!(end(chain), "InboundPassthroughCluster");
    }
}
