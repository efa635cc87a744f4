//! Heads into bytes, and the framing that goes with them.

use bytes::BytesMut;
use http::{Method, StatusCode};

use crate::codec::headers::Headers;
use crate::codec::message::{Protocol, RequestHead, ResponseHead};

/// How the body is framed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// There is none; what a source gives is dropped.
    None,
    /// As it is: its length was announced, or the end of the connection ends it.
    Raw,
    /// The chunked coding.
    Chunked,
}

fn put(out: &mut BytesMut, headers: &Headers) {
    for (name, value) in headers.iter() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes a request head. `bodiless` says that the body is known to be empty.
pub(super) fn request(head: &RequestHead, bodiless: bool, out: &mut BytesMut) -> Output {
    out.reserve(256 + head.path.len());
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let connect = head.method == Method::CONNECT;
    out.extend_from_slice(if connect { &head.authority } else { &head.path });
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(&head.authority);
    out.extend_from_slice(b"\r\n");
    put(out, &head.headers);
    let output = if connect || head.upgrade.is_some() {
        Output::Raw
    } else if head.headers.contains(&http::header::CONTENT_LENGTH) {
        if bodiless { Output::None } else { Output::Raw }
    } else if bodiless {
        // A method that may have a body says that it has none (RFC 9110, section 8.6).
        if !matches!(
            head.method,
            Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
        ) {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Output::None
    } else {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        Output::Chunked
    };
    out.extend_from_slice(b"\r\n");
    output
}

/// What a response head depends on besides itself.
pub(super) struct Answering<'a> {
    /// The request's method.
    pub(super) method: &'a Method,
    /// The request's version.
    pub(super) protocol: Protocol,
    /// Say `connection: close`.
    pub(super) close: bool,
    /// The body is known to be empty.
    pub(super) bodiless: bool,
}

/// Writes a response head.
pub(super) fn response(head: &ResponseHead, to: &Answering<'_>, out: &mut BytesMut) -> Output {
    status_line(head.status, to.protocol, out);
    put(out, &head.headers);
    let status = head.status;
    let tunnel =
        status == StatusCode::SWITCHING_PROTOCOLS || (*to.method == Method::CONNECT && status.is_success());
    if !tunnel && !head.headers.contains(&http::header::CONNECTION) {
        if to.close {
            out.extend_from_slice(b"connection: close\r\n");
        } else if to.protocol == Protocol::Http10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
    }
    let output = if tunnel {
        Output::Raw
    } else if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        Output::None
    } else if head.headers.contains(&http::header::CONTENT_LENGTH) {
        if to.bodiless || *to.method == Method::HEAD { Output::None } else { Output::Raw }
    } else if *to.method == Method::HEAD {
        // What a GET would be answered with has no length known here.
        if to.protocol != Protocol::Http10 {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        Output::None
    } else if to.bodiless {
        out.extend_from_slice(b"content-length: 0\r\n");
        Output::None
    } else if to.protocol == Protocol::Http10 {
        // No chunked coding for HTTP/1.0: the end of the connection is the end of the body.
        Output::Raw
    } else {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        Output::Chunked
    };
    out.extend_from_slice(b"\r\n");
    output
}

/// Whether a response's end can be seen without the end of the connection.
pub(super) fn self_delimiting(head: &ResponseHead, to: &Answering<'_>) -> bool {
    to.protocol != Protocol::Http10
        || to.bodiless
        || *to.method == Method::HEAD
        || head.headers.contains(&http::header::CONTENT_LENGTH)
}

/// Writes an informational head.
pub(super) fn informational(head: &ResponseHead, out: &mut BytesMut) {
    status_line(head.status, Protocol::Http11, out);
    put(out, &head.headers);
    out.extend_from_slice(b"\r\n");
}

fn status_line(status: StatusCode, protocol: Protocol, out: &mut BytesMut) {
    out.reserve(256);
    out.extend_from_slice(if protocol == Protocol::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The phrase behind a status; for those that Envoy has no phrase for, its word.
fn reason_phrase(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        418 | 451 => "Unknown",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

/// Writes one piece of a chunked body, up to its data.
pub(super) fn chunk_start(length: usize, out: &mut BytesMut) {
    use std::fmt::Write;
    // Writing to memory cannot fail.
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the end of a chunked body.
pub(super) fn last_chunk(trailers: Option<&Headers>, out: &mut BytesMut) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        put(out, trailers);
    }
    out.extend_from_slice(b"\r\n");
}
