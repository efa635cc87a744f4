//! A small HTTP/1.1 client for what the authority asks of others: JWKS, Kubernetes' TokenReview, OpenBao, EST. One connection for
//! each call, for calls are few; nothing waits longer than [`PATIENCE`], and no answer may be longer than [`LONGEST`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a call may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read, unless told otherwise.
pub const LONGEST: usize = 1024 * 1024;
/// Where systems keep the roots that they trust.
pub const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A call that brought no answer.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct HttpError {
    url: String,
    pub(crate) reason: String,
}

/// Where to, and how its certificate is checked.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    roots: Option<PathBuf>,
    longest: usize,
}

impl Client {
    /// Calls below `base` (`https://host:port/path`, or http). TLS is checked by the roots of this file, read anew for each
    /// call; without one by the system's.
    pub fn new(base: &str, roots: Option<PathBuf>) -> Result<Self, HttpError> {
        let bad = |reason: &str| HttpError { url: base.to_owned(), reason: reason.to_owned() };
        let uri: Uri = base.parse().map_err(|_| bad("is not a URL"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("https" | "http"), Some(_)) => {}
            _ => return Err(bad("is not a URL of https or http with a host")),
        }
        Ok(Self { base: base.trim_end_matches('/').to_owned(), roots, longest: LONGEST })
    }

    /// Reads answers of up to so many bytes.
    #[must_use]
    pub fn with_longest(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// The URL that paths are below.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Calls: status and body of the answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<&serde_json::Value>,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let url = format!("{}{path}", self.base);
        let call = self.call_within(method, &url, headers, body);
        let answer = tokio::time::timeout(PATIENCE, call).await;
        let failed = |reason: String| HttpError { url: url.clone(), reason };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(format!("{error:#}"))),
            Err(_) => Err(failed(format!("no answer within {PATIENCE:?}"))),
        }
    }

    async fn call_within(
        &self,
        method: Method,
        url: &str,
        headers: &[(&'static str, &str)],
        body: Option<&serde_json::Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let answer = sent(request.body(Full::new(body))?, self.roots.as_deref(), None, self.longest).await?;
        Ok((answer.status(), answer.into_body()))
    }
}

/// What a client shows of itself in a handshake: a certificate with what leads to its root, and its key.
pub type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Sends a request to the URL that it carries; the whole answer. TLS is checked by the roots of this file, or the system's.
pub async fn send(
    request: Request<Full<Bytes>>,
    roots: Option<PathBuf>,
) -> Result<Response<Bytes>, HttpError> {
    send_showing(request, roots, None).await
}

/// The same, with a certificate of the client's if the server asks for one.
pub async fn send_showing(
    request: Request<Full<Bytes>>,
    roots: Option<PathBuf>,
    shown: Option<Shown>,
) -> Result<Response<Bytes>, HttpError> {
    let url = request.uri().to_string();
    let failed = |reason: String| HttpError { url, reason };
    match tokio::time::timeout(PATIENCE, sent(request, roots.as_deref(), shown, LONGEST)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(_) => Err(failed(format!("no answer within {PATIENCE:?}"))),
    }
}

async fn sent(
    mut request: Request<Full<Bytes>>,
    roots: Option<&Path>,
    shown: Option<Shown>,
    longest: usize,
) -> anyhow::Result<Response<Bytes>> {
    let uri = std::mem::take(request.uri_mut());
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    *request.uri_mut() = uri.path_and_query().map_or("/", |p| p.as_str()).parse()?;
    if let Some(authority) = uri.authority() {
        request.headers_mut().insert("host", authority.as_str().parse()?);
    }
    if secure {
        let connector = TlsConnector::from(Arc::new(tls(roots, shown)?));
        let tls = connector.connect(ServerName::try_from(host)?, tcp).await?;
        exchange(TokioIo::new(tls), request, longest).await
    } else {
        exchange(TokioIo::new(tcp), request, longest).await
    }
}

fn tls(roots: Option<&Path>, shown: Option<Shown>) -> anyhow::Result<ClientConfig> {
    let path = match roots {
        Some(path) => path.to_owned(),
        None => SYSTEM_ROOTS
            .iter()
            .map(PathBuf::from)
            .find(|p| p.exists())
            .ok_or_else(|| anyhow::anyhow!("this system has none of {}", SYSTEM_ROOTS.join(", ")))?,
    };
    let config = ClientConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(read_roots(&path)?);
    Ok(match shown {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    })
}

fn read_roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let bad = |e: &dyn std::fmt::Display| anyhow::anyhow!("the roots {}: {e}", path.display());
    let pem = std::fs::read(path).map_err(|e| bad(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        // A system's list may hold what is no root to us.
        let _ = roots.add(certificate.map_err(|e| bad(&e))?);
    }
    if roots.is_empty() { Err(bad(&"hold no certificate")) } else { Ok(roots) }
}

async fn exchange<S>(
    io: TokioIo<S>,
    request: Request<Full<Bytes>>,
    longest: usize,
) -> anyhow::Result<Response<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, longest).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("its answer cannot be read: {e}"))?;
        anyhow::Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::pin!(connection, answer);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            ended = &mut connection, if open => { ended?; open = false; }
        }
    }
}
