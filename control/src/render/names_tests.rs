//! Which names a sidecar's DNS knows, and what it dials for those without an address.

use serde_json::{Value, json};
use xds_protos::ResourceType;

use super::tests::{mesh, node, value};
use super::{Interception, Memo, ProxyKind, ProxyNode, Resources, render};
use crate::model::World;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd96::1'], selector: {app: users}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: loose, namespace: shop}
spec: {selector: {app: db}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-0, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-1, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: first, namespace: shop}
spec: {hosts: [first.example], resolution: DNS, ports: [{number: 9000, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: second, namespace: shop}
spec: {hosts: [second.example], resolution: DNS, ports: [{number: 9000, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec: {hosts: ['*.wild.example'], addresses: [10.1.0.1], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: range, namespace: shop}
spec: {hosts: [range.example], addresses: [10.2.0.0/24], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: private, namespace: other}
spec: {hosts: [private.example], addresses: [10.3.0.1], exportTo: [.], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}
---
";

fn captured(ip: &str, auto_allocate: bool) -> ProxyNode {
    let mut node = node("sidecar", ip, "shop");
    node.interception = Interception::Redirect;
    node.dns_capture = true;
    node.dns_auto_allocate = auto_allocate;
    node
}

fn resources(world: &World, node: &ProxyNode) -> Resources {
    render(world, node, false, &Memo::default())
}

fn table(world: &World, node: &ProxyNode) -> Value {
    value(&resources(world, node), ResourceType::Names, "")["table"].clone()
}

fn hosts(table: &Value) -> Vec<&str> {
    table.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn names_have_the_addresses_at_which_they_are_dialled() {
    let world = mesh(MESH);
    let table = table(&world, &captured("10.0.0.9", false));
    assert_eq!(
        table["users.shop.svc.cluster.local"],
        json!({"ips": ["10.96.0.1", "fd96::1"], "registry": "Kubernetes", "shortname": "users", "namespace": "shop"})
    );
    // A headless service is its members, and each member has a name.
    assert_eq!(table["db.shop.svc.cluster.local"]["ips"], json!(["10.0.0.1", "10.0.0.2"]));
    assert_eq!(
        table["db-1.db.shop.svc.cluster.local"],
        json!({"ips": ["10.0.0.2"], "registry": "Kubernetes", "shortname": "db-1.db", "namespace": "shop"})
    );
    assert_eq!(table["*.wild.example"], json!({"ips": ["10.1.0.1"], "registry": "External"}));
    // Not those without an address, with a range of them, or that another namespace keeps for itself.
    let all = ["*.wild.example", "db-0.db.shop.svc.cluster.local", "db-1.db.shop.svc.cluster.local"];
    let more = ["db.shop.svc.cluster.local", "users.shop.svc.cluster.local"];
    assert_eq!(hosts(&table), [&all[..], &more].concat());
}

#[test]
fn a_service_without_an_address_gets_one_and_a_listener_there() {
    let world = mesh(MESH);
    let node = captured("10.0.0.9", true);
    let names = table(&world, &node);
    let ip = |host: &str| {
        let [ip] = names[host]["ips"].as_array().unwrap().as_slice() else { panic!("{names}") };
        ip.as_str().unwrap().to_owned()
    };
    let (first, second) = (ip("first.example"), ip("second.example"));
    assert!(first.starts_with("240.240.") && second.starts_with("240.240.") && first != second, "{names}");
    let all = resources(&world, &node);
    for (host, ip) in [("first", &first), ("second", &second)] {
        let listener = value(&all, ResourceType::Listener, &format!("{ip}_9000"));
        let chain = listener["filter_chains"][0].to_string();
        assert!(chain.contains(&format!("outbound|9000||{host}.example")), "{listener}");
    }
    assert!(
        !all[&ResourceType::Listener].contains_key("0.0.0.0_9000"),
        "nobody else's connections are taken"
    );
    // Both versions of IP, where the pod has both; of the one that it has otherwise.
    let mut both = node.clone();
    both.addresses.push("fd00::9".to_owned());
    assert_eq!(table(&world, &both)["first.example"]["ips"].as_array().unwrap().len(), 2);
    let six = captured("fd00::9", true);
    assert!(table(&world, &six)["first.example"]["ips"][0].as_str().unwrap().starts_with("2001:2::"));
}

#[test]
fn only_who_answers_dns_gets_names_and_only_who_asks_for_it_allocated_addresses() {
    let world = mesh(MESH);
    let without = captured("10.0.0.9", false);
    let listeners = resources(&world, &without)[&ResourceType::Listener].keys().cloned().collect::<Vec<_>>();
    assert!(listeners.iter().any(|l| &**l == "0.0.0.0_9000"), "{listeners:?}");
    let mut silent = captured("10.0.0.9", true);
    silent.dns_capture = false;
    let all = resources(&world, &silent);
    assert!(all[&ResourceType::Names].is_empty());
    assert!(!all[&ResourceType::Listener].keys().any(|l| l.starts_with("240.")));
    let gateway = ProxyNode { kind: ProxyKind::Router, ..captured("10.0.0.9", true) };
    assert!(resources(&world, &gateway)[&ResourceType::Names].is_empty());
    // Nothing brings connections to allocated addresses where nothing is captured.
    let dialled = ProxyNode { interception: Interception::None, ..captured("10.0.0.9", true) };
    assert!(table(&world, &dialled).get("first.example").is_none());
}

#[test]
fn a_sidecar_resource_narrows_the_names() {
    let world = mesh(
        &(MESH.to_owned()
            + "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec: {egress: [{hosts: ['./users.shop.svc.cluster.local', './first.example']}]}
"),
    );
    assert_eq!(
        hosts(&table(&world, &captured("10.0.0.9", true))),
        ["first.example", "users.shop.svc.cluster.local"]
    );
}

#[test]
fn a_service_of_kubernetes_goes_before_an_entry_that_decorates_it() {
    let world = mesh(
        &(MESH.to_owned()
            + "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: decorator, namespace: aaa}
spec: {hosts: [users.shop.svc.cluster.local], addresses: [10.9.9.9], resolution: STATIC, endpoints: [{address: 10.9.9.8}], ports: [{number: 80, name: http, protocol: HTTP}]}
"),
    );
    let table = table(&world, &captured("10.0.0.9", true));
    assert_eq!(table["users.shop.svc.cluster.local"]["ips"], json!(["10.96.0.1", "fd96::1"]));
}

#[test]
fn members_that_come_and_go_change_the_table_and_nothing_else_renders_it_again() {
    let memo = Memo::default();
    let node = captured("10.0.0.9", true);
    let version =
        |text: &str| render(&mesh(text), &node, false, &memo)[&ResourceType::Names][""].version.clone();
    let before = version(MESH);
    // A cluster's endpoints are none of the table's.
    let other = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: user-0, namespace: shop}
spec: {address: 10.0.0.5, labels: {app: users}}
";
    assert_eq!(version(&(MESH.to_owned() + other)), before);
    assert_eq!(memo.rendered(ResourceType::Names), 1);
    assert_ne!(version(&MESH.replace("10.0.0.2", "10.0.0.3")), before);
    assert_eq!(memo.rendered(ResourceType::Names), 2);
}
