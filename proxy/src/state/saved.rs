//! The last good configuration on disk, so that a proxy that restarts while the control plane is away serves as before.
//!
//! One file: a line with the code of all that follows ([`super::seal`]), a line of JSON that says whose it is, and the resources as xDS
//! carries them, each with its length before it. Only the owner can read it, for a gateway's keys are there, and it is replaced
//! in one step. A file that cannot be used is never a reason not to start.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::watch;
use weft_certs::digest::sha256_hex;
use weft_certs::{inspect, pem};
use xds_protos::envoy::config::core::v3::data_source::Specifier;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use xds_protos::envoy::service::discovery::v3::Resource;
use xds_protos::prost::Message;
use xds_protos::{Any, ResourceType};
use zeroize::Zeroizing;

use super::seal::{Seal, SealError};
use super::{Engine, Kept};
use crate::io::file::replace_private;

const FILE: &str = "configuration";

/// A push comes in several responses; so long after the first change the rest is waited for.
const GATHER: Duration = Duration::from_millis(100);
/// The file is written at most so often.
const SPACING: Duration = Duration::from_secs(1);
/// A listener that waits for something is waited for so long; then what there is is written.
const WARMING: Duration = Duration::from_secs(5);

/// A stored configuration that cannot be used or written. Never fatal.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Reading or writing failed.
    #[error("{path}: {source}; check the state directory's owner and free space")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({reason}); the control plane will be asked for everything")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not as it was written, or not the last one.
    #[error("{path} is not used: {source}; the control plane will be asked for everything")]
    Seal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SealError,
    },
    /// It has the checksum of versions before seals.
    #[error(
        "{path} is of an earlier version, which did not seal it; the control plane will be asked for everything"
    )]
    Earlier {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a proxy beside another workload.
    #[error("{path} is of {theirs}, and this is {ours}; the control plane will be asked for everything")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who we are.
        ours: String,
    },
}

/// What a file held.
#[derive(Debug)]
pub struct Saved {
    /// The resources.
    pub resources: Vec<Kept>,
    /// When they were written.
    pub at: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Header {
    node: String,
    saved: u64,
    /// Grows with each state.
    number: u64,
}

/// The store in one directory, of one node.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    seal: Seal,
    node: String,
}

impl Store {
    /// The store of the node with this id; `key` is the file of the key that seals it, which is in the same directory unless it
    /// is said.
    pub fn new(directory: &Path, key: Option<&Path>, node: &str) -> Self {
        let seal = Seal::new(directory, key, node);
        Self { path: directory.join(FILE), seal, node: node.to_owned() }
    }

    /// What was stored, without secrets that have expired by `now`; none if nothing was.
    ///
    /// # Errors
    /// [`SavedError`], for the log.
    pub fn load(&self, now: OffsetDateTime) -> Result<Option<Saved>, SavedError> {
        let path = self.path.clone();
        let damaged =
            |e: &dyn std::fmt::Display| SavedError::Damaged { path: path.clone(), reason: e.to_string() };
        let mut bytes = match std::fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SavedError::Io { path, source }),
        };
        let code = line(&mut bytes).ok_or_else(|| damaged(&"it has no code"))?;
        let bad = |source| SavedError::Seal { path: path.clone(), source };
        let checked = match self.seal.check(&bytes, &code) {
            Ok(checked) => checked,
            // Nobody has touched it; but nothing says so that only this proxy could have written.
            Err(_) if *code == *sha256_hex(&bytes).as_bytes() => return Err(SavedError::Earlier { path }),
            Err(source) => return Err(bad(source)),
        };
        let header = line(&mut bytes).ok_or_else(|| damaged(&"no header"))?;
        let header: Header = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
        if header.node != self.node {
            return Err(SavedError::Foreign { path, theirs: header.node, ours: self.node.clone() });
        }
        checked.is_last(header.number).map_err(bad)?;
        let mut resources = Vec::new();
        while bytes.has_remaining() {
            let resource = Resource::decode_length_delimited(&mut bytes).map_err(|e| damaged(&e))?;
            let any = resource.resource.unwrap_or_default();
            // A kind that an earlier version knew.
            let Some(kind) = ResourceType::from_type_url(&any.type_url) else { continue };
            if kind == ResourceType::Secret && is_expired(&any.value, now) {
                tracing::warn!(name = resource.name, "a kept secret has expired and is not taken up");
                continue;
            }
            let (name, version) = (resource.name, resource.version);
            resources.push(Kept { kind, name, version, bytes: any.value });
        }
        Ok(Some(Saved { resources, at: UNIX_EPOCH + Duration::from_secs(header.saved) }))
    }

    /// Replaces what is stored.
    ///
    /// # Errors
    /// [`SavedError::Io`], or that it cannot be sealed.
    pub fn save(&self, resources: &[Kept]) -> Result<(), SavedError> {
        let saved = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let bad = |source| SavedError::Seal { path: self.path.clone(), source };
        let number = self.seal.next(saved);
        let header = Header { node: self.node.clone(), saved, number };
        let mut body = Zeroizing::new(Vec::new());
        let result = serde_json::to_vec(&header).map_err(std::io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            body.append(&mut text);
            for kept in resources {
                let any = Any { type_url: kept.kind.type_url().to_owned(), value: kept.bytes.clone() };
                let resource = Resource {
                    name: kept.name.clone(),
                    version: kept.version.clone(),
                    resource: Some(any),
                    ..Resource::default()
                };
                // Fails only for want of room, which a vector has.
                resource.encode_length_delimited(&mut *body).map_err(std::io::Error::other)?;
            }
            Ok(())
        });
        let io = |source| SavedError::Io { path: self.path.clone(), source };
        result.map_err(io)?;
        let code = self.seal.code(&body).map_err(bad)?;
        replace_private(&self.path, &[code.as_bytes(), b"\n", &body]).map_err(io)?;
        // Only then: whatever cuts this off, what is there can be used.
        if let Err(error) = self.seal.remember(number) {
            tracing::warn!(%error, "an older configuration that is put back will not be noticed");
        }
        Ok(())
    }
}

