//! One of three instances answers 500 to everything. Its own record shows when requests came: five, then none for the base
//! ejection time, five, then none for twice that, and so on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apps::{self, Behaviour, Record};
use super::observe::http::Request;
use super::observe::load::{Load, Plan};
use super::report::Check;
use super::scene::{Scene, until};

/// The check's settings, as its configuration gives them (`check.yaml`): failures that eject, base time, interval.
const FAILURES: usize = 5;
const BASE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(500);
/// Ejections to see.
const EJECTIONS: usize = 3;
/// An ejection ends at the first interval after its time, and the next request must come; a busy machine is late.
const LATE: Duration = Duration::from_millis(500);
/// Requests per second over three instances. One at a time, so that the sixth is not on its way when the fifth fails.
/// Fast enough for five failures within the interval after a return: a quiet interval forgives an ejection.
const RATE: f64 = 300.0;

/// The fewest that show anything: with fewer it may have no five in an interval, and be forgiven.
const SLOWEST: f64 = 0.3 * RATE;
/// So often it is looked where the machine sent fewer.
const LOOKS: u32 = 3;

/// Watches until the last ejection is over; again where the machine was too busy to send what shows it.
pub async fn checks(scene: &Scene) -> anyhow::Result<Vec<Check>> {
    for _ in 1..LOOKS {
        let (checks, rate) = look(scene).await?;
        if rate >= SLOWEST || checks.iter().all(|check| check.ok) {
            return Ok(checks);
        }
    }
    Ok(look(scene).await?.0)
}

/// One look, and how many requests a second were sent.
async fn look(scene: &Scene) -> anyhow::Result<(Vec<Check>, f64)> {
    let failing = scene.instance("eject")?;
    apps::behave(failing, &Behaviour { status: Some(500), ..Behaviour::default() }).await?;
    // What it recorded of an earlier look says nothing about this one.
    apps::forget(failing).await?;
    let plan = Plan {
        to: scene.out_of("observer")?,
        request: Request::get("eject:8080", format!("{}?eject", apps::QUIET)),
        connections: 1,
        requests: None,
        rate: Some(RATE),
    };
    let began = Instant::now();
    let load = Load::start(plan, Arc::new(apps::instance));
    // The longest gap is the last: 1 + 2 + 3 times the base.
    let limit = BASE * 6 + (INTERVAL + LATE) * 5;
    // Looked at a few times a second: reading the record is work for the application, too.
    let seen = || async {
        tokio::time::sleep(INTERVAL).await;
        let records = apps::records(failing, 200).await.unwrap_or_default();
        (bursts(&records).len() > EJECTIONS).then_some(())
    };
    until(limit, seen).await;
    let tally = load.stop().await;
    let rate = tally.sent as f64 / began.elapsed().as_secs_f64();
    let records = apps::records(failing, 200).await?;
    apps::behave(failing, &Behaviour::default()).await?;
    let bursts = bursts(&records);
    let counts: Vec<usize> = bursts.iter().take(EJECTIONS).map(|b| b.requests).collect();
    let gaps: Vec<Duration> = bursts.windows(2).take(EJECTIONS).map(|w| w[1].first - w[0].last).collect();
    let wanted: Vec<String> =
        (1..=EJECTIONS).map(|n| format!("{:.1} s", (BASE * n as u32).as_secs_f64())).collect();
    let in_time = |(n, gap): (u32, &Duration)| *gap >= BASE * n && *gap <= BASE * n + INTERVAL + LATE;
    let checks = vec![
        Check::equal(
            "ejection: failures in a row that eject",
            format!("{:?}", [FAILURES; EJECTIONS]),
            format!("{counts:?}"),
        ),
        Check::new(
            "ejection: return after base ejection time x number of ejections",
            format!("{}, each at most {:.1} s late", wanted.join(", "), (INTERVAL + LATE).as_secs_f64()),
            format!(
                "{} ({} requests, the slowest took {:.2} s)",
                gaps.iter().map(|g| format!("{:.2} s", g.as_secs_f64())).collect::<Vec<_>>().join(", "),
                tally.sent,
                tally.slowest.as_secs_f64()
            ),
            gaps.len() == EJECTIONS && (1..).zip(&gaps).all(in_time),
        ),
    ];
    Ok((checks, rate))
}

/// Requests that came in a row, without a gap as long as an ejection.
struct Burst {
    requests: usize,
    first: Duration,
    last: Duration,
}

fn bursts(records: &[Record]) -> Vec<Burst> {
    let mut bursts: Vec<Burst> = Vec::new();
    for record in records.iter().filter(|r| r.path.contains("?eject")) {
        match bursts.last_mut() {
            Some(burst) if record.at.saturating_sub(burst.last) < BASE / 2 => {
                burst.requests += 1;
                burst.last = record.at;
            }
            _ => bursts.push(Burst { requests: 1, first: record.at, last: record.at }),
        }
    }
    bursts
}
