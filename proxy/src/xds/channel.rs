//! Connections to the control plane: TCP or a UNIX socket, with TLS or without, as a tonic channel.
//!
//! TLS is ours rather than tonic's, so that the crypto provider is named and the trust bundle is read anew for each connection:
//! a root that was rotated is trusted at the next reconnect.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Uri};

/// Where the control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host (name or IP address) and port.
    Tcp(String, u16),
    /// A socket's path.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = ChannelError;

    /// `host:port`, `[v6]:port`, or `unix:/path`.
    fn from_str(text: &str) -> Result<Self, ChannelError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.trim_start_matches("//").into()));
        }
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            (!host.is_empty()).then_some(Self::Tcp(host.to_owned(), port.parse().ok()?))
        });
        parsed.ok_or_else(|| ChannelError::Address(text.to_owned()))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How the control plane's certificate is checked, and what we show.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The trust bundle, PEM; read anew for each connection.
    pub roots: PathBuf,
    /// The name that the certificate must have; none: the host of the address.
    pub server_name: Option<String>,
    /// Our own certificate, when the control plane knows us by it.
    pub identity: Option<Arc<dyn ResolvesClientCert>>,
    /// Roots that are trusted beside the file's.
    pub beside: Option<Beside>,
}

/// Roots that came with the workload's certificate: a bundle that the file does not have yet, while a root is replaced.
#[derive(Clone)]
pub struct Beside(pub Arc<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>);

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Beside")
    }
}

/// A control plane's address and how to speak to it. The identity client connects by this, too.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where.
    pub address: Address,
    /// None: plain text.
    pub tls: Option<Tls>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not an address.
    #[error("{0:?} is not an address: expected host:port or unix:/path")]
    Address(String),
    /// The bundle cannot be read, or holds no certificate.
    #[error("the control plane's trust bundle {path}: {reason}")]
    Roots {
        /// Its file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not a DNS name or IP address.
    #[error("{0:?} is not a name that a certificate can have")]
    ServerName(String),
    /// The crypto provider lacks the protocol versions.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No connection, or no TLS or HTTP/2 on it.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// tonic's error, whose own sources say more.
        source: tonic::transport::Error,
    },
}

impl Endpoint {
    /// Connects. The channel does not reconnect by itself in a way that matters: its streams end with the connection.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn connect(&self) -> Result<Channel, ChannelError> {
        let tls = self.tls.as_ref().map(|tls| self.tls_connector(tls)).transpose()?;
        let address = self.address.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (address, tls) = (address.clone(), tls.clone());
            async move { open(&address, tls).await.map(TokioIo::new) }
        });
        // The scheme is http as far as tonic is concerned: TLS is inside the connector. Requests say what is true.
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let authority = match &self.address {
            Address::Tcp(..) => self.address.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let uri = |scheme: &str| {
            format!("{scheme}://{authority}")
                .parse::<Uri>()
                .map_err(|_| ChannelError::Address(authority.clone()))
        };
        tonic::transport::Endpoint::from(uri("http")?)
            .origin(uri(scheme)?)
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ChannelError::Connect { address: self.address.to_string(), source })
    }

    fn tls_connector(&self, tls: &Tls) -> Result<(TlsConnector, ServerName<'static>), ChannelError> {
        let name = match (&tls.server_name, &self.address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp(host, _)) => host.clone(),
            (None, Address::Unix(_)) => "localhost".to_owned(),
        };
        let bad = |reason: String| ChannelError::Roots { path: tls.roots.display().to_string(), reason };
        let pem = std::fs::read(&tls.roots).map_err(|e| bad(e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("holds no certificate".into()));
        }
        for certificate in tls.beside.iter().flat_map(|b| (b.0)()) {
            roots.add(certificate)?;
        }
        let config = ClientConfig::builder_with_provider(weft_certs::provider().clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &tls.identity {
            Some(identity) => config.with_client_cert_resolver(identity.clone()),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.clone()).map_err(|_| ChannelError::ServerName(name))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }
}

