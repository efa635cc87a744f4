//! Certificates that live for seconds, at both ends of a hop, under traffic and one long stream. The observer dials the server's
//! port again and again and notes when it shows another certificate; the client's comes and goes in what the upstream
//! application recorded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apps;
use super::observe::chain;
use super::observe::http::Request;
use super::observe::load::{Load, Plan};
use super::observe::stream::Watcher;
use super::observe::tls::{Outcome, dial};
use super::report::Check;
use super::scene::Scene;

/// The certificates' lifetime, as the check's configuration gives it.
const LIFE: Duration = Duration::from_secs(8);

/// Where in its life a certificate is replaced, and how far off that may be seen: lifetimes are whole seconds.
const AT: f64 = 0.5;
const OFF: f64 = 0.15;

/// Watches until the server has rotated as many times as wanted.
pub async fn checks(scene: &Scene, rotations: usize) -> anyhow::Result<Vec<Check>> {
    let server = scene.instance("rotate")?;
    let (client, into) = (scene.out_of("rotate-client")?, scene.port_of(server)?);
    let plan = Plan {
        to: client,
        request: Request::get("rotate:8080", format!("{}?rotate={{n}}", apps::QUIET)),
        connections: 2,
        requests: None,
        rate: Some(40.0),
    };
    let load = Load::start(plan, Arc::new(apps::instance));
    let stream = Watcher::start(client, &Request::get("rotate:8080", apps::STREAM), LIFE)
        .await
        .map_err(|e| anyhow::anyhow!("the long stream: {e}"))?;
    let began = Instant::now();
    let mut changes: Vec<Instant> = Vec::new();
    let mut serial = String::new();
    // The first change may come any time; from then on there is one for each half life.
    let limit = LIFE.mul_f64((AT + OFF) * (rotations + 1) as f64) + Duration::from_secs(2);
    while changes.len() <= rotations && began.elapsed() < limit {
        if let Outcome::Answered(handshake, _) =
            dial(into, Some(&scene.own), &Request::get("observer", apps::QUIET)).await?
            && let Some(leaf) = handshake.chain.first()
        {
            let now = chain::read(leaf)?.serial;
            if now != serial && !serial.is_empty() {
                changes.push(Instant::now());
            }
            serial = now;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let (tally, watched) = (load.stop().await, stream.stop().await);
    let shares: Vec<f64> =
        changes.windows(2).map(|w| (w[1] - w[0]).as_secs_f64() / LIFE.as_secs_f64()).collect();
    let records = apps::records(server, 2000).await?;
    let clients: BTreeSet<_> =
        records.iter().filter(|r| r.path.contains("rotate=")).map(|r| r.caller_hash.as_str()).collect();
    let life = LIFE.as_secs();
    Ok(vec![
        Check::new(
            "rotation: the server's certificate",
            format!(
                "{rotations} rotations of certificates of {life} s, each at {:.0} % of its life (+-{:.0})",
                AT * 100.0,
                OFF * 100.0
            ),
            format!("{} rotations, at {}", shares.len(), percents(&shares)),
            shares.len() >= rotations && shares.iter().all(|s| (s - AT).abs() <= OFF),
        ),
        Check::new(
            "rotation: the client's certificate",
            format!("at least {} certificates shown to the server", rotations + 1),
            format!("{} certificates", clients.len()),
            clients.len() > rotations,
        ),
        Check::new(
            "rotation: traffic",
            "no failed request, no dropped connection",
            tally.words(),
            tally.good > 100 && tally.failed() == 0 && tally.dropped == 0,
        ),
        Check::new(
            "rotation: a long stream",
            "one answer goes on over all rotations, every line of it",
            match &watched.broken {
                None => format!("{} lines in order, unbroken", watched.lines),
                Some(why) => format!("broken after {} lines: {why}", watched.lines),
            },
            watched.broken.is_none() && watched.lines > 20,
        ),
    ])
}

fn percents(shares: &[f64]) -> String {
    let all: Vec<_> = shares.iter().map(|s| format!("{:.0} %", s * 100.0)).collect();
    if all.is_empty() { "no time".to_owned() } else { all.join(", ") }
}
