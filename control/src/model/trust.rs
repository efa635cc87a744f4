//! Whose certificates workloads accept: what the authority says, brought to proxies beside the configuration.

use std::sync::Arc;

/// Roots and revocation lists as PEM. Equal content, equal trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The roots, the issuing one first; two while one replaces the other.
    pub roots: Arc<str>,
    /// A revocation list of each authority that signed living leaves; empty while nothing is revoked.
    pub revocations: Arc<str>,
}
