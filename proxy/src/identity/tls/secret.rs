//! A secret as it is published: a key with its chain, the rules for the peer's chain, or bytes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::validation::ValidationConfig;
use crate::state::ConfigError;

/// What an SDS name stands for.
#[derive(Clone)]
pub enum Secret {
    /// A certificate chain, leaf first, and the key to its leaf.
    Certificate(Arc<CertifiedKey>),
    /// Trust anchors and rules for the peer's certificate.
    Validation(Arc<ValidationConfig>),
    /// Bytes, such as a password.
    Generic(Bytes),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(pair) => f.debug_tuple("Certificate").field(pair).finish(),
            Self::Validation(rules) => f.debug_tuple("Validation").field(rules).finish(),
            Self::Generic(_) => f.write_str("Generic(hidden)"),
        }
    }
}

impl Secret {
    /// A certificate secret from DER. The key is checked against the leaf, so that a mismatched pair is refused here and
    /// not at the first handshake.
    pub fn certificate(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, ConfigError> {
        if chain.is_empty() {
            return Err(ConfigError::new("certificate_chain", "holds no certificate"));
        }
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|e| ConfigError::new("private_key", format!("is not a usable key: {e}")))?;
        let pair = CertifiedKey::new(chain, key);
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(ConfigError::new("private_key", "does not belong to the first certificate"));
            }
        }
        Ok(Self::Certificate(Arc::new(pair)))
    }

    /// A certificate secret from PEM.
    pub fn certificate_pem(chain: &[u8], key: &[u8]) -> Result<Self, ConfigError> {
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| ConfigError::new("private_key", format!("is not a PEM key: {e}")))?;
        Self::certificate(certificates(chain).map_err(|e| e.at("certificate_chain"))?, key)
    }

    /// A validation secret that trusts these roots and asks nothing else of the peer.
    pub fn roots(roots: Vec<CertificateDer<'static>>) -> Result<Self, ConfigError> {
        Ok(Self::Validation(Arc::new(ValidationConfig::from_roots(roots)?)))
    }

    /// The certificate and key, if it is that kind.
    pub fn as_certificate(&self) -> Option<&Arc<CertifiedKey>> {
        match self {
            Self::Certificate(pair) => Some(pair),
            Self::Validation(_) | Self::Generic(_) => None,
        }
    }

    /// The validation rules, if it is that kind.
    pub fn as_validation(&self) -> Option<&Arc<ValidationConfig>> {
        match self {
            Self::Validation(rules) => Some(rules),
            Self::Certificate(_) | Self::Generic(_) => None,
        }
    }

    /// The bytes, if it is that kind.
    pub fn as_generic(&self) -> Option<&Bytes> {
        match self {
            Self::Generic(bytes) => Some(bytes),
            Self::Certificate(_) | Self::Validation(_) => None,
        }
    }
}

/// All certificates of a PEM text, which must hold at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(ConfigError::new("", "holds no PEM certificate")),
        Err(e) => Err(ConfigError::new("", format!("is not PEM: {e}"))),
    }
}
