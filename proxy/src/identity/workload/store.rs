//! The last good certificate on disk, so that a proxy that restarts while the control plane is away can go on.
//!
//! One file, so that key and chain can never be of different certificates: a line with its checksum, then JSON. Only the
//! owner can read it, and it is replaced in one step.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use weft_certs::digest::sha256_hex;
use weft_certs::pem;
use zeroize::Zeroizing;

use super::WorkloadCertificate;
use crate::io::file::replace_private;

const FILE: &str = "workload-identity.json";

/// A stored identity that cannot be used or written. Never fatal: a new one is asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("{path}: {source}; check the state directory's owner and free space")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({reason}); a new certificate will be asked for")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    issued: i64,
    chain: String,
    key: Zeroizing<String>,
    bundle: String,
}

/// The store in one directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The stored certificate, if there is one that has not expired.
    pub(super) fn load(&self, now: OffsetDateTime) -> Result<Option<WorkloadCertificate>, StoreError> {
        let path = self.directory.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let damaged =
            |e: &dyn std::fmt::Display| StoreError::Damaged { path: path.clone(), reason: e.to_string() };
        let (sum, body) = text.split_once('\n').ok_or_else(|| damaged(&"no checksum"))?;
        if sum != sha256_hex(body.as_bytes()) {
            return Err(damaged(&"its checksum differs"));
        }
        let stored: Stored = serde_json::from_str(body).map_err(|e| damaged(&e))?;
        let issued = OffsetDateTime::from_unix_timestamp(stored.issued).map_err(|e| damaged(&e))?;
        let key = match pem::private_key(stored.key.as_bytes()).map_err(|e| damaged(&e))? {
            rustls_pki_types::PrivateKeyDer::Pkcs8(key) => key,
            _ => return Err(damaged(&"its key is not PKCS#8")),
        };
        let certificate = WorkloadCertificate::assemble(key, &[stored.chain, stored.bundle], issued)
            .map_err(|e| damaged(&e))?;
        Ok((certificate.validity().expires > now).then_some(certificate))
    }

    /// Replaces what is stored.
    pub(super) fn save(&self, certificate: &WorkloadCertificate) -> Result<(), StoreError> {
        let stored = Stored {
            issued: certificate.validity().issued.unix_timestamp(),
            chain: certificate.chain_pem(),
            key: certificate.key_pem(),
            bundle: certificate.bundle_pem(),
        };
        let path = self.directory.join(FILE);
        let result = (|| {
            let body = Zeroizing::new(serde_json::to_string(&stored)?);
            let sum = sha256_hex(body.as_bytes());
            replace_private(&path, &[sum.as_bytes(), b"\n", body.as_bytes()])
        })();
        result.map_err(|source| StoreError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::identity::workload::testing::{Authority, id, start};

    #[test]
    fn what_is_stored_comes_back_until_it_expires_and_only_its_owner_reads_it() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::new(&parent.path().join("state"));
        assert!(store.load(start()).unwrap().is_none());
        let certificate = Authority::new().certificate(&id(), start(), Duration::from_secs(60));
        store.save(&certificate).unwrap();
        store.save(&certificate).unwrap();
        let again = store.load(start()).unwrap().unwrap();
        assert_eq!(again.chain(), certificate.chain());
        assert_eq!(again.validity(), certificate.validity());
        assert!(store.load(start() + Duration::from_secs(60)).unwrap().is_none());
        let mode = std::fs::metadata(store.directory.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        store.save(&Authority::new().certificate(&id(), start(), Duration::from_secs(60))).unwrap();
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("MI", "MJ", 1)).unwrap();
        let error = store.load(start()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("checksum"), "{error}");
    }
}
