//! A small HTTP/1.1 client for what the command line itself asks: readiness, statistics, the demonstration's requests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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
    let request = Request::get(path).header("host", address.to_string()).body(Full::default())?;
    let exchange = async { Connection::open(address).await?.send(request).await };
    match tokio::time::timeout(limit, exchange).await {
        Ok(answer) => answer.with_context(|| format!("GET http://{address}{path}")),
        Err(_) => bail!("GET http://{address}{path}: no answer within {limit:?}"),
    }
}
