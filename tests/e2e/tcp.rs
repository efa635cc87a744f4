//! Connections of bytes through a proxy: what is counted of them while they live, and what a slow reader costs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::world::{all, cluster};
use crate::support::{stderr, stdout, weft};

/// A proxy with one TCP listener at port 8080 of its address, and what it leads to.
struct World {
    ip: &'static str,
    proxy: Logged,
    upstream: TcpListener,
    _server: Management,
}

impl World {
    fn new(ip: &'static str, filters: &str) -> Self {
        Self::with(ip, filters, None, &["--tcp-metric-aliases"])
    }

    /// One that leads to this address, if it is named, with these flags.
    fn with(ip: &'static str, filters: &str, to: Option<SocketAddr>, flags: &[&str]) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = to.unwrap_or_else(|| upstream.local_addr().unwrap());
        let server = Management::start();
        let listener = format!(
            "
'@type': envoy.config.listener.v3.Listener
name: tcp
address: {{socket_address: {{address: {ip}, port_value: 8080}}}}
filter_chains:
- filters:
{filters}
  - name: tcp
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: bytes, cluster: up}}
"
        );
        server.push(&all(&[cluster("up", to, ""), listener]));
        let xds = server.address.to_string();
        let admin = format!("{ip}:15000");
        let usual = [
            "proxy",
            "--xds-address",
            &xds,
            "--xds-plaintext",
            "--admin-address",
            &admin,
            "--concurrency",
            "1",
        ];
        let proxy = Logged::weft(&[&usual[..], flags].concat());
        let world = Self { ip, proxy, upstream, _server: server };
        eventually("the listener", || {
            let refused = world._server.heard(ResourceType::Listener, 1).flatten();
            assert_eq!(refused, None);
            get(world.at(15000), "/listeners").is_ok_and(|a| a.1.contains("8080"))
        });
        world
    }

    fn at(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.ip).parse().unwrap()
    }

    /// A connection through the proxy: the client's end, and the server's.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.at(8080)).unwrap();
        let (server, _) = self.upstream.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        (client, server)
    }

    /// The sum of a metric's series, and how many there are.
    fn sum(&self, path: &str, metric: &str) -> (u64, usize) {
        let text = get(self.at(15000), path).unwrap().1;
        let lines = text.lines().filter_map(|line| line.strip_prefix(metric));
        let values = lines.filter_map(|line| line.rsplit([' ', '}']).next()?.parse::<f64>().ok());
        let values: Vec<_> = values.collect();
        (values.iter().sum::<f64>() as u64, values.len())
    }

    fn istio(&self, metric: &str) -> u64 {
        self.sum("/stats/prometheus", &format!("istio_tcp_{metric}_total{{")).0
    }
}