/// Takes a line off the front.
fn line(bytes: &mut Bytes) -> Option<Bytes> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let line = bytes.split_to(end);
    bytes.advance(1);
    Some(line)
}

/// Whether a secret shows a certificate that has expired: nobody would take it.
fn is_expired(bytes: &Bytes, now: OffsetDateTime) -> bool {
    let Ok(secret) = Secret::decode(bytes.clone()) else { return false };
    let Some(secret::Type::TlsCertificate(own)) = secret.r#type else { return false };
    let chain = match own.certificate_chain.and_then(|c| c.specifier) {
        Some(Specifier::InlineBytes(chain)) => chain,
        Some(Specifier::InlineString(chain)) => chain.into(),
        _ => return false,
    };
    let leaf = pem::certificates(&chain).ok().and_then(|chain| chain.into_iter().next());
    leaf.and_then(|leaf| inspect::facts(&leaf).ok()).is_some_and(|facts| facts.not_after <= now)
}

/// The table of names as it came, to be followed; none where nobody answers DNS.
pub type Names = Option<watch::Receiver<Option<Bytes>>>;

async fn changed(names: &mut Names) {
    let Some(names) = names else { return std::future::pending().await };
    if names.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Writes down what the engine has, and the names of the mesh, whenever that changes. Works for ever.
pub async fn keep(engine: Engine, store: Store, mut names: Names) {
    let mut changes = engine.changes();
    let mut failing = false;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = changed(&mut names) => {}
        }
        let first = tokio::time::Instant::now();
        tokio::time::sleep(GATHER).await;
        while engine.is_warming() && first.elapsed() < WARMING {
            tokio::time::sleep(GATHER).await;
        }
        changes.mark_unchanged();
        let mut resources = engine.kept();
        if let Some(bytes) = names.as_mut().and_then(|names| names.borrow_and_update().clone()) {
            let (name, version) = (String::new(), String::new());
            resources.push(Kept { kind: ResourceType::Names, name, version, bytes });
        }
        let store = store.clone();
        match tokio::task::spawn_blocking(move || store.save(&resources)).await {
            Ok(Err(error)) if !failing => {
                tracing::warn!(%error, "the configuration is not stored; a restart without control plane will have an older one");
                failing = true;
            }
            Ok(outcome) => failing = outcome.is_err(),
            Err(error) => tracing::error!(%error, "the configuration is not stored"),
        }
        tokio::time::sleep(SPACING).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use weft_certs::authority::{Authority, KeyKind};

    use super::*;

    fn kept(kind: ResourceType, name: &str, bytes: &[u8]) -> Kept {
        Kept { kind, name: name.into(), version: "7".into(), bytes: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn what_is_stored_comes_back_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(&directory.path().join("deep"), None, "me");
        let now = OffsetDateTime::now_utc();
        assert!(store.load(now).unwrap().is_none());
        let all = vec![kept(ResourceType::Listener, "l", b"one\ntwo"), kept(ResourceType::Cluster, "c", b"")];
        store.save(&all).unwrap();
        let saved = store.load(now).unwrap().unwrap();
        assert_eq!(saved.resources, all);
        assert!(saved.at.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(std::fs::metadata(&store.path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_damaged_or_anothers_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), None, "me");
        store.save(&[kept(ResourceType::Cluster, "c", b"bytes")]).unwrap();
        let now = OffsetDateTime::now_utc();
        let other = Store::new(directory.path(), None, "another").load(now).unwrap_err().to_string();
        assert!(other.contains("is of me, and this is another"), "{other}");
        let good = std::fs::read(&store.path).unwrap();
        let flipped: Vec<u8> =
            good.iter().enumerate().map(|(i, b)| b ^ u8::from(i + 1 == good.len())).collect();
        for (bad, words) in [
            (&good[..good.len() - 1], "not as this proxy wrote it"),
            (&good[..0], "no code"),
            (&good[..30], "no code"),
            (&flipped, "not as this proxy wrote it"),
        ] {
            std::fs::write(&store.path, bad).unwrap();
            let error = store.load(now).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&*store.path.to_string_lossy()), "{error}");
        }
        // Whole, but not what this version writes.
        let body = b"{\"node\": \"me\", \"saved\": 1, \"number\": 9000000000000000000}\nnonsense";
        let code = store.seal.code(body).unwrap();
        std::fs::write(&store.path, [code.as_bytes(), b"\n", body].concat()).unwrap();
        assert!(store.load(now).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn an_expired_secret_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), None, "me");
        let now = OffsetDateTime::now_utc();
        let chain = Authority::root(KeyKind::P256, now, time::Duration::hours(1)).unwrap();
        let text = serde_json::json!({"name": "shop", "tls_certificate": {
            "certificate_chain": {"inline_string": chain.certificate_pem()}, "private_key": {"inline_string": "x"}}});
        let secret: Secret = xds_protos::json::from_value(text).unwrap();
        store.save(&[kept(ResourceType::Secret, "shop", &secret.encode_to_vec())]).unwrap();
        let names = |now| store.load(now).unwrap().unwrap().resources.len();
        assert_eq!((names(now), names(now + time::Duration::hours(2))), (1, 0));
    }

    #[test]
    fn a_state_that_is_put_back_is_not_used_and_the_key_can_be_elsewhere_and_read_only() {
        let directory = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let one = [kept(ResourceType::Cluster, "one", b"")];
        let store = Store::new(directory.path(), None, "me");
        store.save(&one).unwrap();
        let old = std::fs::read(&store.path).unwrap();
        store.save(&[kept(ResourceType::Cluster, "two", b"")]).unwrap();
        std::fs::write(&store.path, &old).unwrap();
        assert!(store.load(now).unwrap_err().to_string().contains("older than"));
        store.save(&one).unwrap();
        assert_eq!(store.load(now).unwrap().unwrap().resources, one);

        // A key that is mounted: nothing is made beside the state, and another key opens nothing.
        let key = directory.path().join("mounted");
        std::fs::write(&key, format!("{}\n", "5a".repeat(32))).unwrap();
        let state = directory.path().join("state");
        let store = Store::new(&state, Some(&key), "me");
        store.save(&one).unwrap();
        assert!(!state.join("configuration-key").exists());
        assert_eq!(store.load(now).unwrap().unwrap().resources, one);
        let text = Store::new(&state, None, "me").load(now).unwrap_err().to_string();
        assert!(text.contains("it is not there"), "{text}");
    }

    #[test]
    fn proxies_of_one_key_each_know_their_last_state_and_leave_the_key_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let key = directory.path().join("key");
        let store = |node: &str| Store::new(&directory.path().join(node), Some(&key), node);
        let (busy, calm) = (store("busy"), store("calm"));
        let one = [kept(ResourceType::Cluster, "one", b"")];
        calm.save(&one).unwrap();
        let before = (std::fs::read(&key).unwrap(), std::fs::metadata(&key).unwrap().ino());
        for _ in 0..5 {
            busy.save(&one).unwrap();
        }
        assert_eq!(calm.load(now).unwrap().unwrap().resources, one);
        let old = std::fs::read(&calm.path).unwrap();
        calm.save(&one).unwrap();
        for store in [&busy, &calm] {
            assert_eq!(store.load(now).unwrap().unwrap().resources, one);
        }
        std::fs::write(&calm.path, &old).unwrap();
        assert!(calm.load(now).unwrap_err().to_string().contains("older than"));
        assert_eq!((std::fs::read(&key).unwrap(), std::fs::metadata(&key).unwrap().ino()), before);
    }

    #[test]
    fn a_state_of_an_earlier_version_is_called_that_and_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), None, "me");
        let now = OffsetDateTime::now_utc();
        let body = b"{\"node\": \"me\", \"saved\": 1}\n";
        for key_is_there in [false, true] {
            std::fs::write(&store.path, [sha256_hex(body).as_bytes(), b"\n", body].concat()).unwrap();
            let error = store.load(now).unwrap_err();
            assert!(matches!(error, SavedError::Earlier { .. }), "{key_is_there}: {error}");
            store.save(&[]).unwrap();
            assert!(store.load(now).unwrap().is_some());
        }
    }
}
