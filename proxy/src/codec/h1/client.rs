//! The upstream side of HTTP/1: one request at a time on a connection that comes back when it is clean.
//!
//! No task of its own: whoever waits for the reply drives the sending, and whoever pulls the reply's body drives what is left
//! of the request's.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::{Method, StatusCode};

use super::H1Options;
use super::encode;
use super::parse::{self, Framing, ParsedResponse};
use super::transport::{Incoming, Outgoing, SendError, Transport};
use crate::codec::body::{Body, BodyError, BodyStream, Frame};
use crate::codec::message::{
    InformationalSink, Progress, Protocol, Release, Reply, Request, RequestHead, ResetReason, UpstreamError,
};
use crate::codec::meter::Meter;
use crate::io::Io;

/// An idle upstream connection. It goes from hand to hand with every request, so it is small.
#[derive(Debug)]
pub struct Connection(Box<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Transport,
    options: H1Options,
    requests: u64,
}

impl Connection {
    /// A connection over a fresh stream.
    pub fn new(io: Io, options: H1Options) -> Self {
        Self(Box::new(Inner { transport: Transport::new(io), options, requests: 0 }))
    }

    /// How many requests it has served.
    pub fn requests(&self) -> u64 {
        self.0.requests
    }

    /// The stream beneath, for its addresses.
    pub fn io(&self) -> &Io {
        &self.0.transport.io
    }

    /// Whether the peer has ended it, or sent what nobody asked for, while it was idle. Costs no system call while nothing
    /// has come.
    pub fn is_dead(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.0.transport.read.is_empty() || self.0.transport.poll_closed(&mut cx).is_ready()
    }

    /// Ready when the peer ends it while it is idle.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.transport.read.is_empty() { self.0.transport.poll_closed(cx) } else { Poll::Ready(()) }
    }

    /// The same connection, whose next exchange is counted.
    #[must_use]
    pub fn measured(mut self, meter: Option<Rc<Meter>>) -> Self {
        if let Some(meter) = meter {
            self.0.transport.mark();
            self.0.transport.measure(meter);
        }
        self
    }

    /// Sends a request and waits for the head of its reply, handing 1xx heads to `sink`. `release` gets the connection back
    /// when the reply's body has been read (or at once, if there is none), or learns that it is gone. `written` gets the
    /// request's head as soon as its bytes are made, which nobody needs here then.
    pub async fn send(
        self,
        request: Request,
        sink: Option<Rc<dyn InformationalSink>>,
        release: Release<Connection>,
        written: impl FnOnce(RequestHead),
    ) -> Result<Reply, UpstreamError> {
        let Request { head, body } = request;
        let mut exchange = Exchange {
            connection: Some(self.0),
            outgoing: Outgoing::new(Body::Empty, encode::Output::None, false),
            sent: false,
            write_failed: false,
            incoming: Incoming::Done,
            keep_alive: false,
            tunnel: false,
            asked_upgrade: false,
            half_close: head.protocol == Protocol::Http2,
            held: false,
            release: Some(release),
        };
        let method = head.method.clone();
        exchange.asked_upgrade = head.upgrade.is_some();
        exchange.held = exchange.asked_upgrade && !head.headers.contains(&http::header::CONTENT_LENGTH);
        if let Some(connection) = &mut exchange.connection {
            connection.requests += 1;
            let Inner { transport, options, .. } = &mut **connection;
            let before = transport.write.len();
            let output = encode::request(&head, body.is_empty(), options, &mut transport.write);
            if let Some(meter) = transport.meter() {
                encode::count_fields(meter, &transport.write[before..]);
            }
            exchange.outgoing = Outgoing::new(body, output, connection.options.enable_trailers);
        }
        written(head);
        let parsed = poll_fn(|cx| exchange.poll_head(&method, sink.as_deref(), cx)).await?;
        let ParsedResponse { head, framing, keep_alive } = parsed;
        exchange.keep_alive = keep_alive;
        exchange.tunnel = framing == Framing::UntilClose
            && (head.status == StatusCode::SWITCHING_PROTOCOLS || method == Method::CONNECT);
        if std::mem::take(&mut exchange.held) && !exchange.tunnel {
            // Nobody wants the bytes of the protocol that was refused, and the request will not be whole.
            exchange.sent = true;
            exchange.write_failed = true;
        }
        exchange.incoming = Incoming::new(framing, exchange.max_head());
        let body = if framing == Framing::None {
            exchange.finish();
            Body::Empty
        } else {
            Body::stream(exchange)
        };
        Ok(Reply { head, body, close: false, reset: None })
    }
}

/// A request and its reply under way. Dropped before its end, it takes the connection with it.
struct Exchange {
    connection: Option<Box<Inner>>,
    outgoing: Outgoing,
    sent: bool,
    write_failed: bool,
    incoming: Incoming,
    keep_alive: bool,
    tunnel: bool,
    /// The request asked for an upgrade, so that 101 is an answer to it.
    asked_upgrade: bool,
    /// The downstream may end its own side of a tunnel and still be there.
    half_close: bool,
    /// What follows the head of such a request is of the other protocol: it waits until that is granted.
    held: bool,
    release: Option<Release<Connection>>,
}

