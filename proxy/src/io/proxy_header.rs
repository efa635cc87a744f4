//! The PROXY protocol's header, versions 1 and 2: read from a downstream's first bytes, written as an upstream's first bytes.
//!
//! The format is the one of haproxy's `proxy-protocol.txt`. What Envoy takes and refuses beyond that text decides here: only
//! IPv4 and IPv6 in version 2, and at most 108 bytes of version 1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// The start of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The start of version 1.
const V1: &[u8] = b"PROXY ";
/// The most that a line of version 1 may have, with its end.
const V1_LIMIT: usize = 108;
/// Bytes of version 2 before the addresses.
const V2_FIXED: usize = 16;

/// A type-length-value of version 2.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tlv {
    /// Its type.
    pub kind: u8,
    /// Its value.
    pub value: Arc<[u8]>,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The addresses, from and to; none if it speaks for the connection itself (LOCAL, UNKNOWN).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The values behind the addresses.
    pub tlvs: Vec<Tlv>,
}

/// The versions there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Too few to say.
    Incomplete,
    /// No header of either version.
    Absent,
    /// A header, and the number of its bytes.
    Found(Version, ProxyHeader, usize),
    /// The start of a header that goes on wrongly.
    Bad(Version),
}

/// Reads a header.
pub fn parse(bytes: &[u8]) -> Parsed {
    let starts = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if bytes.len() >= SIGNATURE.len() && starts(&SIGNATURE) {
        return v2(bytes);
    }
    if bytes.len() >= V1.len() && starts(V1) {
        return v1(bytes);
    }
    match starts(&SIGNATURE) || starts(V1) {
        true => Parsed::Incomplete,
        false => Parsed::Absent,
    }
}

fn v1(bytes: &[u8]) -> Parsed {
    let within = &bytes[..bytes.len().min(V1_LIMIT)];
    let Some(end) = within.windows(2).position(|w| w == b"\r\n") else {
        return if within.len() == V1_LIMIT { Parsed::Bad(Version::V1) } else { Parsed::Incomplete };
    };
    let addresses = match v1_addresses(&bytes[..end]) {
        Ok(addresses) => addresses,
        Err(()) => return Parsed::Bad(Version::V1),
    };
    Parsed::Found(Version::V1, ProxyHeader { addresses, tlvs: Vec::new() }, end + 2)
}

type Addresses = Option<(SocketAddr, SocketAddr)>;

fn v1_addresses(line: &[u8]) -> Result<Addresses, ()> {
    let line = std::str::from_utf8(line).map_err(|_| ())?;
    let parts: Vec<_> = line.split(' ').filter(|p| !p.is_empty()).collect();
    if parts.get(1) == Some(&"UNKNOWN") {
        return Ok(None);
    }
    let [_, family, source, destination, source_port, destination_port] = parts[..] else { return Err(()) };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = match family {
            "TCP4" => ip.parse::<Ipv4Addr>().map_err(|_| ())?.into(),
            "TCP6" => ip.parse::<Ipv6Addr>().map_err(|_| ())?.into(),
            _ => return Err(()),
        };
        Ok(SocketAddr::new(ip, port.parse().map_err(|_| ())?))
    };
    Ok(Some((address(source, source_port)?, address(destination, destination_port)?)))
}

fn v2(bytes: &[u8]) -> Parsed {
    let bad = Parsed::Bad(Version::V2);
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Parsed::Incomplete };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return bad,
    };
    let addresses_length = match (local, family) {
        (true, _) => 0,
        // Envoy takes addresses of datagrams for a connection's as well.
        (false, 0x11 | 0x12) => 12,
        (false, 0x21 | 0x22) => 36,
        _ => return bad,
    };
    if length < addresses_length {
        return bad;
    }
    let Some(rest) = bytes.get(V2_FIXED..V2_FIXED + length) else { return Parsed::Incomplete };
    let header = if local {
        ProxyHeader { addresses: None, tlvs: Vec::new() }
    } else {
        let (addresses, values) = rest.split_at(addresses_length);
        let Some(tlvs) = tlvs(values) else { return bad };
        ProxyHeader { addresses: v2_addresses(addresses), tlvs }
    };
    Parsed::Found(Version::V2, header, V2_FIXED + length)
}

