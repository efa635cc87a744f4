//! Certificate signing requests: made by a workload, checked by the authority.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::spiffe::SpiffeId;

/// A request that is not signed.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Not PEM, or not a request.
    #[error(
        "the certificate signing request cannot be read: {0}; send a PEM block CERTIFICATE REQUEST (PKCS#10)"
    )]
    Unreadable(String),
    /// Its signature is not by its own key: the sender does not hold the key.
    #[error(
        "the certificate signing request's signature does not verify: it was changed, or signed by another key"
    )]
    Signature,
    /// The key is too weak to certify.
    #[error(
        "the certificate signing request has a weak key ({0}); use ECDSA P-256 or P-384, or RSA of 2048 bits or more"
    )]
    WeakKey(String),
    /// Making a request failed.
    #[error("cannot make a certificate signing request: {0}")]
    Making(rcgen::Error),
}

/// A fresh key and the request for it. The key never leaves the machine; the request is sent.
#[derive(Debug)]
pub struct NewRequest {
    /// The key, PKCS#8 in DER.
    pub key: rustls_pki_types::PrivatePkcs8KeyDer<'static>,
    /// The request as PEM.
    pub csr: String,
}

/// Makes a P-256 key and a request that names `id`. (The authority takes the name from the caller's proven identity and
/// ignores the request's, as istiod does.)
pub fn make(id: &SpiffeId) -> Result<NewRequest, CsrError> {
    let key = KeyPair::generate().map_err(CsrError::Making)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(CsrError::Making)?)];
    let csr = params.serialize_request(&key).and_then(|r| r.pem()).map_err(CsrError::Making)?;
    Ok(NewRequest { key: key.serialize_der().into(), csr })
}

/// A request whose signature and key are good. Only its key is kept: names in a request are claims, not facts.
#[derive(Debug)]
pub struct CheckedRequest {
    pub(crate) key: rcgen::SubjectPublicKeyInfo,
}

/// Checks a request in PEM.
pub fn check(pem: &str) -> Result<CheckedRequest, CsrError> {
    let unreadable = |e: &dyn std::fmt::Display| CsrError::Unreadable(e.to_string());
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|e| unreadable(&e))?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|e| unreadable(&e))?;
    let public = &parsed.certification_request_info.subject_pki;
    match public.parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() >= 2048 => {}
        Ok(PublicKey::RSA(key)) => return Err(CsrError::WeakKey(format!("RSA {}", key.key_size()))),
        Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => {}
        Ok(PublicKey::EC(point)) => return Err(CsrError::WeakKey(format!("EC {}", point.key_size()))),
        _ => return Err(CsrError::WeakKey("not RSA or ECDSA".to_owned())),
    }
    parsed.verify_signature().map_err(|_| CsrError::Signature)?;
    let key = rcgen::SubjectPublicKeyInfo::from_der(public.raw).map_err(|e| unreadable(&e))?;
    Ok(CheckedRequest { key })
}

impl CheckedRequest {
    /// The key's algorithm, as rcgen names it.
    pub fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.key.algorithm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SpiffeId {
        "spiffe://cluster.local/ns/a/sa/b".parse().unwrap()
    }

    #[test]
    fn a_good_request_is_accepted() {
        let made = make(&id()).unwrap();
        check(&made.csr).unwrap();
    }

    #[test]
    fn a_changed_request_is_refused() {
        use base64::Engine;
        let engine = base64::engine::general_purpose::STANDARD;
        let made = make(&id()).unwrap();
        let mut der = CertificateSigningRequestDer::from_pem_slice(made.csr.as_bytes()).unwrap().to_vec();
        let name = der.windows(4).position(|w| w == b"/sa/").unwrap();
        der[name + 4] = b'c';
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            engine.encode(der)
        );
        assert!(matches!(check(&pem), Err(CsrError::Signature)));
    }

    #[test]
    fn a_weak_key_is_refused_by_its_size() {
        // RSA 1024, made once with OpenSSL; no library of ours would make one.
        let weak = include_str!("../testdata/rsa1024.csr.pem");
        match check(weak) {
            Err(CsrError::WeakKey(key)) => assert_eq!(key, "RSA 1024"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(check("hello"), Err(CsrError::Unreadable(_))));
    }
}
