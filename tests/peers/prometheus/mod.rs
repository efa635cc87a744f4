//! A real Prometheus beside a running mesh: the example mesh under a bounded load, scraped by what `deploy/observability` ships.
//!
//! Every query of every dashboard has an answer, or stands in [`RIGHTLY_EMPTY`] with the reason; the same holds for the queries that
//! Istio's own dashboards are made of ([`stock`]). Every metric that a rule asks for is there, and no alert fires where all is well.

mod boards;
mod by_tls;
mod merged;
mod stock;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use regex::Regex;
use serde_json::Value;
use weft::client::Connection;
use weft::up::Mesh;

use crate::meshes;
use crate::programs::{Process, get, peer, run, until};

const LOOPBACK: u8 = 121;
const PROMETHEUS: &str = "127.121.0.9:9090";
/// What may be empty, and why.
const RIGHTLY_EMPTY: [(&str, &str); 9] = [
    ("istio_tcp_", "the example mesh has no TCP services"),
    ("envoy_tcp_rbac_", "the same"),
    ("request_protocol=\"grpc\"", "nor gRPC"),
    ("istio_request_messages_total", "nor gRPC"),
    ("istio_response_messages_total", "nor gRPC"),
    ("connection_security_policy=\"none\"", "every edge has mutual TLS; the table of those without is empty"),
    ("ejections_active) > 0", "nobody is ejected"),
    ("pilot_k8s_", "the source is a directory, not an API server"),
    ("galley_validation_", "there is no API server to ask the webhook"),
];

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/observability").join(path)
}

