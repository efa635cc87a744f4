//! What lies outside of the mesh: a payment service that speaks TLS, and the name server that knows where it is.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::netns::hosts::{Host, Serving};

/// Certificates by an authority that everybody outside knows.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "the world");
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate and its key for a name.
    pub fn issue(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes them as a directory of credentials has them.
    pub fn credential(&self, directory: &Path, name: &str) {
        let (certificate, key) = self.issue(name);
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
    }
}

/// A payment service: says to whom it spoke, and what it was asked.
pub fn payments(host: &Host, authority: &Authority, name: &'static str, port: u16) -> Serving {
    let (certificate, key) = authority.issue(name);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    host.serve(Ipv4Addr::UNSPECIFIED, port, move |mut stream, peer| -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut session = rustls::ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
        let mut tls = rustls::Stream::new(&mut session, &mut stream);
        let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            match tls.read(&mut buffer)? {
                0 => return Ok(()),
                n => request.extend_from_slice(&buffer[..n]),
            }
        }
        let body = format!("{name} charged, for {}", peer.ip());
        write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
        tls.flush()?;
        session.send_close_notify();
        while session.wants_write() {
            session.write_tls(&mut stream)?;
        }
        Ok(())
    })
}

/// A name server for some names; there are no others. It ends when this is dropped.
pub struct Names(Arc<AtomicBool>);

impl Names {
    /// Answers at port 53 of a host's address.
    pub fn serve(host: &Host, at: IpAddr, names: Vec<(&'static str, Ipv4Addr)>) -> Self {
        let socket = host.inside(|| UdpSocket::bind(SocketAddr::new(at, 53)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = answer(&query[..length], &names) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// RFC 1035, section 4: the header, the question again, and an address where there is one.
fn answer(query: &[u8], names: &[(&str, Ipv4Addr)]) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let question = query.get(12..at + 4)?;
    let name = labels.join(".");
    let known = names.iter().find(|(n, _)| *n == name);
    let found = known.filter(|_| kind == 1);
    // An answer, with recursion; NXDOMAIN where nobody knows the name.
    let code = if known.is_some() { 0x80 } else { 0x83 };
    let mut out = vec![query[0], query[1], 0x81, code, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0];
    out.extend_from_slice(question);
    if let Some((_, address)) = found {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}
