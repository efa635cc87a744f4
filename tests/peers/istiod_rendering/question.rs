//! A file of cases as a question to istiod: its objects, and the workloads' proxies as they would describe themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use weft::test::Case;
use weft_control::model::World;
use weft_control::model::networks::NETWORK_LABEL;
use weft_control::render::ProxyKind;

/// The controller of the classes of Gateways that istiod serves.
const CONTROLLER: &str = "istio.io/gateway-controller";
/// What our own objects are of.
const OURS: &str = ".weft.dev/";
/// What a file's cases are of.
const TESTS: &str = "test.weft.dev/";

/// A file of cases.
pub struct Question {
    pub name: String,
    pub cases: Vec<Case>,
    pub world: World,
    /// As the program reads it, in one line.
    pub text: String,
}

/// Reads a file.
///
/// # Errors
/// It has objects of ours, of which istiod knows nothing.
pub fn read(file: &Path) -> Result<Question, String> {
    let name = file.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let world = weft::configuration::read(file).unwrap();
    let (mut mesh, mut networks) = (String::new(), "networks: {}".to_owned());
    let (mut kubernetes, mut istio) = (Vec::new(), Vec::new());
    let headless: Vec<Value> =
        documents.iter().filter(|d| d["spec"]["clusterIP"] == "None").cloned().collect();
    for mut document in documents {
        let version = document["apiVersion"].as_str().unwrap_or_default().to_owned();
        if version.starts_with(TESTS) || document.is_null() {
            continue;
        }
        if version.contains(OURS) {
            return Err(format!("{name}: {version} {}", document["kind"]));
        }
        match document["kind"].as_str() {
            Some("WorkloadEntry") => placed(&world, &mut document["spec"]),
            Some("ServiceEntry") => {
                let endpoints = document["spec"].get_mut("endpoints").and_then(Value::as_array_mut);
                endpoints.into_iter().flatten().for_each(|endpoint| placed(&world, endpoint));
            }
            _ => {}
        }
        let of: Vec<&Value> = headless.iter().filter(|service| selects(service, &document)).collect();
        if document["kind"] == "WorkloadEntry" && !of.is_empty() {
            kubernetes.push(pod(&document));
            kubernetes.extend(of.into_iter().map(|service| slice(service, &document)));
        } else if document.get("networks").is_some() {
            networks = document.to_string();
        } else if document["kind"] == "ConfigMap" {
            document["data"]["mesh"].as_str().unwrap_or_default().clone_into(&mut mesh);
        } else if version.contains("istio.io/") {
            istio.push(document);
        } else {
            match document["kind"].as_str() {
                // Whoever serves the class is who is asked.
                Some("GatewayClass") => document["spec"]["controllerName"] = CONTROLLER.into(),
                Some("Gateway") => kubernetes.push(service(&document)),
                // An API server has it in both versions, and istiod reads the older.
                Some("ReferenceGrant") => document["apiVersion"] = "gateway.networking.k8s.io/v1beta1".into(),
                _ => {}
            }
            kubernetes.push(document);
        }
    }
    let cases: Vec<Case> = weft::test::read(file).unwrap().into_iter().flat_map(|(_, cases)| cases).collect();
    let named: BTreeSet<&str> = cases.iter().filter_map(|c| c.from.as_deref().or(c.to.as_deref())).collect();
    let proxies: BTreeMap<_, _> = named.into_iter().map(|name| (name, proxy(&world, name))).collect();
    let asked = json!({
        "mesh": mesh, "networks": networks, "kubernetes": kubernetes, "istio": istio, "proxies": proxies,
    });
    Ok(Question { name, cases, text: asked.to_string(), world })
}

/// Writes into an endpoint that does not say its network the one that its address has. For pods istiod finds it out by the ranges of
/// networks; entries stand for pods here, and their registry is not told of ranges in the tests' istiod.
fn placed(world: &World, endpoint: &mut Value) {
    let says = endpoint["network"].is_string() || endpoint["labels"][NETWORK_LABEL].is_string();
    let network = endpoint["address"].as_str().map_or("", |address| world.networks().of_address(address));
    if !says && !network.is_empty() {
        endpoint["network"] = network.into();
    }
}

/// Whether a Service selects a WorkloadEntry.
fn selects(service: &Value, entry: &Value) -> bool {
    let mut wanted = service["spec"]["selector"].as_object().unwrap().iter();
    service["metadata"]["namespace"] == entry["metadata"]["namespace"]
        && wanted.all(|(key, value)| entry["spec"]["labels"][key] == *value)
}

/// The pod in a WorkloadEntry's place: a headless Service has pods alone in istiod.
fn pod(entry: &Value) -> Value {
    let (metadata, spec) = (&entry["metadata"], &entry["spec"]);
    let mut labels = spec["labels"].clone();
    if spec["serviceAccount"].is_string() {
        // Its sidecar is injected.
        labels["security.istio.io/tlsMode"] = "istio".into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
        "spec": {"serviceAccountName": spec["serviceAccount"], "containers": []},
        "status": {
            "phase": "Running",
            "podIP": spec["address"],
            "podIPs": [{"ip": spec["address"]}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// What says that such a pod is a Service's.
fn slice(service: &Value, entry: &Value) -> Value {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    let (namespace, service_name) = (&entry["metadata"]["namespace"], name(service));
    let ports = service["spec"]["ports"].as_array().unwrap().iter();
    let target = |port: &Value| port["targetPort"].as_u64().or(port["port"].as_u64());
    let ports: Vec<_> = ports.map(|port| json!({"name": port["name"], "port": target(port)})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service_name}-{}", name(entry)),
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{
            "addresses": [entry["spec"]["address"]],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": name(entry), "namespace": namespace},
        }],
    })
}

/// The Service before a Gateway of the Gateway API, which istiod would make in a cluster.
fn service(gateway: &Value) -> Value {
    let (metadata, spec) = (&gateway["metadata"], &gateway["spec"]);
    let name = metadata["name"].as_str().unwrap();
    let numbers: BTreeSet<u64> =
        spec["listeners"].as_array().into_iter().flatten().filter_map(|l| l["port"].as_u64()).collect();
    let ports: Vec<_> = numbers.iter().map(|n| json!({"name": format!("tcp-{n}"), "port": n})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": format!("{name}-{}", spec["gatewayClassName"].as_str().unwrap()),
            "namespace": metadata["namespace"],
        },
        "spec": {
            "clusterIP": "10.96.255.1", "selector": {"gateway.networking.k8s.io/gateway-name": name}, "ports": ports,
        },
    })
}

/// A workload's proxy as it describes itself. What we find out about a workload by its entry, Istio's injection tells its proxy:
/// that it is a gateway, its network, and where it is.
fn proxy(world: &World, name: &str) -> Value {
    let workload = weft::authz::workload(world, name).unwrap();
    let node = weft::test::node(&workload);
    let kind = if node.kind == ProxyKind::Router { "router" } else { "sidecar" };
    let (namespace, address) = (&node.namespace, node.address());
    let locality = node.locality(world);
    json!({
        "id": format!("{kind}~{address}~{}.{namespace}~{namespace}.svc.{}", workload.meta.name, world.domain()),
        "metadata": {
            "NAMESPACE": namespace,
            "SERVICE_ACCOUNT": node.service_account,
            "LABELS": node.labels,
            "INSTANCE_IPS": address,
            "CLUSTER_ID": "Kubernetes",
            "NETWORK": node.network(world),
            "WORKLOAD_NAME": workload.meta.name,
            "INTERCEPTION_MODE": "REDIRECT",
        },
        "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
    })
}
