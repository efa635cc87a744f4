//! Pods whose applications know nothing of the mesh: the kernel redirects what they dial and what is dialled to them, and our
//! control plane and proxies make it the mesh's.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use super::PATIENCE;
use super::capture::Capture;
use super::hosts::{CLIENT, Host, Net, SERVER};
use crate::programs::{Process, get, peer, weft};

/// The control plane's address, and that of a server outside of the mesh.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The user that proxies run as, whose connections are not captured.
const PROXY: u32 = 1337;
const USERS: &str = "10.96.0.10";
const DATABASE: &str = "10.96.0.11";
const ANYTHING: &str = "10.96.0.12";
const WEB: &str = "10.96.0.13";

/// What applications answer, which may not be read on the way.
const MARKER: &str = "not for strangers";

fn mesh(more: &str) -> String {
    let service = |name: &str, ip: &str, app: &str, ports: &str| {
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{ports}]}}
---"
        )
    };
    let workload = |name: &str, ip: IpAddr| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: {ip}, labels: {{app: {name}}}, serviceAccount: {name}}}
---"
        )
    };
    [
        service("users", USERS, "server", "{name: http, port: 80, targetPort: 8080}"),
        service("database", DATABASE, "server", "{name: tcp-db, port: 5432}"),
        service("anything", ANYTHING, "server", "{name: x, port: 7000}"),
        service("members", "None", "server", "{name: tcp, port: 6000}"),
        service("web", WEB, "web", "{name: http, port: 80, targetPort: 8080}"),
        workload("server", SERVER),
        workload("web", CLIENT),
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
"
        .to_owned(),
        more.to_owned(),
    ]
    .concat()
}

/// The kernel's rules, as Istio's are.
const RULES: &str = "table inet weft {
chain pre {
type nat hook prerouting priority dstnat
meta l4proto tcp redirect to :15006
}
chain out {
type nat hook output priority -100
oifname lo ip saddr 127.0.0.6 return
oifname lo meta skuid 1337 ip daddr != 127.0.0.1 meta l4proto tcp redirect to :15006
oifname lo meta skuid != 1337 return
meta skuid 1337 return
ip daddr 127.0.0.1 return
meta l4proto tcp redirect to :15001
}
}";

/// A server in a pod, or outside: says who connected.
struct Server(Arc<AtomicBool>);

#[derive(Clone, Copy)]
enum Says {
    /// Answers a request.
    Http,
    /// Speaks first, and then repeats what it is told.
    First,
}

impl Server {
    fn start(host: &Host, port: u16, says: Says) -> Self {
        let listener = host.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => drop(std::thread::spawn(move || serve(stream, peer, says))),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr, says: Says) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = format!("{MARKER}, {}", peer.ip());
    match says {
        Says::Http => {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
                head.push(byte[0]);
            }
            // Who called, as the sidecar tells it.
            let head = String::from_utf8_lossy(&head).into_owned();
            let caller =
                head.split(';').find_map(|part| part.split_once("URI=")).map_or("nobody", |(_, id)| id);
            let body = format!("{body}, {}", caller.split([',', '\r']).next().unwrap_or_default());
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Says::First => {
            stream.write_all(format!("{body}\n").as_bytes())?;
            let mut buffer = [0; 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        }
    }
}

/// Who is the sidecar.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Program {
    Weft,
    Envoy,
}

/// A mesh of two pods, and somebody outside who runs its control plane.
struct Pods {
    directory: tempfile::TempDir,
    processes: Vec<Process>,
}

