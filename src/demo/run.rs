//! The command: start the example mesh, send traffic, show, end.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use time::OffsetDateTime;

use super::lines::{COLUMNS, Client, cells, json, line};
use super::measure::{Measure, Row};
use super::screen::{Screen, View};
use super::traffic::{HOST, Traffic};
use super::{check, embedded};
use crate::cli::parse_duration;
use crate::up::ending::{Ending, finish};
use crate::up::{Mesh, Options, events, report};

/// How often proxies are asked.
const LOOK: Duration = Duration::from_secs(1);
/// How often plain lines come; an object of JSON comes with each look.
const PLAIN_EVERY: u32 = 5;
const READY: Duration = Duration::from_secs(60);

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A live view on a terminal; elsewhere lines.
    Text,
    /// An object on a line each second; with --check one object at the end.
    Json,
}

/// Runs the example mesh with traffic, and shows it live
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Run this directory of YAML instead of the built-in example (deploy/ecotrack of the sources); edits take effect at once
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Do not show it: run the acceptance journey on it, one line for each check, and fail if one failed
    #[arg(long, conflicts_with_all = ["duration", "rate"])]
    check: bool,
    /// How it is shown
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// End by itself after so much traffic
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Requests a second through the ingress
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Move the mesh's addresses 127.0.X.Y to 127.N.X.Y, to run it beside another
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    loopback: Option<u8>,
    /// Keep logs, tokens and the certificate authority here; without it, in a new directory that goes at a clean end
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// Runs the command until it is told to end.
pub fn main(args: DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let mut end = Ending::new()?;
    // Its files are copied into the run's directory before anything is started.
    let built_in = tempfile::tempdir()?;
    let dir = match &args.config_dir {
        Some(dir) => dir.clone(),
        None => {
            embedded::write(built_in.path())?;
            built_in.path().to_owned()
        }
    };
    let options = Options {
        copy: args.config_dir.is_none(),
        loopback: args.loopback,
        run_dir: args.run_dir.clone(),
        drain: Duration::from_secs(2),
        ..Options::new(dir)?
    };
    if args.check {
        return tokio::select! {
            result = checked(options, args.output) => result,
            () = end.told() => bail!("ended before the last check"),
        };
    }
    eprintln!("starting the control plane");
    let mut mesh = tokio::select! {
        mesh = Mesh::start(options) => mesh?,
        () = end.told() => return Ok(()),
    };
    eprintln!("starting {} workloads; logs are in {}", mesh.workloads().len(), mesh.logs().display());
    let result = tokio::select! {
        result = shown(&mut mesh, &args) => result,
        () = end.told() => Ok(()),
    };
    let ended = finish(mesh, &mut end).await;
    result.and(ended)
}

/// The acceptance journey, from the start of a mesh of its own to its end.
async fn checked(options: Options, output: Output) -> anyhow::Result<()> {
    let began = Instant::now();
    let staging = tempfile::tempdir()?;
    eprintln!("starting the mesh, then checking it; that takes about a minute");
    check::scene::stage(&options.dir, staging.path())?;
    let mut scene = check::start(staging.path(), options).await?;
    let tell = |check: &check::Check| {
        if output == Output::Text {
            println!("{check}");
        }
    };
    let report = check::journey(&scene, began, tell).await?;
    match output {
        Output::Text => println!("{}", report.total()),
        Output::Json => println!("{:#}", report.json()),
    }
    let failed = report.failed().count();
    if failed > 0 {
        scene.mesh.keep_files();
    }
    let logs = scene.mesh.logs();
    scene.mesh.shutdown().await?;
    if failed > 0 {
        bail!("{failed} of {} checks failed; logs are in {}", report.checks.len(), logs.display());
    }
    Ok(())
}

/// Everything that is shown, from time to time.
struct Show {
    began: Instant,
    measure: Measure,
    traffic: Traffic,
    curl: Vec<String>,
    events: Vec<String>,
    looks: u32,
}

impl Show {
    fn client(&self) -> Client {
        let seen = &self.traffic.seen;
        Client {
            sent: seen.sent.load(Relaxed),
            fine: seen.fine.load(Relaxed),
            failed: seen.failed.load(Relaxed),
        }
    }

    fn lines(&self, rows: &[Row]) {
        let Client { sent, failed, .. } = self.client();
        println!("\n{}s: {sent} requests, {failed} failed", self.began.elapsed().as_secs());
        println!("{}", line(&COLUMNS.map(|(title, _)| title.to_owned())));
        for row in rows {
            println!("{}", line(&cells(row)));
        }
    }
}

async fn shown(mesh: &mut Mesh, args: &DemoArgs) -> anyhow::Result<()> {
    mesh.wait_ready(READY).await?;
    let Some(ingress) =
        mesh.workloads().iter().filter(|w| w.gateway).find_map(|w| w.inbound.first().copied())
    else {
        bail!(
            "{} has no ingress gateway (a WorkloadEntry with annotation weft.dev/role: gateway, and a Gateway that selects it), \
             so no traffic can be sent through one; `weft up` runs such a mesh",
            mesh.config_dir().display()
        );
    };
    let mut curl = report::curl_lines(mesh);
    curl.insert(
        1.min(curl.len()),
        format!("curl -H 'canary: true' -H 'Host: {HOST}' http://{ingress}/api/users"),
    );
    let mut screen = match args.output {
        Output::Text if Screen::is_possible() => Some(Screen::open()?),
        Output::Text => {
            println!("{}\ntry", report::addresses(mesh));
            curl.iter().for_each(|line| println!("  {line}"));
            None
        }
        Output::Json => None,
    };
    let mut events = events::follow(mesh).await;
    let mut show = Show {
        began: Instant::now(),
        measure: Measure::new(mesh.workloads()),
        traffic: Traffic::start(ingress, args.rate),
        curl,
        events: Vec::new(),
        looks: 0,
    };
    let notes = format!("edit {}; logs are in {}", mesh.config_dir().display(), mesh.logs().display());
    let deadline = args.duration.map(|d| show.began + d);
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        show.measure.look().await;
        show.looks += 1;
        while let Ok(event) = events.try_recv() {
            match screen {
                Some(_) => show.events.extend(event.lines().map(str::to_owned)),
                None => eprintln!("weft: {event}"),
            }
        }
        let rows = show.measure.rows(OffsetDateTime::now_utc());
        match (&mut screen, args.output) {
            (Some(screen), _) => {
                screen.draw(&View {
                    elapsed: show.began.elapsed(),
                    client: show.client(),
                    rows: &rows,
                    ingress: ingress.to_string(),
                    curl: &show.curl,
                    events: &show.events,
                    notes: &notes,
                })?;
                if screen.quit.try_recv().is_ok() {
                    return Ok(());
                }
            }
            (None, Output::Json) => println!("{}", json(show.began.elapsed(), show.client(), &rows)),
            (None, Output::Text) if show.looks.is_multiple_of(PLAIN_EVERY) => show.lines(&rows),
            (None, Output::Text) => {}
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            if args.output == Output::Text {
                drop(screen);
                show.lines(&rows);
            }
            return Ok(());
        }
    }
}
