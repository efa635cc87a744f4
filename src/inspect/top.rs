//! `weft top`: who calls whom just now, as a table that follows.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::edges::{Between, Both, Edges, Pages, ask, since, within};
use super::proxies::{Asked, Proxies};
use super::{Output, rows};
use crate::cli::parse_duration;

/// Shows who calls whom just now: requests a second, success, times, mutual TLS
#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    proxies: Proxies,
    /// Only what comes from this namespace or goes there
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Over how long each table counts
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    interval: Duration,
    /// End after so many tables. On a terminal it goes on until Ctrl-C; elsewhere there is one
    #[arg(long, value_name = "TABLES")]
    count: Option<usize>,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Sort::Requests)]
    sort: Sort,
    /// How it is printed; JSON is a line for each table
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// An order of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// The most requests.
    Requests,
    /// The most failures.
    Failures,
    /// The slowest: the 99th percentile.
    Slowest,
    /// By name.
    Name,
}

/// Prints tables.
///
/// # Errors
/// The control plane does not answer, or no proxy does.
pub fn main(args: &TopArgs) -> anyhow::Result<()> {
    if args.interval < Duration::from_millis(100) {
        bail!("--interval: 100ms is the shortest, for proxies are asked each time");
    }
    let mut out = std::io::stdout();
    let follows = out.is_terminal() && args.output == Output::Text;
    let tables = args.count.unwrap_or(if follows { usize::MAX } else { 1 });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let look = || -> anyhow::Result<(Pages, Asked<()>, Instant)> {
        let targets = args.proxies.targets()?;
        let (pages, asked) = runtime.block_on(ask(&targets));
        Ok((pages, asked, Instant::now()))
    };
    let mut before = look()?;
    for _ in 0..tables {
        if before.0.is_empty() {
            bail!("{}", before.1.missing().unwrap_or_default());
        }
        std::thread::sleep(args.interval);
        let now = look()?;
        let over = now.2 - before.2;
        let edges = within(since(&before.0, &now.0), args.namespace.as_deref());
        let shown = match args.output {
            Output::Json => format!("{}\n", page(&edges, over, &now.1)),
            Output::Text => text(&edges, over, args.sort, &now.1),
        };
        // A table that follows stands where the one before stood.
        let clear = if follows && args.count.is_none() { "\x1b[H\x1b[2J" } else { "" };
        match write!(out, "{clear}{shown}").and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        before = now;
    }
    Ok(())
}

fn page(edges: &Edges, over: Duration, asked: &Asked<()>) -> Value {
    let edges: Vec<_> = edges.iter().map(|(between, both)| both.json(between, Some(over))).collect();
    json!({"seconds": over.as_secs_f64(), "edges": edges, "proxies": asked.proxies()})
}

fn text(edges: &Edges, over: Duration, sort: Sort, asked: &Asked<()>) -> String {
    let mut all: Vec<(&Between, &Both)> = edges.iter().collect();
    let most = |value: fn(&Both) -> f64| {
        move |a: &(&Between, &Both), b: &(&Between, &Both)| value(b.1).total_cmp(&value(a.1))
    };
    match sort {
        Sort::Requests => all.sort_by(most(|both| both.told().requests + both.told().opened)),
        Sort::Failures => all.sort_by(most(|both| both.told().requests - both.told().good)),
        Sort::Slowest => all.sort_by(most(|both| both.told().percentile(0.99).unwrap_or(-1.0))),
        Sort::Name => {}
    }
    let seconds = over.as_secs_f64();
    let table: Vec<Vec<String>> = all
        .into_iter()
        .map(|(between, both)| {
            let told = both.told();
            let share = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.1} %", s * 100.0));
            let time = |share: f64| told.percentile(share).map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
            let rate =
                |value: f64| if value > 0.0 { format!("{:.1}", value / seconds) } else { "-".to_owned() };
            vec![
                between.from.to_string(),
                between.to.to_string(),
                between.protocol.clone(),
                rate(told.requests),
                share(told.success()),
                time(0.5),
                time(0.95),
                time(0.99),
                rate(told.opened),
                rate((told.sent + told.received) / 1024.0),
                share(both.mutual()),
            ]
        })
        .collect();
    let head = ["FROM", "TO", "PROTOCOL", "REQ/S", "SUCCESS", "P50", "P95", "P99", "CONN/S", "KIB/S", "MTLS"];
    let mut out = rows::table(&head, &table);
    if table.is_empty() {
        out.push_str("nothing was sent meanwhile\n");
    }
    if let Some(missing) = asked.missing() {
        out.push_str(&format!("{missing}\n"));
    }
    out
}
