//! Where configuration is read: a directory, one that must be signed, or a bundle.

use std::path::{Path, PathBuf};

use super::bundle::{self, Memory, SIGNATURE, Verified, VerifyingKey};
use super::diagnostic::Diagnostic;
use super::load::{LoadOutcome, list_files, load_dir, load_texts};

/// Where it is, and whose signature it needs.
#[derive(Clone, Debug)]
pub struct Source {
    /// A directory, or a bundle.
    path: PathBuf,
    is_bundle: bool,
    /// Files of the keys that count; none: no signature is asked for.
    keys: Vec<PathBuf>,
    /// What was taken last, where that is remembered.
    memory: Option<Memory>,
}

impl Source {
    /// A directory. Where there are keys, it has to be signed by one of them.
    pub fn directory(path: &Path, keys: &[PathBuf]) -> Self {
        Self { path: path.to_owned(), is_bundle: false, keys: keys.to_owned(), memory: None }
    }

    /// A bundle that is signed by one of these keys.
    pub fn bundle(path: &Path, keys: &[PathBuf]) -> Self {
        Self { path: path.to_owned(), is_bundle: true, keys: keys.to_owned(), memory: None }
    }

    /// What needs a signature must not be older than what was taken last.
    #[must_use]
    pub fn remembering(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changes are looked for in, and whether below that, too.
    pub(super) fn watched(&self) -> (&Path, bool) {
        match self.path.parent() {
            // A file that replaces another is not found by watching the other.
            Some(parent) if self.is_bundle && parent.as_os_str().is_empty() => (Path::new("."), false),
            Some(parent) if self.is_bundle => (parent, false),
            _ => (&self.path, true),
        }
    }

    /// The files that it is made of.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        if self.is_bundle {
            return vec![self.path.clone()];
        }
        let mut files = list_files(&self.path).unwrap_or_default();
        if !self.keys.is_empty() && !files.is_empty() {
            files.push(self.path.join(SIGNATURE));
        }
        files
    }

    /// Reads it.
    pub fn load(&self) -> LoadOutcome {
        if self.keys.is_empty() && !self.is_bundle {
            return load_dir(&self.path);
        }
        let refused = |(why, help): (String, &'static str)| {
            let label = self.path.display().to_string();
            let diagnostics = vec![Diagnostic::file_error(&label, why, help)];
            LoadOutcome { world: None, diagnostics, skipped: Vec::new() }
        };
        let verified = match self.verified() {
            Ok(verified) => verified,
            Err(error) => return refused(error),
        };
        let Verified { revision, created, digest, key, .. } = &verified;
        tracing::info!(revision, created, digest, key, "the signature of the configuration is good");
        if let Some(memory) = &self.memory
            && let Err(why) = memory.check(&verified)
        {
            return refused((why, "nothing of it is taken; docs/bundles.md tells how to go back"));
        }
        let label = |path: String| self.path.join(path).display().to_string();
        // What is taken is kept whole.
        let files = verified.files.clone();
        let files: Vec<_> = files.into_iter().map(|(path, text)| (label(path), text)).collect();
        let outcome = load_texts(&files);
        if let (Some(memory), Some(_)) = (&self.memory, &outcome.world) {
            memory.took(&verified);
        }
        outcome
    }

    /// What was taken last, for a start that finds nothing good (`refused`): none where nothing of it is kept, or that is no good either.
    pub(super) fn last(&self, refused: &mut LoadOutcome) -> Option<LoadOutcome> {
        let memory = self.memory.as_ref().filter(|_| !self.keys.is_empty())?;
        let keys: Result<Vec<_>, _> = self.keys.iter().map(|key| VerifyingKey::open(key)).collect();
        let (path, last) = memory.last(&keys.ok()?)?;
        let kept = path.display().to_string();
        let no_good = |why: String| {
            let help = "it is what was taken last, and would have been gone on with";
            Diagnostic::file_error(&kept, why, help)
        };
        let last = match last {
            Ok(last) => last,
            Err(why) => {
                refused.diagnostics.push(no_good(why));
                return None;
            }
        };
        let Verified { revision, created, files, .. } = last;
        let files: Vec<_> = files.into_iter().map(|(file, text)| (format!("{kept}/{file}"), text)).collect();
        let outcome = load_texts(&files);
        if outcome.world.is_none() {
            // Another version of Weft has taken it.
            refused.diagnostics.extend(outcome.diagnostics);
            return None;
        }
        tracing::warn!(
            revision,
            created,
            kept,
            "the configuration is refused, as the log says, and the control plane goes on with what was taken last"
        );
        Some(outcome)
    }

    /// The keys are read again each time: one follows another without a restart.
    fn verified(&self) -> Result<Verified, (String, &'static str)> {
        let keys: Result<Vec<_>, _> = self.keys.iter().map(|key| VerifyingKey::open(key)).collect();
        let keys =
            keys.map_err(|error| (format!("--config-key {error}"), "give public keys of Ed25519, PEM"))?;
        bundle::verify(&self.path, &keys).map_err(|error| {
            (error.to_string(), "nothing of it is taken; weft bundle verify says the same of it")
        })
    }
}
