//! A small HTTP/1.1 client for what the command line itself asks: readiness, statistics, the demonstration's requests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, whatever it holds.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Where pages are asked for, how, and as whom.
#[derive(Clone)]
pub struct Site {
    /// Where.
    pub address: SocketAddr,
    /// None: in plain text.
    pub tls: Option<Tls>,
    /// A bearer token.
    pub token: Option<String>,
}

/// How a server is checked.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The name that its certificate must have.
    pub name: String,
    /// The roots by which it is checked, PEM.
    pub roots: PathBuf,
}

impl Site {
    /// In plain text, as nobody.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, token: None }
    }

    fn get(&self, path: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::get(path).header("host", self.host());
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        Ok(request.body(Full::default())?)
    }

    fn host(&self) -> String {
        match &self.tls {
            Some(tls) => format!("{}:{}", tls.name, self.address.port()),
            None => self.address.to_string(),
        }
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.host())
    }
}

impl Tls {
    fn connector(&self) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
        let file = || self.roots.display().to_string();
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(&self.roots).with_context(file)?;
        for certificate in weft_certs::pem::certificates(&pem).with_context(file)? {
            roots.add(certificate).with_context(file)?;
        }
        let config = ClientConfig::builder_with_provider(weft_certs::provider().clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.name.clone())
            .with_context(|| format!("{:?} is no name that a certificate can have", self.name))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }
}

/// An open connection, for one request after the other.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Self::over(stream).await
    }

    /// Connects to a site.
    ///
    /// # Errors
    /// It cannot be reached, or is not who it should be.
    pub async fn to(site: &Site) -> anyhow::Result<Self> {
        let Some(tls) = &site.tls else { return Self::open(site.address).await };
        let (connector, name) = tls.connector()?;
        let stream = TcpStream::connect(site.address)
            .await
            .with_context(|| format!("cannot connect to {}", site.address))?;
        let stream = connector.connect(name, stream).await.with_context(|| {
            format!("{site} is not the control plane that {} has the root of", tls.roots.display())
        })?;
        Self::over(stream).await
    }

    async fn over<S>(stream: S) -> anyhow::Result<Self>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // What goes wrong with the connection is told to the request that it happens to.
            let _ = connection.await;
        });
        Ok(Self { sender })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// The connection broke before the answer was whole.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Whether the server has closed it, or said that it will.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// One GET on a connection of its own, by a deadline.
///
/// # Errors
/// No whole answer came in time.
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<Answer> {
    get_of(&Site::plain(address), path, limit).await
}

/// The same of a site.
///
/// # Errors
/// No whole answer came in time.
pub async fn get_of(site: &Site, path: &str, limit: Duration) -> anyhow::Result<Answer> {
    let request = site.get(path)?;
    let exchange = async { Connection::to(site).await?.send(request).await };
    match tokio::time::timeout(limit, exchange).await {
        Ok(answer) => answer.with_context(|| format!("GET {site}{path}")),
        Err(_) => bail!("GET {site}{path}: no answer within {limit:?}"),
    }
}

/// A GET whose answer has no end of its own: `to` gets what is made of its lines, the empty ones apart, until it ends. The answer's head
/// has to come by the deadline.
///
/// # Errors
/// No answer came in time, it is none of success, or it broke off.
pub async fn lines<T>(
    site: &Site,
    path: &str,
    limit: Duration,
    to: &mpsc::Sender<T>,
    make: impl Fn(String) -> T,
) -> anyhow::Result<()> {
    let request = site.get(path)?;
    let head = async {
        let mut connection = Connection::to(site).await?;
        connection.sender.ready().await?;
        let answer = connection.sender.send_request(request).await?;
        anyhow::Ok((connection, answer))
    };
    let what = || format!("GET {site}{path}");
    let Ok(head) = tokio::time::timeout(limit, head).await else {
        bail!("{}: no answer within {limit:?}", what());
    };
    let (_connection, answer) = head.with_context(what)?;
    let status = answer.status();
    let mut body = answer.into_body();
    if !status.is_success() {
        let text = body.collect().await?.to_bytes();
        bail!("{}: {status}: {}", what(), String::from_utf8_lossy(&text).trim());
    }
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.with_context(what)?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            // Where nobody listens any more, that is no failure of who speaks.
            if !line.is_empty() && to.send(make(line)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
