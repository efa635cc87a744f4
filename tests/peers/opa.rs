//! A real Open Policy Agent, asked by our proxy and by Envoy about each request: both are configured by our control plane from
//! one CUSTOM policy and its extension provider.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::programs::{Process, get, peer, weft, weft_proxy};
use crate::tables::clients;

const OPA: &str = "127.30.9.1";
const CONTROL: &str = "127.30.9.2";
const OURS: &str = "127.30.9.3";
const ENVOYS: &str = "127.30.9.4";

fn mesh(app: u16) -> String {
    format!(
        "
trustDomain: cluster.local
extensionProviders:
- name: opa
  envoyExtAuthzGrpc:
    service: opa.example
    port: 9191
    timeout: 5s
    includeRequestBodyInCheck: {{maxRequestBytes: 4096, allowPartialMessage: true}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: opa, namespace: shop}}
spec:
  hosts: [opa.example]
  resolution: STATIC
  ports: [{{number: 9191, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: {OPA}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: ours, namespace: shop}}
spec: {{address: {OURS}, labels: {{app: s}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: envoys, namespace: shop}}
spec: {{address: {ENVOYS}, labels: {{app: s}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: in}}, captureMode: NONE, defaultEndpoint: '127.0.0.1:{app}'}}]
  egress: [{{hosts: ['./*']}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: DISABLE}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: opa, namespace: shop}}
spec:
  action: CUSTOM
  provider: {{name: opa}}
  rules: [{{to: [{{operation: {{notPaths: [/healthz]}}}}]}}]
"
    )
}

/// Envoy as a sidecar of our control plane, over its plaintext port.
fn envoy_bootstrap() -> Value {
    let address = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": format!("sidecar~{ENVOYS}~envoys.shop~shop.svc.cluster.local"), "cluster": "s",
                 "metadata": {"NAMESPACE": "shop", "INTERCEPTION_MODE": "NONE"}},
        "admin": {"address": address(ENVOYS, 15000)},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "static_resources": {"clusters": [{
            "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address(CONTROL, 15010)}}]}]},
        }]},
    })
}

/// What a request came to: its status, some fields of the answer, and its body.
fn ask(ip: &str, line: &str, headers: &[&str], body: &str) -> std::io::Result<(String, String)> {
    let to: SocketAddr = format!("{ip}:8080").parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let more: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: s\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// A request (line, fields, body), and what it must come to: status, and what must (or, with `!`, must not) stand in answer
/// and echo.
type Case = (&'static str, &'static [&'static str], &'static str, &'static str, &'static [&'static str]);

const CASES: [Case; 13] = [
    ("GET /healthz", &[], "", "200", &["yes"]),
    ("GET /public", &[], "", "200", &["yes"]),
    ("GET /public/x?y=z", &["x-user: a"], "", "200", &["GET /public/x?y=z"]),
    ("GET /users/alice", &[], "", "401", &["who are you?", "www-authenticate: Basic"]),
    ("GET /users/alice", &["x-user: bob"], "", "403", &["not by this policy", "x-opa: no"]),
    (
        "GET /users/alice",
        &["x-user: alice", "x-secret: s"],
        "",
        "200",
        &["x-opa-user: alice", "x-opa: yes", "!x-secret"],
    ),
    ("GET /users/alice", &["x-user: alice", "x-opa-user: root"], "", "200", &["x-opa-user: alice", "!root"]),
    ("GET /search?level=low", &[], "", "200", &["yes"]),
    ("GET /search?level=high", &[], "", "403", &["not by this policy"]),
    ("POST /orders", &["content-type: application/json"], "{\"amount\": 99}", "200", &["POST /orders"]),
    (
        "POST /orders",
        &["content-type: application/json"],
        "{\"amount\": 101}",
        "403",
        &["not by this policy"],
    ),
    ("GET /orders", &[], "", "403", &["not by this policy"]),
    // A policy that contradicts itself is no answer, and no answer allows nothing.
    ("GET /broken", &[], "", "403", &["!not by this policy"]),
];

#[test]
fn a_policy_agent_decides_for_our_proxy_and_for_envoy_alike() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let app = clients::servers().http;
    std::fs::create_dir(file("config")).unwrap();
    let objects = mesh(app);
    std::fs::write(file("config/mesh.yaml"), objects.trim_start()).unwrap();
    std::fs::write(file("envoy.json"), envoy_bootstrap().to_string()).unwrap();

    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/opa-module/policy.rego");
    let mut opa = Command::new(peer("WEFT_OPA"));
    opa.args(["run", "--server", "--disable-telemetry", "--addr", &format!("{OPA}:8181"), policy]);
    opa.args(["--set", &format!("plugins.envoy_ext_authz_grpc.addr={OPA}:9191")]);
    opa.args(["--set", "plugins.envoy_ext_authz_grpc.path=envoy/authz/allow"]);
    let mut opa = Process::start("opa", &mut opa, directory.path());
    let health = format!("{OPA}:8181").parse().unwrap();
    opa.wait("ready", || get(health, "/health?plugins").is_ok_and(|(status, _)| status == 200));

    let mut control = weft();
    control.arg("control").arg("--config-dir").arg(file("config")).args(["--address", CONTROL]);
    let mut control = Process::start("control", &mut control, directory.path());
    let ready = format!("{CONTROL}:8080").parse().unwrap();
    control.wait("ready", || get(ready, "/ready").is_ok_and(|(status, _)| status == 200));

    let mut ours = weft_proxy();
    ours.args(["--xds-address", &format!("{CONTROL}:15010"), "--xds-plaintext", "--namespace", "shop"]);
    ours.args(["--ip", OURS, "--admin-address", &format!("{OURS}:15000"), "--interception-mode", "NONE"]);
    let mut ours = Process::start("ours", ours.args(["--concurrency", "1"]), directory.path());
    let mut envoy = Command::new(peer("WEFT_ENVOY"));
    envoy.arg("-c").arg(file("envoy.json")).args([
        "--disable-hot-restart",
        "-l",
        "warning",
        "--concurrency",
        "1",
    ]);
    let mut envoy = Process::start("envoy", &mut envoy, directory.path());
    let serves = |ip| ask(ip, "GET /healthz", &[], "").is_ok_and(|(head, _)| head.contains(" 200 "));
    ours.wait("serving", || serves(OURS));
    envoy.wait("serving", || serves(ENVOYS));

    for (ip, log) in [(OURS, &ours), (ENVOYS, &envoy)] {
        for (line, headers, body, status, wanted) in CASES {
            let (head, answer) = ask(ip, line, headers, body).unwrap();
            let all = format!("{head}\n\n{answer}");
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{ip}: {line} {headers:?}: {all}\n{}",
                log.log()
            );
            for text in wanted {
                let fits = text.strip_prefix('!').map_or(all.contains(text), |not| !all.contains(not));
                assert!(fits, "{ip}: {line} {headers:?}: {text:?}: {all}");
            }
        }
    }

    // Without the agent nothing passes that it was to be asked about.
    drop(opa);
    for ip in [OURS, ENVOYS] {
        assert!(ask(ip, "GET /public", &[], "").unwrap().0.starts_with("HTTP/1.1 403 "), "{ip}");
        assert!(ask(ip, "GET /healthz", &[], "").unwrap().0.starts_with("HTTP/1.1 200 "), "{ip}");
    }
}
