//! DNS of pods: what applications ask the servers of their resolv.conf goes to the sidecar, which knows the mesh's names and asks
//! those servers for the others.

pub(crate) mod server;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde_json::Value;

use self::server::{Played, Server, TTL};
use super::PATIENCE;
use super::captured::{MARKER, Says, start};
use super::hosts::{CLIENT, CLIENT6, Host, Net, SERVER, SERVER6, Serving};
use super::pods::{MESH, OUTSIDE, Pods, Program, Settings, service};
use crate::programs::{get, until};

const USERS: &str = "10.96.0.10";

/// Services in the mesh, and two outside of it that are told apart by nothing but their names; one whose name nobody resolves.
fn mesh() -> String {
    let outside = |name: &str, port: u16| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{name}.example]
  resolution: STATIC
  endpoints: [{{address: 10.77.0.2, ports: {{tcp: {port}}}}}]
  ports: [{{number: 2525, name: tcp, protocol: TCP}}]
---"
        )
    };
    [
        service("users", USERS, "server", "{name: http, port: 80, targetPort: 8080}"),
        service("members", "None", "server", "{name: tcp, port: 6000}"),
        outside("first", 2601),
        outside("second", 2602),
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: slow, namespace: shop}
spec: {hosts: [slow.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: paid, namespace: shop}
spec:
  hosts: [paid.example]
  resolution: DNS
  endpoints: [{address: backend.example, ports: {http: 8081}}]
  ports: [{number: 80, name: http, protocol: HTTP}]
---"
        .to_owned(),
        MESH.to_owned(),
    ]
    .concat()
}

const DNS: Settings = Settings {
    mode: "REDIRECT",
    init: &["--redirect-dns"],
    flags: &[],
    keep: false,
    environment: &["ISTIO_META_DNS_CAPTURE=true", "ISTIO_META_DNS_AUTO_ALLOCATE=true"],
};

/// Gives the pods a resolv.conf with this server.
fn tell(net: &Net, server: IpAddr) {
    let search = "shop.svc.cluster.local svc.cluster.local cluster.local";
    for pod in [&net.client, &net.server] {
        pod.etc("resolv.conf", &format!("nameserver {server}\nsearch {search}\noptions ndots:5\n"));
    }
}

/// Servers outside that say who they are.
fn outsiders(net: &Net, at: IpAddr) -> [Serving; 2] {
    let says = |name: &'static str, port| {
        net.gateway.serve(at, port, move |mut stream: TcpStream, _| stream.write_all(name.as_bytes()))
    };
    [says("first", 2601), says("second", 2602)]
}

/// What an application got.
#[derive(Debug, PartialEq)]
struct Answer {
    code: ResponseCode,
    data: Vec<String>,
    ttl: u32,
}

impl Answer {
    fn ok(data: &[&str]) -> (ResponseCode, Vec<String>) {
        (ResponseCode::NoError, data.iter().map(ToString::to_string).collect())
    }

    fn said(self) -> (ResponseCode, Vec<String>) {
        (self.code, self.data)
    }
}

/// A question of an application to the server of its resolv.conf.
fn ask(from: &Host, server: IpAddr, name: &str, kind: RecordType, by_tcp: bool) -> Answer {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    let bytes = message.to_vec().unwrap();
    let to = SocketAddr::new(server, 53);
    let answer = from.inside(|| -> std::io::Result<Vec<u8>> {
        if by_tcp {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let size = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&size[..], &bytes].concat())?;
            let mut size = [0; 2];
            stream.read_exact(&mut size)?;
            let mut answer = vec![0; u16::from_be_bytes(size).into()];
            stream.read_exact(&mut answer)?;
            return Ok(answer);
        }
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() };
        let socket = UdpSocket::bind((any, 0))?;
        // An answer from elsewhere does not reach a connected socket.
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&bytes)?;
        let mut answer = vec![0; 4096];
        let size = socket.recv(&mut answer)?;
        answer.truncate(size);
        Ok(answer)
    });
    let answer = answer.unwrap_or_else(|e| panic!("{name} {kind} at {server}, by TCP {by_tcp}: {e}"));
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    if answer.metadata.truncation {
        assert!(!by_tcp, "{answer:?}");
        return ask(from, server, name, kind, true);
    }
    let mut data: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    let ttl = answer.answers.iter().map(|r| r.ttl).min().unwrap_or(0);
    Answer { code: answer.metadata.response_code, data, ttl }
}

