//! What the authority remembers beside its keys: other roots that are trusted, a replacement that is under way, what was
//! revoked, and how long leaves live. Times are seconds since 1970.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use weft_certs::authority::{Authority, AuthorityError};
use zeroize::Zeroizing;

use super::rotation::Phase;

/// The memory. Kept in the store, and only there.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ledger {
    /// Roots that are trusted beside the issuing one, PEM.
    pub other_roots: Vec<String>,
    /// A replacement of the root that is under way.
    pub rotation: Option<RootRotation>,
    /// An intermediate that signs as soon as every proxy has its revocation list.
    pub next_intermediate: Option<StoredAuthority>,
    /// The key (PEM) of an intermediate for which a certificate was asked of a root whose key is elsewhere.
    pub requested: Option<Zeroizing<String>>,
    /// Intermediates that no longer sign leaves, but whose leaves may live: their revocation lists are still needed.
    pub retired: Vec<Retired>,
    /// The last leaf of the present intermediate expires by then; 0 while it has signed none. May be later than the truth.
    pub leaves_until: i64,
    /// Serial numbers that are revoked.
    pub revoked: Vec<Revocation>,
    /// The number of the last revocation lists.
    pub crl_number: u64,
    /// How often the root was replaced.
    pub root_rotations: u64,
    /// How often the intermediate was, on its own or with the root.
    pub intermediate_rotations: u64,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("Ledger").field("crl_number", &self.crl_number).finish_non_exhaustive()
    }
}

/// A replacement of the root.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRotation {
    /// Where it stands.
    pub phase: Phase,
    /// When it began.
    pub began: i64,
    /// When this phase did.
    pub since: i64,
    /// The root that comes, until it issues.
    pub next_root: Option<StoredAuthority>,
    /// Its intermediate.
    pub next_intermediate: Option<StoredAuthority>,
    /// The last leaf from before this phase expires then; 0 if there was none.
    pub leaves_until: i64,
}

/// An authority that has signed its last leaf.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// The authority.
    pub authority: StoredAuthority,
    /// Its last leaf expires then.
    pub until: i64,
}

/// A serial number that counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// When it was revoked.
    pub at: i64,
    /// Its certificate has expired by then, and needs no list any more.
    pub until: i64,
}

/// An authority as text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAuthority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    key: Zeroizing<String>,
}

impl std::fmt::Debug for StoredAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("StoredAuthority").finish_non_exhaustive()
    }
}

impl StoredAuthority {
    /// An authority's text.
    pub fn of(authority: &Authority) -> Self {
        Self {
            certificate: authority.certificate_pem().to_owned(),
            key: Zeroizing::new(authority.key_pem().to_owned()),
        }
    }

    /// Takes it up.
    pub fn load(&self) -> Result<Authority, AuthorityError> {
        Authority::load(&self.certificate, &self.key)
    }
}

/// Seconds as a moment; none for 0.
pub fn moment(seconds: i64) -> Option<OffsetDateTime> {
    (seconds != 0).then(|| OffsetDateTime::from_unix_timestamp(seconds).ok()).flatten()
}
