//! Clients with identities and addresses of their own, and the servers that requests come to if they may.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::table::{Case, Group};

/// What became of a request.
#[derive(Default)]
pub struct Outcome {
    pub allowed: bool,
    /// Status and body, or what else happened.
    pub text: String,
    /// The answer's head.
    pub head: String,
    /// What tells its line in the access log.
    pub key: Option<String>,
}

/// Ports of loopback.
pub struct Servers {
    pub http: u16,
    pub tcp: u16,
}

/// A server of HTTP that says yes to everything, and of what it was asked, and one of bytes that sends them back; until the
/// process ends.
pub fn servers() -> Servers {
    let serve = |answer: fn(TcpStream) -> std::io::Result<()>| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream));
            }
        });
        port
    };
    Servers { http: serve(http), tcp: serve(echo) }
}

/// The lines of a request's head; none where the connection ended.
pub fn head(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            line => lines.push(line.to_owned()),
        }
    }
}

fn http(stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(lines) = head(&mut reader)? {
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        reader.read_exact(&mut vec![0; length.unwrap_or(0)])?;
        let text: String =
            ["yes"].into_iter().chain(lines.iter().map(String::as_str)).map(|l| format!("{l}\n")).collect();
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())?;
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 16];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            n => stream.write_all(&bytes[..n])?,
        }
    }
}

/// The authority, and a certificate for each identity.
pub struct Certificates {
    roots: Arc<RootCertStore>,
    leaves: HashMap<String, (CertificateDer<'static>, Vec<u8>)>,
}

/// An identity's SPIFFE ID, from `NS/SA` or in full.
pub fn spiffe(identity: &str) -> String {
    match identity.split_once('/') {
        Some((namespace, account)) if !identity.starts_with("spiffe:") => {
            format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
        }
        _ => identity.to_owned(),
    }
}

impl Certificates {
    /// Makes them; the server's and the authority's are put into the directory.
    pub fn new<'a>(directory: &Path, identities: impl Iterator<Item = &'a str>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "authz");
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        std::fs::write(directory.join("ca.pem"), root.pem()).unwrap();
        let mut leaves = HashMap::new();
        for identity in identities.chain(["shop/s"]) {
            if leaves.contains_key(identity) {
                continue;
            }
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.subject_alt_names = vec![SanType::URI(spiffe(identity).as_str().try_into().unwrap())];
            let leaf = params.signed_by(&key, &issuer).unwrap();
            if identity == "shop/s" {
                std::fs::write(directory.join("server.pem"), leaf.pem()).unwrap();
                std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
            }
            leaves.insert(identity.to_owned(), (leaf.der().clone(), key.serialize_der()));
        }
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        Self { roots: Arc::new(roots), leaves }
    }

    fn connect(&self, identity: &str, tcp: bool) -> Arc<rustls::ClientConfig> {
        let (leaf, key) = &self.leaves[identity];
        let key = PrivateKeyDer::try_from(key.clone()).unwrap();
        let provider = weft_certs::provider().clone();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Server(self.roots.clone(), provider)))
            .with_client_auth_cert(vec![leaf.clone()], key)
            .unwrap();
        let names: &[&str] =
            if tcp { &["istio-peer-exchange", "istio"] } else { &["istio-http/1.1", "istio", "http/1.1"] };
        config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// One request, and what came of it.
pub fn play(
    certificates: &Certificates,
    to: SocketAddr,
    group: &Group,
    case: &Case,
    number: usize,
) -> Outcome {
    let failed = |e: std::io::Error| Outcome {
        allowed: false,
        text: format!("not connected: {e}"),
        ..Outcome::default()
    };
    let stream = match dial(to, case.from.as_deref()) {
        Ok(stream) => stream,
        Err(e) => return failed(e),
    };
    let own = stream.local_addr().unwrap();
    let request = if group.tcp {
        b"hello".to_vec()
    } else {
        let mut more: String =
            case.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        if !case.body.is_empty() {
            more += &format!("content-length: {}\r\n", case.body.len());
        }
        format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\nx-case: {number}\r\nx-request-id: case-{number}\r\nconnection: close\r\n{more}\r\n{}",
            case.method, case.path, case.host, case.body
        )
        .into_bytes()
    };
    let answer = match &case.identity {
        None => exchange(stream, &request, group.tcp),
        Some(identity) => {
            let config = certificates.connect(identity, group.tcp);
            let name = case.sni.clone().unwrap_or_else(|| "s.shop".to_owned());
            let session = rustls::ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
            exchange(rustls::StreamOwned::new(session, stream), &request, group.tcp)
        }
    };
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if group.tcp {
        return Outcome {
            allowed: answer == "hello",
            text: format!("{answer:?}"),
            key: Some(format!("{own} {}", to.port())),
            ..Outcome::default()
        };
    }
    let status = answer.get(9..12).unwrap_or_default().to_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Outcome {
        allowed: status == "200",
        text: format!("{status} {body}"),
        head: head.to_owned(),
        key: Some(number.to_string()),
    }
}

fn dial(to: SocketAddr, from: Option<&str>) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Sends the request; what came until the end, or as much as was sent where bytes come back.
fn exchange(mut stream: impl Read + Write, request: &[u8], tcp: bool) -> Vec<u8> {
    let mut answer = Vec::new();
    if stream.write_all(request).and_then(|()| stream.flush()).is_err() {
        return answer;
    }
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return answer,
            Ok(n) => answer.extend_from_slice(&bytes[..n]),
        }
        if tcp && answer.len() >= request.len() {
            return answer;
        }
    }
}

/// A server of the authority's, whatever its name.
#[derive(Debug)]
struct Server(Arc<RootCertStore>, Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
        let algorithms = self.1.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, between, now, algorithms)?;
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.1.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.1.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}
