//! What a TLS client is recognised by: JA3 and JA4, digests of what its ClientHello offers. What clients put in at random
//! (GREASE, RFC 8701) is left out everywhere, as both say.

use std::fmt::Write;

use md5::{Digest, Md5};

use crate::identity::tls::client_hello;
use crate::io::Fingerprints;

// Extensions, by their numbers at IANA.
const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const EC_POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// The fingerprints of the client whose stream begins so; none if that is no whole ClientHello.
pub fn of(bytes: &[u8], ja3: bool, ja4: bool) -> Option<Fingerprints> {
    let body = client_hello(bytes)?;
    let hello = Hello::parse(&body)?;
    Some(Fingerprints { ja3: ja3.then(|| hello.ja3()), ja4: ja4.then(|| hello.ja4()) })
}

/// What of a ClientHello (RFC 8446, section 4.1.2) counts.
struct Hello<'a> {
    version: u16,
    ciphers: Vec<u16>,
    /// In their order.
    extensions: Vec<(u16, &'a [u8])>,
}

impl<'a> Hello<'a> {
    fn parse(mut body: &'a [u8]) -> Option<Self> {
        let version = u16::from_be_bytes([*body.first()?, *body.get(1)?]);
        // What is random; then the session, the ciphers, the compression.
        body = body.get(2 + 32..)?;
        let _session = part::<1>(&mut body)?;
        let ciphers = part::<2>(&mut body)?;
        let _compression = part::<1>(&mut body)?;
        let mut all = if body.is_empty() { body } else { part::<2>(&mut body)? };
        let mut extensions = Vec::new();
        while let [high, low, rest @ ..] = all {
            all = rest;
            extensions.push((u16::from_be_bytes([*high, *low]), part::<2>(&mut all)?));
        }
        Some(Self { version, ciphers: numbers(ciphers).collect(), extensions })
    }

    fn extension(&self, wanted: u16) -> Option<&'a [u8]> {
        self.extensions.iter().find(|(kind, _)| *kind == wanted).map(|(_, data)| *data)
    }

    /// The numbers in the list that is an extension's only content.
    fn list<const WIDTH: usize>(&self, extension: u16) -> impl Iterator<Item = u16> {
        let list = self.extension(extension).and_then(|mut data| part::<WIDTH>(&mut data));
        numbers(list.unwrap_or_default())
    }

    /// The extensions' own numbers.
    fn kinds(&self) -> impl Iterator<Item = u16> {
        self.extensions.iter().map(|(kind, _)| *kind).filter(|kind| !is_grease(*kind))
    }

    fn ja3(&self) -> String {
        let joined = |numbers: &mut dyn Iterator<Item = u16>| {
            numbers.map(|number| number.to_string()).collect::<Vec<_>>().join("-")
        };
        let formats = self.extension(EC_POINT_FORMATS).and_then(|mut data| part::<1>(&mut data));
        let text = [
            self.version.to_string(),
            joined(&mut self.ciphers.iter().copied()),
            joined(&mut self.kinds()),
            joined(&mut self.list::<2>(SUPPORTED_GROUPS)),
            joined(&mut formats.unwrap_or_default().iter().map(|format| u16::from(*format))),
        ];
        hex(&Md5::digest(text.join(",")))
    }

    fn ja4(&self) -> String {
        let version = match self.list::<1>(SUPPORTED_VERSIONS).max().unwrap_or(self.version) {
            0x0304 => "13",
            0x0303 => "12",
            0x0302 => "11",
            0x0301 => "10",
            _ => "00",
        };
        let named = if self.extension(SERVER_NAME).is_some() { 'd' } else { 'i' };
        let (ciphers, extensions) = (self.ciphers.len().min(99), self.kinds().count().min(99));
        let alpn = self.extension(ALPN).map_or("00".to_owned(), alpn);
        let mut sorted = self.ciphers.clone();
        sorted.sort_unstable();
        // The two whose content is told apart from them.
        let mut kinds: Vec<_> = self.kinds().filter(|kind| ![SERVER_NAME, ALPN].contains(kind)).collect();
        kinds.sort_unstable();
        let mut offered = list(&kinds);
        let signatures: Vec<_> = self.list::<2>(SIGNATURE_ALGORITHMS).collect();
        if !offered.is_empty() && !signatures.is_empty() {
            let _ = write!(offered, "_{}", list(&signatures));
        }
        let (sorted, offered) = (short(&list(&sorted)), short(&offered));
        format!("t{version}{named}{ciphers:02}{extensions:02}{alpn}_{sorted}_{offered}")
    }
}

/// Takes what stands behind its length, which has so many bytes.
fn part<'a, const WIDTH: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(WIDTH)?;
    let length = length.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte));
    let (found, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(found)
}

/// Numbers of two bytes, but for what is there at random.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let number = |pair: &[u8]| pair.try_into().map(u16::from_be_bytes).ok();
    bytes.chunks_exact(2).filter_map(number).filter(|number| !is_grease(*number))
}