#[test]
fn the_bytes_of_a_living_connection_are_counted_every_few_seconds_and_each_of_them_once() {
    let world = World::new(
        "127.57.1.1",
        "  - name: istio.stats
    typed_config: {'@type': type.googleapis.com/stats.PluginConfig, tcp_reporting_duration: 0.3s}",
    );
    let (mut client, mut server) = world.connect();
    let mut exchange = |there: usize, back: usize| {
        client.write_all(&vec![b'q'; there]).unwrap();
        server.read_exact(&mut vec![0; there]).unwrap();
        server.write_all(&vec![b'a'; back]).unwrap();
        client.read_exact(&mut vec![0; back]).unwrap();
    };
    let counted = || (world.istio("received_bytes"), world.istio("sent_bytes"));
    exchange(1000, 70_001);
    eventually("its bytes, while it lives", || counted() == (1000, 70_001));
    assert_eq!((world.istio("connections_opened"), world.istio("connections_closed")), (1, 0));
    exchange(2, 0);
    eventually("more of them", || counted() == (1002, 70_001));
    let own = |name: &str| world.sum("/stats", &format!("tcp.bytes.{name}:")).0;
    assert_eq!((own("downstream_cx_rx_bytes_total"), own("downstream_cx_active")), (1002, 1));
    // What no report has seen is counted at the end, and nothing twice.
    exchange(300, 4);
    drop((client, server));
    eventually("its end", || world.istio("connections_closed") == 1);
    assert_eq!(counted(), (1302, 70_005));
    assert_eq!((own("downstream_cx_rx_bytes_total"), own("downstream_cx_tx_bytes_total")), (1302, 70_005));
    // However they end.
    for number in 0..6 {
        let (client, server) = world.connect();
        if number % 2 == 0 {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop((client, server));
    }
    eventually("all ends", || world.istio("connections_closed") == 7);
    assert_eq!(world.istio("connections_opened"), 7);
    // The other names, which a flag asks for.
    assert_eq!((world.istio("opened"), world.istio("closed")), (7, 7));
    assert_eq!(counted(), (1302, 70_005));
    // Another one's report: the first has no more to say.
    let (mut client, _server) = world.connect();
    client.write_all(b"x").unwrap();
    eventually("the next one's byte", || counted() == (1303, 70_005));
}

#[test]
fn of_two_servers_the_one_with_fewer_connections_gets_the_next() {
    let world = World::new("127.57.3.1", "");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = |at: SocketAddr| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            at.ip(),
            at.port()
        )
    };
    let (one, two) = (world.upstream.local_addr().unwrap(), other.local_addr().unwrap());
    // Of so many choices one is nearly always the better one.
    let more = "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 20}\n";
    let both = cluster("up", one, more).replace(&place(one), &format!("{}, {}", place(one), place(two)));
    let version = world._server.push(&both);
    eventually("both are known", || world._server.heard(ResourceType::Cluster, version).is_some());
    assert_eq!(world._server.heard(ResourceType::Cluster, version), Some(None));
    for listener in [&world.upstream, &other] {
        listener.set_nonblocking(true).unwrap();
    }
    let mut held = (Vec::new(), Vec::new());
    // Both ends of each connection.
    type Held = Vec<(TcpStream, TcpStream)>;
    let connect = |count: usize, held: &mut (Held, Held)| {
        for _ in 0..count {
            let client = TcpStream::connect(world.at(8080)).unwrap();
            let mut client = Some(client);
            eventually("one of them gets it", || {
                for (listener, held) in [(&world.upstream, &mut held.0), (&other, &mut held.1)] {
                    if let Ok((server, _)) = listener.accept() {
                        held.push((client.take().unwrap(), server));
                        return true;
                    }
                }
                false
            });
        }
    };
    connect(20, &mut held);
    assert!(held.0.len().abs_diff(held.1.len()) <= 4, "{} and {}", held.0.len(), held.1.len());
    // What one of them lost goes to it first.
    held.0.clear();
    let active = || world.sum("/stats", "tcp.bytes.downstream_cx_active:").0;
    eventually("their ends are counted", || active() == held.1.len() as u64);
    let before = held.1.len();
    connect(6, &mut held);
    assert!(held.0.len() >= 5, "{} of 6, and the other {}", held.0.len(), held.1.len() - before);
}

/// Keeps every connection that comes.
const KEEP_ALL: [&str; 2] = ["--request-sample", "1"];

/// What proxies have kept of connections, the newest first, once it is so many.
fn kept(worlds: &[&World], many: usize) -> Vec<Value> {
    let mut arguments = vec!["requests", "--kind", "connection", "--output", "json"];
    worlds.iter().for_each(|world| arguments.extend(["--proxy", world.ip]));
    let mut found = Vec::new();
    eventually("connections are kept", || {
        let page: Value = serde_json::from_str(&stdout(&weft(&arguments))).unwrap_or_default();
        found = page["requests"].as_array().cloned().unwrap_or_default();
        found.len() == many
    });
    found.into_iter().map(|one| one["request"].clone()).collect()
}

fn explained(worlds: &[&World], connection: &Value, more: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec!["explain", connection["id"].as_str().unwrap()];
    worlds.iter().for_each(|world| arguments.extend(["--proxy", world.ip]));
    let output = weft(&[&arguments[..], more].concat());
    assert!(output.status.code() != Some(2), "{}", stderr(&output));
    (output.status.code(), stdout(&output))
}

