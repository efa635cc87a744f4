//! What the example mesh's own service (`weft app`) says and takes: its answers, its record of what it received, and the
//! controls by which it becomes slow or fails. The observer talks to it directly, past its sidecar.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;

use super::observe::http::{Answer, Request, fetch};
use crate::up::Workload;

/// A path whose answer says who answers, without calls to anybody else.
pub const QUIET: &str = "/whoami";
/// A path whose answer goes on for longer than any check.
pub const STREAM: &str = "/stream?chunks=100000&interval=50ms&size=32";

/// A request for such an answer, by the route configuration that edits change. (The design lets no request to user-service
/// take longer than 30 s.)
pub fn long() -> Request {
    Request::get("balance:8080", STREAM)
}

fn said(answer: &Answer, key: &str) -> String {
    answer.json()[key].as_str().unwrap_or("somebody else").to_owned()
}

/// The service that answered.
pub fn service(answer: &Answer) -> String {
    said(answer, "service")
}

/// The workload that answered.
pub fn instance(answer: &Answer) -> String {
    said(answer, "workload")
}

/// The version that answered.
pub fn version(answer: &Answer) -> String {
    said(answer, "version")
}

/// A request as an application received it.
#[derive(Clone, Debug)]
pub struct Record {
    /// When, since 1970.
    pub at: Duration,
    /// Path and query.
    pub path: String,
    /// Which attempt it was (`x-envoy-attempt-count`); 1 if nobody said.
    pub attempt: u32,
    /// The caller's SPIFFE id, as the sidecar verified it.
    pub caller: String,
    /// The fingerprint of the caller's certificate.
    pub caller_hash: String,
}

#[derive(Deserialize)]
struct Recorded {
    requests: Vec<Received>,
}

#[derive(Deserialize)]
struct Received {
    at: u64,
    path: String,
    headers: Vec<(String, String)>,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    fn record(self) -> Record {
        // Each proxy on the way has added an element; the last is the application's own sidecar's.
        let xfcc = self.header("x-forwarded-client-cert").rsplit(',').next().unwrap_or_default();
        let part = |key: &str| {
            let mut pairs = xfcc.split(';').filter_map(|p| p.trim().split_once('='));
            pairs.find(|(k, _)| k.eq_ignore_ascii_case(key)).map_or("", |(_, v)| v).to_owned()
        };
        Record {
            at: Duration::from_millis(self.at),
            attempt: self.header("x-envoy-attempt-count").parse().unwrap_or(1),
            caller: part("URI"),
            caller_hash: part("Hash"),
            path: self.path,
        }
    }
}

async fn told(workload: &Workload, request: Request) -> anyhow::Result<Answer> {
    let at = workload.application.with_context(|| format!("{} has no application", workload.id))?;
    let answer =
        fetch(at, &request).await.map_err(|e| anyhow::anyhow!("the application of {}: {e}", workload.id))?;
    if answer.status() >= 300 {
        bail!("the application of {} answers {}", workload.id, answer.status());
    }
    Ok(answer)
}

/// What an instance has received, oldest first; the last `n` of it.
pub async fn records(workload: &Workload, n: usize) -> anyhow::Result<Vec<Record>> {
    let answer = told(workload, Request::get("observer", format!("/__recorded?last={n}"))).await?;
    let recorded: Recorded = serde_json::from_slice(&answer.body).context("the application's record")?;
    Ok(recorded.requests.into_iter().map(Received::record).collect())
}

/// Lets an instance forget what it has received.
pub async fn forget(workload: &Workload) -> anyhow::Result<()> {
    told(workload, Request { method: "DELETE", ..Request::get("observer", "/__recorded") }).await?;
    Ok(())
}

/// How an instance answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// After how long.
    pub delay: Duration,
    /// With which status, if it fails.
    pub status: Option<u16>,
}

/// Makes an instance behave.
pub async fn behave(workload: &Workload, behaviour: &Behaviour) -> anyhow::Result<()> {
    let mut body = json!({"delayMs": behaviour.delay.as_millis() as u64});
    if let Some(status) = behaviour.status {
        body["failStatus"] = status.into();
    }
    let request = Request { method: "PUT", ..Request::get("observer", "/__behaviour") };
    told(workload, request.body(body.to_string())).await?;
    Ok(())
}
