//! Heads into bytes, and the framing that goes with them.

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::H1Options;
use crate::codec::headers::Headers;
use crate::codec::message::{Protocol, RequestHead, ResponseHead};
use crate::codec::meter::Meter;
use crate::codec::spelling::KeyFormat;

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

fn put(out: &mut BytesMut, headers: &Headers, keys: KeyFormat) {
    if headers.spelling.is_some() || keys == KeyFormat::ProperCase {
        for (name, value) in headers.iter() {
            put_one(out, headers, keys, name.as_str(), value.as_bytes());
        }
        return;
    }
    // Nearly every message's names are written as they are.
    for (name, value) in headers.iter() {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        out.reserve(name.len() + value.len() + 4);
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

#[inline]
fn put_one(out: &mut BytesMut, headers: &Headers, keys: KeyFormat, name: &str, value: &[u8]) {
    keys.put(headers.spelling.as_deref(), name, out);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a request head. `bodiless` says that the body is known to be empty.
pub(super) fn request(head: &RequestHead, bodiless: bool, options: &H1Options, out: &mut BytesMut) -> Output {
    let keys = options.keys;
    let field = |out: &mut BytesMut, name, value: &[u8]| put_one(out, &head.headers, keys, name, value);
    out.reserve(256 + head.path.len());
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let connect = head.method == Method::CONNECT;
    if options.full_url && !connect {
        out.extend_from_slice(&head.scheme);
        out.extend_from_slice(b"://");
        out.extend_from_slice(&head.authority);
    }
    out.extend_from_slice(if connect { &head.authority } else { &head.path });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, "host", &head.authority);
    put(out, &head.headers, keys);
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
            field(out, "content-length", b"0");
        }
        Output::None
    } else {
        field(out, "transfer-encoding", b"chunked");
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
    /// How names are spelt.
    pub(super) keys: KeyFormat,
}

/// Writes a response head.
pub(super) fn response(head: &ResponseHead, to: &Answering<'_>, out: &mut BytesMut) -> Output {
    let field = |out: &mut BytesMut, name, value: &[u8]| put_one(out, &head.headers, to.keys, name, value);
    status_line(head, to.protocol, out);
    put(out, &head.headers, to.keys);
    let status = head.status;
    let tunnel =
        status == StatusCode::SWITCHING_PROTOCOLS || (*to.method == Method::CONNECT && status.is_success());
    if !tunnel && !head.headers.contains(&http::header::CONNECTION) {
        if to.close {
            field(out, "connection", b"close");
        } else if to.protocol == Protocol::Http10 {
            field(out, "connection", b"keep-alive");
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
            field(out, "transfer-encoding", b"chunked");
        }
        Output::None
    } else if to.bodiless {
        field(out, "content-length", b"0");
        Output::None
    } else if to.protocol == Protocol::Http10 {
        // No chunked coding for HTTP/1.0: the end of the connection is the end of the body.
        Output::Raw
    } else {
        field(out, "transfer-encoding", b"chunked");
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
pub(super) fn informational(head: &ResponseHead, keys: KeyFormat, out: &mut BytesMut) {
    status_line(head, Protocol::Http11, out);
    put(out, &head.headers, keys);
    out.extend_from_slice(b"\r\n");
}

fn status_line(head: &ResponseHead, protocol: Protocol, out: &mut BytesMut) {
    out.reserve(256);
    out.extend_from_slice(if protocol == Protocol::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    match head.headers.spelling.as_ref().and_then(|s| s.reason.as_ref()) {
        Some(reason) => out.extend_from_slice(reason),
        None => out.extend_from_slice(reason_phrase(head.status).as_bytes()),
    }
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

/// Counts the fields of a head that was just written, or of trailers: what stands between the first line and the last.
pub(super) fn count_fields(meter: &Meter, written: &[u8]) {
    let first = written.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
    let fields = written.len().saturating_sub(first + 2) as u64;
    meter.count(|bytes| {
        bytes.headers_sent += fields;
        bytes.plain_headers_sent += fields;
    });
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
        put(out, trailers, KeyFormat::Lower);
    }
    out.extend_from_slice(b"\r\n");
}
