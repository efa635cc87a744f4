//! The side-by-side load benchmark; see docs/benchmarks.md.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use weft_benches::contender::{Contender, Kind};
use weft_benches::measure::{self, Effort};
use weft_benches::report::Report;
use weft_benches::rows::{ROWS, Row};
use weft_benches::{null, tls};

/// Compares our proxy with Envoy, nginx and haproxy under load, one worker each
///
/// What counts is the processor time per request, and its ratio to Envoy's. Build with --release. Envoy, nginx and haproxy
/// come from tests/peers/install.
#[derive(Parser, Debug)]
#[command(name = "side-by-side")]
struct Cli {
    #[command(subcommand)]
    internal: Option<Internal>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand, Debug)]
enum Internal {
    /// The floor: copies bytes along these addresses, each listening one to the next
    #[command(hide = true)]
    NullProxy {
        /// Where to listen, and last where to connect
        addresses: Vec<SocketAddr>,
    },
}

#[derive(Args, Debug)]
struct Options {
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The length of one measurement
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Load before each measurement, in seconds
    #[arg(long, default_value_t = 0.4)]
    warmup: f64,
    /// How often each row goes round
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these rows (comma separated); "idle" is the memory without load
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these proxies
    #[arg(long, value_delimiter = ',', default_value = "weft,envoy,nginx,haproxy,null")]
    proxies: Vec<String>,
    /// A weft-proxy to measure in place of this checkout's, as NAME=PROGRAM; several are compared with each other
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = named)]
    weft: Vec<(String, PathBuf)>,
    /// Idle connections whose memory is measured
    #[arg(long, default_value_t = 1000)]
    idle_connections: usize,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = text.split_once('=').ok_or("must be NAME=PROGRAM")?;
    Ok((name.to_owned(), program.into()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.internal {
        Some(Internal::NullProxy { addresses }) => {
            let hops: Vec<_> = addresses.windows(2).map(|w| (w[0], w[1])).collect();
            null::run(&hops).context("null proxy")
        }
        None => run(&cli.options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let all: Vec<&str> = ROWS.iter().map(|r| r.name).chain(["idle"]).collect();
    if let Some(unknown) = options.rows.iter().find(|r| !all.contains(&r.as_str())) {
        bail!("--rows {unknown}: there is {}", all.join(", "));
    }
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("needs two processors: one for the proxy, one for the load");
    }
    let wanted = |name: &str| options.rows.is_empty() || options.rows.iter().any(|r| r == name);
    let contenders = contenders(options)?;
    let directory = tempfile::tempdir()?;
    tls::write(directory.path())?;
    let effort = Effort {
        seconds: Duration::from_secs_f64(options.seconds),
        warmup: Duration::from_secs_f64(options.warmup),
        rounds: options.rounds.max(1),
    };
    let mut report = Report {
        machine: machine(),
        seconds: options.seconds,
        rounds: effort.rounds,
        rows: Vec::new(),
        idle: Vec::new(),
    };
    println!("{}", report.machine);
    println!("CPU us: processor time of the proxy per unit; Envoy/it: how many times less than Envoy");
    for row in ROWS.iter().filter(|r: &&Row| wanted(r.name)) {
        let part = measure::row(row, &contenders, effort, directory.path())?;
        println!("{part}");
        report.rows.push(part);
    }
    if wanted("idle") {
        let real: Vec<_> = contenders.iter().filter(|c| c.kind != Kind::Null).cloned().collect();
        report.idle = measure::idle(&real, options.idle_connections, directory.path())?;
        println!("\nidle: resident memory with two workers (nginx: one), and per idle plaintext connection");
        report.idle.iter().for_each(|line| println!("{line}"));
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("--json {}", file.display()))?;
    }
    Ok(())
}

fn contenders(options: &Options) -> anyhow::Result<Vec<Contender>> {
    let mut all = Vec::new();
    for name in &options.proxies {
        match name.as_str() {
            "weft" if options.weft.is_empty() => {
                all.push(Contender { name: name.clone(), kind: Kind::Weft, program: build()?, bare: false });
            }
            "weft" => all.extend(options.weft.iter().map(|(name, program)| Contender {
                name: name.clone(),
                kind: Kind::Weft,
                program: program.clone(),
                bare: false,
            })),
            "envoy" => all.push(Contender::peer(Kind::Envoy)?),
            "nginx" => all.push(Contender::peer(Kind::Nginx)?),
            "haproxy" => all.push(Contender::peer(Kind::Haproxy)?),
            "null" => all.push(Contender {
                name: name.clone(),
                kind: Kind::Null,
                program: std::env::current_exe()?,
                bare: false,
            }),
            other => bail!("--proxies {other}: there is weft, envoy, nginx, haproxy, null"),
        }
    }
    Ok(all)
}

/// Builds this checkout's proxy with the profile that this program was built with.
fn build() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program lies nowhere")?;
    let profile = match directory.file_name().and_then(|n| n.to_str()) {
        Some("debug") => bail!("an unoptimised proxy says nothing: cargo run --release -p weft-benches ..."),
        Some(profile) => profile,
        None => bail!("this program lies nowhere"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args(["build", "--profile", profile, "-p", "weft-proxy", "--bin", "weft-proxy"])
        .status()
        .context("cargo")?;
    if !status.success() {
        bail!("weft-proxy does not build; --weft NAME=PROGRAM measures one that is built");
    }
    Ok(directory.join("weft-proxy"))
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cpus} processors:{}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}
