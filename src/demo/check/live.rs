//! A VirtualService is edited under traffic: the split follows at once and exactly, nobody notices, and an edit that is wrong
//! is refused by file, line and field while what was there before goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apps;
use super::observe::http::Request;
use super::observe::load::{Load, Plan, Tally};
use super::observe::stream::Watcher;
use super::report::Check;
use super::scene::{Scene, until};
use crate::up::Part;

/// The file that is edited, and the place in it: where requests without the canary header go.
pub const FILE: &str = "user-service-traffic.yaml";
/// What stands there at first.
pub const STABLE_ONLY: &str = "    - name: stable
      route:
        - destination:
            host: user-service
            subset: stable
          weight: 100
";

/// Requests that show that a refused edit changed nothing.
const FEW: u64 = 500;

/// What the check writes; a test writes something else to see it fail.
#[derive(Clone, Debug)]
pub struct Edits {
    /// Weights of stable and canary that stand for 90/10.
    pub split: (u32, u32),
    /// Requests of the weighted split.
    pub requests: u64,
    /// The word that makes the edit invalid, in place of `weight`.
    pub wrong: &'static str,
}

impl Default for Edits {
    fn default() -> Self {
        Self { split: (90, 10), requests: 10_000, wrong: "wieght" }
    }
}

/// The place's text with these weights.
pub fn split(stable: u32, canary: u32) -> String {
    let destination = |subset: &str, weight: u32| {
        format!(
            "        - destination:\n            host: user-service\n            subset: {subset}\n          weight: {weight}\n"
        )
    };
    format!(
        "    - name: stable\n      route:\n{}{}",
        destination("stable", stable),
        destination("canary", canary)
    )
}

/// A flow of requests to user-service through the observer's sidecar.
pub fn traffic(scene: &Scene, requests: Option<u64>, rate: Option<f64>) -> anyhow::Result<Load> {
    let plan = Plan {
        to: scene.out_of("observer")?,
        request: Request::get("user-service:8080", apps::QUIET),
        connections: 4,
        requests,
        rate,
    };
    Ok(Load::start(plan, Arc::new(apps::version)))
}

/// Asks until a request without the canary header is answered by this version; says how long that took.
pub async fn reaches(scene: &Scene, version: &str) -> Option<Duration> {
    let began = Instant::now();
    let request = Request::get("user-service:8080", apps::QUIET);
    let look = || async {
        let answer = scene.ask(&request).await.ok()?;
        (apps::version(&answer) == version).then_some(())
    };
    until(scene.patience.effect, look).await.map(|()| began.elapsed())
}

/// All of it; the file is as it was in the end.
pub async fn checks(scene: &Scene, edits: &Edits) -> anyhow::Result<Vec<Check>> {
    let background = traffic(scene, None, Some(60.0))?;
    let stream = Watcher::start(scene.out_of("observer")?, &apps::long(), Duration::from_secs(10))
        .await
        .map_err(|e| anyhow::anyhow!("the long stream: {e}"))?;
    let before = scene.edit(FILE, STABLE_ONLY, &split(edits.split.0, edits.split.1))?;
    let outcome = edited(scene, edits).await;
    scene.write(FILE, &before)?;
    let mut checks = outcome?;
    // Back to stable only: no canary in as many requests as would show it otherwise.
    let back = until(scene.patience.effect, || async {
        let tally = traffic(scene, Some(100), None).ok()?.finish().await;
        (tally.of("canary") == 0).then_some(())
    });
    let back = back.await.is_some();
    let (tally, watched) = (background.stop().await, stream.stop().await);
    checks.push(Check::new(
        "live edit: traffic",
        "no failed request, no dropped connection, a long stream unbroken",
        format!(
            "{}, the stream {}",
            tally.words(),
            watched.broken.as_ref().map_or("unbroken".to_owned(), |why| format!("broken ({why})"))
        ),
        back && tally.good > 50 && tally.failed() == 0 && tally.dropped == 0 && watched.broken.is_none(),
    ));
    Ok(checks)
}

async fn edited(scene: &Scene, edits: &Edits) -> anyhow::Result<Vec<Check>> {
    let seen = reaches(scene, "canary").await;
    let mut checks = vec![Check::new(
        "live edit: the split changes without a restart",
        format!(
            "a request without the header reaches the canary within {} s of the edit",
            scene.patience.effect.as_secs()
        ),
        seen.map_or("none did".to_owned(), |t| format!("after {:.2} s", t.as_secs_f64())),
        seen.is_some(),
    )];
    let requests = edits.requests;
    let tally = traffic(scene, Some(requests), None)?.finish().await;
    let most = deviations(requests);
    checks.push(Check::new(
        "split: 90/10",
        format!(
            "{} of {requests} requests at the canary, +-{most:.0} (5 standard deviations)",
            requests / 10
        ),
        words(&tally),
        tally.failed() == 0 && near(&tally, requests),
    ));
    checks.extend(invalid(scene, edits).await?);
    Ok(checks)
}

/// Five standard deviations of how many of `n` requests a share of a tenth gets.
fn deviations(n: u64) -> f64 {
    (n as f64 * 0.1 * 0.9).sqrt() * 5.0
}

fn near(tally: &Tally, n: u64) -> bool {
    (tally.of("canary") as f64 - n as f64 / 10.0).abs() <= deviations(n)
}

fn words(tally: &Tally) -> String {
    format!(
        "{} at the canary, {} at stable, {} failed",
        tally.of("canary"),
        tally.of("stable"),
        tally.failed()
    )
}

async fn invalid(scene: &Scene, edits: &Edits) -> anyhow::Result<Vec<Check>> {
    let text = scene.read(FILE)?;
    let place = format!("          weight: {}\n", edits.split.1);
    let wrong = text.replace(&place, &format!("          {}: 50\n", edits.wrong));
    let line = wrong.lines().position(|l| l.contains(&format!("{}:", edits.wrong))).map_or(0, |n| n + 1);
    let log = scene.mesh.log(&Part::Control);
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let old = read().len();
    scene.write(FILE, &wrong)?;
    // File and line, field, reason and what to do, in one line of the control plane's log.
    let field = format!("spec.http[1].route[1].{}", edits.wrong);
    let refusal = until(Duration::from_secs(5), || async {
        let log = read();
        let new = log.get(old..).unwrap_or_default();
        new.lines().find(|l| l.contains(&format!("{FILE}:{line}"))).map(str::to_owned)
    });
    let refusal = refusal.await;
    let said = |what: &str| refusal.as_ref().is_some_and(|r| r.contains(what));
    let named = said(&field) && said("unknown field") && said("weight");
    let tally = traffic(scene, Some(FEW), None)?.finish().await;
    Ok(vec![
        Check::new(
            "invalid edit: refused",
            format!("a line with {FILE}:{line}, {field}, the reason and what to do"),
            refusal.as_ref().map_or("nothing was said".to_owned(), |r| from_file(r)),
            named,
        ),
        Check::new(
            "invalid edit: the last good state stays",
            format!("{} of {FEW} requests at the canary, +-{:.0}", FEW / 10, deviations(FEW)),
            words(&tally),
            tally.failed() == 0 && near(&tally, FEW),
        ),
    ])
}

/// A log line from the name of the file on.
fn from_file(line: &str) -> String {
    line.find(FILE).map_or(line, |at| &line[at..]).to_owned()
}
