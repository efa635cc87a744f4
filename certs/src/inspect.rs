//! What a certificate says, for people: `/certs`, logs and checks.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};
use x509_parser::public_key::PublicKey;

/// A certificate's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// The subject, RFC 2253 text; empty for workload certificates.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// URI names.
    pub uri_sans: Vec<String>,
    /// DNS names.
    pub dns_sans: Vec<String>,
    /// IP addresses.
    pub ip_sans: Vec<String>,
    /// Addresses of mail.
    pub email_sans: Vec<String>,
    /// Names of other kinds that are texts.
    pub other_sans: Vec<String>,
    /// First moment of validity.
    pub not_before: OffsetDateTime,
    /// Last moment of validity.
    pub not_after: OffsetDateTime,
    /// Key algorithm and size: `RSA 2048`, `P-256`.
    pub key: String,
    /// Whether it may sign certificates.
    pub is_ca: bool,
}

/// DER that is not a certificate.
#[derive(Debug, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct NotACertificate(String);

/// Reads a certificate.
pub fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, NotACertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| NotACertificate(e.to_string()))?;
    let time = |t: x509_parser::time::ASN1Time| t.to_datetime();
    let mut facts = Facts {
        serial: parsed.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        uri_sans: Vec::new(),
        dns_sans: Vec::new(),
        ip_sans: Vec::new(),
        email_sans: Vec::new(),
        other_sans: Vec::new(),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        key: match parsed.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
            Ok(PublicKey::EC(point)) => format!("P-{}", point.key_size()),
            _ => "unknown".to_owned(),
        },
        is_ca: parsed.is_ca(),
    };
    // Twice the same extension is none (RFC 5280, section 4.2): readers would differ in which of the two names somebody.
    let names = parsed.subject_alternative_name().map_err(|e| NotACertificate(e.to_string()))?;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::URI(uri) => facts.uri_sans.push((*uri).to_owned()),
            GeneralName::DNSName(dns) => facts.dns_sans.push((*dns).to_owned()),
            GeneralName::IPAddress([a, b, c, d]) => facts.ip_sans.push(format!("{a}.{b}.{c}.{d}")),
            GeneralName::IPAddress(bytes) => {
                if let Ok(octets) = <[u8; 16]>::try_from(*bytes) {
                    facts.ip_sans.push(std::net::Ipv6Addr::from(octets).to_string());
                }
            }
            GeneralName::RFC822Name(mail) => facts.email_sans.push((*mail).to_owned()),
            GeneralName::OtherName(_, value) => facts.other_sans.extend(text(value)),
            _ => {}
        }
    }
    Ok(facts)
}

/// The text that is the value of a name of another kind, if it is one: UTF8String, PrintableString or IA5String, in the tag `[0]`
/// that stands around such values.
fn text(value: &[u8]) -> Option<String> {
    let (tag, content) = element(value)?;
    match tag {
        0xa0 => text(content),
        0x0c | 0x13 | 0x16 => std::str::from_utf8(content).ok().map(str::to_owned),
        _ => None,
    }
}

/// The tag and the content of an element in DER that is all there is (X.690, section 8.1), of up to 65,535 bytes.
fn element(der: &[u8]) -> Option<(u8, &[u8])> {
    let (length, content) = match der {
        [_, short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
        [_, 0x81, long, rest @ ..] => (usize::from(*long), rest),
        [_, 0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    (content.len() == length).then(|| (der[0], content))
}

/// A certificate's subject as RFC 2253 writes it; nothing where it cannot be read.
pub fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| rfc2253(parsed.subject()))
}

/// A certificate's issuer as RFC 2253 writes it; nothing where it cannot be read.
pub fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| rfc2253(parsed.issuer()))
}

/// A name as RFC 2253 writes it: the last relative name first, separated by commas without spaces.
pub fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts = Vec::new();
    for rdn in name.iter() {
        let attributes: Vec<_> = rdn
            .iter()
            .map(|a| {
                let oid = a.attr_type();
                let key = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry())
                    .map_or_else(|_| oid.to_id_string(), str::to_owned);
                format!("{key}={}", escape(a.as_str().unwrap_or_default()))
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (i, c) in value.char_indices() {
        let edge = c == ' ' && (i == 0 || i + 1 == value.len()) || c == '#' && i == 0;
        if edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_with_its_names_twice_names_nobody() {
        let twice = CertificateDer::from_slice(include_bytes!("../testdata/two-names.der"));
        assert!(facts(&twice).is_err());
    }
}
