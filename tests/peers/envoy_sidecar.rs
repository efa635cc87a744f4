//! A real Envoy in the place of one sidecar of the example mesh: configured by our control plane through `weft agent`, with an
//! identity from it, between our own proxies on both sides. Our own proxy takes the same place by the same bootstrap.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use weft::client::Connection;
use weft::up::{Mesh, Part, Signal, Workload};

use crate::meshes;
use crate::programs::{Process, get, peer, weft, weft_proxy};

/// The workload whose sidecar Envoy replaces: called by the gateway and by user-service, it calls order-service.
const REPLACED: &str = "product-service-1";
const PRODUCT: &str = "spiffe://cluster.local/ns/ecotrack/sa/product-service";

/// Who is the sidecar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Envoy,
    /// Our proxy, which gets everything by the same bootstrap: secrets and configuration over the agent's sockets.
    Weft,
}

/// A proxy with its agent.
pub(crate) struct Sidecar {
    _envoy: Process,
    _agent: Process,
    _directory: tempfile::TempDir,
    admin: SocketAddr,
}

impl Sidecar {
    /// Starts both in the place of the workload's own proxy, and waits until Envoy serves.
    pub(crate) fn start(mesh: &Mesh, workload: &Workload, mode: &str, program: Program) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let at = |port: u16| SocketAddr::new(workload.address, port).to_string();
        let path = |p: &Path| p.to_str().unwrap().to_owned();
        let mut agent = weft();
        agent.arg("agent");
        for (flag, value) in [
            ("--name", workload.name.clone()),
            ("--namespace", workload.namespace.clone()),
            ("--service-account", workload.service_account.clone()),
            ("--ip", workload.address.to_string()),
            ("--interception-mode", "NONE".to_owned()),
            ("--xds-address", mesh.control().secure.to_string()),
            ("--xds-mode", mode.to_owned()),
            ("--root-cert", path(&mesh.state_dir().join("root-cert.pem"))),
            ("--token-file", path(&mesh.run_dir().join("tokens").join(&workload.id))),
            ("--sds-socket", path(&file("sds"))),
            ("--xds-socket", path(&file("xds"))),
            ("--bootstrap", path(&file("bootstrap.json"))),
            ("--admin-address", at(15000)),
            ("--ready-address", at(15021)),
            ("--prometheus-address", at(15090)),
            ("--status-address", at(15020)),
        ] {
            agent.args([flag, &value]);
        }
        if workload.gateway {
            agent.args(["--role", "gateway"]);
        }
        for (key, value) in &workload.labels {
            agent.arg("--label").arg(format!("{key}={value}"));
        }
        let mut agent = Process::start("agent", &mut agent, directory.path());
        agent.wait("serving", || file("bootstrap.json").exists());
        let mut envoy = match program {
            Program::Envoy => {
                let mut envoy = std::process::Command::new(peer("WEFT_ENVOY"));
                envoy.args(["--disable-hot-restart", "-l", "warning"]);
                envoy
            }
            Program::Weft => weft_proxy(),
        };
        envoy.arg("-c").arg(file("bootstrap.json")).args(["--concurrency", "1"]);
        let mut envoy = Process::start("envoy", &mut envoy, directory.path());
        let ready = workload.status();
        envoy.wait("ready", || get(ready, "/healthz/ready").is_ok_and(|(status, _)| status == 200));
        Self { _envoy: envoy, _agent: agent, _directory: directory, admin: workload.admin() }
    }

    /// Envoy's counters and gauges.
    fn stats(&self) -> Vec<(String, u64)> {
        let (_, text) = get(self.admin, "/stats").unwrap();
        let lines = text.lines().filter_map(|line| line.rsplit_once(": "));
        lines.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
    }

    /// The sum of the counters whose names begin and end so.
    pub(crate) fn sum(&self, begins: &str, ends: &str) -> u64 {
        self.stats().iter().filter(|(n, _)| n.starts_with(begins) && n.ends_with(ends)).map(|(_, v)| v).sum()
    }
}

/// Asks `service` through a sidecar's HTTP proxy.
pub(crate) async fn ask(proxy: SocketAddr, service: &str, canary: bool) -> (u16, Value) {
    let mut request =
        Request::get(format!("http://{service}:8080/")).header("host", format!("{service}:8080"));
    if canary {
        request = request.header("canary", "true");
    }
    answer(proxy, request.body(Full::default()).unwrap()).await
}

async fn answer(at: SocketAddr, request: Request<Full<Bytes>>) -> (u16, Value) {
    let exchange = async { Connection::open(at).await?.send(request).await };
    let answer = tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("in time").unwrap();
    let text = answer.text().into_owned();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or(Value::String(text)))
}

