//! Jaeger, Loki and Promtail: started, and asked.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft::up::{Mesh, Part};

use crate::programs::{Process, get, peer, run};

/// Where Jaeger is.
pub(super) const JAEGER: &str = "127.43.99.1";
/// Where Loki is.
const LOKI: &str = "127.43.99.2:3100";
/// Starting takes a processor, which others want as well.
const START: Duration = Duration::from_secs(60);

fn asked(url: &str, arguments: &[&str]) -> Value {
    let mut curl = Command::new(peer("WEFT_CURL"));
    curl.args(["-s", "-S", "--max-time", "20", "-G"]).arg(url);
    let text = run(curl.args(arguments)).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{url} {arguments:?}: {e}: {text}"))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn words(object: &Value) -> BTreeMap<String, String> {
    let of = object.as_object().into_iter().flatten();
    of.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// A span as Jaeger tells it.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub service: String,
    pub id: String,
    pub parent: String,
    pub kind: String,
    pub tags: BTreeMap<String, String>,
}

impl Span {
    /// Its status is an error.
    pub fn failed(&self) -> bool {
        self.tags.get("otel.status_code").is_some_and(|status| status == "ERROR")
    }
}

/// The store of traces, in memory.
pub(super) struct Jaeger {
    _process: Process,
}

impl Jaeger {
    pub fn start(directory: &Path) -> Self {
        let at = |port: u16| json!({"endpoint": format!("{JAEGER}:{port}")});
        let config = json!({
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 1000}}}},
                "jaeger_query": {"storage": {"traces": "memory"}, "http": at(16686), "grpc": at(16685)},
            },
            "receivers": {"otlp": {"protocols": {"grpc": at(4317)}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        });
        let file = directory.join("jaeger.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(peer("WEFT_JAEGER"));
        command.arg("--config").arg(format!("file:{}", file.display()));
        let mut process = Process::start("jaeger", &mut command, directory);
        process.wait_within(START, "listening", || {
            [4317, 16686].into_iter().all(|port| TcpStream::connect((JAEGER, port)).is_ok())
        });
        Self { _process: process }
    }

    /// The spans of a trace; none where it has not heard of it.
    pub fn trace(&self, id: &str) -> Vec<Span> {
        let answer = asked(&format!("http://{JAEGER}:16686/api/traces/{id}"), &[]);
        let Some(trace) = list(&answer["data"]).next() else { return Vec::new() };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let service = |of: &Value| {
            let name = text(&trace["processes"][of.as_str().unwrap()]["serviceName"]);
            name.split('.').next().unwrap_or_default().to_owned()
        };
        let of = |span: &Value| {
            let tags: BTreeMap<_, _> =
                list(&span["tags"]).map(|tag| (text(&tag["key"]), text(&tag["value"]))).collect();
            Span {
                service: service(&span["processID"]),
                id: text(&span["spanID"]),
                parent: list(&span["references"]).next().map(|r| text(&r["spanID"])).unwrap_or_default(),
                kind: tags.get("span.kind").cloned().unwrap_or_default(),
                tags,
            }
        };
        list(&trace["spans"]).map(of).collect()
    }

    /// Who calls whom how often.
    pub fn graph(&self) -> BTreeMap<(String, String), u64> {
        let end = now().as_millis();
        let answer =
            asked(&format!("http://{JAEGER}:16686/api/dependencies?endTs={end}&lookback=3600000"), &[]);
        let name = |value: &Value| value.as_str().unwrap().split('.').next().unwrap().to_owned();
        let edge = |e: &Value| ((name(&e["parent"]), name(&e["child"])), e["callCount"].as_u64().unwrap());
        // A service's own two spans of a request are no call.
        list(&answer["data"]).map(edge).filter(|((from, to), _)| from != to).collect()
    }
}

/// A line in Loki, and the labels of its stream.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub labels: BTreeMap<String, String>,
    pub text: String,
}

/// The store of lines, in a directory.
pub(super) struct Loki {
    _process: Process,
}

