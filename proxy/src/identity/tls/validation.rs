//! The rules for a peer's certificate, and the one function that applies them.
//!
//! [`Validation::verify_peer`] is called by the rustls verifiers during a full handshake, so that a failure raises the
//! right alert, and once more after every resumed one, where rustls calls no verifier: a ticket must not outlive the trust
//! or the certificate it was issued under.

use std::sync::Arc;

use base64::Engine;
use rustls::CertificateError;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::data_source;
use super::params::provider;
use super::peer::Peer;
use super::san::SanMatcher;
use super::secret::certificates;
use super::spiffe;
use crate::state::ConfigError;

/// A compiled `CertificateValidationContext`: as it stands inline, or as it came by SDS.
#[derive(Clone, Debug, Default)]
pub struct ValidationConfig {
    /// The roots as given, for display.
    pub roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Roots by trust domain, in place of `anchors`: a domain's roots vouch for its own workloads and for nobody else's.
    domains: Vec<(String, Vec<TrustAnchor<'static>>)>,
    sans: Vec<SanMatcher>,
    allow_expired: bool,
    accept_untrusted: bool,
    /// Revocation lists; a chain whose certificates none of them speaks for does not verify.
    crls: Vec<Arc<CertRevocationList<'static>>>,
    /// Only the leaf has to be spoken for.
    crl_of_leaf_only: bool,
    /// SHA-256 of leaves, of which one has to be the peer's; or of their public keys.
    hashes: Vec<[u8; 32]>,
    key_hashes: Vec<[u8; 32]>,
    /// How many certificates may be between the leaf and the root.
    max_depth: Option<usize>,
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
        if proto.system_root_certs.is_some() && proto.trusted_ca.is_none() {
            match system_roots().and_then(Self::from_roots) {
                Ok(with_roots) => config = with_roots,
                Err(e) => errors.push(e.at("system_root_certs")),
            }
        }
        if let Some(source) = &proto.crl {
            match data_source::read(source).and_then(|pem| revocation_lists(&pem)) {
                Ok(lists) => config.crls = lists,
                Err(e) => errors.push(e.at("crl")),
            }
            if proto.trusted_ca.is_none() && proto.system_root_certs.is_none() {
                errors.push(ConfigError::new(
                    "crl",
                    "needs trusted_ca: lists of unknown authorities say nothing",
                ));
            }
        }
        config.crl_of_leaf_only = proto.only_verify_leaf_cert_crl;
        for (i, text) in proto.verify_certificate_hash.iter().enumerate() {
            match hex(text) {
                Some(hash) => config.hashes.push(hash),
                None => errors.push(ConfigError::new(
                    format!("verify_certificate_hash[{i}]"),
                    format!("{text:?} is not a SHA-256 in hexadecimal digits, with or without colons"),
                )),
            }
        }
        for (i, text) in proto.verify_certificate_spki.iter().enumerate() {
            let hash = base64::engine::general_purpose::STANDARD.decode(text).ok();
            match hash.and_then(|h| <[u8; 32]>::try_from(h).ok()) {
                Some(hash) => config.key_hashes.push(hash),
                None => errors.push(ConfigError::new(
                    format!("verify_certificate_spki[{i}]"),
                    format!("{text:?} is not a SHA-256 in base64"),
                )),
            }
        }
        config.max_depth = proto.max_verify_depth.map(|n| n as usize);
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
        if let Some(custom) = &proto.custom_validator_config {
            match spiffe::domains(custom) {
                Ok(domains) => {
                    config.roots = domains.iter().flat_map(|(_, c)| c.roots.clone()).collect();
                    config.domains = domains.into_iter().map(|(name, c)| (name, c.anchors)).collect();
                }
                Err(e) => errors.push(e.at("custom_validator_config")),
            }
        }
        for (field, present) in
            [("require_signed_certificate_timestamp", proto.require_signed_certificate_timestamp.is_some())]
        {
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
        if over.has_roots() {
            merged.anchors.clone_from(&over.anchors);
            merged.domains.clone_from(&over.domains);
            merged.roots.clone_from(&over.roots);
        }
        merged.sans.extend(over.sans.iter().cloned());
        merged.allow_expired |= over.allow_expired;
        merged.accept_untrusted |= over.accept_untrusted;
        if !over.crls.is_empty() {
            merged.crls.clone_from(&over.crls);
        }
        merged.crl_of_leaf_only |= over.crl_of_leaf_only;
        merged.hashes.extend(&over.hashes);
        merged.key_hashes.extend(&over.key_hashes);
        merged.max_depth = over.max_depth.or(merged.max_depth);
        merged
    }

    /// The same without names of its own: another's names are asked for in their place.
    pub fn without_names(&self) -> Self {
        Self { sans: Vec::new(), ..self.clone() }
    }

    /// The names alone, whoever vouches for them.
    pub fn names(&self) -> Self {
        Self { sans: self.sans.clone(), ..Self::default() }
    }

    /// The same without other trust domains than this one and those that its roots vouch for as well.
    ///
    /// # Errors
    /// Nothing is known of the domain.
    pub fn within(&self, domain: &str) -> Result<Self, ConfigError> {
        let mut own = self.clone();
        if !self.domains.is_empty() {
            let known = self.domains.iter().find(|(name, _)| name == domain);
            let (_, anchors) = known.ok_or_else(|| {
                ConfigError::new("trust_domains", format!("hold none of the name {domain:?}"))
            })?;
            own.domains.retain(|(_, others)| others == anchors);
        }
        Ok(own)
    }

    /// Whether peers are checked against roots at all.
    pub fn has_roots(&self) -> bool {
        !self.anchors.is_empty() || !self.domains.is_empty()
    }

    /// The root that this is made of.
    fn root(&self, anchor: &TrustAnchor<'_>) -> Option<&CertificateDer<'static>> {
        self.roots
            .iter()
            .find(|root| webpki::anchor_from_trusted_cert(root).is_ok_and(|made| made == *anchor))
    }

    /// The roots that may vouch for this leaf; none if it is of a trust domain that is not known.
    fn anchors_for(&self, leaf: &CertificateDer<'_>) -> Option<&[TrustAnchor<'static>]> {
        if self.domains.is_empty() {
            return Some(&self.anchors);
        }
        let peer = Peer::of(leaf)?;
        let domain = spiffe::trust_domain(peer.uri_sans.first()?)?;
        self.domains.iter().find(|(name, _)| name == domain).map(|(_, anchors)| anchors.as_slice())
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
    /// It is none of those that are pinned.
    #[error("the peer's certificate is none of those whose hashes are given")]
    Hash,
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
            Self::Chain(webpki::Error::CertRevoked) => "revoked",
            Self::Chain(_) => "bad_chain",
            Self::San(_) => "san_mismatch",
            Self::Hash => "hash_mismatch",
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
            VerifyError::Hash => CertificateError::InvalidPurpose.into(),
            VerifyError::Chain(W::CertRevoked) => CertificateError::Revoked.into(),
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

    /// The same without names of its own.
    pub fn without_names(&self) -> Self {
        Self { config: self.config.without_names(), role: self.role }
    }

    /// Checks a chain (leaf first) at `now` and reads the leaf's names. Without roots every chain passes, as in Envoy
    /// without `trusted_ca`; what it says is then not a verified identity ([`Self::verifies`]).
    pub fn verify_peer(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer, VerifyError> {
        let [leaf, intermediates @ ..] = chain else { return Err(VerifyError::NoCertificate) };
        if self.verifies() {
            self.verify_chain(leaf, intermediates, now, |_| ()).map_err(VerifyError::Chain)?;
        }
        let peer = Peer::of(leaf).ok_or(VerifyError::Unparsable)?;
        if !self.pinned(leaf).ok_or(VerifyError::Unparsable)? {
            return Err(VerifyError::Hash);
        }
        if !self.config.sans.is_empty() && !self.config.sans.iter().any(|m| m.matches(&peer)) {
            let names: Vec<_> = peer.uri_sans.iter().chain(&peer.dns_sans).cloned().collect();
            return Err(VerifyError::San(if names.is_empty() { "none".into() } else { names.join(", ") }));
        }
        Ok(peer)
    }

    /// The certificate that vouches for the leaf of a chain that verifies: one of those that were shown with it, or a root. It is
    /// verified for this once more.
    pub fn issuer(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<CertificateDer<'static>> {
        let [leaf, intermediates @ ..] = chain else { return None };
        if !self.config.has_roots() {
            return None;
        }
        let found = |path: &VerifiedPath<'_>| match path.intermediate_certificates().next() {
            Some(intermediate) => Some(intermediate.der().into_owned()),
            None => self.config.root(path.anchor()).cloned(),
        };
        self.verify_chain(leaf, intermediates, now, found).ok().flatten()
    }

    /// Whether a peer that passed is one that the roots vouch for.
    pub fn verifies(&self) -> bool {
        self.config.has_roots() && !self.config.accept_untrusted
    }

    /// Whether a leaf is one of those whose hashes are given, if any are; none if it does not parse.
    fn pinned(&self, leaf: &CertificateDer<'_>) -> Option<bool> {
        let (hashes, key_hashes) = (&self.config.hashes, &self.config.key_hashes);
        if hashes.is_empty() && key_hashes.is_empty() {
            return Some(true);
        }
        let is_one = |hashes: &[[u8; 32]], bytes: &[u8]| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
            hashes.iter().any(|h| h == digest.as_ref())
        };
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        Some(is_one(hashes, leaf) || is_one(key_hashes, parsed.public_key().raw))
    }

    /// `read` is told the path to the root.
    fn verify_chain<T>(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        read: impl Fn(&VerifiedPath<'_>) -> T,
    ) -> Result<T, webpki::Error> {
        let usage = match self.role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        match self.verify_at(leaf, intermediates, now, usage, &read) {
            // The one thing `allow_expired_certificate` forgives: look again as of the last second it was valid.
            Err(webpki::Error::CertExpired { not_after, .. }) if self.config.allow_expired => {
                self.verify_at(leaf, intermediates, not_after, usage, &read)
            }
            other => other,
        }
    }

    fn verify_at<T>(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
        read: impl Fn(&VerifiedPath<'_>) -> T,
    ) -> Result<T, webpki::Error> {
        let anchors = self.config.anchors_for(leaf).ok_or(webpki::Error::UnknownIssuer)?;
        let crls: Vec<_> = self.config.crls.iter().map(Arc::as_ref).collect();
        // Other trust domains publish no lists here. Otherwise a certificate that no list speaks for, and a list that has expired, are as good as revoked, as in OpenSSL.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            let depth = match self.config.crl_of_leaf_only {
                true => RevocationCheckDepth::EndEntity,
                false => RevocationCheckDepth::Chain,
            };
            options
                .with_depth(depth)
                .with_status_policy(match self.config.domains.is_empty() {
                    true => UnknownStatusPolicy::Deny,
                    false => UnknownStatusPolicy::Allow,
                })
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let short_enough = |path: &VerifiedPath<'_>| match self.config.max_depth {
            Some(max) if path.intermediate_certificates().count() > max => {
                Err(webpki::Error::MaximumPathDepthExceeded)
            }
            _ => Ok(()),
        };
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                anchors,
                intermediates,
                now,
                usage,
                revocation,
                Some(&short_enough),
            )
            .map(|path| read(&path))
    }
}

/// The revocation lists of a PEM text, which must hold at least one.
fn revocation_lists(pem: &[u8]) -> Result<Vec<Arc<CertRevocationList<'static>>>, ConfigError> {
    let mut lists = Vec::new();
    for (i, der) in CertificateRevocationListDer::pem_slice_iter(pem).enumerate() {
        let der = der.map_err(|e| ConfigError::new("", format!("is not PEM: {e}")))?;
        let list = OwnedCertRevocationList::from_der(&der)
            .map_err(|e| ConfigError::new("", format!("list {i} cannot be used: {e}")))?;
        lists.push(Arc::new(CertRevocationList::Owned(list)));
    }
    if lists.is_empty() {
        return Err(ConfigError::new("", "holds no PEM revocation list"));
    }
    Ok(lists)
}

/// Where systems keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn system_roots() -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok());
    let pem = pem.ok_or_else(|| {
        ConfigError::new("", format!("this system has none of {}", SYSTEM_ROOTS.join(", ")))
    })?;
    // A system's list may hold what is no root to us; one such certificate spoils none of the others.
    let all = certificates(&pem)?;
    Ok(all.into_iter().filter(|root| webpki::anchor_from_trusted_cert(root).is_ok()).collect())
}

/// 32 bytes in hexadecimal digits, with or without colons between them.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
