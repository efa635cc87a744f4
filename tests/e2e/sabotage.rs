//! Each check of the journey, seen to fail: a mesh is broken on purpose, in a few strokes, each of which breaks several
//! things that do not touch each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use weft::demo::check::apps::{self, Behaviour};
use weft::demo::check::observe::credentials::Authority;
use weft::demo::check::observe::http::Request;
use weft::demo::check::observe::tls::Server;
use weft::demo::check::scene::{Patience, stage, until};
use weft::demo::check::{
    Check, Scene, balance, canary, certificates, ejection, hops, ingress, live, outage, part, refusals,
    retries, rotation, start,
};
use weft::up::{Part, Signal};

use crate::support::mesh::{alone, options, runtime};

/// A change of a configuration file.
type Edit = (&'static str, &'static str, &'static str);

/// What every stroke showed, by the name of the check.
static FAILED: LazyLock<BTreeMap<String, Check>> = LazyLock::new(|| {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let example = example(&directory.path().join("example"));
    let began = std::time::Instant::now();
    runtime().block_on(async {
        let staging = directory.path().join("staging");
        stage(&example, &staging).unwrap();
        // Certificates that do not rotate while anybody looks.
        let added = std::fs::read_to_string(staging.join("check.yaml")).unwrap();
        std::fs::write(staging.join("check.yaml"), added.replace("SECRET_TTL: 8s", "SECRET_TTL: 1h"))
            .unwrap();
        let mut scene = start(&staging, options()).await.unwrap();
        scene.patience = Patience { effect: Duration::from_secs(5), reconnect: Duration::from_secs(5) };
        let mut seen = Seen::default();
        seen.whole(&scene).await;
        println!("whole: {:.1} s", began.elapsed().as_secs_f64());
        seen.rules(&scene).await;
        println!("rules: {:.1} s", began.elapsed().as_secs_f64());
        seen.strangers(&mut scene).await;
        println!("strangers: {:.1} s", began.elapsed().as_secs_f64());
        seen.policies(&scene).await;
        println!("policies: {:.1} s", began.elapsed().as_secs_f64());
        seen.edits(&scene).await;
        println!("edits: {:.1} s", began.elapsed().as_secs_f64());
        seen.outage(&scene).await;
        println!("outage: {:.1} s", began.elapsed().as_secs_f64());
        drop(scene);
        for check in seen.0.values() {
            println!("seen: {check}");
        }
        seen.0
    })
});

/// The example mesh with a workload that has another identity and another lifetime than it should.
fn example(to: &Path) -> std::path::PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let astray = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: notification-service-2
  namespace: ecotrack
  annotations:
    weft.dev/command: weft app
    proxy.istio.io/config: |
      proxyMetadata:
        SECRET_TTL: 1h
spec:
  address: 127.0.14.2
  ports:
    http: 8080
  labels:
    app: notification-service
  serviceAccount: somebody
---
# Says when the observer's sidecar has a change.
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: marker
  namespace: ecotrack
spec:
  hosts:
    - marker.tap
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - number: 8080
      name: http
      protocol: HTTP
  endpoints:
    - address: 127.0.36.9
"#;
    // Read last, so that it is no service's first instance.
    std::fs::write(to.join("z-astray.yaml"), astray).unwrap();
    to.to_owned()
}

#[derive(Default)]
struct Seen(BTreeMap<String, Check>);

impl Seen {
    /// Notes what failed.
    fn note(&mut self, checks: Vec<Check>) {
        for check in checks.into_iter().filter(|c| !c.ok) {
            self.0.entry(check.name.clone()).or_insert(check);
        }
    }

