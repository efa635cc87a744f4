//! What a certificate says about its holder.

use std::net::IpAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The names in a certificate. Only as good as the chain: see [`super::validation::Validation::verify_peer`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The SPIFFE id: the first URI SAN with that scheme.
    pub id: Option<Arc<str>>,
    /// All URI SANs.
    pub uri_sans: Vec<String>,
    /// All DNS SANs.
    pub dns_sans: Vec<String>,
    /// All IP SANs.
    pub ip_sans: Vec<IpAddr>,
    /// The subject, RFC 2253; empty where there is none.
    pub subject: String,
}

impl Peer {
    /// Reads a certificate; none if it is not X.509, or names its holder in two places.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(certificate).ok()?;
        let mut peer = Self { subject: weft_certs::inspect::rfc2253(cert.subject()), ..Self::default() };
        // Twice the same extension is none (RFC 5280, section 4.2), and names nobody.
        if let Some(sans) = cert.subject_alternative_name().ok()? {
            for name in &sans.value.general_names {
                match name {
                    GeneralName::URI(uri) => peer.uri_sans.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => peer.dns_sans.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => peer.ip_sans.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        peer.id = peer.uri_sans.iter().find(|u| u.starts_with("spiffe://")).map(|u| u.as_str().into());
        Some(peer)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_with_its_names_twice_names_nobody() {
        let twice = include_bytes!("../../../../certs/testdata/two-names.der");
        assert_eq!(Peer::of(&CertificateDer::from_slice(twice)), None);
    }
}
