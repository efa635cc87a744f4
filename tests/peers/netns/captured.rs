//! Pods whose applications know nothing of the mesh: the kernel redirects what they dial and what is dialled to them, and our
//! control plane and proxies make it the mesh's.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::hosts::{CLIENT, CLIENT6, Host, Net, SERVER, SERVER6, Serving};
use super::pods::{MESH, OUTSIDE, Pods, Program, service};
use super::wire::Capture;

const USERS: &str = "10.96.0.10";
const DATABASE: &str = "10.96.0.11";
const ANYTHING: &str = "10.96.0.12";
const WEB: &str = "10.96.0.13";

/// What applications answer, which may not be read on the way.
pub const MARKER: &str = "not for strangers";

fn mesh(more: &str) -> String {
    [
        service("users", USERS, "server", "{name: http, port: 80, targetPort: 8080}"),
        service("database", DATABASE, "server", "{name: tcp-db, port: 5432}"),
        service("anything", ANYTHING, "server", "{name: x, port: 7000}"),
        service("members", "None", "server", "{name: tcp, port: 6000}"),
        service("web", WEB, "web", "{name: http, port: 80, targetPort: 8080}"),
        MESH.to_owned(),
        more.to_owned(),
    ]
    .concat()
}

/// How a server speaks.
#[derive(Clone, Copy)]
pub enum Says {
    /// Answers a request.
    Http,
    /// Speaks first, and then repeats what it is told.
    First,
}

/// A server in a pod, or outside, at a port of every address: says who connected.
pub fn start(host: &Host, port: u16, says: Says) -> Serving {
    host.serve(Ipv6Addr::UNSPECIFIED, port, move |stream, peer| serve(stream, peer, says))
}

fn serve(mut stream: TcpStream, peer: SocketAddr, says: Says) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = format!("{MARKER}, {}", peer.ip().to_canonical());
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

impl Pods {
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
    let pods = Pods::new(&net, &mesh(""), sidecars);
    let (web, server, outside) = (&net.client, &net.server, &net.gateway);
    let _servers = [
        start(server, 8080, Says::Http),
        start(server, 7000, Says::Http),
        start(server, 5432, Says::First),
        start(server, 6000, Says::First),
        start(server, 9100, Says::Http),
        start(web, 8080, Says::Http),
        start(outside, 9999, Says::Http),
        start(outside, 2525, Says::First),
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
fn a_transparent_sidecar_shows_its_application_who_called() {
    let net = Net::new();
    let pods = Pods::with(&net, &mesh(""), [Program::Weft; 2], [CLIENT, SERVER], "TPROXY");
    let _servers = [
        start(&net.server, 8080, Says::Http),
        start(&net.server, 5432, Says::First),
        start(&net.client, 8080, Says::Http),
    ];
    let web = &net.client;
    let seen = pods.ask(web, (USERS, 80), "users");
    assert_eq!(
        seen,
        format!("200 {MARKER}, 10.77.0.1, spiffe://cluster.local/ns/shop/sa/web"),
        "{}",
        pods.logs()
    );
    assert_eq!(pods.greeting(web, (DATABASE, 5432)).0, format!("{MARKER}, 10.77.0.1"), "{}", pods.logs());
    let seen = pods.ask(&net.gateway, ("10.78.0.3", 8080), "users");
    assert!(!seen.contains(MARKER), "{seen}");
}

#[test]
fn pods_of_ipv6_are_captured_as_well() {
    let net = Net::new();
    let text = mesh("")
        .replace("10.78.0.3", "'fd78::3'")
        .replace("10.77.0.1", "'fd77::1'")
        .replace(USERS, "'fd96::10'")
        .replace(DATABASE, "'fd96::11'")
        .replace(ANYTHING, "'fd96::12'")
        .replace(WEB, "'fd96::13'");
    let pods = Pods::with(&net, &text, [Program::Weft; 2], [CLIENT6, SERVER6], "REDIRECT");
    let capture = Capture::start(&net.gateway);
    let _servers = [
        start(&net.server, 8080, Says::Http),
        start(&net.server, 5432, Says::First),
        start(&net.server, 6000, Says::First),
        start(&net.client, 8080, Says::Http),
    ];
    let web = &net.client;
    let caller = format!("200 {MARKER}, ::6, spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(pods.ask(web, ("fd96::10", 80), "users"), caller, "{}", pods.logs());
    assert_eq!(pods.ask(web, ("fd96::13", 80), "web"), caller, "itself\n{}", pods.logs());
    for to in [("fd96::11", 5432), ("fd78::3", 6000)] {
        assert_eq!(pods.greeting(web, to).0, format!("{MARKER}, ::6"), "{to:?}\n{}", pods.logs());
    }
    let seen = pods.ask(&net.gateway, ("fd78::3", 8080), "users");
    assert!(!seen.contains(MARKER), "{seen}");
    let wire = capture.bytes();
    assert!(!wire.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()), "{MARKER:?} is on the wire");
}

#[test]
fn what_the_mesh_does_not_know_is_refused_where_the_registry_is_all() {
    let net = Net::new();
    let pods = Pods::new(
        &net,
        &mesh(
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
        ),
        [Program::Weft, Program::Weft],
    );
    let (web, outside) = (&net.client, &net.gateway);
    let _servers =
        [start(outside, 9999, Says::Http), start(outside, 80, Says::Http), start(outside, 2525, Says::First)];
    let out = OUTSIDE.to_string();
    // At a port at which the mesh speaks HTTP, and at one where it does not.
    assert_eq!(pods.ask(web, (&out, 80), "what.ever"), "502 ", "{}", pods.logs());
    let seen = pods.ask(web, (&out, 9999), "what.ever");
    assert!(!seen.contains(MARKER), "{seen}\n{}", pods.logs());
    assert_eq!(pods.greeting(web, (&out, 2525)).0, format!("{MARKER}, 10.77.0.1"), "{}", pods.logs());
}
