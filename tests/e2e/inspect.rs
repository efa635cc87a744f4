//! `weft proxy-status`, `weft proxy-config` and `weft version`, asked of a control plane and a proxy that run.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::Value;

use super::support::control::Control;
use super::support::http::get;
use super::support::logged::Logged;
use super::support::{eventually, stderr, stdout, weft};

const CONTROL: &str = "127.0.71.1";
const PROXY: &str = "127.0.71.10";

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: shop}
spec: {address: 127.0.71.10, serviceAccount: web, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
";

fn said(arguments: &[&str]) -> String {
    let output = weft(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

/// The pages of a report, without its first directory.
fn pages(report: &std::path::Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(report).unwrap()));
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("weft-bug-report").unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        found.insert(name, text);
    }
    found
}

#[test]
fn a_running_mesh_says_who_is_there_and_what_each_has() {
    let control = Control::start(CONTROL, MESH);
    let state = control.state();
    let state = state.to_str().unwrap();
    let token =
        said(&["token", "create", "--state-dir", state, "--namespace", "shop", "--service-account", "web"]);
    let file = control.config("../web.token");
    std::fs::write(&file, token).unwrap();
    let _proxy = Logged::weft(&[
        "proxy",
        "--name",
        "web-1",
        "--namespace",
        "shop",
        "--service-account",
        "web",
        "--ip",
        PROXY,
        "--label",
        "app=web",
        "--interception-mode",
        "NONE",
        "--admin-address",
        "127.0.71.10:15000",
        "--xds-address",
        "127.0.71.1:15012",
        "--root-cert",
        control.root().to_str().unwrap(),
        "--token-file",
        file.to_str().unwrap(),
        "--concurrency",
        "1",
    ]);
    let ready = format!("{PROXY}:15021").parse().unwrap();
    eventually("the proxy is ready", || get(ready, "/healthz/ready").is_ok_and(|(status, _)| status == 200));

    let status = said(&["proxy-status", "--control", CONTROL]);
    let line =
        status.lines().find(|line| line.starts_with("web-1.shop")).unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains("SYNCED") && line.contains("spiffe://cluster.local/ns/shop/sa/web"), "{status}");
    let one: Value = serde_json::from_str(&said(&[
        "proxy-status",
        "web-1.shop",
        "--control",
        CONTROL,
        "--output",
        "json",
    ]))
    .unwrap();
    assert_eq!(one[0]["proxy_type"], "sidecar");
    let output = weft(&["proxy-status", "web-9.shop", "--control", CONTROL]);
    assert!(
        !output.status.success() && stderr(&output).contains("there are web-1.shop"),
        "{}",
        stderr(&output)
    );

    let config = |what: &str, more: &[&str]| said(&[&["proxy-config", what, PROXY], more].concat());
    let web = "web.shop.svc.cluster.local";
    for (what, words) in [
        ("listeners", vec!["LISTENER", "127.0.71.10:8080"]),
        ("routes", vec!["ROUTES"]),
        ("clusters", vec![web, "outbound", "EDS"]),
        ("endpoints", vec!["127.0.71.10:8080", "HEALTHY", web]),
        ("secrets", vec!["certificate", "root", "spiffe://cluster.local/ns/shop/sa/web"]),
        ("bootstrap", vec!["web-1.shop"]),
        ("log", vec!["active rules: info"]),
    ] {
        let text = config(what, &[]);
        for word in words {
            assert!(text.contains(word), "{what}: no {word} in {text}");
        }
    }
    let clusters: Value =
        serde_json::from_str(&config("clusters", &["--name", web, "--output", "json"])).unwrap();
    let names: Vec<_> =
        clusters.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.contains(web)), "{names:?}");
    assert!(config("log", &["--level", "info,weft_proxy::xds=debug"]).contains("weft_proxy::xds=debug"));
    let output = weft(&["proxy-config", "log", PROXY, "--level", "!?"]);
    assert!(!output.status.success() && stderr(&output).contains("--level"), "{}", stderr(&output));
    let output = weft(&["proxy-config", "clusters", "127.0.71.99"]);
    assert!(!output.status.success() && stderr(&output).contains("admin interface at 127.0.71.99:15000"));

    let report = control.config("../report.tar.gz");
    let file = report.to_str().unwrap();
    said(&["bug-report", "--control", CONTROL, "--proxy", PROXY, "--proxy", "127.0.71.99", "--file", file]);
    let pages = pages(&report);
    let of = |name: &str| pages.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", pages.keys()));
    assert!(of("proxy-127.0.71.10_15000/config_dump.json").contains("web.shop.svc.cluster.local"));
    assert!(of("control-127.0.71.1_8080/proxies.json").contains("web-1.shop"));
    assert!(of("report.json").contains("127.0.71.99:15000"), "{}", of("report.json"));
    assert!(pages.values().all(|page| !page.contains("PRIVATE KEY")));
    let output = weft(&["bug-report", "--proxy", "127.0.71.99", "--file", file]);
    assert!(!output.status.success() && stderr(&output).contains("nobody answers"), "{}", stderr(&output));

    let all: Value =
        serde_json::from_str(&said(&["version", "--control", CONTROL, "--output", "json"])).unwrap();
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!((&all["client"], &all["controlPlane"]), (&own.into(), &own.into()));
    assert_eq!(all["proxies"].as_object().unwrap().len(), 1, "{all}");
    assert_eq!(said(&["version"]), format!("client         weft {own}\n"));
}
