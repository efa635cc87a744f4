//! Cases with `to`: whether a workload lets a request in.

use anyhow::bail;
use serde_json::{Value, json};
use weft_control::model::World;

use super::Case;
use crate::authz::{Judge, Question, Request, identities, identity};

/// What is found where a case asks for all that may come.
const WHO: [&str; 3] = ["identities", "anyIdentity", "plainText"];

/// What is found of a decision.
const DECIDED: [&str; 4] = ["decision", "reason", "policy", "rule"];

/// Whether the case wants to know who may come.
pub(super) fn is_asked(case: &Case) -> bool {
    is_about_all(case) || DECIDED.iter().any(|key| case.expect.contains_key(*key))
}

/// Whether it asks for all that may come.
pub(super) fn is_about_all(case: &Case) -> bool {
    WHO.iter().any(|key| case.expect.contains_key(*key))
}

/// Who can come to a port, by any request that its policies speak of.
fn who(world: &World, judge: &Judge, port: u16) -> anyhow::Result<Value> {
    let reach = judge.reach(port)?;
    let own = format!("spiffe://{}/ns/", world.mesh().trust_domain);
    let short = |id: &str| match id.strip_prefix(&own).and_then(|rest| rest.split_once("/sa/")) {
        Some((namespace, account)) => format!("{namespace}/{account}"),
        None => id.to_owned(),
    };
    let mut identities: Vec<_> =
        reach.identities.iter().filter(|one| !one.ways.is_empty()).map(|one| short(&one.identity)).collect();
    identities.sort();
    Ok(json!({
        "identities": identities,
        "anyIdentity": !reach.anybody.in_mesh.is_empty(),
        "plainText": !reach.anybody.unauthenticated.is_empty(),
    }))
}

/// What the workload's proxy decides, by which rule of which policy.
pub(super) fn decide(world: &World, judge: &Judge, case: &Case) -> anyhow::Result<Value> {
    let port = judge.port(case.port)?;
    if is_about_all(case) {
        if case.request.is_some() || case.identity.is_some() {
            bail!("{} are about all callers and requests: leave out identity and request", WHO.join(", "));
        }
        return who(world, judge, port);
    }
    let request = match case.request()? {
        None if case.headers.is_empty() => None,
        None => bail!("headers are parts of a request: say which, such as request: GET /path"),
        Some((method, path)) => {
            if !path.starts_with('/') {
                bail!("request: {path:?} is no path; with to it is METHOD /path");
            }
            let given = case.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
            let host = given.map_or_else(|| judge.host(port), |(_, host)| host.clone());
            let headers = case.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host"));
            Some(Request {
                method: method.to_owned(),
                path: path.to_owned(),
                host,
                headers: headers.map(|(name, value)| (name.clone(), value.clone())).collect(),
                token: None,
            })
        }
    };
    let identity = case.identity.as_deref().map(|text| identity(world, text, false)).transpose()?;
    let known = identities(world);
    let from = identity.as_ref().and_then(|id| known.get(id)?.first()?.parse().ok());
    let answer = judge.answer(port, &Question { identity, from, server_name: case.sni.clone(), request })?;
    let by = answer.by.as_ref();
    Ok(json!({
        "decision": answer.decision,
        "reason": answer.reason,
        "policy": by.map(|rule| format!("{}/{}", rule.namespace, rule.name)),
        "rule": by.and_then(|rule| rule.rule),
        "status": answer.status,
    }))
}
