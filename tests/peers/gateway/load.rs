//! h2load and wrk through a gateway: as much as they ask for is answered, and nothing fails.

use std::process::Command;

use super::{Edge, GATEWAYS};
use crate::programs::peer;
use crate::programs::run;

#[test]
fn other_peoples_load_generators_see_no_failure() {
    let edge = Edge::start(1);
    let h2load = |more: &[&str]| {
        let mut h2load = Command::new(peer("WEFT_H2LOAD"));
        h2load.args(["--connect-to", &format!("{}:443", GATEWAYS[0]), "-t", "1"]).args(more);
        run(&mut edge.client.command(&h2load)).unwrap()
    };
    let all = "requests: 6000 total, 6000 started, 6000 done, 6000 succeeded, 0 failed, 0 errored, 0 timeout";
    for more in [
        // HTTP/2, many streams on few connections; HTTP/1.1; small windows; a body.
        &["-n", "6000", "-c", "10", "-m", "20", "https://simple.example/whoami"][..],
        &["-n", "6000", "-c", "20", "--h1", "https://simple.example/whoami"],
        &["-n", "6000", "-c", "4", "-m", "50", "-w", "14", "-W", "15", "https://simple.example/whoami"],
        &[
            "-n",
            "6000",
            "-c",
            "10",
            "-m",
            "5",
            "-H",
            "content-type: text/plain",
            "-d",
            "Cargo.toml",
            "https://simple.example/echo",
        ],
    ] {
        let report = h2load(more);
        assert!(report.contains(all), "{more:?}: {report}");
        assert!(report.contains("status codes: 6000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{more:?}: {report}");
    }
    let wrk = |more: &[&str]| {
        let mut wrk = Command::new(peer("WEFT_WRK"));
        wrk.args(["-t", "1", "-c", "30", "-d", "3s", "--latency"]).args(more);
        run(&mut edge.client.command(&wrk)).unwrap()
    };
    let plain = format!("http://{}/whoami", GATEWAYS[0]);
    let report = wrk(&["-H", "Host: plain.example", &plain]);
    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
    let done: u64 = report
        .lines()
        .find_map(|l| l.trim().strip_suffix("MB read").or_else(|| l.trim().strip_suffix("KB read")))
        .and_then(|l| l.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0);
    assert!(done > 100, "{report}");
}
