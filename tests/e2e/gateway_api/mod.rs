//! The Gateway API from files to requests: the example of docs/gateway-api.md with real proxies, cases of routing by the proxy's own
//! matcher, and TLS that ends at a gateway or goes through it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::Value;
use weft::client::{Answer, Connection};
use weft::up::{Mesh, Options};
use weft_certs::authority::{Authority, KeyKind};

use crate::support::control::Control;
use crate::support::http::{backend, exchange};
use crate::support::logged::Logged;
use crate::support::mesh::{alone, options, runtime};
use crate::support::{eventually, stderr, stdout, weft};

fn house(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs the tests that are written beside a configuration; how many there were.
fn passes(directory: &Path) -> usize {
    let output = weft(&["test", directory.to_str().unwrap(), "--output", "json"]);
    let outcomes: Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let failed =
        outcomes["cases"].as_array().unwrap().iter().filter(|case| case["failures"] != serde_json::json!([]));
    let failed: Vec<_> = failed.collect();
    assert!(output.status.success() && outcomes["failed"] == 0, "{failed:#?}");
    outcomes["cases"].as_array().unwrap().len()
}

#[test]
fn requests_go_as_the_specification_says() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["routing.yaml", "routing-test.yaml"] {
        std::fs::copy(house("tests/e2e/gateway_api").join(file), directory.path().join(file)).unwrap();
    }
    assert_eq!(passes(directory.path()), 30);
    // Whoever only carries the label, elsewhere, serves nothing of it.
    let stranger = "apiVersion: test.weft.dev/v1alpha1\nkind: Test\nmetadata: {name: stranger}\ncases:\n- {name: a stranger, from: \
                    shop/stranger-1, request: 'GET http://shop.example:8080/', expect: {route: shop.main.all}}\n";
    std::fs::write(directory.path().join("routing-test.yaml"), stranger).unwrap();
    let output = weft(&["test", directory.path().to_str().unwrap()]);
    assert!(!output.status.success(), "{}", stdout(&output));
}

async fn ask(at: SocketAddr, url: &str, host: &str, canary: bool) -> anyhow::Result<Answer> {
    let mut request = Request::get(url).header("host", host);
    if canary {
        request = request.header("canary", "true");
    }
    Connection::open(at).await?.send(request.body(Full::<Bytes>::default())?).await
}

/// The service that answered.
fn server(answer: &Answer) -> String {
    let says: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    format!("{says}")
}

