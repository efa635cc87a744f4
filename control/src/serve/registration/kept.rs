//! Entries of a mesh in a directory over a restart of the control plane: a file of the state directory, written whenever they change.
//!
//! It is written behind what it says, so that no proxy waits for a disk: what was entered in the last moment before a crash may be
//! missing, and its proxy enters it anew.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::memory::Entered;
use crate::model::meta::{Meta, Source};
use crate::model::service_entry::WorkloadEntry;
use crate::model::workload_group::GROUP_ANNOTATION;
use crate::model::{Kind, Labels, Object};

/// Its name.
const FILE: &str = "workload-entries.json";

/// An entry as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    namespace: String,
    name: String,
    #[serde(default)]
    labels: Labels,
    annotations: Labels,
    spec: WorkloadEntry,
    unhealthy: bool,
}

/// The file of a state directory.
pub(super) fn file(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// What was entered when it was written. A file that is damaged is told and put aside: its proxies enter themselves anew.
pub(super) fn read(path: &Path) -> Vec<Object<WorkloadEntry>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(
                file = %path.display(), %error,
                "the workloads that had entered themselves cannot be read: each is there again when its proxy comes back"
            );
            return Vec::new();
        }
    };
    let kept: Result<Vec<Kept>, String> = serde_json::from_slice(&text).map_err(|error| error.to_string());
    let whole =
        kept.and_then(|all| match all.iter().find(|one| !one.annotations.contains_key(GROUP_ANNOTATION)) {
            Some(one) => Err(format!("{}/{} says no group ({GROUP_ANNOTATION})", one.namespace, one.name)),
            None => Ok(all),
        });
    match whole {
        Ok(all) => all.into_iter().map(|one| object(one, path)).collect(),
        Err(error) => {
            let aside = path.with_extension("damaged");
            // What cannot be put aside is written over by the next change.
            let aside = std::fs::rename(path, &aside).map_or(path, |()| &aside);
            tracing::error!(
                file = %aside.display(), error,
                "the workloads that had entered themselves are not known, for the file is damaged: each is there again when its proxy \
                 comes back"
            );
            Vec::new()
        }
    }
}

fn object(one: Kept, path: &Path) -> Object<WorkloadEntry> {
    let Kept { namespace, name, labels, annotations, mut spec, unhealthy } = one;
    spec.unhealthy = unhealthy;
    let meta = Meta {
        kind: Kind::WorkloadEntry,
        api_version: "networking.istio.io/v1".to_owned(),
        namespace,
        name,
        labels,
        annotations,
        created: None,
        source: Source { file: path.display().to_string().into(), line: 0, position: u32::MAX },
        version: 0,
    };
    Object { meta, spec }
}

/// Writes what is entered whenever it changes.
pub(super) async fn write(path: PathBuf, mut entered: watch::Receiver<Arc<Entered>>) {
    let mut failed = false;
    while entered.changed().await.is_ok() {
        let (all, path) = (entered.borrow_and_update().clone(), path.clone());
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write_once(&path, &all)).await;
        match written.map_err(std::io::Error::other).flatten() {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                failed = true;
                tracing::error!(
                    file = shown, %error,
                    "which workloads have entered themselves cannot be written down: after a restart each is missing until its proxy comes back"
                );
            }
            Err(_) => {}
        }
    }
}

/// Whole or not at all, also where the power goes.
fn write_once(path: &Path, entered: &Entered) -> std::io::Result<()> {
    let one = |entry: &Arc<Object<WorkloadEntry>>| {
        let Object { meta, spec } = &**entry;
        Kept {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            labels: meta.labels.clone(),
            annotations: meta.annotations.clone(),
            spec: spec.clone(),
            unhealthy: spec.unhealthy,
        }
    };
    let text = serde_json::to_vec_pretty(&entered.iter().map(one).collect::<Vec<_>>())?;
    let partial = path.with_extension("partial");
    let mut out = std::fs::File::create(&partial)?;
    out.write_all(&text)?;
    out.sync_all()?;
    std::fs::rename(&partial, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
