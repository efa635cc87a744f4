//! A real OpenTelemetry Collector behind the example mesh: a customer's request through the gateway and all services is one
//! trace, in order, with a real Envoy in the place of one sidecar; and nobody waits for a collector that is away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use weft::client::Connection;
use weft::up::{Mesh, Part, Signal};

use crate::envoy_sidecar::{Program, Sidecar};
use crate::meshes;
use crate::programs::{Process, get, peer};

const COLLECTOR: &str = "127.39.99.1";
/// Whose sidecar Envoy replaces.
const REPLACED: &str = "product-service-1";
/// Spans go out every five seconds, hop by hop.
const PATIENCE: Duration = Duration::from_secs(40);

/// The hops of a customer's request, and the sides of their spans (2: who is asked, 3: who asks).
const JOURNEY: [(&str, i64); 11] = [
    ("istio-ingressgateway", 2),
    ("istio-ingressgateway", 3),
    ("user-service", 2),
    ("user-service", 3),
    ("product-service", 2),
    ("product-service", 3),
    ("order-service", 2),
    ("order-service", 3),
    ("payment-service", 2),
    ("payment-service", 3),
    ("notification-service", 2),
];

fn collector(directory: &Path) -> Process {
    let config = format!(
        "
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: '{COLLECTOR}:4317'}}, http: {{endpoint: '{COLLECTOR}:4318'}}}}}}
  zipkin: {{endpoint: '{COLLECTOR}:9411'}}
exporters:
  file: {{path: '{}', flush_interval: 100ms}}
  file/logs: {{path: '{}', flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp, zipkin], exporters: [file]}}
    logs: {{receivers: [otlp], exporters: [file/logs]}}
",
        spans_file(directory).display(),
        logs_file(directory).display()
    );
    let file = directory.join("collector.yaml");
    std::fs::write(&file, config).unwrap();
    let mut command = std::process::Command::new(peer("WEFT_COLLECTOR"));
    command.arg("--config").arg(format!("file:{}", file.display()));
    let mut collector = Process::start("collector", &mut command, directory);
    let listens = |port: u16| std::net::TcpStream::connect((COLLECTOR, port)).is_ok();
    collector.wait("listening", || [4317, 4318, 9411].into_iter().all(listens));
    collector
}

fn spans_file(directory: &Path) -> PathBuf {
    directory.join("spans.json")
}

fn logs_file(directory: &Path) -> PathBuf {
    directory.join("logs.json")
}

/// The ids of the spans that records of a trace name, and what the records say.
fn records(directory: &Path, trace: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(logs_file(directory)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let senders = lines.flat_map(|line| list(&line, "resourceLogs"));
    let scopes = senders.flat_map(|sender| list(&sender, "scopeLogs"));
    let records = scopes.flat_map(|scope| list(&scope, "logRecords")).filter(|r| r["traceId"] == trace);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    records.map(|record| (text(&record["spanId"]), text(&record["body"]["stringValue"]))).collect()
}

/// A span as the collector wrote it.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    id: String,
    parent: String,
    kind: i64,
    tags: BTreeMap<String, String>,
}

/// The spans of a trace.
fn spans(directory: &Path, trace: &str) -> Vec<Span> {
    let text = std::fs::read_to_string(spans_file(directory)).unwrap_or_default();
    let mut found = Vec::new();
    // The last line may be half written.
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for sender in line["resourceSpans"].as_array().into_iter().flatten() {
            let of_sender = tags(&sender["resource"]["attributes"]);
            let service = of_sender.get("service.name").cloned().unwrap_or_default();
            let all = sender["scopeSpans"].as_array().into_iter().flatten();
            for span in all.flat_map(|scope| scope["spans"].as_array().into_iter().flatten()) {
                if span["traceId"] != trace {
                    continue;
                }
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                found.push(Span {
                    service: service.split('.').next().unwrap_or_default().to_owned(),
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    kind: span["kind"].as_i64().unwrap_or_default(),
                    tags: tags(&span["attributes"]),
                });
            }
        }
    }
    found
}

