//! Numbers and addresses as text. Each request's fields and log line have a dozen of them, which the standard library's formatting
//! would make its greatest cost.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::HeaderValue;

/// Appends a number.
pub(crate) fn number(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a number with zeros before it, so that it has at least `width` digits.
pub(crate) fn padded(out: &mut Vec<u8>, value: u32, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    out.resize(out.len() + width.saturating_sub(digits.len()), b'0');
    out.extend_from_slice(digits);
}

/// Writes an address, which takes fifteen bytes at most, and gives how many it took.
fn v4(text: &mut [u8; 45], address: Ipv4Addr) -> usize {
    let mut at = 0;
    for octet in address.octets() {
        if octet >= 100 {
            text[at] = b'0' + octet / 100;
            at += 1;
        }
        if octet >= 10 {
            text[at] = b'0' + octet / 10 % 10;
            at += 1;
        }
        text[at] = b'0' + octet % 10;
        text[at + 1] = b'.';
        at += 2;
    }
    at - 1
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

/// Appends an address with its port.
pub(crate) fn socket(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4_address) => {
            let mut text = [0; 45];
            let mut at = v4(&mut text, *v4_address.ip());
            let mut buffer = itoa::Buffer::new();
            let port = buffer.format(address.port()).as_bytes();
            text[at] = b':';
            at += 1;
            text[at..at + port.len()].copy_from_slice(port);
            out.extend_from_slice(&text[..at + port.len()]);
        }
        SocketAddr::V6(_) => drop(write!(out, "{address}")),
    }
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
