//! EST (RFC 7030) as the signer: requests of workloads go to a server's `simpleenroll` in the control plane's name, as those of a
//! registration authority do; what it hands out at `cacerts` says whom the mesh trusts, and what leads there. The control plane
//! proves itself by a certificate, which [`own`] renews at `simplereenroll`, by a password, or by both.
//!
//! Such a server takes names from the request, so what [`super::believed`] says holds. While it is away nobody loses anything: proxies
//! keep their certificates and ask again, and the roots that were known stay. Roots come and go as [`roots`] says.

mod error;
mod own;
#[cfg(test)]
mod played;
mod roots;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use weft_certs::chain::above;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::believed;
use super::http::send_showing;
use super::openbao::Signed;
use super::roots::Roots;
pub use error::EstError;
use own::Pending;

/// How long a request may take with all the times that the server wants it asked again.
const PATIENCE: Duration = Duration::from_secs(20);
/// As much is told of what a server says.
const WORDS: usize = 300;

const ROOTS: &str = "cacerts";
const ENROL: &str = "simpleenroll";
const RENEW: &str = "simplereenroll";
/// What a label must not be.
const OPERATIONS: [&str; 6] = [ROOTS, ENROL, RENEW, "fullcmc", "serverkeygen", "csrattrs"];

/// Where and what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's URL, without a path.
    pub address: String,
    /// Which of its authorities.
    pub label: Option<String>,
    /// Roots by which its TLS is checked; the system's without.
    pub roots: Option<PathBuf>,
    /// The roots that its certificates lead to; without, those that it hands out.
    pub trust: Option<PathBuf>,
    /// Certificate and key by which it knows the control plane.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Name, and the file of the password.
    pub password: Option<(String, PathBuf)>,
    /// The longest life that a certificate may have.
    pub longest: time::Duration,
}

/// The signer.
#[derive(Clone)]
pub struct Est {
    settings: Arc<Settings>,
    /// What the operations are below.
    below: String,
    /// What the server handed out last.
    known: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    /// The roots that the mesh is told to trust.
    trusted: Arc<Mutex<Roots>>,
    /// The successor of the certificate in the settings, with what leads to its root.
    renewed: Arc<Mutex<Option<Vec<CertificateDer<'static>>>>>,
    /// The request for it that the server has not answered yet, and for whose successor it is.
    pending: Arc<Mutex<Option<Pending>>>,
    /// Where all that is kept.
    directory: Arc<OnceLock<PathBuf>>,
}

