//! A real Prometheus at the agent's port of a proxy, where the application's metrics stand beside the proxy's own: in OpenMetrics,
//! which it asks for first, and in which it takes no answer that is not whole.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::programs::{Process, get, peer, run, until, weft_proxy};

const SIDECAR: &str = "127.121.9.1";
const PROMETHEUS: &str = "127.121.9.2:9090";

/// An application with one counter, in OpenMetrics; and the last `Accept` that it was asked with.
fn application() -> (u16, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, accepted) = (listener.local_addr().unwrap().port(), Arc::<Mutex<String>>::default());
    let last = accepted.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            for line in lines.take_while(|line| !line.is_empty()) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("accept:") {
                    *last.lock().unwrap() = value.trim().to_owned();
                }
            }
            let body = "# TYPE app_orders counter\napp_orders_total{kind=\"all\"} 41\n# EOF\n";
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/openmetrics-text; version=1.0.0\r\n";
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
    (port, accepted)
}

#[test]
fn a_merged_page_is_taken_in_open_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let (port, accepted) = application();
    let mut proxy = weft_proxy();
    proxy.args(["--xds-address", "127.0.0.1:1", "--xds-plaintext", "--concurrency", "1", "--ip", SIDECAR]);
    proxy.args(["--admin-address", &format!("{SIDECAR}:15000")]);
    proxy.env("ISTIO_PROMETHEUS_ANNOTATIONS", format!(r#"{{"path": "/metrics", "port": "{port}"}}"#));
    let mut proxy = Process::start("weft-proxy", &mut proxy, directory.path());
    let page: SocketAddr = format!("{SIDECAR}:15020").parse().unwrap();
    proxy.wait("the agent's port", || get(page, "/stats/prometheus").is_ok());

    let config = serde_json::json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "merged", "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [page.to_string()]}]}],
    });
    let path = directory.path().join("prometheus.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(peer("WEFT_PROMETHEUS"));
    command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(directory.path().join("data"));
    command.args(["--web.listen-address", PROMETHEUS, "--log.level", "warn"]);
    let mut prometheus = Process::start("prometheus", &mut command, directory.path());
    let at: SocketAddr = PROMETHEUS.parse().unwrap();
    prometheus.wait("ready", || get(at, "/-/ready").is_ok_and(|(status, _)| status == 200));

    let curl = |arguments: &[&str]| {
        let mut curl = Command::new(peer("WEFT_CURL"));
        run(curl.args(["-s", "-S", "--max-time", "20"]).args(arguments))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let query = |query: &str| -> Option<f64> {
        let text = curl(&[
            "-G",
            &format!("http://{PROMETHEUS}/api/v1/query"),
            "--data-urlencode",
            &format!("query={query}"),
        ]);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    until("both parts are there", || {
        query("app_orders_total{kind=\"all\"}") == Some(41.0)
            && query("envoy_server_live").is_some()
            && query("istio_agent_scrapes_total").is_some_and(|n| n > 1.0)
    });
    assert_eq!(query("up"), Some(1.0));
    assert_eq!(query("istio_agent_scrape_failures_total{type=\"application\"}"), Some(0.0));
    // As it asked, so it was answered.
    let accept = accepted.lock().unwrap().clone();
    assert!(accept.contains("application/openmetrics-text"), "{accept}");
    let answer =
        curl(&["-i", "-H", &format!("accept: {accept}"), &format!("http://{page}/stats/prometheus")]);
    assert!(
        answer.to_ascii_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.ends_with("\n# EOF\n") && answer.matches("# EOF").count() == 1, "{answer}");
}
