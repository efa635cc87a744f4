//! What a service's callers notice of its losses: half of its endpoints, a zone, one that returns, and failures everywhere.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::support::edge::edge;
use crate::support::{Running, free_address, http};

/// The service `a.com` at these ports of 127.0.0.1, with localities.
fn at_ports(places: &[(u16, &str)]) -> String {
    let endpoints: String = places
        .iter()
        .map(|(port, locality)| {
            format!("    - {{address: 127.0.0.1, ports: {{http: {port}}}, locality: {locality}}}\n")
        })
        .collect();
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: a, namespace: shop}}
spec:
  hosts: [a.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
{endpoints}---
"
    )
}

/// Rules by which `/ready` is answered whatever becomes of the service.
fn with_ready(route: &str) -> String {
    virtual_service(&format!(
        "    - match: [{{uri: {{exact: /ready}}}}]\n      directResponse: {{status: 200}}\n{route}"
    ))
}

#[test]
fn a_gateway_that_loses_half_of_its_endpoints_loses_no_request() {
    let places: Vec<SocketAddr> = (0..4).map(|_| free_address()).collect();
    let start = |number: usize| {
        let (listen, name) = (places[number].to_string(), format!("app-{number}"));
        Running::weft(&["app", "--listen", &listen, "--workload", &name])
    };
    let mut apps: Vec<Option<Running>> = (0..4).map(|number| Some(start(number))).collect();
    let server = "{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['a.com']}";
    let rules = "http: [{retries: {attempts: 3, retryOn: 'reset,connect-failure'}, route: [{destination: {host: a.com, port: {number: 8080}}}]}]";
    let ports: Vec<_> = places.iter().map(|at| (at.port(), "r/z")).collect();
    let outlier = destination_rule(
        "{outlierDetection: {consecutive5xxErrors: 2, interval: 100ms, baseEjectionTime: 300ms, maxEjectionPercent: 50}}",
    );
    let control = Control::start(
        "127.49.40.1",
        &(edge("shop", "ingressgateway", server, "a.com", rules) + &at_ports(&ports) + &outlier),
    );
    let _gateway = Logged::proxy(
        control.ip,
        "127.49.40.2",
        "shop",
        &["--role", "gateway", "--label", "istio=ingressgateway"],
    );
    let at: SocketAddr = "127.49.40.2:8080".parse().unwrap();
    let ask = || {
        let (head, body) = exchange(at, "GET / HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n\r\n")?;
        Ok::<_, std::io::Error>((head.get(9..12).unwrap_or_default().to_owned(), body))
    };
    let who = || {
        let names = (0..40)
            .filter_map(|_| ask().ok())
            .filter_map(|(_, body)| (0..4).find(|number| body.contains(&format!("app-{number}"))));
        names.collect::<BTreeSet<_>>()
    };
    eventually("all four answer", || who().len() == 4);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        seen.push(ask());
                    }
                    seen
                })
            })
            .collect();
        eventually("they are busy", || who().len() == 4);
        // Killed in the middle of what they do.
        apps[0] = None;
        apps[1] = None;
        eventually("the others serve", || who() == BTreeSet::from([2, 3]));
        apps[0] = Some(start(0));
        apps[1] = Some(start(1));
        eventually("they are back", || who().len() == 4);
        over.store(true, Ordering::Relaxed);
        let mut count = 0;
        for client in clients {
            for answer in client.join().unwrap() {
                assert!(answer.as_ref().is_ok_and(|(status, _)| status == "200"), "{answer:?}");
                count += 1;
            }
        }
        assert!(count > 20, "{count} requests");
    });
}

