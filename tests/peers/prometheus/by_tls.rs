//! A real Prometheus that fetches a proxy's metrics by TLS, with a certificate of the mesh that `weft cert fetch` brought it; and one
//! without a certificate, which gets nothing.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::programs::{Process, get, peer, run, until_or, weft, weft_proxy};

const CONTROL: &str = "127.121.8.1";
const SIDECAR: &str = "127.121.8.2";
const PROMETHEUS: &str = "127.121.8.3:9090";

#[test]
fn a_prometheus_with_a_certificate_of_the_mesh_fetches_by_tls_and_one_without_gets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::create_dir(file("config")).unwrap();
    std::fs::write(file("config/empty.yaml"), "apiVersion: v1\nkind: List\nitems: []\n").unwrap();
    let mut command = weft();
    command.args(["control", "--address", CONTROL]);
    command.arg("--config-dir").arg(file("config")).arg("--state-dir").arg(file("state"));
    let mut control = Process::start("control", &mut command, directory.path());
    let ready: SocketAddr = format!("{CONTROL}:8080").parse().unwrap();
    control.wait("ready", || get(ready, "/ready").is_ok_and(|a| a.0 == 200));
    let (state, root) = (file("state"), file("state/root-cert.pem"));
    let token = |name: &str| {
        let mut command = weft();
        command.args(["token", "create", "--namespace", "shop", "--service-account", name, "--state-dir"]);
        let token = run(command.arg(&state)).unwrap_or_else(|error| panic!("{error}"));
        std::fs::write(file(&format!("{name}.token")), token).unwrap();
        file(&format!("{name}.token"))
    };
    let address = format!("{CONTROL}:15012");
    let mut proxy = weft_proxy();
    proxy.args(["--xds-address", &address, "--concurrency", "1", "--ip", SIDECAR]);
    proxy.args(["--namespace", "shop", "--service-account", "api", "--metrics-tls-port", "15091"]);
    proxy.args(["--admin-address", &format!("{SIDECAR}:15000")]);
    proxy.arg("--root-cert").arg(&root).arg("--token-file").arg(token("api"));
    let mut proxy = Process::start("weft-proxy", &mut proxy, directory.path());
    let page: SocketAddr = format!("{SIDECAR}:15021").parse().unwrap();
    proxy.wait("ready", || get(page, "/healthz/ready").is_ok_and(|a| a.0 == 200));
    let mut fetch = weft();
    fetch.args(["cert", "fetch", "--ca-address", &address, "--namespace", "shop", "--service-account"]);
    fetch.arg("prometheus").arg("--root-cert").arg(&root).arg("--out").arg(file("out"));
    run(fetch.arg("--token-file").arg(token("prometheus"))).unwrap_or_else(|error| panic!("{error}"));

    let scrape = |job: &str, tls: Value| {
        serde_json::json!({"job_name": job, "scheme": "https", "metrics_path": "/stats/prometheus",
            "tls_config": tls, "static_configs": [{"targets": [format!("{SIDECAR}:15091")]}]})
    };
    // A workload is known by its SPIFFE id, which Prometheus does not look at.
    let own = serde_json::json!({"ca_file": file("out/root-cert.pem"), "cert_file": file("out/cert-chain.pem"),
        "key_file": file("out/key.pem"), "insecure_skip_verify": true});
    let config = serde_json::json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [scrape("with", own), scrape("without", serde_json::json!({"insecure_skip_verify": true}))],
    });
    std::fs::write(file("prometheus.yaml"), config.to_string()).unwrap();
    let mut command = Command::new(peer("WEFT_PROMETHEUS"));
    command.arg("--config.file").arg(file("prometheus.yaml")).arg("--storage.tsdb.path").arg(file("data"));
    command.args(["--web.listen-address", PROMETHEUS, "--log.level", "warn"]);
    let mut prometheus = Process::start("prometheus", &mut command, directory.path());
    let at: SocketAddr = PROMETHEUS.parse().unwrap();
    prometheus.wait("ready", || get(at, "/-/ready").is_ok_and(|(status, _)| status == 200));
    let targets = || -> Vec<(String, String, String)> {
        let text = get(at, "/api/v1/targets").map(|answer| answer.1).unwrap_or_default();
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        let all = answer["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let one = |t: &Value| (word(&t["scrapePool"]), word(&t["health"]), word(&t["lastError"]));
        let mut all: Vec<_> = all.iter().map(one).collect();
        all.sort();
        all
    };
    until_or(
        "one is let in and the other is not",
        || format!("{:?}", targets()),
        || {
            let targets = targets();
            let health: Vec<_> =
                targets.iter().map(|(job, health, _)| (job.as_str(), health.as_str())).collect();
            health == [("with", "up"), ("without", "down")] && targets[1].2.contains("certificate")
        },
    );
    let count = get(at, "/api/v1/query?query=envoy_server_live%7Bjob%3D%22with%22%7D").unwrap().1;
    assert!(count.contains("\"1\"]"), "{count}");
    // Nothing but metrics is there, and nothing in plain text.
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "-k", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]);
        run(curl
            .arg("--cert")
            .arg(file("out/cert-chain.pem"))
            .arg("--key")
            .arg(file("out/key.pem"))
            .args(arguments))
    };
    assert_eq!(curl(&[&format!("https://{SIDECAR}:15091/quitquitquit")]).unwrap(), "404");
    assert!(curl(&[&format!("http://{SIDECAR}:15091/stats/prometheus")]).is_err());
}