    /// Before anything is broken the quick checks hold, but for the workload that is astray.
    async fn whole(&mut self, scene: &Scene) {
        let checks = quick(scene).await;
        let wrong: Vec<_> = checks
            .iter()
            .filter(|c| {
                !c.ok
                    && !["certificates: names", "certificates: keys and lifetimes"].contains(&c.name.as_str())
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        self.note(checks);
    }

    /// Routes, peer authentication, trust domain, names: one edit of each.
    async fn rules(&mut self, scene: &Scene) {
        let edits: &[Edit] = &[
            ("security.yaml", "mode: STRICT", "mode: PERMISSIVE"),
            (
                "mesh.yaml",
                "trustDomain: cluster.local",
                "trustDomain: cluster.local\n    trustDomainAliases: [elsewhere.example]",
            ),
            ("ingress.yaml", "    - api.ecotrack.platform.dev\n", "    - '*.ecotrack.platform.dev'\n"),
            (
                "ingress.yaml",
                "  http:\n    - name: users-canary\n",
                "  http:\n    - route:\n        - destination:\n            host: payment-service\n            port:\n              number: 8080\n    - name: users-canary\n",
            ),
            (
                "user-service-traffic.yaml",
                "subset: canary\n          weight: 100",
                "subset: stable\n          weight:  100",
            ),
            (
                "user-service-traffic.yaml",
                "subset: stable\n          weight: 100",
                "subset: canary\n          weight: 100",
            ),
            (
                "check.yaml",
                "    - impostor.tap\n",
                "    - impostor.tap\n  subjectAltNames: ['spiffe://cluster.local/ns/ecotrack/sa/payment-service']\n",
            ),
            (
                "check.yaml",
                "    - witness.tap\n",
                "    - witness.tap\n  subjectAltNames: ['spiffe://cluster.local/ns/ecotrack/sa/observer']\n",
            ),
        ];
        let broken =
            edit(scene, edits, Some(&destination_rule("payment-service.tap", "mode: DISABLE"))).await;
        let must = [
            "hops: on the wire",
            "hops: the caller that the upstream recorded",
            "hops: payment-service in notification-service's place",
            "hops: a server with another service's certificate",
            "STRICT: a request in plain text",
            "STRICT: a certificate of another trust domain",
            "ingress: /api/users",
            "ingress: /api/products",
            "ingress: /api/orders",
            "ingress: an unknown host",
            "ingress: an unknown path",
            "canary: header canary: true",
            "canary: no header",
            "canary: header canary: false",
            "canary: at the gateway, header canary: true",
            "canary: at the gateway, no header",
        ];
        self.until_failed(&must, || quick(scene)).await;
        broken.mend(scene).await;
    }

    /// A sidecar that lets everybody in, clients that trust everybody, and observers who hold the wrong papers.
    async fn strangers(&mut self, scene: &mut Scene) {
        let rule = destination_rule("witness.tap", "mode: SIMPLE\n      insecureSkipVerify: true");
        let broken = edit(scene, &[], Some(&rule)).await;
        let must =
            ["hops: clients, as a server sees them", "hops: a server with a certificate of an unknown CA"];
        self.until_failed(&must, async || part("hops", hops::checks(scene).await)).await;
        broken.mend(scene).await;

        let sidecar = Part::Proxy("notification-service-1".to_owned());
        scene.mesh.stop(&sidecar, Signal::KILL).await.unwrap();
        let at = scene.port_of(scene.mesh.workload("notification-service-1").unwrap()).unwrap();
        let open = Server::open(at, &scene.own).await.unwrap();
        let strangers = refusals::Strangers::new().unwrap();
        let (checks, _) = open.serve(refusals::checks(scene, &strangers)).await;
        self.note(part("STRICT", checks));
        drop(open);
        scene.revive(&[sidecar]).await.unwrap();

        let nobody =
            Authority::unknown().unwrap().issue("spiffe://cluster.local/ns/ecotrack/sa/observer").unwrap();
        let root = std::mem::replace(&mut scene.root, nobody.chain[1].clone());
        self.note(part("certificates", certificates::checks(scene).await));
        scene.root = root;
        let own = std::mem::replace(&mut scene.own, nobody);
        self.note(part("STRICT", refusals::checks(scene, &strangers).await));
        scene.own = own;
    }

    /// Balancers, retries, ejection, lifetimes.
    async fn policies(&mut self, scene: &Scene) {
        let first: &[Edit] = &[
            ("check.yaml", "simple: LEAST_CONN\n    - name: robin", "simple: ROUND_ROBIN\n    - name: robin"),
            (
                "check.yaml",
                "        attempts: 3\n        perTryTimeout: 10s\n        retryOn: 5xx,reset,connect-failure,refused-stream\n",
                "        attempts: 0\n",
            ),
            ("check.yaml", "consecutive5xxErrors: 5", "consecutive5xxErrors: 50"),
        ];
        let broken = edit(scene, first, None).await;
        let dying = async {
            let rotate = scene.instance("rotate").unwrap();
            let under_way =
                || async { (apps::records(rotate, 200).await.unwrap().len() > 150).then_some(()) };
            until(Duration::from_secs(20), under_way).await.unwrap();
            let application = Part::App(rotate.id.clone());
            scene.mesh.stop(&application, Signal::KILL).await.unwrap();
            let request = Request::get("rotate:8080", apps::QUIET);
            // Long enough for the traffic beside this to meet it, too.
            for _ in 0..25 {
                let fails = || async { (scene.ask(&request).await.ok()?.status() == 503).then_some(()) };
                until(Duration::from_secs(10), fails).await.unwrap();
            }
            scene.mesh.restart(&application).unwrap();
        };
        let (balance, retries, ejection, rotation, ()) = tokio::join!(
            balance::checks(scene),
            retries::checks(scene),
            ejection::checks(scene),
            rotation::checks(scene, 1),
            dying,
        );
        self.note(part("balance", balance));
        self.note(part("retries", retries));
        self.note(part("ejection", ejection));
        self.note(part("rotation", rotation));
        broken.mend(scene).await;

        let second: &[Edit] = &[
            (
                "check.yaml",
                "simple: ROUND_ROBIN\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService",
                "simple: LEAST_CONN\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService",
            ),
            (
                "check.yaml",
                "      retries:\n        attempts: 3\n",
                "      retries:\n        attempts: 3\n        retryIgnorePreviousHosts: false\n",
            ),
            // With most of the weight at the host that fails, most retries go back to it.
            ("check.yaml", ".32.3\n  ports:", ".32.3\n  weight: 10\n  ports:"),
            (
                "check.yaml",
                "simple: LEAST_CONN\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: retry\n",
                "simple: ROUND_ROBIN\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: retry\n",
            ),
            ("check.yaml", "baseEjectionTime: 1s", "baseEjectionTime: 3s"),
        ];
        let broken = edit(scene, second, None).await;
        let (balance, retries, ejection) =
            tokio::join!(balance::checks(scene), retries::checks(scene), ejection::checks(scene));
        self.note(part("balance", balance));
        self.note(part("retries", retries));
        self.note(part("ejection", ejection));
        broken.mend(scene).await;
    }

    /// Another split than asked for, an edit that is not invalid; then a control plane that does not look, and upstreams that
    /// fail.
    async fn edits(&mut self, scene: &Scene) {
        let edits = live::Edits { split: (80, 20), requests: 2000, wrong: "weight" };
        self.note(part("live edit", live::checks(scene, &edits).await));

        scene.mesh.signal(&Part::Control, Signal::STOP).unwrap();
        let edits = live::Edits { requests: 100, ..live::Edits::default() };
        let (live, ()) = tokio::join!(live::checks(scene, &edits), failing_users(scene));
        self.note(part("live edit", live));
        scene.mesh.signal(&Part::Control, Signal::CONT).unwrap();
        users(scene, None).await;
    }

    /// Upstreams that fail, somebody who hammers at the control plane's port, and a control plane that cannot start again.
    async fn outage(&mut self, scene: &Scene) {
        let at = scene.mesh.control().secure;
        let hammer = async {
            for _ in 0..1000 {
                let _ = tokio::net::TcpStream::connect(at).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let unreadable = async {
            let down = || async { scene.mesh.pid(&Part::Control).is_none().then_some(()) };
            until(Duration::from_secs(10), down).await.unwrap();
            std::fs::write(scene.file("broken.yaml"), "kind: [\n").unwrap();
            hammer.await;
        };
        let (outage, (), ()) = tokio::join!(outage::checks(scene), unreadable, failing_users(scene));
        self.note(part("outage", outage));
    }

    /// Looks again until all of these fail (other proxies than the observer's may have the change a little later), and notes
    /// what failed then.
    async fn until_failed<F: Future<Output = Vec<Check>>>(
        &mut self,
        names: &[&str],
        mut look: impl FnMut() -> F,
    ) {
        let mut last = Vec::new();
        for _ in 0..4 {
            last = look().await;
            if names.iter().all(|n| last.iter().any(|c| c.name == *n && !c.ok)) {
                break;
            }
        }
        self.note(last);
    }
}

async fn quick(scene: &Scene) -> Vec<Check> {
    let strangers = refusals::Strangers::new().unwrap();
    let mut checks = part("certificates", certificates::checks(scene).await);
    checks.extend(part("hops", hops::checks(scene).await));
    checks.extend(part("STRICT", refusals::checks(scene, &strangers).await));
    checks.extend(part("ingress", ingress::checks(scene).await));
    checks.extend(part("canary", canary::checks(scene).await));
    checks
}

/// Lets the instances of user-service fail once traffic is under way at any of them (one may be ejected from before).
async fn failing_users(scene: &Scene) {
    let instances = scene.instances("user-service");
    for instance in &instances {
        apps::forget(instance).await.unwrap();
    }
    let under_way = || async {
        let mut received = 0;
        for instance in &instances {
            received += apps::records(instance, 50).await.unwrap().len();
        }
        (received > 20).then_some(())
    };
    until(Duration::from_secs(20), under_way).await.unwrap();
    users(scene, Some(503)).await;
}

async fn users(scene: &Scene, status: Option<u16>) {
    for instance in scene.instances("user-service") {
        apps::behave(instance, &Behaviour { status, ..Behaviour::default() }).await.unwrap();
    }
}

fn destination_rule(host: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: broken\n  namespace: ecotrack\n\
         spec:\n  host: {host}\n  trafficPolicy:\n    tls:\n      {tls}\n"
    )
}

/// What was there before.
struct Broken(Vec<(String, String)>);

impl Broken {
    async fn mend(self, scene: &Scene) {
        for (name, text) in self.0 {
            scene.write(&name, &text).unwrap();
        }
        let _ = std::fs::remove_file(scene.file("broken.yaml"));
        mark(scene).await;
    }
}

/// Changes files, and waits until the observer's sidecar has the change.
async fn edit(scene: &Scene, edits: &[Edit], more: Option<&str>) -> Broken {
    let mut before: Vec<(String, String)> = Vec::new();
    for (name, from, to) in edits {
        let text = scene.edit(name, from, to).unwrap();
        if !before.iter().any(|(n, _)| n == name) {
            before.push(((*name).to_owned(), text));
        }
    }
    if let Some(text) = more {
        scene.write("broken.yaml", text).unwrap();
    }
    mark(scene).await;
    Broken(before)
}

/// Writes one more rule, which comes with whatever was written before it, and waits until it answers.
async fn mark(scene: &Scene) {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: marker\n  namespace: ecotrack\n\
         spec:\n  hosts: [marker.tap]\n  http:\n    - directResponse:\n        status: 200\n        body:\n          \
         string: 'mark {number}'\n"
    );
    scene.write("marker.yaml", &rule).unwrap();
    let request = Request::get("marker.tap:8080", "/");
    let wanted = format!("mark {number}").into_bytes();
    let look = || async { (scene.ask(&request).await.ok()?.body == wanted).then_some(()) };
    let arrived = until(Duration::from_secs(15), look).await.is_some();
    let log = std::fs::read_to_string(scene.mesh.log(&Part::Control)).unwrap_or_default();
    let last: Vec<_> = log.lines().rev().take(8).collect();
    assert!(arrived, "the change does not arrive: {last:#?}");
}

/// The check failed, for the reason that was made for it.
fn fails(name: &str, seen: &str) {
    let check = FAILED.get(name).unwrap_or_else(|| panic!("{name} was never seen to fail"));
    assert!(check.seen.contains(seen), "{check}");
}

macro_rules! sabotages {
    ($($test:ident: $($name:literal seen $seen:literal),+;)*) => {
        $(#[test]
        fn $test() {
            $(fails($name, $seen);)+
        })*
    };
}

sabotages! {
    another_service_account_is_noticed: "certificates: names" seen "notification-service-2: [\"spiffe://cluster.local/ns/ecotrack/sa/somebody\"]";
    another_lifetime_is_noticed: "certificates: keys and lifetimes" seen "at 1 of 9";
    another_root_is_noticed: "certificates: signatures" seen "not signed";
    a_hop_without_tls_is_noticed:
        "hops: on the wire" seen "order-service -> payment-service: no TLS",
        "hops: the caller that the upstream recorded" seen "order-service -> payment-service: 200, from nobody";
    a_client_that_takes_another_name_is_noticed:
        "hops: payment-service in notification-service's place" seen "200, the request arrived",
        "hops: a server with another service's certificate" seen "sent its request";
    a_client_that_takes_anybody_is_noticed:
        "hops: clients, as a server sees them" seen "by []",
        "hops: a server with a certificate of an unknown CA" seen "sent its request";
    permissive_mode_is_noticed: "STRICT: a request in plain text" seen "0 of 9 ports refuse";
    an_alias_of_the_trust_domain_is_noticed: "STRICT: a certificate of another trust domain" seen "0 of 9 ports refuse";
    a_sidecar_that_lets_everybody_in_is_noticed:
        "STRICT: no certificate" seen "8 of 9 ports refuse",
        "STRICT: a certificate of an unknown CA" seen "8 of 9 ports refuse";
    a_refused_member_of_the_mesh_is_noticed: "STRICT: a certificate of the mesh" seen "0 of 9 ports answer";
    another_gateway_route_is_noticed:
        "ingress: /api/users" seen "200 by payment-service",
        "ingress: /api/products" seen "200 by payment-service",
        "ingress: /api/orders" seen "200 by payment-service",
        "ingress: an unknown host" seen "200",
        "ingress: an unknown path" seen "200";
    swapped_subsets_are_noticed:
        "canary: header canary: true" seen "200 at stable",
        "canary: no header" seen "200 at canary",
        "canary: header canary: false" seen "200 at canary",
        "canary: at the gateway, header canary: true" seen "50 at v1",
        "canary: at the gateway, no header" seen "50 at v1";
    another_balancer_is_noticed:
        "balance: LEAST_CONN" seen "33.",
        "balance: ROUND_ROBIN" seen "%";
    missing_retries_are_noticed:
        "retries: an instance is killed" seen " 503 ",
        "retries: an instance refuses connections" seen " 503 ",
        "retries: an instance answers 503" seen " 503 ";
    retries_at_the_same_host_are_noticed: "retries: attempts avoid hosts already tried" seen "came back";
    a_missing_ejection_is_noticed: "ejection: failures in a row that eject" seen "[";
    a_longer_ejection_is_noticed: "ejection: return after base ejection time x number of ejections" seen "";
    certificates_that_stay_are_noticed:
        "rotation: the server's certificate" seen "0 rotations",
        "rotation: the client's certificate" seen "1 certificates";
    failures_during_rotation_are_noticed:
        "rotation: traffic" seen " 503 ",
        "rotation: a long stream" seen "broken after";
    another_split_is_noticed: "split: 90/10" seen "at the canary";
    an_edit_without_effect_is_noticed: "live edit: the split changes without a restart" seen "none did";
    failures_during_an_edit_are_noticed: "live edit: traffic" seen " 503 ";
    an_invalid_edit_that_is_taken_is_noticed:
        "invalid edit: refused" seen "nothing was said",
        "invalid edit: the last good state stays" seen "at the canary";
    failures_without_a_control_plane_are_noticed: "outage: traffic goes on" seen " 503 ";
    proxies_that_do_not_wait_are_noticed: "outage: proxies try again with back-off" seen "attempts";
    a_control_plane_that_stays_away_is_noticed:
        "outage: proxies reconnect" seen "0",
        "outage: configuration flows again" seen "it is not";
}

/// No check of the journey is left out here.
#[test]
fn every_check_of_the_journey_was_seen_to_fail() {
    let missing: Vec<_> =
        crate::journey::REPORT.checks.iter().map(|c| &c.name).filter(|n| !FAILED.contains_key(*n)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
