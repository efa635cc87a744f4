//! Control planes in a cluster, which a command finds and reaches through the API server alone. There is no kubelet: what it does of
//! `port-forward` stands here.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use super::Server;
use super::mesh::{self, Mesh, SHOP};
use crate::programs::{Process, weft};

const NODE: &str = "127.36.15.9";

fn node() -> String {
    format!(
        r#"{{"status": {{"addresses": [{{"type": "InternalIP", "address": "{NODE}"}}], "daemonEndpoints": {{"kubeletEndpoint": {{"Port": 10250}}}}}}}}"#
    )
}

fn pod(name: &str, namespace: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: istiod, app.kubernetes.io/part-of: weft}}}}
spec: {{serviceAccountName: istiod, nodeName: n1, containers: [{{name: discovery, image: none}}]}}
"
    )
}

/// A kubelet as far as it opens ways to pods, which are at the addresses that `place` says.
fn kubelet(place: fn(&str) -> Option<SocketAddr>) {
    let key = rcgen::generate_simple_self_signed([NODE.to_owned()]).unwrap();
    let chain = vec![CertificateDer::from(key.cert.der().to_vec())];
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((NODE, 10250)).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut asked = String::new();
                    #[allow(clippy::result_large_err, reason = "what is refused is the library's to shape")]
                    let see = |request: &Request, mut response: Response| {
                        asked = request.uri().to_string();
                        let first = request.headers().get("sec-websocket-protocol").cloned();
                        let first = first.and_then(|all| {
                            all.to_str().ok()?.split(',').next().map(|one| one.trim().to_owned())
                        });
                        if let Some(first) = first {
                            response.headers_mut().insert("sec-websocket-protocol", first.parse().unwrap());
                        }
                        Ok(response)
                    };
                    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, see).await else {
                        return;
                    };
                    let pod = asked.split(['/', '?']).nth(3).unwrap_or_default();
                    let Some(at) = place(pod) else { return };
                    // Channel 0 carries the bytes, channel 1 what is wrong; both begin with the port.
                    for channel in [0u8, 1] {
                        let port = 8080u16.to_le_bytes();
                        let begin = Message::Binary(vec![channel, port[0], port[1]].into());
                        if socket.send(begin).await.is_err() {
                            return;
                        }
                    }
                    let Ok(mut there) = TcpStream::connect(at).await else { return };
                    let mut buffer = vec![0; 16384];
                    loop {
                        tokio::select! {
                            message = socket.next() => match message {
                                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&0) => {
                                    if there.write_all(&bytes[1..]).await.is_err() { return }
                                }
                                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                                Some(Ok(_)) => {}
                            },
                            read = there.read(&mut buffer) => match read {
                                Ok(0) | Err(_) => return drop(socket.close(None).await),
                                Ok(size) => {
                                    let bytes = [&[0], &buffer[..size]].concat();
                                    if socket.send(Message::Binary(bytes.into())).await.is_err() { return }
                                }
                            },
                        }
                    }
                });
            }
        });
    });
}

fn place(pod: &str) -> Option<SocketAddr> {
    let ip = match pod {
        "istiod-1" => "127.36.15.2",
        "istiod-2" => "127.36.15.3",
        "istiod-3" => "127.36.15.4",
        _ => return None,
    };
    Some(format!("{ip}:8080").parse().unwrap())
}