#[test]
fn what_became_of_a_connection_is_told_by_each_proxy_that_it_passed() {
    let server = World::with("127.57.5.2", "", None, &KEEP_ALL);
    let client = World::with("127.57.5.1", "", Some(server.at(8080)), &KEEP_ALL);
    let mut end = TcpStream::connect(client.at(8080)).unwrap();
    let (mut other, _) = server.upstream.accept().unwrap();
    end.write_all(b"what?").unwrap();
    other.read_exact(&mut [0; 5]).unwrap();
    other.write_all(b"that").unwrap();
    end.read_exact(&mut [0; 4]).unwrap();
    end.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
    drop((end, other));

    let both = [&client, &server];
    let first = kept(&[&client], 1).remove(0);
    kept(&[&server], 1);
    assert_eq!(
        (&first["class"], &first["endedBy"]),
        (&"good".into(), &"the client, in order".into()),
        "{first}"
    );
    assert_eq!((&first["bytesReceived"], &first["bytesSent"]), (&5.into(), &4.into()));
    assert_eq!((&first["cluster"], &first["listener"]), (&"up".into(), &"tcp".into()));
    let tried = &first["attempts"][0];
    assert_eq!(
        (&tried["outcome"], &tried["host"]),
        (&"connected".into(), &server.at(8080).to_string().into())
    );
    // From either end of it, both are found.
    let second = kept(&[&server], 1).remove(0);
    for connection in [&first, &second] {
        let (code, text) = explained(&both, connection, &["--output", "json"]);
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code, Some(0), "{told}");
        let hop = &told["hops"][0];
        assert_eq!((&hop["id"], &hop["hops"][0]["id"]), (&first["id"], &second["id"]), "{told}");
        assert_eq!(hop["upstreamLocal"], hop["hops"][0]["remote"], "{told}");
    }
    let (_, text) = explained(&both, &first, &[]);
    for part in [
        "connection tcp-",
        ": connection to 127.57.5.1:8080 for up: 5 bytes received, 4 sent in ",
        "try 1 at 127.57.5.2:8080: connected after ",
        "ended by the client, in order: connection ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Nobody takes it on.
    drop(server);
    assert_eq!(TcpStream::connect(client.at(8080)).unwrap().read(&mut [0; 1]).unwrap_or(0), 0);
    let failed = kept(&[&client], 2).remove(0);
    assert_eq!((&failed["class"], &failed["flags"]), (&"failed".into(), &"UF,URX".into()), "{failed}");
    assert_eq!(failed["attempts"][0]["outcome"], "not connected");
    assert_eq!(explained(&[&client], &failed, &[]).0, Some(1));
}

#[test]
fn a_connection_that_is_denied_is_told_with_its_policy_to_those_who_watch_as_well() {
    let world = World::with(
        "127.57.6.1",
        "  - name: rbac
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
      stat_prefix: r
      rules: {action: DENY, policies: {'ns[a]-policy[nobody]-rule[0]': {permissions: [{any: true}], principals: [{any: true}]}}}",
        None,
        &[],
    );
    let watching =
        std::thread::spawn(|| weft(&["tap", "--proxy", "127.57.6.1", "--max", "1", "--output", "json"]));
    let mut number = 0;
    while !watching.is_finished() {
        number += 1;
        assert!(number < 400, "nothing was seen");
        let mut client = TcpStream::connect(world.at(8080)).unwrap();
        let _ = client.write_all(b"x");
        let _ = client.read(&mut [0; 1]);
        std::thread::sleep(Duration::from_millis(25));
    }
    let output = watching.join().unwrap();
    let seen: Value = serde_json::from_str(stdout(&output).trim()).unwrap();
    let policy = "ns[a]-policy[nobody]-rule[0]";
    let decided = serde_json::json!([{"filter": "rbac", "verdict": "denied", "name": policy}]);
    let refused = kept(&[&world], number.min(20)).remove(0);
    for one in [&seen, &refused] {
        assert_eq!((&one["kind"], &one["class"]), (&"connection".into(), &"refused".into()), "{one}");
        assert_eq!(
            (&one["decisions"], &one["endedBy"]),
            (&decided, &"this proxy, by what was decided".into())
        );
        assert_eq!(one["termination"], format!("rbac_access_denied_matched_policy[{policy}]"));
    }
}

