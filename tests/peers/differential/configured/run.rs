//! Runs the cases of a file through both proxies and compares.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::observed::{self, Observed};
use super::pair::{Pair, Side, pair};
use super::spec::Case;
use super::upstream::{self, Book};
use super::{client, explained};
use crate::differential::run::diff;

/// Cases that run at once: most of their time is waiting.
const AT_ONCE: usize = 8;
/// How long both sides get to agree: lines and counters are written after the answer.
const SETTLE: Duration = Duration::from_secs(6);

/// Files take turns, so that no more cases than that run on a machine.
static TURN: Mutex<()> = Mutex::new(());

/// Runs the cases of a file; `WEFT_CASE` names the only ones to run, by a part of their names.
pub fn file(name: &str) {
    let only = std::env::var("WEFT_CASE").unwrap_or_default();
    let cases = super::all();
    let cases: Vec<_> = cases.iter().enumerate().collect();
    let mut names: Vec<_> = cases.iter().map(|(_, c)| c.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        panic!("two cases are called {}", twice[0]);
    }
    let chosen: Vec<_> =
        cases.into_iter().filter(|(_, c)| c.file == name && c.name.contains(&only)).collect();
    if chosen.is_empty() {
        return;
    }
    let failed: Vec<_> = all(&chosen, &pair()).into_iter().map(|(_, text)| text).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), chosen.len(), failed.join("\n"));
}

/// Runs these cases of a pair; those that fail, by their number in the pair, and what is wrong.
pub fn all(cases: &[(usize, &Case)], pair: &Pair) -> Vec<(usize, String)> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    while let Some((index, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        failed.extend(one(case, *index, pair).err().map(|text| (*index, text)));
                    }
                    failed
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    })
}

fn one(case: &Case, index: usize, pair: &Pair) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let port = pair.port(index);
    let book = Book::default();
    let began = std::time::SystemTime::now();
    let (envoy, weft) = runtime.block_on(async {
        upstream::start(case, port, pair.directory(), &book).await;
        tokio::join!(
            client::play(&case.send, Side::Envoy.at(port), pair.directory()),
            client::play(&case.send, Side::Weft.at(port), pair.directory())
        )
    });
    let requests: usize = case.send.iter().map(|s| s.ask()).map(|a| a.times.max(1) as usize).sum();
    let lines = case.logs.unwrap_or(requests);
    let end = Instant::now() + SETTLE;
    let (envoy, weft) = loop {
        let observe = |side: Side, seen: &client::Seen, counters: bool| {
            let (upstream, shares) = observed::arrived(case, &book.lock().unwrap(), side);
            Observed {
                client: seen.text.clone(),
                tallies: seen.tallies.clone(),
                upstream,
                shares,
                log: observed::log(case, &pair.access_log(side)),
                lines: observed::lines(case, &pair.access_log(side)),
                ejected: observed::ejected(case, &pair.event_log(side)),
                counters: if counters { observed::counters(case, pair.admin(side)) } else { BTreeMap::new() },
            }
        };
        let over = Instant::now() > end;
        let (mut a, mut b) = (observe(Side::Envoy, &envoy, over), observe(Side::Weft, &weft, over));
        let whole = case.no_log || (a.log.len() >= lines && b.log.len() >= lines);
        // Reading counters takes the proxies' time: only when the rest is there.
        if whole && !over && a.text(case) == b.text(case) {
            (a, b) = (observe(Side::Envoy, &envoy, true), observe(Side::Weft, &weft, true));
        }
        if over || (whole && !a.counters.is_empty() && a.text(case) == b.text(case)) {
            break (a, b);
        }
        // Who asks for counters all the time keeps the proxies from all else.
        std::thread::sleep(Duration::from_millis(if a.counters.is_empty() { 50 } else { 300 }));
    };
    runtime.shutdown_timeout(Duration::from_millis(100));
    explained::check(case, pair, began)
        .map_err(|why| format!("{} ({}.yaml): {why}", case.name, case.file))?;
    let (theirs, ours) = (envoy.text(case), weft.text(case));
    if std::env::var_os("WEFT_SHOW").is_some() {
        println!("{}: Envoy's side:\n{theirs}", case.name);
    }
    let near = envoy.near(&weft);
    let mut text = format!("{} ({}.yaml): ", case.name, case.file);
    match &case.deliberate {
        None if theirs != ours => {
            let _ =
                write!(text, "Envoy's answer and ours differ (- Envoy, + ours)\n{}", diff(&theirs, &ours));
        }
        None => match near {
            Ok(()) => return Ok(()),
            Err(why) => text += &why,
        },
        Some(wanted) if theirs == ours && near.is_ok() => {
            let _ = write!(text, "no difference any more; it is said to be {}", wanted.difference);
        }
        Some(wanted) if ours.contains(&wanted.ours) => return Ok(()),
        Some(wanted) => {
            let _ = write!(text, "{:?} is not in what our side showed:\n{ours}", wanted.ours);
        }
    }
    let log = pair.log(Side::Weft);
    if log.contains("panicked") {
        let _ = write!(text, "our proxy:\n{log}");
    }
    Err(text)
}
