//! The record and the clocks of one stream, shared by its request body, its response body and whoever handles it.
//!
//! All of them run on one task of one thread, so cells suffice. The record is read once, when the stream ends.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use xds_protos::prost_types::Struct;

use super::charge::Charge;
use crate::cluster::Cluster;
use crate::codec::{Body, BodyError, BodyStream, Frame, Meter, Protocol, RequestHead};
use crate::io::Alarm;
use crate::route::Matched;
use crate::state::Slot;
use crate::telemetry::access_log::{Configured, Of, Wanted};
use crate::telemetry::record::Trail;
use crate::telemetry::{Details, Flag, StreamInfo};

/// A stream's record and clocks.
pub struct Flow {
    info: RefCell<StreamInfo>,
    /// When the request's last byte came.
    request_end: Cell<Option<Instant>>,
    received: Cell<u64>,
    /// When anything last moved; kept only where an idle timeout is set.
    active: Cell<Option<Instant>>,
    idle: Cell<Option<Duration>>,
    max_duration: Cell<Option<Duration>>,
    request_timeout: Cell<Option<Duration>>,
    route_timeout: Cell<Option<Duration>>,
    try_idle: Cell<Option<Duration>>,
    waker: RefCell<Option<Waker>>,
    expired: Cell<Option<Expired>>,
    broken: Cell<Option<BodyError>>,
    /// The request is on its way to an upstream.
    sending: Cell<bool>,
    /// The scheme that goes upstream follows the upstream's transport.
    pub scheme_of_upstream: Cell<bool>,
    /// Who counts what becomes of the request, once it is on its way to a cluster; nobody for copies and requests of our own.
    pub charge: RefCell<Option<Charge>>,
    /// The route: answers of our own to its requests are changed by it, and the record of requests tells it.
    pub route: RefCell<Option<Matched>>,
    /// The cluster that the request goes to, for the record of requests.
    pub cluster: RefCell<Option<Arc<Slot<Cluster>>>>,
    /// The request's head as it went upstream, or as it was when it was answered here, where logs want it.
    pub kept_head: RefCell<Option<RequestHead>>,
    keep: RefCell<Keep>,
    /// The head of the last try was given to the codec.
    handed: Cell<bool>,
    /// Moments on the way are noted that only some logs tell.
    moments: Cell<bool>,
    /// What is kept of the request for whoever looks at the stream again later.
    pub standing: RefCell<Option<Box<dyn Any>>>,
    /// Counts what goes to upstreams and comes from them, where a log tells of it.
    upstream_meter: OnceCell<Rc<Meter>>,
}

/// What is kept of a request's head until the stream ends.
enum Keep {
    Nothing,
    /// What logs speak of; more where that costs less.
    Fields(Arc<Wanted>),
    Whole,
}

/// Why a stream took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// Nothing moved for the stream idle timeout.
    Idle,
    /// The stream's longest duration is over.
    MaxDuration,
    /// The request was not complete in time.
    Request,
    /// The route's timeout for the whole answer.
    Route,
    /// The upstream's answer paused for longer than the retry policy's idle timeout for a try.
    TryIdle,
}

impl Flow {
    /// A stream that starts now.
    pub fn new(info: StreamInfo) -> Self {
        Self {
            info: RefCell::new(info),
            request_end: Cell::new(None),
            received: Cell::new(0),
            active: Cell::new(None),
            idle: Cell::new(None),
            max_duration: Cell::new(None),
            request_timeout: Cell::new(None),
            route_timeout: Cell::new(None),
            try_idle: Cell::new(None),
            waker: RefCell::new(None),
            expired: Cell::new(None),
            broken: Cell::new(None),
            sending: Cell::new(false),
            charge: RefCell::new(None),
            route: RefCell::new(None),
            cluster: RefCell::new(None),
            scheme_of_upstream: Cell::new(false),
            kept_head: RefCell::new(None),
            keep: RefCell::new(Keep::Nothing),
            handed: Cell::new(false),
            moments: Cell::new(false),
            standing: RefCell::new(None),
            upstream_meter: OnceCell::new(),
        }
    }

    /// Reads or changes the record. Must not be called from within itself.
    pub fn info<R>(&self, f: impl FnOnce(&mut StreamInfo) -> R) -> R {
        f(&mut self.info.borrow_mut())
    }

    /// Has those fields of the head kept that logs speak of.
    pub fn keep_for_logs(&self, wanted: Arc<Wanted>) {
        *self.keep.borrow_mut() = Keep::Fields(wanted);
    }

    /// Has moments on the way noted that only some logs tell.
    pub fn note_moments(&self) {
        self.moments.set(true);
    }

    /// Notes one, where that is wanted: the first of its kind stands.
    pub fn moment(&self, of: impl FnOnce(&mut Trail) -> &mut Option<Instant>) {
        if self.moments.get() {
            self.info(|i| _ = of(&mut i.trail).get_or_insert_with(Instant::now));
        }
    }

