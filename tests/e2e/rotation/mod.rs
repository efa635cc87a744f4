//! Leaves, the intermediate and the root are replaced under traffic: requests at a constant rate, and a hundred conversations
//! that go on all the time.
//!
//! `WEFT_ROTATION_RATE` says how many requests there are each second (200), `WEFT_ROTATION_LEAVES` how often at least each
//! workload's certificate is replaced (20).

mod echoes;
mod offline;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft::demo::check::apps::{QUIET, instance};
use weft::demo::check::observe::http::Request;
use weft::demo::check::observe::load::{Load, Plan};
use weft::up::Mesh;
use weft_control::ca::store::ROOT_CERTIFICATE;

use crate::support::authority::{ca, ca_output, certs, metric, pair_for, rotate_root, short_lived};
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;
use crate::support::{eventually, stderr, stdout};
use echoes::Echo;

/// The workloads' certificates live for so many seconds.
const LIFE: u64 = 6;
/// Conversations of each of the two kinds, through both sidecars.
const CONVERSATIONS: usize = 50;
/// gRPC streams that share a connection.
const SHARING: usize = 10;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// A pair, the second of which speaks gRPC at port 8081. Between the two a connection serves a tenth of a second's requests, so
/// that certificates are shown and checked all the time.
fn pair(loopback: u8, rate: u64) -> Pair {
    let pair = pair_for(loopback, LIFE);
    let back = short_lived("back", 11, LIFE)
        .replace("targetPort: 8080}", "targetPort: 8080}, {name: grpc, port: 8081, targetPort: 8081}")
        .replace("ports: {http: 8080}", "ports: {http: 8080, grpc: 8081}");
    pair.write("back.yaml", &back);
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: back, namespace: pair}
spec: {host: back, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: RATE}}}}
";
    pair.write("rule.yaml", &rule.replace("RATE", &(rate / 10).max(1).to_string()));
    pair.write(
        "sidecar.yaml",
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: back, namespace: pair}
spec:
  workloadSelector: {labels: {app: back}}
  ingress:
    - {port: {number: 8080, protocol: HTTP, name: http}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}
    - {port: {number: 8081, protocol: GRPC, name: grpc}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}
  egress:
    - {captureMode: NONE, hosts: ['pair/*']}
",
    );
    pair
}

struct Traffic {
    load: Load,
    conversations: Vec<Echo>,
    rate: u64,
    began: Instant,
}

impl Traffic {
    async fn start(mesh: &Mesh, rate: u64) -> Self {
        let to = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let mut conversations = Vec::new();
        for _ in 0..CONVERSATIONS {
            conversations.push(Echo::web_socket(to, "back:8080").await.unwrap());
        }
        for _ in (0..CONVERSATIONS).step_by(SHARING) {
            let connection = echoes::connection(to).await;
            for _ in 0..SHARING {
                conversations.push(Echo::grpc(&connection, "back:8081").await.unwrap());
            }
        }
        let plan = Plan {
            to,
            request: Request::get("back:8080", QUIET),
            connections: 16,
            requests: None,
            rate: Some(rate as f64),
        };
        Self { load: Load::start(plan, Arc::new(instance)), conversations, rate, began: Instant::now() }
    }

    /// All requests that were due have a good answer, no connection was dropped, and every conversation is whole. What was
    /// seen, in words.
    async fn unharmed(self) -> String {
        let seconds = self.began.elapsed().as_secs();
        let tally = self.load.stop().await;
        let mut echoes = 0;
        for conversation in self.conversations {
            let heard = conversation.stop().await.unwrap_or_else(|e| panic!("a conversation broke {e}"));
            // Each says something every second, or as often as the machine lets it.
            assert!(heard > seconds / 2, "{heard} echoes in {seconds} s");
            echoes += heard;
        }
        let words = format!(
            "{} in {seconds} s (the slowest in {:?}), {} conversations with {echoes} echoes",
            tally.words(),
            tally.slowest,
            2 * CONVERSATIONS
        );
        assert_eq!((tally.failed(), tally.dropped), (0, 0), "{words}");
        // The rate was held, but for what a busy machine makes late; how well, stands in the words.
        assert!(tally.good >= self.rate * seconds * 8 / 10, "{words}");
        words
    }
}

