//! The token file of each proxy, as Kubernetes keeps one in each pod: short-lived, and renewed while the mesh runs.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::files::RunDir;
use super::plan::Workload;

const LIFETIME: Duration = Duration::from_secs(3600);

/// Renews tokens until dropped.
pub(super) struct Renewal(tokio::task::JoinHandle<()>);

struct Subject {
    file: PathBuf,
    namespace: String,
    service_account: String,
}

impl Renewal {
    /// Writes all tokens, and does it again at half of their life.
    pub(super) fn start(state_dir: &Path, files: &RunDir, workloads: &[Workload]) -> anyhow::Result<Self> {
        let subjects: Vec<_> = workloads
            .iter()
            .map(|w| Subject {
                file: files.token(&w.id),
                namespace: w.namespace.clone(),
                service_account: w.service_account.clone(),
            })
            .collect();
        let state_dir = state_dir.to_owned();
        write_all(&state_dir, &subjects)?;
        Ok(Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LIFETIME / 2).await;
                if let Err(error) = write_all(&state_dir, &subjects) {
                    eprintln!("weft: the proxies' tokens cannot be renewed: {error:#}");
                }
            }
        })))
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn write_all(state_dir: &Path, subjects: &[Subject]) -> anyhow::Result<()> {
    for subject in subjects {
        let token = weft_control::ca::token::create(
            state_dir,
            &subject.namespace,
            &subject.service_account,
            LIFETIME,
        )?;
        // In one step: a proxy may read it at any moment.
        let new = subject.file.with_extension("new");
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut f| f.write_all(token.as_bytes()))
            .and_then(|()| std::fs::rename(&new, &subject.file))
            .with_context(|| format!("cannot write {}", subject.file.display()))?;
    }
    Ok(())
}
