//! The whole EcoTrack mesh in network namespaces: each workload a host with its own address and its own redirection,
//! PostgreSQL, Redis and Kafka as they are, gateways for what comes in and goes out, a client and a payment service outside.
//!
//! ```text
//! client ---- ingress ---- user -> product -> order -> payment -> notification ---- redis
//!                             \______ \________ \_______ \__ postgres   |   \_ kafka _/
//!                                                          \__ egress ---- api.stripe.com
//! ```
//!
//! The applications know nothing of it: they dial addresses of services in plain text, with the clients of their databases.

mod apps;
mod failures;
pub(crate) mod http;
mod journey;
mod losses;
pub(crate) mod outside;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use self::outside::{Authority, Names};
use crate::kafka::{self, Consumer, Node, Producer};
use crate::netns::databases;
use crate::netns::hosts::{Host, Serving};
use crate::netns::pods::{Pod, Pods, Program};
use crate::netns::switch::{SWITCH, Switch};
use crate::programs::{Process, peer};

/// Namespace, name, the pod's address, the Service's address (none: headless), its port's name and number.
const WORKLOADS: [(&str, &str, &str, &str, &str, u16); 8] = [
    ("ecotrack", "user-service", "10.88.2.1", "10.96.2.1", "http", 8080),
    ("ecotrack", "product-service", "10.88.2.2", "10.96.2.2", "http", 8080),
    ("ecotrack", "order-service", "10.88.2.3", "10.96.2.3", "http", 8080),
    ("ecotrack", "payment-service", "10.88.2.4", "10.96.2.4", "http", 8080),
    ("ecotrack", "notification-service", "10.88.2.5", "10.96.2.5", "http", 8080),
    ("data", "postgres-primary", "10.88.3.1", "10.96.3.1", "tcp-postgres", 5432),
    ("data", "redis", "10.88.3.2", "10.96.3.2", "tcp-redis", 6379),
    ("data", "kafka", "10.88.3.3", "None", "tcp-kafka", 9092),
];
/// The gateways: name, label, address, and that of its Service.
const GATEWAYS: [(&str, &str, &str, &str); 2] = [
    ("istio-ingressgateway", "istio=ingressgateway", "10.88.1.1", "10.96.1.1"),
    ("istio-egressgateway", "istio=egressgateway", "10.88.1.2", "10.96.1.2"),
];
const KAFKA: &str = "10.88.3.3:9092";
/// The name by which clients outside know the mesh.
const API: &str = "api.ecotrack.platform.dev";
/// What is paid with, which may not be read on any wire of the mesh.
const CARD: &str = "4242-4242-4242-4242";

/// Where a workload's Service is.
fn service(name: &str) -> SocketAddr {
    let (.., ip, _, port) = WORKLOADS.iter().find(|w| w.1 == name).unwrap();
    SocketAddr::new(ip.parse().unwrap(), *port)
}

fn identity(name: &str) -> String {
    let namespace = WORKLOADS.iter().find(|w| w.1 == name).map_or("istio-system", |w| w.0);
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// Services and workloads, as Kubernetes would have them.
fn mesh() -> String {
    let mut text = include_str!("mesh.yaml").to_owned();
    let mut add = |namespace: &str, name: &str, label: &str, pod: &str, ip: &str, ports: &str, note: &str| {
        let (key, value) = label.split_once('=').unwrap();
        text += &format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{clusterIP: {ip}, selector: {{{key}: {value}}}, ports: [{ports}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: {namespace}{note}}}
spec: {{address: {pod}, labels: {{app: {name}, {key}: {value}}}, serviceAccount: {name}}}
---"
        );
    };
    for (namespace, name, pod, ip, port, number) in WORKLOADS {
        let ports = format!("{{name: {port}, port: {number}}}");
        // Labels of a map are given once.
        add(namespace, name, &format!("workload={name}"), pod, ip, &ports, "");
    }
    for (name, label, pod, ip) in GATEWAYS {
        let ports = "{name: http, port: 80}, {name: tls, port: 443}";
        add("istio-system", name, label, pod, ip, ports, ", annotations: {weft.dev/role: gateway}");
    }
    text
}

/// The mesh with everything in it.
pub struct EcoTrack {
    switch: Switch,
    pods: Pods,
    hosts: Arc<BTreeMap<&'static str, Host>>,
    client: Host,
    directory: tempfile::TempDir,
    /// What the applications have written: `SERVICE transaction=... ...`.
    written: Arc<Mutex<Vec<String>>>,
    names: Option<Names>,
    processes: BTreeMap<&'static str, (Command, Process)>,
    _consumer: Consumer,
    _serving: Vec<Serving>,
    _world: Host,
}

