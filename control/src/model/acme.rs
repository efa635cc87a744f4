//! AcmeCertificate: a gateway's credential that an ACME server issues (weft.dev), and what has come of all of them: credentials,
//! and the questions that gateways are to answer meanwhile.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;

use super::kubernetes::TlsSecret;
use super::meta::Object;

/// The specification of an AcmeCertificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AcmeCertificate {
    /// The name by which Gateways use it, as they would use that of a Secret in the same namespace.
    pub credential_name: String,
    /// The DNS names that it is for.
    pub hosts: Vec<String>,
    /// URL of the ACME server's directory (RFC 8555, section 7.1.1).
    pub directory_url: String,
    /// Where the ACME server may write to; empty for nowhere.
    pub email: String,
    /// File with the roots by which the ACME server's TLS is checked; empty for the system's.
    pub ca_file: String,
}

impl AcmeCertificate {
    /// The names as a certificate carries them: in lower case, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A question of an ACME server about a host: what it finds at `/.well-known/acme-challenge/TOKEN` shows whose host it is
/// (RFC 8555, section 8.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Challenge {
    /// The namespace of the gateways that answer.
    pub namespace: String,
    /// The host.
    pub host: String,
    /// The last segment of the path.
    pub token: String,
    /// What is to be found there.
    pub answer: String,
}

/// What has come of AcmeCertificates.
#[derive(Debug, Default)]
pub struct Acme {
    credentials: BTreeMap<(String, String), Arc<Object<TlsSecret>>>,
    challenges: Vec<Challenge>,
    version: u64,
    challenges_version: u64,
}

impl Acme {
    /// These credentials, by the names in their metadata, and these open questions.
    pub fn new(credentials: Vec<Arc<Object<TlsSecret>>>, challenges: Vec<Challenge>) -> Self {
        if credentials.is_empty() && challenges.is_empty() {
            return Self::default();
        }
        let key = |secret: &Object<TlsSecret>| (secret.meta.namespace.clone(), secret.meta.name.clone());
        let credentials: BTreeMap<_, _> = credentials.into_iter().map(|s| (key(&s), s)).collect();
        let mut hasher = DefaultHasher::new();
        challenges.hash(&mut hasher);
        let challenges_version = if challenges.is_empty() { 0 } else { hasher.finish() };
        credentials.iter().for_each(|(key, secret)| (key, secret.meta.version).hash(&mut hasher));
        Self { credentials, challenges, version: hasher.finish(), challenges_version }
    }

    /// The credential of this name.
    pub fn credential(&self, namespace: &str, name: &str) -> Option<&Arc<Object<TlsSecret>>> {
        self.credentials.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The open questions.
    pub fn challenges(&self) -> &[Challenge] {
        &self.challenges
    }

    /// Hash of everything in it; 0 without anything.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Hash of the open questions; 0 without any.
    pub fn challenges_version(&self) -> u64 {
        self.challenges_version
    }
}
