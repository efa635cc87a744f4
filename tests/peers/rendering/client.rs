//! A case's connection or request, made.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::Value;

use super::Played;
use super::configuration::Pki;
use super::upstream::{PATIENCE, Stream, pair, provider};
use crate::netns::hosts::Host;

/// Where the captured ports are.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// Who comes to workloads, where a case does not say.
const SOMEBODY: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// What came of it.
#[derive(Debug)]
pub enum Seen {
    /// Nothing: it could not be made, or ended.
    Closed(String),
    /// It was taken, and there was nothing to ask.
    Taken { certificate: Option<Vec<u8>> },
    /// Bytes came back.
    Bytes { text: String, certificate: Option<Vec<u8>> },
    /// An answer.
    Answer { status: u64, head: String, body: String, certificate: Option<Vec<u8>> },
}

impl Seen {
    /// The certificate that the client saw.
    pub fn certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Closed(_) => None,
            Self::Taken { certificate }
            | Self::Bytes { certificate, .. }
            | Self::Answer { certificate, .. } => certificate.as_deref(),
        }
    }

    /// A field of the answer.
    pub fn header(&self, name: &str) -> Option<String> {
        let Self::Answer { head, .. } = self else { return None };
        let all = head.lines().filter_map(|line| line.split_once(": "));
        let of =
            all.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned());
        of.reduce(|a, b| format!("{a},{b}"))
    }

    /// Whether it is an answer of the proxy's own.
    pub fn is_answer(&self, wanted: u64, location: Option<&str>, text: Option<&str>) -> Result<(), String> {
        let Self::Answer { status, body, .. } = self else { return Err("there was no answer".to_owned()) };
        if *status != wanted {
            return Err(format!("the answer was {status}"));
        }
        if self.header("location").as_deref() != location {
            return Err(format!("location was {:?}", self.header("location")));
        }
        if text.is_some_and(|text| text != body) {
            return Err(format!("the body was {body:?}"));
        }
        Ok(())
    }

    /// What a server told.
    pub fn told(&self) -> Result<Value, String> {
        let text = match self {
            Self::Bytes { text, .. } => text,
            Self::Answer { status: 200, body, .. } => body,
            _ => return Err("no server answered".to_owned()),
        };
        serde_json::from_str(text).map_err(|error| format!("{text:?}: {error}"))
    }
}

/// Makes the connection, and asks what the case asks.
pub fn play(host: &Host, pki: &Pki, one: &Played) -> Seen {
    made(host, pki, one).unwrap_or_else(|error| Seen::Closed(error.to_string()))
}

fn made(host: &Host, pki: &Pki, one: &Played) -> std::io::Result<Seen> {
    let (case, found) = (&one.case, &one.found);
    let dialled: SocketAddr = found["dialled"].as_str().and_then(|d| d.parse().ok()).unwrap();
    let listener = found["listener"].as_str().unwrap_or_default();
    // The kernel redirects what goes between hosts, as far as a listener does not bind the very port.
    let bound = if case.to.is_some() { listener != "virtualInbound" } else { dialled.ip().is_loopback() };
    let direct = one.gateway || bound;
    let mut stream: Box<dyn Stream> = if direct {
        let stream = host.inside(|| TcpStream::connect_timeout(&dialled, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Box::new(stream)
    } else {
        let port = if case.to.is_some() { INBOUND } else { OUTBOUND };
        let proxy = SocketAddr::new(one.address, port);
        let mut stream = host.inside(|| TcpStream::connect_timeout(&proxy, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "PROXY TCP4 192.0.2.1 {} 40000 {}\r\n", dialled.ip(), dialled.port())?;
        Box::new(stream)
    };
    let asked = one.asked();
    let secure = asked.is_some_and(|asked| asked.secure) || case.sni.is_some() || !case.alpn.is_empty();
    let mut certificate = None;
    if secure || case.identity.is_some() {
        let (inner, shown) = begin(stream, pki, one)?;
        stream = inner;
        certificate = Some(shown);
    }
    if found["as"] == "http" && case.request.is_none() && found["refused"].is_null() {
        return Ok(Seen::Taken { certificate });
    }
    let Some(request) = &case.request else {
        // What no inspector takes for the beginning of a request.
        stream.write_all(b"\x01\x02hello\n")?;
        stream.flush()?;
        let text = read(&mut *stream)?;
        return Ok(Seen::Bytes { text, certificate });
    };
    let head = match asked {
        Some(asked) => asked.head(&case.headers),
        None => {
            let fields = case.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            format!("{request} HTTP/1.1\r\nhost: to\r\n{}\r\n", fields.collect::<String>())
        }
    };
    let head = head.trim_end().to_owned() + "\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let text = read(&mut *stream)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let Some(status) = head.get(9..12).and_then(|status| status.parse().ok()) else {
        return Ok(Seen::Bytes { text, certificate });
    };
    Ok(Seen::Answer { status, head: head.to_owned(), body: body.to_owned(), certificate })
}

/// Everything until the end; an end without anything is one that was not answered.
fn read(stream: &mut dyn Stream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            // A close without TLS's own farewell is one.
            Err(error) if bytes.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    if bytes.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Begins TLS as the case does: an identity is shown to whoever demands one.
fn begin(
    mut stream: Box<dyn Stream>,
    pki: &Pki,
    one: &Played,
) -> std::io::Result<(Box<dyn Stream>, Vec<u8>)> {
    let (case, found) = (&one.case, &one.found);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whoever));
    let demanded = ["mutual", "istio-mutual"].iter().any(|mode| found["downstreamTls"]["mode"] == *mode);
    let mut config = if demanded {
        let identity = case.identity.as_deref().and_then(|identity| identity.split_once('/'));
        let identity = identity.map_or_else(
            || SOMEBODY.to_owned(),
            |(namespace, account)| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
        );
        let (certificate, key) = pair(&pki.of(&[identity]));
        builder.with_client_auth_cert(vec![certificate], key).map_err(std::io::Error::other)?
    } else {
        builder.with_no_client_auth()
    };
    let usual: Vec<String> = match (&case.identity, &case.request) {
        (Some(_), Some(_)) => vec!["istio-http/1.1".to_owned(), "istio".to_owned(), "http/1.1".to_owned()],
        (Some(_), None) => vec!["istio-peer-exchange".to_owned(), "istio".to_owned()],
        (None, _) => vec!["http/1.1".to_owned()],
    };
    let offered = if case.alpn.is_empty() { usual } else { case.alpn.clone() };
    config.alpn_protocols = offered.into_iter().map(String::into_bytes).collect();
    let asked = one.asked();
    let name = case.sni.clone().or(asked.map(|asked| asked.host.to_owned()));
    let name = name.or(case.connect.as_ref().and_then(|c| Some(c.rsplit_once(':')?.0.to_owned())));
    let name = name.filter(|_| case.to.is_none() || case.sni.is_some());
    let address = "192.0.2.9".parse::<IpAddr>().unwrap();
    let named =
        name.filter(|name| name.parse::<IpAddr>().is_err()).and_then(|n| ServerName::try_from(n).ok());
    // To an address no name is sent.
    let server = named.unwrap_or(ServerName::IpAddress(address.into()));
    let mut connection = ClientConnection::new(Arc::new(config), server).map_err(std::io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let shown = connection.peer_certificates().and_then(|chain| chain.first()).map(|c| c.to_vec());
    Ok((Box::new(StreamOwned::new(connection, stream)), shown.unwrap_or_default()))
}

/// Believes every server; which certificate it shows is looked at afterwards.
#[derive(Debug)]
struct Whoever;

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
