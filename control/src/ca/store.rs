//! The authority's state: root, intermediate and the token key. On disk it is a directory of files that only the owner can
//! read, each replaced in one step, with a list of checksums: a damaged store is refused, never half used.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use time::{Duration, OffsetDateTime};
use weft_certs::authority::{Authority, AuthorityError, KeyKind};

/// File of the root's certificate; the one file of the store that is made to be handed out.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE_CERTIFICATE: &str = "intermediate-cert.pem";
const INTERMEDIATE_KEY: &str = "intermediate-key.pem";
/// File of the key that signs tokens.
pub const TOKEN_KEY: &str = "token-key.pem";
const CHECKSUMS: &str = "checksums.json";
const FILES: [&str; 5] = [ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, TOKEN_KEY];

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
    pub root: Authority,
    /// What signs workloads.
    pub intermediate: Authority,
    /// The key that signs tokens, as PEM.
    pub token_key: String,
}

impl State {
    /// Makes new ones.
    pub fn create(shape: Shape, now: OffsetDateTime) -> Result<Self, StoreError> {
        let root = Authority::root(shape.root_key, now, shape.root_life)?;
        let intermediate = root.intermediate(shape.intermediate_key, now, shape.intermediate_life)?;
        Ok(Self { root, intermediate, token_key: super::token::new_key()? })
    }

    /// Takes up what a directory holds; makes it, if the directory is not there or empty.
    pub fn open(directory: &Path, shape: Shape, now: OffsetDateTime) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: directory.to_owned(), source };
        let empty = match std::fs::read_dir(directory) {
            Ok(mut entries) => entries.next().is_none(),
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

    fn load(directory: &Path) -> Result<Self, StoreError> {
        let corrupt = |file: &str, what: &dyn std::fmt::Display| StoreError::Corrupt {
            path: directory.join(file),
            what: what.to_string(),
        };
        let list = read(directory, CHECKSUMS)?;
        let sums: BTreeMap<String, String> = serde_json::from_str(&list)
            .map_err(|e| corrupt(CHECKSUMS, &format!("is not a list of checksums ({e})")))?;
        let mut texts = BTreeMap::new();
        for file in FILES {
            let text = read(directory, file)?;
            if sums.get(file) != Some(&checksum(&text)) {
                return Err(corrupt(file, &"is not what was written (its checksum differs)"));
            }
            texts.insert(file, text);
        }
        let authority = |certificate: &str, key: &str| {
            Authority::load(&texts[certificate], &texts[key])
                .map_err(|e| corrupt(certificate, &format!("cannot be used: {e}")))
        };
        Ok(Self {
            root: authority(ROOT_CERTIFICATE, ROOT_KEY)?,
            intermediate: authority(INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY)?,
            token_key: texts[TOKEN_KEY].clone(),
        })
    }

    fn save(&self, directory: &Path) -> Result<(), StoreError> {
        let texts = [
            (ROOT_CERTIFICATE, self.root.certificate_pem()),
            (ROOT_KEY, self.root.key_pem()),
            (INTERMEDIATE_CERTIFICATE, self.intermediate.certificate_pem()),
            (INTERMEDIATE_KEY, self.intermediate.key_pem()),
            (TOKEN_KEY, &self.token_key),
        ];
        let mut sums = BTreeMap::new();
        for (file, text) in texts {
            write(directory, file, text)?;
            sums.insert(file, checksum(text));
        }
        // The list goes last: a store that was not written to its end has none, and is refused.
        let list = serde_json::to_string_pretty(&sums).unwrap_or_default();
        write(directory, CHECKSUMS, &list)
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

fn write(directory: &Path, file: &str, text: &str) -> Result<(), StoreError> {
    let (path, partial) = (directory.join(file), directory.join(format!(".{file}.partial")));
    let result = (|| {
        let mut out =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
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
        for file in FILES {
            let mode = std::fs::metadata(directory.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_damaged_store_is_refused_by_the_name_of_its_file() {
        for file in FILES {
            for damage in ["changed", "missing"] {
                let parent = tempfile::tempdir().unwrap();
                let directory = parent.path().join("ca");
                State::open(&directory, SMALL, now()).unwrap();
                let path = directory.join(file);
                match damage {
                    "changed" => {
                        let text = std::fs::read_to_string(&path).unwrap();
                        std::fs::write(&path, text.replacen("MI", "MJ", 1)).unwrap();
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
}