async fn open(
    address: &Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> std::io::Result<Socket> {
    match address {
        Address::Tcp(host, port) => {
            let tcp = TcpStream::connect((host.as_str(), *port)).await?;
            tcp.set_nodelay(true)?;
            secure(tcp, tls).await
        }
        Address::Unix(path) => secure(UnixStream::connect(path).await?, tls).await,
    }
}

type Socket = Box<dyn Stream>;

/// What a channel runs over.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn secure(
    io: impl Stream + 'static,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> std::io::Result<Socket> {
    Ok(match tls {
        Some((connector, name)) => Box::new(connector.connect(name, io).await?),
        None => Box::new(io),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        let parse = |text: &str| text.parse::<Address>().map(|a| a.to_string()).map_err(|e| e.to_string());
        assert_eq!(parse("istiod.istio-system.svc:15012").unwrap(), "istiod.istio-system.svc:15012");
        assert_eq!(parse("[::1]:15010").unwrap(), "[::1]:15010");
        assert_eq!("[::1]:15010".parse::<Address>().unwrap(), Address::Tcp("::1".into(), 15010));
        assert_eq!("unix:///run/xds".parse::<Address>().unwrap(), Address::Unix("/run/xds".into()));
        for bad in ["istiod", ":15010", "istiod:x", "istiod:99999", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_missing_trust_bundle_is_an_error_that_names_it() {
        let tls = Tls {
            roots: "/nonexistent/root-cert.pem".into(),
            server_name: None,
            identity: None,
            beside: None,
        };
        let endpoint = Endpoint { address: Address::Tcp("127.0.0.1".into(), 1), tls: Some(tls) };
        let error = endpoint.connect().await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/root-cert.pem: No such file"), "{error}");
    }

    /// A TLS server on loopback, its address, the file with its root, and what the next handshake comes to: the protocol.
    fn server(dir: &std::path::Path) -> (Address, PathBuf, tokio::task::JoinHandle<Option<Vec<u8>>>) {
        use weft_certs::authority::{Authority, KeyKind};
        let now = time::OffsetDateTime::now_utc();
        let root = Authority::root(KeyKind::P256, now, time::Duration::hours(1)).unwrap();
        let id = "spiffe://cluster.local/ns/istio-system/sa/istiod".parse().unwrap();
        let names = ["istiod.istio-system.svc"];
        let (certificate, key) = root.server(&id, &names, &[], now, time::Duration::hours(1)).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(weft_certs::provider().clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = Address::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let handshake = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.ok()?;
            let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.ok()?;
            tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
        });
        let roots = dir.join("root-cert.pem");
        std::fs::write(&roots, root.certificate_pem()).unwrap();
        (address, roots, handshake)
    }

    #[tokio::test]
    async fn tls_is_http2_to_a_server_of_the_right_root_and_name_and_to_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let name = || Some("istiod.istio-system.svc".to_owned());
        let (address, roots, handshake) = server(dir.path());
        let tls = Tls { roots: roots.clone(), server_name: name(), identity: None, beside: None };
        Endpoint { address, tls: Some(tls) }.connect().await.unwrap();
        assert_eq!(handshake.await.unwrap().as_deref(), Some(b"h2".as_slice()));

        // The certificate has no such address among its names.
        let (address, roots, _) = server(dir.path());
        let tls = Tls { roots, server_name: None, identity: None, beside: None };
        assert!(Endpoint { address, tls: Some(tls) }.connect().await.is_err());

        // The file holds the root of another server by now.
        let (address, _, _) = server(dir.path());
        let (_, roots, _) = server(dir.path());
        let tls = Tls { roots, server_name: name(), identity: None, beside: None };
        assert!(Endpoint { address, tls: Some(tls) }.connect().await.is_err());
    }
}
