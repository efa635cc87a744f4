//! The root, with its key or without: an intermediate signs leaves and their revocation lists, so that the root's key is needed
//! for another intermediate only, and can be kept where no control plane is.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use weft_certs::authority::{Authority, AuthorityError};

/// A root.
#[derive(Debug)]
pub enum Root {
    /// Its key is here.
    Online(Box<Authority>),
    /// Its key is elsewhere.
    Offline(Box<Certificate>),
}

/// A root's certificate alone.
#[derive(Debug)]
pub struct Certificate {
    der: CertificateDer<'static>,
    pem: String,
    not_after: OffsetDateTime,
}

impl Root {
    /// One whose key is elsewhere; of a text with several certificates, the first is its own.
    ///
    /// # Errors
    /// It is no certificate of an authority.
    pub fn offline(pem: &str) -> Result<Self, AuthorityError> {
        let stored = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let all = weft_certs::pem::certificates(pem.as_bytes()).map_err(|e| stored(&e))?;
        let der = all.into_iter().next().ok_or_else(|| stored(&"no certificate"))?;
        let facts = weft_certs::inspect::facts(&der).map_err(|e| stored(&e))?;
        if !facts.is_ca {
            return Err(stored(&"the certificate is not an authority's (basicConstraints CA)"));
        }
        let pem = weft_certs::pem::encode(&der);
        Ok(Self::Offline(Box::new(Certificate { der, pem, not_after: facts.not_after })))
    }

    /// What signs, if its key is here.
    pub fn signer(&self) -> Option<&Authority> {
        match self {
            Self::Online(authority) => Some(authority),
            Self::Offline(_) => None,
        }
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        match self {
            Self::Online(authority) => authority.certificate(),
            Self::Offline(certificate) => &certificate.der,
        }
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        match self {
            Self::Online(authority) => authority.certificate_pem(),
            Self::Offline(certificate) => &certificate.pem,
        }
    }

    /// When it expires.
    pub fn not_after(&self) -> OffsetDateTime {
        match self {
            Self::Online(authority) => authority.not_after(),
            Self::Offline(certificate) => certificate.not_after,
        }
    }
}

impl From<Authority> for Root {
    fn from(authority: Authority) -> Self {
        Self::Online(Box::new(authority))
    }
}
