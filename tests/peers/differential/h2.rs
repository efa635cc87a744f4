//! HTTP/2 on either side, by the h2 crate: what came, as text.

use std::fmt::Write;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

use super::case::{H2Answer, H2Request};
use super::normalize::field;

const PATIENCE: Duration = Duration::from_secs(5);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

/// Fields, one a line, in the order of their names: HTTP/2's library does not keep the order on the wire.
fn fields(indent: &str, headers: &HeaderMap, out: &mut String) {
    let mut lines: Vec<_> =
        headers.iter().map(|(n, v)| field(&format!("{n}: {}", v.as_bytes().escape_ascii()))).collect();
    lines.sort();
    for line in lines {
        let _ = writeln!(out, "{indent}{line}");
    }
}

async fn body(mut stream: RecvStream, until: Option<&str>, out: &mut String) {
    let mut data = Vec::new();
    let mut error = None;
    let reached = |data: &[u8]| until.is_some_and(|u| data.windows(u.len()).any(|w| w == u.as_bytes()));
    while !reached(&data)
        && let Some(piece) = stream.data().await
    {
        match piece {
            Ok(piece) => {
                let _ = stream.flow_control().release_capacity(piece.len());
                data.extend_from_slice(&piece);
            }
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    if let Some(plain) = super::normalize::decoded(&data, None) {
        let _ = writeln!(out, "  body, decoded: {}", plain.escape_ascii());
    } else if !data.is_empty() {
        let _ = writeln!(out, "  body: {}", data.escape_ascii());
    }
    if error.is_none() && !reached(&data) {
        match stream.trailers().await {
            Ok(Some(trailers)) => fields("  trailer: ", &trailers, out),
            Ok(None) => {}
            Err(e) => error = Some(e),
        }
    }
    if let Some(error) = error {
        let _ = writeln!(out, "  {}", broken(&error));
    }
}

fn broken(error: &h2::Error) -> String {
    let what = match error {
        e if e.is_reset() => "the stream was reset",
        e if e.is_go_away() => "the connection was told to go away",
        _ => "the connection ended",
    };
    match error.reason() {
        Some(reason) => format!("{what}: {reason:?}"),
        None => what.to_owned(),
    }
}

/// Sends the requests one after the other on one connection; what came back.
pub fn client(address: SocketAddr, requests: &[H2Request]) -> String {
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        client_on(stream, requests).await
    })
}

/// The same on a connection that is there already.
pub async fn client_on<S>(stream: S, requests: &[H2Request]) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, connection) = match h2::client::handshake(stream).await {
        Ok(pair) => pair,
        Err(error) => return broken(&error),
    };
    let driver = tokio::spawn(connection);
    // Extended CONNECT waits for the peer's settings.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut out = String::new();
    for request in requests {
        let exchange = exchange(&mut send, request, &mut out);
        if tokio::time::timeout(PATIENCE, exchange).await.is_err() {
            out.push_str("(waited in vain)\n");
        }
    }
    driver.abort();
    out
}

async fn exchange(send: &mut h2::client::SendRequest<Bytes>, request: &H2Request, out: &mut String) {
    let uri = match request.authority {
        "" => http::Uri::builder().path_and_query(request.path).build(),
        authority if request.method == "CONNECT" && request.protocol.is_none() => {
            http::Uri::builder().authority(authority).build()
        }
        authority => http::Uri::builder()
            .scheme(request.scheme)
            .authority(authority)
            .path_and_query(request.path)
            .build(),
    };
    let mut head = Request::new(());
    *head.uri_mut() = uri.unwrap();
    *head.method_mut() = request.method.parse().unwrap();
    *head.version_mut() = http::Version::HTTP_2;
    *head.headers_mut() = map(&request.headers);
    if let Some(protocol) = request.protocol {
        head.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    let open = request.open || request.until.is_some();
    let ended = request.body.is_empty() && request.trailers.is_empty() && !open;
    if let Err(error) = poll_fn(|cx| send.poll_ready(cx)).await {
        let _ = writeln!(out, "{}", broken(&error));
        return;
    }
    let (mut response, mut stream) = match send.send_request(head, ended) {
        Ok(sent) => sent,
        Err(error) => {
            let _ = writeln!(out, "not sent: {error}");
            return;
        }
    };
    for (number, piece) in request.body.iter().enumerate() {
        let last = number + 1 == request.body.len() && request.trailers.is_empty() && !open;
        let _ = stream.send_data(Bytes::from_static(piece.as_bytes()), last);
    }
    if !request.trailers.is_empty() {
        let _ = stream.send_trailers(map(&request.trailers));
    }
    loop {
        let informational = poll_fn(|cx| {
            use std::task::Poll;
            if let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                return Poll::Ready(Some(head));
            }
            // The final head ends the wait; it is taken below.
            std::pin::Pin::new(&mut response).poll(cx).map(|r| {
                final_head(r, out);
                None
            })
        });
        use std::future::Future;
        match informational.await {
            Some(head) => {
                let _ = writeln!(out, "informational {}", head.status().as_u16());
                fields("", head.headers(), out);
            }
            None => break,
        }
    }
    if let Some(stream) = TAKEN.with(|t| t.borrow_mut().take()) {
        body(stream, request.until, out).await;
    }
    if request.until.is_some() {
        stream.send_reset(h2::Reason::CANCEL);
    }
}

