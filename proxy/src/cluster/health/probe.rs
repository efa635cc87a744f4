//! One check of one host, over a connection that may serve the next one as well.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::settings::{AddHeader, GrpcCheck, HealthCheck, HttpCheck, Kind, TcpCheck};
use super::state::{Reason, Verdict};
use crate::cluster::connect::establish;
use crate::cluster::host::Host;
use crate::cluster::{Cluster, HostAddress};
use crate::codec::{Body, Frame, Headers, Protocol, Reply, Request, RequestHead, h1, h2};
use crate::identity::tls::ConnectOptions;
use crate::io::Io;

const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");
/// How long the answer may take: the check's timeout, which Envoy tells as well.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");

const UP: Verdict = Verdict::Healthy { degraded: false };
const NETWORK: Verdict = Verdict::failed(Reason::Network);
const WRONG: Verdict = Verdict::failed(Reason::Active);

enum Line {
    H1(h1::client::Connection),
    H2(h2::client::Connection),
    Raw(Io),
}

/// What a host's checks share.
#[derive(Default)]
pub(super) struct Probe {
    line: Option<Line>,
}

impl Probe {
    /// Makes one check. Dropped before its end, it takes the connection with it.
    pub(super) async fn check(&mut self, cluster: &Cluster, host: &Host, check: &HealthCheck) -> Verdict {
        let line = match self.line.take().and_then(alive) {
            Some(line) => line,
            None => match connect(cluster, host, check).await {
                Some(line) => line,
                None => return NETWORK,
            },
        };
        let (verdict, line) = match (&check.kind, line) {
            (Kind::Http(http), line) => self::http(line, http, cluster, host, check).await,
            (Kind::Grpc(grpc), Line::H2(line)) => self::grpc(line, grpc, cluster, host, check).await,
            (Kind::Tcp(tcp), Line::Raw(line)) => self::tcp(line, tcp).await,
            // A line is made for its kind.
            (_, _) => (NETWORK, None),
        };
        self.line = line.filter(|_| check.reuse_connection);
        verdict
    }
}

fn alive(line: Line) -> Option<Line> {
    match line {
        Line::H1(mut line) => (!line.is_dead()).then_some(Line::H1(line)),
        Line::H2(mut line) => (!line.is_dead()).then_some(Line::H2(line)),
        Line::Raw(line) => Some(Line::Raw(line)),
    }
}

/// Which of the cluster's transports the checks go by.
fn transport(cluster: &Cluster, host: &Host, check: &HealthCheck) -> usize {
    match &check.transport {
        Some(metadata) => cluster.config().transport_for(Some(metadata)),
        None => host.facts().transport,
    }
}

fn is_tls(cluster: &Cluster, host: &Host, check: &HealthCheck) -> bool {
    let transport = transport(cluster, host, check);
    cluster.config().transports.get(transport).is_some_and(|t| t.tls.is_some())
}

async fn connect(cluster: &Cluster, host: &Host, check: &HealthCheck) -> Option<Line> {
    let facts = host.facts();
    let address = facts.check.address.map_or_else(|| host.address().clone(), HostAddress::Ip);
    drop(facts);
    let alpn = (!check.alpn.is_empty()).then_some(check.alpn.as_slice());
    let options = ConnectOptions { alpn, ..ConnectOptions::default() };
    let transport = transport(cluster, host, check);
    let (io, ..) = establish(cluster, &address, transport, options).await.ok()?;
    let config = cluster.config();
    match &check.kind {
        Kind::Tcp(_) => Some(Line::Raw(io)),
        Kind::Http(http) if !http.http2 => Some(Line::H1(h1::client::Connection::new(io, config.h1))),
        Kind::Http(_) | Kind::Grpc(_) => h2::client::Connection::new(io, config.h2).await.ok().map(Line::H2),
    }
}

fn head(method: Method, tls: bool, authority: &str, path: Bytes, protocol: Protocol) -> RequestHead {
    let mut headers = Headers::with_capacity(4);
    headers.append(http::header::USER_AGENT, AGENT);
    RequestHead {
        method,
        scheme: Bytes::from_static(if tls { b"https" } else { b"http" }),
        authority: Bytes::copy_from_slice(authority.as_bytes()),
        path,
        protocol,
        upgrade: None,
        headers,
    }
}

