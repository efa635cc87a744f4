//! The control plane's numbers on their way to a real collector, by TLS: checked by roots of its own, and with a certificate that
//! the collector asks for.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::Value;

use crate::programs::{Process, get, peer, until_or, weft};

const CONTROL: &str = "127.0.73.1";

/// A certificate that vouches for itself, and its key, in PEM.
fn certificate(directory: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(CONTROL.parse().unwrap())];
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::write(directory.join(format!("{name}.pem")), pem).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[test]
fn the_control_plane_pushes_by_tls_to_a_collector_that_asks_who_comes() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    for name in ["collector", "client", "other"] {
        certificate(directory.path(), name);
    }
    let config = format!(
        "
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: '{CONTROL}:24318', tls: {{cert_file: '{}', key_file: '{}', client_ca_file: '{}'}}}}}}}}
exporters:
  file/metrics: {{path: '{}', flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
",
        file("collector.pem").display(),
        file("collector.key").display(),
        file("client.pem").display(),
        file("metrics.json").display()
    );
    std::fs::write(file("collector.yaml"), config).unwrap();
    let mut command = std::process::Command::new(peer("WEFT_COLLECTOR"));
    command.arg("--config").arg(format!("file:{}", file("collector.yaml").display()));
    let mut collector = Process::start("collector", &mut command, directory.path());
    collector.wait("listening", || std::net::TcpStream::connect((CONTROL, 24318)).is_ok());

    std::fs::create_dir(file("config")).unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{name: http, port: 80}]}\n";
    std::fs::write(file("config/service.yaml"), service).unwrap();
    // Roots that vouch for somebody else, at first.
    std::fs::copy(file("other.pem"), file("ca.pem")).unwrap();
    let mut command = weft();
    command.args(["control", "--address", CONTROL]);
    command.arg("--config-dir").arg(file("config")).arg("--state-dir").arg(file("state"));
    command.args(["--otlp-metrics", "https://127.0.73.1:24318", "--otlp-metrics-interval", "200ms"]);
    command.arg("--otlp-metrics-ca").arg(file("ca.pem"));
    command.arg("--otlp-metrics-cert").arg(file("client.pem"));
    command.arg("--otlp-metrics-key").arg(file("client.key"));
    let mut control = Process::start("control", &mut command, directory.path());
    let ready = format!("{CONTROL}:8080").parse().unwrap();
    control.wait("ready", || get(ready, "/ready").is_ok_and(|a| a.0 == 200));
    control.wait("refusing the collector", || {
        std::fs::read_to_string(file("control.log")).is_ok_and(|log| {
            log.contains("the collector does not take metrics")
                && log.contains("does it take OTLP by gRPC by TLS")
        })
    });
    let pushed = || -> Vec<Value> {
        let text = std::fs::read_to_string(file("metrics.json")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    assert!(pushed().is_empty(), "it went to a collector that nobody vouches for");
    // The right ones are read without a restart.
    std::fs::copy(file("collector.pem"), file("ca.new")).unwrap();
    std::fs::rename(file("ca.new"), file("ca.pem")).unwrap();
    let services = || {
        let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let senders = pushed().into_iter().rev().flat_map(|line| list(&line, "resourceMetrics"));
        let mut metrics = senders.flat_map(|s| list(&s, "scopeMetrics")).flat_map(|s| list(&s, "metrics"));
        let metric = metrics.find(|metric| metric["name"] == "pilot_services")?;
        metric["gauge"]["dataPoints"][0]["asDouble"].as_f64()
    };
    until_or("the services", || format!("{:?}", services()), || services() == Some(1.0));
    control.wait("content", || {
        std::fs::read_to_string(file("control.log"))
            .is_ok_and(|log| log.contains("the collector takes metrics again"))
    });
}
