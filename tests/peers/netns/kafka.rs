//! Kafka in captured pods where only mutual TLS is taken: brokers that tell their own addresses, and are restarted one by one.

use std::time::{Duration, Instant};

use super::pods::{Pod, Pods, Program};
use super::switch::{SWITCH, Switch};
use super::wire::Capture;
use crate::kafka::{self, Consumer, Node, Producer};

const MARKER: &str = "not-for-strangers";

/// A controller and three brokers behind a headless Service, and a pod of clients.
fn mesh() -> String {
    let entry = |name: &str, ip: &str, app: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: data}}
spec: {{address: {ip}, labels: {{app: {app}, service: {app}}}, serviceAccount: {name}}}
---"
        )
    };
    [
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: kafka, namespace: data}
spec: {clusterIP: None, selector: {service: kafka}, ports: [{name: tcp-kafka, port: 9092}]}
---
apiVersion: v1
kind: Service
metadata: {name: kafka-controller, namespace: data}
spec: {clusterIP: None, selector: {service: controller}, ports: [{name: tcp-quorum, port: 9093}]}
---"
        .to_owned(),
        entry("controller", "10.88.5.9", "controller"),
        entry("kafka-1", "10.88.5.1", "kafka"),
        entry("kafka-2", "10.88.5.2", "kafka"),
        entry("kafka-3", "10.88.5.3", "kafka"),
        entry("client", "10.88.5.8", "client"),
    ]
    .concat()
}

#[test]
fn kafka_serves_through_a_rolling_restart_clients_that_know_nothing() {
    let switch = Switch::new();
    let directory = tempfile::tempdir().unwrap();
    let mut pods = Pods::control(&switch.host, SWITCH, &mesh(), &[]);
    let hosts = [
        ("controller", "10.88.5.9"),
        ("kafka-1", "10.88.5.1"),
        ("kafka-2", "10.88.5.2"),
        ("kafka-3", "10.88.5.3"),
        ("client", "10.88.5.8"),
    ]
    .map(|(name, ip)| {
        let host = switch.attach(name, ip);
        pods.add(&Pod {
            host: &host,
            namespace: "data",
            name,
            ip: ip.parse().unwrap(),
            captured: true,
            labels: &[],
            program: Program::Weft,
        });
        host
    });
    let [controller, one, two, three, client] = &hosts;
    let capture = Capture::start(&switch.host);
    let voter = "9@10.88.5.9:9093";
    let quorum = Node {
        id: 9,
        roles: "controller",
        listeners: "CONTROLLER://:9093",
        voter,
        advertised: None,
        brokers: 3,
    };
    let _controller =
        kafka::start(controller, "controller", &quorum.prepare(directory.path()), 9093, directory.path());
    let brokers =
        [(1, "10.88.5.1", one), (2, "10.88.5.2", two), (3, "10.88.5.3", three)].map(|(id, ip, host)| {
            let node = Node {
                id,
                roles: "broker",
                listeners: "PLAINTEXT://:9092",
                voter,
                advertised: Some(&format!("PLAINTEXT://{ip}:9092")),
                brokers: 3,
            };
            (format!("kafka-{id}-server"), node.prepare(directory.path()), host)
        });
    let start = |at: usize| {
        let (name, command, host) = &brokers[at];
        kafka::start(host, name, command, 9092, directory.path())
    };
    let mut running = [start(0), start(1), start(2)];
    let servers = "10.88.5.1:9092,10.88.5.2:9092,10.88.5.3:9092";
    kafka::create_topic(client, servers, "orders", 3);
    let log = |name: &str| directory.path().join(name);
    let (_consumer, messages) = Consumer::start(client, servers, "orders", &log("consumer.log"));
    let mut producer = Producer::start(client, servers, "orders", &log("producer.log"));
    let (mut sent, mut seen) = (0, Vec::new());
    let mut exchange = |what: &str, until: &mut dyn FnMut() -> bool| {
        let begun = Instant::now();
        let before = sent;
        // A message at a time: none is lost, and none comes before another.
        while !until() || sent < before + 20 {
            sent += 1;
            producer.send(&format!("{MARKER}-{sent}"));
            let message = messages.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| {
                let read = |name: &str| std::fs::read_to_string(log(name)).unwrap_or_default();
                panic!(
                    "{what}: message {sent} did not come ({e})\n{}\n{}\n{}",
                    read("producer.log"),
                    read("consumer.log"),
                    pods.logs()
                )
            });
            seen.push(message);
            assert!(begun.elapsed() < Duration::from_secs(90), "{what}: not over");
        }
    };
    exchange("at rest", &mut || true);
    for at in [0, 1, 2] {
        // Killed at once, and away for some time, with a leader chosen among those that are left.
        running[at].end();
        exchange("a broker is away", &mut || true);
        running[at] = start(at);
        exchange("it is back", &mut || true);
    }
    seen.dedup();
    let want: Vec<_> = (1..=sent).map(|n| format!("{MARKER}-{n}")).collect();
    assert_eq!(seen, want);
    let wire = capture.bytes();
    assert!(!wire.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()), "{MARKER:?} is on the wire");
    assert!(!wire.windows(6).any(|w| w == b"orders"), "a topic's name is on the wire");
}
