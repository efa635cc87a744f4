//! The servers behind the proxy: each tells where it is, which layers of TLS it saw, and what it was asked.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::Acceptor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use serde_json::{Value, json};

use super::configuration::{Pki, Signed};

/// No silence may be longer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes both ways.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A stream whose next bytes can be looked at.
struct Ahead {
    stream: Box<dyn Stream>,
    held: Vec<u8>,
}

impl Ahead {
    fn peek(&mut self) -> std::io::Result<Option<u8>> {
        if self.held.is_empty() {
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes)?;
            self.held.extend_from_slice(&bytes[..read]);
        }
        Ok(self.held.first().copied())
    }
}

impl Read for Ahead {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.peek()?.is_none() {
            return Ok(0);
        }
        let count = to.len().min(self.held.len());
        to[..count].copy_from_slice(&self.held[..count]);
        self.held.drain(..count);
        Ok(count)
    }
}

impl Write for Ahead {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Certificate and key as rustls has them.
pub fn pair(signed: &Signed) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
    (certificate, PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap())
}

/// Answers one connection.
pub fn answer(stream: TcpStream, pki: &Pki, names: &BTreeSet<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let at = stream.local_addr()?.to_string();
    let mut layers: Vec<Value> = Vec::new();
    let mut ahead = Ahead { stream: Box::new(stream), held: Vec::new() };
    // TLS may go through TLS.
    while ahead.peek()? == Some(0x16) {
        let (layer, inner) = secured(ahead, pki, names)?;
        layers.push(layer);
        ahead = Ahead { stream: inner, held: Vec::new() };
    }
    let mut text = Vec::new();
    // A head ends with an empty line, bytes with their only one.
    let is_whole = |text: &[u8]| match text.ends_with(b"\r\n") {
        true => text.ends_with(b"\r\n\r\n"),
        false => text.ends_with(b"\n"),
    };
    while !is_whole(&text) {
        let mut byte = [0];
        if ahead.read(&mut byte)? == 0 {
            return Ok(());
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut told = json!({"at": at, "tls": layers});
    let first = text.lines().next().unwrap_or_default();
    let [method, path, _] = first.split(' ').collect::<Vec<_>>()[..] else {
        writeln!(ahead, "{told}")?;
        return ahead.flush();
    };
    told["method"] = method.into();
    told["path"] = path.into();
    for line in text.lines().skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        if name == "host" {
            told["host"] = value.into();
            continue;
        }
        let joined = match told["headers"][&name].as_str() {
            Some(before) => format!("{before},{value}"),
            None => value.to_owned(),
        };
        told["headers"][&name] = joined.into();
    }
    let body = told.to_string();
    write!(ahead, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    ahead.flush()
}

/// Ends a layer of TLS, as a server that has every name it is asked for.
fn secured(
    mut stream: Ahead,
    pki: &Pki,
    names: &BTreeSet<String>,
) -> std::io::Result<(Value, Box<dyn Stream>)> {
    let broken = |error: rustls::Error| std::io::Error::other(error);
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        if acceptor.read_tls(&mut stream)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((error, _)) => return Err(broken(error)),
        }
    };
    let hello = accepted.client_hello();
    let sni = hello.server_name().map(str::to_owned);
    let offered = hello.alpn().into_iter().flatten();
    let alpn: Vec<String> = offered.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut all: Vec<String> = names.iter().cloned().collect();
    all.extend(sni.iter().filter(|name| !name.contains('_') && !names.contains(*name)).cloned());
    let (certificate, key) = pair(&pki.of(&all));
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(vec![certificate], key)
        .map_err(broken)?;
    let mut connection = accepted.into_connection(Arc::new(config)).map_err(|(error, _)| broken(error))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let known = connection.peer_certificates().is_some_and(|chain| !chain.is_empty());
    let mode = match known {
        true if alpn.iter().any(|name| name == "istio") => "istio-mutual",
        true => "mutual",
        false => "simple",
    };
    let layer = json!({"mode": mode, "sni": sni, "alpn": alpn});
    Ok((layer, Box::new(rustls::StreamOwned::new(connection, stream))))
}

/// Takes every client, and asks each for a certificate.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
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
