//! The inspectors: what the first bytes of a connection say, without taking them.
//!
//! Only a listener that asks pays for it: a declared or server-first port never waits for bytes.

use std::sync::{Arc, LazyLock};

use rustls::server::Acceptor;
use xds_protos::envoy::extensions::filters::listener::tls_inspector::v3 as pb;

use super::chain::TransportProtocol;
use super::filters::Refusal;
use super::fingerprint;
use crate::io::{Ahead, Fingerprints, Io};
use crate::telemetry::registry::{Counter, Group};

/// The most that a ClientHello has by Envoy's default.
const MAX_HELLO: usize = 16 * 1024;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// TLS or not.
    pub transport: TransportProtocol,
    /// The server name, lower case.
    pub server_name: Option<Arc<str>>,
    /// ALPN of the ClientHello, or `http/1.0`, `http/1.1`, `h2c` by the HTTP inspector.
    pub application_protocols: Vec<Vec<u8>>,
    /// What its client is recognised by, where that is asked for.
    pub fingerprints: Option<Arc<Fingerprints>>,
}

/// `envoy.filters.listener.tls_inspector`.
#[derive(Clone, Copy, Debug)]
pub struct TlsInspector {
    /// The most that a ClientHello may have, in bytes.
    max_hello: usize,
    /// Close a connection whose first record is TLS and holds no ClientHello.
    close_on_error: bool,
    /// Make these fingerprints of clients.
    ja3: bool,
    ja4: bool,
}

impl Default for TlsInspector {
    fn default() -> Self {
        Self { max_hello: MAX_HELLO, close_on_error: false, ja3: false, ja4: false }
    }
}

impl TlsInspector {
    /// Compiles the message.
    pub fn compile(proto: &pb::TlsInspector) -> Self {
        let max_hello = proto.max_client_hello_size.map_or(MAX_HELLO, |n| n as usize);
        Self {
            max_hello,
            close_on_error: proto.close_connection_on_client_hello_parsing_errors,
            ja3: proto.enable_ja3_fingerprinting.unwrap_or_default(),
            ja4: proto.enable_ja4_fingerprinting.unwrap_or_default(),
        }
    }
}

struct TlsStats {
    _group: Arc<Group>,
    too_large: Counter,
    found: [Counter; 2],
    alpn: [Counter; 2],
    sni: [Counter; 2],
}

static TLS_STATS: LazyLock<TlsStats> = LazyLock::new(|| {
    let group = Group::new("tls_inspector", Vec::new());
    TlsStats {
        too_large: group.counter("client_hello_too_large"),
        found: [group.counter("tls_not_found"), group.counter("tls_found")],
        alpn: [group.counter("alpn_not_found"), group.counter("alpn_found")],
        sni: [group.counter("sni_not_found"), group.counter("sni_found")],
        _group: group,
    }
});

struct HttpStats {
    _group: Arc<Group>,
    not_found: Counter,
    http10: Counter,
    http11: Counter,
    http2: Counter,
}

static HTTP_STATS: LazyLock<HttpStats> = LazyLock::new(|| {
    let group = Group::new("http_inspector", Vec::new());
    HttpStats {
        not_found: group.counter("http_not_found"),
        http10: group.counter("http10_found"),
        http11: group.counter("http11_found"),
        http2: group.counter("http2_found"),
        _group: group,
    }
});

/// Reads until `look` has seen enough, and puts all that was read back.
async fn peek(io: &mut Io, mut look: impl FnMut(&[u8]) -> Seen) -> Result<(), Refusal> {
    let mut ahead = Ahead::of(io);
    loop {
        if ahead.more().await? == 0 {
            return Err(Refusal::RemoteClose);
        }
        match look(ahead.bytes()) {
            Seen::More => {}
            Seen::Enough => return Ok(()),
            Seen::Bad => return Err(Refusal::Filter),
        }
    }
}

enum Seen {
    More,
    Enough,
    Bad,
}

/// Looks at a ClientHello.
pub async fn inspect_tls(io: &mut Io, wanted: &TlsInspector, findings: &mut Findings) -> Result<(), Refusal> {
    let stats = &*TLS_STATS;
    peek(io, |bytes| match client_hello(bytes) {
        Hello::Incomplete if bytes.len() >= wanted.max_hello => {
            stats.too_large.inc();
            Seen::Bad
        }
        Hello::Incomplete => Seen::More,
        Hello::NotTls { broken } => {
            stats.found[0].inc();
            if broken && wanted.close_on_error { Seen::Bad } else { Seen::Enough }
        }
        Hello::Found { name, protocols } => {
            stats.found[1].inc();
            stats.sni[usize::from(name.is_some())].inc();
            stats.alpn[usize::from(!protocols.is_empty())].inc();
            findings.transport = TransportProtocol::Tls;
            findings.server_name = name;
            findings.application_protocols = protocols;
            if wanted.ja3 || wanted.ja4 {
                findings.fingerprints = fingerprint::of(bytes, wanted.ja3, wanted.ja4).map(Arc::new);
            }
            Seen::Enough
        }
    })
    .await
}

/// Looks at the start of an HTTP request.
pub async fn inspect_http(io: &mut Io, findings: &mut Findings) -> Result<(), Refusal> {
    let stats = &*HTTP_STATS;
    peek(io, |bytes| {
        let Some(found) = http_protocol(bytes) else { return Seen::More };
        match found {
            None => stats.not_found.inc(),
            Some(b"http/1.0") => stats.http10.inc(),
            Some(b"h2c") => stats.http2.inc(),
            Some(_) => stats.http11.inc(),
        }
        findings.application_protocols.extend(found.map(<[u8]>::to_vec));
        Seen::Enough
    })
    .await
}

enum Hello {
    Incomplete,
    /// Broken: it began as TLS.
    NotTls {
        broken: bool,
    },
    Found {
        name: Option<Arc<str>>,
        protocols: Vec<Vec<u8>>,
    },
}

fn client_hello(bytes: &[u8]) -> Hello {
    // A handshake record of TLS 1.x; everything else is not worth a parser's time.
    let plausible = bytes.iter().zip([22u8, 3]).all(|(b, expected)| *b == expected);
    if !plausible {
        return Hello::NotTls { broken: false };
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Hello::NotTls { broken: true };
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
            Err(_) => return Hello::NotTls { broken: true },
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn look(bytes: &[u8]) -> (Findings, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(MAX_HELLO);
        let mut io = Io::memory(near);
        let mut findings = Findings::default();
        let write = async {
            for byte in bytes {
                far.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
        };
        let look = async {
            inspect_tls(&mut io, &TlsInspector::default(), &mut findings).await.unwrap();
            if findings.transport == TransportProtocol::RawBuffer {
                inspect_http(&mut io, &mut findings).await.unwrap();
            }
        };
        tokio::join!(look, write);
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
