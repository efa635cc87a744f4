//! Telling HTTP/2 from HTTP/1 by a connection's first bytes.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::io::Io;

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a connection starts with HTTP/2's preface; what was read is put back. For chains that take both versions without
/// ALPN (codec type AUTO).
pub async fn is_http2(io: &mut Io) -> std::io::Result<bool> {
    let mut read = BytesMut::new();
    let found = loop {
        let common = read.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
        if common == PREFACE.len() {
            break true;
        }
        // One byte that differs is enough: HTTP/1 never waits here.
        if common < read.len() || io.read_buf(&mut read).await? == 0 {
            break false;
        }
    };
    io.rewind(Bytes::from(read));
    Ok(found)
}