impl EcoTrack {
    /// All of it, ready.
    pub fn start() -> Self {
        let switch = Switch::new();
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let authority = Authority::new();
        authority.credential(&directory.path().join("credentials/istio-system/ecotrack-tls-cert"), API);
        std::fs::write(directory.path().join("world.pem"), authority.pem()).unwrap();
        let credentials = directory.path().join("credentials").to_str().unwrap().to_owned();
        let more = ["--credentials", "files", "--credentials-dir", &credentials];
        let mut pods = Pods::control(&switch.host, SWITCH, &mesh(), &more);
        let stripe = Ipv4Addr::new(10, 99, 0, 2);
        let names = Names::serve(&switch.host, SWITCH, vec![("api.stripe.com", stripe)]);
        let client = switch.attach("client", "10.99.0.3");
        let world = switch.attach("world", "10.99.0.2");
        let mut serving = vec![outside::payments(&world, &authority, "api.stripe.com", 443)];
        let mut hosts = BTreeMap::new();
        let workloads = WORKLOADS.map(|(namespace, name, ip, ..)| (namespace, name, ip, None));
        let gateways = GATEWAYS.map(|(name, label, ip, _)| ("istio-system", name, ip, Some(label)));
        for (namespace, name, ip, label) in workloads.into_iter().chain(gateways) {
            let host = switch.attach(name.split('-').next_back().unwrap(), ip);
            host.etc("resolv.conf", &format!("nameserver {SWITCH}\noptions timeout:1 attempts:1\n"));
            hosts.insert(name, host);
            let own = format!("workload={name}");
            pods.add(&Pod {
                host: &hosts[name],
                namespace,
                name,
                ip: ip.parse().unwrap(),
                captured: label.is_none(),
                labels: &[label.unwrap_or(&own)],
                program: Program::Weft,
            });
        }
        let hosts = Arc::new(hosts);
        let processes = Self::databases(&hosts, directory.path());
        let written = Arc::new(Mutex::new(Vec::new()));
        let producer = Producer::start(
            &hosts["payment-service"],
            KAFKA,
            "payments",
            &directory.path().join("producer.log"),
        );
        let (consumer, messages) = Consumer::start(
            &hosts["notification-service"],
            KAFKA,
            "payments",
            &directory.path().join("consumer.log"),
        );
        let shared = apps::Shared {
            hosts: hosts.clone(),
            written: written.clone(),
            ca: directory.path().join("world.pem"),
        };
        serving.extend(apps::start(&Arc::new(shared), producer, messages));
        Self {
            switch,
            pods,
            hosts,
            client,
            directory,
            written,
            names: Some(names),
            processes,
            _consumer: consumer,
            _serving: serving,
            _world: world,
        }
    }

    /// The three servers of data, and what has to be in them.
    fn databases(
        hosts: &BTreeMap<&'static str, Host>,
        directory: &Path,
    ) -> BTreeMap<&'static str, (Command, Process)> {
        let mut all = BTreeMap::new();
        let host = &hosts["postgres-primary"];
        all.insert("postgres-primary", databases::postgres_with(host, directory));
        let schema = "create table users (id serial primary key, email text); \
            insert into users (email) values ('ada@ecotrack.dev'); \
            create table products (id serial primary key, name text); insert into products (name) values ('bottle'), ('bag'); \
            create table orders (id serial primary key, transaction text, product int); \
            create table payments (id serial primary key, transaction text, card text)";
        databases::psql(host, "127.0.0.1", "disable", schema).unwrap();
        all.insert("redis", databases::redis_with(&hosts["redis"], directory));
        let node = Node {
            id: 1,
            roles: "broker,controller",
            listeners: "PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093",
            voter: "1@127.0.0.1:9093",
            advertised: Some(&format!("PLAINTEXT://{KAFKA}")),
            brokers: 1,
        };
        let command = node.prepare(directory);
        let process = kafka::start(&hosts["kafka"], "kafka-server", &command, 9092, directory);
        all.insert("kafka", (hosts["kafka"].command(&command), process));
        all
    }

    /// What curl says to a client outside that asks the ingress by its name: status and body.
    fn curl(&self, url: &str, more: &[&str]) -> (String, String) {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]);
        curl.arg(self.directory.path().join("world.pem"));
        for port in [80, 443] {
            curl.args(["--resolve", &format!("{API}:{port}:10.88.1.1")]);
        }
        curl.args(more).arg(url);
        let output = self.client.command(&curl).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (status.to_owned(), if body.is_empty() { error } else { body.to_owned() })
    }

    /// Says everything that anybody has written.
    fn story(&self) -> String {
        format!("{}\n{}", self.written.lock().unwrap().join("\n"), self.pods.logs())
    }
}