impl Loki {
    pub fn start(directory: &Path) -> Self {
        let at: SocketAddr = LOKI.parse().unwrap();
        let data = directory.join("loki");
        let config = json!({
            "auth_enabled": false,
            "server": {
                "http_listen_address": at.ip(), "http_listen_port": at.port(),
                "grpc_listen_address": at.ip(), "grpc_listen_port": 9095, "log_level": "warn",
            },
            "ingester": {
                "max_transfer_retries": 0,
                "wal": {"enabled": true, "dir": data.join("wal")},
                "lifecycler": {
                    "address": at.ip(),
                    "final_sleep": "0s",
                    "ring": {"kvstore": {"store": "inmemory"}, "replication_factor": 1},
                },
            },
            "schema_config": {"configs": [{
                "from": "2020-10-24", "store": "boltdb", "object_store": "filesystem", "schema": "v11",
                "index": {"prefix": "index_", "period": "168h"},
            }]},
            "storage_config": {
                "boltdb": {"directory": data.join("index")},
                "filesystem": {"directory": data.join("chunks")},
            },
        });
        let file = directory.join("loki.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(peer("WEFT_LOKI"));
        command.arg(format!("-config.file={}", file.display()));
        let mut process = Process::start("loki", &mut command, directory);
        // It says that it is ready a minute later.
        let serves = || get(at, "/loki/api/v1/labels").is_ok_and(|(status, _)| status == 200);
        process.wait_within(START, "serving", serves);
        Self { _process: process }
    }

    /// The lines of the last hour that a query finds.
    pub fn lines(&self, query: &str) -> Vec<Line> {
        let (query, start) =
            (format!("query={query}"), format!("start={}", (now() - Duration::from_secs(3600)).as_nanos()));
        let arguments = ["--data-urlencode", &query, "--data-urlencode", &start, "-d", "limit=4000"];
        let answer = asked(&format!("http://{LOKI}/loki/api/v1/query_range"), &arguments);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let of = |stream: &Value| {
            let labels = words(&stream["stream"]);
            let lines: Vec<_> = list(&stream["values"]).map(|v| v[1].as_str().unwrap().to_owned()).collect();
            lines.into_iter().map(move |text| Line { labels: labels.clone(), text })
        };
        list(&answer["data"]["result"]).flat_map(of).collect()
    }

    /// The labels of every stream.
    pub fn series(&self) -> Vec<BTreeMap<String, String>> {
        let arguments = ["--data-urlencode", "match[]={container=~\".+\"}"];
        let answer = asked(&format!("http://{LOKI}/loki/api/v1/series"), &arguments);
        list(&answer["data"]).map(words).collect()
    }
}

/// Who reads the logs of pods, by the shipped file.
pub(super) struct Promtail {
    _process: Process,
}

impl Promtail {
    /// The test stands for the kubelet and the API server: it writes what processes of the mesh have said as files of their
    /// pods, and names the pods.
    pub fn start(directory: &Path, mesh: &Mesh) -> Self {
        let pods = directory.join("pods");
        let mut found = vec![pod(
            &pods,
            "istio-system",
            "istiod",
            ("istiod", ""),
            "discovery",
            1,
            &mesh.log(&Part::Control),
        )];
        let mut alike: BTreeMap<_, u32> = BTreeMap::new();
        for workload in mesh.workloads() {
            let label = |name: &str| workload.labels.get(name).map_or("", String::as_str);
            let (app, version) = (label("app"), label("version"));
            // Pods with the same labels are on different nodes: one stream is written by one alone.
            let node = alike.entry((app, version)).or_default();
            *node += 1;
            let log = mesh.log(&Part::Proxy(workload.id.clone()));
            found.push(pod(
                &pods,
                &workload.namespace,
                &workload.name,
                (app, version),
                "istio-proxy",
                *node,
                &log,
            ));
        }
        let mut config = super::yaml(&super::shipped("loki/promtail.yaml"));
        config["server"] = json!({"http_listen_address": "127.43.99.3", "grpc_listen_address": "127.43.99.3", "http_listen_port": 9080, "grpc_listen_port": 0});
        config["positions"]["filename"] = json!(directory.join("positions.yaml"));
        config["clients"] = json!([{"url": format!("http://{LOKI}/loki/api/v1/push"), "batchwait": "100ms"}]);
        for job in config["scrape_configs"].as_array_mut().unwrap() {
            assert!(job.as_object_mut().unwrap().remove("kubernetes_sd_configs").is_some());
            job["static_configs"] = json!(found);
            for rule in job["relabel_configs"].as_array_mut().unwrap() {
                if rule["target_label"] == "__path__" {
                    let path = rule["replacement"].as_str().unwrap();
                    rule["replacement"] = path.replace("/var/log/pods", pods.to_str().unwrap()).into();
                }
            }
        }
        let file = directory.join("promtail.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(peer("WEFT_PROMTAIL"));
        command.arg(format!("-config.file={}", file.display()));
        let mut process = Process::start("promtail", &mut command, directory);
        let at: SocketAddr = "127.43.99.3:9080".parse().unwrap();
        process.wait_within(START, "ready", || get(at, "/ready").is_ok_and(|(status, _)| status == 200));
        Self { _process: process }
    }
}

/// A pod's log as the kubelet writes it, and the pod as discovery tells it.
fn pod(
    pods: &Path,
    namespace: &str,
    name: &str,
    (app, version): (&str, &str),
    container: &str,
    node: u32,
    log: &Path,
) -> Value {
    let uid = format!("uid-of-{name}");
    let directory = pods.join(format!("{namespace}_{name}_{uid}")).join(container);
    std::fs::create_dir_all(&directory).unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    let began = OffsetDateTime::now_utc() - Duration::from_secs(60);
    let mut lines = String::new();
    for (number, line) in (0u64..).zip(text.lines()) {
        let time = (began + Duration::from_micros(number)).format(&Rfc3339).unwrap();
        writeln!(lines, "{time} stdout F {line}").unwrap();
    }
    std::fs::write(directory.join("0.log"), lines).unwrap();
    let mut labels = json!({
        "__meta_kubernetes_namespace": namespace,
        "__meta_kubernetes_pod_uid": uid,
        "__meta_kubernetes_pod_container_name": container,
        "__meta_kubernetes_pod_label_app": app,
        "__meta_kubernetes_pod_node_name": format!("node-{node}"),
    });
    if !version.is_empty() {
        labels["__meta_kubernetes_pod_label_version"] = version.into();
    }
    json!({"targets": ["localhost"], "labels": labels})
}
