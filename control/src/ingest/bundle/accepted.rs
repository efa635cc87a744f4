//! Which signed configuration was taken last: an older one is not taken again, though its signature is still good. Whoever kept an old
//! bundle, or took it from somewhere, cannot bring back with it what was put right since. And the last one itself, for a start that finds
//! nothing good.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{BundleError, Verified, VerifyingKey, verify};

/// Its file in the state directory.
const FILE: &str = "accepted-configuration.json";
/// And that of what was taken, as a bundle.
const BUNDLE: &str = "accepted-configuration.bundle";

/// So much later than now by the clock here something may have been made.
const AHEAD: time::Duration = time::Duration::DAY;

/// What was taken last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    revision: String,
    created: String,
    digest: String,
}

/// It, and the whole of it.
#[derive(Debug)]
struct Taken {
    accepted: Accepted,
    bundle: Result<String, BundleError>,
}

/// Remembers what was taken. Cloning it shares it.
#[derive(Clone, Debug)]
pub struct Memory {
    directory: PathBuf,
    /// What was taken while nothing is started yet; none once everything is.
    waits: Arc<Mutex<Option<Option<Taken>>>>,
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
                "{}: {why}; it says which configuration was taken last, so nobody knows whether this one is older: if it is right, take the file away, or \
                 start with --config-allow-older",
                path.display()
            )
        };
        let last = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice::<Accepted>(&bytes).map_err(|error| damaged(&error)).map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(damaged(&error)),
        };
        // What was taken before is taken again, whatever the clock says by now.
        if last.as_ref().is_ok_and(|last| last.as_ref().is_some_and(|last| last.digest == new.digest)) {
            return Ok(());
        }
        let made = OffsetDateTime::parse(&new.created, &Rfc3339).map_err(|_| {
            format!("it was made at {:?}, which is no time (RFC 3339): sign it again", new.created)
        })?;
        let now = OffsetDateTime::now_utc();
        if made - now > AHEAD && !self.older {
            return Err(format!(
                "it was made at {}, and the clock here says {}: taken, it would have everything refused that is made before that time. Set the \
                 clock right that is wrong, here or where it was signed, and sign it again in the latter case; or start with --config-allow-older",
                new.created,
                now.format(&Rfc3339).unwrap_or_default()
            ));
        }
        let last = last.and_then(|last| {
            let Some(last) = last else { return Ok(None) };
            let before = OffsetDateTime::parse(&last.created, &Rfc3339).map_err(|error| damaged(&error))?;
            Ok(Some((last, before)))
        });
        let (last, before) = match last {
            Ok(Some(last)) => last,
            Ok(None) => return Ok(()),
            Err(why) if self.older => {
                tracing::warn!(
                    revision = new.revision,
                    "configuration is taken though nobody knows whether it is older than the last (--config-allow-older): {why}"
                );
                return Ok(());
            }
            Err(why) => return Err(why),
        };
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

    /// What was taken last, if its signature counts still, and where it is kept. None where nothing is kept.
    ///
    /// # Errors
    /// It is damaged, nobody who counts has signed it, or something else was taken since.
    pub fn last(&self, keys: &[VerifyingKey]) -> Option<(PathBuf, Result<Verified, String>)> {
        let path = self.directory.join(BUNDLE);
        if !path.exists() {
            return None;
        }
        let last = verify(&path, keys).map_err(|error| error.to_string()).and_then(|last| {
            // The word about it may be damaged itself. What it says otherwise holds: that this one is not the last.
            let damaged = |path: &Path| {
                let text = std::fs::read(path);
                text.is_ok_and(|text| serde_json::from_slice::<Accepted>(&text).is_err())
            };
            if !damaged(&self.path()) {
                self.check(&last)?;
            }
            Ok(last)
        });
        Some((path, last))
    }

    /// Whole or not at all, also where the power goes.
    fn write(&self, file: &str, text: &str) -> std::io::Result<()> {
        let partial = self.directory.join(format!(".{file}.partial"));
        let mut out = std::fs::File::create(&partial)?;
        let written = out.write_all(text.as_bytes()).and_then(|()| out.sync_all());
        if let Err(error) = written.and_then(|()| std::fs::rename(&partial, self.directory.join(file))) {
            // A half would take the room that the word about it needs.
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
        std::fs::File::open(&self.directory)?.sync_all()
    }

    /// It was taken.
    pub fn took(&self, new: &Verified) {
        let Verified { revision, created, digest, .. } = new;
        let accepted =
            Accepted { revision: revision.clone(), created: created.clone(), digest: digest.clone() };
        let taken = Taken { accepted, bundle: new.bundle() };
        match &mut *self.waits.lock() {
            Some(waiting) => *waiting = Some(taken),
            None => self.keep(&taken),
        }
    }

    fn keep(&self, taken: &Taken) {
        let known = std::fs::read(self.path()).ok();
        let known = known.and_then(|text| serde_json::from_slice::<Accepted>(&text).ok());
        // The word may be right beside something else: it may have been written when there was no room for the whole, or that was
        // damaged since.
        let whole = || std::fs::read_to_string(self.directory.join(BUNDLE)).ok();
        if known.as_ref() == Some(&taken.accepted)
            && taken.bundle.as_ref().is_ok_and(|text| whole().as_ref() == Some(text))
        {
            return;
        }
        // It before the word about it: the other way round an older one would be kept as the last.
        let kept = match &taken.bundle {
            Ok(text) => self.write(BUNDLE, text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            tracing::error!(
                file = %self.directory.join(BUNDLE).display(), error,
                "the configuration that was taken cannot be kept: a start that finds nothing good has nothing to go on with"
            );
        }
        let written = serde_json::to_string_pretty(&taken.accepted).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| self.write(FILE, &text)) {
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
            signatures: Vec::new(),
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
        let four = made("v4", "2026-01-02T03:04:07Z");
        assert!(memory.check(&four).unwrap_err().contains("take the file away"));
        // Whoever wants to go back gets another file in its place.
        let back = Memory::new(directory.path(), true);
        back.begin();
        back.check(&four).unwrap();
        back.took(&four);
        assert!(memory.check(&one).unwrap_err().contains("\"v4\""));
    }

    #[test]
    fn a_time_that_is_none_or_is_far_ahead_is_refused_by_who_remembers_nothing_too() {
        let directory = tempfile::tempdir().unwrap();
        let (memory, back) = (Memory::new(directory.path(), false), Memory::new(directory.path(), true));
        assert!(memory.check(&made("v1", "yesterday")).unwrap_err().contains("no time"));
        assert!(back.check(&made("v1", "yesterday")).is_err());
        let ahead = |hours: i64| {
            let at = OffsetDateTime::now_utc() + time::Duration::hours(hours);
            made("v2", &at.format(&Rfc3339).unwrap())
        };
        memory.check(&ahead(23)).unwrap();
        assert!(memory.check(&ahead(25)).unwrap_err().contains("the clock here says"));
        let taken = ahead(1000);
        back.check(&taken).unwrap();
        back.begin();
        back.took(&taken);
        memory.check(&taken).unwrap();
    }
}
