//! The end: when it is asked for, and how a mesh comes to it.

use tokio::signal::unix::{SignalKind, signal};

use super::mesh::Mesh;

/// Ends a mesh in order; being told again kills what is left.
pub(crate) async fn finish(mesh: Mesh, end: &mut Ending) -> anyhow::Result<()> {
    eprintln!("ending: proxies drain, then applications and the control plane end (again Ctrl-C: at once)");
    let run_dir = mesh.run_dir().to_owned();
    let result = tokio::select! {
        result = mesh.shutdown() => result,
        () = end.told() => Ok(()),
    };
    if run_dir.exists() {
        eprintln!("logs are in {}", run_dir.join("logs").display());
    }
    result
}

/// Hears that the program should end: Ctrl-C, or SIGTERM, or the terminal going away.
pub(crate) struct Ending([tokio::signal::unix::Signal; 3]);

impl Ending {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    pub(crate) async fn told(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