fn files(directory: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(shipped(directory)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{directory}");
    files
}

fn promtool(arguments: &[&str], path: &Path) {
    let mut command = Command::new(peer("WEFT_PROMTOOL"));
    run(command.args(arguments).arg(path)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_rules_fire_when_they_should_and_never_on_certificates_of_a_day() {
    for rules in files("prometheus/rules") {
        promtool(&["check", "rules"], &rules);
        let tests = shipped("prometheus/tests").join(rules.file_name().unwrap());
        promtool(&["test", "rules"], &tests);
        // Every alert has a test that sees it fire.
        let text = std::fs::read_to_string(&rules).unwrap();
        let tested = std::fs::read_to_string(&tests).unwrap();
        for alert in text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
            assert!(tested.contains(alert), "{}: no test of {alert}", tests.display());
        }
    }
    promtool(&["check", "config"], &shipped("prometheus/ecotrack.yaml"));
    // Debian's Prometheus is built without discovery by Kubernetes: all else of that file is checked.
    let text = std::fs::read_to_string(shipped("prometheus/prometheus.yaml")).unwrap();
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    for job in config["scrape_configs"].as_array_mut().unwrap() {
        assert!(job.as_object_mut().unwrap().remove("kubernetes_sd_configs").is_some());
    }
    config["rule_files"] = serde_json::json!([shipped("prometheus/rules/*.yaml")]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prometheus.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    promtool(&["check", "config"], &path);
}

/// The labels that the shipped Promtail gives to lines.
pub fn labels_in_loki() -> BTreeSet<String> {
    let text = std::fs::read_to_string(shipped("loki/promtail.yaml")).unwrap();
    let config: Value = serde_saphyr::from_str(&text).unwrap();
    let mut labels = BTreeSet::new();
    for job in config["scrape_configs"].as_array().unwrap() {
        let rules = job["relabel_configs"].as_array().unwrap().iter();
        labels.extend(rules.filter_map(|rule| rule["target_label"].as_str().map(str::to_owned)));
        for stage in job["pipeline_stages"].as_array().unwrap() {
            labels.extend(stage["labels"].as_object().into_iter().flat_map(|labels| labels.keys().cloned()));
        }
    }
    labels.retain(|label| !label.starts_with("__"));
    labels
}

#[test]
fn logs_have_few_labels_in_loki() {
    let labels = labels_in_loki();
    assert!((5..=10).contains(&labels.len()), "{labels:?}");
}

/// Where alerts go is in files; whoever gets one can act on it.
#[test]
fn alerts_are_forwarded_by_their_severity_and_say_what_to_do() {
    let mut severities = BTreeSet::new();
    for rules in files("prometheus/rules") {
        let text = std::fs::read_to_string(&rules).unwrap();
        let rules: Value = serde_saphyr::from_str(&text).unwrap();
        let groups = rules["groups"].as_array().unwrap().iter();
        for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
            let Some(alert) = rule["alert"].as_str() else { continue };
            severities.insert(rule["labels"]["severity"].as_str().unwrap().to_owned());
            for annotation in ["summary", "description"] {
                assert!(rule["annotations"][annotation].as_str().is_some_and(|t| t.len() > 20), "{alert}");
            }
        }
    }
    let text = std::fs::read_to_string(shipped("alertmanager/alertmanager.yaml")).unwrap();
    let config: Value = serde_saphyr::from_str(&text).unwrap();
    let receivers: BTreeSet<_> =
        config["receivers"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    let routes = config["route"]["routes"].as_array().unwrap();
    for severity in &severities {
        let is_for = |route: &Value| {
            route["matchers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|m| m.as_str().unwrap().contains(severity.as_str()))
        };
        let found: Vec<_> = routes.iter().filter(|route| is_for(route)).collect();
        assert!(!found.is_empty(), "{severity}");
        assert!(found.iter().all(|route| receivers.contains(route["receiver"].as_str().unwrap())));
    }
    assert_eq!(severities, ["critical".to_owned(), "warning".to_owned()].into());
}

/// The shipped configuration in a real Alertmanager: a critical alert goes to the pager and the webhook, a warning to the webhook.
#[test]
fn an_alert_is_forwarded_to_where_its_severity_says() {
    const MANAGER: &str = "127.121.0.8:9093";
    let path = shipped("alertmanager/alertmanager.yaml");
    let mut check = Command::new(peer("WEFT_AMTOOL"));
    run(check.arg("check-config").arg(&path)).unwrap_or_else(|error| panic!("{error}"));

    let (receiver, heard) = receiver();
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "routing-key").unwrap();
    // Only where it sends to, and how long it waits for more, is other than shipped.
    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["route"]["group_wait"] = "0s".into();
    for receiver_of in config["receivers"].as_array_mut().unwrap() {
        if let Some(pager) = receiver_of.get_mut("pagerduty_configs") {
            pager[0]["url"] = format!("http://{receiver}/pager").into();
            pager[0]["routing_key_file"] = key.to_str().unwrap().into();
        }
        if let Some(webhook) = receiver_of.get_mut("webhook_configs") {
            webhook[0]["url"] = format!("http://{receiver}/hook").into();
        }
    }
    let file = directory.path().join("alertmanager.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(peer("WEFT_ALERTMANAGER"));
    command.arg("--config.file").arg(&file).arg("--storage.path").arg(directory.path().join("data"));
    command.args(["--web.listen-address", MANAGER, "--cluster.listen-address="]);
    let mut process = Process::start("alertmanager", &mut command, directory.path());
    let address: SocketAddr = MANAGER.parse().unwrap();
    process.wait("ready", || get(address, "/-/ready").is_ok_and(|(status, _)| status == 200));
    let alert = |name: &str, severity: &str| {
        serde_json::json!({"labels": {"alertname": name, "severity": severity, "instance": "p"},
            "annotations": {"summary": format!("{name} says so"), "description": "look there"}})
    };
    let alerts = serde_json::json!([alert("ControlPlaneDown", "critical"), alert("HostsEjected", "warning")]);
    let mut curl = Command::new(peer("WEFT_CURL"));
    curl.args(["-s", "-S", "-f", "-H", "content-type: application/json", "-d", &alerts.to_string()]);
    run(curl.arg(format!("http://{MANAGER}/api/v2/alerts"))).unwrap_or_else(|error| panic!("{error}"));
    let is_heard = |path: &str, name: &str| {
        heard.lock().unwrap().iter().any(|(to, body)| to == path && body.contains(name))
    };
    until("both are forwarded", || {
        is_heard("/pager", "ControlPlaneDown says so")
            && is_heard("/hook", "ControlPlaneDown")
            && is_heard("/hook", "HostsEjected")
    });
    assert!(!is_heard("/pager", "HostsEjected"), "nobody is woken by a warning");
}

/// Paths and bodies of requests.
type Heard = std::sync::Arc<std::sync::Mutex<Vec<(String, String)>>>;

/// Takes everything that is posted to it.
fn receiver() -> (SocketAddr, Heard) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Heard::default();
    let all = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let all = all.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                let (mut path, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    let lower = line.trim().to_ascii_lowercase();
                    if lower.is_empty() {
                        break;
                    }
                    if let Some(n) = lower.strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap_or(0);
                    } else if path.is_empty() {
                        path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body)?;
                let body = String::from_utf8_lossy(&body).into_owned();
                all.lock().unwrap().push((path, body));
                let mut stream = stream;
                stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            });
        }
    });
    (address, heard)
}

