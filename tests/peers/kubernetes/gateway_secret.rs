//! A gateway's certificate in a Secret of the cluster: it is shown, the next one is shown once it is there, and it goes to whoever
//! the cluster says is that gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{CertificateParams, KeyPair};

use super::Server;
use crate::programs::{Process, get, peer, weft_proxy};

const GATEWAY: &str = "127.36.7.5";
const IMPOSTOR: &str = "127.36.7.6";
const PORT: u16 = 20443;

/// A self-signed certificate, as files.
fn certificate(at: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["edge.example".to_owned()]).unwrap();
    let (chain, private) = (at.join(format!("{name}.crt")), at.join(format!("{name}.key")));
    std::fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    (chain, private)
}

/// Puts it into the Secret.
fn store(server: &Server, (chain, key): &(PathBuf, PathBuf)) {
    let (chain, key) = (format!("--cert={}", chain.display()), format!("--key={}", key.display()));
    let made = [
        "-n",
        "istio-system",
        "create",
        "secret",
        "tls",
        "edge",
        &chain,
        &key,
        "--dry-run=client",
        "-o",
        "yaml",
    ];
    server.apply(&server.kubectl(&made));
}

/// A pod of an account, that the cluster says is at an address.
fn pod(server: &Server, name: &str, account: &str, ip: &str) {
    server.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: istio-system, labels: {{istio: edge}}}}, \
         spec: {{serviceAccountName: {account}, containers: [{{name: istio-proxy, image: none}}]}}}}"
    ));
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    );
    let patch =
        ["-n", "istio-system", "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
    server.kubectl(&patch);
}

/// A gateway of that pod, which says that it is at `ip`.
fn gateway(
    server: &Server,
    (control, roots): (&str, &Path),
    name: &str,
    account: &str,
    ip: &str,
    admin: &str,
) -> Process {
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", name];
    let token = ["-n", "istio-system", "create", "token", account, "--audience", "istio-ca"];
    let file = server.directory().join(format!("{name}-token"));
    std::fs::write(&file, server.kubectl(&[&token[..], &bound].concat()).trim()).unwrap();
    let mut gateway = weft_proxy();
    gateway.args([
        "--role",
        "gateway",
        "--xds-address",
        &format!("{control}:15012"),
        "--label",
        "istio=edge",
    ]);
    gateway.arg("--root-cert").arg(roots).arg("--token-file").arg(file);
    gateway.args(["--namespace", "istio-system", "--service-account", account, "--ip", ip]);
    gateway.args([
        "--admin-address",
        &format!("{admin}:15000"),
        "--interception-mode",
        "NONE",
        "--concurrency",
        "1",
    ]);
    Process::start(name, &mut gateway, server.directory())
}

fn page(admin: &str, path: &str) -> String {
    let at: SocketAddr = format!("{admin}:15000").parse().unwrap();
    get(at, path).map(|(_, text)| text).unwrap_or_default()
}

/// Whether the gateway answers whoever trusts this certificate alone.
fn shows(root: &Path) -> bool {
    let mut curl = Command::new(peer("WEFT_CURL"));
    curl.args([
        "--silent",
        "--output",
        "/dev/null",
        "--max-time",
        "5",
        "--write-out",
        "%{http_code}",
        "--cacert",
    ])
    .arg(root);
    curl.args([
        "--resolve",
        &format!("edge.example:{PORT}:{GATEWAY}"),
        &format!("https://edge.example:{PORT}/"),
    ]);
    // It has no routes, and says so.
    curl.output().is_ok_and(|answer| answer.stdout == b"404")
}

/// Shows all of it, by a control plane that knows whose tokens are whose.
pub(super) fn is_served(server: &Server, control: &str, roots: &Path) {
    let at = server.directory();
    let (first, second) = (certificate(at, "first"), certificate(at, "second"));
    for account in ["edge", "other"] {
        server.apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: istio-system}}}}"
        ));
    }
    pod(server, "edge", "edge", GATEWAY);
    pod(server, "other", "other", IMPOSTOR);
    store(server, &first);
    let opens = |name: &str, port: u16, server: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {{name: {name}, namespace: istio-system}}, \
             spec: {{selector: {{istio: edge}}, servers: [{{port: {{number: {port}, name: p, protocol: {server}, hosts: ['*']}}]}}}}"
        )
    };
    server.apply(&opens("edge-secret", PORT, "HTTPS}, tls: {mode: SIMPLE, credentialName: edge}"));

    // Another account of the same namespace, at the gateway's address as it says itself: it gets listeners, and not the key.
    let mut other = gateway(server, (control, roots), "other", "other", GATEWAY, IMPOSTOR);
    other.wait("in possession of its identity", || page(IMPOSTOR, "/certs").contains("/sa/other"));
    let has = |what: &str| page(IMPOSTOR, "/config_dump").contains(what);
    other.wait("told of the listener", || has("kubernetes://edge"));
    // What comes after is there: so would the key be.
    server.apply(&opens("edge-plain", PORT + 1, "HTTP}"));
    other.wait("told of the next listener", || has(&format!("{GATEWAY}_{}", PORT + 1)));
    let secrets = "/config_dump?resource=dynamic_active_secrets";
    assert!(!page(IMPOSTOR, secrets).contains("kubernetes://edge") && !shows(&first.0));
    drop(other);

    let mut edge = gateway(server, (control, roots), "edge", "edge", GATEWAY, GATEWAY);
    edge.wait("showing the Secret's certificate", || shows(&first.0));
    assert!(!shows(&second.0) && page(GATEWAY, secrets).contains("kubernetes://edge"));
    store(server, &second);
    edge.wait("showing the next certificate", || shows(&second.0));
    assert!(!shows(&first.0));
}