    /// Has the bytes counted that upstreams get and send.
    pub fn measure_upstreams(&self) {
        let _ = self.upstream_meter.set(Rc::default());
    }

    /// Who counts them.
    pub fn upstream_meter(&self) -> Option<&Rc<Meter>> {
        self.upstream_meter.get()
    }

    /// Has the whole head kept.
    pub fn keep_whole(&self) {
        *self.keep.borrow_mut() = Keep::Whole;
    }

    /// Whether anything of the head is to be kept.
    pub fn keeps(&self) -> bool {
        !matches!(*self.keep.borrow(), Keep::Nothing)
    }

    /// Whether the workload's description is among what is kept.
    pub fn keeps_description(&self) -> bool {
        match &*self.keep.borrow() {
            Keep::Nothing => false,
            Keep::Fields(wanted) => wanted.request.have_description(),
            Keep::Whole => true,
        }
    }

    /// A try begins: its head is not sent yet.
    pub fn begin_try(&self) {
        self.handed.set(false);
    }

    /// Whatever is kept stays, and the try's own head is not kept.
    pub fn keep_no_other(&self) {
        self.handed.set(true);
    }

    /// Keeps what is wanted of the head of a request that goes upstream now, where sending uses the head up.
    pub fn keep_copy(&self, head: &RequestHead) {
        self.handed.set(true);
        let kept = match &*self.keep.borrow() {
            Keep::Nothing => return,
            Keep::Fields(wanted) => wanted.of_request(head),
            Keep::Whole => head.clone(),
        };
        *self.kept_head.borrow_mut() = Some(kept);
    }

    /// Keeps the head of a request that went upstream, if anything of it is wanted. Nothing is copied: more than logs speak of
    /// does no harm.
    pub fn keep_sent(&self, head: RequestHead) {
        self.handed.set(true);
        if self.keeps() {
            *self.kept_head.borrow_mut() = Some(head);
        }
    }

    /// Keeps the head of the last try, which was not sent, if anything of it is wanted.
    pub fn keep_unsent(&self, head: &mut RequestHead) {
        if self.keeps() && !self.handed.get() {
            let empty = RequestHead::empty(head.protocol);
            *self.kept_head.borrow_mut() = Some(std::mem::replace(head, empty));
        }
    }

    /// Leaves of a kept head what is wanted: its stream will live for a while, and there may be many such.
    pub fn shrink_kept(&self) {
        if let (Keep::Fields(wanted), Some(kept)) = (&*self.keep.borrow(), &mut *self.kept_head.borrow_mut())
        {
            *kept = wanted.of_request(kept);
        }
    }

    /// Keeps the head of a request that goes no further, for logs and events that have none yet.
    pub fn keep(&self, head: &mut RequestHead) {
        if self.kept_head.borrow().is_none() {
            let empty = RequestHead::empty(head.protocol);
            *self.kept_head.borrow_mut() = Some(std::mem::replace(head, empty));
        }
    }

    /// Sets a flag.
    pub fn flag(&self, flag: Flag) {
        self.info(|i| i.flags.set(flag));
    }

    /// Sets the response code detail.
    pub fn details(&self, details: impl Into<Details>) {
        self.info(|i| i.details = Some(details.into()));
    }

    /// The request's last byte came.
    pub fn end_request(&self) {
        if self.request_end.get().is_none() {
            self.end_request_at(Instant::now());
        }
    }

