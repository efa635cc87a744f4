//! A request that renews a certificate: the same key, subject and names, byte for byte, as RFC 7030 (4.2.2) wants them where a client
//! renews what it shows.

use rustls::SignatureScheme;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::der::{BIT_STRING, CONTEXT_0, INTEGER, OBJECT_ID, OCTETS, SEQUENCE, SET, write};

/// `extensionRequest` of PKCS#9.
const EXTENSION_REQUEST: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];

/// What the signatures that are made here are called, in DER.
const ALGORITHMS: [(SignatureScheme, &[u8]); 3] = [
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
    ),
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
    ),
    (
        SignatureScheme::RSA_PKCS1_SHA256,
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00],
    ),
];

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
#[error("a certificate cannot be renewed: {0}")]
pub struct RenewalError(String);

/// The request for a successor of `certificate`, whose key this is. DER.
///
/// # Errors
/// One of them cannot be read, or the key is of a kind that signs no requests here.
pub fn request(
    certificate: &CertificateDer<'_>,
    key: PrivateKeyDer<'static>,
) -> Result<Vec<u8>, RenewalError> {
    let bad = |e: &dyn std::fmt::Display| RenewalError(e.to_string());
    let (_, old) = X509Certificate::from_der(certificate).map_err(|e| bad(&e))?;
    let names = old.extensions().iter().find(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let attributes = names.map(|names| {
        let critical: &[u8] = if names.critical { &[0x01, 0x01, 0xff] } else { &[] };
        let oid = write(OBJECT_ID, &[names.oid.as_bytes()]);
        let extension = write(SEQUENCE, &[&oid, critical, &write(OCTETS, &[names.value])]);
        let wanted = write(SET, &[&write(SEQUENCE, &[&extension])]);
        write(SEQUENCE, &[&write(OBJECT_ID, &[&EXTENSION_REQUEST]), &wanted])
    });
    let attributes = write(CONTEXT_0, &[&attributes.unwrap_or_default()]);
    let version = write(INTEGER, &[&[0]]);
    let info = write(SEQUENCE, &[&version, old.subject().as_raw(), old.public_key().raw, &attributes]);

    let key = crate::provider().key_provider.load_private_key(key).map_err(|e| bad(&e))?;
    let signer = key
        .choose_scheme(&ALGORITHMS.map(|(scheme, _)| scheme))
        .ok_or_else(|| bad(&"its key is neither ECDSA P-256 or P-384, nor RSA"))?;
    let algorithm = ALGORITHMS.iter().find(|(scheme, _)| *scheme == signer.scheme());
    let (_, algorithm) = algorithm.ok_or_else(|| bad(&"its key signs otherwise"))?;
    let signature = signer.sign(&info).map_err(|e| bad(&e))?;
    Ok(write(SEQUENCE, &[&info, algorithm, &write(BIT_STRING, &[&[0], &signature])]))
}

/// Whether a certificate is a successor of another: the same key, subject and names.
pub fn succeeds(new: &CertificateDer<'_>, old: &CertificateDer<'_>) -> bool {
    let (Ok((_, new)), Ok((_, old))) = (X509Certificate::from_der(new), X509Certificate::from_der(old))
    else {
        return false;
    };
    let names = |c: &X509Certificate<'_>| {
        let found = c.extensions().iter().find(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
        found.map(|e| e.value.to_vec())
    };
    new.subject().as_raw() == old.subject().as_raw()
        && new.public_key().raw == old.public_key().raw
        && names(&new) == names(&old)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::ParsedExtension;

    use super::*;

    #[test]
    fn a_request_has_the_certificates_subject_names_and_key_and_is_signed_by_it() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            for names in [vec!["weft.example".to_owned()], Vec::new()] {
                let mut params = CertificateParams::new(names.clone()).unwrap();
                params.distinguished_name.push(DnType::OrganizationName, "Wächter");
                params.distinguished_name.push(DnType::CommonName, "weft");
                let old = params.self_signed(&key).unwrap();
                let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
                let der = request(old.der(), private).unwrap();
                let (rest, parsed) = X509CertificationRequest::from_der(&der).unwrap();
                assert!(rest.is_empty());
                parsed.verify_signature().unwrap();
                let info = &parsed.certification_request_info;
                let (_, certificate) = X509Certificate::from_der(old.der()).unwrap();
                assert_eq!(info.subject.as_raw(), certificate.subject().as_raw());
                assert_eq!(info.subject_pki.raw, certificate.public_key().raw);
                let asked: Vec<_> = parsed.requested_extensions().into_iter().flatten().collect();
                assert_eq!(asked.len(), names.len(), "{asked:?}");
                for extension in asked {
                    let ParsedExtension::SubjectAlternativeName(all) = extension else {
                        panic!("{extension:?}")
                    };
                    assert!(all.general_names[0].to_string().contains("weft.example"));
                }
                let again = params.self_signed(&key).unwrap();
                assert!(succeeds(again.der(), old.der()));
                let other = CertificateParams::new(vec!["else.example".to_owned()]).unwrap();
                assert!(!succeeds(other.self_signed(&key).unwrap().der(), old.der()));
                let other = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
                assert!(!succeeds(other.der(), old.der()));
            }
        }
    }
}
