//! Clocks that are wrong: proxies and a control plane that each have a wall clock of their own, by libfaketime. Time goes on as
//! it does for everybody (timers do not move), but each process reads another hour, and it jumps when a test says so.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft::demo::check::observe::http::{Request, fetch};
use weft::up::{Mesh, Options, Part, Signal};
use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use crate::meshes::runtime;
use crate::programs::{get, peer};

/// How long certificates live: long enough that half of it is more than clocks are apart.
const LIFE: i64 = 1200;
/// How far a clock is off, in seconds.
const OFF: i64 = 300;
/// Nobody sleeps for longer than half a minute at a time, so that a jump is noticed.
const NOTICED: Duration = Duration::from_secs(60);

const MESH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    proxyHttpPort: 15080
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: pair}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: back, namespace: pair}
spec: {host: back, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: pair}
spec:
  ingress:
    - {port: {number: 8080, protocol: HTTP, name: http}, captureMode: NONE, defaultEndpoint: '0.0.0.0:18080'}
  egress:
    - {captureMode: NONE, hosts: ['pair/*']}
";

fn workload(name: &str, x: u8) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: pair}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: pair
  annotations:
    weft.dev/command: weft app
    proxy.istio.io/config: 'proxyMetadata: {{SECRET_TTL: {LIFE}s}}'
spec: {{address: 127.0.{x}.1, ports: {{http: 8080}}, labels: {{app: {name}}}, serviceAccount: {name}}}
"
    )
}

/// A mesh in which `front` calls `back`, a new connection for each request, and clocks that a test sets.
struct Clocks {
    directory: tempfile::TempDir,
    mesh: Mesh,
    off: BTreeMap<&'static str, i64>,
}

/// Runs `weft` with the clock that the file of its part says: seconds to add to the machine's.
fn script(directory: &Path) -> String {
    format!(
        "#!/bin/sh
case \" $* \" in
' control '*) part=control ;;
*' --name front '*) part=front ;;
*' --name back '*) part=back ;;
*) exec {weft} \"$@\" ;;
esac
export FAKETIME_TIMESTAMP_FILE={directory}/$part FAKETIME_NO_CACHE=1
export FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1
LD_PRELOAD={library} exec {weft} \"$@\"
",
        weft = env!("CARGO_BIN_EXE_weft"),
        directory = directory.display(),
        library = peer("WEFT_FAKETIME").display(),
    )
}

fn set(directory: &Path, part: &str, off: i64) {
    // Replaced in one step, for it is read all the time.
    std::fs::write(directory.join("new"), format!("{off:+}\n")).unwrap();
    std::fs::rename(directory.join("new"), directory.join(part)).unwrap();
}