impl Est {
    /// A signer by these settings; nothing is asked yet.
    ///
    /// # Errors
    /// They do not say where, or how the control plane proves who it is.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let Settings { address, label, .. } = &settings;
        let uri: Uri = address.parse().with_context(|| format!("--ca-addr {address}"))?;
        let host = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let (Some("https"), Some(host)) = (uri.scheme_str(), host) else {
            bail!(
                "--ca-addr {address}: EST is spoken over TLS alone; give a URL such as https://est.example:8443"
            );
        };
        if uri.path_and_query().is_some_and(|path| path != "/") {
            bail!(
                "--ca-addr {address}: leave the path out, it is EST's own (/.well-known/est); --ca-est-label says which of several \
                 authorities"
            );
        }
        let mut below = format!("https://{host}/.well-known/est");
        if let Some(label) = label {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
            if label.is_empty() || !label.chars().all(plain) || OPERATIONS.contains(&label.as_str()) {
                bail!(
                    "--ca-est-label {label}: a label is one part of a path (letters, digits, - . _ ~), and no operation's name"
                );
            }
            below = format!("{below}/{label}");
        }
        if settings.certificate.is_none() && settings.password.is_none() {
            bail!(
                "--ca est needs --ca-est-cert and --ca-est-key, or --ca-est-user and --ca-est-password-file: the server must know who \
                 asks for others"
            );
        }
        Ok(Self {
            settings: Arc::new(settings),
            below,
            known: Arc::default(),
            trusted: Arc::default(),
            renewed: Arc::default(),
            pending: Arc::default(),
            directory: Arc::default(),
        })
    }

    /// Has a request signed, for a proven sender. `besides` are the DNS names and addresses that it names.
    ///
    /// # Errors
    /// It is for somebody else, or is not signed as it was asked for.
    pub async fn sign(
        &self,
        request: &CheckedRequest,
        id: &SpiffeId,
        besides: (&[&str], &[IpAddr]),
    ) -> Result<Signed, EstError> {
        believed::names_its_sender(request, id, besides)
            .map_err(|named| EstError::Names { named, id: id.to_string() })?;
        let bad = |reason: String| EstError::Answer { url: self.url(ENROL), reason };
        let issued = self.enrol(ENROL, request.der()).await?;
        let leaf = issued.iter().find(|certificate| request.is_key_of(certificate));
        let leaf =
            leaf.ok_or_else(|| bad("it has no certificate for the key that was asked for".to_owned()))?;
        let mut known = self.known.lock().clone();
        loop {
            let fresh = known.is_empty();
            if fresh {
                known = self.fetch().await?;
            }
            let chain = above(leaf, &[issued.as_slice(), known.as_slice()].concat());
            let (now, roots) = (OffsetDateTime::now_utc(), self.trusted.lock().clone());
            let usable = |roots: &str| believed::usable(&chain, roots, request, id, self.settings.longest);
            match usable(&roots.handed_out(now)) {
                Ok(signed) => return Ok(signed),
                Err(_) if fresh => {
                    if let Ok(signed) = usable(&roots.heard_of(now)) {
                        self.trusted.lock().used(now, self.settings.longest);
                        return Ok(signed);
                    }
                    return Err(match usable(&roots.trusted()) {
                        Ok(_) => EstError::Early { url: self.url(ENROL) },
                        Err(reason) => bad(reason),
                    });
                }
                // What leads to it may be new.
                Err(_) => known.clear(),
            }
        }
    }

    /// The roots that the mesh is to trust, PEM: those that the server hands out or the file has, and those that have to stay. What
    /// leads to a new one is not taken before the mesh has had time to hear of it.
    ///
    /// # Errors
    /// The server does not hand them out, or the file has none.
    pub async fn roots(&self) -> Result<String, EstError> {
        let known = self.fetch().await;
        let (heard, stay) = match &self.settings.trust {
            Some(path) => {
                let bad = |why: String| EstError::File { flag: "--ca-trust", path: path.clone(), why };
                let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
                // Whoever takes one out of the file means it.
                (believed::roots(&text).map_err(bad)?, None)
            }
            None => {
                let bad = |reason: String| EstError::Answer { url: self.url(ROOTS), reason };
                let text = weft_certs::pem::encode_all(&known?);
                (believed::roots(text.as_bytes()).map_err(bad)?, Some(self.settings.longest))
            }
        };
        let mut roots = self.trusted.lock();
        let change = roots.hear(&heard, OffsetDateTime::now_utc(), stay);
        self.tell_of(&change);
        self.keep_roots(&roots);
        Ok(roots.trusted())
    }

    async fn fetch(&self) -> Result<Vec<CertificateDer<'static>>, EstError> {
        let answer = self.send(Method::GET, ROOTS, None).await?;
        let known = self.certificates(ROOTS, &answer)?;
        self.known.lock().clone_from(&known);
        Ok(known)
    }

    /// Puts a request (DER) before it, as often as it wants within our patience.
    async fn enrol(
        &self,
        operation: &'static str,
        request: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, EstError> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.send(Method::POST, operation, Some(request)).await?;
            if answer.status() != StatusCode::ACCEPTED {
                return self.certificates(operation, &answer);
            }
            let after = retry_after(answer.headers(), OffsetDateTime::now_utc());
            if after > end.saturating_duration_since(tokio::time::Instant::now()) {
                return Err(EstError::Later { url: self.url(operation), after });
            }
            tokio::time::sleep(after).await;
        }
    }

    async fn send(
        &self,
        method: Method,
        operation: &'static str,
        request: Option<&[u8]>,
    ) -> Result<Response<Bytes>, EstError> {
        let url = self.url(operation);
        let mut head = Request::builder().method(method).uri(&url).header("accept", "application/pkcs7-mime");
        let mut body = String::new();
        if let Some(request) = request {
            head = head
                .header("content-type", "application/pkcs10")
                .header("content-transfer-encoding", "base64");
            body = in_lines(&STANDARD.encode(request));
            // Whom it trusts it tells everybody.
            if let Some((user, file)) = &self.settings.password {
                head = head.header(header::AUTHORIZATION, basic(user, file)?);
            }
        }
        let request = head
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| EstError::Answer { url, reason: error.to_string() })?;
        Ok(send_showing(request, self.settings.roots.clone(), self.shown()?).await?)
    }

    /// The certificates of an answer.
    fn certificates(
        &self,
        operation: &'static str,
        answer: &Response<Bytes>,
    ) -> Result<Vec<CertificateDer<'static>>, EstError> {
        let url = self.url(operation);
        if answer.status() != StatusCode::OK {
            return Err(EstError::Refused { url, status: answer.status(), words: words(answer.body()) });
        }
        let bad = |reason: String| EstError::Answer { url: url.clone(), reason };
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with("application/pkcs7-mime") {
            return Err(bad(format!("it is of type {kind:?}, and application/pkcs7-mime is EST's")));
        }
        let text: Vec<u8> = answer.body().iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        let message = STANDARD.decode(text).map_err(|error| bad(format!("not in base64: {error}")))?;
        weft_certs::pkcs7::certificates(&message).map_err(|error| bad(error.to_string()))
    }

    fn url(&self, operation: &str) -> String {
        format!("{}/{operation}", self.below)
    }
}

/// Base64 as mail has it, which some servers insist on.
fn in_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 38);
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(76));
        out.push_str(line);
        out.push_str("\r\n");
        rest = after;
    }
    out
}

fn basic(user: &str, file: &Path) -> Result<String, EstError> {
    let bad = |why: String| EstError::File { flag: "--ca-est-password-file", path: file.to_owned(), why };
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?);
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(bad("is empty".to_owned()));
    }
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Ok(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// When to ask again: in seconds or at a moment; without a word, or with one that cannot be read, in a while.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Duration {
    let text =
        headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    let moment = || {
        let moment = OffsetDateTime::parse(text, &Rfc2822).ok()?;
        Some(Duration::try_from(moment - now).unwrap_or_default())
    };
    // Not at once, whatever it says.
    seconds.or_else(moment).unwrap_or(Duration::from_secs(60)).max(Duration::from_secs(1))
}

/// What a server said, in one line.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WORDS) {
        _ if line.is_empty() => "no more than that".to_owned(),
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
