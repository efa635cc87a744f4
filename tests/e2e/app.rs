//! The example service by itself: what it answers, passes on, records, and how it misbehaves when told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Running, eventually, free_address};

struct App {
    address: SocketAddr,
    _process: Running,
}

impl App {
    fn start(flags: &[&str]) -> Self {
        let address = free_address();
        let listen = address.to_string();
        let process = Running::weft(&[&["app", "--listen", &listen], flags].concat());
        eventually("the service listens", || TcpStream::connect(address).is_ok());
        Self { address, _process: process }
    }

    /// One request on a connection of its own, as raw bytes; status and body come back.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text[9..12].parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn get(&self, path: &str, headers: &str) -> (u16, Value) {
        let (status, body) = self.send("GET", path, headers, "");
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }
}

#[test]
fn it_says_who_it_is_and_who_called() {
    let app = App::start(&["--service", "order", "--workload", "order-1", "--app-version", "v2"]);
    let xfcc =
        "x-forwarded-client-cert: By=spiffe://d/a;Hash=aa;URI=spiffe://cluster.local/ns/n/sa/caller\r\n";
    let (status, says) = app.get("/any?x=1", xfcc);
    assert_eq!(status, 200);
    assert_eq!(
        (&says["service"], &says["workload"], &says["version"]),
        (&"order".into(), &"order-1".into(), &"v2".into())
    );
    assert_eq!(says["caller"]["spiffe"], "spiffe://cluster.local/ns/n/sa/caller");
    assert_eq!(says["request"]["path"], "/any?x=1");
    assert_eq!(says["address"], app.address.to_string());
    assert_eq!(app.get("/", "").1["caller"], Value::Null);
}

#[test]
fn it_calls_by_name_through_the_proxy_and_passes_on_what_belongs_to_the_request() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let app = App::start(&["--calls", "payment-service", "--http-proxy", &url]);
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"who\": \"pay\"}").unwrap();
        String::from_utf8(head).unwrap()
    });
    let headers =
        "x-request-id: r-1\r\ntraceparent: 00-1-2-01\r\nx-b3-traceid: b\r\ncanary: true\r\ncookie: mine\r\n";
    let (status, says) = app.get("/", headers);
    let seen = seen.join().unwrap();
    assert!(seen.starts_with("GET http://payment-service:8080/ HTTP/1.1\r\n"), "{seen}");
    for header in [
        "host: payment-service:8080",
        "x-request-id: r-1",
        "traceparent: 00-1-2-01",
        "x-b3-traceid: b",
        "canary: true",
    ] {
        assert!(seen.contains(&format!("\r\n{header}\r\n")), "{header} in {seen}");
    }
    assert!(!seen.contains("cookie"), "{seen}");
    assert_eq!((status, &says["calls"][0]["status"]), (200, &200.into()));
}

#[test]
fn a_call_that_fails_shows() {
    let nobody = format!("http://{}", free_address());
    let app = App::start(&["--calls", "payment-service:81", "--http-proxy", &nobody]);
    let (status, says) = app.get("/", "");
    assert_eq!(status, 502);
    assert_eq!(says["calls"][0]["service"], "payment-service:81");
    assert!(says["calls"][0]["error"].as_str().unwrap().contains("cannot connect"), "{says}");
}

#[test]
fn it_records_what_it_received() {
    let app = App::start(&[]);
    app.send("POST", "/a?b", "x-one: 1\r\nx-one: 2\r\n", "body");
    app.get("/c", "");
    let (_, recorded) = app.get("/__recorded", "");
    assert_eq!(recorded["total"], 2);
    let first = &recorded["requests"][0];
    assert_eq!((&first["method"], &first["path"]), (&"POST".into(), &"/a?b".into()));
    let headers = first["headers"].as_array().unwrap();
    let ones: Vec<_> = headers.iter().filter(|h| h[0] == "x-one").map(|h| &h[1]).collect();
    assert_eq!(ones, ["1", "2"]);
    assert_eq!(app.get("/__recorded?last=1", "").1["requests"][0]["path"], "/c");
    assert_eq!(app.send("DELETE", "/__recorded", "", "").0, 204);
    assert_eq!(app.get("/__recorded", "").1["total"], 0);
}

#[test]
fn it_is_slow_and_fails_when_told_to() {
    let app = App::start(&["--fail-status", "503"]);
    assert_eq!(app.get("/", "").0, 503);
    let put = app.send("PUT", "/__behaviour", "", r#"{"failStatus": 500, "failEvery": 2, "delayMs": 150}"#);
    assert_eq!(put.0, 200);
    let began = Instant::now();
    assert_eq!([app.get("/", "").0, app.get("/", "").0], [200, 500]);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let wrong = app.send("PUT", "/__behaviour", "", r#"{"slow": true}"#);
    assert!(wrong.0 == 400 && wrong.1.contains("delayMs"), "{wrong:?}");
    assert_eq!(app.send("DELETE", "/__behaviour", "", "").0, 200);
    assert_eq!([app.get("/", "").0, app.get("/", "").0], [200, 200]);
}

#[test]
fn it_streams_echoes_and_upgrades() {
    let app = App::start(&[]);
    let (status, body) = app.send("GET", "/stream?chunks=5&interval=1ms&size=32", "", "");
    assert_eq!(status, 200);
    // Chunked: five lines of 32 bytes (hex 20).
    assert_eq!(body.matches("20\r\n").count(), 5, "{body}");
    assert_eq!(app.send("POST", "/echo", "", "hello").1, "hello");
    let mut stream = TcpStream::connect(app.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    stream.write_all(b"ping").unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"ping");
}
