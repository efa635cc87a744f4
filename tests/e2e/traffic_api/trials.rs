//! TrafficManagement: a new version gets more, stays, or gets nothing, by what the proxies count.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use serde_json::Value;

use super::*;
use crate::support::{stdout, weft};

/// `a.com` with an old version and a new one.
fn versions(old: &Service, new: &Service) -> String {
    let endpoint = |service: &Service, version: &str| {
        format!("{{address: 127.0.0.1, ports: {{http: {}}}, labels: {{version: {version}}}}}", service.port)
    };
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: a, namespace: shop}}
spec:
  hosts: [a.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{}, {}]
---
",
        endpoint(old, "v1"),
        endpoint(new, "v2")
    )
}

fn trial(share: u32, more: &str, success: f64, rollback: f64, period: &str) -> String {
    format!(
        "
apiVersion: weft.dev/v1alpha1
kind: TrafficManagement
metadata: {{name: a, namespace: shop}}
spec:
  canary_deployment:
    service: a.com
    stable_version: v1
    canary_version: v2
    traffic_split: {{stable: {}, canary: {share}}}
    {more}
    success_criteria: {{error_rate_threshold: {success}, response_time_p95_threshold: 5000, minimum_request_count: 20, evaluation_period: {period}}}
    rollback_criteria: {{error_rate_threshold: {rollback}, response_time_p95_threshold: 9000, immediate_rollback: true}}
---
",
        100 - share
    )
}

/// Requests one after the other until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    /// `before` each request it is told the request's number.
    fn start(at: SocketAddr, before: impl Fn(u64) + Send + 'static) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let worker = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                before(count.fetch_add(1, Ordering::Relaxed));
                let _ = exchange(at, "GET / HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n\r\n");
            }
        });
        Self { stop, sent, worker: Some(worker) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.worker.take().map(std::thread::JoinHandle::join);
    }
}

fn page(mesh: &Mesh) -> Value {
    let page: Value = serde_json::from_str(&mesh.control.page("/debug/trafficz")).unwrap();
    page["trials"][0].clone()
}

fn outcomes(mesh: &Mesh) -> Vec<String> {
    let page = page(mesh);
    let all = page["decisions"].as_array().unwrap();
    all.iter().map(|one| one["outcome"].as_str().unwrap().to_owned()).collect()
}

/// How many of so many requests the new version gets.
fn of_new(mesh: &Mesh, count: usize) -> usize {
    (0..count).filter(|_| mesh.get("/", "").1 == "new").count()
}

#[test]
fn a_version_that_does_well_gets_more_and_then_everything() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let yaml = versions(&old, &new) + &trial(20, "steps: [60]", 1.0, 2.0, "1500ms");
    let mesh = Mesh::start("127.49.15.1", "127.49.15.2", &yaml);
    let at_first = of_new(&mesh, 100);
    assert!((5..40).contains(&at_first), "{at_first} of 100 at 20 %");
    let load = Load::start(mesh.at, |_| {});
    eventually("it is promoted", || outcomes(&mesh).last().is_some_and(|last| last == "Promoted"));
    assert_eq!(outcomes(&mesh), ["Started", "Advanced", "Promoted"]);
    drop(load);
    eventually("it gets everything", || of_new(&mesh, 20) == 20);
    let page = page(&mesh);
    assert_eq!((&page["phase"], &page["canaryPercent"]), (&"Promoted".into(), &100.into()), "{page:#}");
    assert_eq!((&page["proxies"]["asked"], &page["proxies"]["answered"]), (&1.into(), &1.into()));
    let said = stdout(&weft(&["traffic-status", "--control", mesh.control.ip]));
    assert!(said.contains("shop/a") && said.contains("100 %") && said.contains("Promoted"), "{said}");
    mesh.control.process.says(&["outcome=\"Promoted\"", "shop/a", "v2 gets 100 %"]);
}

#[test]
fn a_version_that_fails_gets_nothing_within_five_seconds_and_after_a_restart() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let yaml = versions(&old, &new) + &trial(50, "", 0.5, 2.0, "300s");
    let mut mesh = Mesh::start("127.49.16.1", "127.49.16.2", &yaml);
    let load = Load::start(mesh.at, |_| {});
    eventually("it was good for a while", || page(&mesh)["period"]["requests"].as_u64() > Some(100));
    assert_eq!(page(&mesh)["phase"], "Progressing");
    new.status.store(500, Ordering::Relaxed);
    let began = Instant::now();
    eventually("it is rolled back", || page(&mesh)["phase"] == "RolledBack");
    eventually("nobody asks it", || of_new(&mesh, 20) == 0);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    eprintln!("rolled back after {took:?}, {} requests", load.sent.load(Ordering::Relaxed));
    drop(load);
    assert_eq!(outcomes(&mesh), ["Started", "RolledBack"]);
    assert!(page(&mesh)["message"].as_str().unwrap().contains("more than 2 % errors"), "{:#}", page(&mesh));

    // It is well again, which changes nothing: somebody has to look at it, and to give it another version.
    new.status.store(200, Ordering::Relaxed);
    mesh.control.restart();
    assert_eq!(page(&mesh)["phase"], "RolledBack");
    eventually("the proxy is back", || mesh.control.page("/debug/syncz").contains("SYNCED"));
    assert_eq!(of_new(&mesh, 50), 0);
}