#[test]
fn where_all_of_a_zone_is_down_a_retry_stays_there_or_goes_on_as_the_rule_says() {
    let (near, far) = (Service::start("near"), Service::start("far"));
    let closed = || free_address().port();
    let (first, second) = (closed(), closed());
    let outlier = destination_rule("{outlierDetection: {consecutive5xxErrors: 1000000, interval: 60s}}");
    let retries = |remote: bool| {
        with_ready(&format!(
            "    - retries: {{attempts: 4, retryOn: connect-failure, retryRemoteLocalities: {remote}}}\n      route: [{{destination: {{host: a.com}}}}]\n"
        ))
    };
    // One of two near ones is down: a retry finds the other one, and none goes far.
    let half = at_ports(&[(first, "r/z"), (near.port, "r/z"), (far.port, "q/z")]);
    let none = at_ports(&[(first, "r/z"), (second, "r/z"), (far.port, "q/z")]);
    let mesh = Mesh::start("127.49.41.1", "127.49.41.2", &(half + &outlier + &retries(false)));
    for _ in 0..20 {
        assert_eq!(mesh.get("/", ""), (200, "near".to_owned()));
    }
    mesh.write(&(none.clone() + &outlier + &retries(false)));
    eventually("nobody is near", || mesh.get("/", "").0 == 503);
    for _ in 0..10 {
        assert_eq!(mesh.get("/", "").0, 503);
    }
    assert_eq!(far.heads().len(), 0, "a retry left its zone");
    mesh.write(&(none + &outlier + &retries(true)));
    eventually("retries go on", || mesh.get("/", "") == (200, "far".to_owned()));
    for _ in 0..10 {
        assert_eq!(mesh.get("/", ""), (200, "far".to_owned()));
    }
}

#[test]
fn one_that_returned_gets_ever_more_until_it_has_its_share() {
    let (a, b) = (Service::start("a"), Service::start("b"));
    let rule = destination_rule(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 500ms, maxEjectionPercent: 100}}",
    )
    .replace("namespace: shop}", "namespace: shop, annotations: {weft.dev/return-window: 6s}}");
    let mesh = Mesh::start("127.49.42.1", "127.49.42.2", &(entry("a", &[(&a, "r/z"), (&b, "r/z")]) + &rule));
    let of_a = |count: usize| (0..count).filter(|_| mesh.get("/", "") == (200, "a".to_owned())).count();
    let circuit = || {
        let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), "/clusters").unwrap().1;
        let place = format!("127.0.0.1:{}::circuit_breaker_status::", a.port);
        page.lines().find_map(|l| Some(l.split_once(&place)?.1.to_owned())).unwrap_or_default()
    };
    a.status.store(500, Ordering::Relaxed);
    eventually("it is ejected", || {
        mesh.get("/", "");
        circuit() == "open"
    });
    a.status.store(200, Ordering::Relaxed);
    eventually("it is half open", || circuit() == "half-open");
    let began = Instant::now();
    let at_first = of_a(20);
    // Its share grows to half of them within the six seconds; a slow machine is further on.
    let most = 6 + (10.0 * began.elapsed().as_secs_f64() / 6.0) as usize;
    assert!(at_first <= most.min(9), "{at_first} of 20, in {:?}", began.elapsed());
    // More than at first, and not yet its half; then that.
    eventually("it gets more", || (at_first + 1..10).contains(&of_a(20)) || circuit() == "closed");
    eventually("it has its share", || of_a(20) == 10);
    eventually("the circuit is closed", || circuit() == "closed");
}

#[test]
fn when_everything_fails_retries_stay_within_their_budget() {
    let a = Service::start("a");
    let rules = "    - retries: {attempts: 3, retryOn: 5xx}\n      route: [{destination: {host: a.com}}]\n";
    let budget = destination_rule("{retryBudget: {percent: {value: 20}, minRetryConcurrency: 1}}");
    let mesh = Mesh::start(
        "127.49.43.1",
        "127.49.43.2",
        &(entry("a", &[(&a, "r/z")]) + &with_ready(rules) + &budget),
    );
    a.status.store(500, Ordering::Relaxed);
    let before = a.heads().len();
    let (clients, each) = (16, 25);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                for _ in 0..each {
                    assert_eq!(mesh.get("/", "").0, 500);
                }
            });
        }
    });
    // Four times as many without a budget.
    let (asked, tried) = (clients * each, a.heads().len() - before);
    assert!(tried < 2 * asked, "{asked} requests became {tried}");
    let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), "/stats?filter=upstream_rq_retry_overflow")
        .unwrap()
        .1;
    let refused: u64 = page.lines().filter_map(|l| l.rsplit_once(": ")?.1.parse::<u64>().ok()).sum();
    assert!(refused > 0, "{page}");
    // A failure that is alone is tried again as ever.
    let before = a.heads().len();
    assert_eq!(mesh.get("/", "").0, 500);
    assert_eq!(a.heads().len() - before, 4);
}
