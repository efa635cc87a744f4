//! Traffic that must not notice: streams that stay open, connections that are kept, connections that are new each time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the traffic saw.
#[derive(Default)]
pub struct Counts {
    pub answered: AtomicU64,
    /// The streams that something came through.
    pub seen: Mutex<BTreeSet<usize>>,
    pub lost: Mutex<Vec<String>>,
}

impl Counts {
    fn lose(&self, what: impl std::fmt::Display) {
        self.lost.lock().unwrap().push(what.to_string());
    }

    pub fn none_lost(&self) {
        let lost = self.lost.lock().unwrap();
        assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), &lost[..lost.len().min(20)]);
    }
}

/// A service that speaks HTTP/2: `/stream/N` gets a byte now and then, everything else `ok`.
pub struct Backend {
    pub address: SocketAddr,
}

impl Backend {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection));
            }
        });
        Self { address }
    }
}

async fn serve(connection: TcpStream) {
    let Ok(mut connection) =
        h2::server::Builder::new().max_concurrent_streams(10_000).handshake::<_, Bytes>(connection).await
    else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let Ok(mut body) = respond.send_response(Response::new(()), false) else { return };
            if !request.uri().path().starts_with("/stream") {
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
                return;
            }
            while body.send_data(Bytes::from_static(b"x"), false).is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// Opens streams, a hundred on each connection, and watches them from then on: none may end.
pub async fn streams(to: SocketAddr, count: usize, counts: &Arc<Counts>) {
    for first in (0..count).step_by(100) {
        let (mut client, connection) =
            h2::client::handshake(TcpStream::connect(to).await.unwrap()).await.unwrap();
        let ended = counts.clone();
        tokio::spawn(async move {
            let end = connection.await;
            ended.lose(format!("the connection of streams {first} and on: {end:?}"));
        });
        for number in first..(first + 100).min(count) {
            client = client.ready().await.unwrap();
            let request = Request::get(format!("http://churn.test/stream/{number}")).body(()).unwrap();
            let (answer, _) = client.send_request(request, true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let (counts, mut body) = (counts.clone(), answer.into_body());
            tokio::spawn(async move {
                while let Some(Ok(data)) = body.data().await {
                    let _ = body.flow_control().release_capacity(data.len());
                    counts.seen.lock().unwrap().insert(number);
                }
                counts.lose(format!("stream {number}"));
            });
        }
    }
}

/// One request on a connection, and its whole answer.
async fn exchange(connection: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    connection.write_all(b"GET / HTTP/1.1\r\nhost: churn.test\r\n\r\n").await?;
    let mut text = Vec::new();
    while !text.ends_with(b"ok\r\n0\r\n\r\n") && !text.ends_with(b"\r\n\r\nok") {
        if connection.read_buf(&mut text).await? == 0 {
            return Err(std::io::Error::other(format!("ended after {:?}", String::from_utf8_lossy(&text))));
        }
        if text.len() > 9 && !text.starts_with(b"HTTP/1.1 200") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&text).into_owned()));
        }
    }
    Ok(())
}

const PAUSE: Duration = Duration::from_millis(5);

/// Requests on one connection, which must last.
pub async fn kept(to: SocketAddr, counts: Arc<Counts>) {
    let mut connection = TcpStream::connect(to).await.unwrap();
    loop {
        if let Err(error) = exchange(&mut connection).await {
            return counts.lose(format!("a kept connection: {error}"));
        }
        counts.answered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Requests on a new connection each.
pub async fn fresh(to: SocketAddr, counts: Arc<Counts>) {
    loop {
        let one = async { exchange(&mut TcpStream::connect(to).await?).await };
        if let Err(error) = one.await {
            return counts.lose(format!("a new connection: {error}"));
        }
        counts.answered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same over TLS, beside one TLS connection that is kept.
pub async fn tls(to: SocketAddr, roots: rustls::RootCertStore, counts: Arc<Counts>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connect = async || {
        let name = "churn.test".try_into().unwrap();
        connector.connect(name, TcpStream::connect(to).await?).await
    };
    let mut kept = connect().await.unwrap();
    loop {
        let one = async {
            exchange(&mut kept).await?;
            exchange(&mut connect().await?).await
        };
        if let Err(error) = one.await {
            return counts.lose(format!("over TLS: {error}"));
        }
        counts.answered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE * 4).await;
    }
}
