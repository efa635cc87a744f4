//! The authority's state: root, intermediate and the token key. The root's key may be elsewhere ([`super::root`]). On disk it is a directory of files that only the owner can
//! read, each replaced in one step, with a list of checksums: a damaged store is refused, never half used. What changes
//! several files is first written whole into one, the journal, and from there into its places; whoever finds a journal
//! finishes that work, so that a change is either not there or whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use weft_certs::authority::{Authority, AuthorityError, KeyKind};
use zeroize::Zeroizing;

use super::ledger::Ledger;
use super::root::Root;

/// File of the trusted roots' certificates, the issuing one first; the one file of the store that is made to be handed out.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
/// File of the root's key; not there where it is kept elsewhere.
pub const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE_CERTIFICATE: &str = "intermediate-cert.pem";
const INTERMEDIATE_KEY: &str = "intermediate-key.pem";
/// File of the key that signs tokens.
pub const TOKEN_KEY: &str = "token-key.pem";
const CHECKSUMS: &str = "checksums.json";
/// File of what the authority remembers beside its keys. Stores of earlier versions have none.
const LEDGER: &str = "ledger.json";
const JOURNAL: &str = "journal.json";
const LOCK: &str = "lock";
const FILES: [&str; 4] = [ROOT_CERTIFICATE, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, TOKEN_KEY];

/// A store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("certificate authority state: {path}: {source}; check the directory's owner and free space")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is missing or is not what was written.
    #[error(
        "certificate authority state: {path} {what}. The control plane does not start on a damaged store, because a new \
         root would be trusted by nobody: restore the directory from its backup, or, if no workload holds a certificate \
         of it any more, move the directory away"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What changes is written down, and not in its place yet. It counts: the next change or start brings it there.
    #[error(
        "{reason}. The change is made all the same: it is written down in {path}, and the next change or start of the \
         control plane puts it in its place"
    )]
    Unfinished {
        /// The journal.
        path: PathBuf,
        /// Why.
        reason: Box<StoreError>,
    },
    /// Keys or certificates could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Key kinds and lifetimes of the authorities.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The root's key.
    pub root_key: KeyKind,
    /// The root's life.
    pub root_life: Duration,
    /// The intermediate's key.
    pub intermediate_key: KeyKind,
    /// The intermediate's life.
    pub intermediate_life: Duration,
}

impl Default for Shape {
    /// Root RSA 4096 for ten years, intermediate RSA 2048 for one.
    fn default() -> Self {
        Self {
            root_key: KeyKind::Rsa4096,
            root_life: Duration::days(3650),
            intermediate_key: KeyKind::Rsa2048,
            intermediate_life: Duration::days(365),
        }
    }
}

/// Root, intermediate and token key.
#[derive(Debug)]
pub struct State {
    /// The root.
    pub root: Root,
    /// What signs workloads.
    pub intermediate: Authority,
    /// The key that signs tokens, as PEM.
    pub token_key: Zeroizing<String>,
    /// Everything else that must outlive the process.
    pub ledger: Ledger,
}

/// Files and their texts, with a checksum over all: a journal, and a backup.
#[derive(Serialize, Deserialize)]
pub(super) struct Bundle {
    pub(super) files: BTreeMap<String, Zeroizing<String>>,
    pub(super) checksum: String,
}

impl Bundle {
    pub(super) fn new(files: BTreeMap<String, Zeroizing<String>>) -> Self {
        Self { checksum: Self::sum(&files), files }
    }

    /// Whether the files are those that were put in.
    pub(super) fn is_whole(&self) -> bool {
        self.checksum == Self::sum(&self.files)
    }

    fn sum(files: &BTreeMap<String, Zeroizing<String>>) -> String {
        let all: String = files.iter().map(|(name, text)| format!("{name} {}\n", checksum(text))).collect();
        checksum(&all)
    }
}

/// Taken by whoever may change a store; given back when dropped, or when the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] std::fs::File);

