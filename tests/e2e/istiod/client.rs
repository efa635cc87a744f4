//! A workload's certificate, and TLS as clients of the mesh speak it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;

/// A certificate of `spiffe://cluster.local/ns/n/sa/app`, also good for the names of the tests, and its authority.
pub struct Identity {
    pub chain: String,
    pub key: String,
    pub roots: String,
    leaf: CertificateDer<'static>,
    root: CertificateDer<'static>,
}

impl Identity {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let names =
            ["app.test", "simple.test", "mutual.test", "through.test", "other.test"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://cluster.local/ns/n/sa/app".try_into().unwrap()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Self {
            chain: leaf.pem(),
            key: key.serialize_pem(),
            roots: root.pem(),
            leaf: leaf.der().clone(),
            root: root.der().clone(),
        }
    }

    fn private_key(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        weft_certs::pem::private_key(self.key.as_bytes()).unwrap()
    }

    /// One request over TLS, with the certificate or without: status, head, body; 0 if there was no answer.
    pub fn get(
        &self,
        to: SocketAddr,
        name: &'static str,
        alpn: &[&str],
        certificate: bool,
    ) -> (u16, String, String) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            true => config.with_client_auth_cert(vec![self.leaf.clone()], self.private_key()).unwrap(),
            false => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let session = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let exchange = || -> std::io::Result<(String, String)> {
            let connection = TcpStream::connect(to)?;
            connection.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut stream = rustls::StreamOwned::new(session, connection);
            write!(stream, "GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n")?;
            let mut bytes = Vec::new();
            let end = stream.read_to_end(&mut bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            match text.split_once("\r\n\r\n") {
                Some((head, body)) => Ok((head.to_owned(), body.to_owned())),
                None => Err(end.err().unwrap_or_else(|| std::io::Error::other("no answer"))),
            }
        };
        answer(exchange())
    }

    /// An application that ends TLS itself; its port.
    pub fn serve_tls(&self, name: &'static str) -> u16 {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone()], self.private_key())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let session = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(session, connection);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let length = name.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{name}"
                );
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        port
    }
}

/// Status, head and body; 0 for none.
pub fn answer(exchanged: std::io::Result<(String, String)>) -> (u16, String, String) {
    let (head, body) = exchanged.unwrap_or_default();
    (head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), head, body)
}

/// How an answer came: from the connection manager, which says its name, as the bytes of the application, or not.
pub fn way(status: u16, head: &str) -> &'static str {
    match status {
        0 => "no",
        _ if head.to_ascii_lowercase().contains("server: istio-envoy") => "http",
        _ => "tcp",
    }
}
