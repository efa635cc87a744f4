//! `weft test`: unit tests of a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::token::Output;
use crate::test::{Outcome, run};

/// Runs the tests that are written beside a configuration: connections and requests, and which way they shall take or who lets them in
#[derive(Args, Debug)]
pub struct TestArgs {
    /// The directory of YAML that describes the mesh, or one file
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Where the tests are, if not beside the configuration; may be repeated
    #[arg(long, value_name = "DIR")]
    tests: Vec<PathBuf>,
    /// Show for each case what the proxy would do
    #[arg(long)]
    verbose: bool,
    /// How the outcomes are printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints the outcomes. Exit code 1: a case failed.
pub(super) fn main(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let world = crate::configuration::read(&args.dir)?;
    let directories = if args.tests.is_empty() { std::slice::from_ref(&args.dir) } else { &args.tests };
    let outcomes = run(&world, directories)?;
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    match args.output {
        Output::Json => println!("{}", serde_json::json!({"cases": outcomes, "failed": failed})),
        Output::Text => {
            outcomes.iter().for_each(|outcome| print(outcome, args.verbose));
            println!("{} passed, {failed} failed", outcomes.len() - failed);
        }
    }
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(outcome: &Outcome, verbose: bool) {
    let Outcome { file, test, case, failures, found } = outcome;
    println!("{} {test}: {case}", if failures.is_empty() { "ok  " } else { "FAIL" });
    for failure in failures {
        println!("       {failure}");
    }
    if !failures.is_empty() {
        println!("       in {file}");
    }
    if verbose || !failures.is_empty() && !found.is_null() {
        println!("       found {found}");
    }
}