fn takes_the_place_of_a_sidecar(program: Program, mode: &str, loopback: u8) {
    let runtime = meshes::runtime();
    runtime.block_on(async {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
        let mesh = meshes::start(&directory, loopback).await;
        mesh.stop(&Part::Proxy(REPLACED.to_owned()), Signal::TERM).await.unwrap();
        let workload = mesh.workload(REPLACED).unwrap().clone();
        let envoy = tokio::task::block_in_place(|| Sidecar::start(&mesh, &workload, mode, program));

        // Everything that was sent is taken.
        for (kind, begins, ends) in [
            ("LDS", "listener_manager.lds.", "update_success"),
            ("CDS", "cluster_manager.cds.", "update_success"),
            ("EDS", "cluster.outbound|", ".update_success"),
            ("RDS", "http.", ".update_success"),
            ("SDS", "sds.", ".update_success"),
        ] {
            // Ours counts updates of its stream alone.
            assert!(
                program == Program::Weft || envoy.sum(begins, ends) > 0,
                "{kind}: nothing was accepted: {:#?}",
                envoy.stats()
            );
        }
        let refused: Vec<_> = envoy
            .stats()
            .into_iter()
            .filter(|(n, v)| *v > 0 && (n.ends_with("update_rejected") || n.ends_with("init_fetch_timeout")))
            .collect();
        assert_eq!(refused, [], "Envoy refused something");

        // Our gateway calls Envoy, Envoy calls our sidecar; each end names the other by its certificate.
        let gateway = mesh.workloads().iter().find(|w| w.gateway).unwrap();
        let entrance = gateway.listeners.iter().find(|a| a.port() == 8080).unwrap();
        let request = Request::get("/api/products").header("host", "api.ecotrack.platform.dev");
        let (status, says) = answer(*entrance, request.body(Full::default()).unwrap()).await;
        assert_eq!((status, &says["workload"]), (200, &REPLACED.into()), "{says}");
        let of_gateway = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway";
        assert_eq!(says["caller"]["spiffe"], of_gateway, "{says}");
        let order = &says["calls"][0];
        assert_eq!(
            (&order["status"], &order["service"]),
            (&200.into(), &"order-service:8080".into()),
            "{says}"
        );
        assert_eq!(order["answer"]["caller"]["spiffe"], PRODUCT, "{says}");

        // So does the sidecar of user-service.
        let user = mesh.workload("user-service-stable-1").unwrap().http_proxy.unwrap();
        let (status, says) = ask(user, "product-service", false).await;
        assert_eq!(status, 200, "{says}");
        assert_eq!(says["caller"]["spiffe"], "spiffe://cluster.local/ns/ecotrack/sa/user-service", "{says}");

        // Envoy routes by our rules: the canary's requests to the canary, all others to stable.
        let through = workload.http_proxy.unwrap();
        for number in 0..20 {
            for (canary, version) in [(true, "canary"), (false, "stable")] {
                let (status, says) = ask(through, "user-service", canary).await;
                assert_eq!((status, &says["version"]), (200, &version.into()), "{number}: {says}");
                assert_eq!(says["caller"]["spiffe"], PRODUCT, "{says}");
            }
        }
        let (status, says) = ask(through, "nobody", false).await;
        assert_eq!(status, 502, "REGISTRY_ONLY: {says}");

        // Its port takes mutual TLS only.
        let plain = get(workload.inbound[0], "/");
        assert!(!plain.as_ref().is_ok_and(|(status, _)| *status > 0), "plaintext was answered: {plain:?}");
        let versions = envoy.sum("listener.", "ssl.versions.TLSv1.3");
        let curves = envoy.sum("listener.", "ssl.curves.X25519MLKEM768");
        assert!(versions > 0 && curves > 0, "TLS 1.3: {versions}, X25519MLKEM768: {curves}");
        assert_eq!(envoy.sum("listener.", "ssl.fail_verify_san") + envoy.sum("", "update_rejected"), 0);

        // A change of the rules reaches it.
        let file = mesh.config_dir().join("user-service-traffic.yaml");
        let rules = std::fs::read_to_string(&file).unwrap();
        let stable = "            subset: stable\n";
        assert!(rules.contains(stable));
        std::fs::write(&file, rules.replacen(stable, "            subset: canary\n", 1)).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (_, says) = ask(through, "user-service", false).await;
            if says["version"] == "canary" {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "the new rule is not in force: {says}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(envoy.sum("", "update_rejected"), 0);
        drop(envoy);
        mesh.shutdown().await.unwrap();
    });
}

#[test]
fn envoy_takes_the_place_of_a_sidecar_by_delta_xds() {
    takes_the_place_of_a_sidecar(Program::Envoy, "delta", 31);
}

#[test]
fn envoy_takes_the_place_of_a_sidecar_by_state_of_the_world() {
    takes_the_place_of_a_sidecar(Program::Envoy, "sotw", 32);
}

#[test]
fn our_proxy_takes_the_same_place_by_the_same_bootstrap() {
    takes_the_place_of_a_sidecar(Program::Weft, "delta", 38);
}
