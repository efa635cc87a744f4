//! With less than a proxy would like to have (processors, memory, descriptors): it does what it can, refuses the rest in time, and goes
//! on when there is more again.

mod cgroup;
mod mesh;
mod storage;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use cgroup::Cgroup;

use crate::programs::{Process, get, until, weft_proxy};

/// A server that takes requests and answers only those for `/`.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    at
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 65536]);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        // What is held is never looked at again.
        if seen.starts_with(b"POST") {
            continue;
        }
        seen.extend_from_slice(&buffer[..count]);
        if seen.starts_with(b"GET") && seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        }
    }
}

/// A proxy by itself: at port 8080 of its address, before a server, with a log of requests on its output. It keeps bodies for
/// another try.
fn bootstrap(ip: &str, server: SocketAddr) -> Value {
    let address = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    json!({
        "node": {"id": "scarce", "cluster": "scarce"},
        "admin": {"address": address(ip, 15000)},
        "static_resources": {
            "clusters": [{
                "name": "up", "type": "STATIC", "connect_timeout": "5s",
                "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address("127.0.0.1", server.port())}}]}]},
            }],
            "listeners": [{
                "name": "http",
                "address": address(ip, 8080),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "scarce",
                        "access_log": [{"name": "log", "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"}}],
                        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                            {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s",
                                "retry_policy": {"retry_on": "5xx", "num_retries": 1}}}]}]},
                        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                    },
                }]}],
            }],
        },
    })
}

/// A proxy that was started by a command in front of it.
struct Proxy {
    process: Process,
    at: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Proxy {
    fn start(ip: &str, wrap: impl Fn(&Command) -> Command, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap(ip, server()).to_string()).unwrap();
        let mut command = weft_proxy();
        command.arg("-c").arg(&file).args(more);
        let process = Process::start("proxy", &mut wrap(&command), directory.path());
        let mut proxy = Self { process, at: format!("{ip}:8080").parse().unwrap(), _directory: directory };
        let at = proxy.at;
        proxy.process.wait("serves", || get(at, "/").is_ok_and(|a| a.0 == 200));
        proxy
    }

    fn stat(&self, name: &str) -> u64 {
        let admin = SocketAddr::new(self.at.ip(), 15000);
        let page = get(admin, &format!("/stats?filter={name}")).unwrap().1;
        page.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum()
    }

    fn workers(&self) -> usize {
        self.stat("server.concurrency") as usize
    }

    /// A connection on which a request was sent: its status, once there is one.
    fn send(&self, request: &[u8]) -> std::io::Result<Option<u16>> {
        let mut stream = TcpStream::connect(self.at)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(request)?;
        status(&mut stream)
    }
}

fn status(stream: &mut TcpStream) -> std::io::Result<Option<u16>> {
    let mut head = [0; 12];
    match stream.read_exact(&mut head) {
        Ok(()) => Ok(std::str::from_utf8(&head[9..]).ok().and_then(|s| s.parse().ok())),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// The status of an answer.
fn ask(at: SocketAddr, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    status(&mut stream).ok()?
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[test]
fn there_are_as_many_workers_as_the_cgroup_has_processors() {
    let all = Proxy::start("127.37.1.1", cgroup::copied, &[]);
    assert_eq!(all.workers(), std::thread::available_parallelism().unwrap().get());
    drop(all);
    // As a limit of 500m, and of two processors.
    let half = Cgroup::processors(0.5);
    assert_eq!(Proxy::start("127.37.1.1", |c| half.command(c), &[]).workers(), 1);
    let said = Proxy::start("127.37.1.1", |c| half.command(c), &["--concurrency", "2"]);
    assert_eq!(said.workers(), 2, "what was said counts");
}

#[test]
fn with_a_twentieth_of_a_processor_everybody_is_answered_late_and_nobody_never() {
    let little = Cgroup::processors(0.05);
    let proxy = Proxy::start("127.37.2.1", |c| little.command(c), &[]);
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..24).map(|_| scope.spawn(|| (0..3).map(|_| proxy.send(GET)).collect::<Vec<_>>())).collect();
        for client in clients {
            for answer in client.join().unwrap() {
                assert!(matches!(answer, Ok(Some(200 | 503))), "{answer:?}\n{}", proxy.process.log());
            }
        }
    });
    assert_eq!(proxy.send(GET).unwrap(), Some(200));
}

#[test]
fn without_descriptors_requests_are_refused_and_nothing_dies() {
    // Enough to start with, and for some.
    let limited = |command: &Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 96 && exec \"$@\"", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    let proxy = Proxy::start("127.37.3.1", limited, &["--concurrency", "1"]);
    // Connections that stay: each costs one, and a request on it another.
    let mut held: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(proxy.at).unwrap()).collect();
    until("it has none left", || proxy.process.log().contains("cannot accept connections"));
    // Requests that stay need a connection each: those for which there is no descriptor are refused at once.
    let mut refused = 0;
    for stream in held.iter_mut().take(20) {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(b"POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").unwrap();
        match status(stream).unwrap() {
            Some(503) => refused += 1,
            other => assert_eq!(other, None),
        }
    }
    assert!(refused > 0, "{}", proxy.process.log());
    assert!(proxy.process.log().matches("cannot accept connections").count() < 5, "it floods its log");
    drop(held);
    until("it serves again", || proxy.send(GET).is_ok_and(|status| status == Some(200)));
}

#[test]
fn with_its_memory_nearly_used_up_a_proxy_refuses_and_lives() {
    let memory = Cgroup::memory(96 << 20);
    let mut proxy = Proxy::start("127.37.4.1", |c| memory.command(c), &["--concurrency", "1"]);
    assert_eq!(proxy.stat("downstream_rq_overload_close"), 0);
    // Each of these is held with its body, for another try that may have to be made.
    let mut request = b"POST /hold HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n".to_vec();
    request.resize(request.len() + 900_000, b'x');
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..200 {
        let mut stream = TcpStream::connect(proxy.at).unwrap();
        // One that is refused may be closed while it is sent.
        let sent = stream.write_all(&request);
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        match status(&mut stream) {
            Ok(None) if sent.is_ok() => held.push(stream),
            Ok(Some(status)) => {
                assert_eq!(status, 503);
                refused += 1;
            }
            _ => refused += 1,
        }
        if refused > 20 {
            break;
        }
    }
    assert!(refused > 20 && held.len() > 10, "{refused} were refused, {} held", held.len());
    assert!(proxy.stat("downstream_rq_overload_close") > 0);
    for words in ["memory is nearly used up", " 503 OM "] {
        until("it is told", || proxy.process.log().contains(words));
    }
    // What was refused gives its memory back, so that it is just at the limit now.
    until("requests are refused", || {
        proxy.stat("stop_accepting_requests.active") == 1 && proxy.send(GET).unwrap() == Some(503)
    });
    // Connections that say nothing fill the rest; then none is taken any more.
    let mut idle = Vec::new();
    until("connections are refused", || {
        idle.extend((0..50).filter_map(|_| TcpStream::connect(proxy.at).ok()));
        assert!(idle.len() < 9000, "{} connections", idle.len());
        proxy.stat("downstream_cx_overload_reject") > 0
    });
    drop((held, idle));
    until("it serves again", || proxy.send(GET).is_ok_and(|status| status == Some(200)));
    assert!(memory.peak() <= 96 << 20 && memory.kills() == 0, "{} MiB", memory.peak() >> 20);
    assert!(!proxy.process.ended(Duration::ZERO), "it died");
}