impl Pods {
    /// With these sidecars of the client and of the server.
    fn new(net: &Net, more: &str, [web, server]: [Program; 2]) -> Self {
        let mut pods = Self { directory: tempfile::tempdir().unwrap(), processes: Vec::new() };
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(pods.directory.path(), everybody).unwrap();
        let [config, state] = ["config", "state"].map(|name| pods.file(name));
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(Path::new(&state), shape, std::time::SystemTime::now().into()).unwrap();
        std::fs::create_dir(&config).unwrap();
        std::fs::write(pods.file("config/mesh.yaml"), mesh(more)).unwrap();
        let address = OUTSIDE.to_string();
        let mut control = weft();
        control.args(["control", "--config-dir", &config, "--state-dir", &state, "--address", &address]);
        let mut process =
            Process::start("control", &mut net.gateway.command(&control), pods.directory.path());
        let ready = || net.gateway.inside(|| get(SocketAddr::new(OUTSIDE, 8080), "/ready"));
        process.wait("ready", || ready().is_ok_and(|a| a.0 == 200));
        pods.processes.push(process);
        pods.sidecar(net, "web", CLIENT, web);
        pods.sidecar(net, "server", SERVER, server);
        pods
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a program as the user whose connections are not captured.
    fn start(&mut self, host: &Host, name: &str, program: &Command) {
        let mut run = Command::new("setpriv");
        run.args([&format!("--reuid={PROXY}"), &format!("--regid={PROXY}"), "--clear-groups"]);
        run.arg(program.get_program()).args(program.get_args());
        self.processes.push(Process::start(name, &mut host.command(&run), self.directory.path()));
    }

    fn sidecar(&mut self, net: &Net, name: &str, ip: IpAddr, program: Program) {
        let lifetime = Duration::from_secs(600);
        let token = weft_control::ca::token::create(Path::new(&self.file("state")), "shop", name, lifetime);
        let own = self.file(name);
        std::fs::create_dir(&own).unwrap();
        let file = |what: &str| format!("{own}/{what}");
        std::fs::write(file("token"), token.unwrap()).unwrap();
        std::fs::copy(self.file("state/root-cert.pem"), file("root")).unwrap();
        for path in [own.clone(), file("token"), file("root")] {
            std::os::unix::fs::chown(path, Some(PROXY), Some(PROXY)).unwrap();
        }
        let host = if ip == CLIENT { &net.client } else { &net.server };
        host.nft(RULES);
        let identity = [
            "--xds-address",
            &SocketAddr::new(OUTSIDE, 15012).to_string(),
            "--root-cert",
            &file("root"),
            "--token-file",
            &file("token"),
            "--namespace",
            "shop",
            "--service-account",
            name,
            "--name",
            name,
            "--label",
            &format!("app={name}"),
            "--ip",
            &ip.to_string(),
        ]
        .map(str::to_owned);
        match program {
            Program::Weft => {
                let mut proxy = weft();
                proxy.arg("proxy").args(&identity).args(["--concurrency", "1"]);
                self.start(host, name, &proxy);
            }
            Program::Envoy => {
                let (bootstrap, sds, xds) = (file("bootstrap.json"), file("sds"), file("xds"));
                let mut agent = weft();
                agent.arg("agent").args(&identity);
                agent.args(["--sds-socket", &sds, "--xds-socket", &xds, "--bootstrap", &bootstrap]);
                self.start(host, &format!("{name}-agent"), &agent);
                self.processes.last_mut().unwrap().wait("serving", || Path::new(&bootstrap).exists());
                let mut envoy = Command::new(peer("WEFT_ENVOY"));
                envoy.args([
                    "--disable-hot-restart",
                    "-l",
                    "warning",
                    "--concurrency",
                    "1",
                    "-c",
                    &bootstrap,
                ]);
                self.start(host, name, &envoy);
            }
        }
        let ready = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
        let process = self.processes.last_mut().unwrap();
        process.wait("ready", || host.inside(|| get(ready, "/healthz/ready")).is_ok_and(|a| a.0 == 200));
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log).collect::<Vec<_>>().join("\n----\n")
    }

    /// What a pod's application gets that asks a host at an address.
    fn ask(&self, from: &Host, to: (&str, u16), host: &str) -> String {
        let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
        let answer = from.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
            let mut text = Vec::new();
            stream.read_to_end(&mut text)?;
            let text = String::from_utf8_lossy(&text).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or(("", &text));
            Ok(format!("{} {body}", head.split(' ').nth(1).unwrap_or_default()))
        });
        answer.unwrap_or_else(|e| format!("{:?}", e.kind()))
    }

    /// What a server that speaks first says to a pod's application, and how long it took.
    fn greeting(&self, from: &Host, to: (&str, u16)) -> (String, Duration) {
        let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
        let began = Instant::now();
        let answer = from.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = vec![0; 256];
            let n = stream.read(&mut text)?;
            text.truncate(n);
            // And back again.
            stream.write_all(b"ping")?;
            let mut pong = [0; 4];
            stream.read_exact(&mut pong)?;
            assert_eq!(&pong, b"ping");
            Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
        });
        (answer.unwrap_or_else(|e| format!("{:?}", e.kind())), began.elapsed())
    }
}

#[test]
fn applications_that_know_nothing_of_the_mesh_get_mutual_tls() {
    get_mutual_tls([Program::Weft, Program::Weft]);
}

#[test]
fn an_envoy_is_captured_as_well_before_the_client() {
    get_mutual_tls([Program::Envoy, Program::Weft]);
}

#[test]
fn an_envoy_is_captured_as_well_before_the_server() {
    get_mutual_tls([Program::Weft, Program::Envoy]);
}

