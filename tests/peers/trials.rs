//! A real Envoy as the client of a service with a HealthCheck and a version on trial: it checks as our proxy does, and what it counts
//! decides as what our proxy counts (`e2e::traffic_api::{checks, trials}`).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::programs::{Process, get, weft};
use crate::rate_limits::envoy;

const CONTROL: &str = "127.85.1.1";
const CLIENT: &str = "127.85.1.2";

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
    // It is named by the header; a request by the address alone is for nobody.
    let mut stream = std::net::TcpStream::connect((CLIENT, 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut text);
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn told() -> Value {
    let at: SocketAddr = format!("{CONTROL}:8080").parse().unwrap();
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
