//! IPDenyLists in front of a gateway: from a file or a URL through the control plane to connections that are refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::control::Control;
use crate::support::edge::edge;
use crate::support::http::{backend, get};
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

const CONTROL: &str = "127.62.0.1";
const GATEWAY: &str = "127.62.0.2";

fn mesh(backend: SocketAddr, url: &str) -> String {
    let servers = "{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}, \
        {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}";
    let rules = "http: [{route: [{destination: {host: shop.com}}]}]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: shop.com}}]}]";
    let edge = edge("edge", "ingress", servers, "'*'", rules);
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: 'accessLogFile: /dev/stdout'}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: shop, namespace: edge}}
spec:
  hosts: [shop.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gateway, namespace: edge, annotations: {{weft.dev/role: gateway}}}}
spec: {{address: {GATEWAY}, labels: {{istio: ingress}}}}
---
{edge}apiVersion: weft.dev/v1alpha1
kind: IPDenyList
metadata: {{name: local, namespace: edge}}
spec:
  selector: {{matchLabels: {{istio: ingress}}}}
  source: {{file: lists/local.txt}}
  refreshInterval: 50ms
---
apiVersion: weft.dev/v1alpha1
kind: IPDenyList
metadata: {{name: feed, namespace: istio-system}}
spec:
  source: {{url: '{url}'}}
  refreshInterval: 50ms
---
apiVersion: weft.dev/v1alpha1
kind: IPDenyList
metadata: {{name: of-others, namespace: edge}}
spec:
  selector: {{matchLabels: {{istio: other}}}}
  source: {{file: lists/of-others.txt}}
",
        port = backend.port()
    )
}

/// A feed that says what it is told, or is down.
fn feed(list: Arc<Mutex<Option<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/drop.txt", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let (status, body) = match &*list.lock().unwrap() {
                Some(body) => ("200 OK", body.clone()),
                None => ("503 Service Unavailable", "be right back".to_owned()),
            };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

/// A gateway at `ip` that this control plane configures.
fn gateway_of(control: &str, ip: &str) -> Logged {
    Logged::proxy(control, ip, "edge", &["--role", "gateway"])
}

/// A connection from 127.62.1.FROM.
fn connect(from: u8, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 62, 1, from), 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// What is answered to a request on a connection; empty if that is closed.
fn ask(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    if stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.com\r\n\r\n").is_err() {
        return answer;
    }
    let mut piece = [0; 4096];
    while !answer.ends_with("shop") {
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => answer += &String::from_utf8_lossy(&piece[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock) => {
                panic!("neither answered nor closed")
            }
            _ => break,
        }
    }
    answer
}

fn serves(from: u8) -> bool {
    let answers =
        [8080, 9000].map(|port| ask(&mut connect(from, SocketAddr::new(GATEWAY.parse().unwrap(), port))));
    match answers.each_ref().map(|a| a.starts_with("HTTP/1.1 200") && a.ends_with("shop")) {
        [http, tcp] if http == tcp => {
            assert!(http || answers.iter().all(String::is_empty), "{answers:?}");
            http
        }
        // A change reaches one listener after the other.
        _ => {
            std::thread::sleep(Duration::from_millis(20));
            serves(from)
        }
    }
}

