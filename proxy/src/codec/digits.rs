//! Numbers and addresses as text. Each request's fields and log line have a dozen of them, which the standard library's formatting
//! would make its greatest cost.

use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use http::HeaderValue;

/// Appends the first bytes of a text that has room for more. A piece whose size is known when this is compiled is written without a
/// call.
#[inline]
pub(crate) fn short<const N: usize>(out: &mut Vec<u8>, text: &[u8; N], len: usize) {
    let end = out.len() + len.min(N);
    out.extend_from_slice(text);
    out.truncate(end);
}

/// Appends a number.
#[inline]
pub(crate) fn number<N: itoa::Integer + Copy + TryInto<u16>>(out: &mut Vec<u8>, value: N) {
    match value.try_into() {
        // Statuses, and nearly all sizes and times.
        Ok(small) if small < 1000 => {
            let skip = usize::from(small < 100) + usize::from(small < 10);
            let digits =
                [(small / 100) as u8, (small / 10 % 10) as u8, (small % 10) as u8, 0].map(|d| b'0' + d);
            let word = u32::from_le_bytes(digits) >> (8 * skip);
            short(out, &word.to_le_bytes(), 3 - skip);
        }
        _ => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
    }
}

/// Appends a number with zeros before it, so that it has at least `width` digits.
pub(crate) fn padded(out: &mut Vec<u8>, value: u32, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    out.resize(out.len() + width.saturating_sub(digits.len()), b'0');
    out.extend_from_slice(digits);
}

