//! Credentials that OpenBao or files keep: certificates of a gateway, and the client certificate that it shows a service outside the mesh.
//! They are replaced while requests flow, and the last good ones stay while nobody serves them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use weft_certs::authority::{Authority, KeyKind};

use crate::support::control::Control;
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::service::Service;

/// Authorities of tests sign leaves of one name.
struct Issuer(Authority);

impl Issuer {
    fn new() -> Self {
        let life = time::Duration::days(10);
        Self(Authority::root(KeyKind::P256, SystemTime::now().into(), life).unwrap())
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let id = "spiffe://elsewhere/ns/a/sa/b".parse().unwrap();
        self.0.server(&id, &[name], &[], SystemTime::now().into(), time::Duration::days(5)).unwrap()
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.certificate().clone()).unwrap();
        roots.into()
    }

    /// A new credential, and the serial number of its certificate.
    fn credential(&self, name: &str) -> (BTreeMap<&'static str, String>, String) {
        let (certificate, key) = self.leaf(name);
        let serial = serial(&certificate);
        let texts = [
            ("tls.crt", weft_certs::pem::encode(&certificate)),
            ("tls.key", weft_certs::pem::encode_key(&key)),
            ("ca.crt", self.0.certificate_pem().to_owned()),
        ];
        (texts.into(), serial)
    }
}

fn serial(certificate: &CertificateDer<'_>) -> String {
    weft_certs::inspect::facts(certificate).unwrap().serial
}

/// A service outside the mesh: it takes clients with a certificate of its issuer, and answers with that certificate's serial number.
fn partner(issuer: &Issuer) -> SocketAddr {
    let provider = weft_certs::provider().clone();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(issuer.roots(), provider.clone());
    let (certificate, key) = issuer.leaf("api.example");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            std::thread::spawn(move || {
                let mut tls = rustls::StreamOwned::new(connection, stream);
                let mut seen = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(n) = tls.read(&mut piece)
                    && n > 0
                {
                    seen.extend_from_slice(&piece[..n]);
                    if !seen.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    seen.clear();
                    let body = tls.conn.peer_certificates().map(|all| serial(&all[0])).unwrap_or_default();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    if tls.write_all((head + &body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// OpenBao's KV engine (version 2) at the mount `kv`, and a token that it knows.
#[derive(Clone, Default)]
struct Kv {
    secrets: Arc<Mutex<BTreeMap<String, (u64, serde_json::Value)>>>,
    down: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
}

impl Kv {
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let own = self.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 4096];
                let n = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                own.asked.fetch_add(1, SeqCst);
                let (status, body) = own.answer(&head);
                let body = body.to_string();
                let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            }
        });
        url
    }

    fn answer(&self, head: &str) -> (u16, serde_json::Value) {
        if self.down.load(SeqCst) {
            return (503, json!({"errors": ["OpenBao is sealed"]}));
        }
        if !head.to_ascii_lowercase().contains("x-vault-token: s.token\r\n") {
            return (403, json!({"errors": ["permission denied"]}));
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path == "/v1/auth/token/lookup-self" {
            return (200, json!({"data": {"ttl": 3600, "renewable": false}}));
        }
        let secrets = self.secrets.lock().unwrap();
        match path.strip_prefix("/v1/kv/data/").and_then(|path| secrets.get(path)) {
            Some((version, data)) => (200, json!({"data": {"data": data, "metadata": {"version": version}}})),
            None => (404, json!({"errors": []})),
        }
    }

    fn put(&self, path: &str, data: impl serde::Serialize) {
        let mut secrets = self.secrets.lock().unwrap();
        let version = secrets.get(path).map_or(1, |(version, _)| version + 1);
        secrets.insert(path.to_owned(), (version, json!(data)));
    }
}

fn mesh(gateway: &str, partner: SocketAddr) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: edge}}
spec:
  hosts: [api.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api, namespace: edge}}
spec:
  host: api.example
  trafficPolicy:
    tls: {{mode: MUTUAL, credentialName: partner, sni: api.example, subjectAltNames: [api.example]}}
    connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gateway, namespace: edge, annotations: {{weft.dev/role: gateway}}}}
spec: {{address: {gateway}, labels: {{istio: ingress}}, serviceAccount: gateway}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: edge}}
spec:
  selector: {{istio: ingress}}
  servers: [{{port: {{number: 8443, name: https, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: SIMPLE, credentialName: shop}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: edge}}
spec:
  hosts: ['*']
  gateways: [gateway]
  http: [{{route: [{{destination: {{host: api.example}}}}]}}]
",
        port = partner.port()
    )
}

