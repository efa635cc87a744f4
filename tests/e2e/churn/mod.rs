//! A hundred changes of configuration each second, of every kind, while requests go through: no request fails, no connection
//! ends that a change did not concern, and the memory does not grow.
//!
//! `WEFT_CHURN_SECONDS` says how long (10).

mod changes;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::mesh::{alone, runtime};
use changes::Changes;
use traffic::{Backend, Counts};

const STREAMS: usize = 1000;
const PER_SECOND: u32 = 100;

#[test]
fn changes_cost_no_request_and_no_connection_by_deltas() {
    churn("127.44.1.1", "delta");
}

#[test]
fn changes_cost_no_request_and_no_connection_by_whole_states() {
    churn("127.44.1.2", "sotw");
}

fn churn(ip: &'static str, mode: &str) {
    let _alone = alone();
    let seconds = std::env::var("WEFT_CHURN_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let runtime = runtime();
    let backends: Vec<Backend> = (0..3).map(|_| runtime.block_on(Backend::start())).collect();
    let server = Management::start();
    let mut changes = Changes::new(ip, backends.iter().map(|b| b.address).collect());
    server.push(&changes.all());
    let proxy = Logged::weft(&[
        "proxy",
        "--xds-address",
        &server.address.to_string(),
        "--xds-plaintext",
        "--xds-mode",
        mode,
        "--concurrency",
        "2",
        "--ip",
        ip,
        "--admin-address",
        &format!("{ip}:15000"),
    ]);
    let main = format!("{ip}:8080").parse().unwrap();
    eventually("the proxy serves", || crate::support::http::get(main, "/").is_ok_and(|a| a.0 == 200));

    let counts = Arc::new(Counts::default());
    runtime.block_on(traffic::streams(main, STREAMS, &counts));
    let roots = changes.roots();
    for _ in 0..4 {
        runtime.spawn(traffic::kept(main, counts.clone()));
    }
    runtime.spawn(traffic::fresh(main, counts.clone()));
    runtime.spawn(traffic::tls(format!("{ip}:8443").parse().unwrap(), roots, counts.clone()));
    eventually("traffic flows", || counts.answered.load(Ordering::Relaxed) > 100);

    let began = Instant::now();
    let (mut made, mut early) = (0, 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        changes.one(&server);
        made += 1;
        let due = began + Duration::from_secs(1) * made / PER_SECOND;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if early == 0 && began.elapsed() > Duration::from_secs(seconds) / 3 {
            early = proxy.resident();
        }
        counts.none_lost();
    }
    let late = proxy.resident();
    // It follows to the end.
    let answered = counts.answered.load(Ordering::Relaxed);
    let last = server.push(&changes.marker());
    eventually("the last change serves", || {
        crate::support::http::get(main, "/marker").is_ok_and(|a| a.1 == "here")
    });
    assert_eq!(server.refusals(), [] as [String; 0], "of {last} versions");
    assert_eq!(server.connections(), 1, "streams of configuration");
    // The streams are not only open: something still comes through each of them.
    counts.seen.lock().unwrap().clear();
    eventually("every stream goes on", || counts.seen.lock().unwrap().len() == STREAMS);
    counts.none_lost();
    let rate = f64::from(made) / began.elapsed().as_secs_f64();
    eprintln!("{mode}: {made} changes ({rate:.0} a second), {answered} answers, {early} -> {late} KiB");
    assert!(rate > f64::from(PER_SECOND) / 2.0, "only {rate:.0} changes a second");
    assert!(answered > 50 * seconds, "only {answered} answers");
    assert!(late < early + early / 4 + 8 * 1024, "memory grew from {early} to {late} KiB");
}