fn tags(list: &Value) -> BTreeMap<String, String> {
    let of = |pair: &Value| {
        let value = pair["value"]["stringValue"].as_str().map(str::to_owned);
        Some((pair["key"].as_str()?.to_owned(), value.unwrap_or_else(|| pair["value"].to_string())))
    };
    list.as_array().into_iter().flatten().filter_map(of).collect()
}

/// Waits for the whole journey, and gives its spans in order, below the one that the customer says.
fn journey(directory: &Path, trace: &str, above: &str) -> Vec<Span> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = spans(directory, trace);
        let mut chain: Vec<Span> = Vec::new();
        while let Some(next) = {
            let parent = chain.last().map_or(above, |s| s.id.as_str());
            found.iter().find(|s| s.parent == parent)
        } {
            chain.push(next.clone());
        }
        if chain.len() >= JOURNEY.len() || Instant::now() > end {
            let seen: Vec<_> = chain.iter().map(|s| (s.service.as_str(), s.kind)).collect();
            assert_eq!(seen, JOURNEY, "of {found:#?}");
            assert_eq!(found.len(), JOURNEY.len(), "there is nothing beside it: {found:#?}");
            return chain;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

async fn ask(at: SocketAddr, fields: &[(&str, &str)]) -> u16 {
    let mut request = Request::get("/api/users?token=secret").header("host", "api.ecotrack.platform.dev");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request: Request<Full<Bytes>> = request.body(Full::default()).unwrap();
    let exchange = async { Connection::open(at).await?.send(request).await };
    let answer = tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("in time").unwrap();
    answer.status.as_u16()
}

/// The mesh's settings, with spans to this provider.
fn settings(mesh: &str, provider: &str) -> String {
    let provider = format!(
        "    extensionProviders: [{{name: spans, {provider}}}, {{name: logs, {LOGS}}}]\n    defaultProviders: {{tracing: [spans]}}\n"
    );
    let (before, after) = mesh.split_once("    trustDomain").unwrap();
    format!("{before}{provider}    trustDomain{after}")
}

const OTLP: &str = "opentelemetry: {service: collector.observability.example, port: 4317}";
const LOGS: &str = "envoyOtelAls: {service: collector.observability.example, port: 4317}";
const ZIPKIN: &str = "zipkin: {service: collector.observability.example, port: 9411}";

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let mesh = directory.path().join("mesh.yaml");
    let text = settings(&std::fs::read_to_string(&mesh).unwrap(), OTLP);
    std::fs::write(&mesh, text).unwrap();
    let collector = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: collector, namespace: ecotrack}}
spec:
  hosts: [collector.observability.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports:
  - {{name: grpc-otlp, number: 4317, protocol: GRPC}}
  - {{name: http-zipkin, number: 9411, protocol: HTTP}}
  endpoints: [{{address: {COLLECTOR}}}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: traces, namespace: istio-system}}
spec:
  accessLogging: [{{providers: [{{name: logs}}]}}]
  tracing:
  - randomSamplingPercentage: 100
    customTags: {{transaction.id: {{header: {{name: x-transaction}}}}}}
"
    );
    std::fs::write(directory.path().join("tracing.yaml"), collector).unwrap();
    directory
}

