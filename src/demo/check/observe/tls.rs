//! Shakes hands with a proxy, in a client's place or in a server's, and records what was agreed and what was shown. The
//! verifiers here judge nobody: they check that the peer holds the key of what it shows, and keep it for the checks to judge.

use std::net::SocketAddr;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CommonState, DigitallySignedStruct, DistinguishedName, Error, ProtocolVersion, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::credentials::Credentials;
use super::http::{Answer, Connection, Failure, Request};

const PATIENCE: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// What a handshake showed.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// `TLS 1.3 with X25519MLKEM768`.
    pub agreed: String,
    /// The peer's chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The protocol that ALPN settled on.
    pub alpn: String,
}

impl Handshake {
    fn of(connection: &CommonState) -> Self {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3".to_owned(),
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2".to_owned(),
            other => format!("{other:?}"),
        };
        let group = connection.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name()));
        Self {
            agreed: format!("{version} with {}", group.as_deref().unwrap_or("an unknown group")),
            chain: connection.peer_certificates().unwrap_or_default().to_vec(),
            alpn: String::from_utf8_lossy(connection.alpn_protocol().unwrap_or_default()).into_owned(),
        }
    }
}

/// Takes every certificate whose key the peer holds.
#[derive(Debug)]
pub struct Anybody;

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(
                message,
                certificate,
                signed,
                &provider().signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(
                message,
                certificate,
                signed,
                &provider().signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    // Whoever comes is let in, and recorded; also without a certificate.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// Shows a certificate, or none, to whoever asks.
#[derive(Debug)]
struct Shown(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// How a dialled proxy took us.
#[derive(Debug)]
pub enum Outcome {
    /// It answered our request.
    Answered(Handshake, Answer),
    /// It ended the handshake, or the connection right after it: why, as far as it said.
    Refused(String),
}

/// Dials a proxy's mutual-TLS port with a certificate, or with none, and sends a request. (In TLS 1.3 a client's certificate
/// is judged after the client's handshake is done: only an answer shows that it was accepted.)
pub async fn dial(to: SocketAddr, shown: Option<&Credentials>, request: &Request) -> anyhow::Result<Outcome> {
    let key = shown.map(Credentials::certified).transpose()?;

    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(Shown(key)));
    config.alpn_protocols = vec![b"istio".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("outbound_.8080_._.observer").context("server name")?.to_owned();
    let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await?;
    let stream = stream.with_context(|| format!("no connection to {to}"))?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = match tokio::time::timeout(PATIENCE, connecting).await? {
        Ok(stream) => stream,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let handshake = Handshake::of(stream.get_ref().1);
    match Connection::over(stream, PATIENCE).exchange(request).await {
        Ok(answer) => Ok(Outcome::Answered(handshake, answer)),
        Err(Failure::TimedOut) => anyhow::bail!("{to} neither answers nor refuses"),
        Err(failure) => Ok(Outcome::Refused(failure.to_string())),
    }
}

/// A server in an upstream's place.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Listens with a certificate, and asks every client for its own.
    pub async fn open(at: SocketAddr, shown: &Credentials) -> anyhow::Result<Self> {
        let key = shown.certified()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Anybody))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::unwrap_or_clone(key))));
        config.alpn_protocols = vec![b"istio-http/1.1".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind(at).await.with_context(|| format!("the observer at {at}"))?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Serves until `client` is done, which is told apart from what came: each connection's handshake, or what the client
    /// had against us. (A client that turned away may try again.)
    pub async fn serve<T>(&self, client: impl Future<Output = T>) -> (T, Vec<Result<Handshake, String>>) {
        let mut met = Vec::new();
        let serving = async {
            loop {
                met.push(self.one().await);
            }
        };
        let answer = tokio::select! {
            answer = client => answer,
            never = serving => never,
        };
        (answer, met)
    }

    /// Takes one connection, records its handshake, and answers one request with an empty 200.
    async fn one(&self) -> Result<Handshake, String> {
        let words = |e: std::io::Error| e.to_string();
        let (stream, _) = self.listener.accept().await.map_err(words)?;
        let mut stream = self.acceptor.accept(stream).await.map_err(words)?;
        let handshake = Handshake::of(stream.get_ref().1);
        let mut head = Vec::new();
        while !head.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.map_err(words)? == 0 {
                return Err("it closed without a request".to_owned());
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.map_err(words)?;
        let _ = stream.shutdown().await;
        Ok(handshake)
    }
}
