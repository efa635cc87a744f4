//! An expired certificate is refused on both sides, and no session that began with it is resumed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft::demo::check::apps::QUIET;
use weft::demo::check::observe::credentials::{Authority, Credentials};
use weft::demo::check::observe::http::{Connection, Request, fetch};
use weft::demo::check::observe::tls::Anybody;
use weft::up::{Mesh, Part, Signal};

use crate::support::authority::metric;
use crate::support::eventually;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;

/// How long the certificates of these tests are valid: for some handshakes, also on a machine that is busy.
const LIFE: Duration = Duration::from_secs(8);

/// A certificate of the mesh's own authority that soon is over, and the moment from which on it is.
fn short(pair: &Pair, account: &str) -> (Credentials, Instant) {
    let ours = Authority::of_mesh(&pair.state_dir()).unwrap();
    let over = Instant::now() + LIFE + Duration::from_secs(1);
    let id = format!("spiffe://cluster.local/ns/pair/sa/{account}");
    (ours.issue_for(&id, time::Duration::minutes(-1), LIFE.try_into().unwrap()).unwrap(), over)
}

fn refusals(mesh: &Mesh, workload: &str, kind: &str) -> i64 {
    let name = format!("envoy_{kind}_certificate_validation_failures");
    metric(mesh, workload, &name, "reason=\"expired\"").iter().sum()
}

/// Shakes hands and sends a request: how the handshake went, and the answer's status, if there is one.
async fn ask(to: SocketAddr, config: &Arc<ClientConfig>) -> (Option<HandshakeKind>, Option<u16>) {
    let name = ServerName::try_from("back.pair").unwrap();
    let stream = TcpStream::connect(to).await.unwrap();
    let Ok(stream) = TlsConnector::from(config.clone()).connect(name, stream).await else {
        return (None, None);
    };
    let kind = stream.get_ref().1.handshake_kind();
    let answer = Connection::over(stream, Duration::from_secs(10)).exchange(&Request::get("b", QUIET)).await;
    (kind, answer.ok().map(|a| a.status()))
}

#[test]
fn an_expired_client_is_refused_and_its_session_not_resumed() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(92);
        let mesh = pair.start().await;
        let back = mesh.workload("back-1").unwrap().inbound[0];
        let (shown, over) = short(&pair, "observer");
        let config = || {
            let key = Arc::unwrap_or_clone(shown.certified().unwrap());
            let mut config = ClientConfig::builder_with_provider(default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody))
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
            config.alpn_protocols = vec![b"istio".to_vec(), b"http/1.1".to_vec()];
            Arc::new(config)
        };
        let known = config();
        assert_eq!(ask(back, &known).await, (Some(HandshakeKind::Full), Some(200)));
        assert_eq!(ask(back, &known).await, (Some(HandshakeKind::Resumed), Some(200)));
        assert_eq!(refusals(&mesh, "back-1", "listener"), 0);
        tokio::time::sleep_until(over.into()).await;
        // It still has its ticket, and that is still read; but it comes to nothing.
        assert_eq!(ask(back, &known).await, (Some(HandshakeKind::Resumed), None));
        eventually("the resumption is counted", || refusals(&mesh, "back-1", "listener") == 1);
        assert_eq!(ask(back, &config()).await.1, None);
        eventually("the handshake is counted", || refusals(&mesh, "back-1", "listener") == 2);
        mesh.shutdown().await.unwrap();
    });
}

/// Shows whatever it was last given.
#[derive(Debug)]
struct Shown(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().unwrap().clone())
    }
}

/// A server in back's place; how each handshake went that led to a request.
async fn serve(at: SocketAddr, shown: Arc<Shown>, met: Arc<Mutex<Vec<HandshakeKind>>>) {
    let mut config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"istio-http/1.1".to_vec(), b"http/1.1".to_vec()];
    let (listener, acceptor) = (TcpListener::bind(at).await.unwrap(), TlsAcceptor::from(Arc::new(config)));
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
        if head.is_empty() {
            continue;
        }
        met.lock().unwrap().extend(stream.get_ref().1.handshake_kind());
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    }
}

#[test]
fn an_expired_server_is_refused_and_its_session_not_resumed() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(93);
        let mesh = pair.start().await;
        let front = mesh.workload("front-1").unwrap().http_proxy.unwrap();
        let back = mesh.workload("back-1").unwrap().inbound[0];
        mesh.stop(&Part::Proxy("back-1".to_owned()), Signal::KILL).await.unwrap();
        let (first, over) = short(&pair, "back");
        let shown = Arc::new(Shown(Mutex::new(first.certified().unwrap())));
        let met = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(serve(back, shown.clone(), met.clone()));
        let ask = || async { fetch(front, &Request::get("back:8080", QUIET)).await.unwrap().status() };
        let kinds = || std::mem::take(&mut *met.lock().unwrap());
        while ask().await != 200 {
            assert!(Instant::now() < over, "it never answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(kinds().first(), Some(&HandshakeKind::Full));
        assert_eq!(ask().await, 200);
        assert_eq!(kinds(), [HandshakeKind::Resumed]);
        assert_eq!(refusals(&mesh, "front-1", "cluster"), 0);
        tokio::time::sleep_until(over.into()).await;
        // Once it has a session to resume, and then none.
        let mut counts = BTreeSet::new();
        for _ in 0..3 {
            assert_eq!(ask().await, 503);
            counts.insert(refusals(&mesh, "front-1", "cluster"));
        }
        assert_eq!(kinds(), [], "it was sent a request");
        assert!(counts.len() == 3 && !counts.contains(&0), "{counts:?}");
        let (second, _) = short(&pair, "back");
        *shown.0.lock().unwrap() = second.certified().unwrap();
        assert_eq!(ask().await, 200);
        server.abort();
        mesh.shutdown().await.unwrap();
    });
}
