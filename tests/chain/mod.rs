//! Proxies in a row over mutual TLS that tell each other of their workloads, with relays between that count the bytes, and a service
//! at the end that answers with the head that it got. Ours and an Envoy can run each link.

#![allow(dead_code, reason = "each of the two trees of tests uses a part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// More bytes than a request takes that brings no description, and fewer than one that does.
pub const DESCRIPTION: u64 = 900;

/// A workload's version, as long as a label may be: so a description is easily told by its size.
pub fn version(name: &str) -> String {
    format!("{name}-{}", "v".repeat(240))
}

/// Writes `ca.pem`, and `NAME.pem` and `NAME.key` for each name.
pub fn certificates(directory: &Path, names: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "ca");
    std::fs::write(directory.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, *name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(identity(name).as_str().try_into().unwrap())];
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// Who a link is.
pub fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/chain/sa/{name}")
}

/// A relay of bytes to one address.
pub struct Relay {
    /// Where it is, on 127.0.0.1.
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    up: AtomicU64,
    down: AtomicU64,
    opened: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Starts one, until the process ends.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = relay.state.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let Ok(to) = TcpStream::connect(to) else { continue };
                state.opened.fetch_add(1, SeqCst);
                let both = || (from.try_clone().unwrap(), to.try_clone().unwrap());
                state.open.lock().unwrap().push(both().0);
                let ((from, into), own) = (both(), state.clone());
                std::thread::spawn(move || carry(from, into, &own.up));
                let ((into, from), own) = (both(), state.clone());
                std::thread::spawn(move || carry(from, into, &own.down));
            }
        });
        relay
    }

    /// Bytes that went to the address, and those that came from it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.state.up.load(SeqCst), self.state.down.load(SeqCst))
    }

    /// How many connections there were.
    pub fn opened(&self) -> u64 {
        self.state.opened.load(SeqCst)
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut into: TcpStream, count: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        // Whoever sees the bytes sees that they were counted.
        count.fetch_add(read as u64, SeqCst);
        if into.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (into.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

/// Answers each request with its head, or with 503 and nothing where its path is `/fail`.
pub fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                while let Some(head) = head(&mut stream) {
                    let answer = match head.starts_with("GET /fail ") {
                        true => "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
                        false => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len()),
                    };
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// A link of the chain.
pub struct Link<'a> {
    /// Its name: its workload's, its identity's, its certificate's.
    pub name: &'a str,
    /// Its address; 8080 takes requests, 15000 is for those who look.
    pub ip: &'a str,
    /// Requests come over mutual TLS.
    pub tls_in: bool,
    /// They go on so.
    pub tls_out: bool,
    /// It tells of its workload, and counts: as who sends requests out of it, or as who takes them for it.
    pub tells: Option<&'a str>,
    /// Ports of 127.0.0.1 that it sends requests to.
    pub next: &'a [u16],
    /// HTTP/2 to there.
    pub h2: bool,
}

impl Link<'_> {
    /// Its configuration, with certificates in this directory.
    pub fn bootstrap(&self, directory: &Path) -> Value {
        let socket = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
        let common = json!({
            "tls_certificates": [{
                "certificate_chain": {"filename": directory.join(format!("{}.pem", self.name))},
                "private_key": {"filename": directory.join(format!("{}.key", self.name))},
            }],
            "validation_context": {"trusted_ca": {"filename": directory.join("ca.pem")}},
        });
        let tls = |kind: &str| {
            let kind = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}");
            let mut config = json!({"@type": kind, "common_tls_context": common});
            if kind.ends_with("DownstreamTlsContext") {
                config["require_client_certificate"] = json!(true);
            }
            json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
        };
        let typed = |name: &str, url: &str, value: Value| {
            json!({"name": name, "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": format!("type.googleapis.com/{url}"), "value": value}})
        };
        let mut filters = Vec::new();
        if let Some(side) = self.tells {
            let headers = json!([{"istio_headers": {}}]);
            let exchange = match side {
                "OUTBOUND" => json!({"upstream_discovery": headers, "upstream_propagation": headers}),
                _ => json!({"downstream_discovery": headers, "downstream_propagation": headers}),
            };
            filters.push(typed("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", exchange));
            filters.push(typed("istio.stats", "stats.PluginConfig", json!({})));
        }
        filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
        let retry = json!({"retry_on": "5xx", "num_retries": 1, "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]});
        let mut route = json!({"cluster": "next"});
        if self.next.len() > 1 {
            route["retry_policy"] = retry;
        }
        let described = "%REQ(X-ENVOY-PEER-METADATA-ID)% %REQ(X-ENVOY-PEER-METADATA)%\n";
        let log = json!([{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": directory.join(format!("{}.log", self.name)),
            "log_format": {"text_format_source": {"inline_string": described}}}}]);
        let manager = json!({
            "access_log": log,
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "http", "http_filters": filters,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": route}]}]},
        });
        let mut chain = json!({"filters": [{"name": "only", "typed_config": manager}]});
        if self.tls_in {
            chain["transport_socket"] = tls("DownstreamTlsContext");
        }
        let endpoints: Vec<_> = self
            .next
            .iter()
            .map(|port| json!({"endpoint": {"address": socket("127.0.0.1", *port)}}))
            .collect();
        let mut cluster = json!({
            "name": "next", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": endpoints}]},
        });
        if self.tls_out {
            cluster["transport_socket"] = tls("UpstreamTlsContext");
        }
        if self.h2 {
            let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            cluster["typed_extension_protocol_options"] = json!({options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": {"http2_protocol_options": {}}}});
        }
        let mut plain = chain.clone();
        if let Some(fields) = plain.as_object_mut() {
            fields.remove("transport_socket");
        }
        let listener = |name: &str, port: u16, chain: Value| {
            let direction = self.tells.unwrap_or("UNSPECIFIED");
            json!({"name": name, "address": socket(self.ip, port), "filter_chains": [chain],
                "traffic_direction": direction})
        };
        let listeners = [listener("http", 8080, chain), listener("plain", 8081, plain)];
        json!({
            "node": {
                "id": format!("sidecar~{}~{}.chain~chain.svc.cluster.local", self.ip, self.name), "cluster": self.name,
                "metadata": {"NAMESPACE": "chain", "WORKLOAD_NAME": self.name, "CLUSTER_ID": "here", "LABELS": {
                    "app": self.name, "version": version(self.name),
                    "service.istio.io/canonical-revision": version(self.name),
                    "service.istio.io/canonical-name": self.name}},
            },
            "admin": {"address": socket(self.ip, 15000)},
            "static_resources": {"listeners": listeners, "clusters": [cluster]},
        })
    }

    /// Where it takes requests.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip.parse().unwrap(), 8080)
    }

    /// Where it takes them in plain text.
    pub fn plain(&self) -> SocketAddr {
        SocketAddr::new(self.ip.parse().unwrap(), 8081)
    }
}

