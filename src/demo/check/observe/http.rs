//! HTTP/1.1 by hand over any stream. How an exchange ended is told exactly: that is what checks are about.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head that is waited for.
const LONGEST_HEAD: usize = 256 * 1024;

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection.
    Connect(ErrorKind),
    /// The request could not be written.
    Write(ErrorKind),
    /// The peer closed before the first byte of an answer.
    ClosedBeforeAnswer,
    /// The peer reset, or broke off, before the first byte of an answer.
    BrokenBeforeAnswer(String),
    /// The answer ends early.
    Truncated(String),
    /// Bytes that are not HTTP/1.
    Malformed(String),
    /// Nothing came for too long.
    TimedOut,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(kind) => write!(f, "no connection ({kind})"),
            Self::Write(kind) => write!(f, "the request could not be written ({kind})"),
            Self::ClosedBeforeAnswer => f.write_str("connection closed without an answer"),
            Self::BrokenBeforeAnswer(why) => write!(f, "connection broken without an answer ({why})"),
            Self::Truncated(why) => write!(f, "the answer broke off ({why})"),
            Self::Malformed(why) => write!(f, "the answer is not HTTP/1 ({why})"),
            Self::TimedOut => f.write_str("no answer in time"),
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// The Host header.
    pub host: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Request {
    /// A GET.
    pub fn get(host: impl Into<String>, path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), host: host.into(), headers: Vec::new(), body: String::new() }
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more header.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method != "GET" {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        text.into_bytes()
    }
}

/// Status and headers of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether the connection ends with this answer.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"))
    }

    fn framing(&self) -> Result<Framing, Failure> {
        if self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            return Ok(Framing::Chunked);
        }
        match self.header("content-length").map(str::parse) {
            Some(Ok(length)) => Ok(Framing::Length(length)),
            Some(Err(_)) => Err(Failure::Malformed("content-length is not a number".to_owned())),
            None if self.status == 204 || self.status == 304 => Ok(Framing::Length(0)),
            None => Ok(Framing::UntilClose),
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
    Done,
}

/// One connection, one exchange at a time.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    framing: Framing,
    patience: Duration,
}

impl Connection<TcpStream> {
    /// Connects in the clear. `patience` limits every single wait.
    pub async fn open(address: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let opening = TcpStream::connect(address);
        let stream = match tokio::time::timeout(patience, opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Failure::Connect(error.kind())),
            Err(_) => return Err(Failure::TimedOut),
        };
        let _ = stream.set_nodelay(true);
        Ok(Self::over(stream, patience))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over an open stream.
    pub fn over(stream: S, patience: Duration) -> Self {
        Self { stream, buffer: Vec::new(), framing: Framing::Done, patience }
    }

