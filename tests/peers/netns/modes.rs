//! Every mode of a PeerAuthentication against every kind of client and of port, between hosts, as our control plane has our
//! proxy do it. Beside what the client gets, what goes over the wire is looked at.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::ServerName;
use weft::demo::check::observe::credentials::{Authority, Credentials};
use weft::demo::check::observe::tls::Anybody;
use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use super::PATIENCE;
use super::hosts::{Net, Serving};
use super::wire::Capture;
use crate::programs::{Process, get, weft};

/// The workload's address, on the gateway host.
const WORKLOAD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const MODES: [&str; 3] = ["STRICT", "PERMISSIVE", "DISABLE"];
/// Protocol of a port, as its name says; the last is found out from the first bytes.
const PORTS: [&str; 3] = ["HTTP", "TCP", ""];

/// The port for a mode and a protocol: the proxy's on the workload's address, the application's on the loopback.
fn port(mode: usize, protocol: usize) -> u16 {
    7000 + 10 * u16::try_from(mode).unwrap() + u16::try_from(protocol).unwrap()
}

/// What nobody but the application says.
fn secret(port: u16) -> String {
    format!("the secret of {port}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    PlainText,
    /// Mutual TLS as a sidecar of the mesh does it.
    Mesh,
    /// The same name, signed by somebody else.
    Foreign,
    /// TLS as a browser does it.
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The application's answer came.
    Answered,
    /// It did not, and the application heard nothing.
    Refused,
    /// The client's TLS came to the application as it was.
    PassedOn,
}

/// Istio's answer (PeerAuthentication, and which filter chains its modes make).
fn expected(mode: &str, protocol: &str, client: Client) -> Outcome {
    use Client::{Foreign, Mesh, PlainText, Tls};
    match (mode, client) {
        ("STRICT" | "PERMISSIVE", Mesh) => Outcome::Answered,
        ("STRICT", _) => Outcome::Refused,
        (_, PlainText) => Outcome::Answered,
        ("PERMISSIVE", Foreign) => Outcome::Refused,
        // What is not the mesh's own TLS is none of the sidecar's business, except where it is to read HTTP.
        (_, Tls | Mesh | Foreign) if protocol == "HTTP" => Outcome::Refused,
        _ => Outcome::PassedOn,
    }
}

fn mesh() -> String {
    let (mut ports, mut levels) = (String::new(), String::new());
    for (m, mode) in MODES.iter().enumerate() {
        for (p, protocol) in PORTS.iter().enumerate() {
            let port = port(m, p);
            let name = if protocol.is_empty() { "any" } else { &protocol.to_lowercase() };
            ports += &format!("    - {{name: {name}-{port}, port: {port}, targetPort: {port}}}\n");
            levels += &format!("    {port}: {{mode: {mode}}}\n");
        }
    }
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: one, namespace: shop}}
spec:
  selector: {{app: one}}
  ports:
{ports}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: one, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: one}}}}
  portLevelMtls:
{levels}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: one, namespace: shop}}
spec: {{address: {WORKLOAD}, labels: {{app: one}}}}
"
    )
}

/// The application: what came first on each port's connections.
struct Application {
    first: Arc<Mutex<HashMap<u16, Vec<u8>>>>,
    _serving: Vec<Serving>,
}

impl Application {
    fn start(net: &Net) -> Self {
        let first = Arc::default();
        let serving = |at: u16| {
            let first = Arc::clone(&first);
            net.gateway.serve(Ipv4Addr::LOCALHOST, at, move |stream, _| serve(stream, at, &first))
        };
        let _serving = (0..3).flat_map(|m| (0..3).map(move |p| port(m, p))).map(serving).collect();
        Self { first, _serving }
    }

    /// The first byte that came to a port since the last look.
    fn heard(&self, port: u16) -> Option<u8> {
        self.first.lock().unwrap().remove(&port).and_then(|bytes| bytes.first().copied())
    }
}

fn serve(mut stream: TcpStream, port: u16, first: &Mutex<HashMap<u16, Vec<u8>>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes)?;
    bytes.truncate(count);
    first.lock().unwrap().insert(port, bytes);
    let secret = secret(port);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{secret}", secret.len())
}

/// A client of one kind.
struct Caller {
    kind: Client,
    credentials: Option<Credentials>,
}

