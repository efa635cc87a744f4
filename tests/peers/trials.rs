//! A real Envoy as the client of a service with a HealthCheck and a version on trial: it checks as our proxy does, and what it counts
//! decides as what our proxy counts (`e2e::traffic_api::{checks, trials}`).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::programs::{Process, get, peer, weft, weft_proxy};
use crate::rate_limits::envoy;

const CONTROL: &str = "127.85.1.1";
const CLIENT: &str = "127.85.1.2";
/// Of the trial that a Prometheus counts for: the control plane, the client, the Prometheus.
const THEIRS: [&str; 3] = ["127.85.2.1", "127.85.2.2", "127.85.2.3"];

/// An instance that answers with its name: `health` to `/healthz`, and `status` to everything else.
#[derive(Clone)]
struct Instance {
    port: u16,
    health: Arc<AtomicU16>,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    checks: Arc<Mutex<Vec<String>>>,
}

impl Instance {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let instance = Self {
            port: listener.local_addr().unwrap().port(),
            health: Arc::new(AtomicU16::new(200)),
            status: Arc::new(AtomicU16::new(200)),
            asked: Arc::default(),
            checks: Arc::default(),
        };
        let own = instance.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || -> std::io::Result<()> {
                    let mut writer = stream.try_clone()?;
                    let mut lines = BufReader::new(stream).lines();
                    loop {
                        let mut head = Vec::new();
                        loop {
                            let line = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
                            if line.is_empty() {
                                break;
                            }
                            head.push(line);
                        }
                        let check = head.first().is_some_and(|line| line.contains("/healthz"));
                        let status = if check {
                            own.checks.lock().unwrap().push(head.join("\n").to_lowercase());
                            own.health.load(Ordering::Relaxed)
                        } else {
                            own.asked.fetch_add(1, Ordering::Relaxed);
                            own.status.load(Ordering::Relaxed)
                        };
                        write!(
                            writer,
                            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{name}",
                            name.len()
                        )?;
                    }
                });
            }
        });
        instance
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn yaml(old: &[&Instance], new: &Instance) -> String {
    let endpoint = |instance: &Instance, version: &str| {
        format!("{{address: 127.0.0.1, ports: {{http: {}}}, labels: {{version: {version}}}}}", instance.port)
    };
    let mut endpoints: Vec<_> = old.iter().map(|instance| endpoint(instance, "v1")).collect();
    endpoints.push(endpoint(new, "v2"));
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  egress:
    - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {CLIENT}, captureMode: NONE, hosts: ['*/*']}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: a, namespace: shop}}
spec:
  hosts: [a.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{}]
---
apiVersion: weft.dev/v1alpha1
kind: HealthCheck
metadata: {{name: a, namespace: shop}}
spec: {{host: a.com, interval: 100ms, unhealthyThreshold: 2, healthyThreshold: 1, http: {{path: /healthz, headers: {{x-probe: 'yes'}}}}}}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficManagement
metadata: {{name: a, namespace: shop}}
spec:
  canaryDeployment:
    service: a.com
    stableVersion: v1
    canaryVersion: v2
    trafficSplit: {{stable: 50, canary: 50}}
    successCriteria: {{errorRateThreshold: 0.5, minimumRequestCount: 20, evaluationPeriod: 300s}}
    rollbackCriteria: {{errorRateThreshold: 2}}
  circuitBreakerStatus: {{service: a.com}}
",
        endpoints.join(", ")
    )
}

fn ask() -> (u16, String) {
    ask_at(CLIENT)
}