impl Lock {
    /// Takes the lock of a state directory; none if another process has it.
    pub fn take(directory: &Path) -> Result<Option<Self>, StoreError> {
        let path = directory.join(LOCK);
        let io = |source| StoreError::Io { path: path.clone(), source };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

impl State {
    /// Makes new ones.
    pub fn create(shape: Shape, now: OffsetDateTime) -> Result<Self, StoreError> {
        let root = Authority::root(shape.root_key, now, shape.root_life)?;
        let intermediate = root.intermediate(shape.intermediate_key, now, shape.intermediate_life)?;
        let token_key = Zeroizing::new(super::token::new_key()?);
        Ok(Self { root: root.into(), intermediate, token_key, ledger: Ledger::default() })
    }

    /// Takes up what a directory holds; makes it, if the directory is not there or empty.
    pub fn open(directory: &Path, shape: Shape, now: OffsetDateTime) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: directory.to_owned(), source };
        let empty = match std::fs::read_dir(directory) {
            // Its lock may be there already.
            Ok(entries) => entries.filter_map(Result::ok).all(|e| e.file_name() == LOCK),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
                true
            }
            Err(e) => return Err(io(e)),
        };
        if empty {
            let state = Self::create(shape, now)?;
            state.save(directory)?;
            return Ok(state);
        }
        Self::load(directory)
    }

    /// Takes up what a directory holds. Whoever calls this holds its lock.
    pub fn load(directory: &Path) -> Result<Self, StoreError> {
        finish(directory)?;
        Self::peek(directory)
    }

    /// Drops a change that was cut off, for all of the state is about to be replaced.
    pub(super) fn forget_journal(directory: &Path) -> Result<(), StoreError> {
        remove(&directory.join(JOURNAL))
    }

    /// Reads what a directory holds and changes nothing. While another process changes it, it may be found half way.
    pub fn peek(directory: &Path) -> Result<Self, StoreError> {
        let corrupt = |file: &str, what: &dyn std::fmt::Display| StoreError::Corrupt {
            path: directory.join(file),
            what: what.to_string(),
        };
        let list = read(directory, CHECKSUMS)?;
        let sums: BTreeMap<String, String> = serde_json::from_str(&list)
            .map_err(|e| corrupt(CHECKSUMS, &format!("is not a list of checksums ({e})")))?;
        let mut texts = BTreeMap::new();
        for file in FILES.into_iter().chain(sums.contains_key(LEDGER).then_some(LEDGER)) {
            let text = Zeroizing::new(read(directory, file)?);
            if sums.get(file) != Some(&checksum(&text)) {
                return Err(corrupt(file, &"is not what was written (its checksum differs)"));
            }
            texts.insert(file, text);
        }
        // Whoever takes the root's key away does not damage the rest, and one that is brought back has to belong to the
        // certificate; a file that is not what was written is damage.
        match read(directory, ROOT_KEY) {
            Ok(text) if sums.get(ROOT_KEY).is_none_or(|sum| *sum == checksum(&text)) => {
                texts.insert(ROOT_KEY, Zeroizing::new(text));
            }
            Ok(_) => return Err(corrupt(ROOT_KEY, &"is not what was written (its checksum differs)")),
            Err(StoreError::Corrupt { .. }) if !directory.join(ROOT_KEY).exists() => {}
            Err(error) => return Err(error),
        }
        Self::from_texts(&texts).map_err(|(file, what)| corrupt(file, &what))
    }

    /// The state that these files hold, or the file that cannot be used, and why.
    pub(super) fn from_texts(
        texts: &BTreeMap<&'static str, Zeroizing<String>>,
    ) -> Result<Self, (&'static str, String)> {
        let text = |file: &'static str| texts.get(file).ok_or((file, "is missing".to_owned()));
        let authority = |certificate: &'static str, key: &'static str| {
            Authority::load(text(certificate)?, text(key)?)
                .map_err(|e| (certificate, format!("cannot be used: {e}")))
        };
        let ledger = texts.get(LEDGER).map(|t| serde_json::from_str(t)).transpose();
        Ok(Self {
            root: match texts.contains_key(ROOT_KEY) {
                true => authority(ROOT_CERTIFICATE, ROOT_KEY)?.into(),
                false => Root::offline(text(ROOT_CERTIFICATE)?)
                    .map_err(|e| (ROOT_CERTIFICATE, format!("cannot be used: {e}")))?,
            },
            intermediate: authority(INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY)?,
            token_key: text(TOKEN_KEY)?.clone(),
            ledger: ledger.map_err(|e| (LEDGER, format!("cannot be used: {e}")))?.unwrap_or_default(),
        })
    }

    /// The state that [`Self::texts`] gave.
    pub(super) fn from_all(texts: &BTreeMap<String, Zeroizing<String>>) -> Result<Self, StoreError> {
        let known = FILES.into_iter().chain([ROOT_KEY, LEDGER]);
        let texts = known.filter_map(|file| Some((file, texts.get(file)?.clone()))).collect();
        Self::from_texts(&texts)
            .map_err(|(file, what)| StoreError::Corrupt { path: PathBuf::from(file), what })
    }

    /// The roots to trust, as PEM, the issuing one first.
    pub fn roots_pem(&self) -> String {
        let others = self.ledger.other_roots.iter().map(String::as_str);
        std::iter::once(self.root.certificate_pem()).chain(others).collect()
    }

    /// Its files.
    pub(super) fn texts(&self) -> BTreeMap<String, Zeroizing<String>> {
        let ledger = serde_json::to_string_pretty(&self.ledger).unwrap_or_default();
        let texts = [
            (ROOT_CERTIFICATE, self.roots_pem()),
            (INTERMEDIATE_CERTIFICATE, self.intermediate.certificate_pem().to_owned()),
            (INTERMEDIATE_KEY, self.intermediate.key_pem().to_owned()),
            (TOKEN_KEY, self.token_key.to_string()),
            (LEDGER, ledger),
        ];
        let key = self.root.signer().map(|root| (ROOT_KEY, root.key_pem().to_owned()));
        texts.into_iter().chain(key).map(|(file, text)| (file.to_owned(), Zeroizing::new(text))).collect()
    }

    /// Replaces what a directory holds, all of it or nothing. After [`StoreError::Unfinished`] it is all of it as soon as the
    /// directory can be written; after other errors it is nothing.
    pub fn save(&self, directory: &Path) -> Result<(), StoreError> {
        let journal = Zeroizing::new(serde_json::to_string(&Bundle::new(self.texts())).unwrap_or_default());
        let path = directory.join(JOURNAL);
        let written = write(directory, JOURNAL, &journal);
        // It may have come to its place before something went wrong, and whoever starts next would find it.
        let is_there =
            || std::fs::read_to_string(&path).map(Zeroizing::new).is_ok_and(|text| text == journal);
        let finished = match written {
            Err(reason) if !is_there() => return Err(reason),
            Err(reason) => Err(reason),
            Ok(()) => finish(directory),
        };
        finished.map_err(|reason| StoreError::Unfinished { path, reason: Box::new(reason) })
    }
}