/// What a program of an application's prints.
fn run(on: &Host, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = on.command(&command).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Who greets at an address and port.
fn greeting(from: &Host, ip: &str, port: u16) -> String {
    let to = SocketAddr::new(ip.parse().unwrap(), port);
    let greeting = from.inside(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    greeting.unwrap_or_else(|e| format!("{:?}", e.kind()))
}

/// A sidecar's page about its DNS.
fn page(on: &Host, port: u16) -> Value {
    let (_, text) = on.inside(|| get(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), "/dns")).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Servers that are told apart by the addresses that their names were given.
fn are_told_apart(net: &Net, dns: IpAddr, kind: RecordType, range: &str, pods: &Pods) {
    let web = &net.client;
    let mut seen = Vec::new();
    for name in ["first", "second"] {
        let answer = ask(web, dns, &format!("{name}.example"), kind, false);
        let [ip] = answer.data.as_slice() else { panic!("{name}: {answer:?}\n{}", pods.logs()) };
        assert!(ip.starts_with(range), "{ip}");
        assert_eq!(greeting(web, ip, 2525), name, "{ip}\n{}", pods.logs());
        seen.push(ip.clone());
    }
    assert_ne!(seen[0], seen[1]);
}

fn played(net: &Net) -> Played {
    let at = [OUTSIDE, "fd77::2".parse().unwrap()];
    Server::start(&net.gateway, &at)
}

#[test]
fn names_of_the_mesh_are_answered_without_a_server_and_others_by_it() {
    let net = Net::new();
    let dns = played(&net);
    dns.silence(true);
    tell(&net, OUTSIDE);
    let backend = start(&net.gateway, 8081, Says::Http);
    let _servers = (start(&net.server, 8080, Says::Http), backend, outsiders(&net, OUTSIDE));
    // They become ready though no name outside can be resolved, among them one of a cluster.
    let pods = Pods::with_settings(&net, &mesh(), [Program::Weft; 2], [CLIENT, SERVER], DNS);
    until("the cluster's name is asked for", || dns.asked_below("slow.example") > 0);
    let web = &net.client;

    // With whatever domain of resolv.conf appended, by UDP and TCP; at once.
    for by_tcp in [false, true] {
        for name in ["users", "users.shop", "users.shop.svc", "users.shop.svc.cluster.local", "USERS.shop"] {
            let began = Instant::now();
            let answer = ask(web, OUTSIDE, name, RecordType::A, by_tcp);
            assert_eq!(answer.ttl, 30);
            assert_eq!(answer.said(), Answer::ok(&[USERS]), "{name}\n{}", pods.logs());
            // There, and without one of the other kind.
            assert_eq!(ask(web, OUTSIDE, name, RecordType::AAAA, by_tcp).said(), Answer::ok(&[]), "{name}");
            assert!(began.elapsed() < Duration::from_secs(1), "{name}: {:?}", began.elapsed());
        }
        let alias = "users.shop.shop.svc.cluster.local";
        assert_eq!(
            ask(web, OUTSIDE, alias, RecordType::A, by_tcp).said(),
            Answer::ok(&[USERS, "users.shop."])
        );
        for name in ["members", "server.members"] {
            assert_eq!(
                ask(web, OUTSIDE, name, RecordType::A, by_tcp).said(),
                Answer::ok(&["10.78.0.3"]),
                "{name}"
            );
        }
    }
    are_told_apart(&net, OUTSIDE, RecordType::A, "240.240.", &pods);
    assert!(run(web, "getent", &["ahostsv4", "users"]).starts_with(USERS), "{}", pods.logs());
    let said = run(web, "curl", &["-sS", "--max-time", "10", "http://users/"]);
    assert_eq!(
        said,
        format!("{MARKER}, 127.0.0.6, spiffe://cluster.local/ns/shop/sa/web"),
        "{}",
        pods.logs()
    );
    assert_eq!(dns.asked("users.shop.svc.cluster.local"), 0);

    // Others: asked for once, and kept; what is not there, too; what does not fit in a datagram.
    dns.silence(false);
    let outside = || ask(web, OUTSIDE, "outside.example", RecordType::A, false);
    assert_eq!(outside().said(), Answer::ok(&["10.77.0.2"]), "{}", pods.logs());
    for _ in 0..2 {
        let nobody = ask(web, OUTSIDE, "nobody.example", RecordType::A, false);
        assert_eq!(nobody.said(), (ResponseCode::NXDomain, vec![]));
    }
    assert_eq!(dns.asked("nobody.example"), 1);
    assert_eq!(ask(web, OUTSIDE, "many.example", RecordType::A, false).data.len(), 100);
    let six = ask(web, OUTSIDE, "outside.example", RecordType::AAAA, true);
    assert_eq!(six.said(), Answer::ok(&["fd77::2"]));
    // A cluster's endpoint by name, of a service whose own name nobody outside knows.
    let paid = || run(web, "curl", &["-sS", "--max-time", "10", "http://paid.example/"]);
    until("the cluster's endpoint is known", || paid() == format!("{MARKER}, 10.77.0.1, nobody"));

    // The server dies: what it said is kept beyond its time.
    assert_eq!(outside().said(), Answer::ok(&["10.77.0.2"]));
    dns.silence(true);
    let stale = || page(web, 15000)["counters"]["stale_total"].as_u64().unwrap();
    until("the answer is past its time", || {
        let answer = outside();
        assert!(answer.ttl <= TTL, "{answer:?}");
        assert_eq!(answer.said(), Answer::ok(&["10.77.0.2"]), "{}", pods.logs());
        stale() > 0
    });
    until("the cluster's endpoint is asked for in vain", || {
        let told = "name not resolved; the last answers are kept cluster=backend.example";
        pods.logs().contains(told)
    });
    assert_eq!(paid(), format!("{MARKER}, 10.77.0.1, nobody"), "{}", pods.logs());
    // What nobody knows fails in time, and then at once.
    let never = || ask(web, OUTSIDE, "never.example", RecordType::A, false).code;
    assert_eq!(never(), ResponseCode::ServFail);
    let (began, asked) = (Instant::now(), dns.asked("never.example"));
    assert_eq!(never(), ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_secs(1) && dns.asked("never.example") == asked);
    // And is there again when the server is.
    dns.silence(false);
    until("the server is asked again", || never() == ResponseCode::NXDomain);

    let page = page(web, 15000);
    let names = page["names"].as_array().unwrap();
    assert!(
        names.iter().any(|n| n["host"] == "users.shop.svc.cluster.local" && n["ips"][0] == USERS),
        "{page}"
    );
    assert_eq!(page["servers"][0]["address"], "10.77.0.2:53");
    assert_eq!(page["counters"]["loops_total"], 0);
}

/// Questions that a proxy asks in a second of names that it knows, at most (proxy/src/cluster/dns/names.rs).
const TURNS: f64 = 50.0;

#[test]
fn a_thousand_services_whose_endpoints_are_names_are_looked_up_within_bounds() {
    let net = Net::new();
    let dns = played(&net);
    for pod in [&net.client, &net.server] {
        pod.etc("resolv.conf", &format!("nameserver {OUTSIDE}\n"));
    }
    let entry = |number: usize| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{number}, namespace: shop}}
spec:
  hosts: [s{number}.thousand.example]
  resolution: DNS
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS}}]
---"
        )
    };
    let text: String = (0..1000).map(entry).collect();
    let _pods =
        Pods::with_settings(&net, &(text + MESH), [Program::Weft; 2], [CLIENT, SERVER], Settings::default());
    until("each name was asked for", || dns.names_below(".thousand.example") == 1000);
    let known = |pod: &Host| {
        let admin = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15000);
        let clusters = pod.inside(|| get(admin, "/clusters")).unwrap().1;
        clusters.matches("::10.77.0.2:443::health_flags").count()
    };
    until("all of them are known to both", || {
        [&net.client, &net.server].iter().all(|pod| known(pod) == 1000)
    });
    // Answers hold for a second, and two ports of a thousand names want to be fresh in two proxies.
    let (began, before) = (Instant::now(), dns.questions());
    until("some are asked for again", || dns.questions() - before > 400);
    let (asked, time) = ((dns.questions() - before) as f64, began.elapsed().as_secs_f64());
    println!("{asked} questions in {time:.1} s");
    // What is under way when the count begins comes on top.
    assert!(asked <= 2.0 * (TURNS * (time + 1.0) + 64.0), "{asked} in {time} s");
    dns.silence(true);
    until("nobody answers", || dns.questions() - before > 800);
    assert_eq!(known(&net.client), 1000, "the last answers are kept");
}

