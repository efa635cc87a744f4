//! The client of a case: sends what it says, one thing after the other, and keeps what came as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::certificates;
use super::observed::{Tally, sorted};
use super::pair::other_port;
use super::spec::{self, Ask, Send};
use crate::differential::case::H2Request;
use crate::differential::h2;
use crate::differential::normalize::{Message, render, whole};

/// How long an expected thing may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// A byte stream, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + std::marker::Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + std::marker::Send> Stream for S {}

struct Open {
    stream: Box<dyn Stream>,
    /// Said of its handshake.
    note: String,
}

/// What a client saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Its answers as text.
    pub text: String,
    /// The counts of asks that are only counted, each with how far two sides may be apart.
    pub tallies: Vec<(Tally, f64)>,
}

/// Plays a case's requests.
pub async fn play(sends: &[Send], address: SocketAddr, directory: &Path) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<Open> = None;
    for (number, send) in sends.iter().enumerate() {
        let mut ask = send.ask();
        for field in &mut ask.headers {
            *field = field.replace("{port}", &address.port().to_string());
        }
        let mut address = address;
        if ask.other {
            address.set_port(other_port(address.port()));
        }
        tokio::time::sleep(Duration::from_millis(ask.after)).await;
        if ask.times > 0 {
            let tally = many(&ask, address, directory).await;
            if ask.within == 0.0 {
                let _ = writeln!(seen.text, "#{number}: {tally:?}");
            } else {
                seen.tallies.push((tally, ask.within));
            }
            continue;
        }
        let _ = writeln!(seen.text, "#{number} {}", ask.line);
        let open = match kept.take() {
            Some(open) if ask.same => Ok(open),
            _ => open(&ask, address, directory).await,
        };
        match open {
            Err(text) => seen.text += &text,
            Ok(mut open) => {
                seen.text += &std::mem::take(&mut open.note);
                if ask.h2 {
                    seen.text += &by_h2(open, &ask).await;
                } else {
                    let (text, left) = by_h1(open, &ask).await;
                    seen.text += &text;
                    kept = left;
                }
            }
        }
    }
    seen
}

/// Many of the same, some at once; only the first line of each answer counts.
async fn many(ask: &Ask, address: SocketAddr, directory: &Path) -> Tally {
    let mut tally: Tally = BTreeMap::new();
    let (ask, directory) = (Arc::new(ask.clone()), Arc::new(directory.to_owned()));
    let mut left = ask.times;
    while left > 0 {
        let batch = left.min(ask.at_once.max(1));
        left -= batch;
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..batch {
            let (ask, directory) = (ask.clone(), directory.clone());
            set.spawn(async move {
                let text = match open(&ask, address, &directory).await {
                    Err(text) => text,
                    Ok(open) if ask.h2 => by_h2(open, &ask).await,
                    Ok(open) => by_h1(open, &ask).await.0,
                };
                text.lines().next().unwrap_or("nothing").to_owned()
            });
        }
        for line in set.join_all().await {
            *tally.entry(line).or_default() += 1;
        }
    }
    tally
}

async fn open(ask: &Ask, address: SocketAddr, directory: &Path) -> Result<Open, String> {
    let Some(tls) = &ask.tls else {
        return Ok(Open { stream: Box::new(connect(ask, address).await?), note: String::new() });
    };
    let (config, name) = certificates::client(directory, tls);
    if tls.again {
        // Tickets of TLS 1.3 come with the first answer.
        let first = handshake(config.clone(), name.clone(), connect(ask, address).await?).await?;
        by_h1(first, ask).await;
    }
    handshake(config, name, connect(ask, address).await?).await
}