/// A counter of a proxy.
fn counter(admin: SocketAddr, name: &str) -> u64 {
    let (_, text) = get(admin, "/stats").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn a_customers_request_is_one_trace_in_order_and_nobody_waits_for_the_collector() {
    let runtime = meshes::runtime();
    runtime.block_on(async {
        let configuration = directory();
        let state = tempfile::tempdir().unwrap();
        let spans = tokio::task::block_in_place(|| collector(state.path()));
        let mesh: Mesh = meshes::start(configuration.path(), 39).await;
        mesh.stop(&Part::Proxy(REPLACED.to_owned()), Signal::TERM).await.unwrap();
        let workload = mesh.workload(REPLACED).unwrap().clone();
        let envoy = tokio::task::block_in_place(|| Sidecar::start(&mesh, &workload, "delta", Program::Envoy));
        let gateway = mesh.workloads().iter().find(|w| w.gateway).unwrap().clone();
        let entrance = *gateway.listeners.iter().find(|a| a.port() == 8080).unwrap();

        let (trace, above) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let parent = format!("00-{trace}-{above}-01");
        let fields = [("traceparent", parent.as_str()), ("x-transaction", "t-1")];
        assert_eq!(ask(entrance, &fields).await, 200);
        let chain = tokio::task::block_in_place(|| journey(state.path(), trace, above));
        for span in &chain {
            let of = |name: &str| span.tags.get(name).map(String::as_str);
            assert_eq!(of("http.status_code"), Some("200"), "{span:#?}");
            assert_eq!(of("istio.canonical_service"), Some(span.service.as_str()), "{span:#?}");
            assert_eq!(of("component"), Some("proxy"));
            let secret = span.tags.values().any(|value| value.contains("secret"));
            assert!(!secret, "queries are nobody's business: {span:#?}");
        }
        assert_eq!(chain[0].tags["transaction.id"], "t-1");
        assert_eq!(chain[0].tags["http.url"], "http://api.ecotrack.platform.dev/api/users");
        assert_eq!(chain[2].tags["http.method"], "GET");

        // What each hop logged names the span that it reported; a gateway has two spans and one line.
        let mut told: Vec<_> =
            chain.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, s)| s.id.clone()).collect();
        told.sort();
        let end = Instant::now() + PATIENCE;
        loop {
            let found = records(state.path(), trace);
            let mut ids: Vec<_> = found.iter().map(|(id, _)| id.clone()).collect();
            ids.sort();
            if ids == told {
                assert!(found.iter().all(|(_, line)| line.contains(" 200 ")), "{found:#?}");
                break;
            }
            assert!(Instant::now() < end, "records of {ids:?}, and spans {told:?}: {found:#?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }

        // Who does not want a trace is believed.
        let unwanted = "5bf92f3577b34da6a3ce929d0e0e4736";
        let fields = format!("00-{unwanted}-{above}-00");
        assert_eq!(ask(entrance, &[("traceparent", fields.as_str())]).await, 200);

        // The same in Zipkin's ways.
        let file = mesh.config_dir().join("mesh.yaml");
        let text = std::fs::read_to_string(&file).unwrap().replace(OTLP, ZIPKIN);
        std::fs::write(&file, text).unwrap();
        // Envoy's connections keep what they were accepted with for long: it begins anew.
        drop(envoy);
        let envoy = tokio::task::block_in_place(|| Sidecar::start(&mesh, &workload, "delta", Program::Envoy));
        let admin = gateway.admin();
        let end = Instant::now() + PATIENCE;
        let mut number = 0u64;
        loop {
            number += 1;
            let trace = format!("6bf92f3577b34da6a3ce9290{number:08x}");
            let field = format!("{trace}-{above}-1");
            assert_eq!(ask(entrance, &[("b3", field.as_str())]).await, 200);
            // The gateway is the first to know; when all do, the journey is whole.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let whole = self::spans(state.path(), &trace).len() == JOURNEY.len();
            let whole = whole
                || counter(admin, "tracing.zipkin.reports_sent") > 0 && {
                    tokio::time::sleep(Duration::from_secs(6)).await;
                    self::spans(state.path(), &trace).len() == JOURNEY.len()
                };
            if whole {
                tokio::task::block_in_place(|| journey(state.path(), &trace, above));
                break;
            }
            assert!(Instant::now() < end, "no journey by Zipkin");
        }
        assert_eq!(self::spans(state.path(), unwanted).len(), 0);

        // Without the collector spans are lost and counted, and requests are answered as before.
        drop(spans);
        let before = counter(admin, "tracing.zipkin.spans_dropped");
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(ask(entrance, &[]).await, 200);
            // A request that waited would wait for the collector's five seconds.
            assert!(began.elapsed() < Duration::from_secs(5), "a request waited");
        }
        let end = Instant::now() + PATIENCE;
        while counter(admin, "tracing.zipkin.spans_dropped") < before + 20 {
            assert!(Instant::now() < end, "lost spans are not counted");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        drop(envoy);
        mesh.shutdown().await.unwrap();
    });
}
