//! What leads from a certificate to its root, found among certificates that came in no order.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate, and the intermediates above it that are among `pool`, lowest first. A root (its own issuer) is not in it.
pub fn above(
    leaf: &CertificateDer<'static>,
    pool: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    let mut chain = vec![leaf.clone()];
    while let Some(last) = chain.last() {
        let next = pool.iter().find(|c| !is_root(c) && !chain.contains(c) && is_issuer(c, last));
        match next {
            Some(next) => chain.push(next.clone()),
            None => break,
        }
    }
    chain
}

/// Whether a certificate is its own issuer, by its names.
pub fn is_root(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, c)| c.issuer().as_raw() == c.subject().as_raw())
}

/// Whether the key of one has signed the other, which names it.
fn is_issuer(issuer: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let (Ok((_, issuer)), Ok((_, certificate))) =
        (X509Certificate::from_der(issuer), X509Certificate::from_der(certificate))
    else {
        return false;
    };
    issuer.subject().as_raw() == certificate.issuer().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::authority::{Authority, KeyKind};

    #[test]
    fn an_intermediate_is_told_from_one_of_the_same_name_and_roots_are_left_out() {
        let now = OffsetDateTime::now_utc();
        let root = Authority::root(KeyKind::P256, now, Duration::days(9)).unwrap();
        let [old, new] = [0, 1].map(|_| root.intermediate(KeyKind::P256, now, Duration::days(5)).unwrap());
        let made = crate::csr::make(&"spiffe://d/ns/a/sa/b".parse().unwrap()).unwrap();
        let request = crate::csr::check(&made.csr).unwrap();
        let id = "spiffe://d/ns/a/sa/b".parse().unwrap();
        let leaf = new.sign(&request, &id, now, Duration::hours(1)).unwrap();
        let all = [&root, &old, &new].map(|a| a.certificate().clone());
        assert_eq!(above(&leaf, &all), [leaf.clone(), new.certificate().clone()]);
        assert_eq!(above(&leaf, &all[..2]), [leaf]);
        assert!(is_root(&all[0]) && !is_root(&all[1]));
    }
}
