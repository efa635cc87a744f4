//! The certificate authority in a running mesh: what an operator does to it, and that traffic does not notice.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft::demo::check::apps::{QUIET, STREAM, instance};
use weft::demo::check::observe::http::{Request, fetch};
use weft::demo::check::observe::load::{Load, Plan};
use weft::demo::check::observe::stream::Watcher;
use weft::up::{Mesh, Part, Signal};
use weft_control::ca::store::ROOT_CERTIFICATE;

use crate::support::http::get;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};
use crate::support::{WEFT, eventually, stderr, stdout, weft};

/// Long-lived streams through both sidecars.
const STREAMS: usize = 100;
/// The workloads' certificates live for so many seconds.
const LIFE: u64 = 6;

fn short_lived(name: &str, x: u8) -> String {
    let annotation = format!("proxy.istio.io/config: 'proxyMetadata: {{SECRET_TTL: {LIFE}s}}'");
    workload(name, x, "weft app").replace("annotations:\n", &format!("annotations:\n    {annotation}\n"))
}

/// A pair whose certificates live for seconds.
fn pair(loopback: u8) -> Pair {
    let pair = Pair::new(loopback);
    pair.write("front.yaml", &short_lived("front", 10));
    pair.write("back.yaml", &short_lived("back", 11));
    pair
}

/// `weft ca ...` on a pair's authority; what it answers.
fn ca(pair: &Pair, arguments: &[&str]) -> Value {
    let output = ca_output(pair, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(stdout(&output).lines().last().unwrap_or_default()).unwrap()
}

fn ca_output(pair: &Pair, arguments: &[&str]) -> std::process::Output {
    let state = pair.state_dir();
    let mut all = vec!["ca"];
    all.extend(arguments);
    all.extend(["--state-dir", state.to_str().unwrap(), "--output", "json"]);
    weft(&all)
}

/// A workload's `/certs`: serial numbers of its leaf, its intermediate, and the roots that it trusts.
fn certs(mesh: &Mesh, workload: &str) -> (String, String, BTreeSet<String>) {
    let page: Value =
        serde_json::from_str(&get(mesh.workload(workload).unwrap().admin(), "/certs").unwrap().1).unwrap();
    let serial = |v: &Value| v["serial_number"].as_str().unwrap_or_default().to_owned();
    let first = &page["certificates"][0];
    let roots = first["ca_cert"].as_array().unwrap().iter().map(serial).collect();
    (serial(&first["cert_chain"][0]), serial(&first["cert_chain"][1]), roots)
}

fn metric(mesh: &Mesh, workload: &str, name: &str, label: &str) -> Vec<i64> {
    let (_, text) = get(mesh.workload(workload).unwrap().admin(), "/stats/prometheus").unwrap();
    let lines = text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && l.contains(label));
    lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as i64).collect()
}

struct Traffic {
    load: Load,
    streams: Vec<Watcher>,
}

impl Traffic {
    async fn start(mesh: &Mesh) -> Self {
        let to = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let plan = Plan {
            to,
            request: Request::get("back:8080", QUIET),
            connections: 4,
            requests: None,
            rate: Some(200.0),
        };
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let request = Request::get("back:8080", STREAM.replace("50ms", "500ms"));
            streams.push(Watcher::start(to, &request, Duration::from_secs(20)).await.unwrap());
        }
        Self { load: Load::start(plan, Arc::new(instance)), streams }
    }

    /// Not one request failed, and every stream is whole.
    async fn unharmed(self) {
        let tally = self.load.stop().await;
        println!("{}", tally.words());
        assert!(tally.good > 1000, "{}", tally.words());
        assert_eq!((tally.failed(), tally.dropped), (0, 0), "{}", tally.words());
        for stream in self.streams {
            let watched = stream.stop().await;
            assert!(watched.broken.is_none() && watched.lines > 20, "{watched:?}");
        }
    }
}

/// `weft ca rotate-root`, running.
fn rotate_root(pair: &Pair) -> Child {
    let state = pair.state_dir();
    let arguments = ["ca", "rotate-root", "--output", "json", "--state-dir", state.to_str().unwrap()];
    Command::new(WEFT).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn leaves_the_intermediate_and_the_root_are_replaced_under_traffic_and_nobody_notices() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = pair(84);
        let mesh = pair.start().await;
        let before = certs(&mesh, "back-1");
        let traffic = Traffic::start(&mesh).await;
        let began = Instant::now();

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
        let output = output.await.unwrap();
        assert!(output.status.success());
        let lines: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let mut phases: Vec<_> = lines.iter().map(|l| l["phase"].as_str().unwrap()).collect();
        phases.dedup();
        assert_eq!(phases, ["distributing", "draining", "removing", "done"], "{lines:#?}");

        // Twenty rotations of leaves, and the old root is gone everywhere.
        while metric(&mesh, "back-1", "certificate_rotation_count", "default")[0] < 20 {
            assert!(began.elapsed() < Duration::from_secs(180));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        traffic.unharmed().await;
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

#[test]
fn a_root_rotation_goes_on_after_the_control_plane_was_killed_in_each_of_its_phases() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = pair(85);
        let mesh = pair.start().await;
        let before = certs(&mesh, "front-1");
        let traffic = Traffic::start(&mesh).await;
        let mut child = rotate_root(&pair);
        for phase in ["distributing", "draining", "removing"] {
            let deadline = Instant::now() + Duration::from_secs(90);
            loop {
                let output = ca_output(&pair, &["status"]);
                let status: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
                if status["rotation"]["phase"] == phase {
                    break;
                }
                assert!(Instant::now() < deadline, "{phase} never comes: {status}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
            mesh.restart(&Part::Control).unwrap();
        }
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "the command outlives the control plane");
        traffic.unharmed().await;
        assert!(certs(&mesh, "front-1").2.is_disjoint(&before.2));
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn a_revoked_certificate_is_refused_by_peers_and_its_workload_recovers_with_another() {
    let _alone = alone();
    runtime().block_on(async {
        // Certificates that live for a day: nothing but the refusal makes them be renewed.
        let pair = Pair::new(86);
        let mesh = pair.start().await;
        let front = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let ask = || async {
            let answer = fetch(front, &Request::get("back:8080", QUIET)).await;
            answer.map(|a| a.status()).unwrap_or_default()
        };
        assert_eq!(ask().await, 200);
        let (serial, ..) = certs(&mesh, "front-1");
        assert_eq!(ca(&pair, &["revoke", &serial])["new"], true);
        assert_eq!(ca(&pair, &["revoke", &serial])["new"], false);
        // Each stream keeps a connection busy, so that the next one needs a new one: those are refused, for the reason that
        // the metric and the log name...
        let (mut streams, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(30));
        let refused = || -> i64 {
            metric(&mesh, "back-1", "envoy_listener_certificate_validation_failures", "reason=\"revoked\"")
                .iter()
                .sum()
        };
        while refused() == 0 {
            assert!(Instant::now() < deadline, "it is never refused");
            streams.push(
                Watcher::start(front, &Request::get("back:8080", STREAM), Duration::from_secs(10)).await,
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(mesh.log(&Part::Proxy("front-1".to_owned()))).unwrap();
        assert!(log.contains("CertificateRevoked"), "{log}");
        // ... it asks for another one at once, and all is well.
        eventually("front has another certificate", || certs(&mesh, "front-1").0 != serial);
        let deadline = Instant::now() + Duration::from_secs(10);
        while ask().await != 200 {
            assert!(Instant::now() < deadline, "it does not recover");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        mesh.shutdown().await.unwrap();
    });
}
