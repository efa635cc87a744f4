//! The one function that decides whether a peer is who it should be: [`verify_peer`].

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use crate::spiffe::{SpiffeId, TrustDomain};

/// The roots that are trusted: several at once while one is replaced.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Bundle {
    /// A bundle of these roots. A certificate that cannot be one is an error.
    pub fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, webpki::Error> {
        let anchors = roots
            .iter()
            .map(|r| webpki::anchor_from_trusted_cert(r).map(|a| a.to_owned()))
            .collect::<Result<_, _>>()?;
        Ok(Self { roots, anchors })
    }

    /// The roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

/// Which SPIFFE ids are welcome.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Any of one of these trust domains (one's own and its aliases).
    Domains(Vec<TrustDomain>),
    /// One of these exactly.
    Ids(Vec<SpiffeId>),
}

/// What a peer is checked against.
#[derive(Clone, Debug)]
pub struct ValidationContext {
    /// Whose signatures count.
    pub bundle: Bundle,
    /// Who may come.
    pub expected: Expected,
}

/// Which side the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer is a server.
    Server,
    /// The peer is a client.
    Client,
}

/// Why a peer is not accepted. [`VerifyError::reason`] is stable, for metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It showed no certificate.
    #[error("the peer showed no certificate; is it part of the mesh, and does it speak mutual TLS?")]
    NoCertificate,
    /// Its certificate cannot be read, or breaks the rules for its kind.
    #[error("the peer's certificate is malformed: {0}")]
    Malformed(String),
    /// No trusted root signed it.
    #[error("the peer's certificate is not signed by a trusted root; compare the roots of both sides")]
    UnknownCa,
    /// Its time is over.
    #[error("the peer's certificate has expired; look at its renewal (/certs), and at both clocks")]
    Expired,
    /// Its time has not come.
    #[error("the peer's certificate is not valid yet; compare both clocks")]
    NotYetValid,
    /// It does not carry exactly one SPIFFE id.
    #[error("the peer's certificate has {0} URI names; a workload's has exactly one, its SPIFFE id")]
    BadSan(usize),
    /// It is of a trust domain that is not accepted.
    #[error("the peer is {0}; its trust domain is neither ours nor an alias of it")]
    WrongTrustDomain(String),
    /// It is somebody else.
    #[error("the peer is {0}, which is not who is expected there")]
    WrongIdentity(String),
}

impl VerifyError {
    /// A word for metrics: `certificate_validation_failures{reason}`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed(_) => "malformed",
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::BadSan(_) | Self::WrongIdentity(_) => "bad_san",
            Self::WrongTrustDomain(_) => "wrong_trust_domain",
        }
    }

    /// The TLS alert that tells the peer (RFC 8446, section 6.2).
    pub fn alert(&self) -> AlertDescription {
        match self {
            Self::NoCertificate => AlertDescription::CertificateRequired,
            Self::Malformed(_) | Self::BadSan(_) => AlertDescription::BadCertificate,
            Self::UnknownCa => AlertDescription::UnknownCA,
            Self::Expired | Self::NotYetValid => AlertDescription::CertificateExpired,
            Self::WrongTrustDomain(_) | Self::WrongIdentity(_) => AlertDescription::AccessDenied,
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::NoCertificate => Self::NoCertificatesPresented,
            VerifyError::Malformed(_) | VerifyError::BadSan(_) => {
                Self::InvalidCertificate(CertificateError::BadEncoding)
            }
            VerifyError::UnknownCa => Self::InvalidCertificate(CertificateError::UnknownIssuer),
            VerifyError::Expired => Self::InvalidCertificate(CertificateError::Expired),
            VerifyError::NotYetValid => Self::InvalidCertificate(CertificateError::NotValidYet),
            VerifyError::WrongTrustDomain(_) | VerifyError::WrongIdentity(_) => {
                Self::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
            }
        }
    }
}