/// A Prometheus that scrapes a mesh every second.
struct Prometheus {
    _process: Process,
    _directory: tempfile::TempDir,
}

type Labels = BTreeMap<String, String>;

impl Prometheus {
    fn start(mesh: &Mesh) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let proxies: Vec<String> = mesh.workloads().iter().map(|w| w.prometheus().to_string()).collect();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [shipped("prometheus/rules/*.yaml")],
            "scrape_configs": [
                {"job_name": "weft-control",
                 "static_configs": [{"targets": [mesh.control().metrics.to_string()]}]},
                {"job_name": "weft-proxies", "metrics_path": "/stats/prometheus",
                 "static_configs": [{"targets": proxies}]},
            ],
        });
        let path = directory.path().join("prometheus.yaml");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new(peer("WEFT_PROMETHEUS"));
        command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(directory.path().join("data"));
        command.args(["--web.listen-address", PROMETHEUS, "--log.level", "warn"]);
        let mut process = Process::start("prometheus", &mut command, directory.path());
        let address: SocketAddr = PROMETHEUS.parse().unwrap();
        process.wait("ready", || get(address, "/-/ready").is_ok_and(|(status, _)| status == 200));
        Self { _process: process, _directory: directory }
    }

    fn api(&self, path: &str, arguments: &[&str]) -> Value {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "--max-time", "20", "-G"]).arg(format!("http://{PROMETHEUS}/api/v1/{path}"));
        let text = run(curl.args(arguments)).unwrap_or_else(|error| panic!("{error}"));
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(answer["status"], "success", "{arguments:?}: {answer}");
        answer["data"].clone()
    }

    /// What a query answers: labels and numbers.
    fn query(&self, query: &str) -> Vec<(Labels, f64)> {
        let data = self.api("query", &["--data-urlencode", &format!("query={query}")]);
        let labels = |of: &Value| -> Labels {
            let of = of["metric"].as_object().unwrap();
            of.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
        };
        let results = data["result"].as_array().unwrap_or_else(|| panic!("{query}: {data}"));
        results.iter().map(|r| (labels(r), r["value"][1].as_str().unwrap().parse().unwrap())).collect()
    }
}

/// All queries of a dashboard, with the names of their panels; variables stand for all there is.
fn queries(dashboard: &Path) -> Vec<(String, String)> {
    let board: Value = serde_json::from_str(&std::fs::read_to_string(dashboard).unwrap()).unwrap();
    let (variable, mut found) = (Regex::new(r"\$[a-z]+").unwrap(), Vec::new());
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "30s");
            let query = variable.replace_all(&query, ".*").into_owned();
            found.push((format!("{}: {}", board["title"], panel["title"]), query));
        }
    }
    found
}

