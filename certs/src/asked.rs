//! What a request asks for, read from its bytes: whoever believes a request reads all of it, so nothing may stand in it that is not
//! seen here. The same readers look at what was issued ([`crate::issued`]).

use std::net::IpAddr;

use x509_parser::der_parser::oid::Oid;

use crate::der::{BIT_STRING, CONTEXT_0, Element, INTEGER, OBJECT_ID, OCTETS, SEQUENCE, SET, expect, write};

/// `extensionRequest` of PKCS#9.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
/// `challengePassword` of PKCS#9. It says nothing of the certificate.
const CHALLENGE_PASSWORD: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07];
pub(crate) const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
pub(crate) const PURPOSES: &[u8] = &[0x55, 0x1d, 0x25];
pub(crate) const SERVER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
pub(crate) const CLIENT: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
/// digitalSignature, the first bit.
pub(crate) const DIGITAL_SIGNATURE: u16 = 0x8000;
/// keyCertSign and cRLSign.
pub(crate) const SIGNS_OTHERS: u16 = 0x0600;
/// digitalSignature, keyEncipherment and keyAgreement: what TLS has a leaf's key do.
const USUAL: u16 = DIGITAL_SIGNATURE | 0x2000 | 0x0800;

/// What a request names, for a signer that takes names from requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its subject, RFC 2253 text.
    pub subject: String,
    /// URIs.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// What else it asks for, in words: names of other kinds, attributes, extensions and rights that no leaf of a mesh has.
    pub others: Vec<String>,
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subject, uris, dns, addresses, others } = self;
        let mut parts: Vec<String> = uris.iter().chain(dns).cloned().collect();
        parts.extend((!subject.is_empty()).then(|| format!("the subject {subject:?}")));
        parts.extend(addresses.iter().map(ToString::to_string));
        parts.extend(others.iter().cloned());
        f.write_str(&if parts.is_empty() { "nobody".to_owned() } else { parts.join(", ") })
    }
}

impl Names {
    /// What the attributes of a request (DER) ask for; its subject is not read here.
    pub(crate) fn of_request(der: &[u8]) -> Self {
        let mut names = Self::default();
        let Some(attributes) = attributes(der) else {
            names.others.push("what is not in DER".to_owned());
            return names;
        };
        let mut requests = 0;
        let mut passwords = 0;
        for (kind, values) in attributes {
            match kind {
                // Readers differ in which of two they heed.
                EXTENSION_REQUEST if requests > 0 => {
                    names.others.push("a second extensionRequest".to_owned())
                }
                EXTENSION_REQUEST => {
                    requests += 1;
                    match only(values, SEQUENCE).and_then(each).and_then(|all| extensions(&all)) {
                        Some(all) => names.take(&all),
                        None => names.others.push("an extensionRequest that is not one list".to_owned()),
                    }
                }
                CHALLENGE_PASSWORD if passwords == 0 => passwords += 1,
                _ => names.others.push(format!("the attribute {}", dotted(kind))),
            }
        }
        names
    }

    fn take(&mut self, extensions: &[(&[u8], &[u8])]) {
        for (at, (kind, value)) in extensions.iter().enumerate() {
            if extensions[..at].iter().any(|(before, _)| before == kind) {
                self.others.push(format!("the extension {} twice", dotted(kind)));
                continue;
            }
            match *kind {
                ALTERNATIVE_NAMES => self.take_alternative(value),
                KEY_USAGE if key_usage(value).is_some_and(|usage| usage & !USUAL == 0) => {}
                KEY_USAGE => self
                    .others
                    .push("key usages besides digitalSignature, keyEncipherment and keyAgreement".to_owned()),
                PURPOSES => match purposes(value) {
                    Some(all) if all.iter().all(|purpose| [SERVER, CLIENT].contains(purpose)) => {}
                    _ => self.others.push("extended key usages besides serverAuth and clientAuth".to_owned()),
                },
                _ => self.others.push(format!("the extension {}", dotted(kind))),
            }
        }
    }