/// The serial numbers of the leaves that a workload shows from now on.
struct Serials {
    seen: BTreeSet<String>,
    workload: &'static str,
}

impl Serials {
    fn of(workload: &'static str) -> Self {
        Self { seen: BTreeSet::new(), workload }
    }

    fn look(&mut self, mesh: &Mesh) {
        self.seen.insert(certs(mesh, self.workload).0);
    }
}

#[test]
fn leaves_the_intermediate_and_the_root_are_replaced_under_traffic_and_nobody_notices() {
    let _alone = alone();
    runtime().block_on(async {
        let (rate, leaves) = (setting("WEFT_ROTATION_RATE", 200), setting("WEFT_ROTATION_LEAVES", 20));
        let pair = pair(84, rate);
        let mesh = pair.start().await;
        let before = certs(&mesh, "back-1");
        let traffic = Traffic::start(&mesh, rate).await;
        let began = Instant::now();
        let mut serials = [Serials::of("front-1"), Serials::of("back-1")];

        assert_eq!(ca(&pair, &["rotate-intermediate"])["signs"], true);
        eventually("both have leaves of the new intermediate", || {
            ["front-1", "back-1"].iter().all(|w| certs(&mesh, w).1 != before.1)
        });

        // The command is ended in the middle; the replacement goes on, and the next command with it.
        let mut first = rotate_root(&pair);
        eventually("it has begun", || ca(&pair, &["status"])["rotation"]["phase"] == "distributing");
        assert_eq!(ca(&pair, &["status"])["roots"].as_array().unwrap().len(), 2);
        eventually("every proxy has acknowledged the bundle", || {
            let proxies = &ca(&pair, &["status"])["proxies"];
            proxies["acknowledged"] == 2 && proxies["behind"] == 0
        });
        first.kill().unwrap();
        first.wait().unwrap();
        let refused = ca_output(&pair, &["rotate-intermediate"]);
        assert!(
            !refused.status.success() && stderr(&refused).contains("rotate-root"),
            "{}",
            stderr(&refused)
        );
        let output = tokio::task::spawn_blocking({
            let child = rotate_root(&pair);
            move || child.wait_with_output().unwrap()
        });
        while !output.is_finished() {
            serials.iter_mut().for_each(|s| s.look(&mesh));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let output = output.await.unwrap();
        assert!(output.status.success());
        let lines: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let mut phases: Vec<_> = lines.iter().map(|l| l["phase"].as_str().unwrap()).collect();
        phases.dedup();
        assert_eq!(phases, ["distributing", "draining", "removing", "done"], "{lines:#?}");

        // The old root is gone everywhere, and there are as many leaves as there should be.
        let limit = Duration::from_secs(180 + leaves * LIFE);
        while serials.iter().any(|s| s.seen.len() as u64 <= leaves) {
            serials.iter_mut().for_each(|s| s.look(&mesh));
            assert!(began.elapsed() < limit, "{:?}", serials.map(|s| s.seen.len()));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let words = traffic.unharmed().await;
        let seen = serials.map(|s| format!("{} {}", s.seen.len(), s.workload)).join(", ");
        println!("{words}; certificates seen: {seen}; an intermediate and a root replaced");
        for name in ["front-1", "back-1"] {
            let after = certs(&mesh, name);
            assert!(after.2.is_disjoint(&before.2) && after.2.len() == 1, "{before:?} {after:?}");
            let expires = metric(&mesh, name, "certificate_expiry_time", "certificate=\"leaf\"");
            let now = time::OffsetDateTime::now_utc().unix_timestamp();
            assert!(
                matches!(expires.as_slice(), [at] if (now..=now + LIFE as i64).contains(at)),
                "{expires:?}"
            );
            assert_eq!(metric(&mesh, name, "certificate_expiry_time", "certificate=\"root\"").len(), 1);
        }
        let root = std::fs::read(pair.state_dir().join(ROOT_CERTIFICATE)).unwrap();
        assert_eq!(weft_certs::pem::certificates(&root).unwrap().len(), 1);
        let status = ca(&pair, &["status"]);
        assert_eq!(status["rootRotations"], 1);
        assert!(status["rotation"].is_null());
        mesh.shutdown().await.unwrap();
    });
}