/// The addresses of a version 2 header: two addresses of one family, then two ports.
fn v2_addresses(bytes: &[u8]) -> Addresses {
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let ip = |at: usize, length: usize| -> Option<IpAddr> {
        let bytes = bytes.get(at..at + length)?;
        match length {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    let length = if bytes.len() == 12 { 4 } else { 16 };
    let source = SocketAddr::new(ip(0, length)?, port(2 * length)?);
    let destination = SocketAddr::new(ip(length, length)?, port(2 * length + 2)?);
    Some((source, destination))
}

fn tlvs(mut bytes: &[u8]) -> Option<Vec<Tlv>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let [kind, high, low, rest @ ..] = bytes else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..length)?;
        all.push(Tlv { kind: *kind, value: value.into() });
        bytes = &rest[length..];
    }
    Some(all)
}

/// A header of version 1: from and to. Addresses of two families go as IPv6.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source, destination) = same_family(source, destination);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.port(), destination.port());
    format!("PROXY {family} {} {} {from} {to}\r\n", source.ip(), destination.ip()).into_bytes()
}

/// A header of version 2: from and to, and further values. Values that do not fit into its 65,535 bytes are left out.
pub fn encode_v2<'a>(
    source: SocketAddr,
    destination: SocketAddr,
    tlvs: impl Iterator<Item = &'a Tlv>,
) -> Vec<u8> {
    let (source, destination) = same_family(source, destination);
    let mut body = Vec::new();
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => body.extend(ip.octets()),
            IpAddr::V6(ip) => body.extend(ip.octets()),
        }
    }
    body.extend(source.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    for tlv in tlvs {
        let Ok(length) = u16::try_from(tlv.value.len()) else { continue };
        if body.len() + 3 + tlv.value.len() > usize::from(u16::MAX) {
            break;
        }
        body.push(tlv.kind);
        body.extend(length.to_be_bytes());
        body.extend_from_slice(&tlv.value);
    }
    let mut header = v2_start(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, body.len() as u16);
    header.extend(body);
    header
}

/// A header of version 2 that speaks for the connection itself.
pub fn encode_local() -> Vec<u8> {
    v2_start(0x20, 0x00, 0)
}

fn v2_start(command: u8, family: u8, length: u16) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(length.to_be_bytes());
    header
}

fn same_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let v6 = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (v6(source), v6(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(from: &str, to: &str) -> Addresses {
        Some((from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn what_is_written_is_read_and_every_start_of_it_is_incomplete() {
        let tlvs = [Tlv { kind: 2, value: b"name"[..].into() }, Tlv { kind: 0xEA, value: b""[..].into() }];
        for (from, to) in [("1.2.3.4:5", "6.7.8.9:10"), ("[2001:db8::1]:65535", "[::1]:1")] {
            let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
            for (version, bytes, tlvs) in [
                (Version::V1, encode_v1(source, destination), vec![]),
                (Version::V2, encode_v2(source, destination, tlvs.iter()), tlvs.to_vec()),
            ] {
                let length = bytes.len();
                for end in 0..length {
                    assert_eq!(parse(&bytes[..end]), Parsed::Incomplete, "{end} of {bytes:?}");
                }
                let with_more = [&bytes[..], b"more"].concat();
                let header = ProxyHeader { addresses: pair(from, to), tlvs };
                assert_eq!(parse(&with_more), Parsed::Found(version, header, length));
            }
        }
    }

    #[test]
    fn headers_that_speak_for_the_connection_itself() {
        let none = ProxyHeader { addresses: None, tlvs: vec![] };
        assert_eq!(parse(&encode_local()), Parsed::Found(Version::V2, none.clone(), 16));
        assert_eq!(parse(b"PROXY UNKNOWN\r\nx"), Parsed::Found(Version::V1, none.clone(), 15));
        assert_eq!(parse(b"PROXY UNKNOWN a b c d\r\n"), Parsed::Found(Version::V1, none, 23));
    }

    #[test]
    fn what_goes_on_wrongly_is_bad_and_what_begins_otherwise_is_absent() {
        for text in [
            &b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n"[..],
            b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            &[b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat(),
        ] {
            assert_eq!(parse(text), Parsed::Bad(Version::V1), "{text:?}");
        }
        let good = encode_v2("1.2.3.4:5".parse().unwrap(), "6.7.8.9:10".parse().unwrap(), [].iter());
        for (at, byte) in [(12, 0x31), (12, 0x22), (13, 0x10), (13, 0x31), (15, 11)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(parse(&bad), Parsed::Bad(Version::V2), "{at} {byte}");
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Absent);
        assert_eq!(parse(b"PROXX"), Parsed::Absent);
        assert_eq!(parse(b"\r\n\r\nG"), Parsed::Absent);
    }
}
