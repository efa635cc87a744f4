//! Who gets to the canary: counted by what the instances themselves answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::apps;
use super::observe::http::Request;
use super::observe::load::{Load, Plan, Tally};
use super::report::Check;
use super::scene::Scene;

/// Requests of each kind within the mesh, and at the gateway, where each goes down the whole chain of calls.
const INSIDE: u64 = 200;
const AT_THE_GATEWAY: u64 = 50;

/// With the header, without it, and with it saying something else.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let inside = (scene.out_of("observer")?, Request::get("user-service:8080", apps::QUIET), INSIDE);
    let gateway = (scene.gateway()?, Request::get("api.ecotrack.platform.dev", "/api/users"), AT_THE_GATEWAY);
    let mut checks = Vec::new();
    for (name, (to, request, requests), header, version) in [
        ("canary: header canary: true", &inside, Some("true"), "canary"),
        ("canary: no header", &inside, None, "stable"),
        ("canary: header canary: false", &inside, Some("false"), "stable"),
        ("canary: at the gateway, header canary: true", &gateway, Some("true"), "canary"),
        ("canary: at the gateway, no header", &gateway, None, "stable"),
    ] {
        let request = match header {
            Some(value) => request.clone().with("canary", value),
            None => request.clone(),
        };
        let plan = Plan { to: *to, request, connections: 2, requests: Some(*requests), rate: None };
        let tally: Tally = Load::start(plan, Arc::new(apps::version)).finish().await;
        let expected: BTreeMap<_, _> = [(version.to_owned(), *requests)].into();
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