fn gateway_of(control: &Control, ip: &str, token: &std::path::Path) -> Logged {
    let key = std::fs::read_to_string(control.state().join(weft_control::ca::store::TOKEN_KEY)).unwrap();
    let (issuer, _) = weft_control::ca::token::from_key(&key).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    std::fs::write(token, issuer.issue("edge", "gateway", now, Duration::from_secs(3600)).unwrap()).unwrap();
    let (xds, root, admin) = (format!("{}:15012", control.ip), control.root(), format!("{ip}:15000"));
    Logged::weft(&[
        "proxy",
        "--role",
        "gateway",
        "--xds-address",
        &xds,
        "--root-cert",
        root.to_str().unwrap(),
        "--token-file",
        token.to_str().unwrap(),
        "--namespace",
        "edge",
        "--service-account",
        "gateway",
        "--ip",
        ip,
        "--admin-address",
        &admin,
        "--concurrency",
        "1",
    ])
}

/// The gateway's serial number, and the one that the partner saw; an error if the request was not answered so.
fn ask(to: SocketAddr, roots: &Arc<rustls::RootCertStore>) -> std::io::Result<(String, String)> {
    let config = rustls::ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("shop.example").unwrap();
    let connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut tls = rustls::StreamOwned::new(connection, stream);
    tls.write_all(b"GET / HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    tls.read_to_end(&mut text)?;
    let own = tls.conn.peer_certificates().map(|all| serial(&all[0])).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok((own, body.to_owned())),
        _ => Err(std::io::Error::other(text.into_owned())),
    }
}

/// Asks without end until it is told to; what failed.
fn traffic(
    to: SocketAddr,
    issuer: &Issuer,
) -> (Arc<AtomicBool>, std::thread::JoinHandle<(u32, Vec<String>)>) {
    let (ended, roots) = (Arc::new(AtomicBool::new(false)), issuer.roots());
    let own = ended.clone();
    let task = std::thread::spawn(move || {
        let (mut count, mut failures) = (0, Vec::new());
        // A replacement may be quicker than a few requests.
        while !own.load(SeqCst) || count < 20 {
            count += 1;
            failures.extend(ask(to, &roots).err().map(|e| e.to_string()));
        }
        (count, failures)
    });
    (ended, task)
}

#[test]
fn credentials_in_openbao_are_replaced_while_requests_flow_and_stay_while_it_is_down() {
    let (control_ip, gateway) = ("127.41.0.1", "127.41.0.2");
    let (ours, theirs) = (Issuer::new(), Issuer::new());
    let kv = Kv::default();
    let url = kv.start();
    let (shop, first_shop) = ours.credential("shop.example");
    let (client, first_client) = theirs.credential("client.example");
    kv.put("mesh/edge/shop", &shop);
    kv.put("mesh/edge/partner", &client);
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("openbao-token");
    std::fs::write(&token, "s.token\n").unwrap();
    let flags = [
        "--credentials=openbao",
        &format!("--credentials-addr={url}"),
        "--credentials-mount=kv",
        "--credentials-prefix=mesh",
        &format!("--credentials-token-file={}", token.display()),
        "--credentials-refresh-interval=100ms",
    ]
    .map(|flag| &*flag.to_owned().leak());
    let mut control =
        Control::start_with(control_ip, &mesh(gateway, partner(&theirs)), &*flags.to_vec().leak());
    let proxy = gateway_of(&control, gateway, &directory.path().join("token"));
    let to: SocketAddr = format!("{gateway}:8443").parse().unwrap();
    let roots = ours.roots();
    eventually("the gateway serves", || ask(to, &roots).is_ok());
    assert_eq!(ask(to, &roots).unwrap(), (first_shop.clone(), first_client.clone()));

    // Both are replaced; no request notices.
    let (ended, task) = traffic(to, &ours);
    let (mut last_shop, mut last_client) = (first_shop, first_client);
    for _ in 0..3 {
        let (shop, new_shop) = ours.credential("shop.example");
        let (client, new_client) = theirs.credential("client.example");
        kv.put("mesh/edge/shop", &shop);
        kv.put("mesh/edge/partner", &client);
        eventually("both are replaced", || {
            ask(to, &roots).unwrap() == (new_shop.clone(), new_client.clone())
        });
        (last_shop, last_client) = (new_shop, new_client);
    }
    // A pair that is none is not taken, and is told without its content.
    let (wrong, _) = ours.credential("shop.example");
    kv.put("mesh/edge/shop", json!({"tls.crt": shop["tls.crt"], "tls.key": wrong["tls.key"]}));
    control.process.says(&["WARN", "mesh/edge/shop", "do not belong together", "the last good one stays"]);
    // Down, also for a control plane and then a gateway that are started meanwhile.
    kv.down.store(true, SeqCst);
    control.process.says(&["WARN", "mesh/edge/partner", "OpenBao is sealed", "the last good one stays"]);
    let now = (last_shop, last_client);
    assert_eq!(ask(to, &roots).unwrap(), now);
    control.restart();
    control.process.says(&["mesh/edge/shop", "taken from the state directory"]);
    eventually("the proxy is back", || control.page("/debug/syncz").contains(gateway));
    assert_eq!(ask(to, &roots).unwrap(), now);
    ended.store(true, SeqCst);
    let (count, failures) = task.join().unwrap();
    assert!(count >= 20 && failures.is_empty(), "{count} requests, {failures:?}");
    drop(proxy);
    let proxy = gateway_of(&control, gateway, &directory.path().join("token"));
    eventually("another gateway serves", || ask(to, &roots).is_ok());
    assert_eq!(ask(to, &roots).unwrap(), now);
    // It is back.
    kv.down.store(false, SeqCst);
    let (shop, new_shop) = ours.credential("shop.example");
    kv.put("mesh/edge/shop", &shop);
    eventually("the new one is taken", || ask(to, &roots).unwrap().0 == new_shop);

    // Neither pages nor logs have a key.
    let pages =
        ["/config_dump", "/certs"].map(|p| get(format!("{gateway}:15000").parse().unwrap(), p).unwrap().1);
    let metrics = get(format!("{control_ip}:15014").parse().unwrap(), "/metrics").unwrap().1;
    let line = shop["tls.key"].lines().nth(1).unwrap();
    for text in [&pages[0], &pages[1], &metrics, &control.process.log(), &proxy.log()] {
        assert!(!text.contains("PRIVATE KEY") && !text.contains(line) && !text.contains("s.token"));
    }
    assert!(metrics.contains("weft_credential_stale{credential=\"edge/shop\"} 0"), "{metrics}");
    assert!(kv.asked.load(SeqCst) > 10);
}