    /// One request, its whole answer.
    pub async fn exchange(&mut self, request: &Request) -> Result<Answer, Failure> {
        let head = self.begin(request).await?;
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend(piece);
        }
        Ok(Answer { head, body })
    }

    /// Sends a request and reads the head of its answer; the body comes by [`Self::piece`].
    pub async fn begin(&mut self, request: &Request) -> Result<Head, Failure> {
        self.stream.write_all(&request.bytes()).await.map_err(|e| Failure::Write(e.kind()))?;
        self.stream.flush().await.map_err(|e| Failure::Write(e.kind()))?;
        loop {
            if let Some((head, length)) = parse(&self.buffer)? {
                self.buffer.drain(..length);
                if (100..200).contains(&head.status) {
                    continue;
                }
                self.framing = if request.method == "HEAD" { Framing::Length(0) } else { head.framing()? };
                return Ok(head);
            }
            if self.buffer.len() > LONGEST_HEAD {
                return Err(Failure::Malformed("its head is too long".to_owned()));
            }
            let before = self.buffer.is_empty();
            match self.fill().await {
                Ok(0) if before => return Err(Failure::ClosedBeforeAnswer),
                Ok(0) => return Err(Failure::Truncated("closed in its head".to_owned())),
                Ok(_) => {}
                Err(Failure::Truncated(why)) if before => return Err(Failure::BrokenBeforeAnswer(why)),
                Err(other) => return Err(other),
            }
        }
    }

    /// The next piece of the body; none at its end.
    pub async fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.framing {
            Framing::Done => Ok(None),
            Framing::Length(0) => {
                self.framing = Framing::Done;
                Ok(None)
            }
            Framing::Length(left) => {
                if self.buffer.is_empty() && self.fill().await? == 0 {
                    return Err(Failure::Truncated(format!("closed {left} bytes before its end")));
                }
                let take = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.framing = Framing::Length(left - take as u64);
                Ok(Some(self.buffer.drain(..take).collect()))
            }
            Framing::UntilClose => {
                if self.buffer.is_empty() && self.fill().await? == 0 {
                    self.framing = Framing::Done;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.buffer)))
            }
            Framing::Chunked => {
                let size = self.line().await?;
                let digits = size.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(digits, 16)
                    .map_err(|_| Failure::Malformed(format!("chunk size {digits:?}")))?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    self.framing = Framing::Done;
                    return Ok(None);
                }
                while self.buffer.len() < size + 2 {
                    if self.fill().await? == 0 {
                        return Err(Failure::Truncated("closed in a chunk".to_owned()));
                    }
                }
                let piece = self.buffer.drain(..size).collect();
                self.buffer.drain(..2);
                Ok(Some(piece))
            }
        }
    }

    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(Failure::Truncated("closed between chunks".to_owned()));
            }
        }
    }

    async fn fill(&mut self) -> Result<usize, Failure> {
        match tokio::time::timeout(self.patience, self.stream.read_buf(&mut self.buffer)).await {
            Ok(Ok(n)) => Ok(n),
            Ok(Err(error)) => Err(Failure::Truncated(error.to_string())),
            Err(_) => Err(Failure::TimedOut),
        }
    }
}

/// A head at the beginning of the bytes, and its length.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => {
            let headers = response
                .headers
                .iter()
                .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned()))
                .collect();
            Ok(Some((Head { status: response.code.unwrap_or_default(), headers }, length)))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(Failure::Malformed(error.to_string())),
    }
}

/// One request on a connection of its own.
pub async fn fetch(address: SocketAddr, request: &Request) -> Result<Answer, Failure> {
    Connection::open(address, Duration::from_secs(10)).await?.exchange(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with these bytes, then closes.
    async fn answers(bytes: &'static [u8]) -> Result<Answer, Failure> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let _ = theirs.read(&mut request).await;
            let _ = theirs.write_all(bytes).await;
        });
        Connection::over(ours, Duration::from_secs(5)).exchange(&Request::get("h", "/")).await
    }

    #[tokio::test]
    async fn the_three_framings_are_read() {
        let body = |a: Answer| String::from_utf8(a.body).unwrap();
        let length = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
        assert_eq!((length.status(), body(length).as_str()), (200, "abc"));
        let chunked =
            b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nt: 1\r\n\r\n";
        let chunked = answers(chunked).await.unwrap();
        assert_eq!((chunked.status(), body(chunked).as_str()), (503, "abc"));
        let close = answers(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc")
            .await
            .unwrap();
        assert!(close.head.closes());
        assert_eq!(body(close), "abc");
    }

    #[tokio::test]
    async fn how_an_exchange_ended_is_told_exactly() {
        assert_eq!(answers(b"").await.unwrap_err(), Failure::ClosedBeforeAnswer);
        assert_eq!(
            answers(b"HTTP/1.1 20").await.unwrap_err(),
            Failure::Truncated("closed in its head".to_owned())
        );
        let short = answers(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await.unwrap_err();
        assert_eq!(short, Failure::Truncated("closed 6 bytes before its end".to_owned()));
        assert!(matches!(answers(b"\x15\x03\x03\x00\x02\x02\x28").await, Err(Failure::Malformed(_))));
        let nobody = "127.0.0.1:1".parse().unwrap();
        let refused = Connection::open(nobody, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(refused, Failure::Connect(ErrorKind::ConnectionRefused));
    }
}
