//! The rules for a peer's certificate, and the one function that applies them.
//!
//! [`Validation::verify_peer`] is called by the rustls verifiers during a full handshake, so that a failure raises the
//! right alert, and once more after every resumed one, where rustls calls no verifier: a ticket must not outlive the trust
//! or the certificate it was issued under.

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage};
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::data_source;
use super::params::provider;
use super::peer::Peer;
use super::san::SanMatcher;
use super::secret::certificates;
use crate::state::ConfigError;

/// A compiled `CertificateValidationContext`: as it stands inline, or as it came by SDS.
#[derive(Clone, Debug, Default)]
pub struct ValidationConfig {
    /// The roots as given, for display.
    pub roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    sans: Vec<SanMatcher>,
    allow_expired: bool,
    accept_untrusted: bool,
}

impl ValidationConfig {
    /// Trusts these roots and asks nothing else.
    pub fn from_roots(roots: Vec<CertificateDer<'static>>) -> Result<Self, ConfigError> {
        let mut anchors = Vec::new();
        for (i, root) in roots.iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(|e| {
                ConfigError::new("trusted_ca", format!("certificate {i} is not usable as a root: {e}"))
            })?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { roots, anchors, ..Self::default() })
    }

    /// Trusts anybody whose certificate carries a name that `matcher` accepts: for a check after the chain's own.
    pub fn with_san(matcher: SanMatcher) -> Self {
        Self { sans: vec![matcher], ..Self::default() }
    }

    /// Compiles the message; files it names are read now.
    #[allow(deprecated, reason = "control planes still send match_subject_alt_names")]
    pub fn compile(proto: &pb::CertificateValidationContext) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut config = Self::default();
        if let Some(source) = &proto.trusted_ca {
            let roots = data_source::read(source)
                .and_then(|pem| certificates(&pem))
                .map_err(|e| e.at("trusted_ca"))
                .and_then(Self::from_roots);
            match roots {
                Ok(with_roots) => config = with_roots,
                Err(e) => errors.push(e),
            }
        }
        for (i, m) in proto.match_typed_subject_alt_names.iter().enumerate() {
            match SanMatcher::typed(m) {
                Ok(m) => config.sans.push(m),
                Err(e) => errors.push(e.at(format_args!("match_typed_subject_alt_names[{i}]"))),
            }
        }
        for (i, m) in proto.match_subject_alt_names.iter().enumerate() {
            match SanMatcher::untyped(m) {
                Ok(m) => config.sans.push(m),
                Err(e) => errors.push(e.at(format_args!("match_subject_alt_names[{i}]"))),
            }
        }
        config.allow_expired = proto.allow_expired_certificate;
        config.accept_untrusted = proto.trust_chain_verification()
            == pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted;
        for (field, present) in [
            ("verify_certificate_spki", !proto.verify_certificate_spki.is_empty()),
            ("verify_certificate_hash", !proto.verify_certificate_hash.is_empty()),
            ("crl", proto.crl.is_some()),
            ("custom_validator_config", proto.custom_validator_config.is_some()),
            ("require_signed_certificate_timestamp", proto.require_signed_certificate_timestamp.is_some()),
        ] {
            if present {
                errors.push(ConfigError::unsupported(field, "it"));
            }
        }
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// A default context with one that came by SDS on top, as Envoy merges a `combined_validation_context`: roots of the
    /// later one win, names add up.
    pub fn merged(&self, over: &Self) -> Self {
        let mut merged = self.clone();
        if !over.anchors.is_empty() {
            merged.anchors.clone_from(&over.anchors);
            merged.roots.clone_from(&over.roots);
        }
        merged.sans.extend(over.sans.iter().cloned());
        merged.allow_expired |= over.allow_expired;
        merged.accept_untrusted |= over.accept_untrusted;
        merged
    }

    /// Whether peers are checked against roots at all.
    pub fn has_roots(&self) -> bool {
        !self.anchors.is_empty()
    }
}

