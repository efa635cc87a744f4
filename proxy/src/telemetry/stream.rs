//! What is recorded of one stream (an HTTP request or a TCP connection) while it lives: the one source for access logs,
//! metrics and traces. The stages fill it; when the flow ends it is read once.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::StatusCode;

use super::closing::Closing;
use super::details::Details;
use super::flags::Flags;
use super::record::Trail;
use super::trace::Trace;
use super::trace::ids::{self, Found};
use crate::codec::{Protocol, RequestHead, WireBytes};
use crate::io::{DynamicMetadata, FilterState, TlsInfo};

/// What a stream takes on the wire, on either side; nothing where that was not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Between the client and this proxy.
    pub downstream: Option<WireBytes>,
    /// Between this proxy and all upstreams that were tried.
    pub upstream: Option<WireBytes>,
}

impl Wire {
    /// Of a connection of bytes, whose bytes are those that are copied.
    pub fn of_copied(received: u64, sent: u64) -> Self {
        let bytes = |received, sent| Some(WireBytes { received, sent, ..WireBytes::default() });
        Self { downstream: bytes(received, sent), upstream: bytes(sent, received) }
    }
}

/// The record of a stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// When its first byte was seen, by the wall clock.
    pub start_time: SystemTime,
    /// The same by the monotonic clock; all durations count from here.
    pub start: Instant,
    /// How long it took, once that is known: whoever tells of it need not look at the clock again.
    pub took: Option<Duration>,
    /// The downstream's version; none for TCP.
    pub protocol: Option<Protocol>,
    /// The final status sent, or none when the stream ended without one (logged as 0).
    pub status: Option<StatusCode>,
    /// Why it ended, in Envoy's letters.
    pub flags: Flags,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`, such as `via_upstream`, `route_not_found`.
    pub details: Option<Details>,
    /// Envoy's `%CONNECTION_TERMINATION_DETAILS%`.
    pub connection_termination_details: Option<Details>,
    /// How its connections ended, if it is one of bytes and they did not end in order.
    pub closing: Option<Box<Closing>>,
    /// Body bytes from the downstream.
    pub bytes_received: u64,
    /// Body bytes to the downstream.
    pub bytes_sent: u64,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The cluster's name, and so Istio's destination labels.
    pub cluster: Option<Arc<str>>,
    /// The last upstream host tried.
    pub upstream_host: Option<SocketAddr>,
    /// Our address on the last upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// What TLS established on it.
    pub upstream_tls: Option<Arc<TlsInfo>>,
    /// Why the last upstream transport failed, in words.
    pub upstream_failure: Option<Box<str>>,
    /// Attempts made, the first included.
    pub attempts: u32,
    /// When the last request byte came from the downstream.
    pub request_end: Option<Instant>,
    /// When the last request byte went to the upstream.
    pub request_sent: Option<Instant>,
    /// The client by address, as far as proxies in between can be trusted; none where it is the connection's peer.
    pub client: Option<SocketAddr>,
    /// The upstream's version.
    pub upstream_protocol: Option<Protocol>,
    /// The virtual cluster that the request counts for.
    pub virtual_cluster: Option<Arc<str>>,
    /// When the first upstream response byte came.
    pub upstream_first_byte: Option<Instant>,
    /// The request's head as far as logs need it: method, path, authority, and named headers are read before filters change
    /// them and kept here as cheap slices.
    pub method: Option<http::Method>,
    /// The path as received, or as the route rewrote it (`x-envoy-original-path` keeps the first).
    pub path: Bytes,
    /// The path before a rewrite, when there was one.
    pub original_path: Option<Bytes>,
    /// The authority as received.
    pub authority: Bytes,
    /// The gRPC status of the response, from headers or trailers.
    pub grpc_status: Option<u32>,
    /// Whether the request is gRPC by its content type.
    pub is_grpc: bool,
    /// gRPC messages seen from the downstream and towards it.
    pub grpc_messages: (u64, u64),
    /// What filters say of the stream.
    pub metadata: DynamicMetadata,
    /// Objects that filters leave for later ones; the connection has some of its own.
    pub filter_state: FilterState,
    /// The request's span, where it has one.
    pub trace: Option<Rc<Trace>>,
    /// What is kept of it for whoever asks why.
    pub trail: Box<Trail>,
    /// What it takes on the wire, where a log tells of it.
    pub wire: Option<Box<Wire>>,
}

impl StreamInfo {
    /// The id of its trace, in hex digits: of its span, or, where this proxy traces nothing, of what its head says that it belongs to.
    pub fn trace_id(&self, head: Option<&RequestHead>) -> Option<String> {
        if let Some(trace) = &self.trace {
            return Some(trace.trace_id());
        }
        match ids::traceparent(&head?.headers) {
            Found::Context(came) => Some(format!("{:032x}", came.ids.trace)),
            Found::Nothing | Found::Nonsense => None,
        }
    }

    /// The response code details, with what the transport said where the upstream's stream was reset.
    pub fn code_details(&self) -> Option<Cow<'_, str>> {
        let details: &str = self.details.as_ref()?;
        let reset = details.strip_suffix('}').filter(|d| d.starts_with("upstream_reset_"));
        Some(match (reset, &self.upstream_failure) {
            (Some(reset), Some(words)) => format!("{reset}|{words}}}").into(),
            _ => details.into(),
        })
    }

    /// How long it took, or has taken so far.
    pub fn took(&self) -> Duration {
        self.took.unwrap_or_else(|| self.start.elapsed())
    }

    /// What it takes on the wire. Of a connection of bytes those are the bytes that are copied.
    pub fn on_wire(&self) -> Wire {
        match (&self.wire, self.protocol) {
            (Some(wire), _) => **wire,
            (None, None) => Wire::of_copied(self.bytes_received, self.bytes_sent),
            (None, Some(_)) => Wire::default(),
        }
    }

    /// When it ended; this moment while it lives. A line may be written later than that.
    pub fn now(&self) -> Instant {
        self.took.map_or_else(Instant::now, |took| self.start + took)
    }

    /// A record that starts now.
    pub fn new(protocol: Option<Protocol>) -> Self {
        Self {
            start_time: SystemTime::now(),
            start: Instant::now(),
            took: None,
            protocol,
            status: None,
            flags: Flags::default(),
            details: None,
            connection_termination_details: None,
            closing: None,
            bytes_received: 0,
            bytes_sent: 0,
            route: None,
            cluster: None,
            upstream_host: None,
            upstream_local: None,
            upstream_tls: None,
            upstream_failure: None,
            attempts: 0,
            request_end: None,
            request_sent: None,
            client: None,
            upstream_protocol: None,
            virtual_cluster: None,
            upstream_first_byte: None,
            method: None,
            path: Bytes::new(),
            original_path: None,
            authority: Bytes::new(),
            grpc_status: None,
            is_grpc: false,
            grpc_messages: (0, 0),
            metadata: DynamicMetadata::default(),
            filter_state: FilterState::default(),
            trace: None,
            trail: Box::default(),
            wire: None,
        }
    }
}
