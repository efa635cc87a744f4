//! What our proxy has kept of a case's requests, beside its access log, which is Envoy's: the decision that it explains is the one that
//! was made.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pair::{Pair, Side};
use super::spec::Case;
use crate::programs::get;

/// How long both may take to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// Compares what is kept of a case since then with its lines in the access log.
pub(super) fn check(case: &Case, pair: &Pair, since: SystemTime) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let logged = logged(case, pair);
        let explained = explained(case, pair, since);
        let mut left = explained.clone();
        let unknown = logged.iter().find(|line| match left.iter().position(|one| one == *line) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        });
        match unknown {
            None => return Ok(()),
            Some(line) if Instant::now() > deadline => {
                let all = explained.join("\n  ");
                return Err(format!(
                    "it is not explained as it was logged:\n  {line}\nexplained are:\n  {all}"
                ));
            }
            Some(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Status, flags, details, route, cluster, host and number of tries of each request in the log, or of each connection of bytes.
fn logged(case: &Case, pair: &Pair) -> Vec<String> {
    let text = std::fs::read(pair.access_log(Side::Weft)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mark = format!("{:?}", case.name);
    let of_case = text.lines().filter(|line| line.contains(&mark));
    let lines = of_case.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // A connection that carried no request has no method; one of bytes never has.
    let bytes = case.tcp.is_some();
    let requests = lines.filter(|line| {
        let request = line["request"].as_str();
        line["case"] == case.name.as_str() && request.is_some_and(|r| r.starts_with('-') == bytes)
    });
    let fields = ["status", "flags", "details", "route", "cluster", "host", "attempts"];
    requests.map(|line| fields.map(|field| word(&line[field])).join(" ")).collect()
}

/// The same of what is kept.
fn explained(case: &Case, pair: &Pair, since: SystemTime) -> Vec<String> {
    let path = format!("/weft/requests?listener={}&limit=100000", case.name);
    let page = get(pair.admin(Side::Weft), &path).map(|(_, text)| text).unwrap_or_default();
    let page: Value = serde_json::from_str(&page).unwrap_or_default();
    let since = OffsetDateTime::from(since);
    let recent = |one: &&Value| {
        let start = one["start"].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        start.is_some_and(|start| start >= since)
    };
    let line = |one: &Value| {
        let tries = one["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let host = tries.iter().rev().find_map(|one| one["host"].as_str()).unwrap_or("-").to_owned();
        let mut fields = ["status", "flags", "details"].map(|field| word(&one[field])).to_vec();
        let mut count = tries.len();
        if one["kind"] == "connection" {
            "0".clone_into(&mut fields[0]);
            // As logs count them: with a host.
            count = tries.iter().filter(|one| one["host"].is_string()).count();
        }
        fields.extend([word(&one["route"]["name"]), word(&one["cluster"]), host, count.to_string()]);
        fields.join(" ")
    };
    page["requests"].as_array().into_iter().flatten().filter(recent).map(line).collect()
}
