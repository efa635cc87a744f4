//! What spans say: Envoy's tags of requests and tries, and the tags that configuration adds.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::HeaderName;
use http::header::USER_AGENT;

use super::span::LONGEST;
use super::{Attempt, Kind, Span, Trace, wall};
use crate::codec::RequestHead;
use crate::codec::digits::IpText;
use crate::telemetry::Flags;
use crate::telemetry::access_log::{Format, LogContext};
use crate::telemetry::stream::StreamInfo;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A tag that configuration adds.
#[derive(Debug)]
pub struct Tag {
    /// Its name.
    pub name: Arc<str>,
    /// Where its value comes from.
    pub source: Source,
}

/// Where the value of a tag comes from.
#[derive(Debug)]
pub enum Source {
    /// The configuration, or the environment when it was compiled.
    Fixed(String),
    /// A field of the request.
    Header(HeaderName, Option<String>),
    /// What filters said of the request: a namespace and a path.
    Request(Vec<String>, Option<String>),
    /// What the configuration says of the route: a namespace and a path. The value is found when the route is.
    Route(Vec<String>, Option<String>),
    /// A format.
    Format(Format),
}

impl Source {
    /// The value for a stream; none where it has none.
    pub fn value(&self, context: &LogContext<'_>) -> Option<String> {
        match self {
            Self::Fixed(text) => Some(text.clone()),
            Self::Header(name, default) => {
                let found = context.request.and_then(|r| r.headers.get(name));
                found.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).or_else(|| default.clone())
            }
            Self::Request(path, default) => {
                let (namespace, keys) = path.split_first()?;
                let found = context.stream.metadata.get(namespace, keys);
                found.and_then(|v| tag_text(&xds_protos::value::to_json(&v))).or_else(|| default.clone())
            }
            Self::Route(..) => None,
            Self::Format(format) => Some(formatted(format, context)),
        }
    }
}