/// Which side the peer is, and so which extended key usage its certificate needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// We are the server.
    Client,
    /// We are the client.
    Server,
}

/// The rules in force for one context's connections.
#[derive(Clone, Debug)]
pub struct Validation {
    config: ValidationConfig,
    role: PeerRole,
}

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer showed none and has to.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The chain does not hold.
    #[error("the peer's certificate does not verify: {0}")]
    Chain(webpki::Error),
    /// The chain holds, the names are not the wanted ones.
    #[error("the peer's certificate carries none of the wanted names; it has {0}")]
    San(String),
    /// Not X.509.
    #[error("the peer's certificate does not parse")]
    Unparsable,
}

impl VerifyError {
    /// One word for the `reason` label of `certificate_validation_failures`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Chain(webpki::Error::CertExpired { .. }) => "expired",
            Self::Chain(webpki::Error::CertNotValidYet { .. }) => "not_valid_yet",
            Self::Chain(webpki::Error::UnknownIssuer) => "unknown_issuer",
            Self::Chain(_) => "bad_chain",
            Self::San(_) => "san_mismatch",
            Self::Unparsable => "unparsable",
        }
    }
}

/// The rustls error that raises the alert fitting the reason.
impl From<&VerifyError> for rustls::Error {
    fn from(error: &VerifyError) -> Self {
        use webpki::Error as W;
        match error {
            VerifyError::NoCertificate => Self::NoCertificatesPresented,
            VerifyError::San(_) => CertificateError::ApplicationVerificationFailure.into(),
            VerifyError::Unparsable => CertificateError::BadEncoding.into(),
            VerifyError::Chain(W::CertExpired { .. }) => CertificateError::Expired.into(),
            VerifyError::Chain(W::CertNotValidYet { .. }) => CertificateError::NotValidYet.into(),
            VerifyError::Chain(W::UnknownIssuer) => CertificateError::UnknownIssuer.into(),
            VerifyError::Chain(W::BadDer) => CertificateError::BadEncoding.into(),
            VerifyError::Chain(_) => CertificateError::BadSignature.into(),
        }
    }
}

impl Validation {
    /// Rules for peers of this role.
    pub fn new(config: ValidationConfig, role: PeerRole) -> Self {
        Self { config, role }
    }

    /// Checks a chain (leaf first) at `now` and reads the leaf's names. Without roots every chain passes, as in Envoy
    /// without `trusted_ca`; what it says is then not a verified identity ([`Self::verifies`]).
    pub fn verify_peer(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, VerifyError> {
        let [leaf, intermediates @ ..] = chain else { return Err(VerifyError::NoCertificate) };
        if self.verifies() {
            self.verify_chain(leaf, intermediates, now).map_err(VerifyError::Chain)?;
        }
        let peer = Peer::of(leaf).ok_or(VerifyError::Unparsable)?;
        if !self.config.sans.is_empty() && !self.config.sans.iter().any(|m| m.matches(&peer)) {
            let names: Vec<_> = peer.uri_sans.iter().chain(&peer.dns_sans).cloned().collect();
            return Err(VerifyError::San(if names.is_empty() { "none".into() } else { names.join(", ") }));
        }
        Ok(peer)
    }

    /// Whether a peer that passed is one that the roots vouch for.
    pub fn verifies(&self) -> bool {
        self.config.has_roots() && !self.config.accept_untrusted
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let usage = match self.role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        match self.verify_at(leaf, intermediates, now, usage) {
            // The one thing `allow_expired_certificate` forgives: look again as of the last second it was valid.
            Err(webpki::Error::CertExpired { not_after, .. }) if self.config.allow_expired => {
                self.verify_at(leaf, intermediates, not_after, usage)
            }
            other => other,
        }
    }

    fn verify_at(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<(), webpki::Error> {
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &self.config.anchors,
                intermediates,
                now,
                usage,
                None,
                None,
            )
            .map(|_| ())
    }
}