impl Clocks {
    /// On 127.`loopback`.x.y, with the clocks of control plane, front and back so many seconds off.
    async fn start(loopback: u8, [control, front, back]: [i64; 3]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { directory.path().join(name) };
        let off = BTreeMap::from([("control", control), ("front", front), ("back", back)]);
        off.iter().for_each(|(part, off)| set(directory.path(), part, *off));
        std::fs::create_dir(at("mesh")).unwrap();
        let objects = format!("{MESH}{}{}", workload("front", 10), workload("back", 11));
        std::fs::write(at("mesh/mesh.yaml"), objects).unwrap();
        std::fs::write(at("weft"), script(directory.path())).unwrap();
        std::fs::set_permissions(at("weft"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(&at("state"), shape, OffsetDateTime::now_utc()).unwrap();
        let options = Options {
            exe: at("weft"),
            state_dir: Some(at("state")),
            loopback: Some(loopback),
            drain: Duration::from_secs(1),
            concurrency: 1,
            ..Options::new(at("mesh")).unwrap()
        };
        let mesh = Mesh::start(options).await.unwrap();
        mesh.wait_ready(Duration::from_secs(90)).await.unwrap();
        Self { directory, mesh, off }
    }

    /// Moves these clocks by so many seconds.
    fn jump(&mut self, parts: &[&'static str], seconds: i64) {
        for part in parts {
            let off = self.off.get_mut(part).unwrap();
            *off += seconds;
            set(self.directory.path(), part, *off);
        }
    }

    /// What a clock reads.
    fn reads(&self, part: &str) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.off[part])
    }

    fn page(&self, workload: &str) -> Value {
        let (_, page) = get(self.mesh.workload(workload).unwrap().admin(), "/certs").unwrap();
        serde_json::from_str(&page).unwrap()
    }

    /// When a certificate was issued by its proxy's clock, when it expires by the authority's, when it is to be renewed, and
    /// how often it was.
    fn certificate(&self, workload: &str) -> (OffsetDateTime, OffsetDateTime, OffsetDateTime, u64) {
        let page = self.page(workload);
        let leaf = &page["certificates"][0]["cert_chain"][0];
        let time =
            |v: &Value| OffsetDateTime::parse(v.as_str().unwrap_or_default(), &Rfc3339).expect("a time");
        let (issued, expires) = (time(&leaf["valid_from"]), time(&leaf["expiration_time"]));
        let renewal = &page["renewal"];
        (issued, expires, time(&renewal["next"]), renewal["rotations"].as_u64().unwrap())
    }

    /// The status of a request from front to back, on a connection of its own all the way.
    async fn status(&self) -> u16 {
        let to = self.mesh.workload("front").unwrap().http_proxy.unwrap();
        fetch(to, &Request::get("back:8080", "/whoami")).await.unwrap().status()
    }

    async fn all_well(&self) {
        for _ in 0..20 {
            assert_eq!(self.status().await, 200);
        }
    }

    /// Waits for a status, while nothing else comes than what was before.
    async fn becomes(&self, before: &[u16], after: u16) {
        let end = Instant::now() + NOTICED;
        loop {
            match self.status().await {
                status if status == after => return,
                status => assert!(before.contains(&status), "{status}"),
            }
            assert!(Instant::now() < end, "it never becomes {after}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn skewed(loopback: u8, off: [i64; 3]) {
    runtime().block_on(async {
        let mut clocks = Clocks::start(loopback, off).await;
        clocks.all_well().await;
        // Both say when they will renew: after a good part of the life, and while whoever's clock is the furthest ahead still
        // takes the old one.
        let ahead = ["front", "back"].map(|w| clocks.reads(w)).into_iter().max().unwrap();
        let mut latest = 0;
        for name in ["front", "back"] {
            let (issued, expires, renews, rotations) = clocks.certificate(name);
            let off = clocks.reads("control") - clocks.reads(name);
            let after = (renews - issued).whole_seconds();
            assert!(after > LIFE / 3 && rotations == 0, "{name}: {after} s");
            // At that moment the clock that is ahead reads so much.
            let then = renews + (ahead - clocks.reads(name));
            assert!(expires - then > time::Duration::minutes(1), "{name}: {then} of {expires}, {off} off");
            latest = latest.max(after);
        }
        // It is done as it was said, and nobody notices.
        let everybody = ["control", "front", "back"];
        clocks.jump(&everybody, LIFE / 3 - 20);
        clocks.all_well().await;
        assert!(["front", "back"].iter().all(|w| clocks.certificate(w).3 == 0));
        clocks.jump(&everybody, latest - LIFE / 3 + 20);
        let end = Instant::now() + NOTICED;
        while ["front", "back"].iter().any(|w| clocks.certificate(w).3 == 0) {
            assert_eq!(clocks.status().await, 200);
            assert!(Instant::now() < end, "they are not renewed: {}", clocks.page("front"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        clocks.all_well().await;
        for name in ["front", "back"] {
            let page = clocks.page(name);
            assert_eq!(page["renewal"]["failures"], 0, "{name}: {page}");
        }
        clocks.mesh.shutdown().await.unwrap();
    });
}

#[test]
fn a_client_ahead_and_a_server_behind_renew_in_time() {
    skewed(111, [0, OFF, -OFF]);
}

#[test]
fn a_client_behind_and_a_server_ahead_renew_in_time() {
    skewed(112, [0, -OFF, OFF]);
}

#[test]
fn a_control_plane_that_is_ahead_gives_certificates_that_are_valid_already() {
    skewed(113, [OFF, 0, 0]);
}

#[test]
fn a_control_plane_that_is_behind_gives_certificates_that_are_renewed_in_time() {
    skewed(114, [-OFF, 0, 0]);
}

#[test]
fn what_expired_by_a_jump_of_a_clock_is_refused_until_it_is_renewed() {
    runtime().block_on(async {
        let mut clocks = Clocks::start(115, [0; 3]).await;
        clocks.all_well().await;
        clocks.mesh.stop(&Part::Control, Signal::KILL).await.unwrap();
        // One side's clock jumps: what the other shows is over for it, at once and whichever side it is.
        for side in ["front", "back"] {
            clocks.jump(&[side], LIFE + 1);
            for _ in 0..20 {
                assert_eq!(clocks.status().await, 503, "{side}");
            }
            clocks.jump(&[side], -LIFE - 1);
            // Its own certificate it may have withdrawn meanwhile; nobody is there to give it another one.
            if clocks.page(side)["certificates"] == serde_json::json!([]) {
                break;
            }
            clocks.becomes(&[503], 200).await;
        }
        // Both jump, and the control plane is there again.
        for part in ["control", "front", "back"] {
            clocks.jump(&[part], LIFE + 1);
        }
        assert_eq!(clocks.status().await, 503);
        clocks.mesh.restart(&Part::Control).unwrap();
        clocks.becomes(&[503], 200).await;
        clocks.all_well().await;
        clocks.mesh.shutdown().await.unwrap();
    });
}
