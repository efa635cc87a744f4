//! The shape of a request and of its reply, the same for every HTTP version and for both directions.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::body::Body;
use super::headers::Headers;
use super::meter::Meter;

/// The HTTP version spoken on a connection, as Envoy's `%PROTOCOL%` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 (RFC 1945 framing: no chunked coding towards the peer).
    Http10,
    /// HTTP/1.1 (RFC 9112).
    Http11,
    /// HTTP/2 (RFC 9113).
    Http2,
}

impl Protocol {
    /// The name in access logs: `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A request's head. `authority` and `path` are bytes as received: HTTP/1's `Host` (or the authority of an absolute-form
/// target) and HTTP/2's pseudo-headers end up in the same fields; `headers` holds no `host`.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method; CONNECT included.
    pub method: Method,
    /// `http` or `https` as seen by this hop, or what an HTTP/2 peer or an absolute-form target said.
    pub scheme: Bytes,
    /// Host and optional port; empty where an HTTP/1.0 request has none.
    pub authority: Bytes,
    /// Path and query, starting with `/` (or `*`); empty for a plain CONNECT.
    pub path: Bytes,
    /// The version the request came with (downstream) or leaves with (upstream).
    pub protocol: Protocol,
    /// Extended CONNECT's `:protocol` (RFC 8441), or the token of an accepted HTTP/1 `Upgrade`.
    pub upgrade: Option<Bytes>,
    /// All other fields.
    pub headers: Headers,
}

impl RequestHead {
    /// A head of which nothing is known: where there is no request, and in the place of one that was taken.
    pub fn empty(protocol: Protocol) -> Self {
        Self {
            method: Method::GET,
            scheme: Bytes::new(),
            authority: Bytes::new(),
            path: Bytes::new(),
            protocol,
            upgrade: None,
            headers: Headers::new(),
        }
    }
}

/// A response's head; informational heads have the same shape.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The version it came with.
    pub protocol: Protocol,
    /// The fields.
    pub headers: Headers,
}

/// A request: its head and a body that is pulled.
#[derive(Debug)]
pub struct Request {
    /// The head.
    pub head: RequestHead,
    /// The body; on an upgraded stream the raw bytes in this direction, without end-of-message framing.
    pub body: Body,
}

/// What answers a request.
#[derive(Debug)]
pub struct Reply {
    /// The final head (status 101 or 200-to-CONNECT makes both bodies raw byte streams).
    pub head: ResponseHead,
    /// The body; pulled by the codec, which drops it when the downstream goes away.
    pub body: Body,
    /// Close the downstream connection after this reply (HTTP/1: `connection: close`; HTTP/2: GOAWAY).
    pub close: bool,
    /// Reset the stream in place of sending this reply (HTTP/2 RST_STREAM; HTTP/1: close the connection unanswered).
    pub reset: Option<ResetReason>,
}

/// Why a stream ended before its message was whole; the names follow Envoy's stream reset reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// We chose to.
    Local,
    /// We refused the stream before processing it (REFUSED_STREAM).
    LocalRefused,
    /// The peer reset it.
    Remote,
    /// The peer refused it before processing (REFUSED_STREAM): safe to retry.
    RemoteRefused,
    /// The connection ended first.
    ConnectionTermination,
    /// The peer broke the protocol.
    ProtocolError,
    /// A limit was exceeded.
    Overflow,
}

/// Where informational (1xx) heads go, before the final head.
pub trait InformationalSink {
    /// Sends one informational head towards the downstream; dropped if the final head was sent or the version has none.
    fn send(&self, head: ResponseHead);
}

/// What a request's handler may do to the connection that it came on, and know of it.
#[derive(Clone)]
pub struct Downstream {
    /// Takes 1xx heads.
    pub informational: Rc<dyn InformationalSink>,
    /// The request's number on this connection, from 0.
    pub stream: u64,
    /// Counts what the request and its answer take on the wire, where the service [wants](HttpService::wants_bytes) that.
    pub meter: Option<Rc<Meter>>,
}

/// Handles the requests of one downstream connection. The connection's codec owns it by `Rc`.
pub trait HttpService: 'static {
    /// Handles one request. The future is dropped when the downstream goes away before the reply.
    fn call(self: Rc<Self>, request: Request, downstream: Downstream) -> impl Future<Output = Reply>;

    /// Answers a request that the codec could not parse or refused: the reply's head and body are sent as they are and the
    /// connection closes. `details` is Envoy's response code detail, such as `http1.codec_error`.
    fn bad_request(
        &self,
        status: StatusCode,
        details: &'static str,
        protocol: Protocol,
        meter: Option<Rc<Meter>>,
    ) -> Reply;

    /// Whether it wants to know what requests and answers take on the wire. Asked once, when the connection begins.
    fn wants_bytes(&self) -> bool {
        false
    }

    /// The connection is about to be closed for a time limit of its own.
    fn ending(&self, why: ConnectionLimit) {
        let _ = why;
    }
}

/// Why a connection is ended before its peer does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// Too long without a request (`common_http_protocol_options.idle_timeout`).
    Idle,
    /// Open for too long (`common_http_protocol_options.max_connection_duration`).
    Age,
    /// Too many of its streams were reset by the peer within a second of their beginning (Envoy's
    /// `overload.premature_reset_total_stream_count`).
    Resets,
}

/// How far a request had come when its attempt failed: what the router needs to know about retrying it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// No byte of it was written: the upstream cannot have seen it.
    Unsent,
    /// Some of it was written; no byte of an answer came.
    Sent,
    /// Some of an answer came.
    Answering,
}

/// An attempt that ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream: {reason:?} ({details})")]
pub struct UpstreamError {
    /// Why.
    pub reason: ResetReason,
    /// How far the request had come.
    pub progress: Progress,
    /// In Envoy's words, for `%RESPONSE_CODE_DETAILS%` and local replies.
    pub details: &'static str,
}

/// Takes an upstream connection back when its exchange is over: with the connection if it can serve again, without it if it
/// is gone. Called exactly once.
pub type Release<C> = Box<dyn FnOnce(Option<C>)>;
