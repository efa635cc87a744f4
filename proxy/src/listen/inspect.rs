//! The inspectors: what the first bytes of a connection say, without taking them.
//!
//! Only a listener that asks pays for it: a declared or server-first port never waits for bytes.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;

use super::chain::TransportProtocol;
use crate::io::Io;

/// The most that is read ahead; a ClientHello with a post-quantum key share and a long ALPN list fits many times.
const LIMIT: usize = 64 * 1024;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// TLS or not.
    pub transport: TransportProtocol,
    /// The server name, lower case.
    pub server_name: Option<Arc<str>>,
    /// ALPN of the ClientHello, or `http/1.0`, `http/1.1`, `h2c` by the HTTP inspector.
    pub application_protocols: Vec<Vec<u8>>,
}

/// Looks at a ClientHello (`tls_inspector`), then at the start of an HTTP request (`http_inspector`), and puts all that was
/// read back. Ends early when the peer closes or the bytes are neither.
pub async fn inspect(io: &mut Io, tls: bool, http: bool, findings: &mut Findings) -> std::io::Result<()> {
    let mut read = BytesMut::new();
    let result = sniff(io, tls, http, findings, &mut read).await;
    io.rewind(read.freeze());
    result
}

async fn sniff(
    io: &mut Io,
    tls: bool,
    http: bool,
    findings: &mut Findings,
    read: &mut BytesMut,
) -> std::io::Result<()> {
    let (mut tls, mut http) = (tls, http);
    while (tls || http) && read.len() < LIMIT {
        if io.read_buf(read).await? == 0 {
            return Ok(());
        }
        if tls {
            match client_hello(read) {
                Hello::Incomplete => continue,
                Hello::NotTls => tls = false,
                Hello::Found { name, protocols } => {
                    findings.transport = TransportProtocol::Tls;
                    findings.server_name = name;
                    findings.application_protocols = protocols;
                    return Ok(());
                }
            }
        }
        if http && let Some(protocol) = http_protocol(read) {
            findings.application_protocols.extend(protocol.map(<[u8]>::to_vec));
            http = false;
        }
    }
    Ok(())
}

enum Hello {
    Incomplete,
    NotTls,
    Found { name: Option<Arc<str>>, protocols: Vec<Vec<u8>> },
}

fn client_hello(bytes: &[u8]) -> Hello {
    // A handshake record of TLS 1.x; everything else is not worth a parser's time.
    let plausible = bytes.iter().zip([22u8, 3]).all(|(b, expected)| *b == expected);
    if !plausible {
        return Hello::NotTls;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Hello::NotTls;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Hello::Found {
                    name: hello.server_name().map(|n| n.to_ascii_lowercase().into()),
                    protocols: hello.alpn().map(|p| p.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
                };
            }
            // It is TLS for all that can be seen; whoever terminates it will say what is wrong with it.
            Err(_) => return Hello::Found { name: None, protocols: Vec::new() },
        }
    }
    Hello::Incomplete
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a request's start says: `None` while it is too short, `Some(None)` if it is not HTTP.
fn http_protocol(bytes: &[u8]) -> Option<Option<&'static [u8]>> {
    let common = bytes.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
    if common == PREFACE.len() {
        return Some(Some(b"h2c"));
    }
    if common == bytes.len() {
        return None;
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        // A method is upper-case letters and little else; the rest of the line may come later.
        let method = bytes.iter().take_while(|b| **b != b' ').take(24);
        let plausible = method.clone().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
        return (!plausible || bytes.len() > 8192).then_some(None);
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    Some(if line.ends_with(b" HTTP/1.1") {
        Some(b"http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Some(b"http/1.0")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn look(bytes: &[u8]) -> (Findings, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(LIMIT);
        let mut io = Io::memory(near);
        let mut findings = Findings::default();
        let write = async {
            for byte in bytes {
                far.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
        };
        let (result, ()) = tokio::join!(inspect(&mut io, true, true, &mut findings), write);
        result.unwrap();
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        (findings, all)
    }

    #[tokio::test]
    async fn a_client_hello_is_read_and_put_back() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"istio-h2".to_vec(), b"h2".to_vec()];
        let name = "A.example".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let (findings, all) = look(&hello).await;
        assert_eq!(findings.transport, TransportProtocol::Tls);
        assert_eq!(findings.server_name.as_deref(), Some("a.example"));
        assert_eq!(findings.application_protocols, [b"istio-h2".to_vec(), b"h2".to_vec()]);
        assert_eq!(all, hello);
    }

    #[tokio::test]
    async fn http_is_told_from_other_protocols() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(&b"http/1.1"[..])),
            (b"GET / HTTP/1.0\r\n", Some(b"http/1.0")),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(b"h2c")),
            (b"*1\r\n$4\r\nPING\r\n", None),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", None),
            (b"HELO there\r\n", None),
        ] {
            let (findings, all) = look(bytes).await;
            assert_eq!(findings.application_protocols.first().map(Vec::as_slice), expected);
            assert_eq!((findings.transport, all.as_slice()), (TransportProtocol::RawBuffer, bytes));
        }
    }
}