thread_local! {
    static TAKEN: std::cell::RefCell<Option<RecvStream>> = const { std::cell::RefCell::new(None) };
}

fn final_head(result: Result<Response<RecvStream>, h2::Error>, out: &mut String) {
    match result {
        Err(error) => _ = writeln!(out, "{}", broken(&error)),
        Ok(response) => {
            let _ = writeln!(out, "status {}", response.status().as_u16());
            fields("", response.headers(), out);
            TAKEN.with(|t| *t.borrow_mut() = Some(response.into_body()));
        }
    }
}

/// A running HTTP/2 upstream.
pub struct Upstream {
    seen: Arc<Mutex<String>>,
    runtime: tokio::runtime::Runtime,
}

impl Upstream {
    /// Answers the requests on all connections in this order.
    pub fn start(listener: TcpListener, answers: Vec<H2Answer>) -> Self {
        let seen = Arc::new(Mutex::new(String::new()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let out = seen.clone();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let answers = Arc::new(Mutex::new(answers.into_iter()));
            while let Ok((stream, _)) = listener.accept().await {
                let (out, answers) = (out.clone(), answers.clone());
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.enable_connect_protocol();
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                        out.lock().unwrap().push_str("a connection that does not speak HTTP/2\n");
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let answer = answers.lock().unwrap().next();
                        tokio::spawn(answer_one(request, respond, answer, out.clone()));
                    }
                });
            }
        });
        Self { seen, runtime }
    }

    /// What came.
    pub fn finish(self) -> String {
        self.runtime.shutdown_timeout(Duration::from_millis(300));
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// A whole request as text.
pub async fn request_text(request: Request<RecvStream>) -> String {
    let (parts, stream) = request.into_parts();
    let mut text = format!("{} {}", parts.method, parts.uri);
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        let _ = write!(text, " (protocol {})", protocol.as_str());
    }
    text = text.replace("127.30.0.2", "127.30.0.1").replace("127.30.3.2", "127.30.3.1") + "\n";
    fields("", &parts.headers, &mut text);
    body(stream, None, &mut text).await;
    text
}

async fn answer_one(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    answer: Option<H2Answer>,
    out: Arc<Mutex<String>>,
) {
    let text = request_text(request).await;
    out.lock().unwrap().push_str(&text);
    let reply = |status: u16, headers: &[(&'static str, &'static str)]| {
        let mut response = Response::new(());
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = map(headers);
        response
    };
    match answer {
        None => out.lock().unwrap().push_str("(a request too many)\n"),
        Some(H2Answer::Reset(code)) => respond.send_reset(code.into()),
        Some(H2Answer::ResetInBody(code)) => {
            let mut stream = respond.send_response(reply(200, &[]), false).unwrap();
            let _ = stream.send_data(Bytes::from_static(b"some of it"), false);
            // What was given to the library is sent before the reset only if it got the time.
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.send_reset(code.into());
        }
        Some(H2Answer::Full { informational, status, headers, body, trailers }) => {
            for (status, headers) in &informational {
                let _ = respond.send_informational(reply(*status, headers));
            }
            let ended = body.is_empty() && trailers.is_empty();
            let mut stream = respond.send_response(reply(status, &headers), ended).unwrap();
            for (number, piece) in body.iter().enumerate() {
                let last = number + 1 == body.len() && trailers.is_empty();
                let _ = stream.send_data(Bytes::from_static(piece.as_bytes()), last);
            }
            if !trailers.is_empty() {
                let _ = stream.send_trailers(map(&trailers));
            }
        }
    }
}
