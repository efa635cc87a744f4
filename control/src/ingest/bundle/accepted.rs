//! Which signed configuration was taken last: an older one is not taken again, though its signature is still good. Whoever kept an old
//! bundle, or took it from somewhere, cannot bring back with it what was put right since.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Verified;

/// Its file in the state directory.
const FILE: &str = "accepted-configuration.json";

/// What was taken last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    revision: String,
    created: String,
    digest: String,
}

/// Remembers what was taken. Cloning it shares it.
#[derive(Clone, Debug)]
pub struct Memory {
    directory: PathBuf,
    /// What was taken while nothing is started yet; none once everything is.
    waits: Arc<Mutex<Option<Option<Accepted>>>>,
    /// An older one is taken as well; once it was, those between them are newer.
    older: bool,
}

impl Memory {
    /// In this state directory. `older`: whoever runs the control plane wants to go back.
    pub fn new(directory: &Path, older: bool) -> Self {
        Self { directory: directory.to_owned(), waits: Arc::new(Mutex::new(Some(None))), older }
    }

    /// The directory is whoever's started now: what was taken before is written down, and from now on at once.
    pub fn begin(&self) {
        let mut waits = self.waits.lock();
        if let Some(Some(taken)) = waits.take() {
            self.keep(&taken);
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Whether this may be taken after what was taken last.
    ///
    /// # Errors
    /// It is older, or nobody can tell.
    pub fn check(&self, new: &Verified) -> Result<(), String> {
        let path = self.path();
        let damaged = |why: &dyn std::fmt::Display| {
            format!(
                "{}: {why}; it says which configuration was taken last, so nobody knows whether this one is older: if it is right, take the file away",
                path.display()
            )
        };
        let last: Accepted = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(damaged(&error)),
        };
        if last.digest == new.digest {
            return Ok(());
        }
        let made = OffsetDateTime::parse(&new.created, &Rfc3339).map_err(|_| {
            format!("it was made at {:?}, which is no time (RFC 3339): sign it again", new.created)
        })?;
        let before = OffsetDateTime::parse(&last.created, &Rfc3339).map_err(|error| damaged(&error))?;
        if made >= before {
            return Ok(());
        }
        if self.older {
            tracing::warn!(
                revision = new.revision,
                created = new.created,
                last = last.created,
                "configuration that is older than the last is taken (--config-allow-older)"
            );
            return Ok(());
        }
        Err(format!(
            "it was made at {} ({:?}), and the one that was taken last at {} ({:?}): an older one is not taken again. To go back sign its files anew \
             (weft bundle create), or start with --config-allow-older",
            new.created, new.revision, last.created, last.revision
        ))
    }

    /// Whole or not at all, also where the power goes.
    fn write(&self, text: &str) -> std::io::Result<()> {
        let partial = self.directory.join(format!(".{FILE}.partial"));
        let mut out = std::fs::File::create(&partial)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&partial, self.path())?;
        std::fs::File::open(&self.directory)?.sync_all()
    }

    /// It was taken.
    pub fn took(&self, new: &Verified) {
        let Verified { revision, created, digest, .. } = new.clone();
        let taken = Accepted { revision, created, digest };
        match &mut *self.waits.lock() {
            Some(waiting) => *waiting = Some(taken),
            None => self.keep(&taken),
        }
    }

    fn keep(&self, taken: &Accepted) {
        let written = serde_json::to_string_pretty(taken).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| self.write(&text)) {
            tracing::error!(
                file = %self.path().display(), %error,
                "which configuration was taken cannot be written down: an older one might be taken after it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(revision: &str, created: &str) -> Verified {
        Verified {
            revision: revision.to_owned(),
            created: created.to_owned(),
            digest: format!("sha256:{revision}"),
            key: "k".to_owned(),
            files: Default::default(),
        }
    }

    #[test]
    fn what_is_older_than_the_last_is_not_taken_unless_somebody_wants_to_go_back() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::new(directory.path(), false);
        let (one, two) = (made("v1", "2026-01-02T03:04:05Z"), made("v2", "2026-01-02T04:04:05+01:00"));
        memory.check(&two).unwrap();
        memory.took(&two);
        // Until everything is started the directory is not touched: it may be about to become an authority's.
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
        memory.begin();
        assert!(directory.path().join(FILE).exists());
        // The same time in another zone is no earlier one; and the same again is not older.
        memory.check(&one).unwrap();
        memory.took(&made("v3", "2026-01-02T03:04:06Z"));
        let error = memory.check(&one).unwrap_err();
        assert!(
            error.contains("\"v1\"") && error.contains("\"v3\"") && error.contains("--config-allow-older"),
            "{error}"
        );
        memory.check(&made("v3", "2026-01-02T03:04:06Z")).unwrap();
        memory.check(&made("v4", "2026-01-02T03:04:07Z")).unwrap();
        assert!(memory.check(&made("v5", "yesterday")).unwrap_err().contains("no time"));
        Memory::new(directory.path(), true).check(&one).unwrap();
        // Another start knows it still; what is damaged lets nothing in.
        assert!(Memory::new(directory.path(), false).check(&one).is_err());
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(
            memory.check(&made("v4", "2026-01-02T03:04:07Z")).unwrap_err().contains("take the file away")
        );
    }
}
