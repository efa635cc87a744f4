//! The bootstrap that serves all groups: what our control plane renders for each, with certificates from files.

use std::time::Duration;

use serde_json::{Value, json};
use weft_control::model::World;
use weft_control::render::{Memo, ProxyNode, Resources, render};
use weft_control::serve::keys::KeyFetcher;
use weft_control::serve::reading::Reads;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;

use super::Place;
use super::clients::Servers;
use super::issuers::Issuers;
use super::providers::Providers;
use super::table::{Group, place_of};

/// What the access log says of each request, as JSON.
fn log_format() -> Value {
    let metadata = |key: &str| format!("%DYNAMIC_METADATA(envoy.filters.http.rbac:{key})%");
    json!({
        "case": "%REQ(X-CASE)%",
        // A port of ours may serve towards several of the proxy's.
        "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_PORT%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "termination": "%CONNECTION_TERMINATION_DETAILS%",
        "policy": metadata("enforced_effective_policy_id"),
        "try-allow": metadata("istio_dry_run_allow_shadow_engine_result"),
        "try-deny": metadata("istio_dry_run_deny_shadow_engine_result"),
        "audit": "%DYNAMIC_METADATA(envoy.common:access_log_hint)%",
    })
}

/// The group's objects, as a user would write them.
fn objects(place: &Place, group: &Group, port: u16, servers: &Servers, providers: &Providers) -> String {
    let mut mesh = json!({
        "accessLogFile": place.access_log(), "accessLogEncoding": "JSON", "accessLogFormat": log_format().to_string(),
    });
    if let Some(more) = group.mesh.as_object() {
        mesh.as_object_mut().unwrap().extend(more.clone());
    }
    let (protocol, server) = if group.tcp { ("TCP", servers.tcp) } else { ("HTTP", servers.http) };
    let api = |version: &str| format!("{version}.istio.io/v1");
    let meta = |name: &str, namespace: &str| json!({"name": name, "namespace": namespace});
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("istio", "istio-system"),
               "data": {"mesh": mesh.to_string()}}),
        json!({"apiVersion": api("networking"), "kind": "WorkloadEntry", "metadata": meta("s", "shop"),
               "spec": {"address": place.ip, "labels": {"app": "s", "version": "v1"}, "serviceAccount": "s"}}),
        json!({"apiVersion": api("networking"), "kind": "Sidecar", "metadata": meta("s", "shop"),
               "spec": {"ingress": [{"port": {"number": port, "protocol": protocol, "name": "in"},
                                     "captureMode": "NONE", "defaultEndpoint": format!("127.0.0.1:{server}")}],
                        "egress": [{"hosts": ["./*"]}]}}),
    ];
    // Whoever may be asked: by HTTP, by gRPC, and one who never answers.
    for (name, http, grpc) in
        [("ask-http", providers.http, 1), ("ask-grpc", 1, providers.grpc), ("ask-down", 1, 1)]
    {
        all.push(
            json!({"apiVersion": api("networking"), "kind": "ServiceEntry", "metadata": meta(name, "shop"),
            "spec": {"hosts": [format!("{name}.example")], "resolution": "DNS",
                     "ports": [{"number": 8000, "name": "http", "protocol": "HTTP"},
                               {"number": 9000, "name": "grpc", "protocol": "GRPC"}],
                     "endpoints": [{"address": "127.0.0.1", "ports": {"http": http, "grpc": grpc}}]}}),
        );
    }
    for (name, spec) in &group.policies {
        let (namespace, name, tried) = place_of(name);
        let mut meta = meta(name, namespace);
        if tried {
            meta["annotations"] = json!({"istio.io/dry-run": "true"});
        }
        all.push(json!({"apiVersion": api("security"), "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}));
    }
    for (name, spec) in &group.authentication {
        let (namespace, name, _) = place_of(name);
        all.push(json!({"apiVersion": api("security"), "kind": "RequestAuthentication", "metadata": meta(name, namespace), "spec": spec}));
    }
    let text: Vec<String> = all.iter().map(Value::to_string).collect();
    text.join("\n---\n").replace("\"{port}\"", &format!("\"{port}\""))
}

fn world(place: &Place, group: &Group, port: u16, servers: &Servers, providers: &Providers) -> World {
    let objects = objects(place, group, port, servers, providers);
    let outcome = weft_control::ingest::load_str("group.yaml", &objects);
    outcome.into_result().unwrap_or_else(|wrong| panic!("{}: {wrong:#?}", group.name))
}

/// The world with the keys that its issuers served: they were asked twice, before something came over them and after.
async fn with_keys(world: World, issuers: &Issuers) -> World {
    let mut fetcher = KeyFetcher::new(None, Duration::ZERO);
    let mut settled = world.clone();
    for later in [false, true] {
        issuers.later(later);
        settled = fetcher.settle(&world).await;
    }
    settled
}

/// What our control plane reads of each group.
pub fn worlds(place: &Place, servers: &Servers, issuers: &Issuers, providers: &Providers) -> Vec<World> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let groups = place.groups.iter().enumerate();
    let world = |(index, group)| {
        let world = world(place, group, place.port_of(index), servers, providers);
        runtime.block_on(with_keys(world, issuers))
    };
    groups.map(world).collect()
}

/// The configuration of a proxy that serves every group.
pub fn bootstrap(place: &Place) -> Value {
    let id = format!("sidecar~{}~s.shop~shop.svc.cluster.local", place.ip);
    let node = ProxyNode::parse(&Node { id: id.clone(), ..Node::default() }).unwrap();
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (index, world) in place.worlds.iter().enumerate() {
        let port = place.port_of(index);
        let resources = render(world, &node, false, &Memo::default());
        let mut listener = value(&resources, ResourceType::Listener, &format!("{}_{port}", place.ip));
        for chain in listener["filter_chains"].as_array_mut().unwrap() {
            if let Some(context) = chain.get_mut("transport_socket").map(|s| &mut s["typed_config"]) {
                from_files(context, place);
            }
        }
        listeners.push(listener);
        clusters.push(value(&resources, ResourceType::Cluster, &format!("inbound|{port}||")));
        // Providers are the same for all groups.
        let asked =
            resources[&ResourceType::Cluster].keys().filter(|name| index == 0 && name.contains("|ask-"));
        clusters.extend(asked.map(|name| value(&resources, ResourceType::Cluster, name)));
    }
    json!({
        "node": {"id": id, "cluster": "s.shop"},
        "admin": {"address": {"socket_address": {"address": place.ip, "port_value": place.port}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn value(resources: &Resources, kind: ResourceType, name: &str) -> Value {
    let known = || resources[&kind].keys().collect::<Vec<_>>();
    let resource = resources[&kind].get(name).unwrap_or_else(|| panic!("no {name} among {:?}", known()));
    xds_protos::json::bytes_to_value(kind.type_url().rsplit('/').next().unwrap(), &resource.bytes)
}

/// The mesh's mutual TLS, with certificates from files in the place of an identity.
fn from_files(context: &mut Value, place: &Place) {
    let file = |name: &str| json!({"filename": place.directory().join(name)});
    let common = context["common_tls_context"].as_object_mut().unwrap();
    common.remove("tls_certificate_sds_secret_configs").unwrap();
    let pair = json!([{"certificate_chain": file("server.pem"), "private_key": file("server.key")}]);
    common.insert("tls_certificates".into(), pair);
    let mut rules =
        common.remove("combined_validation_context").unwrap()["default_validation_context"].take();
    rules["trusted_ca"] = file("ca.pem");
    common.insert("validation_context".into(), rules);
}