/// A value of metadata as a tag: text as it is, anything else as JSON; nothing for null.
pub fn tag_text(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// What a format makes; what is absent is empty.
pub fn formatted(format: &Format, context: &LogContext<'_>) -> String {
    let mut text = Vec::new();
    format.write_or_empty(context, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A text as a span keeps it while it waits.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

/// `tracestate` as a span keeps it: a copy, for what came is a piece of the whole head. A vendor's longer ones may be left out (W3C
/// Trace Context, section 3.3.1.5).
pub fn kept(trace: &Trace) -> Option<http::HeaderValue> {
    let state = trace.state.as_ref().filter(|state| state.len() <= LONGEST)?;
    http::HeaderValue::from_bytes(state.as_bytes()).ok()
}

/// The span of a request that has ended.
pub fn of_request(trace: &Trace, context: &LogContext<'_>) -> Span {
    let (stream, settings) = (context.stream, &trace.settings);
    let now = SystemTime::now();
    let operation = trace.route.as_ref().and_then(|r| r.operation.as_ref());
    let name = match operation.or(settings.words.operation.as_ref()) {
        Some(format) => Some(formatted(format, context)),
        None => trace.name.borrow().as_deref().map(str::to_owned),
    };
    let mut span = Span {
        ids: trace.ids,
        remote: trace.remote,
        state: kept(trace),
        name: name.map(short),
        authority: short(String::from_utf8_lossy(&stream.authority).into_owned()),
        egress: settings.egress,
        // With spans for tries this one is of who is sent the request, whichever way it goes.
        kind: if settings.egress && !settings.spawn { Kind::Client } else { Kind::Server },
        start: stream.start_time,
        end: now.max(stream.start_time),
        tags: Vec::with_capacity(24),
        moments: Vec::new(),
        status: stream.status.map_or(0, |s| s.as_u16()),
        grpc: stream.grpc_status.filter(|_| stream.is_grpc),
    };
    for (name, value) in &trace.tracer.node {
        span.tag(*name, value.clone());
    }
    if let Some(head) = context.request {
        brought(&mut span, head, context, settings.longest_path);
    }
    span.tag("request_size", stream.bytes_received.to_string());
    span.tag("response_size", stream.bytes_sent.to_string());
    came_of_it(&mut span, stream, stream.flags);
    if settings.verbose {
        moments(&mut span, stream, now);
    }
    ended(&mut span, context);
    added(&mut span, trace, context);
    span
}

/// What the request itself says.
fn brought(span: &mut Span, head: &RequestHead, context: &LogContext<'_>, longest_path: usize) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let field = |name: &HeaderName| head.headers.get(name).map(|v| text(v.as_bytes()));
    if let Some(id) = field(&REQUEST_ID) {
        span.tag("guid:x-request-id", id);
    }
    let path = head.headers.get(&ORIGINAL_PATH).map_or(&head.path[..], |v| v.as_bytes());
    let path = &path[..path.len().min(longest_path)];
    let scheme = if head.scheme.is_empty() { &b"http"[..] } else { &head.scheme };
    span.tag("http.url", text(&[scheme, b"://", &head.authority, path].concat()));
    span.tag("http.method", context.stream.method.as_ref().map_or_else(String::new, |m| m.to_string()));
    span.tag("downstream_cluster", field(&DOWNSTREAM_CLUSTER).unwrap_or_else(|| "-".to_owned()));
    span.tag("user_agent", field(&USER_AGENT).unwrap_or_else(|| "-".to_owned()));
    span.tag("http.protocol", context.stream.protocol.map_or("-", |p| p.as_str()));
    let peer = IpText::new(context.connection.direct_remote.ip());
    span.tag("peer.address", text(peer.as_bytes()));
    if let Some(id) = field(&CLIENT_TRACE_ID) {
        span.tag("guid:x-client-trace-id", id);
    }
    if context.stream.is_grpc {
        span.tag("grpc.path", text(&head.path));
        span.tag("grpc.authority", text(&head.authority));
        if let Some(kind) = field(&http::header::CONTENT_TYPE) {
            span.tag("grpc.content_type", kind);
        }
    }
}

/// Where the request went, and how that ended.
fn came_of_it(span: &mut Span, stream: &StreamInfo, flags: Flags) {
    span.tag("component", "proxy");
    if let Some(cluster) = &stream.cluster {
        span.tag("upstream_cluster", &**cluster);
        span.tag("upstream_cluster.name", &**cluster);
    }
    span.tag("http.status_code", span.status.to_string());
    let flags = if flags.is_empty() { "-".to_owned() } else { flags.to_string() };
    span.tag("response_flags", flags);
}

/// The moments that are known.
fn moments(span: &mut Span, stream: &StreamInfo, end: SystemTime) {
    let known: [(&'static str, Option<Instant>); 3] = [
        ("last_downstream_rx_byte_received", stream.request_end),
        ("last_upstream_tx_byte_sent", stream.request_sent),
        ("first_upstream_rx_byte_received", stream.upstream_first_byte),
    ];
    span.moments.extend(known.into_iter().filter_map(|(name, at)| Some((name, wall(stream, at?)))));
    span.moments.push(("last_downstream_tx_byte_sent", end));
}

/// gRPC's status, and whether it is an error.
fn ended(span: &mut Span, context: &LogContext<'_>) {
    let mut wrong = span.status == 0 || span.status >= 500;
    if let Some(code) = span.grpc {
        span.tag("grpc.status_code", code.to_string());
        let message = |headers: &crate::codec::Headers| headers.get_str(&GRPC_MESSAGE).map(str::to_owned);
        let said = context.trailers.and_then(message).or_else(|| context.response.and_then(message));
        if let Some(said) = said {
            span.tag("grpc.message", said);
        }
        wrong |= matches!(code, 2 | 4 | 8 | 12 | 13 | 14 | 15);
    }
    if wrong {
        span.tag("error", "true");
    }
}

/// What configuration adds; the route's word goes before the connection manager's.
fn added(span: &mut Span, trace: &Trace, context: &LogContext<'_>) {
    let of_route = trace.route.as_ref().map(|r| &r.tags[..]).unwrap_or_default();
    let own = trace.settings.words.tags.iter();
    let not_replaced = own.filter(|tag| !of_route.iter().any(|other| other.name == tag.name));
    for tag in not_replaced.chain(of_route) {
        if let Some(value) = tag.source.value(context) {
            span.tag(Cow::Owned(tag.name.to_string()), value);
        }
    }
    for (name, value) in &trace.found {
        span.tag(Cow::Owned(name.to_string()), value.clone());
    }
}

/// The span of a try.
pub fn of_try(trace: &Trace, number: usize, attempt: &Attempt, context: &LogContext<'_>) -> Span {
    let stream = context.stream;
    let operation = trace.route.as_ref().and_then(|r| r.upstream_operation.as_ref());
    let name = match operation.or(trace.settings.words.upstream_operation.as_ref()) {
        Some(format) => formatted(format, context),
        None => format!("router {} egress", stream.cluster.as_deref().unwrap_or_default()),
    };
    let mut span = Span {
        ids: attempt.ids,
        remote: false,
        state: kept(trace),
        name: Some(short(name)),
        authority: String::new(),
        egress: true,
        kind: Kind::Client,
        start: wall(stream, attempt.start),
        end: wall(stream, attempt.end.unwrap_or_else(Instant::now)),
        tags: Vec::with_capacity(16),
        moments: Vec::new(),
        status: attempt.status,
        grpc: attempt.grpc,
    };
    if number > 0 {
        span.tag("retry.count", number.to_string());
    }
    if attempt.canceled {
        span.tag("canceled", "true");
    }
    if let Some(reason) = attempt.reason {
        span.tag("error", "true");
        span.tag("error.reason", reason);
    }
    span.tag("http.protocol", attempt.protocol.map_or("-", |p| p.as_str()));
    if let Some(host) = attempt.host {
        span.tag("upstream_address", host.to_string());
        span.tag("peer.address", host.to_string());
    }
    came_of_it(&mut span, stream, attempt.flags);
    if let (true, Some(end)) = (trace.settings.verbose, attempt.end) {
        span.moments.push(("last_upstream_rx_byte_received", wall(stream, end)));
    }
    ended(&mut span, context);
    added(&mut span, trace, context);
    span
}