fn is_grease(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// The first and the last character of the first protocol, or of its hexadecimal digits where one of them is neither letter nor digit.
fn alpn(mut data: &[u8]) -> String {
    let first = part::<2>(&mut data).and_then(|mut list| part::<1>(&mut list)).unwrap_or_default();
    match (first.first(), first.last()) {
        (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric() => {
            [char::from(*a), char::from(*z)].iter().collect()
        }
        (Some(a), Some(z)) => format!("{:x}{:x}", a >> 4, z & 0x0f),
        _ => "00".to_owned(),
    }
}

/// Numbers in hexadecimal digits, with commas.
fn list(numbers: &[u16]) -> String {
    numbers.iter().map(|number| format!("{number:04x}")).collect::<Vec<_>>().join(",")
}

/// The first twelve digits of a text's digest; zeros for no text.
fn short(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(12);
    }
    hex(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref()[..6])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_of(numbers: &[u16]) -> Vec<u8> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
    }

    fn prefixed(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    /// A record with a ClientHello.
    fn hello(version: u16, ciphers: &[u16], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let offered: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), prefixed(data)].concat())
            .collect();
        let body =
            [&version.to_be_bytes()[..], &[82; 32], &[0], &list_of(ciphers), &[1, 0], &prefixed(&offered)]
                .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[22, 3, 1][..], &prefixed(&[&[1], &length[1..], &body].concat())].concat()
    }

    fn fingerprints(bytes: &[u8]) -> (String, String) {
        let found = of(bytes, true, true).unwrap();
        (found.ja3.unwrap(), found.ja4.unwrap())
    }

    fn name() -> (u16, Vec<u8>) {
        (SERVER_NAME, b"\0\x0c\0\0\x09a.example".to_vec())
    }

    fn newest() -> Vec<(u16, Vec<u8>)> {
        vec![
            (0x0a0a, Vec::new()),
            name(),
            (SUPPORTED_GROUPS, list_of(&[0x1a1a, 29, 23])),
            (EC_POINT_FORMATS, vec![1, 0]),
            (SIGNATURE_ALGORITHMS, list_of(&[0x0403, 0x0804])),
            (SUPPORTED_VERSIONS, vec![6, 0x3a, 0x3a, 3, 4, 3, 3]),
            (51, b"\0\x24\0\x1d\0\x20kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk".to_vec()),
        ]
    }

    /// What a real Envoy says of the same bytes, but where it does not leave out what is random.
    #[test]
    fn clients_are_recognised_as_elsewhere() {
        let protocols = |list: &[u8]| (ALPN, prefixed(list));
        let with = |protocols| [newest(), vec![protocols]].concat();
        let groups = (SUPPORTED_GROUPS, list_of(&[23]));
        let many: Vec<u16> = (0xc000..0xc000 + 110).collect();
        for (bytes, ja3, ja4) in [
            (
                hello(0x0303, &[0x4a4a, 0x1301, 0xc02b], &newest()),
                "325402b1675ef8b830b70159f08824e8",
                "t13d020600_777cda164f4b_078775ef5e04",
            ),
            (
                hello(0x0303, &[0x1301], &with(protocols(b"\x02h2\x01x"))),
                "",
                "t13d0107h2_0f2cb44170f4_078775ef5e04",
            ),
            (
                hello(0x0303, &[0x1301], &with(protocols(b"\x01h"))),
                "",
                "t13d0107hh_0f2cb44170f4_078775ef5e04",
            ),
            (
                hello(0x0303, &[0x1301], &with(protocols(b"\x03\xabx\xcd"))),
                "",
                "t13d0107ad_0f2cb44170f4_078775ef5e04",
            ),
            (
                hello(0x0303, &[0x1301], &with(protocols(b"\x09h"))),
                "",
                "t13d010700_0f2cb44170f4_078775ef5e04",
            ),
            (
                hello(
                    0x0303,
                    &[0xc02b],
                    &[
                        name(),
                        groups.clone(),
                        (EC_POINT_FORMATS, vec![1, 0]),
                        (SIGNATURE_ALGORITHMS, list_of(&[0x0403])),
                    ],
                ),
                "f6ed1eb954fac3c61a25fc3dc6b3798f",
                "t12d010400_648b5c445417_2bbaf9536c97",
            ),
            (
                hello(0x0303, &[0xc02b], &[name(), groups]),
                "6964ee03b10e96fbc24c30e3410ed1c0",
                "t12d010200_648b5c445417_a8f3e973773c",
            ),
            (
                hello(0x0303, &[0xc02b], &[]),
                "8f7412333aecdf6564c6f68c36da511d",
                "t12i010000_648b5c445417_000000000000",
            ),
            (
                hello(0x0301, &[0xc013], &[name()]),
                "0be87185245140f9fdf721c259b7b807",
                "t10d010100_5761f4ffd59f_000000000000",
            ),
            (
                hello(0x0303, &many, &[name()]),
                "ba0b4a555c36dce9622e2da49c0983cf",
                "t12d990100_99bdbb18a2d5_000000000000",
            ),
            (
                hello(0x0303, &[0x1301], &[name(), (SUPPORTED_VERSIONS, vec![2, 0x7f, 0x1c])]),
                "56c6570d0a7ba0fe6e87bebfd10931de",
                "t00d010200_0f2cb44170f4_b9a491fefe05",
            ),
        ] {
            let found = fingerprints(&bytes);
            assert_eq!(found.1, ja4);
            assert!(ja3.is_empty() || found.0 == ja3, "{ja4}: {} for {ja3}", found.0);
            // Of each only what is asked for, and nothing while the hello has not all come.
            assert_eq!(of(&bytes, true, false), Some(Fingerprints { ja3: Some(found.0), ja4: None }));
            assert_eq!(of(&bytes[..bytes.len() - 1], true, true), None);
        }
    }

    #[test]
    fn the_order_of_ciphers_counts_for_one_of_them_only() {
        let (one, other) = (hello(0x0303, &[1, 2], &newest()), hello(0x0303, &[2, 1], &newest()));
        assert_eq!(fingerprints(&one).1, fingerprints(&other).1);
        assert_ne!(fingerprints(&one).0, fingerprints(&other).0);
    }
}
