//! Where commands read a mesh from: a directory of YAML, or the Kubernetes API of a cluster.

mod cluster;

use std::path::Path;

use weft_control::ingest::{LoadOutcome, load_dir};
use weft_control::model::World;

pub use cluster::ClusterArgs;

/// The state that a directory describes. Warnings are not looked at.
///
/// # Errors
/// What is wrong with it, line by line.
pub fn read(dir: &Path) -> anyhow::Result<World> {
    accepted(load_dir(dir), &dir.display().to_string())
}

/// The state that was read from `what`.
///
/// # Errors
/// What is wrong with it, line by line.
pub fn accepted(outcome: LoadOutcome, what: &str) -> anyhow::Result<World> {
    outcome.into_result().map_err(|diagnostics| {
        let errors: Vec<_> = diagnostics.iter().filter(|d| d.is_error()).map(ToString::to_string).collect();
        anyhow::anyhow!("{what} is refused:\n{}", errors.join("\n"))
    })
}
