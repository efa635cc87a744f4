//! What only shows between hosts: redirected connections, addresses that are not the proxy's own, IPv6.
//!
//! Each test makes its hosts ([`hosts`]) and runs real Envoy and our proxy on the gateway, one after the other, with the same
//! configuration and the same clients. What the clients got, what the server saw and the counters asked for must be equal,
//! and be what the test expects.

pub(crate) mod capture;
mod captured;
pub(crate) mod databases;
pub(crate) mod dns;
mod first_bytes;
mod frozen;
pub(crate) mod hosts;
mod idle;
mod ingress;
mod kafka;
mod lifecycle;
mod modes;
mod mutual_gateway;
pub(crate) mod pods;
mod redirect;
mod source;
pub(crate) mod switch;
pub(crate) mod wire;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use self::hosts::{Net, Serving};
use crate::programs::{Process, get, peer, weft_proxy};

/// No connection may take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the proxies' admin interfaces are, on the gateway.
const ADMIN: u16 = 9901;

/// Runs both proxies; gives what `act` saw of each, which must be the same.
fn both(net: &Net, bootstrap: &Value, counters: &[&str], act: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut envoy = Command::new(peer("WEFT_ENVOY"));
    envoy.args(["--concurrency", "2", "--disable-hot-restart", "-l", "warning"]);
    let mut ours = weft_proxy();
    ours.args(["--concurrency", "2"]);
    let [envoy, ours] = [("envoy", envoy), ("weft", ours)].map(|(name, mut command)| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.json");
        std::fs::write(&path, serde_json::to_vec_pretty(bootstrap).unwrap()).unwrap();
        command.arg("-c").arg(path);
        let mut process = Process::start(name, &mut net.gateway.command(&command), directory.path());
        let admin = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ADMIN);
        let page = |path: &str| net.gateway.inside(|| get(admin, path));
        process.wait("ready", || page("/ready").is_ok_and(|(status, _)| status == 200));
        let mut seen = act();
        let end = Instant::now() + PATIENCE;
        let value = |stats: &str, name: &str| {
            let line = stats.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or("absent").to_owned()
        };
        loop {
            let (_, stats) = page("/stats").unwrap();
            let counted: Vec<_> = counters.iter().map(|c| format!("{c} {}", value(&stats, c))).collect();
            // A counter of a connection's end comes a little after what the client saw.
            if counted.iter().all(|c| !c.ends_with(" 0") && !c.ends_with(" absent")) || Instant::now() > end {
                seen.extend(counted);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::env::var_os("WEFT_SHOW").is_some() {
            println!("{name}: {seen:#?}\n{}", process.log());
        }
        (seen, process.log())
    });
    assert_eq!(envoy.0, ours.0, "Envoy (left) and Weft differ; Weft's log:\n{}", ours.1);
    ours.0
}

/// A bootstrap of these listeners and clusters.
fn bootstrap(listeners: Value, clusters: Value) -> Value {
    json!({
        "node": { "id": "netns", "cluster": "netns" },
        "admin": { "address": address(Ipv4Addr::LOCALHOST, ADMIN) },
        "static_resources": { "listeners": listeners, "clusters": clusters }
    })
}

fn address(ip: impl Into<IpAddr>, port: u16) -> Value {
    json!({ "socket_address": { "address": ip.into().to_string(), "port_value": port } })
}

fn listener_filter(name: &str, fields: Value) -> Value {
    let package: String = name.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
    let mut config = json!({ "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{package}") });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({ "name": format!("envoy.filters.listener.{name}"), "typed_config": config })
}

/// A filter chain that ends in the TCP proxy.
fn tcp(cluster: &str) -> Value {
    json!({ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster
    } }] })
}

/// A filter chain that ends in HTTP.
fn http(cluster: &str) -> Value {
    json!({ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config":
            { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }]
    } }] })
}

fn passthrough() -> Value {
    json!({ "name": "passthrough", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s" })
}

fn fixed(name: &str, to: SocketAddr) -> Value {
    json!({ "name": name, "type": "STATIC", "connect_timeout": "2s", "load_assignment": { "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to.ip(), to.port()) } }] }] } })
}

/// A server on the server's host: tells each connection, in an HTTP answer, who it is by the server's eyes and which port it
/// came to. It closes each after its answer.
struct Server {
    _serving: Serving,
}

impl Server {
    fn start(net: &Net, port: u16) -> Self {
        let answer = move |stream, peer| answer(stream, peer, port);
        Self { _serving: net.server.serve(Ipv6Addr::UNSPECIFIED, port, answer) }
    }
}

fn answer(mut stream: TcpStream, peer: SocketAddr, port: u16) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut request = Vec::new();
    let mut byte = [0];
    let request_begins = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"GET ");
    while !(request.ends_with(b"\r\n\r\n") && request_begins(&request).is_some())
        && stream.read(&mut byte).is_ok_and(|n| n == 1)
    {
        request.push(byte[0]);
    }
    // The PROXY protocol's header, where there is one, is for the answer: text as it is, bytes by their numbers.
    let header = &request[..request_begins(&request).unwrap_or_default()];
    let first = match header.strip_prefix(b"PROXY") {
        Some(_) => String::from_utf8_lossy(header).trim_end().to_owned(),
        None => header.iter().map(|b| format!("{b:02x} ")).collect(),
    };
    let body = format!("{} at {port}{first}", peer.ip().to_canonical());
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// Asks from one address of the client's host; gives the answer's body.
fn ask(net: &Net, from: IpAddr, to: SocketAddr) -> String {
    ask_after(net, from, to, "")
}

/// The same, with something before the request.
fn ask_after(net: &Net, from: IpAddr, to: SocketAddr, before: &str) -> String {
    ask_after_bytes(net, from, to, before.as_bytes())
}

/// The same, with bytes.
fn ask_after_bytes(net: &Net, from: IpAddr, to: SocketAddr, before: &[u8]) -> String {
    let seen = net.client.inside(|| -> std::io::Result<String> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let mut stream = TcpStream::from(socket);
        let port = stream.local_addr()?.port();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(before)?;
        write!(stream, "GET / HTTP/1.1\r\nhost: somewhere\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        // Whatever names this connection's port names it in the same words each time.
        let text = text.replace(&format!(" {port} "), " PORT ");
        Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(text))
    });
    // One that is ended before everything was said and read may be reset.
    seen.unwrap_or_else(|e| match e.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => String::new(),
        kind => format!("error: {kind:?}"),
    })
}
