//! The switches of a ServiceMeshConfig's `observability` at a real proxy: metrics, lines of the access log and spans come and go, each by
//! its own; and the status says in words what a sampling rate is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::collectors::Collector;
use crate::support::control::Control;
use crate::support::http::{backend, get};
use crate::support::logged::Logged;
use crate::support::{eventually, stdout, weft};

const IP: &str = "127.88.2.1";

/// The service `cart`, of which the mesh as a whole wants to know nothing; and what a ServiceMeshConfig wants to know of it.
fn mesh(backend: SocketAddr, collector: u16, observability: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    accessLogFile: /dev/stderr
    extensionProviders: [{{name: otel, opentelemetry: {{service: collector.internal, port: 4317}}}}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: default, namespace: istio-system}}
spec:
  metrics: [{{overrides: [{{disabled: true}}]}}]
  accessLogging: [{{disabled: true}}]
  tracing: [{{providers: [{{name: otel}}], disableSpanReporting: true, randomSamplingPercentage: 0}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: collector, namespace: shop}}
spec:
  hosts: [collector.internal]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{name: grpc-otlp, number: 4317, protocol: GRPC}}]
  endpoints: [{{address: 127.0.0.1, ports: {{grpc-otlp: {collector}}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: cart, namespace: shop}}
spec: {{selector: {{app: cart}}, ports: [{{name: http, port: 8080, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: cart-1, namespace: shop}}
spec: {{address: {IP}, ports: {{http: 8080}}, labels: {{app: cart}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: cart, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: cart}}}}
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: {backend}}}]
---
apiVersion: weft.dev/v1alpha1
kind: ServiceMeshConfig
metadata: {{name: shop, namespace: shop}}
spec: {{services: [{{name: cart, observability: {observability}}}]}}
"
    )
}

struct Scene {
    control: Control,
    proxy: Logged,
    collector: Collector,
    backend: SocketAddr,
}

impl Scene {
    fn start(observability: &str) -> Self {
        let (backend, collector) = (backend("cart"), Collector::start());
        let control = Control::start("127.88.1.1", &mesh(backend, collector.port, observability));
        // What was counted before a switch was thrown stays there for as long as its listener drains.
        let drain = ["--listener-drain-time", "600s"];
        let more = ["--interception-mode", "NONE", "--name", "cart-1", "--label", "app=cart"];
        let more = [&more[..], &drain].concat();
        let proxy = Logged::proxy(control.ip, IP, "shop", &more);
        let scene = Self { control, proxy, collector, backend };
        eventually("it serves", || scene.asks("/ready").is_ok());
        scene
    }

    /// Throws the switches, and waits until the proxy has got them.
    fn throw(&self, observability: &str) {
        let dump = || get(at(15000), "/config_dump?resource=dynamic_listeners").unwrap().1;
        let before = dump();
        let text = mesh(self.backend, self.collector.port, observability);
        std::fs::write(self.control.config("mesh.yaml"), text).unwrap();
        eventually("the proxy has other listeners", || dump() != before);
    }

    fn asks(&self, path: &str) -> std::io::Result<()> {
        let (status, body) = get(at(8080), path)?;
        let served = status == 200 && body == "cart";
        served.then_some(()).ok_or_else(|| std::io::Error::other(body))
    }

    /// How many requests the proxy has counted.
    fn counted(&self) -> f64 {
        let page = get(at(15000), "/stats/prometheus").unwrap().1;
        let series = page.lines().filter(|line| line.starts_with("istio_requests_total{"));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    fn logged(&self, path: &str) -> bool {
        let words = format!("GET {path} HTTP/1.1");
        self.proxy.log().contains(&words)
    }

    /// How many spans of requests for a path have been reported.
    fn traced(&self, path: &str) -> usize {
        let came: Vec<Value> = self.collector.came().spans.iter().map(xds_protos::json::to_value).collect();
        let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let scopes = came.iter().flat_map(|one| list(one, "resource_spans"));
        let spans = scopes.flat_map(|one| list(&one, "scope_spans")).flat_map(|one| list(&one, "spans"));
        spans.filter(|span| span["attributes"].to_string().contains(&format!("{path}\""))).count()
    }
}

fn at(port: u16) -> SocketAddr {
    format!("{IP}:{port}").parse().unwrap()
}

/// Asks for a path again and again, on one connection.
fn asks_often(path: &str, times: usize) {
    let mut stream = TcpStream::connect(at(8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    let mut buffer = [0; 4096];
    for _ in 0..times {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\ncart") {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn each_switch_of_observability_is_thrown_by_its_own_and_a_rate_is_told_in_per_cent() {
    let switches = |metrics: bool, logs: bool, spans: bool, rate: f64| {
        format!(
            "{{metricsEnabled: {metrics}, accessLogging: {logs}, tracingEnabled: {spans}, samplingRate: {rate}}}"
        )
    };
    // It wants nothing either.
    let scene = Scene::start(&switches(false, false, false, 1.0));
    let mut counted = 0.0;
    let mut ask = |path: &str, metrics: bool, logs: bool, spans: bool, rate: f64| {
        scene.throw(&switches(metrics, logs, spans, rate));
        scene.asks(path).unwrap();
        if metrics {
            counted += 1.0;
            // More would be those that are not to be counted.
            eventually("it is counted", || scene.counted() >= counted);
        }
        if logs {
            eventually("it is logged", || scene.logged(path));
        }
        counted
    };
    ask("/all", true, true, true, 1.0);
    ask("/no-metrics", false, true, true, 1.0);
    ask("/no-log", true, false, true, 1.0);
    ask("/no-spans", true, true, false, 1.0);

    // One in a hundred.
    ask("/rarely-first", false, false, true, 0.01);
    eventually("the status is that of the proxy, and says what the rate is", || {
        let asked = ["config-status", "ServiceMeshConfig", "--control", scene.control.ip, "--output", "json"];
        let page: Value = serde_json::from_str(&stdout(&weft(&asked))).unwrap_or_default();
        let status = &page["objects"][0]["status"];
        let said = status["validationMessages"].to_string();
        status["valid"] == true
            && status["proxies"] == json!({"taken": 1, "connected": 1})
            && said.contains("a samplingRate of 0.01, which is 1 %")
    });
    asks_often("/rarely", 2000);

    let counted = ask("/last", true, true, true, 1.0);
    eventually("the last span is reported", || scene.traced("/last") == 1);
    assert_eq!(scene.counted(), counted, "of all that were asked for");
    let told = |path: &str| (scene.logged(path), scene.traced(path));
    assert_eq!(
        ["/ready", "/all", "/no-metrics", "/no-log", "/no-spans", "/last"].map(told),
        [(false, 0), (true, 1), (true, 1), (false, 1), (true, 0), (true, 1)]
    );
    let rarely = scene.traced("/rarely");
    assert!((3..100).contains(&rarely), "{rarely} of 2000 at 1 %");
}
