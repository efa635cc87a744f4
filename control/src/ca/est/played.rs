//! A server of EST as RFC 7030 describes it, and strict: it takes nothing that a client of the standard would not send, and believes what
//! a request says of itself. It uses no code of the client's, and so its tests elsewhere may take this file, too.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// Its user and password.
pub const USER: (&str, &str) = ("weft", "pass:word");

/// Status, headers and body of an answer.
pub type Instead = (u16, Vec<(&'static str, String)>, String);

/// How it behaves.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Answers this to everything.
    pub instead: Option<Instead>,
    /// A request is signed when it comes for the second time; before, the server wants it again after this.
    pub again_after: Option<String>,
    /// Certificates are for these names.
    pub names: Option<Vec<String>>,
    /// Certificates are for a key of its own.
    pub other_key: bool,
    /// They are good for this.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// These are handed out instead of its own root.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// They live so long.
    pub life: Duration,
    /// Its messages have marked ends, as some libraries write them.
    pub open_ended: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            instead: None,
            again_after: None,
            names: None,
            other_key: false,
            purposes: both(),
            roots: None,
            life: Duration::hours(24),
            open_ended: false,
        }
    }
}

/// The server.
pub struct Played {
    pub root: Certificate,
    root_issuer: Issuer<'static, KeyPair>,
    pub intermediate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    web: Certificate,
    web_issuer: Issuer<'static, KeyPair>,
    pub manner: Mutex<Manner>,
    /// What came: method and path, and who proved to be there.
    pub asked: Mutex<Vec<String>>,
    waiting: Mutex<BTreeMap<Vec<u8>, u32>>,
    label: Option<&'static str>,
}

/// A connection's client, by the certificate that it has shown.
type Shown = Option<CertificateDer<'static>>;

impl Played {
    /// One with one authority, or one whose authority has this label.
    pub fn new(label: Option<&'static str>) -> Arc<Self> {
        let (root, root_issuer) = authority("root", None);
        let (intermediate, issuer) = authority("issuing", Some(&root_issuer));
        let (web, web_issuer) = authority("web", None);
        Arc::new(Self {
            root,
            root_issuer,
            intermediate,
            issuer,
            web,
            web_issuer,
            manner: Mutex::default(),
            asked: Mutex::default(),
            waiting: Mutex::default(),
            label,
        })
    }

