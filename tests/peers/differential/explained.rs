//! What our proxy has kept of a case's requests, beside what both ends of the case saw: the decision that it explains is the one that
//! was observed.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pair::{Side, port};
use super::run::Observed;
use crate::programs::get;

/// How long the proxy may take to see that a stream has ended, which its client knows earlier.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answered by the library that speaks HTTP/2, before there is a request.
const BEFORE_A_REQUEST: [&str; 1] = ["h2_head_larger_than_the_limit"];

/// Compares what is kept of the case of this name since then. Nothing is said where the client got no answer.
pub(super) fn check(name: &str, since: SystemTime, seen: &Observed) -> Result<(), String> {
    if BEFORE_A_REQUEST.contains(&name) {
        return Ok(());
    }
    let answers = statuses(&seen.client);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let kept = kept(name, since);
        match same(name, &kept, &answers, &seen.upstream) {
            Err(why) if Instant::now() > deadline => {
                let kept: Vec<_> = kept.iter().map(Value::to_string).collect();
                return Err(format!("{why}\nthe proxy has kept:\n{}", kept.join("\n")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(()) => return Ok(()),
        }
    }
}

/// The statuses of whole answers that a client got.
fn statuses(client: &str) -> Vec<u64> {
    let of = |line: &str| {
        let rest = ["HTTP/1.1 ", "HTTP/1.0 ", "status "].iter().find_map(|start| line.strip_prefix(start))?;
        rest.get(..3)?.parse().ok().filter(|status| *status == 101 || *status >= 200)
    };
    client.lines().filter_map(of).collect()
}

/// What our proxy has kept of the case of this name since then, the oldest first.
pub(super) fn kept(name: &str, since: SystemTime) -> Vec<Value> {
    let path = format!("/weft/requests?listener={name}&limit=100000");
    let page = get(Side::Weft.admin(), &path).map(|(_, text)| text).unwrap_or_default();
    let page: Value = serde_json::from_str(&page).unwrap_or_default();
    let since = OffsetDateTime::from(since);
    let recent = |one: &Value| {
        let start = one["start"].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        start.is_some_and(|start| start >= since)
    };
    let all = page["requests"].as_array().cloned().unwrap_or_default();
    // The newest comes first.
    all.into_iter().rev().filter(recent).collect()
}

fn same(name: &str, kept: &[Value], answers: &[u64], upstream: &str) -> Result<(), String> {
    let mut explained: Vec<u64> = kept.iter().filter_map(|one| one["status"].as_u64()).collect();
    for status in answers {
        match explained.iter().position(|one| one == status) {
            Some(at) => _ = explained.swap_remove(at),
            None => return Err(format!("{name}: the client got {status}, which is not explained")),
        }
    }
    let from = std::net::SocketAddr::new(Side::Weft.upstream_address(), port(name)).to_string();
    for one in kept {
        let tries = one["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let answered = tries.iter().filter(|t| t["outcome"] == "answered");
        let at_upstream = answered.clone().filter(|t| t["host"] == from.as_str()).count();
        if at_upstream > 0 && upstream.is_empty() {
            return Err(format!("{name}: an upstream is explained to have answered that was not asked"));
        }
        if one["details"] == "via_upstream" && answered.count() == 0 {
            return Err(format!("{name}: the upstream's answer is explained without a try that brought it"));
        }
        if !tries.is_empty() && (one["cluster"].is_null() || one["route"].is_null()) {
            return Err(format!("{name}: a try is explained without its route and cluster"));
        }
    }
    Ok(())
}
