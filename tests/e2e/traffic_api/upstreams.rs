//! What a DestinationRule says of a service's endpoints and of the connections to them.

use super::*;
use crate::support::http;

/// A statistic of the mesh's proxy.
fn stat(mesh: &Mesh, name: &str) -> u64 {
    let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), &format!("/stats?filter={name}")).unwrap().1;
    let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
}

#[test]
fn an_upstream_hears_of_the_client_first() {
    let a = Service::start("a");
    let yaml = entry("a", &[(&a, "r/z")]) + &destination_rule("{proxyProtocol: {version: V1}}");
    let mesh = Mesh::start("127.49.9.1", "127.49.9.2", &yaml);
    assert_eq!(mesh.get("/", ""), (200, "a".to_owned()));
    let heads = a.heads();
    let first = heads.last().unwrap().lines().next().unwrap().to_owned();
    assert!(first.starts_with("PROXY TCP4 127.0.0.1 127.49.9.2 ") && first.ends_with(" 8080"), "{first:?}");
}

#[test]
fn a_new_endpoint_warms_up() {
    let (old, new) = (Service::start("old"), Service::start("new"));
    let rule =
        destination_rule("{loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 3s, minimumPercent: 10}}}");
    let started = Instant::now();
    let mesh = Mesh::start("127.49.10.1", "127.49.10.2", &(entry("a", &[(&old, "r/z")]) + &rule));
    let of_new = |count: usize| (0..count).filter(|_| mesh.get("/", "").1 == "new").count();
    assert_eq!(of_new(20), 0);
    // The endpoint that was there first is warm by then.
    eventually("its time is over", || started.elapsed() > Duration::from_secs(4));
    mesh.write(&(entry("a", &[(&old, "r/z"), (&new, "r/z")]) + &rule));
    eventually("the new endpoint gets a request", || of_new(1) == 1);
    let at_first = of_new(20);
    assert!(at_first <= 6, "{at_first} of 20");
    eventually("it gets its share", || of_new(20) == 10);
}

#[test]
fn a_routes_requests_are_counted_apart() {
    let a = Service::start("a");
    let rules = "
    - match: [{uri: {prefix: /first}, statPrefix: first}]
      route: [{destination: {host: a.com}}]
    - route: [{destination: {host: a.com}}]
";
    let mesh =
        Mesh::start("127.49.11.1", "127.49.11.2", &(entry("a", &[(&a, "r/z")]) + &virtual_service(rules)));
    for path in ["/first", "/first/2", "/other"] {
        assert_eq!(mesh.get(path, "").0, 200);
    }
    eventually("both are counted", || stat(&mesh, "vhost.a.com:8080.route.first.upstream_rq_total") == 2);
}

#[test]
fn an_endpoint_that_returns_is_on_probation() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    let rule = destination_rule(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 500ms, maxEjectionPercent: 100}}",
    );
    let rule =
        rule.replace("namespace: shop}", "namespace: shop, annotations: {weft.dev/return-window: 600s}}");
    let mesh = Mesh::start("127.49.12.1", "127.49.12.2", &(entry("a", &[(&a, "r/z"), (&b, "r/z")]) + &rule));
    let circuit = || {
        let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), "/clusters").unwrap().1;
        let place = format!("127.0.0.1:{}::circuit_breaker_status::", a.port);
        page.lines()
            .find_map(|l| Some(l.split_once(&place)?.1.to_owned()))
            .unwrap_or_else(|| panic!("{page}"))
    };
    assert_eq!(circuit(), "closed");
    a.status.store(500, Ordering::Relaxed);
    eventually("it is ejected", || {
        mesh.get("/", "");
        circuit() == "open"
    });
    a.status.store(200, Ordering::Relaxed);
    eventually("it is half open", || circuit() == "half-open");
    // The share of one on probation begins at a tenth.
    let answers = (0..60).filter(|_| mesh.get("/", "").1 == "a").count();
    assert!((1..20).contains(&answers), "{answers} of 60");
}
