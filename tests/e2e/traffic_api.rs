//! Istio's traffic settings, from YAML through the control plane to what a proxy does with requests.

mod checks;
mod design;
mod idle;
mod losses;
mod returns;
mod topology;
mod trials;
mod upstreams;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::control::Control;
use crate::support::eventually;
use crate::support::http::exchange;
use crate::support::logged::Logged;
use crate::support::service::Service;

/// The service `HOST.com` at these places: port and locality.
fn entry(host: &str, places: &[(&Service, &str)]) -> String {
    let endpoints: String = places
        .iter()
        .map(|(service, locality)| {
            format!("    - {{address: 127.0.0.1, ports: {{http: {}}}, locality: {locality}}}\n", service.port)
        })
        .collect();
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {host}, namespace: shop}}
spec:
  hosts: [{host}.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
{endpoints}---
"
    )
}

fn virtual_service(rules: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: shop}}
spec:
  hosts: [a.com]
  http:
{rules}---
"
    )
}

fn destination_rule(policy: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: a, namespace: shop}}
spec:
  host: a.com
  trafficPolicy: {policy}
---
"
    )
}

/// A control plane with this configuration, and a sidecar that listens at port 8080 of `ip`, in region `r`, zone `z`.
struct Mesh {
    control: Control,
    shared: String,
    proxy: Logged,
    at: SocketAddr,
}

impl Mesh {
    fn start(control: &'static str, ip: &'static str, yaml: &str) -> Self {
        let shared = format!(
            "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  egress:
    - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {ip}, captureMode: NONE, hosts: ['*/*']}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: shop}}
spec: {{address: {ip}, locality: r/z}}
---
"
        );
        let control = Control::start(control, &(shared.clone() + yaml));
        let proxy = Logged::proxy(control.ip, ip, "shop", &["--interception-mode", "NONE"]);
        let mesh = Self { control, shared, proxy, at: format!("{ip}:8080").parse().unwrap() };
        eventually("the proxy serves", || mesh.try_get("/ready", "").is_ok_and(|a| a.0 == 200));
        mesh
    }

    /// Another configuration in the place of the first.
    fn write(&self, yaml: &str) {
        std::fs::write(self.control.config("mesh.yaml"), self.shared.clone() + yaml).unwrap();
    }

    fn try_get(&self, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
        let (head, body) = self.send("GET", path, headers)?;
        Ok((head[9..12].parse().map_err(std::io::Error::other)?, body))
    }

    fn send(&self, method: &str, path: &str, headers: &str) -> std::io::Result<(String, String)> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n{headers}\r\n");
        let (head, body) = exchange(self.at, &request)?;
        match head.len() {
            0..12 => Err(std::io::Error::other("no answer")),
            _ => Ok((head, body)),
        }
    }

    fn get(&self, path: &str, headers: &str) -> (u16, String) {
        self.try_get(path, headers).unwrap()
    }
}