#[test]
fn credentials_in_files_are_replaced_while_requests_flow() {
    let (control_ip, gateway) = ("127.41.1.1", "127.41.1.2");
    let (ours, theirs) = (Issuer::new(), Issuer::new());
    let directory = tempfile::tempdir().unwrap();
    let put = |name: &str, texts: &BTreeMap<&str, String>| {
        let at = directory.path().join("edge").join(name);
        std::fs::create_dir_all(&at).unwrap();
        // One file after the other: half of a replacement is not taken.
        texts.iter().for_each(|(key, text)| std::fs::write(at.join(key), text).unwrap());
    };
    let (shop, first_shop) = ours.credential("shop.example");
    let (client, first_client) = theirs.credential("client.example");
    put("shop", &shop);
    let flags = [
        "--credentials=files",
        &format!("--credentials-dir={}", directory.path().display()),
        "--credentials-refresh-interval=50ms",
    ]
    .map(|flag| &*flag.to_owned().leak());
    let control = Control::start_with(control_ip, &mesh(gateway, partner(&theirs)), &*flags.to_vec().leak());
    control.process.says(&["ERROR", "edge/partner", "who needs it waits"]);
    let _proxy = gateway_of(&control, gateway, &directory.path().join("token"));
    let to: SocketAddr = format!("{gateway}:8443").parse().unwrap();
    let roots = ours.roots();
    put("partner", &client);
    eventually("the gateway serves", || ask(to, &roots).is_ok());
    assert_eq!(ask(to, &roots).unwrap(), (first_shop, first_client));
    let (ended, task) = traffic(to, &ours);
    let (shop, new_shop) = ours.credential("shop.example");
    let (client, new_client) = theirs.credential("client.example");
    put("shop", &shop);
    put("partner", &client);
    eventually("both are replaced", || ask(to, &roots).unwrap() == (new_shop.clone(), new_client.clone()));
    ended.store(true, SeqCst);
    let (count, failures) = task.join().unwrap();
    assert!(count >= 20 && failures.is_empty(), "{count} requests, {failures:?}");
}

/// The authorization that a service outside the mesh got with the request for a path; none if it did not get the request.
fn authorization(api: &Service, path: &str) -> Option<String> {
    let heads = api.heads();
    let head = heads.iter().rev().find(|head| head.starts_with(&format!("GET {path} ")))?;
    let line = head.lines().find_map(|line| line.strip_prefix("authorization: "));
    Some(line.unwrap_or_default().to_owned())
}

#[test]
fn a_secret_goes_with_requests_to_its_hosts_alone_and_is_replaced_while_they_flow() {
    let (control_ip, gateway) = ("127.41.2.1", "127.41.2.2");
    let (api, other) = (Service::start("api"), Service::start("other"));
    let kv = Kv::default();
    let url = kv.start();
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("openbao-token");
    std::fs::write(&token, "s.token\n").unwrap();
    let flags = [
        "--credentials=openbao",
        &format!("--credentials-addr={url}"),
        "--credentials-mount=kv",
        "--credentials-prefix=mesh",
        &format!("--credentials-token-file={}", token.display()),
        "--credentials-refresh-interval=100ms",
    ]
    .map(|flag| &*flag.to_owned().leak());
    let entry = |name: &str, port: u16| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: edge}}
