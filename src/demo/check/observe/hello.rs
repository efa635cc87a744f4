//! Reads a TLS ServerHello from the bytes of a connection: what two proxies agreed on, from the wire alone (RFC 8446,
//! section 4.1.3).

use std::fmt;

const HANDSHAKE: u8 = 22;
const SERVER_HELLO: u8 = 2;
const KEY_SHARE: u16 = 51;
const SUPPORTED_VERSIONS: u16 = 43;
/// A ServerHello with this random asks for another ClientHello.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

/// What a server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol version: 0x0304 is TLS 1.3.
    pub version: u16,
    /// The key exchange group: 0x11ec is X25519MLKEM768.
    pub group: u16,
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            0x0304 => f.write_str("TLS 1.3")?,
            0x0303 => f.write_str("TLS 1.2")?,
            other => write!(f, "TLS version {other:#06x}")?,
        }
        match self.group {
            0x11ec => f.write_str(" with X25519MLKEM768"),
            0x001d => f.write_str(" with X25519"),
            0x0017 => f.write_str(" with P-256"),
            0 => Ok(()),
            other => write!(f, " with group {other:#06x}"),
        }
    }
}

/// Takes the first `n` bytes off.
fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

fn number(bytes: &mut &[u8], n: usize) -> Option<usize> {
    Some(take(bytes, n)?.iter().fold(0, |sum, b| sum << 8 | usize::from(*b)))
}

/// The choice in what a server sent; none if it did not (yet) answer with a ServerHello.
pub fn server_hello(mut stream: &[u8]) -> Option<Agreed> {
    let mut messages = Vec::new();
    while let Some(kind) = take(&mut stream, 1) {
        take(&mut stream, 2)?;
        let length = number(&mut stream, 2)?;
        let Some(record) = take(&mut stream, length) else { break };
        if kind[0] == HANDSHAKE {
            messages.extend_from_slice(record);
        }
    }
    let mut messages = messages.as_slice();
    loop {
        let kind = take(&mut messages, 1)?[0];
        let length = number(&mut messages, 3)?;
        let body = take(&mut messages, length)?;
        if kind == SERVER_HELLO && !body.get(2..)?.starts_with(&RETRY) {
            return choice(body);
        }
    }
}

fn choice(mut body: &[u8]) -> Option<Agreed> {
    let body = &mut body;
    let mut agreed = Agreed { version: u16::try_from(number(body, 2)?).ok()?, group: 0 };
    take(body, 32)?;
    let session = number(body, 1)?;
    take(body, session + 3)?;
    let length = number(body, 2).unwrap_or_default();
    let mut extensions = take(body, length)?;
    while !extensions.is_empty() {
        let kind = u16::try_from(number(&mut extensions, 2)?).ok()?;
        let length = number(&mut extensions, 2)?;
        let mut value = take(&mut extensions, length)?;
        match kind {
            SUPPORTED_VERSIONS => agreed.version = u16::try_from(number(&mut value, 2)?).ok()?,
            KEY_SHARE => agreed.group = u16::try_from(number(&mut value, 2)?).ok()?,
            _ => {}
        }
    }
    Some(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(random: [u8; 32], extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random);
        body.extend([2, 7, 7, 0x13, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut record = vec![22, 3, 3];
        record.extend((body.len() as u16 + 4).to_be_bytes());
        record.extend([2, 0, (body.len() >> 8) as u8, body.len() as u8]);
        record.extend(body);
        record
    }

    #[test]
    fn version_and_group_are_read_past_a_retry() {
        let mut retry = [0; 32];
        retry[..4].copy_from_slice(&RETRY);
        let mut stream = hello(retry, &[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 29]);
        assert_eq!(server_hello(&stream), None);
        stream.extend([20, 3, 3, 0, 1, 1]);
        stream.extend(hello([1; 32], &[0, 43, 0, 2, 3, 4, 0, 51, 0, 5, 0x11, 0xec, 0, 1, 9]));
        let agreed = server_hello(&stream).unwrap();
        assert_eq!(agreed.to_string(), "TLS 1.3 with X25519MLKEM768");
    }

    #[test]
    fn what_is_no_server_hello_is_none() {
        assert_eq!(server_hello(b"HTTP/1.1 200 OK\r\n\r\n"), None);
        assert_eq!(server_hello(&[21, 3, 3, 0, 2, 2, 40]), None);
        let whole = hello([1; 32], &[]);
        assert_eq!(server_hello(&whole[..20]), None);
        assert_eq!(server_hello(&whole).unwrap().to_string(), "TLS 1.2");
    }
}
