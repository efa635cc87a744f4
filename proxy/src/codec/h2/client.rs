//! The upstream side of HTTP/2: a handle that many streams share on one thread, and a task that drives the connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};

use super::transfer::{Incoming, Outgoing, SendError};
use super::walk::{Walk, Walked};
use super::{H2Options, convert, keepalive};
use crate::codec::body::{Body, BodyError, BodyStream, Frame};
use crate::codec::message::{
    InformationalSink, Progress, Reply, Request, ResetReason, ResponseHead, UpstreamError,
};
use crate::codec::meter::{self, Meter};
use crate::io::Io;

/// A shared connection. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    state: Rc<State>,
    /// Counts the next exchange of this handle.
    meter: Option<Rc<Meter>>,
}

#[derive(Debug, Default)]
struct State {
    streams: Cell<usize>,
    total: Cell<u64>,
    closed: Cell<bool>,
    /// Counts frames, where a log wanted that when the connection was made.
    walk: Option<Rc<RefCell<Walk>>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Connection {
    /// Speaks the preface and spawns the connection's task on this thread's local runtime. Ready when the preface is
    /// written; the peer's settings come in their own time.
    pub async fn new(io: Io, options: H2Options) -> Result<Self, UpstreamError> {
        Self::over(io, options, meter::is_wished()).await
    }

    /// The same; `counts`: frames are counted.
    pub(super) async fn over(io: Io, options: H2Options, counts: bool) -> Result<Self, UpstreamError> {
        let walk = counts.then(Walk::client);
        let handshake = h2::client::Builder::new()
            .initial_window_size(options.stream_window)
            .initial_connection_window_size(options.connection_window)
            .max_header_list_size(options.max_head_bytes)
            .enable_push(false)
            .handshake::<Walked<Io>, Bytes>(Walked::new(io, walk.clone()))
            .await;
        let (send, connection) = handshake.map_err(|e| UpstreamError {
            reason: convert::reset_reason(&e),
            progress: Progress::Unsent,
            details: "connection termination",
        })?;
        let state = Rc::new(State { walk, ..State::default() });
        let closed = state.clone();
        tokio::task::spawn_local(async move {
            let mut connection = connection;
            let ping = options.keepalive.and_then(|_| connection.ping_pong());
            tokio::select! {
                // How it ended is told to each stream.
                _ = &mut connection => {}
                () = keepalive::lost(ping, options.keepalive) => {}
            }
            closed.closed.set(true);
        });
        Ok(Self { send, state, meter: None })
    }

    /// The same connection for an exchange that is counted.
    #[must_use]
    pub fn measured(mut self, meter: Option<Rc<Meter>>) -> Self {
        if let (Some(meter), None) = (&meter, &self.state.walk) {
            meter.blind();
        }
        self.meter = meter;
        self
    }

    /// Streams under way.
    pub fn active(&self) -> usize {
        self.state.streams.get()
    }

    /// Streams ever begun.
    pub fn requests(&self) -> u64 {
        self.state.total.get()
    }

    /// Whether it has ended, or was told to go away and takes no new stream.
    pub fn is_dead(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.state.closed.get() || matches!(self.send.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// How many streams the peer lets us have at once.
    pub fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Sends a request and waits for the head of its reply. `done` is called once, when the stream is over.
    pub async fn send(
        &self,
        request: Request,
        sink: Option<Rc<dyn InformationalSink>>,
        done: Box<dyn FnOnce()>,
    ) -> Result<Reply, UpstreamError> {
        let mut guard = Guard::new(&self.state, done);
        let fail = |reason, progress, details| UpstreamError { reason, progress, details };
        let mut send = self.send.clone();
        poll_fn(|cx| send.poll_ready(cx))
            .await
            .map_err(|e| fail(convert::reset_reason(&e), Progress::Unsent, "connection termination"))?;
        let Request { head, mut body } = request;
        let to_head = head.method == http::Method::HEAD;
        let ended = body.is_empty();
        if let Some(meter) = &self.meter {
            meter.count(|bytes| bytes.plain_headers_sent += convert::plain_request(&head));
        }
        let Some(request) = convert::request(head) else {
            // As if the peer had refused it, which it would: trying again does not help. Whoever else reads the body, such as a
            // mirror, gets what has come of it.
            body.discard_ready().await;
            return Err(fail(ResetReason::ProtocolError, Progress::Sent, "http2.invalid_request_head"));
        };
        let (response, stream) = send
            .send_request(request, ended)
            .map_err(|e| fail(convert::reset_reason(&e), Progress::Unsent, "connection termination"))?;
        if let (Some(meter), Some(walk)) = (&self.meter, &self.state.walk) {
            // Its first frame is written when the connection's task runs.
            let number = u32::from(response.stream_id());
            walk.borrow_mut().begin(number, meter.clone());
            guard.counted = Some(number);
        }
        let mut outgoing = Outgoing::new(body, stream, ended).measured(self.meter.clone());
        let mut exchange = Waiting { response, sent: ended, broken: None, meter: self.meter.clone() };
        let result = poll_fn(|cx| exchange.poll(&mut outgoing, sink.as_deref(), cx)).await;
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                outgoing.cancel();
                return Err(error);
            }
        };
        let (parts, stream) = response.into_parts();
        let head = convert::response_head(parts);
        count_response(self.meter.as_deref(), &head);
        let status = head.status;
        let bodiless =
            to_head || status == http::StatusCode::NO_CONTENT || status == http::StatusCode::NOT_MODIFIED;
        let body = match stream.is_end_stream() && exchange.sent {
            true => Body::Empty,
            false => Body::stream(Receiving {
                incoming: Incoming::new(stream).measured(self.meter.clone()),
                outgoing,
                sent: exchange.sent,
                bodiless,
                over: false,
                _guard: guard,
            }),
        };
        Ok(Reply { head, body, close: false, reset: None })
    }
}

/// Counts a stream, and says when it is over.
struct Guard {
    state: Rc<State>,
    done: Option<Box<dyn FnOnce()>>,
    /// The stream's number, where it is counted.
    counted: Option<u32>,
}

/// Counts a head that was decompressed.
fn count_response(meter: Option<&Meter>, head: &ResponseHead) {
    if let Some(meter) = meter {
        meter.count(|bytes| bytes.plain_headers_received += convert::plain_response(&head.headers));
    }
}

impl Guard {
    fn new(state: &Rc<State>, done: Box<dyn FnOnce()>) -> Self {
        state.streams.set(state.streams.get() + 1);
        state.total.set(state.total.get() + 1);
        Self { state: state.clone(), done: Some(done), counted: None }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get() - 1);
        if let (Some(number), Some(walk)) = (self.counted, &self.state.walk) {
            walk.borrow_mut().forget(number);
        }
        if let Some(done) = self.done.take() {
            done();
        }
    }
}