    /// The names of a subjectAltName.
    pub(crate) fn take_alternative(&mut self, value: &[u8]) {
        let Some(all) = only(value, SEQUENCE).and_then(each) else {
            self.others.push("alternative names that cannot be read".to_owned());
            return;
        };
        for name in all {
            let text = || std::str::from_utf8(name.content).ok().filter(|text| text.is_ascii());
            match (name.tag, text()) {
                (0x86, Some(uri)) => self.uris.push(uri.to_owned()),
                (0x82, Some(dns)) => self.dns.push(dns.to_owned()),
                (0x87, _) => match address(name.content) {
                    Some(address) => self.addresses.push(address),
                    None => self.others.push("an address that is none".to_owned()),
                },
                (0x81, Some(mail)) => self.others.push(format!("the mail address {mail:?}")),
                (tag, _) => self.others.push(format!("a name of another kind ({})", tag & 0x1f)),
            }
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The bits of a keyUsage, the first one highest.
pub(crate) fn key_usage(value: &[u8]) -> Option<u16> {
    match only(value, BIT_STRING)? {
        [_] => Some(0),
        [_, first] => Some(u16::from_be_bytes([*first, 0])),
        [_, first, second] => Some(u16::from_be_bytes([*first, *second])),
        _ => None,
    }
}

/// What an extendedKeyUsage lists.
pub(crate) fn purposes(value: &[u8]) -> Option<Vec<&[u8]>> {
    let all = each(only(value, SEQUENCE)?)?;
    all.iter().map(|purpose| (purpose.tag == OBJECT_ID).then_some(purpose.content)).collect()
}

/// An object identifier as people write it.
pub(crate) fn dotted(oid: &[u8]) -> String {
    Oid::new(oid.into()).to_id_string()
}

/// The attributes of a request, each with its values; nothing where it is not DER from its first byte to its last.
fn attributes(der: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let (info, _) = expect(only(der, SEQUENCE)?, SEQUENCE)?;
    let (_, rest) = expect(strict(&info)?, INTEGER)?;
    let (_, rest) = expect(rest, SEQUENCE)?;
    let (_, rest) = expect(rest, SEQUENCE)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let all = each(only(rest, CONTEXT_0)?)?;
    all.iter()
        .map(|attribute| {
            let (kind, values) = expect(attribute.content, OBJECT_ID)?;
            Some((strict(&kind)?, only(values, SET)?)).filter(|_| attribute.tag == SEQUENCE)
        })
        .collect()
}

/// Each extension with its value.
fn extensions<'a>(all: &[Element<'a>]) -> Option<Vec<(&'a [u8], &'a [u8])>> {
    all.iter()
        .map(|extension| {
            let (kind, rest) = expect(extension.content, OBJECT_ID)?;
            let value = match expect(rest, 0x01) {
                Some((_critical, value)) => value,
                None => rest,
            };
            Some((strict(&kind)?, only(value, OCTETS)?)).filter(|_| extension.tag == SEQUENCE)
        })
        .collect()
}

/// The content of the one element that this is.
fn only(input: &[u8], tag: u8) -> Option<&[u8]> {
    let (found, rest) = expect(input, tag)?;
    strict(&found).filter(|_| rest.is_empty())
}

/// All elements, and nothing after them.
fn each(mut input: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut all = Vec::new();
    while !input.is_empty() {
        let (found, rest) = crate::der::element(input)?;
        strict(&found)?;
        all.push(found);
        input = rest;
    }
    Some(all)
}

/// An element's content, if its head is as DER has it: others read BER otherwise.
fn strict<'a>(element: &Element<'a>) -> Option<&'a [u8]> {
    (write(element.tag, &[element.content]) == element.whole).then_some(element.content)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    const SAN: &str = "spiffe://cluster.local/ns/a/sa/b";

    /// A request with these attributes (type, content of the set), read.
    fn asked(attributes: &[(&[u8], &[u8])]) -> Names {
        let attributes: Vec<Vec<u8>> = attributes
            .iter()
            .map(|(kind, values)| write(SEQUENCE, &[&write(OBJECT_ID, &[kind]), &write(SET, &[values])]))
            .collect();
        let attributes: Vec<&[u8]> = attributes.iter().map(Vec::as_slice).collect();
        let key = KeyPair::generate().unwrap();
        let info = write(
            SEQUENCE,
            &[
                &write(INTEGER, &[&[0]]),
                &write(SEQUENCE, &[]),
                &rcgen::PublicKeyData::subject_public_key_info(&key),
                &write(CONTEXT_0, &attributes),
            ],
        );
        let der = write(SEQUENCE, &[&info, &write(SEQUENCE, &[]), &write(BIT_STRING, &[&[0]])]);
        Names::of_request(&der)
    }

    fn extension(kind: &[u8], value: &[u8]) -> Vec<u8> {
        write(SEQUENCE, &[&write(OBJECT_ID, &[kind]), &write(OCTETS, &[value])])
    }

    fn names(uri: &str) -> Vec<u8> {
        extension(ALTERNATIVE_NAMES, &write(SEQUENCE, &[&write(0x86, &[uri.as_bytes()])]))
    }

    #[test]
    fn nothing_hides_in_a_request() {
        let own = write(SEQUENCE, &[&names(SAN)]);
        let admin = write(SEQUENCE, &[&names("spiffe://cluster.local/ns/a/sa/admin")]);
        let good = Names { uris: vec![SAN.to_owned()], ..Names::default() };
        assert_eq!(asked(&[(EXTENSION_REQUEST, &own)]), good);
        let password = (CHALLENGE_PASSWORD, &[0x0c, 1, b'x'][..]);
        assert_eq!(asked(&[password, (EXTENSION_REQUEST, &own)]), good);
        let microsoft: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0e];
        let twice = write(SEQUENCE, &[&names(SAN), &names("spiffe://cluster.local/ns/a/sa/admin")]);
        let both = [own.clone(), admin.clone()].concat();
        // Attributes, each by its type.
        type Attributes<'a> = &'a [(&'a [u8], &'a [u8])];
        let cases: [(Attributes<'_>, &str); 7] = [
            (&[(EXTENSION_REQUEST, &own), (EXTENSION_REQUEST, &admin)], "a second extensionRequest"),
            (&[(EXTENSION_REQUEST, &own), (microsoft, &admin)], "the attribute 1.3.6.1.4.1.311.2.1.14"),
            (&[(EXTENSION_REQUEST, &both)], "not one list"),
            (&[(EXTENSION_REQUEST, &[])], "not one list"),
            (&[(EXTENSION_REQUEST, &twice)], "the extension 2.5.29.17 twice"),
            (&[password, (EXTENSION_REQUEST, &own), password], "the attribute 1.2.840.113549.1.9.7"),
            // The length could be written shorter.
            (&[(EXTENSION_REQUEST, &[0x30, 0x81, 0])], "not one list"),
        ];
        for (attributes, words) in cases {
            let names = asked(attributes);
            assert!(names.others.len() == 1 && names.to_string().contains(words), "{words}: {names:?}");
        }
        // After its end, too.
        let der = [&[0x30, 0][..], &[5, 0]].concat();
        assert_eq!(Names::of_request(&der).others, ["what is not in DER"]);
    }

    #[test]
    fn rights_count_by_what_they_are() {
        let key = KeyPair::generate().unwrap();
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(SAN.try_into().unwrap())];
            change(&mut params);
            let pem = params.serialize_request(&key).and_then(|r| r.pem()).unwrap();
            crate::csr::check(&pem).unwrap().names().clone()
        };
        let usual = with(&|p| {
            use KeyUsagePurpose::{DigitalSignature, KeyAgreement, KeyEncipherment};
            p.key_usages = vec![DigitalSignature, KeyEncipherment, KeyAgreement];
            p.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert_eq!(usual, Names { uris: vec![SAN.to_owned()], ..Names::default() });
        for usage in [
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::ContentCommitment,
            KeyUsagePurpose::DecipherOnly,
        ] {
            let names = with(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature, usage]);
            assert!(names.to_string().contains("key usages besides"), "{names}");
        }
        for purpose in [rcgen::ExtendedKeyUsagePurpose::CodeSigning, rcgen::ExtendedKeyUsagePurpose::Any] {
            let names = with(&|p| p.extended_key_usages = vec![purpose.clone()]);
            assert!(names.to_string().contains("extended key usages besides"), "{names}");
        }
        let names = with(&|p| {
            p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0])];
        });
        assert_eq!(names.others, ["the extension 2.5.29.19"]);
        let names = with(&|p| {
            p.subject_alt_names.push(SanType::Rfc822Name("a@example.com".try_into().unwrap()));
            p.subject_alt_names.push(SanType::IpAddress("fd00::1".parse().unwrap()));
        });
        assert_eq!(names.others, ["the mail address \"a@example.com\""]);
        assert_eq!(names.addresses, ["fd00::1".parse::<IpAddr>().unwrap()]);
    }
}
