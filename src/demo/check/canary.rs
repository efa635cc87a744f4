//! Who gets to the canary: counted by what the instances themselves answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::apps;
use super::observe::http::Request;
use super::observe::load::{Load, Plan, Tally};
use super::report::Check;
use super::scene::Scene;

/// Requests of each kind.
const REQUESTS: u64 = 200;

/// With the header, without it, and with it saying something else.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (header, version) in [(Some("true"), "canary"), (None, "stable"), (Some("false"), "stable")] {
        let tally = counted(scene, header).await?;
        let name = match header {
            Some(value) => format!("canary: header canary: {value}"),
            None => "canary: no header".to_owned(),
        };
        let expected: BTreeMap<_, _> = [(version.to_owned(), REQUESTS)].into();
        checks.push(Check::equal(name, words(&expected, 0), words(&tally.by_key, tally.failed())));
    }
    Ok(checks)
}

fn words(by_version: &BTreeMap<String, u64>, failed: u64) -> String {
    let mut parts: Vec<_> = by_version.iter().map(|(version, n)| format!("{n} at {version}")).collect();
    if failed > 0 {
        parts.push(format!("{failed} failed"));
    }
    parts.join(", ")
}

async fn counted(scene: &Scene, header: Option<&str>) -> anyhow::Result<Tally> {
    let mut request = Request::get("user-service:8080", apps::QUIET);
    if let Some(value) = header {
        request = request.with("canary", value);
    }
    let plan =
        Plan { to: scene.out_of("observer")?, request, connections: 2, requests: Some(REQUESTS), rate: None };
    Ok(Load::start(plan, Arc::new(apps::version)).finish().await)
}