spec:
  hosts: [{name}.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---"
        )
    };
    let mesh = entry("api", api.port)
        + &entry("other", other.port)
        + &format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gateway, namespace: edge, annotations: {{weft.dev/role: gateway}}}}
spec: {{address: {gateway}, labels: {{istio: ingress}}, serviceAccount: gateway}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: edge}}
spec:
  selector: {{istio: ingress}}
  servers: [{{port: {{number: 8080, name: http, protocol: HTTP}}, hosts: ['*']}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: edge}}
spec:
  hosts: ['*']
  gateways: [gateway]
  http:
    - {{match: [{{uri: {{prefix: /other}}}}], route: [{{destination: {{host: other.example}}}}]}}
    - match: [{{uri: {{prefix: /either}}}}]
      route: [{{destination: {{host: other.example}}, weight: 50}}, {{destination: {{host: api.example}}, weight: 50}}]
    - {{route: [{{destination: {{host: api.example}}}}]}}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalCredential
metadata: {{name: api, namespace: edge}}
spec: {{hosts: [api.example], headerValuePrefix: 'Bearer ', credentialName: api-token, key: token}}
"
        );
    let control = Control::start_with(control_ip, &mesh, &*flags.to_vec().leak());
    let proxy = gateway_of(&control, gateway, &directory.path().join("token"));
    let to: SocketAddr = format!("{gateway}:8080").parse().unwrap();
    let status = |path: &str| get(to, path).map_or(0, |answer| answer.0);
    // Without the secret nobody gets to the service, and others are served.
    eventually("the gateway serves", || status("/other/1") == 200);
    assert_eq!(status("/first"), 401);
    kv.put("mesh/edge/api-token", json!({"token": "one"}));
    eventually("the secret is there", || status("/x") == 200);
    assert_eq!(status("/own"), 200);
    assert_eq!(authorization(&api, "/own").unwrap(), "Bearer one");
    let asked = "GET /mine HTTP/1.1\r\nhost: a\r\nauthorization: mine\r\nconnection: close\r\n\r\n";
    crate::support::http::exchange(to, asked).unwrap();
    assert_eq!(authorization(&api, "/mine").unwrap(), "Bearer one", "what the client says does not count");

    let (ended, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let traffic = {
        let (ended, count) = (ended.clone(), count.clone());
        std::thread::spawn(move || {
            while !ended.load(SeqCst) || count.load(SeqCst) < 20 {
                let answer = get(to, &format!("/flow/{}", count.fetch_add(1, SeqCst)));
                assert!(answer.as_ref().is_ok_and(|a| a.0 == 200), "{answer:?}");
            }
        })
    };
    let now = |wanted: &str| {
        status("/now") == 200 && authorization(&api, "/now").is_some_and(|a| a == format!("Bearer {wanted}"))
    };
    for secret in ["two", "three"] {
        kv.put("mesh/edge/api-token", json!({"token": format!("{secret}\n")}));
        eventually("the next one is sent", || now(secret));
    }
    kv.down.store(true, SeqCst);
    control.process.says(&["WARN", "mesh/edge/api-token", "OpenBao is sealed", "the last good one stays"]);
    assert!(now("three"));
    ended.store(true, SeqCst);
    traffic.join().unwrap();

    // It is for its host alone, also where a route leads to others as well.
    for n in 0..40 {
        assert_eq!(status(&format!("/either/{n}")), 200);
    }
    let count = |service: &Service| service.heads().iter().filter(|h| h.starts_with("GET /either/")).count();
    assert!(count(&api) > 0 && count(&other) > 0);
    assert!(other.heads().iter().all(|head| !head.contains("authorization")));
    let either = api.heads().into_iter().filter(|head| head.starts_with("GET /either/"));
    assert!(either.into_iter().all(|head| head.contains("authorization: Bearer three\n")));

    let dump = get(format!("{gateway}:15000").parse().unwrap(), "/config_dump").unwrap().1;
    assert!(dump.contains("credential://api-token/token"), "the secret is there by its name");
    for text in [&dump, &control.process.log(), &proxy.log()] {
        assert!(!text.contains("three"));
    }
    let stats = get(format!("{gateway}:15000").parse().unwrap(), "/stats").unwrap().1;
    assert!(stats.lines().any(|l| l.contains("credential_injector.injected: ") && !l.ends_with(" 0")));
}
