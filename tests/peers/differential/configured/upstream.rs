//! The servers behind a case's endpoints. Both proxies use the same ones, at the same addresses, so that everything that
//! depends on an address is equal; they are told apart by the address that they come from.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::observed::sorted;
use super::pair::{Side, endpoint_address};
use super::spec::{Case, Cluster, Endpoint, FullAnswer, coded};
use super::{certificates, checks, spans};
use crate::differential::normalize::{Message, render, whole};

/// A request that came, or a connection that brought none.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub side: Side,
    pub cluster: String,
    pub endpoint: usize,
    pub text: String,
}

/// What came to all servers of a case.
pub type Book = Arc<Mutex<Vec<Arrived>>>;

/// One server.
struct Server {
    cluster: String,
    endpoint: usize,
    answers: Vec<FullAnswer>,
    echo: Option<String>,
    resets: bool,
    /// How many requests each side has made.
    asked: Mutex<[usize; 2]>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    h2: bool,
    book: Book,
}

/// Starts the servers of a case on the runtime it is called on.
pub async fn start(case: &Case, port: u16, directory: &Path, book: &Book) {
    let mut place = 0;
    for (name, cluster) in &case.clusters {
        for (number, endpoint) in cluster.endpoints.iter().enumerate() {
            let address = endpoint_address(place, port);
            place += 1;
            if endpoint.refuses {
                continue;
            }
            if endpoint.silent {
                let full = full(address);
                tokio::spawn(async move {
                    let _full = full;
                    std::future::pending::<()>().await;
                });
                continue;
            }
            let server = Arc::new(server(name, cluster, number, endpoint, directory, book.clone()));
            let listener = listen(address).await;
            tokio::spawn(async move {
                while let Ok((stream, from)) = listener.accept().await {
                    tokio::spawn(server.clone().connection(stream, from));
                }
            });
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).await.unwrap_or_else(|e| panic!("an upstream cannot listen at {address}: {e}"))
}

/// A listener with room for one connection, and that connection: who comes then gets no answer at all.
fn full(address: SocketAddr) -> (Socket, std::net::TcpStream) {
    let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap_or_else(|e| panic!("an upstream cannot listen at {address}: {e}"));
    listener.listen(0).unwrap();
    (listener, std::net::TcpStream::connect(address).unwrap())
}

fn server(
    name: &str,
    cluster: &Cluster,
    number: usize,
    endpoint: &Endpoint,
    directory: &Path,
    book: Book,
) -> Server {
    let alpn: &[&str] = if cluster.h2 { &["h2"] } else { &["http/1.1"] };
    let tls = cluster.tls.as_deref().map(|mode| certificates::server(directory, mode, alpn).into());
    let mut answers: Vec<_> = endpoint.answers.iter().map(|a| a.full()).collect();
    if answers.is_empty() {
        answers.push(FullAnswer::default());
    }
    Server {
        cluster: name.to_owned(),
        endpoint: number,
        answers,
        echo: endpoint.echo.clone(),
        resets: endpoint.resets,
        asked: Mutex::default(),
        tls,
        h2: cluster.h2,
        book,
    }
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, from: SocketAddr) {
        let _ = stream.set_nodelay(true);
        if self.resets {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let side = if from.ip() == IpAddr::V4(Side::Envoy.ip()) { Side::Envoy } else { Side::Weft };
        let Some(acceptor) = self.tls.clone() else { return self.speak(stream, side, String::new()).await };
        // Of a handshake that fails nothing is kept: what matters is that no request came. Whether a client refuses the server
        // within it or right after it, before it sends anything, is its own affair.
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let session = stream.get_ref().1;
        let alpn = session.alpn_protocol().map(|a| String::from_utf8_lossy(a).into_owned());
        let client = session.peer_certificates().and_then(|c| subject(c.first()?));
        let text = format!("(TLS sni={:?} alpn={alpn:?} client={client:?})\n", session.server_name());
        self.speak(stream, side, text).await;
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin + std::marker::Send + 'static>(
        self: Arc<Self>,
        stream: S,
        side: Side,
        tls: String,
    ) {
        if self.echo.is_some() {
            self.tcp(stream, side, tls).await;
        } else if self.h2 {
            self.http2(stream, side, tls).await;
        } else {
            self.http1(stream, side, tls).await;
        }
    }

    fn note(&self, side: Side, text: String) {
        let arrived = Arrived { side, cluster: self.cluster.clone(), endpoint: self.endpoint, text };
        self.book.lock().unwrap().push(arrived);
    }

    fn next(&self, side: Side) -> FullAnswer {
        let mut asked = self.asked.lock().unwrap();
        let number = &mut asked[side as usize];
        *number += 1;
        self.answers[(*number - 1).min(self.answers.len() - 1)].clone()
    }

    async fn tcp<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, side: Side, tls: String) {
        let greeting = self.echo.as_deref().unwrap_or_default();
        if stream.write_all(greeting.as_bytes()).await.is_err() {
            return self.note(side, tls + "(closed before the greeting)\n");
        }
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(n) = stream.read(&mut buffer).await
            && n > 0
        {
            all.extend_from_slice(&buffer[..n]);
            if stream.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        let _ = stream.shutdown().await;
        self.note(side, format!("{tls}bytes: {}\n", all.escape_ascii()));
    }

    async fn http1<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, side: Side, tls: String) {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        loop {
            let taken = loop {
                if let Some(taken) = whole(&bytes, &Message::Request) {
                    break taken;
                }
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
                    _ => {
                        if !bytes.is_empty() {
                            self.note(side, format!("{tls}(cut short)\n{}", self.request(&bytes)));
                        }
                        return;
                    }
                }
            };
            let head = bytes.starts_with(b"HEAD ");
            match exported(&bytes[..taken]) {
                Some(spans) => spans.into_iter().for_each(|text| self.note(side, text)),
                None => self.note(side, format!("{tls}{}", self.request(&bytes[..taken]))),
            }
            bytes.drain(..taken);
            let answer = self.next(side);
            tokio::time::sleep(Duration::from_millis(answer.delay)).await;
            if answer.reset || answer.close {
                return;
            }
            if let Some(raw) = &answer.raw {
                let _ = stream.write_all(raw.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(answer.body_delay)).await;
                return;
            }
            let (first, rest) = answer_bytes(&answer, head);
            if stream.write_all(first.as_bytes()).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(answer.body_delay)).await;
            if stream.write_all(&rest).await.is_err() {
                return;
            }
        }
    }

    fn request(&self, bytes: &[u8]) -> String {
        sorted(&render(bytes, &[Message::Request], true))
    }

    async fn http2<S: AsyncRead + AsyncWrite + Unpin + std::marker::Send + 'static>(
        self: Arc<Self>,
        stream: S,
        side: Side,
        tls: String,
    ) {
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
            return self.note(side, tls + "(not HTTP/2)\n");
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let (server, tls) = (self.clone(), tls.clone());
            let head = request.method() == http::Method::HEAD;
            tokio::spawn(async move {
                if request.uri().path() == spans::METHOD {
                    let body = checks::body(request).await;
                    let all = spans::texts(spans::METHOD, &body).unwrap_or_default();
                    all.into_iter().for_each(|text| server.note(side, text));
                } else {
                    let text = match checks::is_check(&request) {
                        true => checks::text(request).await,
                        false => crate::differential::h2::request_text(request).await,
                    };
                    server.note(side, tls + &text);
                }
                let answer = server.next(side);
                tokio::time::sleep(Duration::from_millis(answer.delay)).await;
                respond_h2(respond, &answer, head).await;
            });
        }
    }
}

