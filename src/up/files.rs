//! The directory of one run: logs, tokens, the private copy of the configuration.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::process::Part;

/// A run's directory. One that we made ourselves is removed again, unless there are logs that somebody may want to read.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    ours: bool,
    keep: bool,
}

impl RunDir {
    /// Uses `given`, or makes a new one among the machine's temporary files. Only this user can look into it: tokens and keys
    /// are there.
    pub(super) fn make(given: Option<&Path>) -> anyhow::Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!(
                "weft-{}-{:06x}",
                std::process::id(),
                fastrand::u32(..0x100_0000)
            )),
        };
        let make = |p: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(p)
                .with_context(|| format!("cannot make {}", p.display()))
        };
        make(&path.join("logs"))?;
        make(&path.join("tokens"))?;
        // Children have their own ideas of where they are.
        let path = path.canonicalize()?;
        Ok(Self { path, ours: given.is_none(), keep: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(super) fn log(&self, part: &Part) -> PathBuf {
        self.logs().join(part.log_name())
    }

    pub(super) fn token(&self, workload: &str) -> PathBuf {
        self.path.join("tokens").join(workload)
    }

    /// Where a workload's proxy keeps what it starts from again.
    pub(super) fn state(&self, workload: &str) -> PathBuf {
        self.path.join("proxies").join(workload)
    }

    /// Whether the directory stays when this is dropped: it does from the first process on, until a clean end.
    pub(super) fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// The directory stays, however the run ends.
    pub(super) fn stay(&mut self) {
        self.ours = false;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.ours && !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
