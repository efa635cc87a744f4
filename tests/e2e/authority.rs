//! The certificate authority in a running mesh: what an operator does to it, and that traffic does not notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::Value;
use weft::demo::check::apps::{QUIET, STREAM, instance};
use weft::demo::check::observe::credentials::{self, Authority};
use weft::demo::check::observe::http::{Request, fetch};
use weft::demo::check::observe::load::{Load, Plan};
use weft::demo::check::observe::stream::Watcher;
use weft::demo::check::observe::tls::{Outcome, dial};
use weft::up::{Mesh, Part, Signal};
use weft_control::ca::store::ROOT_CERTIFICATE;

use crate::support::authority::{ca, ca_output, certs, metric, pair_for, rotate_root};
use crate::support::http::get;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::{Pair, workload};
use crate::support::{eventually, stdout, weft};

/// Long-lived streams through both sidecars.
const STREAMS: usize = 100;
/// The workloads' certificates live for so many seconds.
const LIFE: u64 = 6;

/// A pair whose certificates live for seconds.
fn pair(loopback: u8) -> Pair {
    pair_for(loopback, LIFE)
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

    /// Not one request of at least so many failed, and every stream is whole.
    async fn unharmed(self, requests: u64) {
        let tally = self.load.stop().await;
        println!("{}", tally.words());
        assert!(tally.good >= requests, "{}", tally.words());
        assert_eq!((tally.failed(), tally.dropped), (0, 0), "{}", tally.words());
        for stream in self.streams {
            let watched = stream.stop().await;
            assert!(watched.broken.is_none() && watched.lines > 2, "{watched:?}");
        }
    }
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
        traffic.unharmed(10_000).await;
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

/// Gives a running mesh these trust domains.
fn trust(mesh: &Mesh, domain: &str, aliases: &str) {
    let path = mesh.config_dir().join("mesh.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<_> = text.lines().filter(|l| !l.trim_start().starts_with("trustDomain")).collect();
    let settings = format!("  mesh: |\n    trustDomain: {domain}\n    trustDomainAliases: [{aliases}]");
    std::fs::write(&path, kept.join("\n").replacen("  mesh: |", &settings, 1)).unwrap();
}

/// Whether a workload's listeners name a trust domain.
fn accepts(mesh: &Mesh, workload: &str, domain: &str) -> bool {
    let admin = mesh.workload(workload).unwrap().admin();
    get(admin, "/config_dump").unwrap().1.contains(&format!("spiffe://{domain}/"))
}

fn domain_of(mesh: &Mesh, workload: &str) -> String {
    let page = get(mesh.workload(workload).unwrap().admin(), "/certs").unwrap().1;
    let at = page.find("spiffe://").expect("a SPIFFE id") + "spiffe://".len();
    page[at..].split('/').next().unwrap().to_owned()
}

#[test]
fn a_mesh_moves_to_another_trust_domain_by_an_alias_and_nobody_notices() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = pair(87);
        let mesh = pair.start().await;
        let back = mesh.workload("back-1").unwrap().inbound[0];
        // Somebody with a certificate of the old domain that lives for a day.
        let token = weft(&[
            "token",
            "create",
            "--state-dir",
            pair.state_dir().to_str().unwrap(),
            "--namespace",
            "pair",
            "--service-account",
            "observer",
        ]);
        let root = pair.state_dir().join(ROOT_CERTIFICATE);
        let old = credentials::from_mesh(mesh.control().secure, &root, stdout(&token).trim()).await.unwrap();
        let taken = || async {
            matches!(
                dial(back, Some(&old), &Request::get("observer", QUIET)).await.unwrap(),
                Outcome::Answered(_, answer) if answer.status() == 200
            )
        };
        assert!(taken().await);
        let traffic = Traffic::start(&mesh).await;

        trust(&mesh, "cluster.local", "shop.example");
        eventually("both accept the new domain", || {
            ["front-1", "back-1"].iter().all(|w| accepts(&mesh, w, "shop.example"))
        });
        trust(&mesh, "shop.example", "cluster.local");
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        mesh.restart(&Part::Control).unwrap();
        // It takes certificates of the old domain, now an alias, and gives ones of the new.
        let deadline = Instant::now() + Duration::from_secs(40);
        while ["front-1", "back-1"].iter().any(|w| domain_of(&mesh, w) != "shop.example") {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(taken().await, "an alias's workloads are welcome");
        trust(&mesh, "shop.example", "");
        eventually("neither accepts the old domain", || {
            ["front-1", "back-1"].iter().all(|w| !accepts(&mesh, w, "cluster.local"))
        });
        assert!(!taken().await, "without the alias they are not");
        traffic.unharmed(200).await;
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn a_server_whose_certificate_is_bad_is_ejected_while_others_serve_renews_at_once_and_comes_back() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(88);
        let second = workload("back", 12, "weft app").replace("name: back-1", "name: back-2");
        let entry = second.split("---").nth(1).unwrap();
        pair.write("back-2.yaml", entry);
        pair.write(
            "rule.yaml",
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: back, namespace: pair}\n\
             spec:\n  host: back\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, \
             baseEjectionTime: 2s, maxEjectionPercent: 50}\n",
        );
        let mesh = pair.start().await;
        let front = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let seen = || async {
            let answer = fetch(front, &Request::get("back:8080", QUIET)).await.unwrap();
            assert_eq!(answer.status(), 200);
            instance(&answer)
        };
        let mut all = BTreeSet::new();
        for _ in 0..20 {
            all.insert(seen().await);
        }
        assert_eq!(all.len(), 2, "{all:?}");

        let (serial, ..) = certs(&mesh, "back-2");
        ca(&pair, &["revoke", &serial]);
        let sum = |name: &str, label: &str| metric(&mesh, "front-1", name, label).iter().sum::<i64>();
        // Each stream needs a connection of its own. Not one of them fails: the other server takes them.
        let (mut streams, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(30));
        while sum("envoy_cluster_certificate_validation_failures", "reason=\"revoked\"") == 0 {
            assert!(Instant::now() < deadline, "it is never refused");
            let stream = Watcher::start(front, &Request::get("back:8080", STREAM), Duration::from_secs(10)).await;
            streams.push(stream.unwrap());
        }
        assert!(sum("envoy_cluster_outlier_detection_ejections_enforced_total", "back") > 0);
        let log = std::fs::read_to_string(mesh.log(&Part::Proxy("back-2".to_owned()))).unwrap();
        assert!(log.contains("CertificateRevoked"), "{log}");
        eventually("it has another certificate", || certs(&mesh, "back-2").0 != serial);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut again = BTreeSet::new();
        while again != all {
            assert!(Instant::now() < deadline, "it does not come back: {again:?}");
            again.insert(seen().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn each_bad_certificate_is_refused_and_counted_by_its_reason_and_a_good_one_taken() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(89);
        let mesh = pair.start().await;
        let back = mesh.workload("back-1").unwrap().inbound[0];
        let ours = Authority::of_mesh(&pair.state_dir()).unwrap();
        let id = "spiffe://cluster.local/ns/pair/sa/observer";
        let between = |from: i64, until: i64| {
            let (from, until) = (time::Duration::seconds(from), time::Duration::seconds(until));
            Some(ours.issue_for(id, from, until).unwrap())
        };
        let counted = |reason: &str| -> i64 {
            let label = format!("reason=\"{reason}\"");
            metric(&mesh, "back-1", "envoy_listener_certificate_validation_failures", &label).iter().sum()
        };
        for (shown, reason) in [
            (None, "no_certificate"),
            (Some(Authority::unknown().unwrap().issue(id).unwrap()), "unknown_issuer"),
            (Some(ours.issue("spiffe://elsewhere/ns/pair/sa/observer").unwrap()), "san_mismatch"),
            // A second over is over.
            (between(-600, -1), "expired"),
            (between(600, 1200), "not_valid_yet"),
        ] {
            assert_eq!(counted(reason), 0);
            let outcome = dial(back, shown.as_ref(), &Request::get("observer", QUIET)).await.unwrap();
            assert!(matches!(outcome, Outcome::Refused(_)), "{reason}");
            eventually(reason, || counted(reason) == 1);
        }
        // Also one whose time began a moment ago by a clock that is not ours.
        for good in [between(-600, 600), between(-1, 5)] {
            let outcome = dial(back, good.as_ref(), &Request::get("observer", QUIET)).await.unwrap();
            assert!(matches!(outcome, Outcome::Answered(_, answer) if answer.status() == 200));
        }
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn the_authority_is_lost_for_half_a_life_comes_back_from_its_backup_and_nobody_notices() {
    let _alone = alone();
    runtime().block_on(async {
        const SECONDS: u64 = 24;
        let pair = pair_for(90, SECONDS);
        let mesh = pair.start().await;
        let backup = pair.path().join("authority.backup");
        ca(&pair, &["backup", backup.to_str().unwrap()]);
        let traffic = Traffic::start(&mesh).await;
        let before = certs(&mesh, "back-1");
        // It is gone, and its disk with it, from before a renewal until half of a life later.
        mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        let gone = Instant::now();
        std::fs::remove_dir_all(pair.state_dir()).unwrap();
        let failures = || {
            let page = get(mesh.workload("back-1").unwrap().admin(), "/certs").unwrap().1;
            serde_json::from_str::<Value>(&page).unwrap()["renewal"]["failures"].as_u64().unwrap()
        };
        while gone.elapsed() < Duration::from_secs(SECONDS / 2) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(failures() > 0, "it was not asked while it was gone");
        ca(&pair, &["restore", backup.to_str().unwrap()]);
        mesh.restart(&Part::Control).unwrap();
        eventually("all have new certificates", || {
            ["front-1", "back-1"].iter().all(|w| {
                let page = get(mesh.workload(w).unwrap().admin(), "/certs").unwrap().1;
                serde_json::from_str::<Value>(&page).unwrap()["renewal"]["rotations"].as_u64() > Some(0)
            })
        });
        let after = certs(&mesh, "back-1");
        assert!(after.0 != before.0 && after.2 == before.2, "the root is the same");
        traffic.unharmed(1000).await;
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn a_federated_domains_workloads_are_welcome_by_its_own_roots_and_those_roots_name_nobody_else() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(91);
        let mesh = pair.start().await;
        let back = mesh.workload("back-1").unwrap().inbound[0];
        let partner = Authority::unknown().unwrap();
        let dialled = |id: &'static str| {
            let shown = partner.issue(id).unwrap();
            async move {
                match dial(back, Some(&shown), &Request::get("observer", QUIET)).await.unwrap() {
                    Outcome::Answered(_, answer) => answer.status(),
                    Outcome::Refused(_) => 0,
                }
            }
        };
        let (theirs, ours) = ("spiffe://partner.example/ns/x/sa/y", "spiffe://cluster.local/ns/pair/sa/front");
        assert_eq!((dialled(theirs).await, dialled(ours).await), (0, 0));

        let bundle = pair.path().join("partner.json");
        let der = base64::engine::general_purpose::STANDARD.encode(partner.certificate().unwrap());
        let keys = serde_json::json!({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [der]}]});
        std::fs::write(&bundle, keys.to_string()).unwrap();
        let path = mesh.config_dir().join("mesh.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let settings = format!(
            "  mesh: |\n    caCertificates: [{{trustDomains: [partner.example], spiffeBundleUrl: \"file://{}\"}}]",
            bundle.display()
        );
        std::fs::write(&path, text.replacen("  mesh: |", &settings, 1)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while dialled(theirs).await != 200 {
            assert!(Instant::now() < deadline, "the partner is not let in");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(dialled(ours).await, 0, "the partner's authority cannot name our workloads");
        // Our own go on as before.
        let front = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let answer = fetch(front, &Request::get("back:8080", QUIET)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let proxies = &ca(&pair, &["status"])["proxies"];
        assert_eq!((&proxies["acknowledged"], &proxies["behind"]), (&2.into(), &0.into()));
        mesh.shutdown().await.unwrap();
    });
}
