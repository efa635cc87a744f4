//! The one place where a stream ends.
//!
//! An [`Ending`] exists from the moment a request arrives. It is finished on every end that is known; if it is dropped
//! unfinished, the downstream went away, and that is the only way for it to be dropped so. It writes the record to the
//! access log, to Istio's metrics and to the connection manager's numbers, once. Logs that tell what the stream takes on the wire are
//! written later than that: when the codec has written its last byte.

use std::rc::Rc;
use std::task::{Context, Poll};

use http::HeaderName;

use super::manager::Shared;
use super::recheck::Rechecked;
use super::record::{self, Heads};
use super::trace;
use crate::codec::{Body, BodyError, BodyStream, Frame, Headers, Meter, RequestHead, ResetReason, WireBytes};
use crate::router::attempt::{reset_flag, reset_words};
use crate::router::{self, Expired, Flow, Scratch, Watchdog};
use crate::telemetry::access_log::{LogContext, LogType};
use crate::telemetry::{Flag, StreamInfo, Wire, events};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Guards a stream's end.
pub struct Ending {
    shared: Rc<Shared>,
    flow: Rc<Flow>,
    /// What filters remember.
    pub scratch: Scratch,
    /// The response's fields, kept where logs want them.
    pub response: Option<Headers>,
    trailers: Option<Headers>,
    finished: bool,
    /// Counts what the stream takes on the wire, where logs tell of it.
    meter: Option<Rc<Meter>>,
}

/// What is told of a stream at its end; `fields` are the answer's, and its trailers.
fn context<'a>(
    info: &'a StreamInfo,
    shared: &'a Shared,
    flow: &'a Flow,
    request: Option<&'a RequestHead>,
    (response, trailers): (Option<&'a Headers>, Option<&'a Headers>),
) -> LogContext<'a> {
    LogContext {
        request,
        response,
        trailers,
        occasion: LogType::DownstreamEnd,
        configured: Some(flow),
        ..LogContext::new(info, &shared.connection)
    }
}

/// What logs tell of a stream, until its last byte is written.
struct Later {
    shared: Rc<Shared>,
    flow: Rc<Flow>,
    response: Option<Headers>,
    trailers: Option<Headers>,
}

impl Later {
    fn write(self, downstream: Option<WireBytes>) {
        let kept = self.flow.kept_head.borrow();
        let upstream = self.flow.upstream_meter().and_then(|meter| meter.bytes());
        self.flow.info(|info| {
            info.wire = Some(Box::new(Wire { downstream, upstream }));
            let fields = (self.response.as_ref(), self.trailers.as_ref());
            let context = context(info, &self.shared, &self.flow, kept.as_ref(), fields);
            self.shared.config.logs().iter().for_each(|log| log.log(&context));
        });
    }
}

impl Ending {
    /// For a request that has just come.
    pub fn new(shared: Rc<Shared>, flow: Rc<Flow>, meter: Option<Rc<Meter>>) -> Self {
        let stats = &shared.config.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.add(1);
        Self {
            shared,
            flow,
            scratch: Scratch::default(),
            response: None,
            trailers: None,
            finished: false,
            meter,
        }
    }

    /// The stream ended as it should, with an answer of this status.
    pub fn finish(mut self) {
        self.finished = true;
        self.write();
    }

    fn write(&mut self) {
        let config = &self.shared.config;
        let stats = &config.stats;
        stats.downstream_rq_active.add(-1);
        let kept = self.flow.kept_head.borrow();
        self.flow.info(|info| {
            let took = info.start.elapsed();
            info.took = Some(took);
            info.bytes_received = self.flow.received();
            if info.request_end.is_none() && self.finished {
                stats.downstream_rq_response_before_rq_complete.inc();
            }
            // Who left without an answer was not served.
            if let Some(status) = info.status.filter(|s| !s.is_informational()) {
                stats.downstream_rq_completed.inc();
                stats.status(status);
            }
            stats.downstream_rq_time.record(took.as_secs_f64() * 1000.0);
            let fields = (self.response.as_ref(), self.trailers.as_ref());
            let context = context(info, &self.shared, &self.flow, kept.as_ref(), fields);
            if self.meter.is_none() {
                config.logs().iter().for_each(|log| log.log(&context));
            }
            events::request(info, &self.shared.connection, kept.as_ref());
            if let Some(trace) = &info.trace {
                trace::end(trace, &context);
            }
            config.filters.done(info, &self.shared.connection, &mut self.scratch);
            let heads = Heads { request: kept.as_ref(), response: self.response.as_ref() };
            record::ended(&self.shared.connection, &self.flow, info, &self.scratch, took, heads);
        });
        drop(kept);
        if let Some(meter) = self.meter.take() {
            let later = Later {
                shared: self.shared.clone(),
                flow: self.flow.clone(),
                response: self.response.take(),
                trailers: self.trailers.take(),
            };
            meter.then_in_time(Box::new(move |bytes| later.write(bytes)));
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.flow.info(|i| {
            i.flags.set(Flag::DownstreamConnectionTermination);
            if i.details.as_deref().is_none_or(|d| d == "via_upstream") {
                i.details = Some("downstream_remote_disconnect".into());
            }
        });
        self.shared.config.stats.downstream_rq_rx_reset.inc();
        self.write();
    }
}

/// The whole answer came, if it is an upstream's.
fn came(flow: &Flow) {
    if flow.info(|info| info.upstream_first_byte.is_some()) {
        flow.moment(|trail| &mut trail.answer_came);
    }
}

/// The response's body on its way to the downstream: counts, watches the clocks, and carries the guard.
pub struct ResponseBody {
    inner: Body,
    flow: Rc<Flow>,
    watchdog: Watchdog,
    ending: Option<Ending>,
    /// There was something to wait for.
    waited: bool,
}

impl ResponseBody {
    /// Guards a body. One that is at hand ends the stream here: what remains is the codec's to write.
    pub fn guard(body: Body, flow: &Rc<Flow>, ending: Ending) -> Body {
        flow.moment(|trail| &mut trail.answering);
        if let Body::Empty = body {
            came(flow);
        }
        match body {
            Body::Empty => {
                ending.finish();
                Body::Empty
            }
            Body::Full(bytes) => {
                flow.info(|i| i.bytes_sent = bytes.len() as u64);
                ending.finish();
                Body::Full(bytes)
            }
            inner => Body::stream(Self {
                inner: Rechecked::wrap(inner, &ending.shared, flow),
                flow: flow.clone(),
                watchdog: Watchdog::default(),
                ending: Some(ending),
                waited: false,
            }),
        }
    }

