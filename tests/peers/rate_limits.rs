//! RateLimits through real Envoys in the places of a gateway and of a sidecar, configured by our control plane: they answer as our
//! own proxies do (`e2e::rate_limits`).

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;

use crate::limits::{Issuer, Mesh};
use crate::programs::{Process, get, peer, weft};
use crate::tables::tokens::{Token, key_set};

/// An Envoy at an address of its own, configured by a control plane in plain text; it tells its numbers at port 15090.
pub(crate) fn envoy(
    role: &str,
    ip: &str,
    namespace: &str,
    labels: serde_json::Value,
    control: &str,
) -> (tempfile::TempDir, Process) {
    let directory = tempfile::tempdir().unwrap();
    let socket =
        |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let id = format!("{role}~{ip}~x.{namespace}~{namespace}.svc.cluster.local");
    let metadata =
        json!({"NAMESPACE": namespace, "INSTANCE_IPS": ip, "LABELS": labels, "INTERCEPTION_MODE": "NONE"});
    let bootstrap = json!({
        "node": {"id": id, "cluster": format!("x.{namespace}"), "metadata": metadata},
        "admin": {"address": socket(ip, 15000)},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"listeners": [{
            "address": socket(ip, 15090),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "stats",
                    "route_config": {"virtual_hosts": [{"name": "stats", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/stats/prometheus"}, "route": {"cluster": "admin"}}]}]},
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type":
                        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                },
            }]}],
        }], "clusters": [{
            "name": "admin", "type": "STATIC",
            "load_assignment": {"cluster_name": "admin", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": socket(ip, 15000)}}]}]},
        }, {
            "name": "xds", "type": "STATIC",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": socket(control, 15010)}}]}]},
        }]},
    });
    let path = directory.path().join("bootstrap.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&bootstrap).unwrap()).unwrap();
    let mut command = Command::new(peer("WEFT_ENVOY"));
    command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
    command.args(["--file-flush-interval-msec", "20"]);
    let process = Process::start("envoy", &mut command, directory.path());
    (directory, process)
}

/// Who issues the tokens of the mesh.
fn issuer() -> Issuer {
    let token = |plan: &str| {
        let claims = json!({"iss": "me", "sub": "s", "exp": "+3600", "plan": plan});
        let token: Token = serde_json::from_value(json!({"key": "p256", "claims": claims})).unwrap();
        token.text()
    };
    Issuer { keys: key_set(["p256"].into_iter()).to_string(), token }
}

#[test]
fn envoy_holds_the_same_limits_with_the_same_answers() {
    let (control, mesh) = ("127.81.2.1", Mesh::new("127.81.2.2", "127.81.2.3", issuer()));
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/mesh.yaml"), mesh.yaml()).unwrap();
    let mut command = weft();
    command.args(["control", "--address", control]);
    command.arg("--config-dir").arg(directory.path().join("config"));
    command.arg("--state-dir").arg(directory.path().join("state"));
    let mut process = Process::start("control", &mut command, directory.path());
    let ready: SocketAddr = format!("{control}:8080").parse().unwrap();
    process.wait("ready", || get(ready, "/ready").is_ok_and(|a| a.0 == 200));
    let (_gateway, mut gateway) =
        envoy("router", &mesh.gateway, "edge", json!({"istio": "ingress"}), control);
    let (_sidecar, sidecar) = envoy("sidecar", &mesh.sidecar, "shop", json!({"app": "api"}), control);
    gateway.wait("serving with its limits", || mesh.serves());
    mesh.play();
    for ip in [&mesh.gateway, &mesh.sidecar] {
        let stats = get(format!("{ip}:15000").parse().unwrap(), "/stats?usedonly&filter=rejected").unwrap().1;
        assert!(!stats.contains("update_rejected"), "{ip} refused something: {stats}");
    }
    // Envoy's details have no room for a name; the field has.
    let says = |log: &str, line: &str| assert!(log.contains(line), "{line}:\n{log}");
    gateway.wait("logging", || gateway_log(&_gateway).contains("/closed 503"));
    let log = gateway_log(&_gateway);
    says(&log, "/login 429 RL local_rate_limited by=edge/shop/login");
    says(&log, "/open 429 RL request_rate_limited by=edge/global/open");
    says(&log, "/closed 503 RLSE rate_limiter_error by=-");
    drop(sidecar);
}

fn gateway_log(directory: &tempfile::TempDir) -> String {
    std::fs::read_to_string(directory.path().join("envoy.log")).unwrap_or_default()
}