#[test]
fn every_replica_is_found_and_asked_through_the_api_server() {
    let server = Server::start("127.36.15.1");
    server.apply(SHOP);
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: mesh}}");
    for namespace in ["istio-system", "mesh"] {
        server.kubectl(&["-n", namespace, "create", "serviceaccount", "istiod"]);
    }
    server.kubectl(&["patch", "node", "n1", "--subresource=status", "--type=merge", "-p", &node()]);
    for name in ["istiod-1", "istiod-2", "istiod-not-ready"] {
        server.apply(&pod(name, "istio-system"));
    }
    server.apply(&pod("istiod-3", "mesh"));
    for (name, namespace) in
        [("istiod-1", "istio-system"), ("istiod-2", "istio-system"), ("istiod-3", "mesh")]
    {
        let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
        let patch = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p", ready];
        server.kubectl(&[&["-n", namespace][..], &patch].concat());
    }
    kubelet(place);
    let kubeconfig = server.kubeconfig("administrator");
    let _all = [("127.36.15.2", "127.36.15.12"), ("127.36.15.3", "127.36.15.13")]
        .map(|(control, proxy)| Mesh::start(&server, &kubeconfig, control, proxy));
    let run = |args: &[&str]| {
        let mut command = weft();
        let output = command.args(args).env("KUBECONFIG", &kubeconfig).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let end = Instant::now() + Duration::from_secs(60);
    // Each replica knows the proxies that are connected to it: both are there.
    let (status, wrong) = loop {
        let (_, status, wrong) = run(&["proxy-status", "--control", "cluster"]);
        let lines = status.lines().filter(|line| line.contains(".shop")).count();
        if lines == 2 || Instant::now() > end {
            break (status, wrong);
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    assert_eq!(status.lines().filter(|line| line.contains(".shop")).count(), 2, "{status}{wrong}");
    let (_, version, wrong) = run(&["version", "--control", "cluster/istio-system"]);
    assert!(version.contains("(2)"), "{version}{wrong}");
    let (done, _, wrong) = run(&["proxy-status", "--control", "cluster/elsewhere"]);
    assert!(!done && wrong.contains("no control plane is ready in the namespace elsewhere"), "{wrong}");
    trials_and_quarantines(&server, &kubeconfig, &run);
    // Whoever may not is told what is missing.
    server.kubectl(&["-n", "shop", "create", "serviceaccount", "nobody"]);
    let nobody = server.kubeconfig_of_account("shop", "nobody");
    let output =
        weft().args(["proxy-status", "--control", "cluster"]).env("KUBECONFIG", nobody).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("auth can-i list pods"), "{said}");
}

/// Success, and what is said to programs and to people.
type Said = (bool, String, String);

/// Whoever leads of the replicas tells of versions on trial, and one that knows the token puts workloads under quarantine.
fn trials_and_quarantines(server: &Server, kubeconfig: &Path, run: &dyn Fn(&[&str]) -> Said) {
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    mesh::established(server);
    server.apply(&mesh::pod("v1"));
    mesh::runs(server, "v1", "10.88.0.1");
    server.apply(mesh::TRIAL);
    let end = Instant::now() + Duration::from_secs(60);
    let (told, wrong) = loop {
        let (_, told, wrong) = run(&["traffic-status", "--control", "cluster"]);
        if (told.contains("shop/trial") && !wrong.contains("leads")) || Instant::now() > end {
            break (told, wrong);
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    assert_eq!(told.lines().filter(|line| line.starts_with("shop/trial ")).count(), 1, "{told}{wrong}");

    let file = |name: &str, text: &str| {
        let path = server.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (token, empty) = (file("quarantine-token", "t"), file("no-token", ""));
    let mut command = mesh::control(kubeconfig, "127.36.15.4");
    command.args(["--quarantine-token-file", &token]);
    let mut third = Process::start("control-3", &mut command, server.directory());
    third.wait("ready", || mesh::ready("127.36.15.4"));
    let quarantine = |args: &[&str], token: &str| {
        run(&[&["quarantine", "--control", "cluster/mesh", "--token-file", token][..], args].concat())
    };
    let mut said = Default::default();
    third.wait("in possession of the pod", || {
        said = quarantine(&["shop/v1"], &token);
        said.0
    });
    assert!(said.1.contains("shop/v1 is under quarantine"), "{said:?}");
    let list = quarantine(&["--list"], &token);
    assert!(list.1.starts_with("shop/v1 ("), "{list:?}");
    let released = quarantine(&["--undo", "shop/v1"], &token);
    assert!(released.1.contains("shop/v1 is released"), "{released:?}");
    let without = quarantine(&["--list"], &empty);
    assert!(!without.0 && without.2.contains("holds no token"), "{without:?}");
    // Those of the other namespace take no such calls, and what is called istiod and is not Weft's is not asked.
    server.apply(&pod("istiod-other", "istio-system").replace(", app.kubernetes.io/part-of: weft", ""));
    let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    let other =
        ["-n", "istio-system", "patch", "pod", "istiod-other", "--subresource=status", "--type=merge"];
    server.kubectl(&[&other[..], &["-p", ready]].concat());
    let (done, _, wrong) = run(&["quarantine", "--list", "--control", "cluster", "--token-file", &token]);
    assert!(!done && wrong.matches("has it --quarantine-token-file?").count() == 2, "{wrong}");
    assert!(!wrong.contains("istiod-other"), "{wrong}");
}