/// Finishes what a journal says. One that is damaged was not written to its end, so that nothing of it was begun; but a
/// rename brings it whole, so that this is a fault of the disk, and refused.
fn finish(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(JOURNAL);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    let journal = serde_json::from_str::<Bundle>(&text).ok().filter(Bundle::is_whole);
    let Some(journal) = journal else {
        return Err(StoreError::Corrupt { path, what: "is not what was written".to_owned() });
    };
    let mut sums = BTreeMap::new();
    for (file, text) in &journal.files {
        write(directory, file, text)?;
        sums.insert(file, checksum(text));
    }
    let list = serde_json::to_string_pretty(&sums).unwrap_or_default();
    write(directory, CHECKSUMS, &list)?;
    if !journal.files.contains_key(ROOT_KEY) {
        remove(&directory.join(ROOT_KEY))?;
    }
    std::fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })
}

/// Takes a file away, if it is there.
fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Reads one file of a store.
pub(super) fn read(directory: &Path, file: &str) -> Result<String, StoreError> {
    let path = directory.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(StoreError::Corrupt { path, what: "is missing".to_owned() })
        }
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(StoreError::Corrupt { path, what: "is not text".to_owned() })
        }
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

/// Puts a file that only its owner reads in the place of whatever is there, whole or not at all.
pub(crate) fn write(directory: &Path, file: &str, text: &str) -> Result<(), StoreError> {
    let (path, partial) = (directory.join(file), directory.join(format!(".{file}.partial")));
    let result = (|| {
        // A left-over could have another mode.
        match std::fs::remove_file(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut out = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&partial, &path)?;
        std::fs::File::open(directory)?.sync_all()
    })();
    result.map_err(|source| StoreError::Io { path, source })
}

