//! `weft-control`: the slim binary of the control plane; the same as `weft control`.

use std::process::ExitCode;

use clap::Parser;
use weft_control::app::{ControlArgs, main as run};

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's control plane: takes the place of istiod
#[derive(Parser, Debug)]
#[command(name = "weft-control", version)]
struct Cli {
    #[command(flatten)]
    control: ControlArgs,
}

fn main() -> ExitCode {
    match run(Cli::parse().control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}
