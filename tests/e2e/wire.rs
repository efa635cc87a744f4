//! What access logs tell of bytes on the wire, by what a client and a server counted themselves: a client of HTTP/2, two hops of HTTP/2
//! and a server of HTTP/1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::eventually;
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::world::{all, cluster};

const IP: &str = "127.0.79.1";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Some:  thing \r\ncontent-length: 5\r\n\r\nhello";

/// A server that keeps what came on each connection.
fn backend() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, came) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let keep = came.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                keep.lock().unwrap().extend_from_slice(&buffer[..n]);
                // A request of known length ends with what the client sends.
                if buffer[..n].ends_with(b"abcde") && stream.write_all(ANSWER.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (address, came)
}

fn listener(name: &str, port: u16, to: &str, log: &str) -> String {
    let numbers: Vec<_> = ["DOWNSTREAM", "UPSTREAM"]
        .iter()
        .flat_map(|side| ["WIRE", "HEADER"].map(|what| format!("{side}_{what}")))
        .flat_map(|what| ["SENT", "RECEIVED"].map(|way| format!("%{what}_BYTES_{way}%")))
        .collect();
    format!(
        "
'@type': envoy.config.listener.v3.Listener
name: {name}
address: {{socket_address: {{address: {IP}, port_value: {port}}}}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: {name}
      access_log:
      - name: file
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
          path: {log}
          log_format: {{text_format_source: {{inline_string: \"{name} {}\\n\"}}}}
      route_config:
        virtual_hosts:
        - {{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {to}}}}}]}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
",
        numbers.join(" ")
    )
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head, payload.to_vec()].concat()
}

/// Asks by frames of its own; what the stream took to us: all its frames, and those of fields.
fn ask(stream: &mut TcpStream, request: &[Vec<u8>]) -> (u64, u64) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    // In pieces that are no frames.
    for piece in request.concat().chunks(11) {
        stream.write_all(piece).unwrap();
    }
    let (mut whole, mut fields) = (0, 0);
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        if u32::from_be_bytes([head[5], head[6], head[7], head[8]]) == 1 {
            whole += u64::from(length) + 9;
            fields += if head[3] == 1 || head[3] == 9 { u64::from(length) + 9 } else { 0 };
            assert_ne!(head[3], 3, "the stream was reset");
            if head[3] <= 1 && head[4] & 1 != 0 {
                return (whole, fields);
            }
        }
    }
}

#[test]
fn a_log_tells_what_a_stream_took_as_client_and_server_saw_it() {
    let (server, directory) = (Management::start(), tempfile::tempdir().unwrap());
    let (address, came) = backend();
    let log = directory.path().join("access.log");
    let path = log.to_str().unwrap();
    let http2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}\n";
    let at = |port: u16| -> SocketAddr { format!("{IP}:{port}").parse().unwrap() };
    server.push(&all(&[
        cluster("again", at(8081), http2),
        cluster("backend", address, ""),
        listener("first", 8080, "again", path),
        listener("second", 8081, "backend", path),
    ]));
    let (xds, admin) = (server.address.to_string(), format!("{IP}:15000"));
    let _proxy = Logged::weft(&[
        "proxy",
        "--xds-address",
        &xds,
        "--xds-plaintext",
        "--concurrency",
        "1",
        "--ip",
        IP,
        "--admin-address",
        &admin,
    ]);
    eventually("listening", || [8080, 8081].iter().all(|port| TcpStream::connect(at(*port)).is_ok()));
    // POST http://shop/ with a length, padded, in two frames; and its body.
    let fields = [&[0x83, 0x86, 0x84, 0x41, 4][..], b"shop", &[0x0f, 0x0d, 1, b'5']].concat();
    let (start, rest) = fields.split_at(6);
    let request = [
        frame(1, 0x8, 1, &[&[3], start, &[0; 3]].concat()),
        frame(9, 0x4, 1, rest),
        frame(0, 0x9, 1, &[&[2][..], b"abcde", &[0; 2]].concat()),
    ];
    let mut client = TcpStream::connect(at(8080)).unwrap();
    let (sent, headers_sent) = ask(&mut client, &request);
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("both lines", || text().lines().count() == 2);
    let line = |name: &str| -> Vec<u64> {
        let text = text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().map(|n| n.parse().unwrap_or_else(|_| panic!("{text}"))).collect()
    };
    let (first, second) = (line("first"), line("second"));
    let received: usize = request.iter().map(Vec::len).sum();
    let headers: usize = request[..2].iter().map(Vec::len).sum();
    assert_eq!(first[..4], [sent, received as u64, headers_sent, headers as u64], "{}", text());
    // What goes upstream from one hop comes downstream at the other.
    assert_eq!(
        [first[4], first[5], first[6], first[7]],
        [second[1], second[0], second[3], second[2]],
        "{}",
        text()
    );
    assert!(first[4] > 9 + 5 + 9 && first[6] > 9, "{}", text());
    let came = came.lock().unwrap().clone();
    let end = came.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let first_line = came.iter().position(|b| *b == b'\n').unwrap() + 1;
    let fields = "X-Some".len() + "thing".len() + 3 + "content-length".len() + 1 + 3;
    let upstream = [came.len(), ANSWER.len(), end + 2 - first_line, fields].map(|n| n as u64);
    assert_eq!(second[4..], upstream, "{}", text());
}
