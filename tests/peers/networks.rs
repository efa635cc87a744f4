//! Two networks (deploy/networks) with a real Envoy on the way between them: as the gateway of one, and as the client in the other.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use weft::up::{Mesh, Part, Signal};

use crate::envoy_sidecar::{Program, Sidecar, ask};
use crate::meshes;

/// Both versions of back answer who is asked for them, and have seen the client itself.
async fn both_answer(mesh: &Mesh) {
    let front = mesh.workload("front-1").unwrap().http_proxy.unwrap();
    for (canary, version) in [(false, "v1"), (true, "v2")] {
        let (status, answer) = ask(front, "back", canary).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["version"], version, "{answer}");
        assert_eq!(answer["caller"]["spiffe"], "spiffe://cluster.local/ns/shop/sa/front", "{answer}");
    }
}

/// Whether somebody closes a connection that begins TLS with this server name.
fn closes(to: SocketAddr, name: &str) -> bool {
    let mut config = rustls::ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"istio".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    while connection.wants_write() {
        connection.write_tls(&mut stream).unwrap();
    }
    match stream.read(&mut [0; 5]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

async fn start(loopback: u8) -> Mesh {
    meshes::start(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/networks"), loopback).await
}

async fn replaced(mesh: &Mesh, id: &str) -> Sidecar {
    mesh.stop(&Part::Proxy(id.to_owned()), Signal::TERM).await.unwrap();
    let workload = mesh.workload(id).unwrap().clone();
    tokio::task::block_in_place(|| Sidecar::start(mesh, &workload, "delta", Program::Envoy))
}

#[test]
fn an_envoy_is_the_gateway_of_a_network() {
    meshes::runtime().block_on(async {
        let mesh = start(45).await;
        let envoy = replaced(&mesh, "eastwest-1").await;
        both_answer(&mesh).await;
        for subset in ["v1", "v2"] {
            let name = format!("cluster.outbound_.8080_.{subset}_.back.");
            assert!(envoy.sum(&name, ".upstream_cx_total") > 0, "{subset}: not by Envoy");
        }
        let gateway = SocketAddr::new(mesh.workload("eastwest-1").unwrap().address, 15443);
        assert!(!closes(gateway, "outbound_.8080_.v1_.back.shop.svc.cluster.local"), "this one goes through");
        for name in ["outbound_.8080_._.nobody.shop.svc.cluster.local", "back.shop.svc.cluster.local"] {
            assert!(closes(gateway, name), "{name}");
        }
        drop(envoy);
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn an_envoy_is_the_client_in_another_network() {
    meshes::runtime().block_on(async {
        let mesh = start(46).await;
        let envoy = replaced(&mesh, "front-1").await;
        both_answer(&mesh).await;
        assert!(envoy.sum("cluster.outbound|8080|v1|back.", ".upstream_cx_total") > 0, "not by Envoy");
        let gateway = mesh.workload("eastwest-1").unwrap().admin();
        let stats = crate::programs::get(gateway, "/stats").unwrap().1;
        let passed = |line: &str| line.starts_with("tcp.outbound_.8080_.v2_.back.") && !line.ends_with(": 0");
        assert!(stats.lines().any(passed), "not by the gateway");
        drop(envoy);
        mesh.shutdown().await.unwrap();
    });
}