    /// The message is whole.
    fn whole(&mut self, trailers: Option<&Headers>) {
        if self.ending.is_some() {
            router::completed(&self.flow);
            came(&self.flow);
        }
        self.end(trailers);
    }

    fn end(&mut self, trailers: Option<&Headers>) {
        let Some(mut ending) = self.ending.take() else { return };
        if let Some(trailers) = trailers {
            if let Some(status) = trailers.get_str(&GRPC_STATUS).and_then(|s| s.parse().ok()) {
                self.flow.info(|i| i.grpc_status = Some(status));
            }
            let config = &ending.shared.config;
            if !config.logs().is_empty() || config.tracing.is_some() {
                ending.trailers = Some(trailers.clone());
            }
        }
        ending.finish();
    }

    fn expire(&mut self, why: Expired) -> BodyError {
        let stats = self.ending.as_ref().map(|e| e.shared.clone());
        let (flag, details) = match why {
            Expired::Idle => (Some(Flag::StreamIdleTimeout), "stream_idle_timeout"),
            // The flag DT is of connections.
            Expired::MaxDuration => (None, "max_duration_timeout"),
            Expired::Request => (Some(Flag::StreamIdleTimeout), "request_overall_timeout"),
            Expired::Route => (Some(Flag::UpstreamRequestTimeout), "response_timeout"),
            Expired::TryIdle => (Some(Flag::UpstreamRequestTimeout), "upstream_per_try_idle_timeout"),
        };
        self.flow.set_expired(why);
        if let Some(flag) = flag {
            self.flow.flag(flag);
        }
        self.flow.details(details);
        if let (Expired::Route, Some(charge)) = (why, &*self.flow.charge.borrow()) {
            charge.timed_out();
        }
        if let Some(shared) = stats {
            let stats = &shared.config.stats;
            stats.downstream_rq_tx_reset.inc();
            stats.rq_reset_after_downstream_response_started.inc();
            match why {
                Expired::Idle => stats.downstream_rq_idle_timeout.inc(),
                Expired::MaxDuration => stats.downstream_rq_max_duration_reached.inc(),
                Expired::Request => stats.downstream_rq_timeout.inc(),
                Expired::Route | Expired::TryIdle => {}
            }
        }
        self.inner = Body::Empty;
        self.end(None);
        BodyError { reason: ResetReason::Local, details }
    }
}

impl BodyStream for ResponseBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.inner.poll_frame(cx);
        match &polled {
            Poll::Pending => {
                if !std::mem::replace(&mut self.waited, true) {
                    self.flow.shrink_kept();
                }
                if let Poll::Ready(why) = self.watchdog.poll(&self.flow, cx) {
                    let error = self.expire(why);
                    return Poll::Ready(Some(Err(error)));
                }
            }
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                self.flow.touch();
                self.flow.info(|i| i.bytes_sent += data.len() as u64);
                if self.flow.info(|info| info.upstream_first_byte.is_some()) {
                    self.flow.moment(|trail| &mut trail.body_began);
                }
                if self.inner.remaining() == Some(0) {
                    self.whole(None);
                }
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => self.whole(Some(trailers)),
            Poll::Ready(None) => self.whole(None),
            Poll::Ready(Some(Err(error))) => {
                self.flow.flag(reset_flag(error.reason));
                self.flow.details(reset_words(error.reason).2);
                if let Some(ending) = &self.ending {
                    let stats = &ending.shared.config.stats;
                    stats.downstream_rq_tx_reset.inc();
                    stats.rq_reset_after_downstream_response_started.inc();
                }
                // What it took of the upstream's connection is counted by then.
                self.inner = Body::Empty;
                self.end(None);
                // Whose fault it was is told in the log; towards the downstream the fault is not its own.
                if error.reason == ResetReason::ProtocolError {
                    let error = BodyError { reason: ResetReason::Local, ..*error };
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining()
    }
}