fn add(headers: &mut Headers, fields: &[AddHeader]) {
    for field in fields {
        let there = headers.contains(&field.name);
        if (field.if_absent && there) || (field.if_present && !there) {
            continue;
        }
        if field.append {
            headers.append(field.name.clone(), field.value.clone());
        } else {
            headers.set(field.name.clone(), field.value.clone());
        }
    }
}

/// The first of these that is not empty: what the endpoint says, what the check says, the cluster's name.
fn authority(cluster: &Cluster, host: &Host, own: &str) -> String {
    let facts = host.facts();
    let of_host = &facts.check.hostname;
    let name = if !of_host.is_empty() { of_host } else { own };
    if name.is_empty() { cluster.config().name.to_string() } else { name.to_owned() }
}

/// Sends a request; brings the reply, and a place where the connection is when the reply's body is read and it can serve on.
async fn send(line: Line, request: Request) -> Option<(Reply, Rc<RefCell<Option<Line>>>)> {
    let back: Rc<RefCell<Option<Line>>> = Rc::default();
    let keep = back.clone();
    let reply = match line {
        Line::H1(line) => {
            let release = Box::new(move |line: Option<h1::client::Connection>| {
                *keep.borrow_mut() = line.map(Line::H1);
            });
            line.send(request, None, release, drop).await.ok()?
        }
        Line::H2(line) => {
            *back.borrow_mut() = Some(Line::H2(line.clone()));
            line.send(request, None, Box::new(|| {})).await.ok()?
        }
        Line::Raw(_) => return None,
    };
    Some((reply, back))
}

/// Reads a body to its end, keeping so much of it, and its trailers.
async fn read(mut body: Body, keep: usize) -> Option<(BytesMut, Option<Headers>)> {
    let mut kept = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.ok()? {
            Frame::Data(data) => kept.extend_from_slice(&data[..data.len().min(keep - kept.len())]),
            Frame::Trailers(fields) => trailers = Some(fields),
        }
    }
    Some((kept, trailers))
}

async fn http(
    line: Line,
    http: &HttpCheck,
    cluster: &Cluster,
    host: &Host,
    check: &HealthCheck,
) -> (Verdict, Option<Line>) {
    let protocol = if http.http2 { Protocol::Http2 } else { Protocol::Http11 };
    let name = authority(cluster, host, &http.host);
    let tls = is_tls(cluster, host, check);
    let mut head = head(http.method.clone(), tls, &name, http.path.clone(), protocol);
    // In Envoy's order: what is added stays, though its name is one to remove.
    for name in &http.remove {
        head.headers.remove(name);
    }
    add(&mut head.headers, &http.add);
    if !http.send.is_empty() {
        head.headers.set(http::header::CONTENT_LENGTH, HeaderValue::from(http.send.len()));
    }
    let request = Request { head, body: Body::full(http.send.clone()) };
    let Some((reply, back)) = send(line, request).await else { return (NETWORK, None) };
    let Reply { head, body, .. } = reply;
    let Some((body, _)) = read(body, http.buffer).await else { return (NETWORK, None) };
    let status = head.status.as_u16();
    let verdict = if !within(&http.expected, status) {
        Verdict::Unhealthy {
            reason: Reason::Active,
            retriable: within(&http.retriable, status),
            exclude: head.headers.contains(&IMMEDIATE_FAIL),
        }
    } else if !has_all(&body, &http.receive) {
        WRONG
    } else {
        Verdict::Healthy { degraded: head.headers.contains(&DEGRADED) }
    };
    let line = back.borrow_mut().take();
    (verdict, line)
}

fn within(ranges: &[std::ops::Range<u16>], status: u16) -> bool {
    ranges.iter().any(|range| range.contains(&status))
}