/// Checks a chain, leaf first: it leads to a root of the bundle, now is within its validity, its usage fits, it carries
/// exactly one URI name, and that is an expected SPIFFE id. To be called after every handshake, resumed ones too, for which
/// rustls calls no verifier.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    context: &ValidationContext,
    now: UnixTime,
    usage: Usage,
) -> Result<SpiffeId, VerifyError> {
    let [leaf, intermediates @ ..] = chain else { return Err(VerifyError::NoCertificate) };
    let certificate = EndEntityCert::try_from(leaf).map_err(|e| VerifyError::Malformed(e.to_string()))?;
    let purpose = match usage {
        Usage::Server => Purpose(KeyUsage::server_auth()),
        Usage::Client => Purpose(KeyUsage::client_auth()),
    };
    certificate
        .verify_for_usage(
            crate::provider().signature_verification_algorithms.all,
            &context.bundle.anchors,
            intermediates,
            now,
            purpose,
            None,
            None,
        )
        .map_err(|e| match e {
            webpki::Error::CertExpired { .. } => VerifyError::Expired,
            webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                VerifyError::UnknownCa
            }
            other => VerifyError::Malformed(other.to_string()),
        })?;
    let uris: Vec<&str> = certificate.valid_uri_names().collect();
    let [uri] = uris.as_slice() else { return Err(VerifyError::BadSan(uris.len())) };
    let id: SpiffeId =
        uri.parse().map_err(|e: crate::spiffe::SpiffeError| VerifyError::Malformed(e.to_string()))?;
    match &context.expected {
        Expected::Domains(domains) if domains.iter().any(|d| d.as_str() == id.trust_domain()) => Ok(id),
        Expected::Domains(_) => Err(VerifyError::WrongTrustDomain(id.to_string())),
        Expected::Ids(ids) if ids.contains(&id) => Ok(id),
        Expected::Ids(_) => Err(VerifyError::WrongIdentity(id.to_string())),
    }
}

struct Purpose(KeyUsage);

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        self.0.validate(iter)
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::authority::Authority;
    use crate::authority::tests::small;
    use crate::csr;

    fn leaf(authority: &Authority, id: &str, at: i64) -> CertificateDer<'static> {
        let made = csr::make(&id.parse().unwrap()).unwrap();
        let now = OffsetDateTime::from_unix_timestamp(at).unwrap();
        let request = csr::check(&made.csr).unwrap();
        authority.sign(&request, &id.parse().unwrap(), now, Duration::hours(24)).unwrap()
    }

    const NOW: i64 = 1_800_000_000;
    const ORDER: &str = "spiffe://cluster.local/ns/ecotrack/sa/order-service";

    fn context(root: &Authority) -> ValidationContext {
        ValidationContext {
            bundle: Bundle::new(vec![root.certificate().clone()]).unwrap(),
            expected: Expected::Domains(vec!["cluster.local".parse().unwrap()]),
        }
    }

    fn check(
        chain: &[CertificateDer<'_>],
        context: &ValidationContext,
        at: i64,
    ) -> Result<SpiffeId, VerifyError> {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at as u64));
        verify_peer(chain, context, now, Usage::Client)
    }

    #[test]
    fn a_peer_of_the_mesh_is_accepted_only_in_its_time() {
        let (root, intermediate) = small();
        let chain = [leaf(&intermediate, ORDER, NOW), intermediate.certificate().clone()];
        let context = context(&root);
        assert_eq!(check(&chain, &context, NOW).unwrap().as_str(), ORDER);
        assert_eq!(check(&chain, &context, NOW - 299).unwrap().as_str(), ORDER);
        assert_eq!(check(&chain, &context, NOW - 301), Err(VerifyError::NotYetValid));
        assert_eq!(check(&chain, &context, NOW + 86_401), Err(VerifyError::Expired));
    }

    #[test]
    fn strangers_are_refused_each_for_its_reason() {
        let (root, intermediate) = small();
        let (_, other) = small();
        let context = context(&root);
        let own = |id| [leaf(&intermediate, id, NOW), intermediate.certificate().clone()];
        let stranger = [leaf(&other, ORDER, NOW), other.certificate().clone()];
        assert_eq!(check(&stranger, &context, NOW), Err(VerifyError::UnknownCa));
        let foreign = own("spiffe://evil.example/ns/a/sa/b");
        assert_eq!(check(&foreign, &context, NOW).unwrap_err().reason(), "wrong_trust_domain");
        assert_eq!(check(&[], &context, NOW), Err(VerifyError::NoCertificate));
        let picky = ValidationContext {
            expected: Expected::Ids(vec![
                "spiffe://cluster.local/ns/ecotrack/sa/user-service".parse().unwrap(),
            ]),
            ..context.clone()
        };
        assert_eq!(check(&own(ORDER), &picky, NOW).unwrap_err().reason(), "bad_san");
        // The intermediate itself is no workload.
        assert!(check(&[intermediate.certificate().clone()], &context, NOW).is_err());
    }

    #[test]
    fn while_a_root_is_replaced_both_are_accepted() {
        let ((old, old_intermediate), (new, new_intermediate)) = (small(), small());
        let mut context = context(&old);
        context.bundle = Bundle::new(vec![old.certificate().clone(), new.certificate().clone()]).unwrap();
        for intermediate in [&old_intermediate, &new_intermediate] {
            let chain = [leaf(intermediate, ORDER, NOW), intermediate.certificate().clone()];
            assert!(check(&chain, &context, NOW).is_ok());
        }
    }
}