struct Waiting {
    response: ResponseFuture,
    sent: bool,
    broken: Option<BodyError>,
    meter: Option<Rc<Meter>>,
}

impl Waiting {
    fn poll(
        &mut self,
        outgoing: &mut Outgoing,
        sink: Option<&dyn InformationalSink>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<h2::RecvStream>, UpstreamError>> {
        if !self.sent {
            match outgoing.poll_send(cx) {
                Poll::Pending => {}
                // A stream that cannot be written to may still have been answered.
                Poll::Ready(Ok(()) | Err(SendError::Stream)) => self.sent = true,
                Poll::Ready(Err(SendError::Source(error))) => {
                    self.sent = true;
                    self.broken = Some(error);
                }
            }
        }
        if let Some(BodyError { reason, details }) = self.broken {
            return Poll::Ready(Err(UpstreamError { reason, progress: Progress::Sent, details }));
        }
        while let Poll::Ready(Some(Ok(head))) = self.response.poll_informational(cx) {
            let head = convert::response_head(head.into_parts().0);
            count_response(self.meter.as_deref(), &head);
            if let Some(sink) = sink {
                sink.send(head);
            }
        }
        std::pin::Pin::new(&mut self.response).poll(cx).map_err(|error| {
            let reason = convert::reset_reason(&error);
            // What was refused was not processed (RFC 9113, section 8.7).
            let progress =
                if reason == ResetReason::RemoteRefused { Progress::Unsent } else { Progress::Sent };
            let details = match reason {
                ResetReason::ConnectionTermination => "connection termination",
                ResetReason::ProtocolError => "protocol error",
                _ => "remote reset",
            };
            UpstreamError { reason, progress, details }
        })
    }
}

/// A reply's body, and what is left of its request's.
struct Receiving {
    incoming: Incoming,
    outgoing: Outgoing,
    sent: bool,
    /// Such an answer has no body, whatever the peer sends (RFC 9110, section 6.4.1).
    bodiless: bool,
    over: bool,
    _guard: Guard,
}

impl BodyStream for Receiving {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if !self.sent {
            match self.outgoing.poll_send(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(()) | Err(SendError::Stream)) => self.sent = true,
                Poll::Ready(Err(SendError::Source(error))) => return Poll::Ready(Some(Err(error))),
            }
        }
        let polled = self.incoming.poll(cx);
        if self.bodiless && matches!(polled, Poll::Ready(Some(Ok(Frame::Data(_))))) {
            self.over = true;
            self.outgoing.refuse();
            let (reason, details) = (ResetReason::ProtocolError, "protocol error");
            return Poll::Ready(Some(Err(BodyError { reason, details })));
        }
        self.over |= matches!(polled, Poll::Ready(None | Some(Err(_) | Ok(Frame::Trailers(_)))));
        polled
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // An answer that nobody reads on, or that came before the whole request was sent.
        if !self.over || !self.sent {
            self.outgoing.cancel();
        }
    }
}
