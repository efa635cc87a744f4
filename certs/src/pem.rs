//! PEM text to DER and back.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// PEM text that does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It cannot be read as PEM.
    #[error("not readable as PEM: {0}")]
    Unreadable(rustls_pki_types::pem::Error),
    /// It holds no certificate.
    #[error("holds no CERTIFICATE block")]
    NoCertificate,
}

/// All certificates in order; at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(PemError::Unreadable)?;
    if found.is_empty() { Err(PemError::NoCertificate) } else { Ok(found) }
}

/// The first private key (PKCS#8, PKCS#1 or SEC1).
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(PemError::Unreadable)
}

/// Whether a chain's first certificate and a key belong together.
///
/// # Errors
/// They do not, or one of them cannot be read; why, in words.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let chain = certificates(chain).map_err(|e| format!("the certificate: {e}"))?;
    let key = private_key(key).map_err(|_| "the key is no private key in PEM form".to_owned())?;
    match rustls::sign::CertifiedKey::from_der(chain, key, crate::provider()) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("they do not belong together: {error}")),
    }
}

/// One certificate as PEM.
pub fn encode(certificate: &CertificateDer<'_>) -> String {
    block("CERTIFICATE", certificate)
}

/// One certificate as PEM, percent-encoded, as headers and logs carry it.
pub fn encode_for_urls(certificate: &CertificateDer<'_>) -> String {
    let mut out = String::new();
    for c in encode(certificate).chars() {
        match c {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            other => out.push(other),
        }
    }
    out
}

/// Certificates as PEM, one after another.
pub fn encode_all(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(encode).collect()
}

/// A PKCS#8 key as PEM.
pub fn encode_key(key: &PrivatePkcs8KeyDer<'_>) -> String {
    block("PRIVATE KEY", key.secret_pkcs8_der())
}

/// A public key (SubjectPublicKeyInfo) as PEM.
pub fn encode_public(spki: &[u8]) -> String {
    block("PUBLIC KEY", spki)
}

pub(crate) fn block(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
