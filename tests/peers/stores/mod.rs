//! Real stores behind the example mesh, with what `deploy/observability` ships: Jaeger keeps its spans, Loki its lines, which Promtail
//! brings. A request is asked for by its trace's id in both; a failure is seen where it arose; lines and events of security are
//! found by few labels; and from a line one comes to its trace and back as the data sources say.
//!
//! Both stores take many minutes to build: `tests/peers/install --long` brings them, and `.ci/long` runs this.

mod kept;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use regex::Regex;
use serde_json::{Value, json};
use weft::client::Connection;
use weft::up::{Mesh, Part};

use crate::meshes;
use crate::programs::{until, until_or};
use kept::{Jaeger, Line, Loki, Promtail, Span};

const LOOPBACK: u8 = 43;
/// Whom the shipped MeshConfig names as the one who takes spans.
const TAKES_SPANS: &str = "jaeger-collector.observability.svc.cluster.local";
/// A customer's request through all services, one that fails at the last of them, and one that a policy denies.
const WHOLE: &str = "4bf92f3577b34da6a3ce929d0e0e4701";
const FAILED: &str = "4bf92f3577b34da6a3ce929d0e0e4702";
const DENIED: &str = "4bf92f3577b34da6a3ce929d0e0e4703";
/// Of the access log, of all three: a gateway has one, whoever is between two others one for being asked and one for asking.
const LINES: usize = 10 + 6 + 2;
/// The span of the client, above all of ours.
const ABOVE: &str = "00f067aa0ba902b7";

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/observability").join(path)
}

fn yaml(path: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The example mesh with the shipped settings laid over its own, a policy that denies, and every request traced.
fn configuration() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let file = directory.path().join("mesh.yaml");
    let mut object = yaml(&file);
    let mut mesh: Value = serde_saphyr::from_str(object["data"]["mesh"].as_str().unwrap()).unwrap();
    lay_over(&mut mesh, yaml(&shipped("mesh-config.yaml")));
    object["data"]["mesh"] = mesh.to_string().into();
    std::fs::write(&file, object.to_string()).unwrap();
    let more = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: traces, namespace: ecotrack}}
spec:
  hosts: [{TAKES_SPANS}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{name: grpc-otlp, number: 4317, protocol: GRPC}}]
  endpoints: [{{address: {}}}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: traces, namespace: istio-system}}
spec: {{tracing: [{{randomSamplingPercentage: 100}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: nobody-there, namespace: ecotrack}}
spec:
  selector: {{matchLabels: {{app: product-service}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/api/products/secret]}}}}]}}]
",
        kept::JAEGER
    );
    std::fs::write(directory.path().join("stores.yaml"), more).unwrap();
    std::fs::copy(shipped("proxy-config.yaml"), directory.path().join("proxy-config.yaml")).unwrap();
    directory
}

fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

async fn ask(at: SocketAddr, path: &str, trace: &str) -> u16 {
    let request = Request::get(path).header("host", "api.ecotrack.platform.dev");
    let request = request.header("traceparent", format!("00-{trace}-{ABOVE}-01"));
    let request: Request<Full<Bytes>> = request.body(Full::default()).unwrap();
    let exchange = async { Connection::open(at).await?.send(request).await };
    let answer = tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("in time").unwrap();
    answer.status.as_u16()
}

