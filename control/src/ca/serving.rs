//! The control plane's own certificate: issued by its own authority, renewed at half of its life without a restart; and the
//! TLS side of its secure port.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use weft_certs::rustls_verifiers::{ClientCertificate, PeerVerifier};
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};

use super::authenticate::PeerInfo;
use super::authority::CertificateAuthority;

/// Names under which proxies dial a control plane (istiod's own).
const NAMES: [&str; 5] = [
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "istiod.istio-system",
    "istiod-remote.istio-system.svc",
    "localhost",
];
const LIFE: Duration = Duration::hours(24);
/// A client that does not finish its handshake in this time is let go.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// The secure port's TLS.
pub struct Serving {
    authority: Arc<CertificateAuthority>,
    addresses: Vec<IpAddr>,
    current: Arc<Current>,
    context: ValidationContext,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Serving {
    /// Issues the first certificate, for Istio's names of a control plane and for these addresses.
    pub fn new(authority: Arc<CertificateAuthority>, addresses: Vec<IpAddr>) -> anyhow::Result<Arc<Self>> {
        let provider = weft_certs::provider().clone();
        let current = Arc::new(Current(ArcSwap::from_pointee(issue(&authority, &addresses)?)));
        let context = ValidationContext {
            bundle: Bundle::new(vec![authority.state().root.certificate().clone()])?,
            expected: Expected::Domains(vec![authority.domain().clone()]),
        };
        let clients = PeerVerifier::of_clients(context.clone(), ClientCertificate::Optional);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(Self { authority, addresses, current, context, config: Arc::new(config) }))
    }

    /// Renews the certificate at half of its life, for ever.
    pub async fn rotate(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::unsigned_abs(LIFE) / 2).await;
            match issue(&self.authority, &self.addresses) {
                Ok(key) => self.current.0.store(Arc::new(key)),
                // The old one has half of its life left, and the next round tries again.
                Err(error) => tracing::error!(%error, "the control plane's own certificate was not renewed"),
            }
        }
    }

    /// Connections of a port, each with its handshake done in a task of its own, so that a slow client holds up nobody.
    pub fn accept(
        self: Arc<Self>,
        listener: TcpListener,
    ) -> tokio_stream::wrappers::ReceiverStream<std::io::Result<Secure>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, most likely: it passes when connections end.
                        tracing::warn!(%error, "cannot accept a connection on the secure port");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if sender.is_closed() {
                    return;
                }
                let (serving, sender) = (self.clone(), sender.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, serving.handshake(stream)).await {
                        Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
                        Ok(Err(error)) => tracing::warn!(%error, "handshake on the secure port failed"),
                        Err(_) => tracing::warn!("handshake on the secure port took too long"),
                    }
                });
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    async fn handshake(&self, stream: TcpStream) -> anyhow::Result<Secure> {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr().ok();
        let stream = TlsAcceptor::from(self.config.clone()).accept(stream).await?;
        let certificate = match stream.get_ref().1.peer_certificates() {
            // Checked once more here, for on a resumed session rustls calls no verifier.
            Some(chain) => {
                Some(verify_peer(chain, &self.context, rustls_pki_types::UnixTime::now(), Usage::Client)?)
            }
            None => None,
        };
        Ok(Secure { stream, peer: PeerInfo { address, secure: true, certificate } })
    }
}

fn issue(authority: &CertificateAuthority, addresses: &[IpAddr]) -> anyhow::Result<CertifiedKey> {
    let id = authority.domain().workload("istio-system", "istiod")?;
    let state = authority.state();
    let (certificate, key) =
        state.intermediate.server(&id, &NAMES, addresses, OffsetDateTime::now_utc(), LIFE)?;
    let chain = vec![certificate, state.intermediate.certificate().clone()];
    let key = weft_certs::provider().key_provider.load_private_key(key.into())?;
    Ok(CertifiedKey::new(chain, key))
}

/// A connection to the secure port. Requests on it carry its [`PeerInfo`] among their extensions.
pub struct Secure {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
}

impl Connected for Secure {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