/// The decimal digits of each byte with a dot behind them, and how many bytes that takes.
const OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b'.'; 4], 0); 256];
    let mut n = 0;
    while n < 256 {
        let (hundreds, tens, ones) =
            (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        octets[n] = match n {
            0..10 => ([ones, b'.', b'.', b'.'], 2),
            10..100 => ([tens, ones, b'.', b'.'], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        n += 1;
    }
    octets
};

/// Writes an address, which takes fifteen bytes at most, and gives how many it took.
#[inline]
fn v4<const N: usize>(text: &mut [u8; N], address: Ipv4Addr) -> usize {
    let mut at = 0;
    for octet in address.octets() {
        let (digits, len) = OCTETS[usize::from(octet)];
        text[at..at + 4].copy_from_slice(&digits);
        at += usize::from(len);
    }
    at - 1
}

/// The address that a text is; none where the standard library finds none.
pub(crate) fn parse_v4(text: &[u8]) -> Option<Ipv4Addr> {
    let (mut address, mut octet, mut digits, mut dots) = (0u32, 0u32, 0, 0);
    for byte in text {
        match byte {
            // No octet has a zero in front.
            b'0'..=b'9' if digits < 3 && (digits == 0 || octet > 0) => {
                octet = octet * 10 + u32::from(byte - b'0');
                digits += 1;
            }
            b'.' if digits > 0 && dots < 3 && octet < 256 => {
                address = address << 8 | octet;
                (octet, digits, dots) = (0, 0, dots + 1);
            }
            _ => return None,
        }
    }
    (dots == 3 && digits > 0 && octet < 256).then(|| Ipv4Addr::from_bits(address << 8 | octet))
}

/// An address as text, on the stack.
pub(crate) struct IpText {
    /// The longest is an IPv6 address that ends in an IPv4 address.
    text: [u8; 45],
    len: usize,
}

impl IpText {
    /// The text of this address.
    pub(crate) fn new(address: IpAddr) -> Self {
        let mut text = [0; 45];
        let len = match address {
            IpAddr::V4(address) => v4(&mut text, address),
            IpAddr::V6(address) => {
                let mut left = &mut text[..];
                // There is room for the longest.
                let _ = write!(left, "{address}");
                45 - left.len()
            }
        };
        Self { text, len }
    }

    /// The text.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// Appends an address.
pub(crate) fn ip(out: &mut Vec<u8>, address: IpAddr) {
    out.extend_from_slice(IpText::new(address).as_bytes());
}

/// An address with its port as text. The longest takes 21 bytes, and three more are written at once with its port.
type SocketText = ([u8; 24], usize);

/// The addresses whose texts a thread keeps; a connection's come again with each of its requests.
const KEPT: usize = 64;

thread_local! {
    /// Each at the place that its number has, which is never 0.
    static WRITTEN: [Cell<(u64, SocketText)>; KEPT] = const { [const { Cell::new((0, ([0; 24], 0))) }; KEPT] };
}

/// Appends an address with its port.
#[inline]
pub(crate) fn socket(out: &mut Vec<u8>, address: SocketAddr) {
    let SocketAddr::V4(address) = address else { return drop(write!(out, "{address}")) };
    let bits = address.ip().to_bits();
    let number = 1 << 48 | u64::from(address.port()) << 32 | u64::from(bits);
    let place = (bits ^ bits >> 16) as usize ^ usize::from(address.port());
    let (text, len) = WRITTEN.with(|kept| {
        let kept = &kept[place % KEPT];
        match kept.get() {
            (known, text) if known == number => text,
            _ => {
                let text = written(address);
                kept.set((number, text));
                text
            }
        }
    });
    short(out, &text, len);
}

fn written(address: SocketAddrV4) -> SocketText {
    let mut text = [0; 24];
    let at = v4(&mut text, *address.ip());
    text[at] = b':';
    let port = address.port();
    let skip =
        u32::from(port < 10000) + u32::from(port < 1000) + u32::from(port < 100) + u32::from(port < 10);
    let digit = |unit: u16| b'0' + (port / unit % 10) as u8;
    let digits = [digit(10_000), digit(1000), digit(100), digit(10), digit(1), 0, 0, 0];
    let digits = (u64::from_le_bytes(digits) >> (8 * skip)).to_le_bytes();
    text[at + 1..at + 9].copy_from_slice(&digits);
    (text, at + 6 - skip as usize)
}

/// A number as a field's value.
pub(crate) fn value(number: u64) -> HeaderValue {
    // Times in milliseconds and counts of tries are mostly small.
    const SMALL: &str = "0123456789";
    match usize::try_from(number).ok().and_then(|n| SMALL.get(n..=n)) {
        Some(digit) => HeaderValue::from_static(digit),
        // One piece of memory; the conversion that the library brings takes two.
        None => HeaderValue::from_str(itoa::Buffer::new().format(number))
            .unwrap_or_else(|_| HeaderValue::from(number)),
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"[".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn addresses_read_as_the_standard_library_writes_them() {
        for address in ["0.0.0.0:0", "255.255.255.255:65535", "10.1.20.100:80", "[::1]:8080", "[fe80::1%3]:1"]
        {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(text(|out| socket(out, address)), format!("[{address}"));
            assert_eq!(text(|out| ip(out, address.ip())), format!("[{}", address.ip()));
        }
        let longest = "1111:2222:3333:4444:5555:6666:7777:8888";
        for address in [longest, "::ffff:255.255.255.255", "64:ff9b::255.255.255.255", "::"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(text(|out| ip(out, address)), format!("[{address}"));
        }
    }

    #[test]
    fn numbers_and_ports_of_every_length_read_as_the_standard_library_writes_them() {
        for n in (0..2000).chain([9999, 10_000, 65_534, 65_535]) {
            assert_eq!(text(|out| number(out, n)), format!("[{n}"));
            assert_eq!(text(|out| number(out, u64::from(n))), format!("[{n}"));
            let address = SocketAddr::from(([n as u8, 0, 255, (n / 7) as u8], n));
            // The second time it is known, and another at its place is not taken for it.
            let other = SocketAddr::from(([n as u8, 0, 255, (n / 7) as u8], n.wrapping_add(KEPT as u16)));
            for address in [address, address, other, address] {
                assert_eq!(text(|out| socket(out, address)), format!("[{address}"));
            }
        }
        assert_eq!(text(|out| number(out, u64::MAX)), format!("[{}", u64::MAX));
        assert_eq!(text(|out| number(out, u128::MAX)), format!("[{}", u128::MAX));
    }

    #[test]
    fn texts_are_addresses_where_the_standard_library_says_so() {
        for text in [
            "0.0.0.0",
            "255.255.255.255",
            "10.1.20.100",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "01.2.3.4",
            "1.2.3.04",
            "1.2.3.",
            ".1.2.3",
            "1..2.3",
            "1.2.3.4 ",
            " 1.2.3.4",
            "",
            "1.2.3.1000",
            "::1",
            "a.b.c.d",
            "1.2.3.0",
            "00.0.0.0",
        ] {
            assert_eq!(parse_v4(text.as_bytes()), text.parse().ok(), "{text}");
        }
    }

    #[test]
    fn values_read_as_numbers() {
        for number in [0, 1, 9, 10, 15_000, u64::MAX] {
            assert_eq!(value(number), number.to_string());
        }
    }

    #[test]
    fn zeros_stand_before_what_is_short_and_nothing_is_cut_off() {
        let of = |value, width| text(|out| padded(out, value, width));
        assert_eq!([of(7, 2), of(0, 3), of(45, 2), of(12345, 4)], ["[07", "[000", "[45", "[12345"]);
    }
}