#[test]
fn the_example_runs_as_it_stands() {
    let directory = house("docs/examples/gateway-api");
    assert_eq!(passes(&directory), 6);
    let output = weft(&["analyze", directory.to_str().unwrap(), "--output", "json"]);
    assert!(output.status.success(), "{}", stdout(&output));
    let _alone = alone();
    runtime().block_on(async {
        let own = Options::new(directory).unwrap();
        let mesh = Mesh::start(Options { dir: own.dir, ..options() }).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        let edge = SocketAddr::new(mesh.workload("edge-1").unwrap().address, 8080);
        let proxy = mesh.workload("web-1").unwrap().http_proxy.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let first = loop {
            match ask(edge, "/catalog/7", "shop.example", false).await {
                Ok(answer) if answer.status == 200 => break answer,
                other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(server(&first).contains("catalog"), "{}", first.text());
        let canary = ask(edge, "/catalog", "shop.example", true).await.unwrap();
        let own = mesh.workload("catalog-v2-1").unwrap().address.to_string();
        assert!(
            canary.status == 200 && canary.text().contains("v2") || canary.text().contains(&own),
            "{}",
            canary.text()
        );
        let moved = ask(edge, "/old", "shop.example", false).await.unwrap();
        assert_eq!(
            (moved.status.as_u16(), &moved.headers["location"]),
            (301, &"http://shop.example:8080/catalog".parse().unwrap())
        );
        assert_eq!(ask(edge, "/catalogue", "shop.example", false).await.unwrap().status, 404);
        assert_eq!(ask(edge, "/catalog", "other.example", false).await.unwrap().status, 404);
        // In the mesh the Service's own route says where a marked request goes.
        for (canary, version) in [(true, "v2"), (false, "v1")] {
            let answer = ask(proxy, "http://catalog:8080/", "catalog:8080", canary).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let own = mesh.workload(&format!("catalog-{version}-1")).unwrap().address.to_string();
            assert!(
                answer.text().contains(version) || answer.text().contains(&own),
                "{version}: {}",
                answer.text()
            );
        }
        mesh.shutdown().await.unwrap();
    });
}

const CONTROL: &str = "127.66.0.1";
const GATEWAY: &str = "127.66.0.2";

/// Signs leaves of a name.
struct Issuer(Authority);

impl Issuer {
    fn new() -> Self {
        Self(Authority::root(KeyKind::P256, SystemTime::now().into(), time::Duration::days(10)).unwrap())
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let id = "spiffe://elsewhere/ns/a/sa/b".parse().unwrap();
        self.0.server(&id, &[name], &[], SystemTime::now().into(), time::Duration::days(5)).unwrap()
    }

    /// Bytes that come back through a TLS connection for a name, or why there is none.
    fn ask(&self, port: u16, name: &str) -> Result<String, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.certificate().clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(weft_certs::provider().clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect((GATEWAY, port)).map_err(|e| e.to_string())?;
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let connection =
            rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap())
                .unwrap();
        let mut tls = rustls::StreamOwned::new(connection, tcp);
        let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        let mut text = Vec::new();
        match tls.read_to_end(&mut text) {
            Err(error) if text.is_empty() => Err(error.to_string()),
            _ => Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    }
}

/// A server that ends TLS itself, and says its name.
fn tls_server(issuer: &Issuer, name: &str) -> SocketAddr {
    let (certificate, key) = issuer.leaf(name);
    let config = rustls::ServerConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let answer =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}", name.len());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut tls = rustls::StreamOwned::new(connection, stream);
                let _ = tls.read(&mut [0; 4096]).and_then(|_| tls.write_all(answer.as_bytes()));
                tls.conn.send_close_notify();
                let _ = tls.flush();
            });
        }
    });
    address
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: tcp, port: 80, targetPort: {port}}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: 127.0.0.1, labels: {{app: {name}}}}}
---
"
    )
}

fn listeners(issuer: &Issuer) -> String {
    let (certificate, key) = issuer.leaf("ended.example");
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: weft}}
spec: {{controllerName: weft.dev/gateway-controller}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: infra}}
spec:
  gatewayClassName: weft
  listeners:
    - {{name: http, port: 8080, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}
    - name: https
      port: 8443
      protocol: HTTPS
      hostname: ended.example
      tls: {{certificateRefs: [{{name: pair, namespace: vault}}]}}
      allowedRoutes: {{namespaces: {{from: All}}}}
    - {{name: through, port: 8443, protocol: TLS, hostname: '*.through.example', tls: {{mode: Passthrough}}, allowedRoutes: {{namespaces: {{from: All}}}}}}
    - name: bytes
      port: 8444
      protocol: TLS
      hostname: ended.example
      tls: {{certificateRefs: [{{name: pair, namespace: vault}}]}}
      allowedRoutes: {{namespaces: {{from: All}}}}
---
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {{name: pair, namespace: vault}}
stringData:
  tls.crt: |
{}  tls.key: |
{}---
",
        indented(&weft_certs::pem::encode(&certificate)),
        indented(&weft_certs::pem::encode_key(&key)),
    )
}

const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: edge, namespace: vault}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}]
  to: [{group: '', kind: Secret, name: pair}]
---
";

fn route(kind: &str, name: &str, listener: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec: {{parentRefs: [{{name: edge, namespace: infra, sectionName: {listener}}}], {rest}}}
---
"
    )
}

fn get(host: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    match exchange(SocketAddr::new(GATEWAY.parse().unwrap(), 8080), &request) {
        Ok((head, body)) => (head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_default(), body),
        Err(_) => (0, String::new()),
    }
}

