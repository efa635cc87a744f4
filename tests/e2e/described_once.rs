//! Two proxies of ours describe their workloads to each other once per connection of HTTP/1.1 over mutual TLS, and all the same
//! know each other with every request.

use serde_json::Value;

use crate::chain::{Client, DESCRIPTION, Link, Relay, certificates, edge, edges, service};
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;

struct Chain {
    directory: tempfile::TempDir,
    _proxies: Vec<Logged>,
}

/// Runs these links.
fn run(links: &[&Link<'_>]) -> Chain {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name).collect();
    certificates(directory.path(), &names);
    let start = |link: &&Link<'_>| {
        let file = directory.path().join(format!("{}.json", link.name));
        std::fs::write(&file, link.bootstrap(directory.path()).to_string()).unwrap();
        Logged::weft(&["proxy", "-c", file.to_str().unwrap(), "--concurrency", "1", "--drain-time", "1s"])
    };
    let proxies = links.iter().map(start).collect();
    for link in links {
        let admin = format!("{}:15000", link.ip).parse().unwrap();
        eventually("ready", || get(admin, "/ready").is_ok_and(|answer| answer.0 == 200));
    }
    Chain { directory, _proxies: proxies }
}

/// What a link has counted, once that is so many requests.
fn counted(link: &Link<'_>, reporter: &str, requests: u64) -> Vec<(String, u64)> {
    let admin = format!("{}:15000", link.ip).parse().unwrap();
    let mut found = Vec::new();
    eventually("all are counted", || {
        found = edges(&get(admin, "/stats/prometheus").unwrap().1, reporter);
        found.iter().map(|(_, count)| count).sum::<u64>() == requests
    });
    found
}

fn front<'a>(ip: &'a str, next: &'a [u16]) -> Link<'a> {
    Link { name: "front", ip, tls_in: false, tls_out: true, tells: Some("OUTBOUND"), next, h2: false }
}

fn back<'a>(ip: &'a str, next: &'a [u16]) -> Link<'a> {
    Link { name: "back", ip, tls_in: true, tls_out: false, tells: Some("INBOUND"), next, h2: false }
}

#[test]
fn requests_after_the_first_of_a_connection_bring_no_description_and_are_labelled_as_the_first() {
    let service = [service().port()];
    let back = back("127.0.76.2", &service);
    let relay = Relay::start(back.address());
    let ports = [relay.port];
    let front = front("127.0.76.1", &ports);
    let chain = run(&[&back, &front]);
    let mut client = Client::new(front.address());
    for connection in 1..=3u64 {
        let (first, _) = client.measured(&relay, "/", "");
        assert_eq!(relay.opened(), connection);
        assert!(first.0 > DESCRIPTION && first.1 > DESCRIPTION, "both describe themselves: {first:?}");
        for _ in 0..5 {
            let (later, seen) = client.measured(&relay, "/", "");
            assert!(later.0 < DESCRIPTION && later.1 < DESCRIPTION, "neither does again: {later:?}, {seen}");
        }
        // What an application says of itself is not believed, and goes no further.
        let (later, _) =
            client.measured(&relay, "/", "x-envoy-peer-metadata: Zg==\r\nx-envoy-peer-metadata-id: a\r\n");
        assert!(later.0 < DESCRIPTION, "{later:?}");
        relay.cut();
    }
    assert_eq!(counted(&front, "source", 21), [edge("front", "back", 200, 21)]);
    assert_eq!(counted(&back, "destination", 21), [edge("front", "back", 200, 21)]);
    // The log speaks of each as if it had brought the description, without what only the two ends of a connection know.
    let lines = || std::fs::read_to_string(chain.directory.path().join("front.log")).unwrap();
    eventually("all are logged", || lines().lines().count() == 21);
    let lines = lines();
    let first = lines.lines().next().unwrap();
    assert!(first.starts_with("sidecar~127.0.76.1~front.chain~chain.svc.cluster.local C"), "{first}");
    assert!(lines.lines().all(|line| line == first), "{lines}");
}

