//! `weft-proxy`: the slim binary of the data plane; the same as `weft proxy`.

use std::process::ExitCode;

use clap::Parser;
use weft_proxy::app::{ProxyArgs, main as run};

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's proxy: takes the place of Envoy
#[derive(Parser, Debug)]
#[command(name = "weft-proxy", version)]
struct Cli {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> ExitCode {
    match run(Cli::parse().proxy) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
