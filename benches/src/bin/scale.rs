//! The scale benchmark; see docs/benchmarks.md.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use weft_benches::scale::mesh::Size;
use weft_benches::scale::{Options, run};

/// Measures how long a change takes from the API server to the last of a thousand proxies, and what it costs
///
/// The API server and the proxies are simulated in this process; the control plane is the program weft-control beside it. Build
/// both with --release.
#[derive(Parser, Debug)]
#[command(name = "scale")]
struct Cli {
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The control plane's program; by default the one beside this program
    #[arg(long, value_name = "PROGRAM")]
    control: Option<PathBuf>,
    /// Services of the mesh
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Endpoints of each service
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Namespaces that services and proxies are spread over
    #[arg(long, default_value_t = 20)]
    namespaces: usize,
    /// Proxies, one beside each service's first pod, then beside the second ones
    #[arg(long, default_value_t = 1000)]
    proxies: usize,
    /// What proxies see: "all" services, or their own namespace's and those of one more ("scoped", by Sidecars)
    #[arg(long, value_delimiter = ',', default_value = "all,scoped")]
    sight: Vec<String>,
    /// Lone changes of each sort
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Seconds between two of them
    #[arg(long, default_value_t = 1.1)]
    gap: f64,
    /// Changes a second where they come without a pause; 0 leaves that out
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of that
    #[arg(long, default_value_t = 20.0)]
    sustained: f64,
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> anyhow::Result<()> {
    let program = match &cli.control {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("weft-control"),
    };
    if !program.exists() {
        bail!(
            "{} is not there; build it: cargo build --release --bin weft-control --bin scale",
            program.display()
        );
    }
    if cli.services == 0 || cli.endpoints == 0 || cli.namespaces == 0 || cli.proxies == 0 {
        bail!("--services, --endpoints, --namespaces and --proxies are at least 1");
    }
    let changes = (2 * (cli.changes + 2)) as f64 + f64::from(cli.rate) * cli.sustained;
    if changes > 50_000.0 {
        bail!("that is more than 50000 changes; each has an address of its own, and there are no more");
    }
    let mut reports = Vec::new();
    for sight in &cli.sight {
        let scoped = match sight.as_str() {
            "all" => false,
            "scoped" => true,
            other => bail!("--sight {other}: there is all, scoped"),
        };
        let options = Options {
            program: program.clone(),
            size: Size {
                services: cli.services,
                endpoints: cli.endpoints,
                namespaces: cli.namespaces,
                scoped,
            },
            proxies: cli.proxies,
            changes: cli.changes,
            gap: Duration::from_secs_f64(cli.gap),
            rate: cli.rate,
            sustained: Duration::from_secs_f64(cli.sustained),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let report = runtime.block_on(run(options))?;
        runtime.shutdown_background();
        println!("{report}");
        reports.push(report);
    }
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_vec_pretty(&reports)?)
            .with_context(|| format!("--json {}", file.display()))?;
    }
    Ok(())
}