#[test]
fn faults_delay_and_abort_what_they_match() {
    let a = Service::start("a");
    let rules = "
    - match: [{uri: {prefix: /slow}}]
      fault: {delay: {fixedDelay: 400ms, percentage: {value: 100}}}
      route: [{destination: {host: a.com}}]
    - match: [{uri: {prefix: /broken}, headers: {x-test: {exact: 'yes'}}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
      route: [{destination: {host: a.com}}]
    - route: [{destination: {host: a.com}}]
";
    let mesh =
        Mesh::start("127.49.1.1", "127.49.1.2", &(entry("a", &[(&a, "r/z")]) + &virtual_service(rules)));
    let before = Instant::now();
    assert_eq!(mesh.get("/slow", ""), (200, "a".to_owned()));
    assert!(before.elapsed() >= Duration::from_millis(400), "{:?}", before.elapsed());
    assert_eq!(mesh.get("/broken", "x-test: yes\r\n").0, 418);
    assert_eq!(mesh.get("/broken", ""), (200, "a".to_owned()));
    assert!(!a.heads().iter().any(|h| h.contains("x-test")), "an aborted request arrived");
}

#[test]
fn a_mirror_gets_a_copy_and_its_answer_counts_for_nothing() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    b.status.store(500, Ordering::Relaxed);
    let rules = "
    - match: [{uri: {prefix: /copied}}]
      mirrors: [{destination: {host: b.com}}]
      route: [{destination: {host: a.com}}]
    - route: [{destination: {host: a.com}}]
";
    let yaml = entry("a", &[(&a, "r/z")]) + &entry("b", &[(&b, "r/z")]) + &virtual_service(rules);
    let mesh = Mesh::start("127.49.2.1", "127.49.2.2", &yaml);
    assert_eq!(mesh.get("/only", ""), (200, "a".to_owned()));
    assert_eq!(mesh.get("/copied?x=1", "x-mine: 7\r\n"), (200, "a".to_owned()));
    eventually("the copy arrives", || !b.heads().is_empty());
    let copies = b.heads();
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert!(copies[0].starts_with("GET /copied?x=1 ") && copies[0].contains("x-mine: 7"), "{copies:?}");
    assert!(copies[0].contains("host: a.com-shadow"), "{copies:?}");
}

#[test]
fn a_preflight_request_is_answered_by_the_proxy() {
    let a = Service::start("a");
    let rules = "
    - corsPolicy: {allowOrigins: [{exact: 'https://shop.example'}], allowMethods: [PUT], allowHeaders: [x-token], maxAge: 1h}
      route: [{destination: {host: a.com}}]
";
    let mesh =
        Mesh::start("127.49.3.1", "127.49.3.2", &(entry("a", &[(&a, "r/z")]) + &virtual_service(rules)));
    let asked = "origin: https://shop.example\r\naccess-control-request-method: PUT\r\n";
    let (head, _) = mesh.send("OPTIONS", "/x", asked).unwrap();
    for line in [
        "HTTP/1.1 200",
        "access-control-allow-origin: https://shop.example",
        "access-control-allow-methods: PUT",
        "access-control-allow-headers: x-token",
        "access-control-max-age: 3600",
    ] {
        assert!(head.contains(line), "no {line:?} in {head}");
    }
    assert!(!a.heads().iter().any(|h| h.starts_with("OPTIONS")), "it went on to the service");
    // The answer to the request itself says who may read it; others go on without.
    let (head, body) =
        mesh.send("PUT", "/x", "origin: https://shop.example\r\ncontent-length: 0\r\n").unwrap();
    assert!(body == "a" && head.contains("access-control-allow-origin: https://shop.example"), "{head}");
    let (head, _) = mesh.send("GET", "/x", "origin: https://other.example\r\n").unwrap();
    assert!(!head.contains("access-control-"), "{head}");
}

#[test]
fn requests_that_are_alike_go_to_the_same_endpoint() {
    let services = ["one", "two", "three"].map(Service::start);
    let places: Vec<(&Service, &str)> = services.iter().map(|s| (s, "r/z")).collect();
    let rule = destination_rule("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}");
    let mesh = Mesh::start("127.49.4.1", "127.49.4.2", &(entry("a", &places) + &rule));
    let of = |user: u32| mesh.get("/", &format!("x-user: u{user}\r\n")).1;
    let homes: Vec<String> = (0..30).map(of).collect();
    for round in 0..3 {
        let again: Vec<String> = (0..30).map(of).collect();
        assert_eq!(again, homes, "round {round}");
    }
    let different: std::collections::BTreeSet<&String> = homes.iter().collect();
    assert_eq!(different.len(), 3, "{homes:?}");
}

#[test]
fn a_cookie_is_made_and_sticks() {
    let services = ["one", "two", "three"].map(Service::start);
    let places: Vec<(&Service, &str)> = services.iter().map(|s| (s, "r/z")).collect();
    let rule = destination_rule(
        "{loadBalancer: {consistentHash: {httpCookie: {name: home, path: /, ttl: 60s, attributes: [{name: SameSite, value: Lax}]}, maglev: {}}}}",
    );
    let mesh = Mesh::start("127.49.5.1", "127.49.5.2", &(entry("a", &places) + &rule));
    let (head, home) = mesh.send("GET", "/", "").unwrap();
    let cookie =
        head.lines().find_map(|l| l.strip_prefix("set-cookie: ")).unwrap_or_else(|| panic!("{head}"));
    assert!(cookie.contains("Max-Age=60") && cookie.contains("SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..20 {
        let (head, body) = mesh.send("GET", "/", &format!("cookie: {pair}\r\n")).unwrap();
        assert_eq!(body, home);
        assert!(!head.contains("set-cookie"), "{head}");
    }
}

#[test]
fn traffic_stays_near_until_what_is_near_fails() {
    let (near, far) = (Service::start("near"), Service::start("far"));
    let rule = destination_rule(
        "{outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}",
    );
    let mesh =
        Mesh::start("127.49.6.1", "127.49.6.2", &(entry("a", &[(&far, "q/z"), (&near, "r/z")]) + &rule));
    for _ in 0..20 {
        assert_eq!(mesh.get("/", "").1, "near");
    }
    near.status.store(500, Ordering::Relaxed);
    eventually("it moves", || mesh.get("/", "") == (200, "far".to_owned()));
    for _ in 0..20 {
        assert_eq!(mesh.get("/", ""), (200, "far".to_owned()));
    }
}

#[test]
fn localities_share_traffic_as_the_rule_says() {
    let services = ["near", "far", "never"].map(Service::start);
    let [near, far, never] = &services;
    let rule = destination_rule(
        "{loadBalancer: {localityLbSetting: {distribute: [{from: 'r/*', to: {r/z: 70, q/z: 30}}]}}}",
    );
    let mesh = Mesh::start(
        "127.49.7.1",
        "127.49.7.2",
        &(entry("a", &[(near, "r/z"), (far, "q/z"), (never, "p/z")]) + &rule),
    );
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..400 {
        *counts.entry(mesh.get("/", "").1).or_default() += 1;
    }
    assert!(!counts.contains_key("never"), "{counts:?}");
    // 30 % of 400, within five standard deviations.
    let share = f64::from(counts["far"]);
    assert!((share - 120.0).abs() < 5.0 * (400.0_f64 * 0.3 * 0.7).sqrt(), "{counts:?}");
}

#[test]
fn a_delegates_rules_route_under_the_roots() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    let rules = "
    - match: [{uri: {prefix: /team}, headers: {x-v: {exact: '1'}}}]
      delegate: {name: team}
    - route: [{destination: {host: a.com}}]
";
    let delegate = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team, namespace: shop}
spec:
  http:
    - match: [{uri: {prefix: /team/b}}]
      rewrite: {uri: /}
      route: [{destination: {host: b.com}}]
    - directResponse: {status: 201, body: {string: team}}
---
";
    let yaml = entry("a", &[(&a, "r/z")]) + &entry("b", &[(&b, "r/z")]) + &virtual_service(rules) + delegate;
    let mesh = Mesh::start("127.49.8.1", "127.49.8.2", &yaml);
    assert_eq!(mesh.get("/team/b", "x-v: 1\r\n"), (200, "b".to_owned()));
    assert!(b.heads()[0].starts_with("GET / "), "{:?}", b.heads());
    assert_eq!(mesh.get("/team", "x-v: 1\r\n"), (201, "team".to_owned()));
    assert_eq!(mesh.get("/team/b", ""), (200, "a".to_owned()));
}
