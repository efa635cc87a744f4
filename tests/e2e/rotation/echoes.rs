//! Long-lived conversations: WebSockets and gRPC streams in which somebody says something each second, and gets it back.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// A way to say something and to get back what was said.
trait Wire: Send + 'static {
    fn say(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), String>> + Send;
    fn hear(&mut self, length: usize) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
    /// A message as this protocol frames it.
    fn frame(&self, text: &str) -> Vec<u8>;
}

/// One conversation.
pub struct Echo {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<u64, String>>,
}

impl Echo {
    /// A WebSocket to `host`'s `/ws` through the proxy at `to`.
    pub async fn web_socket(to: SocketAddr, host: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.map_err(|e| e.to_string())?);
        }
        let head = String::from_utf8_lossy(&head);
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(format!("no WebSocket: {head}"));
        }
        Ok(Self::start(Socket(stream)))
    }

    /// A gRPC stream to `host`'s `/echo` over an HTTP/2 connection to a proxy.
    pub async fn grpc(client: &h2::client::SendRequest<Bytes>, host: &str) -> Result<Self, String> {
        let mut client = client.clone().ready().await.map_err(|e| e.to_string())?;
        let request = http::Request::post(format!("http://{host}/echo"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| e.to_string())?;
        let (answer, send) = client.send_request(request, false).map_err(|e| e.to_string())?;
        let answer = answer.await.map_err(|e| e.to_string())?;
        if answer.status() != 200 {
            return Err(format!("no stream: {answer:?}"));
        }
        Ok(Self::start(Stream { send, receive: answer.into_body(), rest: BytesMut::new() }))
    }

    fn start(wire: impl Wire) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(converse(wire, stopped)) }
    }

    /// Ends it: how many messages came back, each as it was said; or what went wrong.
    pub async fn stop(self) -> Result<u64, String> {
        let _ = self.stop.send(true);
        self.task.await.map_err(|e| e.to_string())?
    }
}

/// An HTTP/2 connection for gRPC streams.
pub async fn connection(to: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(TcpStream::connect(to).await.unwrap()).await.unwrap();
    // Its end is the end of its streams, and those tell.
    tokio::spawn(connection);
    client
}

async fn converse(mut wire: impl Wire, mut stopped: watch::Receiver<bool>) -> Result<u64, String> {
    let mut echoes = 0;
    loop {
        let said = wire.frame(&format!("message {echoes}"));
        wire.say(&said).await.map_err(|e| format!("after {echoes} echoes: {e}"))?;
        let heard = tokio::time::timeout(PATIENCE, wire.hear(said.len())).await;
        let heard = heard.map_err(|_| "silence".to_owned()).flatten();
        let heard = heard.map_err(|e| format!("after {echoes} echoes: {e}"))?;
        if heard != said {
            return Err(format!("after {echoes} echoes: {heard:?} came back for {said:?}"));
        }
        echoes += 1;
        // Also whoever only listens would hear of the end of a stream.
        tokio::select! {
            _ = stopped.changed() => return Ok(echoes),
            ended = wire.hear(1) => return Err(format!("after {echoes} echoes, while nothing was said: {ended:?}")),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

struct Socket(TcpStream);

impl Wire for Socket {
    async fn say(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.write_all(bytes).await.map_err(|e| e.to_string())
    }

    async fn hear(&mut self, length: usize) -> Result<Vec<u8>, String> {
        let mut heard = vec![0; length];
        self.0.read_exact(&mut heard).await.map_err(|e| e.to_string())?;
        Ok(heard)
    }

    /// A masked text frame (RFC 6455, section 5.2), as clients send it.
    fn frame(&self, text: &str) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        let masked = text.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [0x81, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
    }
}

struct Stream {
    send: h2::SendStream<Bytes>,
    receive: h2::RecvStream,
    rest: BytesMut,
}

impl Wire for Stream {
    async fn say(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.send.send_data(Bytes::copy_from_slice(bytes), false).map_err(|e| e.to_string())
    }

    async fn hear(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.rest.len() < length {
            let data = self.receive.data().await.ok_or("the stream ended")?.map_err(|e| e.to_string())?;
            let _ = self.receive.flow_control().release_capacity(data.len());
            self.rest.put(data);
        }
        Ok(self.rest.split_to(length).to_vec())
    }

    /// A length-prefixed message, not compressed.
    fn frame(&self, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        std::iter::once(0).chain(length).chain(text.bytes()).collect()
    }
}