fn checksum(text: &str) -> String {
    weft_certs::digest::sha256_hex(text.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(crate) const SMALL: Shape = Shape {
        root_key: KeyKind::P256,
        root_life: Duration::days(3650),
        intermediate_key: KeyKind::P256,
        intermediate_life: Duration::days(365),
    };

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    #[test]
    fn a_store_survives_a_restart_and_only_its_owner_reads_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        let made = State::open(&directory, SMALL, now()).unwrap();
        let again = State::open(&directory, SMALL, now()).unwrap();
        assert_eq!(made.root.certificate(), again.root.certificate());
        assert_eq!(made.token_key, again.token_key);
        for file in FILES.into_iter().chain([ROOT_KEY, LEDGER, CHECKSUMS]) {
            let mode = std::fs::metadata(directory.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_change_that_was_cut_off_is_finished_and_a_damaged_journal_refused() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        State::open(&directory, SMALL, now()).unwrap();
        // Cut off after the journal and the first file.
        let mut next = State::create(SMALL, now()).unwrap();
        next.ledger.crl_number = 7;
        let journal = serde_json::to_string(&Bundle::new(next.texts())).unwrap();
        write(&directory, JOURNAL, &journal).unwrap();
        write(&directory, INTERMEDIATE_KEY, next.intermediate.key_pem()).unwrap();
        let found = State::open(&directory, SMALL, now()).unwrap();
        assert_eq!(found.root.certificate(), next.root.certificate());
        assert_eq!(found.intermediate.certificate(), next.intermediate.certificate());
        assert_eq!(found.ledger.crl_number, 7);
        assert!(!directory.join(JOURNAL).exists());

        std::fs::write(directory.join(JOURNAL), journal.replacen("MI", "MJ", 1)).unwrap();
        let error = State::open(&directory, SMALL, now()).unwrap_err().to_string();
        assert!(error.contains(JOURNAL) && error.contains("restore"), "{error}");
    }

    #[test]
    fn one_process_at_a_time_may_change_a_store() {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        assert!(lock.is_some() && Lock::take(directory.path()).unwrap().is_none());
        drop(lock);
        assert!(Lock::take(directory.path()).unwrap().is_some());
        // A directory with nothing but its lock is empty.
        State::open(directory.path(), SMALL, now()).unwrap();
    }

    #[test]
    fn a_damaged_store_is_refused_by_the_name_of_its_file() {
        for file in FILES.into_iter().chain([LEDGER, ROOT_KEY]) {
            for damage in ["changed", "missing"] {
                if (file, damage) == (ROOT_KEY, "missing") {
                    continue; // It may be kept elsewhere.
                }
                let parent = tempfile::tempdir().unwrap();
                let directory = parent.path().join("ca");
                State::open(&directory, SMALL, now()).unwrap();
                let path = directory.join(file);
                match damage {
                    "changed" => {
                        let text = std::fs::read_to_string(&path).unwrap();
                        let (from, to) = if file == LEDGER { ("0", "1") } else { ("MI", "MJ") };
                        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
                    }
                    _ => std::fs::remove_file(&path).unwrap(),
                }
                let error = State::open(&directory, SMALL, now()).unwrap_err().to_string();
                assert!(error.contains(file) && error.contains("restore"), "{error}");
                // Nothing was made in its place.
                assert_eq!(path.exists(), damage == "changed");
            }
        }
    }

    #[test]
    fn a_roots_key_can_be_taken_away_and_brought_back_and_another_roots_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("ca");
        let made = State::open(&directory, SMALL, now()).unwrap();
        let key = std::fs::read_to_string(directory.join(ROOT_KEY)).unwrap();
        std::fs::remove_file(directory.join(ROOT_KEY)).unwrap();
        let without = State::load(&directory).unwrap();
        assert!(without.root.signer().is_none());
        assert_eq!(without.root.certificate(), made.root.certificate());
        // What is written from then on does not miss it...
        without.save(&directory).unwrap();
        assert!(State::load(&directory).unwrap().root.signer().is_none());
        assert!(!without.texts().contains_key(ROOT_KEY));
        // ... and it is taken up where it comes back, if it is the root's.
        std::fs::write(directory.join(ROOT_KEY), &key).unwrap();
        assert!(State::load(&directory).unwrap().root.signer().is_some());
        let other = State::create(SMALL, now()).unwrap();
        std::fs::write(directory.join(ROOT_KEY), other.root.signer().unwrap().key_pem()).unwrap();
        let error = State::load(&directory).unwrap_err().to_string();
        assert!(error.contains("does not belong"), "{error}");
    }
}