fn number(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

#[test]
fn addresses_on_a_list_are_refused_and_lists_change_without_a_restart() {
    let list = Arc::new(Mutex::new(Some("# a feed\n127.62.1.20/31 ; SBL1\n".to_owned())));
    let mesh = mesh(backend("shop"), &feed(list.clone()));
    let mut control = Control::start(CONTROL, &mesh);
    let path = control.config("lists/local.txt");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let write = |text: &str| {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    std::fs::write(control.config("lists/of-others.txt"), "127.62.1.0/24\n").unwrap();
    let proxy = gateway_of(CONTROL, GATEWAY);
    let admin = |path: &str| get(format!("{GATEWAY}:15000").parse().unwrap(), path).unwrap().1;
    eventually("the gateway serves", || TcpStream::connect(format!("{GATEWAY}:8080")).is_ok() && serves(1));
    // A list that is not there denies nobody, and says so; the others hold.
    control.process.says(&["ERROR", "lists/local.txt", "denies nobody"]);
    assert!(serves(1) && !serves(20) && !serves(21) && serves(22));
    write("127.62.1.1\n");
    eventually("a file holds once it is there", || !serves(1));
    assert!(serves(2) && !serves(1) && !serves(20));

    // Refusals are counted by list, and told with its name: in the proxy's log, and in the access log of TCP.
    let stats = admin("/stats");
    assert!(number(&stats, "deny_list.edge.local.rbac.denied") >= 2);
    assert!(number(&stats, "deny_list.istio-system.feed.rbac.denied") >= 2);
    assert!(!stats.contains("of-others"));
    proxy.says(&["a policy denies a connection", "127.62.1.20", "deny-list[istio-system/feed]"]);
    proxy.says(&["rbac_access_denied_matched_policy[deny-list[edge/local]]", "127.62.1.1:"]);

    // Who asks beforehand is told the same.
    let config = control.config("").to_string_lossy().into_owned();
    let asked = |from: &str| {
        let to = ["authz", "check", "--dir", &config, "--to", "edge/gateway", "--port", "8080"];
        let output = weft(&[&to[..], &["--from-ip", from, "--host", "shop.com", "GET", "/"]].concat());
        (output.status.code(), stdout(&output) + &stderr(&output))
    };
    for (from, list) in [("127.62.1.1", "edge/local"), ("127.62.1.21", "istio-system/feed")] {
        let (code, text) = asked(from);
        assert!(code == Some(1) && text.contains(&format!("deny-list[{list}]")), "{text}");
    }
    assert_eq!(asked("127.62.1.2").0, Some(0), "{}", asked("127.62.1.2").1);

    // Another file: who is on it goes, also from a connection that is open; who is not comes back.
    let mut open = connect(2, SocketAddr::new(GATEWAY.parse().unwrap(), 8080));
    assert!(ask(&mut open).ends_with("shop"));
    write("127.62.1.2 # new\n");
    eventually("the new list holds", || serves(1) && !serves(2));
    let ended = match open.read(&mut [0; 16]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(ended, "the open connection is closed");

    // A broken file changes nothing, and is told with the line.
    write("127.62.1.3\nnonsense\n");
    control.process.says(&["WARN", "lists/local.txt", "line 2", "nonsense", "the last good one stays"]);
    assert!(!serves(2) && serves(3));
    std::fs::remove_file(&path).unwrap();
    control.process.says(&["WARN", "lists/local.txt", "No such file", "the last good one stays"]);
    assert!(!serves(2));

    // A feed that is down changes nothing, not even for a control plane that is started meanwhile.
    *list.lock().unwrap() = None;
    control.process.says(&["WARN", "drop.txt", "503", "the last good one stays"]);
    assert!(!serves(20) && serves(22));
    write("127.62.1.2\n");
    control.restart();
    control.process.says(&["drop.txt", "state directory"]);
    eventually("the proxy is back", || control.page("/debug/syncz").contains(GATEWAY));
    assert!(!serves(20) && !serves(2) && serves(22));
    *list.lock().unwrap() = Some("127.62.1.22\n".to_owned());
    eventually("the feed is back", || serves(20) && !serves(22));
    let numbers = get(format!("{CONTROL}:15014").parse().unwrap(), "/metrics").unwrap().1;
    assert!(
        numbers.lines().any(|l| l.starts_with("weft_deny_list_entries{")
            && l.contains("local.txt")
            && l.ends_with(" 1"))
    );
    assert!(
        numbers
            .lines()
            .any(|l| l.starts_with("weft_deny_list_stale{") && l.contains("drop.txt") && l.ends_with(" 0"))
    );
}

/// What a list of 100,000 networks costs is printed; that it holds, and changes, is what must be.
#[test]
fn a_list_of_a_hundred_thousand_networks_holds() {
    let (control, gateway) = ("127.62.0.3", "127.62.0.4");
    let yaml = mesh(backend("shop"), "http://127.0.0.1:1/none").replace(GATEWAY, gateway);
    let control = Control::start(control, &yaml);
    let path = control.config("lists/local.txt");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let proxy = gateway_of(control.ip, gateway);
    let at = |port: u16| SocketAddr::new(gateway.parse().unwrap(), port);
    eventually("the gateway serves", || get(at(8080), "/").is_ok_and(|a| a.0 == 200));
    let timed = || {
        let began = Instant::now();
        for _ in 0..200 {
            assert_eq!(get(at(8080), "/").unwrap(), (200, "shop".to_owned()));
        }
        began.elapsed() / 200
    };
    let (time_before, memory_before) = (timed(), proxy.resident());
    // Every other one of length 24, so that none can be joined; and two of those that connect here.
    let mut text: String =
        (0..100_000_u32).map(|n| format!("{}/24\n", Ipv4Addr::from_bits((11 << 24) + n * 512))).collect();
    text += "127.62.1.1\n127.62.1.3\n";
    let began = Instant::now();
    std::fs::write(path.with_extension("new"), text).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    let denied = |from: u8| ask(&mut connect(from, at(8080))).is_empty();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !denied(1) {
        assert!(Instant::now() < deadline, "the list holds within a minute");
    }
    let held = began.elapsed();
    assert!(!denied(2) && denied(3));
    let time_after = timed();
    println!(
        "held after {held:?}; a connection with a request: {time_before:?} before, {time_after:?} with it; the proxy: {} MiB before, {} MiB with it",
        memory_before / 1024,
        proxy.resident() / 1024
    );
}
