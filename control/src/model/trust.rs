//! Whose certificates workloads accept: what the authority says, brought to proxies beside the configuration.

use std::sync::Arc;

/// Roots and revocation lists as PEM. Equal content, equal trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The roots, the issuing one first; two while one replaces the other.
    pub roots: Arc<str>,
    /// The mesh's own trust domains, which these roots vouch for; needed only where there are others.
    pub domains: Vec<String>,
    /// Other trust domains, each with its own roots.
    pub federated: Vec<(String, Arc<str>)>,
    /// A revocation list of each authority that signed living leaves; empty while nothing is revoked.
    pub revocations: Arc<str>,
}
