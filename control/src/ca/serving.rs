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
use weft_certs::rustls_verifiers::{ClientCertificate, PeerVerifier};
use weft_certs::spiffe::TrustDomain;
use weft_certs::verify::{Bundle, Expected, Usage, ValidationContext, verify_peer};
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::authenticate::PeerInfo;
use super::authority::CertificateAuthority;

/// Names under which proxies dial a control plane (istiod's own).
pub(super) const NAMES: [&str; 5] = [
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "istiod.istio-system",
    "istiod-remote.istio-system.svc",
    "localhost",
];
const LIFE: Duration = Duration::hours(24);
/// After a failure to renew it.
const RETRY: std::time::Duration = std::time::Duration::from_secs(10);
/// A client that does not finish its handshake in this time is let go.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// The secure port's TLS.
pub struct Serving {
    authority: Arc<CertificateAuthority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    aliases: Vec<TrustDomain>,
    current: Arc<Current>,
    /// What clients are checked by; another one when the mesh trusts others.
    checks: ArcSwap<Checks>,
}

struct Checks {
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
    /// Issues the first certificate, for Istio's names of a control plane, and for these names and addresses. Takes clients of the
    /// authority's trust domain and of its aliases.
    pub async fn new(
        authority: Arc<CertificateAuthority>,
        names: Vec<String>,
        addresses: Vec<IpAddr>,
        aliases: Vec<TrustDomain>,
    ) -> anyhow::Result<Arc<Self>> {
        let key = issue(&authority, &names, &addresses).await?;
        let current = Arc::new(Current(ArcSwap::from_pointee(key)));
        let checks = checks(&authority, &aliases, &current)?;
        Ok(Arc::new(Self {
            authority,
            names,
            addresses,
            aliases,
            current,
            checks: ArcSwap::from_pointee(checks),
        }))
    }

    /// Renews the certificate at half of its life, and at once when the mesh trusts other roots than before, for ever.
    pub async fn rotate(self: Arc<Self>) {
        let mut trust = self.authority.trust();
        let mut pause = half(&self.current.0.load());
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = trust.changed() => if changed.is_err() { return },
            }
            match issue(&self.authority, &self.names, &self.addresses).await {
                Ok(key) => {
                    pause = half(&key);
                    self.current.0.store(Arc::new(key));
                }
                // The old one has half of its life left.
                Err(error) => {
                    tracing::error!(%error, "the control plane's own certificate was not renewed");
                    pause = RETRY;
                }
            }
            match checks(&self.authority, &self.aliases, &self.current) {
                Ok(checks) => self.checks.store(Arc::new(checks)),
                Err(error) => {
                    tracing::error!(%error, "the roots by which clients are checked stay the old ones")
                }
            }
        }
    }

    /// TLS with the same certificate for whoever shows none: the API server, at the webhooks' port.
    ///
    /// # Errors
    /// The library cannot.
    pub fn for_webhooks(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(weft_certs::provider().clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Connections of a port, each with its handshake done in a task of its own, so that a slow client holds up nobody.
    pub fn accept(self: Arc<Self>, listener: TcpListener) -> tokio::sync::mpsc::Receiver<Secure> {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let (stream, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
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
                        Ok(Ok(connection)) => drop(sender.send(connection).await),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "handshake on the secure port failed");
                            // Whoever only looks whether the port is open goes away at once.
                            let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::UnexpectedEof;
                            if !error.downcast_ref().is_some_and(gone) {
                                tell(from, &format!("a handshake on the secure port failed: {error}"));
                            }
                        }
                        Err(_) => {
                            tracing::warn!("handshake on the secure port took too long");
                            tell(from, "a handshake on the secure port took too long");
                        }
                    }
                });
            }
        });
        receiver
    }

    async fn handshake(&self, stream: TcpStream) -> anyhow::Result<Secure> {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr().ok();
        let checks = self.checks.load_full();
        let stream = TlsAcceptor::from(checks.config.clone()).accept(stream).await?;
        let certificate = match stream.get_ref().1.peer_certificates() {
            // Checked once more here, for on a resumed session rustls calls no verifier.
            Some(chain) => {
                let now = rustls_pki_types::UnixTime::now();
                let id = verify_peer(chain, &checks.context, now, Usage::Client)?;
                let serial = chain.first().map(weft_certs::inspect::facts).transpose()?.map(|f| f.serial);
                match serial.filter(|s| self.authority.is_revoked(s)) {
                    // It proves nothing; a token still does, and brings its workload another certificate.
                    Some(serial) => {
                        tracing::warn!(%serial, %id, ?address, "a client shows a revoked certificate");
                        None
                    }
                    None => Some(id),
                }
            }
            None => None,
        };
        Ok(Secure { stream, peer: PeerInfo { address, secure: true, certificate } })
    }
}

/// Half of the time that a certificate has left.
fn half(key: &CertifiedKey) -> std::time::Duration {
    let facts = key.cert.first().map(weft_certs::inspect::facts);
    let left = facts.and_then(Result::ok).map(|f| f.not_after - OffsetDateTime::now_utc());
    let left = left.and_then(|l| std::time::Duration::try_from(l).ok()).unwrap_or_default();
    (left / 2).clamp(RETRY, Duration::unsigned_abs(LIFE) / 2)
}

fn checks(
    authority: &CertificateAuthority,
    aliases: &[TrustDomain],
    current: &Arc<Current>,
) -> anyhow::Result<Checks> {
    let roots = weft_certs::pem::certificates(authority.trust().borrow().roots.as_bytes())?;
    let domains = std::iter::once(authority.domain()).chain(aliases).cloned().collect();
    let context = ValidationContext { bundle: Bundle::new(roots)?, expected: Expected::Domains(domains) };
    let clients = PeerVerifier::of_clients(context.clone(), ClientCertificate::Optional);
    let mut config = ServerConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(current.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Checks { context, config: Arc::new(config) })
}

async fn issue(
    authority: &CertificateAuthority,
    names: &[String],
    addresses: &[IpAddr],
) -> anyhow::Result<CertifiedKey> {
    let mut all = NAMES.to_vec();
    all.extend(names.iter().map(String::as_str).filter(|name| !NAMES.contains(name)));
    let (chain, key) = authority.server(&all, addresses, OffsetDateTime::now_utc(), LIFE).await?;
    let key = weft_certs::provider().key_provider.load_private_key(key.into())?;
    Ok(CertifiedKey::new(chain, key))
}

/// A connection to the secure port.
pub struct Secure {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
}

impl Secure {
    /// Who is at its other end.
    pub fn peer(&self) -> PeerInfo {
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

    /// What belongs together (a frame's head and its content) goes into one record, and to the kernel at once.
    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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

/// Tells of a client whose handshake failed.
fn tell(from: std::net::SocketAddr, words: &str) {
    emit(Kind::HandshakeFailed, || {
        Event::new(Kind::HandshakeFailed, Outcome::Failed, Severity::Medium, "tls-downstream", words)
            .with("source_address", from.to_string())
            .with("listener", "secure port")
    });
}