/// Policies, so that there is something to allow and to deny.
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody-there, namespace: ecotrack}
spec:
  selector: {matchLabels: {app: product-service}}
  action: DENY
  rules: [{to: [{operation: {paths: [/api/products/secret]}}]}]
";
const PATHS: [&str; 4] = ["/api/users/7", "/api/products/7", "/api/orders/7", "/api/products/secret"];

/// What came back, by path and status.
type Answers = BTreeMap<(&'static str, String), f64>;

/// Sends requests to the gateway, one after the other, until it is told to stop.
async fn load(gateway: SocketAddr, stop: tokio::sync::watch::Receiver<bool>) -> Answers {
    let mut answers = Answers::new();
    let mut connection = Connection::open(gateway).await.unwrap();
    for path in PATHS.into_iter().cycle() {
        if *stop.borrow() {
            break;
        }
        let request = Request::get(path).header("host", "api.ecotrack.platform.dev");
        let answer = connection.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        *answers.entry((path, answer.status.as_u16().to_string())).or_default() += 1.0;
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    answers
}

/// Changes configuration every second, until it is told to stop.
async fn change(directory: PathBuf, stop: tokio::sync::watch::Receiver<bool>) {
    for number in 1.. {
        if *stop.borrow() {
            return;
        }
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: more, namespace: ecotrack}}\n\
             spec: {{host: payment-service, trafficPolicy: {{connectionPool: {{http: {{maxRetries: {number}}}}}}}}}\n"
        );
        std::fs::write(directory.join("more.yaml"), rule).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[test]
fn every_query_of_dashboards_and_rules_has_an_answer_and_counts_agree_exactly() {
    let seconds = std::env::var("WEFT_PROMETHEUS_SECONDS").ok().and_then(|s| s.parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(5));
    meshes::runtime().block_on(async {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
        let mesh = meshes::start(&source, LOOPBACK).await;
        std::fs::write(mesh.config_dir().join("policies.yaml"), POLICIES).unwrap();
        let gateway: SocketAddr = format!("127.{LOOPBACK}.2.1:8080").parse().unwrap();
        let prometheus = Prometheus::start(&mesh);
        let up = || prometheus.query("sum(up)").first().map_or(0.0, |(_, n)| *n);
        until("everybody is scraped", || up() == mesh.workloads().len() as f64 + 1.0);
        let allowed = "count(envoy_http_rbac_allowed) > 0";
        until("the policy is in force", || !prometheus.query(allowed).is_empty());

        let (stop, stopped) = tokio::sync::watch::channel(false);
        let loading = tokio::spawn(load(gateway, stopped.clone()));
        let changing = tokio::spawn(change(mesh.config_dir().to_owned(), stopped));
        tokio::time::sleep(seconds).await;
        tokio::task::block_in_place(|| answered(&prometheus));
        stop.send(true).unwrap();
        changing.await.unwrap();
        let answers = loading.await.unwrap();
        agree(&prometheus, &answers);
        ruled(&prometheus);
        drop(prometheus);
        mesh.shutdown().await.unwrap();
    });
}

/// The gateway's count of each answer is its client's, and at each edge both ends count the same.
fn agree(prometheus: &Prometheus, seen: &Answers) {
    let total: f64 = seen.values().sum();
    let by = |reporter: &str, filter: &str| -> BTreeMap<Vec<String>, f64> {
        let keys = ["source_workload", "destination_workload", "destination_version", "response_code"];
        let query =
            format!("sum by ({}) (istio_requests_total{{reporter=\"{reporter}\"{filter}}})", keys.join(", "));
        let of = |labels: Labels| keys.map(|key| labels.get(key).cloned().unwrap_or_default()).to_vec();
        prometheus.query(&query).into_iter().map(|(labels, n)| (of(labels), n)).collect()
    };
    let at_gateway = ",source_workload=~\"istio-ingressgateway.*\"";
    until("the gateway's requests are all scraped", || {
        by("source", at_gateway).values().sum::<f64>() == total
    });
    // A callee's count comes with the next scrape of the callee.
    until("both ends of every edge count the same", || {
        let sources = by("source", "");
        let mut destinations = by("destination", "");
        destinations.retain(|edge, _| edge[0] != "unknown");
        !sources.is_empty() && sources == destinations
    });
    let codes = |status: &str| -> f64 { seen.iter().filter(|(k, _)| k.1 == status).map(|(_, n)| n).sum() };
    for status in seen.keys().map(|(_, status)| status).collect::<BTreeSet<_>>() {
        let filter = format!("{at_gateway},response_code=\"{status}\"");
        assert_eq!(by("source", &filter).values().sum::<f64>(), codes(status), "{status}: {seen:?}");
    }
    assert_eq!(codes("200") + codes("403"), total, "{seen:?}");
    assert!(codes("403") > 0.0 && codes("200") > codes("403"), "{seen:?}");
    println!(
        "{total} requests, counted alike by their client, {} edges and Prometheus",
        by("source", "").len()
    );
    let durations = "sum(istio_request_duration_milliseconds_count{reporter=\"source\",source_workload=~\"istio-ingressgateway.*\"})";
    assert_eq!(prometheus.query(durations)[0].1, total);
}

/// Every query of the dashboards, and of Istio's, while there is traffic.
fn answered(prometheus: &Prometheus) {
    let shipped = files("grafana").into_iter().flat_map(|board| queries(&board));
    let stock = stock::QUERIES.iter().map(|query| ("Istio's".to_owned(), (*query).to_owned()));
    all_answered(prometheus, shipped.chain(stock).collect(), &RIGHTLY_EMPTY);
}

/// Each of these has an answer or a reason to be empty; and there is no reason that nothing needs.
fn all_answered(prometheus: &Prometheus, mut open: Vec<(String, String)>, empty: &[(&'static str, &str)]) {
    let (all, mut rightly, mut used) = (open.len(), 0, BTreeSet::new());
    let end = Instant::now() + Duration::from_secs(60);
    // Some need what happens now and then only.
    while !open.is_empty() && Instant::now() < end {
        open.retain(|(_, query)| {
            if prometheus.query(query).iter().any(|(_, n)| !n.is_nan()) {
                return false;
            }
            let Some((part, _)) = empty.iter().find(|(part, _)| query.contains(part)) else {
                return true;
            };
            rightly += 1;
            used.insert(*part);
            false
        });
    }
    println!("{all} queries, {rightly} of them rightly empty");
    assert!(open.is_empty(), "{} of {all} queries have no answer:\n{open:#?}", open.len());
    let reasons: BTreeSet<_> = empty.iter().map(|(part, _)| *part).collect();
    assert_eq!(used, reasons, "a reason that no empty query needs");
}

/// Every metric of every rule is there; all rules are evaluated; nothing fires.
fn ruled(prometheus: &Prometheus) {
    let names = prometheus.api("label/__name__/values", &[]);
    let names: BTreeSet<&str> = names.as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    // Names of recorded ratios have a colon in them, and are rules themselves.
    let metric = Regex::new(
        r"(?:^|[^a-z0-9_:])((?:certificate|citadel|envoy|galley|istio|pilot|sidecar|weft|xds)_[a-z0-9_]+)\b",
    );
    let metric = metric.unwrap();
    let rules = prometheus.api("rules", &[]);
    let mut alerts = 0;
    for rule in
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        let (name, query) = (&rule["name"], rule["query"].as_str().unwrap());
        assert_eq!(rule["health"], "ok", "{name}: {rule}");
        for found in metric.captures_iter(query) {
            let found = &found[1];
            assert!(names.contains(found), "{name} asks for {found}, which nobody gives");
        }
        if rule["type"] == "alerting" {
            alerts += 1;
            assert_eq!(rule["state"], "inactive", "{name} fires where all is well: {rule}");
        }
    }
    assert!(alerts > 15, "{alerts}");
}
