//! `weft token create`: a token for a workload that runs elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use weft_control::ca::token::{AUDIENCE, create_for};

/// Makes tokens
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Makes a token with which a proxy elsewhere gets its certificate (its --token-file)
    Create(CreateArgs),
}

/// How a token is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    /// The token alone, on one line.
    Text,
    /// An object with the token and what it is good for.
    Json,
}

/// Makes a token
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The control plane's state directory, which holds the signing key
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The workload's namespace
    #[arg(long)]
    namespace: String,
    /// The workload's service account
    #[arg(long)]
    service_account: String,
    /// How long the token is good for, such as 30m, 1h or 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = super::parse_duration)]
    ttl: Duration,
    /// The token gets one certificate, and is refused after that; the certificate gets its successors
    #[arg(long)]
    once: bool,
    /// How the token is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn main(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    let token = create_for(&args.state_dir, &args.namespace, &args.service_account, args.ttl, args.once)
        .with_context(|| {
            format!(
                "no token could be made; is {} the directory that the control plane has as its --state-dir?",
                args.state_dir.display()
            )
        })?;
    match args.output {
        Output::Text => println!("{token}"),
        Output::Json => println!(
            "{}",
            serde_json::json!({
                "token": token,
                "namespace": args.namespace,
                "serviceAccount": args.service_account,
                "audience": AUDIENCE,
                "expiresInSeconds": args.ttl.as_secs(),
            })
        ),
    }
    Ok(())
}