/// The spans in a request of HTTP/1.
fn exported(bytes: &[u8]) -> Option<Vec<String>> {
    let path = bytes.strip_prefix(b"POST ")?.split(|b| *b == b' ').next()?;
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunked(&bytes[end..]),
        false => bytes[end..].to_vec(),
    };
    spans::texts(std::str::from_utf8(path).ok()?, &body)
}

/// A chunked body's data.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(line) = bytes.windows(2).position(|w| w == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        all.extend_from_slice(&bytes[line + 2..line + 2 + length]);
        bytes = &bytes[line + 4 + length..];
    }
    all
}

fn subject(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

fn status(answer: &FullAnswer) -> u16 {
    if answer.status == 0 { 200 } else { answer.status }
}

fn body(answer: &FullAnswer) -> Vec<u8> {
    match &answer.body {
        Some(text) => coded(text, &answer.coded),
        None => format!("answer {}", status(answer)).into_bytes(),
    }
}

/// An answer's head, and its body.
fn answer_bytes(answer: &FullAnswer, head: bool) -> (String, Vec<u8>) {
    let mut text = format!("HTTP/1.1 {} Fine\r\n", status(answer));
    for field in &answer.headers {
        let _ = write!(text, "{field}\r\n");
    }
    let empty = matches!(status(answer), 204 | 304);
    let body = body(answer);
    if !answer.trailers.is_empty() {
        text += "transfer-encoding: chunked\r\n\r\n";
        let trailers: String = answer.trailers.iter().map(|t| format!("{t}\r\n")).collect();
        let length = format!("{:x}\r\n", body.len()).into_bytes();
        return (text, [length, body, format!("\r\n0\r\n{trailers}\r\n").into_bytes()].concat());
    }
    if !empty {
        let _ = write!(text, "content-length: {}\r\n", body.len());
    }
    text += "\r\n";
    (text, if empty || head { Vec::new() } else { body })
}

async fn respond_h2(mut respond: h2::server::SendResponse<Bytes>, answer: &FullAnswer, of_head: bool) {
    if answer.reset || answer.close {
        return respond.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    let mut head = http::Response::new(());
    *head.status_mut() = http::StatusCode::from_u16(status(answer)).unwrap();
    *head.headers_mut() = fields(&answer.headers);
    if let Some(message) = checks::message(answer) {
        return checks::respond(respond, head, message, answer).await;
    }
    let empty = (of_head || matches!(status(answer), 204 | 304)) && !answer.force_body;
    let body = body(answer);
    let Ok(mut stream) = respond.send_response(head, empty) else { return };
    if empty {
        return;
    }
    tokio::time::sleep(Duration::from_millis(answer.body_delay)).await;
    let _ = stream.send_data(Bytes::from(body), answer.trailers.is_empty());
    if !answer.trailers.is_empty() {
        let _ = stream.send_trailers(fields(&answer.trailers));
    }
}

/// `name: value` lines as a map.
pub fn fields(lines: &[String]) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?} is not `name: value`"));
        let name: http::HeaderName = name.trim().parse().unwrap();
        map.append(name, http::HeaderValue::from_str(value.trim()).unwrap());
    }
    map
}
