//! `weft-proxy`: the slim binary of the data plane; the same as `weft proxy`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_proxy::agent::{RequestArgs, WaitArgs, request, wait};
use weft_proxy::app::{ProxyArgs, main as run};
use weft_proxy::capture::{InitArgs, main as init};

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Weft's proxy: takes the place of Envoy
#[derive(Parser, Debug)]
#[command(name = "weft-proxy", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Has the kernel send a pod's connections to its sidecar: installs the redirection in this network namespace
    Init(Box<InitArgs>),
    /// Waits until the proxy in this pod is ready; as its postStart hook it holds the application back until then
    Wait(WaitArgs),
    /// Asks the proxy in this pod, such as POST /drain, for hooks that have no HTTP client
    Request(RequestArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Init(args)) => init(&args),
        Some(Command::Wait(args)) => wait(&args),
        Some(Command::Request(args)) => request(&args),
        None => run(cli.proxy),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_needs_no_word_and_init_is_one() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("weft-proxy --concurrency 2").is_ok_and(|cli| cli.command.is_none()));
        assert!(parse("weft-proxy init -b 80 --dry-run").is_ok_and(|cli| cli.command.is_some()));
        assert!(parse("weft-proxy wait --timeoutSeconds 3 --periodMillis 50").is_ok());
        assert!(parse("weft-proxy request --port 15020 POST /drain").is_ok());
        assert!(parse("weft-proxy --concurrency 2 init").is_err(), "flags of a proxy would do nothing");
    }
}
