//! Traces: what is known of a request's span while the request lives, and what is told of it when it ended.
//!
//! A [`Trace`] is made with the request where the connection manager traces, and hangs on the request's record. Spans go to
//! their [`Tracer`], which hands them to the exporter of the control thread by a bounded queue: a collector that is slow or
//! away costs spans (counted), never a request.

pub mod ids;
pub mod otlp;
pub mod span;
pub mod tags;
pub mod zipkin;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderName, HeaderValue};
use tokio::sync::mpsc;

pub use self::ids::{Came, Found, Ids};
pub use self::span::{Kind, Span};
pub use self::tags::{Source, Tag};
use super::access_log::Format;
use super::flags::Flags;
use super::registry::Counter;
use super::stream::StreamInfo;
use crate::codec::{Headers, Protocol};

/// `x-envoy-decorator-operation`.
pub const OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Whose ways a tracer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// W3C's fields; a span of its own for each hop.
    OpenTelemetry,
    /// B3's fields.
    Zipkin {
        /// New traces have ids of 128 bits.
        wide: bool,
        /// Who serves a request reports under the span of who sent it.
        shared: bool,
        /// W3C's fields are written, and read where there are none of B3.
        w3c: bool,
    },
}

/// Takes the spans of a provider.
pub struct Tracer {
    /// Its ways.
    pub flavor: Flavor,
    /// What every span of a server says of this proxy.
    pub node: Vec<(&'static str, String)>,
    queue: mpsc::Sender<Box<Span>>,
    dropped: Counter,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("flavor", &self.flavor).finish_non_exhaustive()
    }
}

impl Tracer {
    /// A tracer that keeps at most so many spans until they are taken from the queue that is given with it.
    pub fn new(
        flavor: Flavor,
        node: Vec<(&'static str, String)>,
        capacity: usize,
        dropped: Counter,
    ) -> (Self, mpsc::Receiver<Box<Span>>) {
        let (queue, taken) = mpsc::channel(capacity.max(1));
        (Self { flavor, node, queue, dropped }, taken)
    }

    /// Hands a span over. Never waits: what finds no room is dropped and counted.
    pub fn report(&self, span: Span) {
        if self.queue.try_send(Box::new(span)).is_err() {
            self.dropped.inc();
        }
    }
}

/// What spans are called and what they say beside the usual, by a connection manager or by a route.
#[derive(Debug, Default)]
pub struct Words {
    /// The name of the span, in place of every other.
    pub operation: Option<Format>,
    /// The name of spans of tries.
    pub upstream_operation: Option<Format>,
    /// Further tags.
    pub tags: Vec<Tag>,
}

/// How a connection manager traces.
#[derive(Debug)]
pub struct Settings {
    /// Requests leave the workload.
    pub egress: bool,
    /// Each try has a span of its own.
    pub spawn: bool,
    /// Spans tell the moments of the request.
    pub verbose: bool,
    /// The upstream is told.
    pub propagate: bool,
    /// The most of a path that is told.
    pub longest_path: usize,
    /// Names and tags.
    pub words: Words,
}

/// What is known of a request's span while the request lives.
#[derive(Debug)]
pub struct Trace {
    /// Who gets the spans.
    pub tracer: Arc<Tracer>,
    /// How the connection manager traces.
    pub settings: Arc<Settings>,
    /// What the route adds.
    pub route: Option<Arc<Words>>,
    /// The span's ids.
    pub ids: Ids,
    /// The span before it is another program's.
    pub remote: bool,
    /// `tracestate` as it came.
    pub state: Option<HeaderValue>,
    /// The name that the request or its route gives.
    pub name: RefCell<Option<Arc<str>>>,
    /// Tags whose values were found with the route.
    pub found: Vec<(Arc<str>, String)>,
    /// Tries with spans of their own, in order.
    pub attempts: RefCell<Vec<Attempt>>,
}

/// A try that has a span of its own.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its ids.
    pub ids: Ids,
    /// When it began.
    pub start: Instant,
    /// When it failed, or its answer was whole; none for one whose end the request's is.
    pub end: Option<Instant>,
    /// It was given up: another one followed, or the request went away.
    pub canceled: bool,
    /// The host.
    pub host: Option<SocketAddr>,
    /// The host's version.
    pub protocol: Option<Protocol>,
    /// The status of the answer; 0 for none.
    pub status: u16,
    /// gRPC's status of the answer.
    pub grpc: Option<u32>,
    /// Why there is no answer, in Envoy's words.
    pub reason: Option<&'static str>,
    /// The flag of that.
    pub flags: Flags,
}

impl Trace {
    /// Writes the ids of this span, or of that of a try, for the upstream.
    pub fn inject(&self, ids: &Ids, headers: &mut Headers) {
        match self.tracer.flavor {
            Flavor::OpenTelemetry => {
                ids::write_traceparent(ids, headers);
                let state = self.state.clone().unwrap_or(HeaderValue::from_static(""));
                headers.set_last(ids::TRACESTATE, state);
            }
            Flavor::Zipkin { w3c, .. } => {
                ids::write_b3(ids, headers);
                if w3c {
                    ids::write_traceparent(ids, headers);
                }
            }
        }
    }

    /// A try begins; gives its ids.
    pub fn begin(&self) -> Ids {
        let ids = Ids { span: ids::fresh(), parent: Some(self.ids.span), ..self.ids };
        if ids.sampled {
            self.attempts.borrow_mut().push(Attempt {
                ids,
                start: Instant::now(),
                end: None,
                canceled: true,
                host: None,
                protocol: None,
                status: 0,
                grpc: None,
                reason: None,
                flags: Flags::default(),
            });
        }
        ids
    }

    /// Notes how the last try goes.
    pub fn note(&self, note: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.attempts.borrow_mut().last_mut() {
            note(attempt);
        }
    }

    /// The last try did not come to a host: it is none.
    pub fn forget(&self) {
        self.attempts.borrow_mut().pop();
    }

    /// What logs call the trace.
    pub fn trace_id(&self) -> String {
        match self.tracer.flavor {
            Flavor::OpenTelemetry => format!("{:032x}", self.ids.trace),
            Flavor::Zipkin { .. } => ids::b3_trace(self.ids.trace),
        }
    }

    /// What logs call the span; as in Envoy none where B3's fields are spoken.
    pub fn span_id(&self) -> Option<String> {
        (self.tracer.flavor == Flavor::OpenTelemetry).then(|| format!("{:016x}", self.ids.span))
    }
}

/// A moment of a stream by the wall clock.
pub fn wall(stream: &StreamInfo, at: Instant) -> SystemTime {
    stream.start_time + at.saturating_duration_since(stream.start)
}