fn get_mutual_tls(sidecars: [Program; 2]) {
    let net = Net::new();
    let pods = Pods::new(&net, "", sidecars);
    let (web, server, outside) = (&net.client, &net.server, &net.gateway);
    let _servers = [
        Server::start(server, 8080, Says::Http),
        Server::start(server, 7000, Says::Http),
        Server::start(server, 5432, Says::First),
        Server::start(server, 6000, Says::First),
        Server::start(server, 9100, Says::Http),
        Server::start(web, 8080, Says::Http),
        Server::start(outside, 9999, Says::Http),
        Server::start(outside, 2525, Says::First),
    ];
    let capture = Capture::start(outside);
    let caller = format!("{MARKER}, 127.0.0.6, spiffe://cluster.local/ns/shop/sa/web");
    let ok = |text: &str| format!("200 {text}");
    let mut wrong = Vec::new();
    let mut check = |what: &str, got: String, wanted: String| {
        if got != wanted {
            wrong.push(format!("{what}: {got:?}, not {wanted:?}"));
        }
    };
    // By name, whichever address it was dialled at; and to what is found out to be HTTP.
    check("users", pods.ask(web, (USERS, 80), "users"), ok(&caller));
    check("users, full name", pods.ask(web, (USERS, 80), "users.shop.svc.cluster.local"), ok(&caller));
    // An Envoy without Istio's filters does not tell the other side that it is HTTP, which is a matter of bytes then.
    let plain_envoy = sidecars[0] == Program::Envoy;
    let as_bytes = format!("{MARKER}, 127.0.0.6, nobody");
    let anything = if plain_envoy { &as_bytes } else { &caller };
    check("anything", pods.ask(web, (ANYTHING, 7000), "anything:7000"), ok(anything));
    // Its own service, by way of the sidecar and back.
    check("itself", pods.ask(web, (WEB, 80), "web"), ok(&caller));
    // Servers that speak first, with no delay; a member of a headless service.
    let greeting = format!("{MARKER}, 127.0.0.6");
    for (what, to) in [("database", (DATABASE, 5432)), ("member", ("10.78.0.3", 6000))] {
        let (said, took) = pods.greeting(web, to);
        check(what, said, greeting.clone());
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", pods.logs());
    let wire = capture.bytes();
    assert!(!wire.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()), "{MARKER:?} is on the wire");
    assert!(wire.windows(3).any(|w| w == [0x16, 0x03, 0x01]), "nothing was captured");

    // What the mesh does not know is reached as it was dialled.
    let mut check = |what: &str, got: String, wanted: String| {
        if got != wanted {
            wrong.push(format!("{what}: {got:?}, not {wanted:?}"));
        }
    };
    let out = OUTSIDE.to_string();
    let plain = format!("200 {MARKER}, 10.77.0.1, nobody");
    check("outside", pods.ask(web, (&out, 9999), "what.ever"), plain);
    check("outside, first", pods.greeting(web, (&out, 2525)).0, format!("{MARKER}, 10.77.0.1"));
    // Nobody gets in from outside: not by plain text, at ports of services or not.
    for port in [8080, 7000, 5432, 9100] {
        let seen = pods.ask(outside, ("10.78.0.3", port), "users");
        assert!(!seen.contains(MARKER), "{port}: {seen}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", pods.logs());
}

#[test]
fn what_the_mesh_does_not_know_is_refused_where_the_registry_is_all() {
    let net = Net::new();
    let pods = Pods::new(
        &net,
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: declared, namespace: shop}
spec:
  hosts: [declared.example]
  addresses: [10.77.0.2]
  resolution: NONE
  ports: [{number: 2525, name: tcp, protocol: TCP}]
",
        [Program::Weft, Program::Weft],
    );
    let (web, outside) = (&net.client, &net.gateway);
    let _servers = [
        Server::start(outside, 9999, Says::Http),
        Server::start(outside, 80, Says::Http),
        Server::start(outside, 2525, Says::First),
    ];
    let out = OUTSIDE.to_string();
    // At a port at which the mesh speaks HTTP, and at one where it does not.
    assert_eq!(pods.ask(web, (&out, 80), "what.ever"), "502 ", "{}", pods.logs());
    let seen = pods.ask(web, (&out, 9999), "what.ever");
    assert!(!seen.contains(MARKER), "{seen}\n{}", pods.logs());
    assert_eq!(pods.greeting(web, (&out, 2525)).0, format!("{MARKER}, 10.77.0.1"), "{}", pods.logs());
}
