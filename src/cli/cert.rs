//! `weft cert`: certificates of the mesh for programs that are no part of it.

use clap::Subcommand;
use weft_proxy::agent::{FetchArgs, fetch};

/// Gets certificates of the mesh
#[derive(Subcommand, Debug)]
pub enum CertCommand {
    /// Gets a certificate of the mesh and writes it, its key and the roots to files; with --watch it keeps them fresh
    Fetch(FetchArgs),
}

pub(super) fn main(command: CertCommand) -> anyhow::Result<()> {
    let CertCommand::Fetch(args) = command;
    fetch(&args)
}