    /// Serves until the task is ended; gives the URL.
    pub async fn serve(self: &Arc<Self>) -> (String, tokio::task::JoinHandle<()>) {
        self.serve_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// The same at an address.
    pub async fn serve_at(self: &Arc<Self>, at: SocketAddr) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind(at).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(at.ip())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.web_issuer).unwrap();
        let mut clients = RootCertStore::empty();
        clients.add(self.root.der().clone()).unwrap();
        let provider = weft_certs::provider().clone();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone());
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let own = self.clone();
        let task = tokio::spawn(async move {
            // Ended with it, so that whoever ends the server finds nobody there.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (own, acceptor) = (own.clone(), acceptor.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first().cloned());
                    let shown = shown.map(CertificateDer::into_owned);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (own, shown) = (own.clone(), shown.clone());
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            Ok::<_, Infallible>(own.answer(
                                &head.method,
                                head.uri.path(),
                                &head.headers,
                                &body,
                                &shown,
                            ))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (url, task)
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
        shown: &Shown,
    ) -> Response<Full<Bytes>> {
        let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
        let expected = format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
        let known = header("authorization") == expected;
        let who = match (shown, known) {
            (Some(certificate), _) => {
                format!("certificate {}", weft_certs::inspect::facts(certificate).unwrap().serial)
            }
            (None, true) => "password".to_owned(),
            (None, false) => "nobody".to_owned(),
        };
        self.asked.lock().unwrap().push(format!("{method} {path} by {who}"));
        let manner = self.manner.lock().unwrap().clone();
        let plain = |status: u16, text: &str| {
            let response = Response::builder().status(status).header("content-type", "text/plain");
            response.body(Full::from(text.to_owned())).unwrap()
        };
        if let Some((status, headers, body)) = manner.instead {
            let mut response = Response::new(Full::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            return response;
        }
        let below = match self.label {
            Some(label) => format!("/.well-known/est/{label}/"),
            None => "/.well-known/est/".to_owned(),
        };
        let operation = path.strip_prefix(&below).unwrap_or_default();
        match (method.as_str(), operation) {
            ("GET", "cacerts") => {
                let roots = manner.roots.unwrap_or_else(|| vec![self.root.der().clone()]);
                let all: Vec<_> = roots.iter().chain([self.intermediate.der()]).collect();
                return message(&all, manner.open_ended);
            }
            ("POST", "simpleenroll" | "simplereenroll") => {}
            _ => return plain(404, "no such thing here"),
        }
        if who == "nobody" {
            let mut response = plain(401, "who are you?\n");
            response.headers_mut().insert("www-authenticate", "Basic realm=\"est\"".parse().unwrap());
            return response;
        }
        if header("content-type") != "application/pkcs10" || header("content-transfer-encoding") != "base64" {
            return plain(415, "application/pkcs10 in base64 is what is taken");
        }
        let lines: Vec<_> = body.split(|b| *b == b'\n').collect();
        assert!(lines.iter().all(|line| line.len() <= 77), "lines of base64 are too long");
        let text: Vec<u8> = body.iter().copied().filter(|b| !b"\r\n".contains(b)).collect();
        let Ok(der) = STANDARD.decode(text) else { return plain(400, "that is no base64") };
        let pem = pem(&der);
        let Ok(checked) = weft_certs::csr::check(&pem) else { return plain(400, "that is no request") };
        if operation == "simplereenroll" {
            let Some(shown) = shown else { return plain(401, "a certificate is renewed by who shows it") };
            let facts = weft_certs::inspect::facts(shown).unwrap();
            let names = checked.names();
            if names.subject != facts.subject || names.dns != facts.dns_sans || !checked.is_key_of(shown) {
                return plain(400, "subject, names and key must be those of the certificate that is shown");
            }
        }
        if let Some(after) = manner.again_after {
            let mut waiting = self.waiting.lock().unwrap();
            let count = waiting.entry(der.clone()).or_default();
            *count += 1;
            if *count == 1 {
                return Response::builder()
                    .status(202)
                    .header("retry-after", after)
                    .body(Full::default())
                    .unwrap();
            }
        }
        let mut request = CertificateSigningRequestParams::from_der(&der.as_slice().into()).unwrap();
        let params = &mut request.params;
        params.not_before = OffsetDateTime::now_utc() - Duration::seconds(5);
        params.not_after = OffsetDateTime::now_utc() + manner.life;
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = manner.purposes;
        if let Some(names) = &manner.names {
            params.subject_alt_names =
                names.iter().map(|n| SanType::URI(n.as_str().try_into().unwrap())).collect();
        }
        let leaf = match manner.other_key {
            true => params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap(),
            false => request.signed_by(&self.issuer).unwrap(),
        };
        message(&[leaf.der()], manner.open_ended)
    }

    /// The roots by which its TLS is checked, in a file.
    pub fn web_roots(&self, directory: &Path) -> PathBuf {
        let path = directory.join("web-roots.pem");
        std::fs::write(&path, self.web.pem()).unwrap();
        path
    }

    /// A client's certificate that lives from then to then, with the intermediate, and its key, in files.
    pub fn client(
        &self,
        directory: &Path,
        from: OffsetDateTime,
        until: OffsetDateTime,
    ) -> (PathBuf, PathBuf) {
        let (chain, key) = (directory.join("client.pem"), directory.join("client-key.pem"));
        let pair = match std::fs::read_to_string(&key) {
            Ok(there) => KeyPair::from_pem(&there).unwrap(),
            Err(_) => KeyPair::generate().unwrap(),
        };
        let mut params = CertificateParams::new(vec!["weft.example".to_owned()]).unwrap();
        params.distinguished_name = named("weft");
        (params.not_before, params.not_after) = (from, until);
        params.serial_number = Some(serial());
        params.extended_key_usages = both();
        let leaf = params.signed_by(&pair, &self.issuer).unwrap();
        std::fs::write(&chain, leaf.pem() + &self.intermediate.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        (chain, key)
    }

    /// The same authority with another intermediate.
    pub fn with_another_intermediate(&self) -> Arc<Self> {
        let (intermediate, issuer) = authority("issuing", Some(&self.root_issuer));
        let new = Self::new(self.label);
        let new = Arc::into_inner(new).unwrap();
        let (root_issuer, root) = (again(&self.root, self.root_issuer.key()), self.root.clone());
        let (web_issuer, web) = (again(&self.web, self.web_issuer.key()), self.web.clone());
        Arc::new(Self { root, root_issuer, intermediate, issuer, web, web_issuer, ..new })
    }
}

fn again(certificate: &Certificate, key: &KeyPair) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
    Issuer::from_ca_cert_der(certificate.der(), key).unwrap()
}

/// Another one each time; left to itself, the library makes it of the key.
fn serial() -> SerialNumber {
    static LAST: AtomicU64 = AtomicU64::new(1 << 40);
    SerialNumber::from(LAST.fetch_add(1, Relaxed))
}

fn both() -> Vec<ExtendedKeyUsagePurpose> {
    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::OrganizationName, "example");
    named.push(DnType::CommonName, name);
    named
}

fn authority(
    name: &str,
    above: Option<&Issuer<'static, KeyPair>>,
) -> (Certificate, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = OffsetDateTime::now_utc() - Duration::days(100);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1000);
    let key = KeyPair::generate().unwrap();
    let certificate = match above {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    let certificate = certificate.unwrap();
    (certificate, Issuer::new(params, key))
}

fn pem(der: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    )
}

/// Certificates alone, as PKCS#7 has them: SignedData without signers.
fn message(certificates: &[&CertificateDer<'static>], open_ended: bool) -> Response<Full<Bytes>> {
    let element = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], &content].concat()
    };
    let outer = |tag: u8, parts: &[&[u8]]| match open_ended {
        true => [&[tag, 0x80], &parts.concat()[..], &[0, 0]].concat(),
        false => element(tag, parts),
    };
    let signed_data: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
    let data: &[u8] = &[0x30, 11, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
    let all: Vec<u8> = certificates.iter().flat_map(|c| c.to_vec()).collect();
    let signed = outer(0x30, &[&[2, 1, 1], &[0x31, 0], data, &element(0xa0, &[&all]), &[0x31, 0]]);
    let message = outer(0x30, &[signed_data, &outer(0xa0, &[&signed])]);
    let text = STANDARD.encode(message);
    let lines: Vec<&str> = text.as_bytes().chunks(76).map(|l| std::str::from_utf8(l).unwrap()).collect();
    Response::builder()
        .header("content-type", "application/pkcs7-mime; smime-type=certs-only")
        .header("content-transfer-encoding", "base64")
        .body(Full::from(lines.join("\n")))
        .unwrap()
}