    fn end_request_at(&self, now: Instant) {
        if self.request_end.get().is_none() {
            self.request_end.set(Some(now));
            self.info(|i| {
                i.request_end = Some(now);
                if self.sending.get() {
                    i.request_sent = Some(now);
                }
                i.bytes_received = self.received.get();
            });
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The request is being sent to an upstream, by this version.
    pub fn sending(&self, protocol: Protocol) {
        self.sending.set(true);
        let ready = self.moments.get().then(Instant::now);
        self.info(|i| {
            i.trail.ready = ready;
            i.upstream_protocol = Some(protocol);
            if i.request_end.is_some() {
                i.request_sent = Some(Instant::now());
            }
        });
    }

    /// When the request's last byte came.
    pub fn request_end(&self) -> Option<Instant> {
        self.request_end.get()
    }

    /// Wakes this task when the request's last byte came.
    pub fn wake_on_end(&self, waker: &Waker) {
        *self.waker.borrow_mut() = Some(waker.clone());
    }

    /// Why the stream is being given up, for those who are dropped for it.
    pub fn expired(&self) -> Option<Expired> {
        self.expired.get()
    }

    /// Says why the stream is being given up.
    pub fn set_expired(&self, why: Expired) {
        self.expired.set(Some(why));
    }

    /// How the request's body broke off, if it did: what follows from it is not the upstream's doing.
    pub fn broken(&self) -> Option<BodyError> {
        self.broken.get()
    }

    /// The request's body is found out to be broken, by whoever reads it.
    pub fn breaks_off(&self, error: BodyError) {
        self.broken.set(Some(error));
    }

    /// Body bytes that came from the downstream.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Something moved.
    pub fn touch(&self) {
        if self.idle.get().is_some() || self.try_idle.get().is_some() {
            self.active.set(Some(Instant::now()));
        }
    }

    /// Sets the idle timeout; zero or none for no limit.
    pub fn set_idle(&self, timeout: Option<Duration>) {
        self.idle.set(timeout.filter(|t| !t.is_zero()));
    }

    /// Sets the longest duration from the stream's start.
    pub fn set_max_duration(&self, limit: Option<Duration>) {
        self.max_duration.set(limit.filter(|t| !t.is_zero()));
    }

    /// Sets the time for the request to be complete.
    pub fn set_request_timeout(&self, limit: Option<Duration>) {
        self.request_timeout.set(limit.filter(|t| !t.is_zero()));
    }

    /// Sets the time for the whole answer, from the request's end.
    pub fn set_route_timeout(&self, limit: Option<Duration>) {
        self.route_timeout.set(limit.filter(|t| !t.is_zero()));
    }

    /// Sets the longest pause in the upstream's answer once it has begun.
    pub fn set_try_idle(&self, limit: Option<Duration>) {
        self.try_idle.set(limit.filter(|t| !t.is_zero()));
        self.touch();
    }

    /// The first limit to be reached and when, if nothing moves.
    fn next(&self) -> Option<(Instant, Expired)> {
        let start = self.info.borrow().start;
        let active = self.active.get().unwrap_or(start);
        let end = self.request_end.get();
        [
            self.idle.get().map(|d| (active + d, Expired::Idle)),
            self.max_duration.get().map(|d| (start + d, Expired::MaxDuration)),
            self.request_timeout.get().filter(|_| end.is_none()).map(|d| (start + d, Expired::Request)),
            self.route_timeout.get().and_then(|d| Some((end? + d, Expired::Route))),
            self.try_idle.get().map(|d| (active + d, Expired::TryIdle)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }
}

/// The one timer of a stream, for its next limit. A connection hands its alarm from stream to stream.
#[derive(Default)]
pub struct Watchdog {
    /// The timer.
    pub alarm: Alarm,
}

impl Watchdog {
    /// Ready when a limit of the flow is reached.
    pub fn poll(&mut self, flow: &Flow, cx: &mut Context<'_>) -> Poll<Expired> {
        if flow.request_end().is_none() {
            // The end of the request sets a limit.
            *flow.waker.borrow_mut() = Some(cx.waker().clone());
        }
        match flow.next() {
            Some((at, why)) => self.alarm.poll(at, cx).map(|()| why),
            None => Poll::Pending,
        }
    }
}

/// A request's body that keeps the flow informed.
pub struct RequestBody {
    inner: Body,
    flow: Rc<Flow>,
}

impl RequestBody {
    /// Wraps a body; an empty one ends the request at once and stays empty.
    pub fn wrap(body: Body, flow: &Rc<Flow>) -> Body {
        match body {
            Body::Empty => {
                // It ended with its head, which came just now.
                let start = flow.info(|i| i.start);
                flow.end_request_at(start);
                Body::Empty
            }
            Body::Full(bytes) => {
                flow.received.set(bytes.len() as u64);
                flow.end_request();
                Body::Full(bytes)
            }
            other => Body::stream(Self { inner: other, flow: flow.clone() }),
        }
    }
}

impl BodyStream for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.inner.poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(error))) => self.flow.broken.set(Some(*error)),
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                self.flow.received.set(self.flow.received.get() + data.len() as u64);
                self.flow.touch();
                if self.inner.remaining() == Some(0) {
                    self.flow.end_request();
                }
            }
            Poll::Ready(None | Some(Ok(Frame::Trailers(_)))) => self.flow.end_request(),
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
}

impl Configured for Flow {
    fn namespace(&self, of: Of, stream: &StreamInfo, namespace: &str) -> Option<Struct> {
        if let Of::Route | Of::VirtualHost = of {
            let matched = self.route.borrow();
            let matched = matched.as_ref()?;
            let metadata = match of {
                Of::Route => &matched.route().metadata,
                _ => &matched.virtual_host().metadata,
            };
            return metadata.as_ref()?.namespace(namespace).cloned();
        }
        let cluster = self.cluster.borrow().as_ref()?.get()?;
        cluster.namespace(of, stream, namespace)
    }

    fn host_name(&self, address: SocketAddr) -> Option<Arc<str>> {
        self.cluster.borrow().as_ref()?.get()?.host_name(address)
    }

    fn stat_name(&self) -> Option<Arc<str>> {
        self.cluster.borrow().as_ref()?.get()?.stat_name()
    }
}