/// A client of the first link, on one connection.
pub struct Client(TcpStream);

impl Client {
    /// Connects.
    pub fn new(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    /// Asks for a path, with further fields; the head of the answer, and its body, which is the head that the service got.
    pub fn ask(&mut self, path: &str, fields: &str) -> (String, String) {
        write!(self.0, "GET {path} HTTP/1.1\r\nhost: service\r\n{fields}\r\n").unwrap();
        let head = head(&mut self.0).expect("an answer");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    /// The same, and how many bytes that took on a relay, to and fro.
    pub fn measured(&mut self, relay: &Relay, path: &str, fields: &str) -> ((u64, u64), String) {
        let before = relay.bytes();
        let (head, body) = self.ask(path, fields);
        let after = relay.bytes();
        for text in [&head, &body] {
            assert!(!text.contains("x-envoy-peer-metadata") && !text.contains("x-weft"), "{text}");
        }
        ((after.0 - before.0, after.1 - before.1), body)
    }
}

/// The workloads at both ends of the requests that a link has counted, as `source destination code`, with how many: from its
/// `/stats/prometheus`.
pub fn edges(metrics: &str, reporter: &str) -> Vec<(String, u64)> {
    let of = |line: &str, label: &str| {
        let rest = line.split_once(&format!("{label}=\"")).map(|(_, rest)| rest)?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    let lines = metrics.lines().filter(|line| {
        line.starts_with("istio_requests_total{") && line.contains(&format!("reporter=\"{reporter}\""))
    });
    let mut edges: Vec<_> = lines
        .map(|line| {
            let labels = [
                "source_workload",
                "source_app",
                "source_version",
                "destination_workload",
                "destination_app",
                "destination_version",
                "response_code",
            ];
            let words: Vec<_> = labels.iter().filter_map(|label| of(line, label)).collect();
            let count = line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            (words.join(" "), count as u64)
        })
        .collect();
    edges.sort();
    edges
}

/// One entry of [`edges`].
pub fn edge(source: &str, destination: &str, code: u16, count: u64) -> (String, u64) {
    let of = |name: &str| match name {
        "unknown" => "unknown unknown unknown".to_owned(),
        name => format!("{name} {name} {}", version(name)),
    };
    (format!("{} {} {code}", of(source), of(destination)), count)
}