#[test]
fn names_are_known_after_a_restart_without_a_control_plane() {
    let net = Net::new();
    let _dns = played(&net);
    tell(&net, OUTSIDE);
    let _servers = (start(&net.server, 8080, Says::Http), outsiders(&net, OUTSIDE));
    let settings = Settings { keep: true, ..DNS };
    let mut pods = Pods::with_settings(&net, &mesh(), [Program::Weft; 2], [CLIENT, SERVER], settings);
    let web = &net.client;
    let seen = || {
        let ask = |name: &str| ask(web, OUTSIDE, name, RecordType::A, false).said();
        (ask("users"), ask("server.members"), ask("first.example"), ask("outside.example"))
    };
    let before = seen();
    assert_eq!(before.0, Answer::ok(&[USERS]), "{}", pods.logs());

    pods.kill("control");
    pods.restart("web");
    let ready = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
    until("it is ready again", || web.inside(|| get(ready, "/healthz/ready")).is_ok_and(|a| a.0 == 200));
    // The addresses that were allocated to servers outside are the same, too: applications have cached them.
    assert_eq!(seen(), before, "{}", pods.logs());
    are_told_apart(&net, OUTSIDE, RecordType::A, "240.240.", &pods);
}

#[test]
fn a_proxy_whose_own_questions_are_captured_says_so() {
    let net = Net::new();
    let dns = played(&net);
    tell(&net, OUTSIDE);
    // Told of another user than the proxy's; what it sends to its control plane is let through all the same.
    let init = &["--redirect-dns", "-u", "4242", "-g", "4242", "-o", "15012"];
    let pods =
        Pods::with_settings(&net, &mesh(), [Program::Weft; 2], [CLIENT, SERVER], Settings { init, ..DNS });
    let web = &net.client;
    // By TCP: answers in datagrams find no way back through rules for another user.
    let began = Instant::now();
    let answer = ask(web, OUTSIDE, "outside.example", RecordType::A, true);
    assert!(answer.code != ResponseCode::NoError && began.elapsed() < Duration::from_secs(3), "{answer:?}");
    assert_eq!(ask(web, OUTSIDE, "users", RecordType::A, true).said(), Answer::ok(&[USERS]));
    assert_eq!(dns.asked("outside.example"), 0);
    assert!(page(web, 15000)["counters"]["loops_total"].as_u64().unwrap() > 0, "{}", pods.logs());
    assert!(pods.logs().contains("DNS turns in circles"), "{}", pods.logs());
}