fn ask_at(client: &str) -> (u16, String) {
    // It is named by the header; a request by the address alone is for nobody.
    let mut stream = std::net::TcpStream::connect((client, 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut text);
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn told() -> Value {
    told_by(CONTROL)
}

fn told_by(control: &str) -> Value {
    let at: SocketAddr = format!("{control}:8080").parse().unwrap();
    serde_json::from_str(&get(at, "/debug/trafficz").unwrap().1).unwrap()
}

#[test]
fn an_envoy_checks_endpoints_and_its_counts_decide() {
    let (old, ill, new) = (Instance::start("old"), Instance::start("ill"), Instance::start("new"));
    ill.health.store(500, Ordering::Relaxed);
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/mesh.yaml"), yaml(&[&old, &ill], &new)).unwrap();
    let mut command = weft();
    command.args(["control", "--address", CONTROL, "--ca-keys", "p256", "--config-dir"]);
    command.arg(directory.path().join("config"));
    let mut control = Process::start("control", &mut command, directory.path());
    let ready: SocketAddr = format!("{CONTROL}:8080").parse().unwrap();
    control.wait("ready", || get(ready, "/ready").is_ok_and(|a| a.0 == 200));
    let (_files, mut client) = envoy("sidecar", CLIENT, "shop", json!({}), CONTROL);
    let serves = || std::net::TcpStream::connect((CLIENT, 8080)).is_ok() && ask().0 == 200;
    client.wait("serving", serves);

    // The one that fails its check gets nothing, the others their share.
    let mut by_name = std::collections::BTreeMap::new();
    for _ in 0..100 {
        *by_name.entry(ask().1).or_insert(0) += 1;
    }
    assert_eq!(ill.asked(), 0, "{by_name:?}");
    assert!((30..70).contains(by_name.get("new").unwrap_or(&0)), "{by_name:?}");
    let check = ill.checks.lock().unwrap().last().cloned().unwrap();
    assert!(
        check.starts_with("get /healthz") && check.contains("host: a.com") && check.contains("x-probe: yes"),
        "{check}"
    );
    ill.health.store(200, Ordering::Relaxed);
    client.wait("asking the one that is well again", || {
        ask();
        ill.asked() > 0
    });

    // The version on trial fails.
    client.wait("counted", || {
        ask();
        told()["trials"][0]["period"]["requests"].as_u64() > Some(0)
    });
    assert_eq!(told()["trials"][0]["proxies"], json!({"asked": 1, "answered": 1}), "{:#}", told());
    new.status.store(500, Ordering::Relaxed);
    let began = Instant::now();
    let mut failed = 0;
    control.wait("done with the trial", || {
        failed += u64::from(ask().0 == 500);
        told()["trials"][0]["phase"] == "RolledBack"
    });
    let before = new.asked();
    control.wait("obeyed", || (0..20).all(|_| ask().1 != "new"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}; {before} requests", began.elapsed());
    control.wait("sure of the circuit", || {
        let circuit = &told()["circuitBreakers"][0];
        circuit["state"] == "CLOSED" && circuit["failureCount"].as_u64() >= Some(failed)
    });
    let stats = get(format!("{CLIENT}:15000").parse().unwrap(), "/stats?usedonly&filter=rejected").unwrap().1;
    assert!(!stats.contains("update_rejected"), "{stats}");
}

/// Prometheus itself, which looks at the proxy every second.
fn prometheus(at: &str, proxy: &str, directory: &std::path::Path) -> Process {
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "proxies", "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [format!("{proxy}:15090")]}]}],
    });
    let path = directory.join("prometheus.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = std::process::Command::new(peer("WEFT_PROMETHEUS"));
    command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(directory.join("data"));
    command.args(["--web.listen-address", &format!("{at}:9090"), "--log.level", "warn"]);
    let mut process = Process::start("prometheus", &mut command, directory);
    let address: SocketAddr = format!("{at}:9090").parse().unwrap();
    process.wait("ready", || get(address, "/-/ready").is_ok_and(|(status, _)| status == 200));
    process
}

#[test]
fn a_prometheus_may_count_and_while_it_is_away_nothing_is_decided() {
    let [control_at, client_at, prometheus_at] = THEIRS;
    let (old, new) = (Instance::start("old"), Instance::start("new"));
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    let counted_by = format!("prometheus: {{address: 'http://{prometheus_at}:9090'}}\n    trafficSplit");
    let text = yaml(&[&old], &new).replace(CLIENT, client_at).replace("trafficSplit", &counted_by);
    let text = text.replace("evaluationPeriod: 300s", "evaluationPeriod: 1s");
    // Many steps: it goes on, and is not through before the version has failed, also on a slow machine.
    let steps = (51..100).map(|step| step.to_string()).collect::<Vec<_>>().join(", ");
    let text = text.replace("canary: 50}", &format!("canary: 50}}\n    steps: [{steps}]"));
    std::fs::write(directory.path().join("config/mesh.yaml"), text).unwrap();
    let mut command = weft();
    command.args(["control", "--address", control_at, "--ca-keys", "p256", "--config-dir"]);
    command.arg(directory.path().join("config"));
    let mut control = Process::start("control", &mut command, directory.path());
    let ready: SocketAddr = format!("{control_at}:8080").parse().unwrap();
    control.wait("ready", || get(ready, "/ready").is_ok_and(|a| a.0 == 200));
    let mut proxy = weft_proxy();
    proxy.args(["--xds-address", &format!("{control_at}:15010"), "--xds-plaintext", "--namespace", "shop"]);
    proxy.args(["--ip", client_at, "--admin-address", &format!("{client_at}:15000")]);
    proxy.args(["--interception-mode", "NONE", "--concurrency", "1"]);
    let mut client = Process::start("client", &mut proxy, directory.path());
    client.wait("serving", || {
        std::net::TcpStream::connect((client_at, 8080)).is_ok() && ask_at(client_at).0 == 200
    });
    let trial = || told_by(control_at)["trials"][0].clone();
    let ask_some = || (0..20).for_each(|_| drop(ask_at(client_at)));

    // Nobody is there to ask: what the proxy counts meanwhile decides nothing, and that is said.
    control.wait("telling of it", || {
        ask_some();
        trial()["problem"]
            .as_str()
            .is_some_and(|p| p.contains("nothing is decided while http://127.85.2.3:9090"))
    });
    assert_eq!((&trial()["phase"], &trial()["canaryPercent"]), (&"Progressing".into(), &50.into()));
    assert_eq!(trial()["period"]["requests"], 0);

    let mut counts = prometheus(prometheus_at, client_at, directory.path());
    control.wait("going on", || {
        ask_some();
        trial()["canaryPercent"].as_u64() > Some(50)
    });
    assert_eq!(trial()["problem"], Value::Null, "{:#}", trial());
    new.status.store(500, Ordering::Relaxed);
    control.wait("done with the trial", || {
        ask_some();
        trial()["phase"] == "RolledBack"
    });
    assert!(trial()["message"].as_str().unwrap().contains("more than 2 % errors"), "{:#}", trial());
    control.wait("obeyed", || (0..20).all(|_| ask_at(client_at).1 != "new"));
    counts.end();
}
