//! What happens to a running mesh and is worth a line to its operator: processes that died, edits that were taken or refused.

use tokio::sync::mpsc;
use weft_control::ingest::{Diagnostic, Watcher};

use super::mesh::Mesh;

/// Follows a mesh's deaths and edits until the receiver is dropped; each event is one or more lines of text.
pub async fn follow(mesh: &mut Mesh) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    if let Some(mut deaths) = mesh.deaths() {
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(death) = deaths.recv().await {
                if sender.send(format!("{death}\nit is started again")).is_err() {
                    return;
                }
            }
        });
    }
    // The control plane reads the same files by the same code; what it says of them stands in its log only.
    let watcher = match Watcher::start(mesh.config_dir()).await {
        Ok(watcher) => watcher,
        Err(outcome) => {
            let errors: Vec<_> = outcome.errors().map(Diagnostic::to_string).collect();
            // The receiver is still ours.
            let _ = sender.send(format!("edits are not followed here:\n{}", errors.join("\n")));
            return receiver;
        }
    };
    tokio::spawn(async move {
        let mut snapshots = watcher.subscribe();
        let mut generation = snapshots.borrow_and_update().generation;
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let snapshot = snapshots.borrow_and_update().clone();
            let text = if snapshot.refused {
                let errors: Vec<_> =
                    snapshot.diagnostics.iter().filter(|d| d.is_error()).map(Diagnostic::to_string).collect();
                format!("the edit is refused, the last good state stays:\n{}", errors.join("\n"))
            } else if snapshot.generation != generation {
                "the edit is taken".to_owned()
            } else {
                continue;
            };
            generation = snapshot.generation;
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}