/// Has an application fail.
async fn fail(at: SocketAddr) {
    let body = Bytes::from(json!({"failStatus": 500}).to_string());
    let request = Request::put("/__behaviour").header("host", "app").body(Full::new(body)).unwrap();
    let answer = Connection::open(at).await.unwrap().send(request).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[test]
#[ignore = "Jaeger and Loki take many minutes to build"]
fn a_request_is_found_in_jaeger_by_its_trace_and_in_loki_by_few_labels() {
    meshes::runtime().block_on(async {
        let (configuration, state) = (configuration(), tempfile::tempdir().unwrap());
        let jaeger = tokio::task::block_in_place(|| Jaeger::start(state.path()));
        let told = |options: &mut weft::up::Options| {
            options.control_flags = ["--security-log=-", "--log-format=json"].map(str::to_owned).into();
        };
        let mesh: Mesh = meshes::start_as(configuration.path(), LOOPBACK, told).await;
        let entrance: SocketAddr = format!("127.{LOOPBACK}.2.1:8080").parse().unwrap();

        assert_eq!(ask(entrance, "/api/users/7?token=secret", WHOLE).await, 200);
        let last = mesh.workloads().iter().find(|w| w.labels["app"] == "notification-service").unwrap();
        fail(last.application.unwrap()).await;
        assert_eq!(ask(entrance, "/api/orders/7", FAILED).await, 502);
        assert_eq!(ask(entrance, "/api/products/secret", DENIED).await, 403);

        tokio::task::block_in_place(|| {
            traced(&jaeger);
            until("all lines are written", || written(&mesh, "\"span_id\"") == LINES);
            until("the denial is told", || written(&mesh, "\"event\":\"denied\"") == 1);
            let loki = Loki::start(state.path());
            let _promtail = Promtail::start(state.path(), &mesh);
            logged(&loki);
            secured(&loki);
            labelled(&loki);
            joined(&loki, &jaeger);
        });
        mesh.shutdown().await.unwrap();
    });
}

/// How many lines of the proxies have this in them.
fn written(mesh: &Mesh, what: &str) -> usize {
    let logs = mesh.workloads().iter().map(|w| mesh.log(&Part::Proxy(w.id.clone())));
    let of =
        |log: PathBuf| std::fs::read_to_string(log).unwrap().lines().filter(|l| l.contains(what)).count();
    logs.map(of).sum()
}

const SERVICES: [&str; 6] = [
    "istio-ingressgateway",
    "user-service",
    "product-service",
    "order-service",
    "payment-service",
    "notification-service",
];

/// The spans of a request that passes these services: each is asked, and asks the next.
fn passing(services: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    let mut both: Vec<_> = services.iter().flat_map(|s| [(*s, "server"), (*s, "client")]).collect();
    both.pop();
    both
}

/// A trace's spans in the order of the request, when all of them are there.
fn chain(jaeger: &Jaeger, trace: &str, services: &[&'static str]) -> Vec<Span> {
    let expected = passing(services);
    let mut chain = Vec::new();
    let whole = || {
        let found = jaeger.trace(trace);
        chain.clear();
        while let Some(next) = {
            let parent = chain.last().map_or(ABOVE, |s: &Span| s.id.as_str());
            found.iter().find(|s| s.parent == parent)
        } {
            chain.push(next.clone());
        }
        // Nothing stands beside it.
        chain.len() == found.len()
            && chain.iter().map(|s| (s.service.as_str(), s.kind.as_str())).eq(expected.iter().copied())
    };
    until_or(trace, || format!("{:#?}", jaeger.trace(trace)), whole);
    chain
}

/// What Jaeger says of each of the three, and of who calls whom.
fn traced(jaeger: &Jaeger) {
    for span in chain(jaeger, WHOLE, &SERVICES) {
        assert_eq!(span.tags["http.status_code"], "200", "{span:#?}");
        assert!(!span.failed(), "{span:#?}");
        assert!(!span.tags.values().any(|value| value.contains("secret")), "{span:#?}");
    }
    // Where it arose is the last of those that failed.
    let failed = chain(jaeger, FAILED, &[SERVICES[0], SERVICES[3], SERVICES[4], SERVICES[5]]);
    assert!(failed.iter().all(Span::failed), "{failed:#?}");
    let statuses: Vec<_> = failed.iter().map(|span| span.tags["http.status_code"].as_str()).collect();
    assert_eq!(statuses, ["502", "502", "502", "502", "502", "500", "500"]);
    let denied = chain(jaeger, DENIED, &[SERVICES[0], SERVICES[2]]);
    // A refusal is an error to who asks, not to who refuses.
    let failed: Vec<_> = denied.iter().map(|s| (s.tags["http.status_code"].as_str(), s.failed())).collect();
    assert_eq!(failed, [("403", false), ("403", true), ("403", false)]);
    // Three requests, edge by edge.
    let expected: BTreeMap<(String, String), u64> =
        [(0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 4, 2), (4, 5, 2), (0, 3, 1), (0, 2, 1)]
            .map(|(from, to, n)| ((SERVICES[from].to_owned(), SERVICES[to].to_owned()), n))
            .into();
    until_or("the graph", || format!("{:#?}", jaeger.graph()), || jaeger.graph() == expected);
}

/// How many lines of which application answer this.
fn by_app(loki: &Loki, query: &str) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for line in loki.lines(query) {
        *count.entry(line.labels["app"].clone()).or_default() += 1;
    }
    count
}

/// The lines of each request, from all who had part in it; and of the access log's none is without the id of a trace.
fn logged(loki: &Loki) {
    let expect = |query: &str, expected: &[(&str, usize)]| {
        let expected: BTreeMap<String, usize> =
            expected.iter().map(|(app, n)| ((*app).to_owned(), *n)).collect();
        until_or(query, || format!("{:#?}", loki.lines(query)), || by_app(loki, query) == expected);
    };
    let of = |class: &str, trace: &str| {
        format!(
            "{{container=\"istio-proxy\",class=\"{class}\",method=\"GET\"}} | json | trace_id=\"{trace}\""
        )
    };
    let [gateway, user, product, order, payment, notification] = SERVICES;
    let whole = [(gateway, 1), (user, 2), (product, 2), (order, 2), (payment, 2), (notification, 1)];
    expect(&of("2xx", WHOLE), &whole);
    expect(&of("5xx", FAILED), &[(gateway, 1), (order, 2), (payment, 2), (notification, 1)]);
    expect(&of("4xx", DENIED), &[(gateway, 1), (product, 1)]);
    // By labels alone: who was asked with success, of one application.
    expect("{app=\"product-service\",namespace=\"ecotrack\",version=\"v1\",class=\"2xx\"}", &[(product, 2)]);

    let lines = loki.lines("{class=~\".+\"}");
    assert_eq!(lines.len(), LINES, "{lines:#?}");
    for line in &lines {
        let said: Value = serde_json::from_str(&line.text).unwrap();
        assert!([WHOLE, FAILED, DENIED].map(Value::from).contains(&said["trace_id"]), "{}", line.text);
        assert!(said["span_id"].as_str().is_some_and(|id| id.len() == 16), "{}", line.text);
    }
}

/// Events of security, by their own labels: of a proxy with the trace, and of the control plane.
fn secured(loki: &Loki) {
    let query = format!(
        "{{event=\"denied\",severity=\"medium\",app=\"product-service\"}} | json | trace_id=\"{DENIED}\""
    );
    let denied = loki.lines(&query);
    assert_eq!(denied.len(), 1, "{denied:#?}");
    let said: Value = serde_json::from_str(&denied[0].text).unwrap();
    assert_eq!(said["policy"], "ns[ecotrack]-policy[nobody-there]-rule[0]", "{said:#}");
    let issued = loki.lines("{container=\"discovery\",event=\"certificate\"} | json | outcome=\"ok\"");
    assert!(!issued.is_empty(), "the authority's events");
    // What both halves say of themselves is there, too, by its level; and nobody says anything but JSON.
    for container in ["discovery", "istio-proxy"] {
        let said =
            loki.lines(&format!("{{container=\"{container}\",level=\"INFO\"}} | json | message!=\"\""));
        assert!(!said.is_empty(), "of {container}");
    }
    for line in loki.lines("{container=~\".+\"}") {
        assert!(serde_json::from_str::<Value>(&line.text).is_ok_and(|l| l.is_object()), "{line:?}");
    }
}

/// Loki has the labels that Promtail's file names, ten at most, of few values.
fn labelled(loki: &Loki) {
    let expected: BTreeSet<_> = crate::prometheus::labels_in_loki();
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for series in loki.series() {
        for (label, value) in series {
            values.entry(label).or_default().insert(value);
        }
    }
    let found: BTreeSet<_> = values.keys().cloned().collect();
    assert_eq!(found, expected);
    assert!(found.len() <= 10, "{values:#?}");
    assert!(values.values().all(|values| values.len() <= 12), "{values:#?}");
}

/// Grafana's data sources: the id that it reads out of a line is that of a trace; the query that it makes of a span finds the lines.
fn joined(loki: &Loki, jaeger: &Jaeger) {
    let sources = yaml(&shipped("datasources.yaml"));
    let sources = sources["datasources"].as_array().unwrap();
    let by = |kind: &str| sources.iter().find(|s| s["type"] == kind).unwrap();
    let (logs, traces) = (by("loki"), by("jaeger"));
    let field = &logs["jsonData"]["derivedFields"][0];
    let back = &traces["jsonData"]["tracesToLogsV2"];
    assert_eq!((&field["datasourceUid"], &back["datasourceUid"]), (&traces["uid"], &logs["uid"]));

    let id = Regex::new(field["matcherRegex"].as_str().unwrap()).unwrap();
    let found = |line: &Line| id.captures(&line.text).map(|found| found[1].to_owned());
    for (query, trace, spans) in [
        (format!("{{class=\"5xx\"}} | json | trace_id=\"{FAILED}\""), FAILED, 7),
        ("{event=\"denied\"}".to_owned(), DENIED, 3),
    ] {
        let lines = loki.lines(&query);
        assert!(!lines.is_empty(), "{query}");
        for line in lines {
            assert_eq!(found(&line).as_deref(), Some(trace), "{}", line.text);
        }
        assert_eq!(jaeger.trace(trace).len(), spans);
    }
    // Provisioning takes `$$` for `$`.
    let query = back["query"].as_str().unwrap().replace("$${__trace.traceId}", WHOLE);
    until("the lines of a trace", || loki.lines(&query).len() == 10);
}
