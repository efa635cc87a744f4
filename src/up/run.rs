//! The command: start, say what is where, watch, end in order.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::ending::{Ending, finish};
use super::mesh::{Mesh, Options};
use super::{events, report};
use crate::cli::parse_duration;

/// Runs the mesh that a directory of YAML describes
#[derive(Args, Debug)]
pub struct UpArgs {
    /// The directory of YAML: each WorkloadEntry with a serviceAccount gets a proxy on its address (annotation weft.dev/role:
    /// gateway makes it a gateway), and annotation weft.dev/command starts its application. Edits take effect at once, but a
    /// new workload is started by a new `weft up`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Keep logs, tokens and the certificate authority here; without it, in a new directory that goes at a clean end
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The certificate authority's state; `state` in the run directory without it
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Move the configuration's addresses 127.0.X.Y to 127.N.X.Y (in a private copy), to run several meshes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    loopback: Option<u8>,
    /// The control plane's address; 127.0.1.1 by default (127.N.1.1 with --loopback)
    #[arg(long, value_name = "IP")]
    control_address: Option<IpAddr>,
    /// Worker threads of each proxy whose configuration does not say
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// How long connections get to end, where the configuration does not say
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    drain_time: Duration,
    /// How long everything may take to become ready
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    ready_timeout: Duration,
}

/// Runs the command until it is told to end.
pub fn main(args: UpArgs) -> anyhow::Result<()> {
    let options = Options {
        run_dir: args.run_dir,
        state_dir: args.state_dir,
        loopback: args.loopback,
        control_address: args.control_address,
        concurrency: args.concurrency,
        drain: args.drain_time,
        ..Options::new(args.dir)?
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(options, args.ready_timeout))
}

async fn run(options: Options, limit: Duration) -> anyhow::Result<()> {
    let mut end = Ending::new()?;
    let starting = async {
        eprintln!("starting the control plane ({})", options.dir.display());
        let mesh = Mesh::start(options).await?;
        eprintln!("starting {} workloads; logs are in {}", mesh.workloads().len(), mesh.logs().display());
        anyhow::Ok(mesh)
    };
    let mut mesh = tokio::select! {
        mesh = starting => mesh?,
        () = end.told() => return Ok(()),
    };
    let result = tokio::select! {
        result = watch(&mut mesh, limit) => result,
        () = end.told() => Ok(()),
    };
    finish(mesh, &mut end).await?;
    result
}

async fn watch(mesh: &mut Mesh, limit: Duration) -> anyhow::Result<()> {
    mesh.wait_ready(limit).await?;
    let mut events = events::follow(mesh).await;
    print!("{}", report::addresses(mesh));
    println!("\nready; try");
    for line in report::curl_lines(mesh) {
        println!("  {line}");
    }
    println!("\nedit {} to change it; Ctrl-C ends it", mesh.config_dir().display());
    while let Some(event) = events.recv().await {
        eprintln!("weft: {event}");
    }
    Ok(())
}