/// A gateway that has an identity: others get no secrets.
fn gateway_of(control: &Control, token: &Path) -> Logged {
    let key = std::fs::read_to_string(control.state().join(weft_control::ca::store::TOKEN_KEY)).unwrap();
    let (issuer, _) = weft_control::ca::token::from_key(&key).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    std::fs::write(token, issuer.issue("infra", "edge", now, Duration::from_secs(3600)).unwrap()).unwrap();
    let (xds, admin) = (format!("{CONTROL}:15012"), format!("{GATEWAY}:15000"));
    let (root, token) = (control.root(), token.to_str().unwrap());
    let flags = [
        ["--role", "gateway"],
        ["--label", "gateway.networking.k8s.io/gateway-name=edge"],
        ["--xds-address", &xds],
        ["--root-cert", root.to_str().unwrap()],
        ["--token-file", token],
        ["--namespace", "infra"],
        ["--service-account", "edge"],
        ["--ip", GATEWAY],
        ["--admin-address", &admin],
        ["--concurrency", "1"],
    ];
    Logged::weft(&[&["proxy"], &flags.concat()[..]].concat())
}

#[test]
fn tls_ends_at_a_gateway_or_goes_through_it_and_shares_of_what_is_not_there_answer_500() {
    let issuer = Issuer::new();
    let plain = backend("plain").port();
    let inner = tls_server(&issuer, "a.through.example").port();
    let mesh = [
        listeners(&issuer),
        service("plain", plain),
        service("inner", inner),
        route(
            "HTTPRoute",
            "shares",
            "http",
            "hostnames: [shares.example], rules: [{backendRefs: [{name: plain, port: 80}, {name: gone, port: 80}]}]",
        ),
        route(
            "HTTPRoute",
            "ended",
            "https",
            "rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-edge, value: here}]}}], \
             backendRefs: [{name: plain, port: 80}]}]",
        ),
        route("TLSRoute", "through", "through", "hostnames: [a.through.example], rules: [{backendRefs: [{name: inner, port: 80}]}]"),
        route("TLSRoute", "bytes", "bytes", "hostnames: [ended.example], rules: [{backendRefs: [{name: plain, port: 80}]}]"),
    ]
    .concat();
    let control = Control::start(CONTROL, &mesh);
    let directory = tempfile::tempdir().unwrap();
    let _gateway = gateway_of(&control, &directory.path().join("token"));
    eventually("requests come through", || get("shares.example", "/") == (200, "plain".to_owned()));
    // Of two backends one is not there: so much is answered with 500, and nothing else happens.
    let mut seen = [0, 0];
    for _ in 0..200 {
        match get("shares.example", "/") {
            (200, body) if body == "plain" => seen[0] += 1,
            (500, _) => seen[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen[0] >= 60 && seen[1] >= 60, "{seen:?}");
    assert_eq!(get("other.example", "/").0, 404);

    // What was passed through ends at the server, by its own certificate.
    eventually("TLS goes through", || {
        issuer.ask(8443, "a.through.example").is_ok_and(|a| a.ends_with("a.through.example"))
    });
    // Nobody lets the Gateway refer to the certificate yet.
    assert!(issuer.ask(8443, "ended.example").is_err());
    let says = |words: &str| control.process.log().contains(words);
    eventually("it is said", || says("no ReferenceGrant there lets a Gateway of infra refer to it"));
    std::fs::write(control.config("grant.yaml"), GRANT).unwrap();
    eventually("TLS ends", || {
        issuer.ask(8443, "ended.example").is_ok_and(|a| a.contains("x-edge: here") && a.ends_with("plain"))
    });
    eventually("TLS ends, and bytes go on", || {
        issuer.ask(8444, "ended.example").is_ok_and(|a| a.ends_with("plain"))
    });
    assert!(issuer.ask(8443, "b.through.example").is_err());
    assert!(issuer.ask(8443, "a.through.example").is_ok_and(|a| a.ends_with("a.through.example")));
    // Without the grant it is over again.
    std::fs::remove_file(control.config("grant.yaml")).unwrap();
    eventually("the certificate is not shown any more", || issuer.ask(8443, "ended.example").is_err());
}
