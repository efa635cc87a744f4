//! A certificate as it was issued, with its key.

use anyhow::{Context, ensure};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use weft_certs::{inspect, pem};
use zeroize::Zeroizing;

/// A chain with its key, both as PEM.
#[derive(Clone)]
pub(super) struct Certificate {
    /// The directory of the server that issued it.
    pub(super) directory: String,
    /// Leaf first.
    pub(super) chain: String,
    /// The leaf's key.
    pub(super) key: Zeroizing<String>,
    /// The DNS names of the leaf, in lower case, sorted.
    pub(super) names: Vec<String>,
    /// The leaf's not-before.
    pub(super) from: OffsetDateTime,
    /// The earliest not-after of the chain.
    pub(super) until: OffsetDateTime,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads chain and key, which must belong together.
    pub(super) fn read(directory: &str, chain: String, key: Zeroizing<String>) -> anyhow::Result<Self> {
        let certificates =
            pem::certificates(chain.as_bytes()).map_err(|e| anyhow::anyhow!("the chain {e}"))?;
        let facts = certificates.iter().map(|c| inspect::facts(c).context("a certificate of the chain"));
        let facts = facts.collect::<anyhow::Result<Vec<_>>>()?;
        let leaf = facts.first().context("the chain is empty")?;
        let mut names: Vec<String> = leaf.dns_sans.iter().map(|name| name.to_ascii_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        let (from, until) = (leaf.not_before, facts.iter().map(|f| f.not_after).min());
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key")?;
        let signing = weft_certs::provider().key_provider.load_private_key(private).context("the key")?;
        CertifiedKey::new(certificates, signing).keys_match().context("the chain is not for the key")?;
        let until = until.unwrap_or(from);
        Ok(Self { directory: directory.to_owned(), chain, key, names, from, until })
    }

    /// Refuses one that would not do for these names now.
    pub(super) fn check(self, names: &[String], now: OffsetDateTime) -> anyhow::Result<Self> {
        ensure!(
            self.names == names,
            "it was issued for {}, not for {}",
            self.names.join(", "),
            names.join(", ")
        );
        ensure!(self.until > now, "it was over at {}; are both clocks right?", self.until);
        Ok(self)
    }
}