#[test]
fn names_are_answered_over_ipv6_as_well() {
    let net = Net::new();
    let _dns = played(&net);
    let server: IpAddr = "fd77::2".parse().unwrap();
    tell(&net, server);
    let _servers = (start(&net.server, 8080, Says::Http), outsiders(&net, server));
    let text = mesh()
        .replace("10.78.0.3", "'fd78::3'")
        .replace("address: 10.77.0.1", "address: 'fd77::1'")
        .replace("address: 10.77.0.2", "address: 'fd77::2'")
        .replace(USERS, "'fd96::10'");
    let settings = Settings { flags: &["--xds-mode", "sotw"], ..DNS };
    let pods = Pods::with_settings(&net, &text, [Program::Weft; 2], [CLIENT6, SERVER6], settings);
    let web = &net.client;
    for by_tcp in [false, true] {
        let users = |kind| ask(web, server, "users", kind, by_tcp).said();
        assert_eq!(users(RecordType::AAAA), Answer::ok(&["fd96::10"]), "{}", pods.logs());
        assert_eq!(users(RecordType::A), Answer::ok(&[]));
        let outside = ask(web, server, "outside.example", RecordType::AAAA, by_tcp).said();
        assert_eq!(outside, Answer::ok(&["fd77::2"]), "{}", pods.logs());
    }
    are_told_apart(&net, server, RecordType::AAAA, "2001:2::", &pods);
    let said = run(web, "curl", &["-sS", "--max-time", "10", "http://users/"]);
    assert_eq!(said, format!("{MARKER}, ::6, spiffe://cluster.local/ns/shop/sa/web"), "{}", pods.logs());
}

#[test]
fn the_agent_answers_beside_an_envoy() {
    let net = Net::new();
    let dns = played(&net);
    tell(&net, OUTSIDE);
    let _servers = (start(&net.server, 8080, Says::Http), outsiders(&net, OUTSIDE));
    let sidecars = [Program::Envoy, Program::Weft];
    let pods = Pods::with_settings(&net, &mesh(), sidecars, [CLIENT, SERVER], DNS);
    let web = &net.client;
    assert_eq!(
        ask(web, OUTSIDE, "users", RecordType::A, false).said(),
        Answer::ok(&[USERS]),
        "{}",
        pods.logs()
    );
    let outside = ask(web, OUTSIDE, "outside.example", RecordType::A, false).said();
    assert_eq!(outside, Answer::ok(&["10.77.0.2"]), "{}", pods.logs());
    are_told_apart(&net, OUTSIDE, RecordType::A, "240.240.", &pods);
    let said = run(web, "curl", &["-sS", "--max-time", "10", "http://users/"]);
    assert!(said.contains("spiffe://cluster.local/ns/shop/sa/web"), "{said}\n{}", pods.logs());
    assert_eq!(page(web, 15020)["servers"][0]["failures"], 0);
    assert_eq!(dns.asked("users"), 0);
}