#[test]
fn a_retry_on_another_connection_describes_us_there() {
    let service = [service().port()];
    let back = back("127.0.76.4", &service);
    let relays = [Relay::start(back.address()), Relay::start(back.address())];
    let ports = [relays[0].port, relays[1].port];
    let front = front("127.0.76.3", &ports);
    let _chain = run(&[&back, &front]);
    let mut client = Client::new(front.address());
    let mut fails = |brings_descriptions: bool| {
        let before = relays.each_ref().map(Relay::bytes);
        let (head, _) = client.ask("/fail", "");
        assert!(head.starts_with("HTTP/1.1 503") && !head.contains("metadata"), "{head}");
        for (relay, before) in relays.iter().zip(before) {
            let up = relay.bytes().0 - before.0;
            assert!(up > 0 && (up > DESCRIPTION) == brings_descriptions, "{up} bytes");
        }
    };
    // Of two tries the first brings an answer that nobody keeps.
    fails(true);
    let mut other = Client::new(front.address());
    for _ in 0..4 {
        other.ask("/", "");
    }
    fails(false);
    assert_eq!(relays.each_ref().map(Relay::opened), [1, 1]);
    let both = [edge("front", "back", 200, 4), edge("front", "back", 503, 2)];
    assert_eq!(counted(&front, "source", 6), both);
    let both = [edge("front", "back", 200, 4), edge("front", "back", 503, 4)];
    assert_eq!(counted(&back, "destination", 8), both);
    // The record of requests knows who they were, too.
    for (link, side, name, kept) in [(&back, "caller", "front", 4), (&front, "callee", "back", 2)] {
        let admin = format!("{}:15000", link.ip).parse().unwrap();
        let (_, page) = get(admin, "/weft/requests?class=failed").unwrap();
        let page: Value = serde_json::from_str(&page).unwrap();
        let requests = page["requests"].as_array().unwrap();
        assert_eq!(requests.len(), kept);
        requests.iter().for_each(|one| assert_eq!(one[side]["name"], name, "{one}"));
    }
}

#[test]
fn with_somebody_in_between_or_without_tls_each_request_brings_its_description() {
    // In between is one that hands all fields on, with identities of its own on both sides.
    let service = [service().port()];
    let back = back("127.0.76.7", &service);
    let right = Relay::start(back.address());
    let to_back = [right.port];
    let mid = Link {
        name: "mid",
        ip: "127.0.76.6",
        tls_in: true,
        tls_out: true,
        tells: None,
        next: &to_back,
        h2: false,
    };
    let left = Relay::start(mid.address());
    let to_mid = [left.port];
    let front = front("127.0.76.5", &to_mid);
    let plain_back = Link { name: "plain-back", ip: "127.0.76.9", tls_in: false, ..back };
    let plain = Relay::start(plain_back.address());
    let to_plain = [plain.port];
    let plain_front =
        Link { name: "plain-front", ip: "127.0.76.8", tls_out: false, next: &to_plain, ..front };
    let _chain = run(&[&back, &mid, &front, &plain_back, &plain_front]);
    let (mut over, mut without) = (Client::new(front.address()), Client::new(plain_front.address()));
    for _ in 0..4 {
        let before = right.bytes();
        let (bytes, _) = over.measured(&left, "/", "");
        let after = right.bytes();
        assert!(bytes.0 > DESCRIPTION && bytes.1 > DESCRIPTION, "{bytes:?}");
        assert!(after.0 - before.0 > DESCRIPTION && after.1 - before.1 > DESCRIPTION);
        let (bytes, _) = without.measured(&plain, "/", "");
        assert!(bytes.0 > DESCRIPTION && bytes.1 > DESCRIPTION, "{bytes:?}");
    }
    // Somebody else's request on the connection that a description came by is nobody's.
    let mut other = Client::new(front.address());
    other.ask("/", "");
    for (one, another) in [("front", "back"), ("plain-front", "plain-back")] {
        let requests = if one == "front" { 5 } else { 4 };
        let (a, b) = if one == "front" { (&front, &back) } else { (&plain_front, &plain_back) };
        assert_eq!(counted(a, "source", requests), [edge(one, another, 200, requests)]);
        assert_eq!(counted(b, "destination", requests), [edge(one, another, 200, requests)]);
    }
}

#[test]
fn over_http_2_a_description_that_came_before_is_told_by_its_place_in_the_table() {
    let service = [service().port()];
    let back = back("127.0.76.11", &service);
    let relay = Relay::start(back.address());
    let ports = [relay.port];
    let front = Link { h2: true, ..front("127.0.76.10", &ports) };
    let _chain = run(&[&back, &front]);
    let mut client = Client::new(front.address());
    let (first, _) = client.measured(&relay, "/", "");
    assert!(first.0 > DESCRIPTION && first.1 > DESCRIPTION, "{first:?}");
    let (later, _) = client.measured(&relay, "/", "");
    assert!(later.0 < DESCRIPTION && later.1 < DESCRIPTION, "{later:?}");
    assert_eq!(counted(&front, "source", 2), [edge("front", "back", 200, 2)]);
    assert_eq!(counted(&back, "destination", 2), [edge("front", "back", 200, 2)]);
}
