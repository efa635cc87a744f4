//! Two networks (deploy/networks): a client in one, the servers in the other, and our own proxy as the gateway between them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use weft::client::Connection;
use weft::up::{Mesh, Options};

use crate::support::control::Control;
use crate::support::http::get;
use crate::support::mesh::{alone, options, runtime};
use crate::support::{eventually, stderr, stdout, weft};

const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";

async fn ask(mesh: &Mesh, canary: bool) -> (u16, Value) {
    let front = mesh.workload("front-1").unwrap();
    let mut request = Request::get("http://back:8080/").header("host", "back:8080");
    if canary {
        request = request.header("canary", "true");
    }
    let mut connection = Connection::open(front.http_proxy.unwrap()).await.unwrap();
    let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or_default())
}

/// The sum of a proxy's counters whose names begin and end so.
fn sum(admin: SocketAddr, begins: &str, ends: &str) -> u64 {
    let text = get(admin, "/stats").unwrap().1;
    let lines = text.lines().filter(|line| line.starts_with(begins));
    let values = lines.filter_map(|line| line.rsplit_once(": ")).filter(|(name, _)| name.ends_with(ends));
    values.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
}

/// What comes of beginning TLS with this server name and these protocols, and no certificate; an error if nobody answers.
fn begin(to: SocketAddr, root: &Path, name: &str, protocols: &[&str]) -> std::io::Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(root).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    stream.flush()?;
    let mut first = vec![0; 5];
    stream.read_exact(&mut first)?;
    Ok(first)
}

#[test]
fn a_call_to_another_network_goes_by_its_gateway_which_sees_tls_alone() {
    let _alone = alone();
    runtime().block_on(async {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/networks");
        let flags = ["--cluster-id", "eks-learning-lab-cluster", "--mesh-id", "mesh1"].map(str::to_owned);
        let shown = weft(&[
            "explain",
            "GET",
            "http://back:8080/",
            "--from",
            "front-1",
            "--dir",
            dir.to_str().unwrap(),
        ]);
        let text = stdout(&shown);
        assert!(text.contains("a gateway of the network two passes the TLS on"), "{text}{}", stderr(&shown));
        // A load balancer that has but a name is shown by it: nothing is looked up for a question.
        let named = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(dir.join("mesh.yaml")).unwrap();
        let text = text.replace("  externalIPs: [127.0.12.1]\n", "").replacen(
            "---\napiVersion: networking.istio.io/v1\nkind: Gateway",
            "status: {loadBalancer: {ingress: [{hostname: lb.invalid}]}}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway",
            1,
        );
        std::fs::write(named.path().join("mesh.yaml"), text).unwrap();
        let at = named.path().to_str().unwrap();
        let shown = weft(&["explain", "GET", "http://back:8080/", "--from", "front-1", "--dir", at]);
        let text = stdout(&shown);
        assert!(text.contains("lb.invalid:15443"), "{text}{}", stderr(&shown));
        assert!(text.contains("a gateway of the network two, at the addresses that"), "{text}");
        let mesh = Mesh::start(Options { dir, proxy_flags: flags.into(), ..options() }).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        let admin = |name: &str| mesh.workload(name).unwrap().admin();
        let gateway = mesh.workload("eastwest-1").unwrap().address;
        let known = get(admin("front-1"), "/clusters").unwrap().1;
        let of_back: Vec<_> =
            known.lines().filter(|line| line.starts_with("outbound|8080|v1|back.")).collect();
        assert!(of_back.iter().any(|line| line.contains(&format!("{gateway}:15443"))), "{of_back:#?}");
        assert!(!of_back.iter().any(|line| line.contains(".11.1:8080")), "{of_back:#?}");

        for (canary, version, subset) in [(false, "v1", "v1"), (true, "v2", "v2")] {
            let (status, answer) = ask(&mesh, canary).await;
            assert_eq!(status, 200, "{answer}");
            assert_eq!(
                (&answer["service"], &answer["version"]),
                (&"back".into(), &version.into()),
                "{answer}"
            );
            // The server has seen the client's certificate, and not the gateway's.
            assert_eq!(answer["caller"]["spiffe"], FRONT, "{answer}");
            let name = format!("tcp.outbound_.8080_.{subset}_.back.shop.svc.cluster.local.");
            assert_eq!(sum(admin("eastwest-1"), &name, "downstream_cx_total"), 1, "{name}");
        }
        // Who is where is in the metrics of both ends.
        for (name, reporter) in [("front-1", "source"), ("back-1", "destination")] {
            let page = mesh.workload(name).unwrap().prometheus();
            eventually("the requests are counted with their clusters", || {
                let text = get(page, "/stats/prometheus").unwrap().1;
                let labels = [
                    format!("reporter=\"{reporter}\""),
                    "source_cluster=\"eks-learning-lab-cluster\"".to_owned(),
                    "destination_cluster=\"eks-learning-lab-cluster\"".to_owned(),
                ];
                let counts = |line: &&str| line.starts_with("istio_requests_total{");
                text.lines().filter(counts).any(|line| labels.iter().all(|label| line.contains(label)))
            });
        }
        // It has ended no TLS, and has seen no request.
        assert_eq!(sum(admin("eastwest-1"), "http.outbound", "downstream_rq_total"), 0);

        let to = SocketAddr::new(gateway, 15443);
        let root = mesh.state_dir().join("root-cert.pem");
        let name = "outbound_.8080_.v1_.back.shop.svc.cluster.local";
        let answered = begin(to, &root, name, &["istio-http/1.1", "istio", "http/1.1"]).unwrap();
        assert_eq!(answered[0], 22, "the server itself answers, with its handshake");
        for (name, protocol, why) in [
            (name, "h2", "this is not the mesh's mutual TLS"),
            ("outbound_.8080_._.nobody.shop.svc.cluster.local", "istio", "nobody is called so"),
            ("outbound_.18080_._.back.shop.svc.cluster.local", "istio", "the service has no such port"),
            ("outbound_.8080_.v3_.back.shop.svc.cluster.local", "istio", "it has no such subset"),
            ("back.shop.svc.cluster.local", "istio", "a host is no such name"),
        ] {
            let refused = begin(to, &root, name, &[protocol]).expect_err(why);
            let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
            assert!(closed.contains(&refused.kind()), "{name}: {refused}: {why}");
        }
        mesh.shutdown().await.unwrap();
    });
}

/// Endpoints of a Service, as the control plane's own page has them.
fn endpoints(control: &Control) -> Vec<String> {
    let page: Value = serde_json::from_str(&control.page("/debug/endpointz")).unwrap_or_default();
    let text = page.to_string();
    ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        .iter()
        .filter(|a| text.contains(&format!("\"{a}\"")))
        .map(|a| (*a).to_owned())
        .collect()
}

#[test]
fn entries_of_another_cluster_count_unless_that_is_switched_off() {
    let yaml = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: unsaid, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: own, namespace: shop, labels: {topology.istio.io/cluster: eks-learning-lab-cluster}}
spec: {address: 10.0.0.2, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other, namespace: shop}
spec: {address: 10.0.0.3, labels: {app: web, topology.istio.io/cluster: elsewhere}}
";
    let named = &["--cluster-id", "eks-learning-lab-cluster"];
    let all = Control::start_with("127.66.1.1", yaml, named);
    assert_eq!(endpoints(&all), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    drop(all);
    let off = &["--cluster-id", "eks-learning-lab-cluster", "--enable-cross-cluster-workload-entry", "false"];
    let own = Control::start_with("127.66.1.1", yaml, off);
    eventually("its own entries", || endpoints(&own) == ["10.0.0.1", "10.0.0.2"]);
}