impl Caller {
    fn tls(&self, protocol: &str) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let (mut config, protocols) = match &self.credentials {
            Some(own) => {
                let own = rustls::sign::SingleCertAndKey::from(own.certified().unwrap());
                let protocols: &[&[u8]] = match protocol {
                    "TCP" => &[b"istio"],
                    _ => &[b"istio-http/1.1", b"istio", b"http/1.1"],
                };
                (config.with_client_cert_resolver(Arc::new(own)), protocols)
            }
            None => (config.with_no_client_auth(), &[b"http/1.1" as &[u8]] as &[&[u8]]),
        };
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        config
    }

    /// Asks, and gives all that came back.
    fn ask(&self, to: SocketAddr, protocol: &str) -> String {
        let mut text = Vec::new();
        let outcome = (|| -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let request = b"GET / HTTP/1.1\r\nhost: one.shop\r\nconnection: close\r\n\r\n";
            if self.kind == Client::PlainText {
                stream.write_all(request)?;
                return stream.read_to_end(&mut text).map(drop);
            }
            let name = ServerName::try_from("one.shop").unwrap();
            let mut session = rustls::ClientConnection::new(Arc::new(self.tls(protocol)), name)
                .map_err(std::io::Error::other)?;
            let mut stream = rustls::Stream::new(&mut session, &mut stream);
            stream.write_all(request)?;
            stream.read_to_end(&mut text).map(drop)
        })();
        if let Err(error) = outcome {
            assert!(
                !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "{:?} to {to} was left hanging",
                self.kind
            );
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn start(net: &Net, directory: &Path, name: &str, arguments: &[&str], ready: (u16, &str)) -> Process {
    let mut process = Process::start(name, &mut net.gateway.command(weft().args(arguments)), directory);
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ready.0);
    process.wait("ready", || net.gateway.inside(|| get(at, ready.1)).is_ok_and(|a| a.0 == 200));
    process
}

#[test]
fn every_mode_takes_the_clients_that_it_is_to_take_and_strict_ports_say_nothing_in_plain_text() {
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
    State::open(Path::new(&file("state")), shape, std::time::SystemTime::now().into()).unwrap();
    std::fs::create_dir(file("config")).unwrap();
    std::fs::write(file("config/mesh.yaml"), mesh()).unwrap();
    let token =
        weft_control::ca::token::create(Path::new(&file("state")), "shop", "one", Duration::from_secs(600));
    std::fs::write(file("token"), token.unwrap()).unwrap();

    let control =
        ["control", "--config-dir", &file("config"), "--state-dir", &file("state"), "--address", "127.0.0.1"];
    let _control = start(&net, directory.path(), "control", &control, (8080, "/ready"));
    let proxy = [
        "proxy",
        "--xds-address",
        "127.0.0.1:15012",
        "--root-cert",
        &file("state/root-cert.pem"),
        "--token-file",
        &file("token"),
        "--namespace",
        "shop",
        "--service-account",
        "one",
        "--name",
        "one",
        "--label",
        "app=one",
        "--ip",
        "10.77.0.2",
        "--admin-address",
        "127.0.0.1:15000",
        "--interception-mode",
        "NONE",
        "--concurrency",
        "1",
    ];
    let proxy = start(&net, directory.path(), "proxy", &proxy, (15000, "/ready"));
    let application = Application::start(&net);
    let capture = Capture::start(&net.client);

    let id = "spiffe://cluster.local/ns/shop/sa/two";
    let own = Authority::of_mesh(Path::new(&file("state"))).unwrap().issue(id).unwrap();
    let foreign = Authority::unknown().unwrap().issue(id).unwrap();
    let callers = [
        Caller { kind: Client::PlainText, credentials: None },
        Caller { kind: Client::Mesh, credentials: Some(own) },
        Caller { kind: Client::Foreign, credentials: Some(foreign) },
        Caller { kind: Client::Tls, credentials: None },
    ];
    let mut wrong = Vec::new();
    for (m, mode) in MODES.iter().enumerate() {
        for (p, protocol) in PORTS.iter().enumerate() {
            let port = port(m, p);
            for caller in &callers {
                let text = net.client.inside(|| caller.ask(SocketAddr::new(WORKLOAD, port), protocol));
                let seen = match (text.contains(&secret(port)), application.heard(port)) {
                    (true, _) => Outcome::Answered,
                    // The type of a TLS record: handshake.
                    (false, Some(0x16)) => Outcome::PassedOn,
                    (false, None) => Outcome::Refused,
                    (false, Some(other)) => {
                        panic!("{mode} {protocol} {:?}: heard {other:#x}, got {text}", caller.kind)
                    }
                };
                let expected = expected(mode, protocol, caller.kind);
                if seen != expected {
                    wrong.push(format!(
                        "{mode} {protocol:?} {:?}: {seen:?}, not {expected:?} ({text:?})",
                        caller.kind
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", proxy.log());

    let wire = capture.bytes();
    for (m, mode) in MODES.iter().enumerate() {
        for (p, protocol) in PORTS.iter().enumerate() {
            let secret = secret(port(m, p));
            let told = wire.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert_eq!(told, *mode != "STRICT", "{mode} {protocol:?}: whether {secret:?} is on the wire");
        }
    }

    // One port's mode is another; every other port's is what it was.
    let flipped = port(0, 1);
    let changed =
        mesh().replace(&format!("{flipped}: {{mode: STRICT}}"), &format!("{flipped}: {{mode: PERMISSIVE}}"));
    assert_ne!(changed, mesh());
    let plain = |at: u16| {
        let text = net.client.inside(|| callers[0].ask(SocketAddr::new(WORKLOAD, at), "HTTP"));
        application.heard(at);
        text.contains(&secret(at))
    };
    let before: Vec<bool> = (0..9).map(|n| plain(port(n / 3, n % 3))).collect();
    std::fs::write(file("config/mesh.yaml"), changed).unwrap();
    crate::programs::until("the port takes plain text", || plain(flipped));
    for (n, was) in before.into_iter().enumerate() {
        let at = port(n / 3, n % 3);
        assert_eq!(plain(at), was || at == flipped, "{at}");
    }
}
