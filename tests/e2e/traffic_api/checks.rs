//! HealthChecks: endpoints that fail them get no requests, and get some again when they are well.

use super::*;
use crate::support::http;
use crate::support::mesh::runtime;
use crate::support::pair::Pair;

fn check(spec: &str) -> String {
    format!(
        "
apiVersion: weft.dev/v1alpha1
kind: HealthCheck
metadata: {{name: a, namespace: shop}}
spec: {{host: a.com, interval: 50ms, unhealthyThreshold: 2, healthyThreshold: 1, {spec}}}
---
"
    )
}

/// Who answers `count` requests.
fn who(mesh: &Mesh, count: usize) -> Vec<String> {
    let mut names: Vec<_> = (0..count).map(|_| mesh.get("/", "").1).collect();
    names.sort();
    names.dedup();
    names
}

/// How many requests came for a path.
fn came(service: &Service, path: &str) -> usize {
    service.heads().iter().filter(|head| head.split(' ').nth(1) == Some(path)).count()
}

#[test]
fn an_endpoint_that_fails_its_check_gets_no_requests() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    b.status.store(500, Ordering::Relaxed);
    let both = entry("a", &[(&a, "r/z"), (&b, "r/z")]);
    let http =
        "http: {path: /healthz, host: probe.example, headers: {x-probe: 'yes'}, expectedStatuses: [200-299]}";
    let mesh = Mesh::start("127.49.13.1", "127.49.13.2", &(both.clone() + &check(http)));
    assert_eq!(who(&mesh, 20), ["a"]);
    assert_eq!(came(&b, "/") + came(&b, "/ready"), 0, "{:#?}", b.heads());
    let head = b.heads().pop().unwrap().to_lowercase();
    assert!(head.starts_with("get /healthz http/1.1"), "{head}");
    assert!(head.contains("host: probe.example") && head.contains("x-probe: yes"), "{head}");

    // It recovers, and the other one falls ill.
    b.status.store(202, Ordering::Relaxed);
    eventually("b is asked", || who(&mesh, 20) == ["a", "b"]);
    a.status.store(500, Ordering::Relaxed);
    eventually("a is not asked", || who(&mesh, 20) == ["b"]);

    // With nobody left there is nobody to ask; unless health is to be ignored then.
    b.status.store(500, Ordering::Relaxed);
    eventually("nobody is asked", || mesh.get("/", "").0 == 503);
    mesh.write(&(both + &check(&format!("minHealthPercent: 50, {http}"))));
    eventually("both are asked", || mesh.get("/", "").0 == 500 && who(&mesh, 20) == ["a", "b"]);
}

#[test]
fn a_connection_and_what_it_says_may_be_the_check() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    b.status.store(201, Ordering::Relaxed);
    let both = entry("a", &[(&a, "r/z"), (&b, "r/z")]);
    let tcp = r#"tcp: {send: "GET /tcp HTTP/1.1\r\n\r\n", receive: ["HTTP/1.1 200", "content-length"]}"#;
    let mesh = Mesh::start("127.49.14.1", "127.49.14.2", &(both.clone() + &check(tcp)));
    assert_eq!(who(&mesh, 20), ["a"]);
    assert!(came(&b, "/tcp") > 0);
    // A connection alone is enough where nothing is said.
    mesh.write(&(both + &check("tcp: {}")));
    eventually("both are asked", || who(&mesh, 20) == ["a", "b"]);
}

#[test]
fn checks_go_by_mutual_tls_where_requests_do() {
    let pair = Pair::new(80);
    let check = |expected: u16| {
        format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: HealthCheck, metadata: {{name: back, namespace: pair}}, spec: {{host: back, \
             interval: 100ms, healthyThreshold: 1, http: {{path: /healthz, expectedStatuses: [{expected}]}}}}}}"
        )
    };
    pair.write("check.yaml", &check(200));
    let runtime = runtime();
    let mesh = runtime.block_on(pair.start());
    let admin = mesh.workload("front-1").unwrap().admin();
    let stat = |name: &str| {
        let page = http::get(admin, &format!("/stats?filter={name}")).unwrap().1;
        let line = page.lines().find(|line| line.contains("outbound|8080||back."));
        line.and_then(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    eventually("the check succeeds", || stat("health_check.success") > 1);
    assert!(stat("ssl.handshake") > 0, "the peer takes nothing else");
    std::fs::write(mesh.config_dir().join("check.yaml"), check(418)).unwrap();
    eventually("the check fails", || stat("health_check.failure") > 3);
    let page = http::get(admin, "/clusters").unwrap().1;
    assert!(page.contains("failed_active_hc"), "{page}");
    runtime.block_on(mesh.shutdown()).unwrap();
}