impl Exchange {
    fn max_head(&self) -> usize {
        self.connection.as_ref().map_or(0, |c| c.options.max_head_bytes)
    }

    /// Sends what can be sent. An error is the request's own source breaking off.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if self.sent {
            return Ok(());
        }
        if self.held {
            if let Poll::Ready(Err(_)) = connection.transport.poll_flush(cx) {
                self.sent = true;
                self.write_failed = true;
            }
            return Ok(());
        }
        match self.outgoing.poll_send(&mut connection.transport, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.sent = true,
            Poll::Ready(Err(SendError::Source(error))) => return Err(error),
            Poll::Ready(Err(SendError::Write)) => {
                // The upstream may have answered before it stopped reading; the answer is read first.
                self.sent = true;
                self.write_failed = true;
            }
        }
        Ok(())
    }

    fn poll_head(
        &mut self,
        method: &Method,
        sink: Option<&dyn InformationalSink>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ParsedResponse, UpstreamError>> {
        let fail = |reason, progress, details| Poll::Ready(Err(UpstreamError { reason, progress, details }));
        if let Err(error) = self.poll_request(cx) {
            return fail(error.reason, Progress::Sent, error.details);
        }
        let Some(connection) = &mut self.connection else {
            return fail(ResetReason::Local, Progress::Unsent, "connection_released");
        };
        loop {
            let transport = &mut connection.transport;
            let mut came = transport.meter().is_some().then_some(0);
            let parsed = parse::response(&mut transport.read, &connection.options, method, came.as_mut());
            if let (Some(meter), Some(came)) = (transport.meter(), came) {
                meter.count(|bytes| {
                    bytes.headers_received += came;
                    bytes.plain_headers_received += came;
                });
            }
            match parsed {
                Ok(Some(parsed))
                    if parsed.head.status.is_informational()
                        && parsed.head.status != StatusCode::SWITCHING_PROTOCOLS =>
                {
                    if let Some(sink) = sink {
                        sink.send(parsed.head);
                    }
                }
                // Nobody would know what the bytes behind it are.
                Ok(Some(parsed))
                    if parsed.head.status == StatusCode::SWITCHING_PROTOCOLS && !self.asked_upgrade =>
                {
                    return fail(ResetReason::ProtocolError, Progress::Answering, "http/1.1 protocol error");
                }
                Ok(Some(parsed)) => return Poll::Ready(Ok(parsed)),
                Ok(None) => match connection.transport.poll_fill(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    // A head that ends in the middle is a broken one; a connection that is reset there is a broken one too.
                    Poll::Ready(Ok(_)) if !connection.transport.read.is_empty() => {
                        return fail(
                            ResetReason::ProtocolError,
                            Progress::Answering,
                            "http/1.1 protocol error",
                        );
                    }
                    Poll::Ready(_) => {
                        let progress = match connection.transport.read.is_empty() {
                            true => Progress::Sent,
                            false => Progress::Answering,
                        };
                        return fail(ResetReason::ConnectionTermination, progress, "connection termination");
                    }
                },
                Err(details) => return fail(ResetReason::ProtocolError, Progress::Answering, details),
            }
        }
    }

    /// The exchange is over for whoever counts it.
    fn stop_measuring(&mut self) {
        if let Some(connection) = &mut self.connection {
            // Nothing else comes on it meanwhile.
            connection.transport.stop_measuring(&Incoming::UntilClose);
        }
    }

    /// Gives the connection back if both messages ended cleanly.
    fn finish(&mut self) {
        let Some(release) = self.release.take() else { return };
        self.stop_measuring();
        let clean = self.sent
            && !self.write_failed
            && self.keep_alive
            && !self.tunnel
            && self
                .connection
                .as_ref()
                .is_some_and(|c| c.transport.read.is_empty() && !c.transport.read_closed);
        let connection = self.connection.take();
        release(connection.filter(|_| clean).map(Connection));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop_measuring();
        self.connection = None;
        if let Some(release) = self.release.take() {
            release(None);
        }
    }
}

impl BodyStream for Exchange {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Err(error) = self.poll_request(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        if self.tunnel && self.sent && !self.half_close {
            // Our side of the tunnel has ended; HTTP/1 has no half-close of its own, as in Envoy.
            self.finish();
            return Poll::Ready(None);
        }
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        let trailers = connection.options.enable_trailers;
        let framed = matches!(self.incoming, Incoming::Length(_) | Incoming::Chunked(_));
        let polled = connection.transport.poll_body(&mut self.incoming, trailers, cx);
        // A body whose last byte has been given is over: the connection need not wait for somebody to ask for more.
        if matches!(polled, Poll::Ready(None | Some(Ok(_)))) && matches!(self.incoming, Incoming::Done) {
            self.finish();
        }
        match polled {
            // A body whose end is known and does not come breaks the protocol, as Envoy sees it.
            Poll::Ready(Some(Err(error))) if framed && error.reason == ResetReason::ConnectionTermination => {
                let reason = ResetReason::ProtocolError;
                Poll::Ready(Some(Err(BodyError { reason, details: "http/1.1 protocol error" })))
            }
            polled => polled,
        }
    }

    fn remaining(&self) -> Option<u64> {
        match self.incoming {
            Incoming::Done => Some(0),
            Incoming::Length(n) => Some(n),
            _ => None,
        }
    }
}
