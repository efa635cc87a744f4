//! Certificate signing requests: made by a workload, checked by the authority.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

pub use crate::asked::Names;
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

/// The same for a server, that names DNS names and addresses besides.
pub fn make_server(
    id: &SpiffeId,
    dns: &[&str],
    addresses: &[std::net::IpAddr],
) -> Result<NewRequest, CsrError> {
    let key = KeyPair::generate().map_err(CsrError::Making)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(CsrError::Making)?)];
    for name in dns {
        params.subject_alt_names.push(SanType::DnsName((*name).try_into().map_err(CsrError::Making)?));
    }
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    let csr = params.serialize_request(&key).and_then(|r| r.pem()).map_err(CsrError::Making)?;
    Ok(NewRequest { key: key.serialize_der().into(), csr })
}

/// Makes a request for a key that is there (PEM), without a name: who signs it says whose it is. PEM.
pub fn for_key(key_pem: &str) -> Result<String, CsrError> {
    let key = KeyPair::from_pem(key_pem).map_err(CsrError::Making)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(&key).and_then(|r| r.pem()).map_err(CsrError::Making)
}

/// A request whose signature and key are good. Names in it are claims, not facts.
#[derive(Debug)]
pub struct CheckedRequest {
    pub(crate) key: rcgen::SubjectPublicKeyInfo,
    spki: Vec<u8>,
    names: Names,
    der: Vec<u8>,
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
    let mut names = Names::of_request(&der);
    names.subject = parsed.certification_request_info.subject.to_string();
    Ok(CheckedRequest { key, spki: public.raw.to_vec(), names, der: der.to_vec() })
}

impl CheckedRequest {
    /// The key that is asked for, DER (SubjectPublicKeyInfo).
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// What it names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The request that was checked, and nothing else that may have stood in its text, as PEM.
    pub fn pem(&self) -> String {
        crate::pem::block("CERTIFICATE REQUEST", &self.der)
    }

    /// The same as DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether a certificate is for its key.
    pub fn is_key_of(&self, certificate: &rustls_pki_types::CertificateDer<'_>) -> bool {
        X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.public_key().raw == self.spki)
    }

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
    fn what_a_request_names_is_told() {
        let made = make(&id()).unwrap();
        let names = check(&made.csr).unwrap().names().clone();
        assert_eq!(names, Names { uris: vec![id().to_string()], ..Names::default() });
        let server =
            make_server(&id(), &["istiod.istio-system.svc"], &["10.0.0.1".parse().unwrap()]).unwrap();
        let checked = check(&server.csr).unwrap();
        let names = checked.names();
        assert_eq!(names.dns, ["istiod.istio-system.svc"]);
        assert_eq!(names.to_string(), format!("{}, istiod.istio-system.svc, 10.0.0.1", id()));

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        params.subject_alt_names = vec![SanType::Rfc822Name("a@example.com".try_into().unwrap())];
        let request = params.serialize_request(&key).and_then(|r| r.pem()).unwrap();
        let checked = check(&request).unwrap();
        assert!(!checked.names().others.is_empty() && checked.names().to_string().contains("system:masters"));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(check("hello"), Err(CsrError::Unreadable(_))));
    }
}
