//! Connections and streams that began under a policy, and what becomes of them under the next one.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::world::{all, cluster};

/// Gives back what comes; a request for an upgrade gets its answer first.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
                let mut buffer = [0; 4096];
                while let Ok(n) = reader.read(&mut buffer)
                    && n > 0
                {
                    let bytes = &buffer[..n];
                    let answer: &[u8] = if bytes.starts_with(b"GET /") {
                        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                    } else {
                        bytes
                    };
                    if writer.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A policy that denies whoever comes from 127.48.0.DENIED.
fn rules(denied: u8) -> String {
    format!(
        "{{action: DENY, policies: {{no: {{permissions: [{{any: true}}], principals: [{{direct_remote_ip: {{address_prefix: 127.48.0.{denied}, prefix_len: 32}}}}]}}}}}}"
    )
}

fn tcp(ip: &str, denied: u8) -> String {
    format!(
        "
'@type': envoy.config.listener.v3.Listener
name: tcp
address: {{socket_address: {{address: {ip}, port_value: 8081}}}}
filter_chains:
- filters:
  - name: rbac
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x, rules: {}}}
  - name: tcp
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: echo}}
",
        rules(denied)
    )
}

fn http(ip: &str, denied: u8) -> String {
    format!(
        "
'@type': envoy.config.listener.v3.Listener
name: http
address: {{socket_address: {{address: {ip}, port_value: 8080}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      upgrade_configs: [{{upgrade_type: websocket}}]
      route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: echo}}}}]}}]}}
      http_filters:
      - name: rbac
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {}}}
      - name: router
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
",
        rules(denied)
    )
}

/// A connection from an address.
fn connect(from: u8, to: SocketAddr) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 48, 0, from), 0)).into()).unwrap();
    socket.connect(&to.into()).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Some(stream)
}

/// Says something and expects it back.
fn speaks(stream: &mut TcpStream, text: &str) -> bool {
    let mut back = vec![0; text.len()];
    stream.write_all(text.as_bytes()).is_ok()
        && stream.read_exact(&mut back).is_ok()
        && back == text.as_bytes()
}

/// Whether the connection is closed, and not merely silent.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(n) => n == 0,
        Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

fn open(stream: &mut TcpStream) -> bool {
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .unwrap();
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    head.starts_with(b"HTTP/1.1 101")
}

struct Running {
    server: Management,
    ip: &'static str,
    _proxy: Logged,
}

impl Running {
    fn start(ip: &'static str, more: &[&str]) -> Self {
        let server = Management::start();
        server.push(&all(&[cluster("echo", echo(), ""), tcp(ip, 9), http(ip, 9)]));
        let xds = server.address.to_string();
        let admin = format!("{ip}:15000");
        let own = ["proxy", "--xds-address", &xds, "--xds-plaintext", "--admin-address", &admin];
        let arguments: Vec<_> = own.iter().chain(more).map(|a| (*a).to_owned()).collect();
        let running = Self { server, ip, _proxy: Logged::weft(&arguments) };
        eventually("both listeners", || {
            connect(1, running.at(8080)).is_some() && connect(1, running.at(8081)).is_some()
        });
        running
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.ip.parse::<IpAddr>().unwrap(), port).into()
    }

    /// Denies another caller from now on.
    fn deny(&self, caller: u8) {
        let version = self.server.push(&all(&[tcp(self.ip, caller), http(self.ip, caller)]));
        let heard = || self.server.heard(ResourceType::Listener, version);
        eventually("an answer to the new policy", || heard().is_some());
        assert_eq!(heard(), Some(None), "the policy is refused");
    }
}

#[test]
fn what_a_new_policy_denies_is_closed_and_what_it_allows_goes_on() {
    let running = Running::start("127.48.1.1", &[]);
    let (mut kept, mut denied) =
        (connect(1, running.at(8081)).unwrap(), connect(2, running.at(8081)).unwrap());
    let (mut kept_ws, mut denied_ws) =
        (connect(1, running.at(8080)).unwrap(), connect(2, running.at(8080)).unwrap());
    assert!(open(&mut kept_ws) && open(&mut denied_ws));
    for (number, stream) in [&mut kept, &mut denied, &mut kept_ws, &mut denied_ws].into_iter().enumerate() {
        assert!(speaks(stream, "before"), "{number}");
    }
    running.deny(2);
    assert!(is_closed(&mut denied), "a connection that is denied now goes on");
    assert!(is_closed(&mut denied_ws), "a WebSocket that is denied now goes on");
    for (number, stream) in [&mut kept, &mut kept_ws].into_iter().enumerate() {
        assert!(speaks(stream, "after"), "{number}");
    }
    // The change after the next one finds them, too.
    running.deny(3);
    assert!(speaks(&mut kept, "again") && speaks(&mut kept_ws, "again"));
    running.deny(1);
    assert!(is_closed(&mut kept) && is_closed(&mut kept_ws));
}

#[test]
fn what_a_new_policy_denies_is_let_be_where_that_is_wanted() {
    let running = Running::start("127.48.2.1", &["--no-recheck"]);
    let (mut tcp, mut ws) = (connect(2, running.at(8081)).unwrap(), connect(2, running.at(8080)).unwrap());
    assert!(speaks(&mut tcp, "before") && open(&mut ws) && speaks(&mut ws, "before"));
    running.deny(2);
    eventually("the policy to hold for new connections", || {
        let mut new = connect(2, running.at(8081)).unwrap();
        !speaks(&mut new, "new")
    });
    assert!(speaks(&mut tcp, "after") && speaks(&mut ws, "after"));
}
