//! Gateway certificates by ACME, from a real server: Pebble, which looks at hosts as Let's Encrypt does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use weft_certs::authority::KeyKind;
use weft_certs::inspect::{Facts, facts};
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use crate::programs::{Process, get, peer, weft, weft_proxy};

/// Where everything is, one address for each.
#[derive(Clone, Copy)]
struct Places {
    pebble: &'static str,
    names: &'static str,
    control: &'static str,
    gateway: &'static str,
}

/// Answers every question for an address with this one (RFC 1035; over TCP, as Pebble asks), for as long as the process lives.
fn name_server(at: &str, address: &str) {
    let listener = TcpListener::bind((at, 53)).unwrap();
    let address: Ipv4Addr = address.parse().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || while answer(&stream, address).is_some() {});
        }
    });
}

/// One question and its answer, each after its length.
fn answer(mut stream: &TcpStream, address: Ipv4Addr) -> Option<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question).ok()?;
    // The name ends with an empty label; type and class follow.
    let asked = question.get(12..)?;
    let asked = asked.get(..asked.iter().position(|byte| *byte == 0)? + 5)?;
    let is_a = asked.ends_with(&[0, 1, 0, 1]);
    let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], asked].concat();
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    let length = u16::try_from(answer.len()).ok()?.to_be_bytes();
    stream.write_all(&[&length[..], &answer].concat()).ok()
}

/// One answer over TLS, and the leaf that the server showed.
pub fn https(to: (&str, u16), name: &str, path: &str, roots: &str) -> std::io::Result<(String, Facts)> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config), name.clone()).unwrap();
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = StreamOwned::new(session, stream);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", name.to_str())?;
    let mut text = Vec::new();
    // Not everybody says goodbye.
    match stream.read_to_end(&mut text) {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    let shown = stream.conn.peer_certificates().unwrap_or_default();
    Ok((String::from_utf8_lossy(&text).into_owned(), facts(&shown[0]).unwrap()))
}

struct Mesh {
    directory: tempfile::TempDir,
    at: Places,
    pebble: Option<Process>,
    control: Option<Process>,
    gateway: Option<Process>,
}

const GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: edge}
spec:
  selector: {istio: ingress}
  servers:
    - {port: {number: 80, protocol: HTTP, name: http}, hosts: ['*.example'], tls: {httpsRedirect: true}}
    - port: {number: 443, protocol: HTTPS, name: https}
      hosts: ['*.example']
      tls: {mode: SIMPLE, credentialName: shop-tls}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: edge}
spec:
  hosts: ['*.example']
  gateways: [g]
  http: [{directResponse: {status: 200, body: {string: the shop}}}]
---
";