/// Writes into all of them until none takes anything more; how much each took.
fn fill(streams: &mut [TcpStream]) -> Vec<usize> {
    let piece = vec![b'x'; 256 * 1024];
    let mut taken = vec![0; streams.len()];
    let mut moved = Instant::now();
    // A proxy that is slower than this is taken for stopped, and less is asked of it.
    while moved.elapsed() < Duration::from_secs(1) {
        for (stream, taken) in streams.iter_mut().zip(&mut taken) {
            stream.set_nonblocking(true).unwrap();
            match stream.write(&piece) {
                Ok(n) => (*taken, moved) = (*taken + n, Instant::now()),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            assert!(*taken < 256 << 20, "nobody stops the writer");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    taken
}

#[test]
fn slow_readers_stop_their_writers_and_cost_the_proxy_next_to_no_memory() {
    const CONNECTIONS: usize = 48;
    let world = World::new("127.57.2.1", "");
    drop(world.connect());
    let before = world.proxy.resident();
    let (clients, servers): (Vec<_>, Vec<_>) = (0..CONNECTIONS).map(|_| world.connect()).unzip();
    for (mut writers, mut readers) in [
        (
            clients.iter().map(|c| c.try_clone().unwrap()).collect::<Vec<_>>(),
            servers.iter().collect::<Vec<_>>(),
        ),
        (servers.iter().map(|c| c.try_clone().unwrap()).collect(), clients.iter().collect()),
    ] {
        let taken = fill(&mut writers);
        let grown = world.proxy.resident().saturating_sub(before);
        // 64 KiB each at most, if none of them had a pipe.
        assert!(grown < 12 * 1024, "{CONNECTIONS} slow readers cost {grown} KiB");
        for (reader, taken) in readers.iter_mut().zip(taken) {
            reader.set_nonblocking(false).unwrap();
            let mut all = vec![0; taken];
            reader.read_exact(&mut all).unwrap();
            assert!(all.iter().all(|b| *b == b'x'));
        }
    }
    // Descriptors: two for each connection, and hardly any pipes once nobody needs them.
    let open = || world.proxy.descriptors();
    drop((clients, servers));
    eventually("all of them are given back", || open() < 80);
}

/// A record that begins TLS and asks for a server.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_connection_goes_to_the_cluster_that_its_server_name_names() {
    let (named, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let server = Management::start();
    let ip = "127.65.1.1";
    let listener = format!(
        "
'@type': envoy.config.listener.v3.Listener
name: tcp
address: {{socket_address: {{address: {ip}, port_value: 8080}}}}
listener_filters:
- name: envoy.filters.listener.tls_inspector
  typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
filter_chains:
- filters:
  - name: envoy.filters.network.sni_cluster
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}
  - name: tcp
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: named, cluster: other}}
"
    );
    let at = |listener: &TcpListener| listener.local_addr().unwrap();
    let name = "outbound_.80_.v1_.web.shop.svc.cluster.local";
    server.push(&all(&[cluster(name, at(&named), ""), cluster("other", at(&other), ""), listener]));
    let (xds, admin) = (server.address.to_string(), format!("{ip}:15000"));
    let _proxy = Logged::weft(&[
        "proxy",
        "--xds-address",
        &xds,
        "--xds-plaintext",
        "--admin-address",
        &admin,
        "--concurrency",
        "1",
    ]);
    let admin: SocketAddr = admin.parse().unwrap();
    eventually("the listener", || {
        assert_eq!(server.heard(ResourceType::Listener, 1).flatten(), None);
        get(admin, "/listeners").is_ok_and(|a| a.1.contains("8080"))
    });
    let send = |bytes: &[u8]| {
        let mut client = TcpStream::connect(format!("{ip}:8080")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(bytes).unwrap();
        client
    };
    // The case of a name does not matter, and its bytes come as they were sent.
    let sent = hello("OUTBOUND_.80_.v1_.web.shop.svc.cluster.local");
    let _client = send(&sent);
    let (mut taken, _) = named.accept().unwrap();
    let mut got = vec![0; sent.len()];
    taken.read_exact(&mut got).unwrap();
    assert_eq!(got, sent);
    // Without a name it is as configured; a name that no cluster has leads nowhere.
    let _plain = send(b"plain text");
    let (mut taken, _) = other.accept().unwrap();
    taken.read_exact(&mut [0; 10]).unwrap();
    let mut nowhere = send(&hello("outbound_.80_.v9_.web.shop.svc.cluster.local"));
    let ended = nowhere.read(&mut [0; 1]);
    assert!(
        ended.as_ref().is_ok_and(|n| *n == 0) || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
    );
    let text = get(admin, "/stats").unwrap().1;
    assert!(text.lines().any(|line| line == "tcp.named.downstream_cx_no_route: 1"), "{text}");
}
