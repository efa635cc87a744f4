//! The admin interface of a proxy at work, as tools for Envoy read it.

use serde_json::Value;
use xds_protos::ResourceType;

use crate::support::eventually;
use crate::support::http::{exchange, get};
use crate::support::world::{World, cluster};

struct Admin<'a>(&'a World);

impl Admin<'_> {
    fn page(&self, path: &str) -> (u16, String) {
        get(self.0.at(15000), path).unwrap()
    }

    fn text(&self, path: &str) -> String {
        let (status, text) = self.page(path);
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap()
    }

    fn post(&self, path: &str) -> String {
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let (head, body) = exchange(self.0.at(15000), &request).unwrap();
        format!("{}\n{body}", head.lines().next().unwrap_or_default())
    }

    /// A number of `/stats`.
    fn stat(&self, name: &str) -> Option<u64> {
        let text = self.text("/stats");
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).and_then(|v| v.parse().ok())
    }
}

#[test]
fn the_pages_tell_what_the_proxy_has_and_did() {
    let world = World::start("127.47.1.1", "delta");
    let admin = Admin(&world);
    assert_eq!(admin.text("/ready"), "LIVE\n");
    assert_eq!(get(world.at(15021), "/healthz/ready").unwrap().0, 200);
    assert_eq!(get(world.at(15021), "/config_dump").unwrap().0, 404, "one path only");

    // Statistics move with requests, in both vocabularies' forms.
    let before = admin.stat("cluster.backend.upstream_rq_total").expect("a statistic of the cluster");
    for _ in 0..7 {
        world.get("/").unwrap();
    }
    eventually("seven more", || admin.stat("cluster.backend.upstream_rq_total") == Some(before + 7));
    assert!(admin.stat("http.test.downstream_rq_total").unwrap_or_default() >= 7);
    // What Istio's readiness probe asks for.
    for (name, least) in [
        ("cluster_manager.cds.update_success", 1),
        ("listener_manager.lds.update_success", 1),
        ("listener_manager.workers_started", 1),
        ("control_plane.connected_state", 1),
        ("cluster.xds-grpc.upstream_cx_active", 1),
    ] {
        assert!(admin.stat(name).is_some_and(|n| n >= least), "{name}: {:?}", admin.stat(name));
    }
    assert_eq!(admin.stat("server.state"), Some(0));
    let prometheus = admin.text("/stats/prometheus");
    let line = format!("envoy_cluster_upstream_rq_total{{cluster_name=\"backend\"}} {}", before + 7);
    assert!(prometheus.lines().any(|l| l == line), "no {line:?} in\n{prometheus}");
    assert!(get(world.at(15090), "/stats/prometheus").unwrap().1.contains(&line));
    let filtered = admin.text("/stats?filter=%5Ecluster%5C.backend%5C.upstream_rq_total$");
    assert_eq!(filtered.lines().count(), 1, "{filtered}");

    // What it has.
    let clusters = admin.text("/clusters");
    let host = format!("backend::{}::health_flags::healthy", world.backend);
    assert!(clusters.lines().any(|l| l == host), "no {host:?} in\n{clusters}");
    assert_eq!(admin.text("/listeners"), format!("main::{}\n", world.at(8080)));
    let listeners = admin.json("/listeners?format=json");
    assert_eq!(listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"], 8080);
    let dump = admin.json("/config_dump").to_string();
    for part in [
        "ClustersConfigDump",
        "ListenersConfigDump",
        "RoutesConfigDump",
        "\"backend\"",
        "\"routes\"",
        "\"main\"",
    ] {
        assert!(dump.contains(part), "no {part} in {dump}");
    }
    let info = admin.json("/server_info");
    assert_eq!(info["state"], "LIVE");
    assert!(info["version"].as_str().unwrap().starts_with("weft/"), "{info}");
    assert_eq!(info["node"]["id"], "sidecar~127.47.1.1~proxy.default~default.svc.cluster.local");
    assert_eq!(admin.json("/certs")["certificates"], serde_json::json!([]), "none without TLS");

    // A refused version is kept beside the one that serves.
    world.refused(ResourceType::Cluster, &cluster("backend", world.backend, "lb_policy: 99"));
    assert!(admin.stat("cluster_manager.cds.update_rejected").unwrap_or_default() >= 1);
    let dump = admin.json("/config_dump").to_string();
    assert!(dump.contains("error_state") && dump.contains("lb_policy"), "{dump}");
}

#[test]
fn what_changes_something_wants_post_and_works() {
    let mut world = World::start("127.47.2.1", "delta");
    let admin = Admin(&world);
    assert_eq!(admin.page("/logging?level=debug").0, 405);
    assert_eq!(admin.text("/logging"), "active rules: info\n");
    assert!(admin.post("/logging?level=weft_proxy%3Dnonsense").contains("400"));
    assert_eq!(admin.text("/logging"), "active rules: info\n", "a mistake changes nothing");
    assert!(!world.proxy.log().contains("DEBUG"));
    assert!(admin.post("/logging?level=debug").contains("200"));
    assert_eq!(admin.text("/logging"), "active rules: debug\n");

    assert!(admin.post("/healthcheck/fail").contains("200"));
    assert_eq!(admin.page("/ready").0, 503);
    world.goes_on();
    assert!(admin.post("/healthcheck/ok").contains("200"));
    assert_eq!(admin.page("/ready").0, 200);

    let (status, text) = admin.page("/nonsense");
    assert!(status == 404 && text.contains("/config_dump"), "{status} {text}");
    assert!(admin.post("/quitquitquit").contains("200"));
    assert!(world.proxy.wait().success());
}