#[test]
fn a_client_stays_with_its_version_and_the_rest_have_theirs_by_chance() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let yaml = versions(&old, &new) + &trial(50, "sticky_by: {http_header_name: x-user}", 1.0, 2.0, "300s");
    let mesh = Mesh::start("127.49.19.1", "127.49.19.2", &yaml);
    let of = |user: usize| {
        let answers: BTreeSet<String> =
            (0..8).map(|_| mesh.get("/", &format!("x-user: user-{user}\r\n")).1).collect();
        assert_eq!(answers.len(), 1, "user {user}");
        answers.into_iter().next().unwrap()
    };
    let all: Vec<String> = (0..30).map(of).collect();
    let on_new = all.iter().filter(|name| *name == "new").count();
    assert!((3..28).contains(&on_new), "{on_new} of 30 users at 50 %");
    let by_chance = of_new(&mesh, 100);
    assert!((25..75).contains(&by_chance), "{by_chance} of 100 at 50 %");
}

#[test]
fn between_the_thresholds_a_version_is_held() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let yaml = versions(&old, &new) + &trial(50, "", 1.0, 90.0, "1500ms");
    let mesh = Mesh::start("127.49.17.1", "127.49.17.2", &yaml);
    let (status, fails) = (new.status.clone(), Arc::new(AtomicBool::new(true)));
    let failing = fails.clone();
    // A quarter of its answers.
    let load = Load::start(mesh.at, move |number| {
        let bad = failing.load(Ordering::Relaxed) && number % 4 == 0;
        status.store(if bad { 500 } else { 200 }, Ordering::Relaxed);
    });
    eventually("it is held, and held again", || outcomes(&mesh).len() >= 3);
    assert_eq!(outcomes(&mesh)[..3], ["Started", "Held", "Held"]);
    let page = page(&mesh);
    assert_eq!((&page["phase"], &page["canaryPercent"]), (&"Progressing".into(), &50.into()), "{page:#}");
    assert!(page["message"].as_str().unwrap().contains("stays at 50 %"), "{page:#}");
    fails.store(false, Ordering::Relaxed);
    eventually("it is promoted", || outcomes(&mesh).last().is_some_and(|last| last == "Promoted"));
    drop(load);
}

#[test]
fn a_circuit_is_told_as_its_proxies_count() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let circuit = "
apiVersion: weft.dev/v1alpha1
kind: TrafficManagement
metadata: {name: a, namespace: shop}
spec: {circuit_breaker_status: {service: a.com}}
---
";
    let rule = destination_rule(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, maxEjectionPercent: 50}}",
    );
    let mesh = Mesh::start("127.49.18.1", "127.49.18.2", &(versions(&old, &new) + circuit + &rule));
    let told = || {
        let page: Value = serde_json::from_str(&mesh.control.page("/debug/trafficz")).unwrap();
        page["circuitBreakers"][0].clone()
    };
    let is = |state: &str| told()["state"] == state;
    eventually("it is closed", || is("CLOSED") && told()["successCount"].as_u64() >= Some(1));
    assert_eq!((&told()["failureCount"], &told()["lastFailureTime"]), (&0.into(), &Value::Null));
    new.status.store(500, Ordering::Relaxed);
    let failed = (0..).take_while(|_| !is("OPEN")).filter(|_| mesh.get("/", "").0 == 500).count();
    let open = told();
    assert!(open["nextRetryTime"].is_string() && open["lastFailureTime"].is_string(), "{open:#}");
    eventually("all failures are counted", || told()["failureCount"].as_u64() == Some(failed as u64));
    assert_eq!(open["proxies"][0]["address"], "127.49.18.2", "{open:#}");
    let said = stdout(&weft(&["traffic-status", "--control", mesh.control.ip]));
    assert!(said.contains("a.com") && said.contains("all 1"), "{said}");
    new.status.store(200, Ordering::Relaxed);
    eventually("it is half open", || is("HALF_OPEN"));
    eventually("it is closed again", || {
        mesh.get("/", "");
        is("CLOSED")
    });
    assert_eq!(told()["nextRetryTime"], Value::Null);
}
