//! PKCS#7 messages that carry certificates and nothing else (RFC 5652's SignedData without signers), as servers of enrolment answer
//! with. A message vouches for nothing: who has one checks the certificates.

use rustls_pki_types::CertificateDer;

use crate::der::{CONTEXT_0, INTEGER, OBJECT_ID, SEQUENCE, SET, element, expect};

/// 1.2.840.113549.1.7.2.
const SIGNED_DATA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];

/// Bytes that are no such message.
#[derive(Debug, thiserror::Error)]
#[error("not a PKCS#7 message of certificates (SignedData): {0}")]
pub struct NotCertificates(&'static str);

/// The certificates of a message, as they stand in it; at least one.
///
/// # Errors
/// It is no such message, or has none.
pub fn certificates(message: &[u8]) -> Result<Vec<CertificateDer<'static>>, NotCertificates> {
    let bad = |what: &'static str| move || NotCertificates(what);
    let (outer, _) = expect(message, SEQUENCE).ok_or_else(bad("it does not begin as one, or is cut off"))?;
    let (kind, rest) = expect(outer.content, OBJECT_ID).ok_or_else(bad("it names no type"))?;
    if kind.content != SIGNED_DATA {
        return Err(NotCertificates("it is of another type"));
    }
    let (explicit, _) = expect(rest, CONTEXT_0).ok_or_else(bad("it is empty"))?;
    let (signed, _) = expect(explicit.content, SEQUENCE).ok_or_else(bad("it is empty"))?;
    let mut rest = signed.content;
    // Version, digests, and what is signed: of no interest where nobody signs.
    for tag in [INTEGER, SET, SEQUENCE] {
        rest = expect(rest, tag).ok_or_else(bad("its parts are not in order"))?.1;
    }
    let none = "it holds no certificate";
    let (held, _) = expect(rest, CONTEXT_0).ok_or_else(bad(none))?;
    let (mut found, mut rest) = (Vec::new(), held.content);
    while !rest.is_empty() {
        let (next, after) = element(rest).ok_or_else(bad("a certificate in it is cut off"))?;
        // There are certificates of other kinds, which are tagged.
        if next.tag == SEQUENCE {
            found.push(CertificateDer::from(next.whole.to_vec()));
        }
        rest = after;
    }
    if found.is_empty() { Err(NotCertificates(none)) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;

    /// Root and leaf in a message by OpenSSL (`crl2pkcs7 -nocrl -outform DER`), and both as PEM.
    fn openssls() -> (Vec<u8>, Vec<CertificateDer<'static>>) {
        let text: String =
            include_str!("../testdata/certs-only.p7b").lines().filter(|l| !l.starts_with('-')).collect();
        let message = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        (message, crate::pem::certificates(include_bytes!("../testdata/certs-only.pem")).unwrap())
    }

    #[test]
    fn a_message_of_openssls_has_its_certificates() {
        let (message, expected) = openssls();
        assert_eq!(certificates(&message).unwrap(), expected);
    }

    #[test]
    fn one_whose_ends_are_marked_has_them_too() {
        // As Bouncy Castle writes it.
        let (message, expected) = openssls();
        let open = |tag: u8, content: &[u8]| [&[tag, 0x80], content, &[0, 0]].concat();
        let (outer, _) = element(&message).unwrap();
        let (kind, rest) = element(outer.content).unwrap();
        let (explicit, _) = element(rest).unwrap();
        let (signed, _) = element(explicit.content).unwrap();
        let ber = open(SEQUENCE, &[kind.whole, &open(CONTEXT_0, &open(SEQUENCE, signed.content))].concat());
        assert_ne!(ber, message);
        assert_eq!(certificates(&ber).unwrap(), expected);
    }

    #[test]
    fn what_is_cut_off_changed_or_something_else_is_refused_or_read_and_never_more() {
        let (message, expected) = openssls();
        for end in 0..message.len() {
            assert!(certificates(&message[..end]).is_err(), "cut at {end}");
        }
        for at in 0..message.len() {
            for bit in 0..8 {
                let mut changed = message.clone();
                changed[at] ^= 1 << bit;
                // It may still be one, with other certificates; reading it must end.
                let _ = certificates(&changed);
            }
        }
        let error = certificates(&expected[0]).unwrap_err().to_string();
        assert!(error.contains("names no type"), "{error}");
        assert!(certificates(b"hello").is_err() && certificates(b"").is_err());
    }
}