async fn connect(ask: &Ask, address: SocketAddr) -> Result<TcpStream, String> {
    let socket = TcpSocket::new_v4().unwrap();
    let _ = socket.set_nodelay(true);
    if ask.resets {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    if let Some(from) = &ask.from {
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    }
    let mut stream = match timeout(PATIENCE, socket.connect(address)).await {
        Ok(Ok(stream)) => stream,
        _ => return Err("(no connection)\n".to_owned()),
    };
    if let Some(first) = &ask.first {
        let _ = stream.write_all(&bytes(first)).await;
    }
    Ok(stream)
}

async fn handshake(
    config: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> Result<Open, String> {
    match timeout(PATIENCE, tokio_rustls::TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            let alpn = session.alpn_protocol().map(|a| String::from_utf8_lossy(a).into_owned());
            let server = session.peer_certificates().and_then(|c| {
                let (_, parsed) = x509_parser::parse_x509_certificate(c.first()?).ok()?;
                parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
            });
            let version = session.protocol_version().and_then(|v| v.as_str());
            let cipher = session.negotiated_cipher_suite().and_then(|c| c.suite().as_str());
            let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            let note = format!(
                "(TLS {version:?} {cipher:?} alpn={alpn:?} server={server:?}{})\n",
                if resumed { " resumed" } else { "" }
            );
            Ok(Open { stream: Box::new(stream), note })
        }
        // With which alert a handshake fails is each library's own; that it does is not.
        _ => Err("(the handshake failed)\n".to_owned()),
    }
}

/// YAML's text as bytes; `\xNN` stands for one.
fn bytes(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once("\\x") {
        out.extend_from_slice(before.as_bytes());
        out.push(u8::from_str_radix(&after[..2], 16).unwrap());
        rest = &after[2..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

fn request(ask: &Ask) -> Vec<u8> {
    if let Some(raw) = &ask.raw {
        return bytes(raw);
    }
    let (method, target) = ask.method_and_target();
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", ask.host());
    for field in &ask.headers {
        let _ = write!(text, "{field}\r\n");
    }
    let body = spec::coded(ask.body.as_deref().unwrap_or_default(), &ask.coded);
    match (&ask.body, ask.trailers.is_empty()) {
        (Some(_), true) => {
            let _ = write!(text, "content-length: {}\r\n\r\n", body.len());
            [text.into_bytes(), body].concat()
        }
        (_, false) => {
            let _ = write!(text, "transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
            let trailers: String = ask.trailers.iter().map(|field| format!("{field}\r\n")).collect();
            [text.into_bytes(), body, format!("\r\n0\r\n{trailers}\r\n").into_bytes()].concat()
        }
        (None, true) => (text + "\r\n").into_bytes(),
    }
}

/// One exchange; the connection, if it is still good.
async fn by_h1(mut open: Open, ask: &Ask) -> (String, Option<Open>) {
    let _ = timeout(PATIENCE, open.stream.write_all(&request(ask))).await;
    let method: &'static str = match ask.method_and_target().0 {
        "HEAD" => "HEAD",
        "CONNECT" => "CONNECT",
        _ => "GET",
    };
    let (mut received, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    let mut ended = None;
    let enough = |received: &[u8]| match (&ask.raw, &ask.until) {
        (_, Some(until)) => received.windows(until.len()).any(|w| w == until.as_bytes()),
        (Some(_), None) => false,
        (None, None) => whole(received, &Message::Response(method)).is_some(),
    };
    let patience = ask.give_up.map_or(PATIENCE, Duration::from_millis);
    let end = tokio::time::Instant::now() + patience;
    while !enough(&received) {
        match tokio::time::timeout_at(end, open.stream.read(&mut buffer)).await {
            Err(_) => {
                ended = Some(if ask.give_up.is_some() { "" } else { "(waited in vain)\n" });
                break;
            }
            Ok(Ok(0)) => {
                ended = Some("(closed)\n");
                break;
            }
            Ok(Ok(n)) => received.extend_from_slice(&buffer[..n]),
            Ok(Err(_)) => {
                ended = Some("(reset)\n");
                break;
            }
        }
    }
    let text = if ask.raw.is_some() && !received.starts_with(b"HTTP/") {
        format!("bytes: {}\n", received.escape_ascii())
    } else {
        sorted(&render(&received, &[Message::Response(method)], false))
    };
    match ended {
        // What follows on a connection that was said to end is a matter of who is first.
        None if text.contains("\nconnection: close\n") => (text, None),
        None => (text, Some(open)),
        Some(how) => (text + how, None),
    }
}

async fn by_h2(open: Open, ask: &Ask) -> String {
    // The library of HTTP/2 cases keeps what is static; a test's few bytes may stay.
    let keep = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let pairs = |lines: &[String]| {
        lines
            .iter()
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (keep(name.trim()), keep(value.trim()))
            })
            .collect()
    };
    let (method, target) = ask.method_and_target();
    let request = H2Request {
        method: keep(method),
        scheme: if ask.tls.is_some() { "https" } else { "http" },
        authority: keep(ask.host()),
        path: keep(target),
        headers: pairs(&ask.headers),
        body: ask.body.iter().map(|b| keep(b)).collect(),
        trailers: pairs(&ask.trailers),
        ..H2Request::default()
    };
    h2::client_on(open.stream, &[request]).await
}
