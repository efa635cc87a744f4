//! Instances die, refuse connections and answer 503 under traffic; with the design's retry policy the client sees none of it,
//! and no attempt goes where an earlier one failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::apps::{self, Behaviour};
use super::observe::http::Request;
use super::observe::load::{Load, Plan, Tally};
use super::report::Check;
use super::scene::{Scene, until};
use crate::up::{Part, Workload};

/// Requests per second, and how many may be under way at once: the design allows three retries at a time.
const RATE: f64 = 120.0;
const AT_A_TIME: usize = 3;
/// Each application takes this long, so that there always is a request to break off.
const WORK: Duration = Duration::from_millis(8);
/// Retries to see in each part before it ends.
const ENOUGH: usize = 25;
/// So many of an instance's last requests are read.
const LAST: usize = 800;
/// The longest that a part may take to show them.
const LIMIT: Duration = Duration::from_secs(15);
/// Choosing a host not yet tried is a matter of a few draws (five, by Istio's default), so now and then none succeeds.
const UNLUCKY: f64 = 0.1;

/// The three parts, under one flow of requests each.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    let all = scene.instances("retry");
    let [first, second, third] = all[..] else { anyhow::bail!("three instances of retry are needed") };
    for instance in &all {
        apps::behave(instance, &Behaviour { delay: WORK, ..Behaviour::default() }).await?;
    }
    let mut checks = Vec::new();

    let both = [Part::Proxy(first.id.clone()), Part::App(first.id.clone())];
    let (tally, retried) = under_traffic(scene, "killed", &[second, third], scene.kill(&both)).await?;
    checks.push(no_error("an instance is killed", &tally, retried));
    scene.revive(&both).await?;

    let sidecar = [Part::Proxy(second.id.clone())];
    let (tally, retried) = under_traffic(scene, "refused", &[first, third], scene.kill(&sidecar)).await?;
    checks.push(no_error("an instance refuses connections", &tally, retried));
    scene.revive(&sidecar).await?;

    let failing = Behaviour { delay: WORK, status: Some(503) };
    let fail = async {
        apps::behave(third, &failing).await?;
        // From here on its record holds refused requests only.
        apps::forget(third).await
    };
    let (tally, retried) = under_traffic(scene, "answered", &[first, second], fail).await?;
    checks.push(no_error("an instance answers 503", &tally, retried));
    checks.push(other_hosts(scene, third).await?);
    apps::behave(third, &Behaviour::default()).await?;
    Ok(checks)
}

fn no_error(what: &str, tally: &Tally, retried: usize) -> Check {
    Check::new(
        format!("retries: {what}"),
        format!("no error at the client, at least {ENOUGH} retries at the others"),
        format!("{}, {retried} retries", tally.words()),
        tally.failed() == 0 && tally.dropped == 0 && retried >= ENOUGH,
    )
}

/// Sends requests, does something to an instance, and goes on until the others have recorded enough retries.
async fn under_traffic(
    scene: &Scene,
    part: &str,
    others: &[&Workload],
    act: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(Tally, usize)> {
    let plan = Plan {
        to: scene.out_of("observer")?,
        request: Request::get("retry:8080", format!("{}?{part}={{n}}", apps::QUIET)),
        connections: AT_A_TIME,
        requests: None,
        rate: Some(RATE),
    };
    let load = Load::start(plan, Arc::new(apps::instance));
    // It happens in the middle of traffic.
    until(LIMIT, async || (load.begun() > 30).then_some(())).await;
    act.await?;
    let mut retried = 0;
    let began = std::time::Instant::now();
    while retried < ENOUGH && load.failed() < ENOUGH as u64 && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(250)).await;
        retried = 0;
        for other in others {
            let records = apps::records(other, LAST).await?;
            retried += records.iter().filter(|r| r.path.contains(part) && r.attempt > 1).count();
        }
    }
    Ok((load.stop().await, retried))
}

/// How often the failing instance got a request for a second time, by its own record.
async fn other_hosts(scene: &Scene, failing: &Workload) -> anyhow::Result<Check> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut elsewhere = BTreeSet::new();
    for instance in scene.instances("retry") {
        for record in
            apps::records(instance, LAST).await?.into_iter().filter(|r| r.path.contains("answered="))
        {
            if instance.id == failing.id {
                *times.entry(record.path).or_default() += 1;
            } else if record.attempt > 1 {
                elsewhere.insert(record.path);
            }
        }
    }
    let again = times.values().filter(|n| **n > 1).count();
    let most = (times.len() as f64 * UNLUCKY) as usize;
    Ok(Check::new(
        "retries: attempts avoid hosts already tried",
        format!("at most {most} of {} refused requests come back to the host that refused them", times.len()),
        format!(
            "{again} came back, {} were answered elsewhere",
            times.keys().filter(|p| elsewhere.contains(*p)).count()
        ),
        times.len() >= ENOUGH / 2 && again <= most,
    ))
}
