//! Descriptions of workloads with a real Envoy in the chain: in between two of ours, at its end, and at its beginning. It remembers
//! nothing and hands all fields on, so each request brings its description, and every one is counted for whom it is of.

use std::net::SocketAddr;
use std::path::Path;

use crate::chain::{Client, DESCRIPTION, Link, Relay, certificates, edge, edges, service};
use crate::programs::{Process, get, peer, until_or, weft_proxy};

fn start(link: &Link<'_>, envoy: bool, directory: &Path) -> Process {
    let file = directory.join(format!("{}.json", link.name));
    std::fs::write(&file, link.bootstrap(directory).to_string()).unwrap();
    let mut command = if envoy {
        let mut envoy = std::process::Command::new(peer("WEFT_ENVOY"));
        envoy.args(["--disable-hot-restart", "-l", "warning"]);
        envoy
    } else {
        weft_proxy()
    };
    command.arg("-c").arg(file).args(["--concurrency", "1"]);
    let mut process = Process::start(link.name, &mut command, directory);
    let admin = SocketAddr::new(link.ip.parse().unwrap(), 15000);
    process.wait("ready", || get(admin, "/ready").is_ok_and(|(status, _)| status == 200));
    process
}

fn counted(link: &Link<'_>, reporter: &str, requests: u64) -> Vec<(String, u64)> {
    let admin = SocketAddr::new(link.ip.parse().unwrap(), 15000);
    let mut found = Vec::new();
    until_or(
        "all requests are counted",
        || get(admin, "/stats/prometheus").unwrap().1,
        || {
            found = edges(&get(admin, "/stats/prometheus").unwrap().1, reporter);
            found.iter().map(|(_, count)| count).sum::<u64>() == requests
        },
    );
    found
}

#[test]
fn with_an_envoy_in_between_each_of_ours_is_described_with_every_request() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), &["front", "mid", "back"]);
    let service = [service().port()];
    let link = |name, ip, next| Link { name, ip, tls_in: true, tls_out: true, tells: None, next, h2: false };
    let back = Link { tls_out: false, tells: Some("INBOUND"), ..link("back", "127.30.77.3", &service) };
    let right = Relay::start(back.address());
    let to_back = [right.port];
    let mid = link("mid", "127.30.77.2", &to_back);
    let left = Relay::start(mid.address());
    let to_mid = [left.port];
    let front = Link { tls_in: false, tells: Some("OUTBOUND"), ..link("front", "127.30.77.1", &to_mid) };
    let _processes = [
        start(&back, false, directory.path()),
        start(&mid, true, directory.path()),
        start(&front, false, directory.path()),
    ];
    let mut client = Client::new(front.address());
    for _ in 0..5 {
        let before = right.bytes();
        let (bytes, _) = client.measured(&left, "/", "");
        let after = right.bytes();
        assert!(bytes.0 > DESCRIPTION && bytes.1 > DESCRIPTION, "{bytes:?}");
        assert!(after.0 - before.0 > DESCRIPTION && after.1 - before.1 > DESCRIPTION);
    }
    assert_eq!(counted(&front, "source", 5), [edge("front", "back", 200, 5)]);
    assert_eq!(counted(&back, "destination", 5), [edge("front", "back", 200, 5)]);

    // Envoy's own requests on the connection that those came by are not of who was described there.
    let mut own = Client::new(mid.plain());
    for _ in 0..3 {
        own.ask("/", "");
    }
    assert_eq!(
        counted(&back, "destination", 8),
        [edge("front", "back", 200, 5), edge("unknown", "back", 200, 3)]
    );
}

#[test]
fn an_envoy_at_either_end_is_told_or_tells_with_every_request_what_it_did_before() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), &["front", "far", "back", "other"]);
    let service = [service().port()];
    let link = |name, ip, next| Link { name, ip, tls_in: true, tls_out: true, tells: None, next, h2: false };
    // Ours calls an Envoy.
    let far = Link { tls_out: false, ..link("far", "127.30.78.2", &service) };
    let relay = Relay::start(far.address());
    let to_far = [relay.port];
    let front = Link { tls_in: false, tells: Some("OUTBOUND"), ..link("front", "127.30.78.1", &to_far) };
    // An Envoy calls ours.
    let back = Link { tls_out: false, tells: Some("INBOUND"), ..link("back", "127.30.78.4", &service) };
    let relayed = Relay::start(back.address());
    let to_relayed = [relayed.port];
    let other = Link { tls_in: false, ..link("other", "127.30.78.3", &to_relayed) };
    let _processes = [
        start(&far, true, directory.path()),
        start(&front, false, directory.path()),
        start(&back, false, directory.path()),
        start(&other, true, directory.path()),
    ];
    let (mut ours, mut theirs) = (Client::new(front.address()), Client::new(other.address()));
    for number in 0..4 {
        let before = relay.bytes();
        let (head, _) = ours.ask("/", "");
        assert!(head.starts_with("HTTP/1.1 200") && !head.contains("x-weft"), "{head}");
        assert!(relay.bytes().0 - before.0 > DESCRIPTION, "Envoy is told each time");
        let (bytes, _) = theirs.measured(&relayed, "/", "");
        // The first answer comes with the handshake.
        assert!(number == 0 || bytes.1 < DESCRIPTION, "who tells nothing is told nothing: {bytes:?}");
    }
    assert_eq!(counted(&front, "source", 4), [edge("front", "unknown", 200, 4)]);
    assert_eq!(counted(&back, "destination", 4), [edge("unknown", "back", 200, 4)]);
}
