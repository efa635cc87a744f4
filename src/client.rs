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
use tokio::sync::mpsc;

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

/// A GET whose answer has no end of its own: `to` gets what is made of its lines, the empty ones apart, until it ends. The answer's head
/// has to come by the deadline.
///
/// # Errors
/// No answer came in time, it is none of success, or it broke off.
pub async fn lines<T>(
    address: SocketAddr,
    path: &str,
    limit: Duration,
    to: &mpsc::Sender<T>,
    make: impl Fn(String) -> T,
) -> anyhow::Result<()> {
    let request = Request::get(path).header("host", address.to_string()).body(Full::<Bytes>::default())?;
    let head = async {
        let mut connection = Connection::open(address).await?;
        connection.sender.ready().await?;
        let answer = connection.sender.send_request(request).await?;
        anyhow::Ok((connection, answer))
    };
    let what = || format!("GET http://{address}{path}");
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
