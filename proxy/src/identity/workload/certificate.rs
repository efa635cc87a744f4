//! A key with its certificate chain and the roots that came with it.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;
use weft_certs::rotation::Validity;
use weft_certs::spiffe::SpiffeId;
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};
use weft_certs::{inspect, pem};
use zeroize::{Zeroize, Zeroizing};

use super::IdentityError;

/// What a workload shows its peers, and whom it trusts. Its key is wiped when it is dropped.
pub struct WorkloadCertificate {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    bundle: Vec<CertificateDer<'static>>,
    validity: Validity,
    certified: Arc<CertifiedKey>,
}

impl std::fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("WorkloadCertificate").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for WorkloadCertificate {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl WorkloadCertificate {
    /// Takes a signer's answer (PEM: leaf, intermediates, and last the root bundle) for `key`, received at `issued`.
    /// Everything that a peer would check is checked, so that a bad answer never replaces a certificate that works.
    ///
    /// # Errors
    /// [`IdentityError::Answer`].
    pub fn assemble(
        key: PrivatePkcs8KeyDer<'static>,
        answer: &[String],
        issued: OffsetDateTime,
    ) -> Result<Self, IdentityError> {
        let bad = |e: &dyn std::fmt::Display| IdentityError::Answer(e.to_string());
        let [chain @ .., bundle] = answer else { return Err(bad(&"it holds no certificate")) };
        let chain = pem::certificates(chain.concat().as_bytes())
            .map_err(|e| bad(&format!("its chain (all elements but the last, the root bundle) {e}")))?;
        let bundle =
            pem::certificates(bundle.as_bytes()).map_err(|e| bad(&format!("its root bundle {e}")))?;
        Self::new(key, chain, bundle, issued)
    }

    pub(super) fn new(
        key: PrivatePkcs8KeyDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
        issued: OffsetDateTime,
    ) -> Result<Self, IdentityError> {
        let bad = |e: &dyn std::fmt::Display| IdentityError::Answer(e.to_string());
        let mut expires = None;
        for certificate in &chain {
            let end = inspect::facts(certificate).map_err(|e| bad(&e))?.not_after;
            expires = Some(expires.map_or(end, |earliest: OffsetDateTime| earliest.min(end)));
        }
        let leaf = chain.first().ok_or_else(|| bad(&"it holds no certificate"))?;
        let named = inspect::facts(leaf).map_err(|e| bad(&e))?.uri_sans;
        let [id] = named.as_slice() else {
            return Err(bad(&format!("its certificate has {} URI names, not one", named.len())));
        };
        let id: SpiffeId = id.parse().map_err(|e| bad(&e))?;
        let domain = id.trust_domain().parse().map_err(|e| bad(&e))?;
        let context = ValidationContext {
            bundle: Bundle::new(bundle.clone()).map_err(|e| bad(&e))?,
            expected: Expected::Domains(vec![domain]),
        };
        let seconds = u64::try_from(issued.unix_timestamp()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verify_peer(&chain, &context, now, Usage::Server)
            .map_err(|e| bad(&format!("our peers would not accept its certificate: {e}")))?;
        let provider = weft_certs::provider();
        let signing = provider.key_provider.load_private_key(key.clone_key().into()).map_err(|e| bad(&e))?;
        let certified = CertifiedKey::new(chain.clone(), signing);
        certified.keys_match().map_err(|e| bad(&format!("its certificate is not for our key: {e}")))?;
        let validity = Validity { issued, expires: expires.unwrap_or(issued) };
        Ok(Self { id, chain, key, bundle, validity, certified: Arc::new(certified) })
    }

    /// Who it says we are.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf and intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's key.
    pub fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }

    /// The roots by which peers are checked.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// When it was received, and when the first certificate of the chain expires.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Chain and key as rustls wants them.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        pem::encode_all(&self.chain)
    }

    /// The key as PEM (PKCS#8).
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode_key(&self.key))
    }

    /// The roots as PEM.
    pub fn bundle_pem(&self) -> String {
        pem::encode_all(&self.bundle)
    }
}
