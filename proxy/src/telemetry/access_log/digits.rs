//! Numbers and addresses as text. Each request's log line has a dozen of them, which the standard library's formatting would make
//! its greatest cost.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Appends a number.
pub(super) fn number(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a number with zeros before it, so that it has at least `width` digits.
pub(super) fn padded(out: &mut Vec<u8>, value: u32, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    out.extend((digits.len()..width).map(|_| b'0'));
    out.extend_from_slice(digits);
}

/// Appends an address.
pub(super) fn ip(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                number(out, octet);
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

/// Appends an address with its port.
pub(super) fn socket(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(_) => {
            ip(out, address.ip());
            out.push(b':');
            number(out, address.port());
        }
        SocketAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
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
    }

    #[test]
    fn zeros_stand_before_what_is_short_and_nothing_is_cut_off() {
        let of = |value, width| text(|out| padded(out, value, width));
        assert_eq!([of(7, 2), of(0, 3), of(45, 2), of(12345, 4)], ["[07", "[000", "[45", "[12345"]);
    }
}
