//! `weft-gateway`: a proxy at the edge of the mesh; the same as `weft proxy --role gateway`.

use std::process::ExitCode;

use clap::Parser;
use weft_proxy::app::{ProxyArgs, main as run};
use weft_proxy::bootstrap::RoleArg;

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's gateway: a proxy at the edge of the mesh
#[derive(Parser, Debug)]
#[command(name = "weft-gateway", version)]
struct Cli {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> ExitCode {
    let mut proxy = Cli::parse().proxy;
    proxy.node.role = RoleArg::Gateway;
    match run(proxy) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