async fn grpc(
    line: h2::client::Connection,
    grpc: &GrpcCheck,
    cluster: &Cluster,
    host: &Host,
    check: &HealthCheck,
) -> (Verdict, Option<Line>) {
    let name = authority(cluster, host, &grpc.authority);
    let path = Bytes::from_static(b"/grpc.health.v1.Health/Check");
    let mut head = head(Method::POST, is_tls(cluster, host, check), &name, path, Protocol::Http2);
    head.headers.set(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.set(http::header::TE, HeaderValue::from_static("trailers"));
    // The header holds eight digits; who checks for longer than a day says so in vain.
    let deadline = format!("{}m", check.timeout.as_millis().min(99_999_999));
    if let Ok(deadline) = HeaderValue::try_from(deadline) {
        head.headers.set(GRPC_TIMEOUT, deadline);
    }
    add(&mut head.headers, &grpc.metadata);
    let request = Request { head, body: Body::full(question(&grpc.service)) };
    let Some((reply, back)) = send(Line::H2(line), request).await else { return (NETWORK, None) };
    let Reply { head, body, .. } = reply;
    let Some((body, trailers)) = read(body, 1024).await else { return (NETWORK, None) };
    let fields = trailers.as_ref().unwrap_or(&head.headers);
    let ok = head.status == StatusCode::OK && fields.get_str(&GRPC_STATUS) == Some("0");
    let verdict = if ok && is_serving(&body) { UP } else { WRONG };
    let line = back.borrow_mut().take();
    (verdict, line)
}

/// `grpc.health.v1.HealthCheckRequest { service = 1 }` as a gRPC message.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        prost::encoding::string::encode(1, &service.to_owned(), &mut message);
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// Whether a gRPC message is `HealthCheckResponse { status = 1: SERVING }`.
fn is_serving(framed: &[u8]) -> bool {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Response {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    const SERVING: i32 = 1;
    let Some(([0, length @ ..], message)) = framed.split_first_chunk::<5>() else { return false };
    u32::from_be_bytes(*length) as usize == message.len()
        && <Response as prost::Message>::decode(message).is_ok_and(|r| r.status == SERVING)
}

/// The most that is read of what a TCP service says.
const MOST: usize = 64 * 1024;

async fn tcp(mut line: Io, tcp: &TcpCheck) -> (Verdict, Option<Line>) {
    if !tcp.send.is_empty() && (line.write_all(&tcp.send).await.is_err() || line.flush().await.is_err()) {
        return (NETWORK, None);
    }
    if tcp.receive.is_empty() {
        // Only the connection was asked for.
        return (UP, None);
    }
    let mut seen = BytesMut::new();
    while !has_all(&seen, &tcp.receive) {
        match line.read_buf(&mut seen).await {
            Ok(1..) if seen.len() < MOST => {}
            _ => return (NETWORK, None),
        }
    }
    (UP, Some(Line::Raw(line)))
}

/// Whether `text` has all of these in it, one after the other.
fn has_all(text: &[u8], pieces: &[Bytes]) -> bool {
    let mut rest = text;
    pieces.iter().all(|piece| match memchr::memmem::find(rest, piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_must_come_in_their_order_with_anything_between() {
        let pieces = |p: &[&'static str]| -> Vec<Bytes> {
            p.iter().map(|p| Bytes::from_static(p.as_bytes())).collect()
        };
        assert!(has_all(b"+PONG and more", &pieces(&["PO", "more"])));
        assert!(!has_all(b"+PONG and more", &pieces(&["more", "PO"])));
        assert!(!has_all(b"aba", &pieces(&["ab", "ba"])), "they do not overlap");
        assert!(has_all(b"", &[]));
    }

    #[test]
    fn only_a_whole_answer_of_serving_is_one() {
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        for not in [
            &[0, 0, 0, 0, 2, 8, 2][..],
            &[0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 3, 8, 1],
            &[1, 0, 0, 0, 2, 8, 1],
            &[],
        ] {
            assert!(!is_serving(not), "{not:?}");
        }
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 10, 2, b'a', b'b']);
        assert_eq!(&question("")[..], [0; 5]);
    }
}
