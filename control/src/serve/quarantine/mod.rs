//! Quarantines: where they are written, by whom they are asked for, and how they are told.
//!
//! [`Store`] writes the object into the configuration's directory, or into the cluster, from where it comes back as any other
//! change does; `weft quarantine` uses it, too. [`http`] is what a responder calls. [`tell`] follows the states, so that each
//! quarantine is an event whoever wrote it.

pub mod http;
mod store;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;
use weft_events::{Event, Kind, Outcome, Severity, emit};

pub use store::{Done, Store, Wrong, find, given, lift_unread, reaches};

use crate::ingest::Snapshot;
use crate::model::quarantine::Quarantine;

/// The flags.
#[derive(Args, Debug, Default)]
pub struct QuarantineArgs {
    /// Let who knows the token in this file put workloads under quarantine: POST /quarantine at the debug port (docs/quarantine.md).
    /// The file is read anew for each request
    #[arg(long, value_name = "FILE")]
    pub quarantine_token_file: Option<PathBuf>,
}

/// Tells of each quarantine that comes or goes.
pub async fn tell(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let now = |snapshots: &mut watch::Receiver<Arc<Snapshot>>| -> BTreeSet<Quarantine> {
        let world = snapshots.borrow_and_update().world.clone();
        world.quarantines().into_iter().map(|one| Quarantine { source: String::new(), ..one }).collect()
    };
    let mut before = BTreeSet::new();
    loop {
        let after = now(&mut snapshots);
        let is_in = |all: &BTreeSet<Quarantine>, one: &Quarantine| {
            all.iter().any(|other| (&other.namespace, &other.name) == (&one.namespace, &one.name))
        };
        for one in after.iter().filter(|one| !is_in(&before, one)) {
            tell_one(one, "quarantine", "is under quarantine");
        }
        for one in before.iter().filter(|one| !is_in(&after, one)) {
            tell_one(one, "release", "is released from quarantine");
        }
        before = after;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn tell_one(one: &Quarantine, operation: &str, words: &str) {
    let target = format!("{}/{}", one.namespace, one.name);
    tracing::warn!(workload = %target, reason = one.reason, by = one.actor, "a workload {words}");
    emit(Kind::Quarantine, || {
        Event::new(
            Kind::Quarantine,
            Outcome::Ok,
            Severity::High,
            "configuration",
            format!("{target} {words}"),
        )
        .with("operation", operation)
        .with("target", target.as_str())
        .with("actor", one.actor.as_str())
        .with("reason", one.reason.as_str())
        .with("command_id", one.policy.as_str())
    });
}