impl Mesh {
    /// A mesh with a gateway, and an ACME server whose certificates live for so many seconds.
    fn start(at: Places, seconds: u64, hosts: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        name_server(at.names, at.gateway);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::IpAddress(at.pebble.parse::<IpAddr>().unwrap())];
        std::fs::write(file("pebble.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(file("pebble.key"), key.serialize_pem()).unwrap();
        let settings = json!({"pebble": {
            "listenAddress": format!("{}:14000", at.pebble),
            "managementListenAddress": format!("{}:15000", at.pebble),
            "certificate": file("pebble.pem"), "privateKey": file("pebble.key"),
            "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "domainBlocklist": ["blocked.example"], "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "the only one", "validityPeriod": seconds}},
        }});
        std::fs::write(file("pebble.json"), settings.to_string()).unwrap();
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(&file("state"), shape, std::time::SystemTime::now().into()).unwrap();
        std::fs::create_dir(file("config")).unwrap();
        std::fs::write(file("config/gateway.yaml"), GATEWAY.trim_start()).unwrap();
        let pebble = Some(pebble(directory.path(), at));
        let control = Some(control(directory.path(), at));
        let mesh = Self { directory, at, pebble, control, gateway: None };
        mesh.want("shop", "shop-tls", hosts);
        mesh.says(&["no gateway of this namespace", "the order waits", "shop-tls"]);
        mesh.with_gateway()
    }

    fn with_gateway(mut self) -> Self {
        let (directory, at) = (self.directory.path(), self.at);
        let file = |name: &str| directory.join(name);
        let token = weft()
            .args(["token", "create", "--namespace", "edge", "--service-account", "gw", "--state-dir"])
            .arg(file("state"))
            .output()
            .unwrap();
        std::fs::write(file("token"), token.stdout).unwrap();
        let mut gateway = weft_proxy();
        gateway.args(["--role", "gateway", "--xds-address", &format!("{}:15012", at.control)]);
        gateway.arg("--root-cert").arg(file("state/root-cert.pem")).arg("--token-file").arg(file("token"));
        gateway.args(["--namespace", "edge", "--service-account", "gw", "--label", "istio=ingress"]);
        gateway.args(["--ip", at.gateway, "--admin-address", &format!("{}:15000", at.gateway)]);
        gateway.args(["--interception-mode", "NONE", "--concurrency", "1"]);
        let mut gateway = Process::start("gateway", &mut gateway, directory);
        gateway.wait("serving at port 80", || plain(at, "/").is_ok_and(|(status, _)| status == 301));
        self.gateway = Some(gateway);
        self
    }

    /// Writes an AcmeCertificate.
    fn want(&self, name: &str, credential: &str, hosts: &str) {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AcmeCertificate\nmetadata: {{name: {name}, namespace: edge}}\nspec:\n  \
             credentialName: {credential}\n  hosts: [{hosts}]\n  directoryUrl: https://{}:14000/dir\n  \
             email: ops@shop.example\n  caFile: {}\n",
            self.at.pebble,
            self.directory.path().join("pebble.pem").display()
        );
        std::fs::write(self.directory.path().join(format!("config/{name}.yaml")), text).unwrap();
    }

    /// The root of Pebble's, another one each time that it starts.
    fn root(&self) -> String {
        let own = std::fs::read_to_string(self.directory.path().join("pebble.pem")).unwrap();
        let (answer, _) = https((self.at.pebble, 15000), self.at.pebble, "/roots/0", &own).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The leaf that the gateway shows to whoever trusts this root, after an answer of the shop's.
    fn shown(&self, root: &str, name: &str) -> Option<Facts> {
        let (answer, leaf) = https((self.at.gateway, 443), name, "/", root).ok()?;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("the shop"), "{answer}");
        Some(leaf)
    }

    /// The leaf that fulfils a condition, as soon as it is shown.
    fn leaf(&self, root: &str, name: &str, what: &str, wanted: impl Fn(&Facts) -> bool) -> Facts {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match self.shown(root, name) {
                Some(leaf) if wanted(&leaf) => return leaf,
                _ if Instant::now() > end => panic!("{what}: never:\n{}", self.log()),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn log(&self) -> String {
        self.control.as_ref().unwrap().log()
    }

    /// Waits until a line of the control plane's log has all of these words.
    fn says(&self, words: &[&str]) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.log().lines().any(|line| words.iter().all(|word| line.contains(word))) {
            assert!(Instant::now() < end, "it never says {words:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many orders ended so.
    fn orders(&self, result: &str) -> u64 {
        let to = format!("{}:15014", self.at.control).parse().unwrap();
        let (_, page) = get(to, "/metrics").unwrap();
        let name = format!("weft_acme_orders{{result=\"{result}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    }

    /// The gateway's routes answer no question of an ACME server's.
    fn answers_nobody(&self) {
        let to = format!("{}:15000", self.at.gateway).parse().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while get(to, "/config_dump").unwrap().1.contains("acme-challenge") {
            assert!(Instant::now() < end, "the route stays");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(plain(self.at, "/.well-known/acme-challenge/x").unwrap().0, 301);
    }
}

fn plain(at: Places, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(
        &SocketAddr::new(at.gateway.parse().unwrap(), 80),
        Duration::from_secs(2),
    )?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok((text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_default(), text))
}

fn pebble(directory: &Path, at: Places) -> Process {
    let mut command = Command::new(peer("WEFT_PEBBLE"));
    command
        .arg("-config")
        .arg(directory.join("pebble.json"))
        .args(["-dnsserver", &format!("{}:53", at.names)]);
    // It looks at once, and each time anew.
    command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
    let mut process = Process::start("pebble", &mut command, directory);
    let to: SocketAddr = format!("{}:14000", at.pebble).parse().unwrap();
    process.wait("ready", || TcpStream::connect(to).is_ok());
    process
}

fn control(directory: &Path, at: Places) -> Process {
    let mut command = weft();
    command.arg("control").arg("--config-dir").arg(directory.join("config"));
    command.arg("--state-dir").arg(directory.join("state")).args(["--address", at.control]);
    let mut process = Process::start("control", &mut command, directory);
    let to = format!("{}:8080", at.control).parse().unwrap();
    process.wait("ready", || get(to, "/ready").is_ok_and(|(status, _)| status == 200));
    process
}

#[test]
fn a_gateways_certificate_is_issued_served_renewed_and_kept_while_the_server_is_away() {
    let at = Places {
        pebble: "127.30.10.1",
        names: "127.30.10.2",
        control: "127.30.10.3",
        gateway: "127.30.10.4",
    };
    let mut mesh = Mesh::start(at, 45, "shop.example, www.example");
    let root = mesh.root();
    let first = mesh.leaf(&root, "shop.example", "the first", |_| true);
    let mut names = first.dns_sans.clone();
    names.sort();
    assert_eq!(names, ["shop.example", "www.example"]);
    assert!(mesh.shown(&root, "www.example").is_some());
    mesh.answers_nobody();

    // Renewed before its end, and there is never a moment without a good one.
    let began = Instant::now();
    let second = loop {
        let leaf = mesh.shown(&root, "shop.example").expect("a good one");
        if leaf.serial != first.serial {
            break leaf;
        }
        assert!(began.elapsed() < Duration::from_secs(45), "it is not renewed:\n{}", mesh.log());
        std::thread::sleep(Duration::from_millis(50));
    };
    let early = (first.not_after - time::OffsetDateTime::now_utc()).whole_seconds();
    assert!((5..=17).contains(&early), "renewed {early} s before its end, of 45");
    mesh.answers_nobody();

    // The server is away when it is due again: the last one stays, and it is tried again.
    mesh.pebble = None;
    let before = mesh.orders("failure");
    mesh.says(&["no certificate was issued", "failures=2", "shop-tls"]);
    assert!(mesh.orders("failure") >= before + 2);
    assert_eq!(mesh.shown(&root, "shop.example").expect("the last good one").serial, second.serial);
    // It comes back with another root, and has never heard of our account.
    mesh.pebble = Some(pebble(mesh.directory.path(), at));
    let other = mesh.root();
    assert!(mesh.shown(&other, "shop.example").is_none());
    mesh.leaf(&other, "shop.example", "one of the other root", |_| true);
    mesh.answers_nobody();

    let state = mesh.directory.path().join("state/acme");
    let files = std::fs::read_dir(&state).unwrap().map(Result::unwrap);
    let mut found: Vec<_> = files
        .map(|f| (f.file_name().into_string().unwrap(), f.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    found.sort();
    assert!(
        matches!(&found[..], [(account, 0o600), (certificate, 0o600)]
            if account.starts_with("account-") && certificate == "certificate-edge.shop-tls.json"),
        "{found:?}"
    );
}

#[test]
fn what_an_acme_server_refuses_is_told_and_harms_nothing_and_a_restart_orders_nothing() {
    let at = Places {
        pebble: "127.30.11.1",
        names: "127.30.11.2",
        control: "127.30.11.3",
        gateway: "127.30.11.4",
    };
    let mut mesh = Mesh::start(at, 86_400, "shop.example");
    let root = mesh.root();
    let first = mesh.leaf(&root, "shop.example", "the first", |_| true);

    // A host that the server does not take, and one that leads to nobody who would answer.
    mesh.want("blocked", "blocked-tls", "blocked.example");
    mesh.says(&["no certificate was issued", "blocked-tls", "rejectedIdentifier"]);
    mesh.want("elsewhere", "elsewhere-tls", "shop.elsewhere.test");
    mesh.says(&["no certificate was issued", "elsewhere-tls", "not convinced", "shop.elsewhere.test"]);
    mesh.answers_nobody();
    // What is wrong by itself is not taken at all.
    mesh.want("wild", "wild-tls", "'*.example'");
    mesh.says(&["wild.yaml", "is a wildcard"]);
    std::fs::remove_file(mesh.directory.path().join("config/wild.yaml")).unwrap();
    assert_eq!(mesh.shown(&root, "shop.example").unwrap().serial, first.serial);
    for name in ["blocked", "elsewhere"] {
        std::fs::remove_file(mesh.directory.path().join(format!("config/{name}.yaml"))).unwrap();
    }

    // Another host: another certificate, at once; the old one serves until it is there.
    mesh.want("shop", "shop-tls", "shop.example, www.example");
    let both = mesh.leaf(&root, "shop.example", "one for both", |leaf| leaf.dns_sans.len() == 2);
    assert!(mesh.shown(&root, "www.example").is_some());

    mesh.control = None;
    mesh.control = Some(control(mesh.directory.path(), at));
    let to = format!("{}:8080", at.control).parse().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !get(to, "/debug/syncz").unwrap().1.contains(at.gateway) {
        assert!(Instant::now() < end, "the gateway does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(mesh.shown(&root, "shop.example").unwrap().serial, both.serial);
    assert_eq!((mesh.orders("success"), mesh.orders("failure")), (0, 0));
    assert!(!mesh.log().contains("ordering a certificate"), "{}", mesh.log());
}
