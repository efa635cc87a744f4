//! The downstream side of HTTP/1: one task reads heads, calls the service, writes replies.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::H1Options;
use super::encode::{self, Answering};
use super::parse::{self, Framing, ParsedRequest, Refused};
use super::transport::{Incoming, Outgoing, Transport};
use crate::codec::body::{Body, BodyError, BodyStream, Frame};
use crate::codec::drain::{Drain, DrainPhase};
use crate::codec::message::{
    ConnectionLimit, Downstream, HttpService, InformationalSink, Protocol, Reply, Request, ResetReason,
    ResponseHead,
};
use crate::codec::meter::Meter;
use crate::codec::spelling::KeyFormat;
use crate::io::{Alarm, Io};

/// What a downstream connection goes by.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Limits and manners.
    pub h1: H1Options,
    /// How long a connection may be without a request (`common_http_protocol_options.idle_timeout`).
    pub idle_timeout: Option<Duration>,
    /// How long a head may take from its first byte (`request_headers_timeout`).
    pub head_timeout: Option<Duration>,
    /// The connection is TLS: the scheme of its requests is https.
    pub tls: bool,
    /// How long to wait for the peer's end after ours (`delayed_close_timeout`).
    pub delayed_close: Duration,
    /// How long an idle connection still takes a request, whose answer then ends it (`drain_timeout`): one may be on its way
    /// when the idle timeout is over.
    pub drain_timeout: Duration,
    /// How long a connection may be open before it ends in the same way (`max_connection_duration`).
    pub longest: Option<Duration>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            h1: H1Options::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            head_timeout: None,
            tls: false,
            delayed_close: Duration::from_secs(1),
            drain_timeout: Duration::ZERO,
            longest: None,
        }
    }
}

/// What the connection's task and its request's body and 1xx sink share. Borrowed only within a poll.
struct Shared {
    transport: Transport,
    incoming: Incoming,
    trailers: bool,
    keys: KeyFormat,
    /// An upgrade was asked for and not granted yet: bytes that come are not this body's.
    held: bool,
    /// The final head is out; later 1xx are dropped.
    answered: bool,
    /// The connection has idled for too long: its next answer is its last.
    idled: bool,
}

impl Shared {
    /// Has a meter count from the last mark on; `fields` are the bytes of those that came.
    fn measure(&mut self, fields: u64) -> Rc<Meter> {
        let meter = Rc::new(Meter::default());
        meter.count(|bytes| {
            bytes.headers_received = fields;
            bytes.plain_headers_received = fields;
        });
        self.transport.measure(meter.clone());
        self.transport.tell(&self.incoming);
        meter
    }

    /// The exchange is over, and everything of it is written that will be.
    fn stop_measuring(&mut self) -> Option<Rc<Meter>> {
        self.transport.stop_measuring(&self.incoming)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The connection is given up in the middle of an exchange.
        if let Some(meter) = self.stop_measuring() {
            meter.end();
        }
    }
}

enum Next {
    Request(Box<ParsedRequest>),
    Refused(Refused),
    Closed,
}

/// Serves a connection until it ends.
pub async fn serve<S: HttpService>(io: Io, service: Rc<S>, options: ServerOptions, drain: Drain) {
    let shared = Rc::new(RefCell::new(Shared {
        transport: Transport::new(io),
        incoming: Incoming::Done,
        trailers: options.h1.enable_trailers,
        keys: options.h1.keys,
        held: false,
        answered: false,
        idled: false,
    }));
    let mut stream = 0;
    let aged = options.longest.map(|t| Instant::now() + t);
    let mut closes = drain.clone();
    // One wait for the end and one timer for all requests: making them anew for each would cost more than they do.
    let mut closing = pin!(closes.reached(DrainPhase::Closing));
    let mut alarm = Alarm::default();
    let measured = service.wants_bytes();
    loop {
        let mut came = measured.then_some(0);
        if measured {
            shared.borrow_mut().transport.mark();
        }
        let comes =
            next(&shared, &*service, &options, aged, closing.as_mut(), &mut alarm, came.as_mut()).await;
        let goes_on = match comes {
            Next::Request(parsed) => {
                exchange(&shared, &service, *parsed, (stream, came), &options, &drain).await
            }
            Next::Refused(refused) => {
                let Refused { status, details } = refused;
                let meter = came.map(|came| {
                    let mut shared = shared.borrow_mut();
                    // What came behind it is never looked at.
                    shared.incoming = Incoming::UntilClose;
                    shared.measure(came)
                });
                let reply = service.bad_request(status, details, Protocol::Http11, meter);
                answer(&shared, reply, &Method::GET, Protocol::Http11, false, &drain).await;
                false
            }
            Next::Closed => return,
        };
        let meter = if measured { shared.borrow_mut().stop_measuring() } else { None };
        if let Some(meter) = meter {
            meter.end();
        }
        if !goes_on {
            return linger(&shared, options.delayed_close).await;
        }
        stream += 1;
    }
}

/// Waits for the next request's head.
async fn next<S: HttpService>(
    shared: &RefCell<Shared>,
    service: &S,
    options: &ServerOptions,
    aged: Option<Instant>,
    mut closing: Pin<&mut impl Future<Output = ()>>,
    alarm: &mut Alarm,
    mut came: Option<&mut u64>,
) -> Next {
    let mut began = None;
    let idle = options.idle_timeout.map(|t| Instant::now() + t);
    let mut idle_end = [idle, aged].into_iter().flatten().min();
    loop {
        {
            let transport = &mut shared.borrow_mut().transport;
            match parse::request(&mut transport.read, &options.h1, options.tls, came.as_deref_mut()) {
                Ok(Some(parsed)) => return Next::Request(Box::new(parsed)),
                Ok(None) => {}
                Err(refused) => return Next::Refused(refused),
            }
            if !transport.read.is_empty() && began.is_none() {
                began = Some(Instant::now());
            }
        }
        let fill = poll_fn(|cx| {
            if began.is_none() && closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(0));
            }
            shared.borrow_mut().transport.poll_fill(cx)
        });
        let head_end = began.and_then(|b| options.head_timeout.map(|t| b + t));
        let end = if began.is_some() { head_end } else { idle_end };
        let mut fill = pin!(fill);
        let filled = poll_fn(|cx| match (fill.as_mut().poll(cx), end) {
            (Poll::Ready(filled), _) => Poll::Ready(Some(filled)),
            (Poll::Pending, Some(end)) => alarm.poll(end.into_std(), cx).map(|()| None),
            (Poll::Pending, None) => Poll::Pending,
        });
        match filled.await {
            Some(Ok(n)) if n > 0 => {}
            None if began.is_some() => {
                return Next::Refused(Refused {
                    status: StatusCode::REQUEST_TIMEOUT,
                    details: "request_header_timeout",
                });
            }
            None if !shared.borrow().idled => {
                let old = aged.is_some_and(|end| end <= Instant::now());
                service.ending(if old { ConnectionLimit::Age } else { ConnectionLimit::Idle });
                if options.drain_timeout.is_zero() {
                    return Next::Closed;
                }
                shared.borrow_mut().idled = true;
                idle_end = Some(Instant::now() + options.drain_timeout);
            }
            _ => return Next::Closed,
        }
    }
}

/// One request and its reply; true if the connection can take another.
async fn exchange<S: HttpService>(
    shared: &Rc<RefCell<Shared>>,
    service: &Rc<S>,
    parsed: ParsedRequest,
    (stream, came): (u64, Option<u64>),
    options: &ServerOptions,
    drain: &Drain,
) -> bool {
    let ParsedRequest { head, framing, keep_alive } = parsed;
    let tunnel = head.upgrade.is_some() || head.method == Method::CONNECT;
    let meter = {
        let mut shared = shared.borrow_mut();
        // A tunnel's bytes begin when it is granted.
        let framing = if tunnel && framing == Framing::None { Framing::UntilClose } else { framing };
        shared.incoming = Incoming::new(framing, options.h1.max_head_bytes);
        shared.held = tunnel;
        shared.answered = false;
        came.map(|came| shared.measure(came))
    };
    let body = match (tunnel, framing) {
        (false, Framing::None) => Body::Empty,
        _ => Body::stream(RequestBody(shared.clone())),
    };
    let (method, protocol) = (head.method.clone(), head.protocol);
    let downstream = Downstream { informational: Rc::new(Informational(shared.clone())), stream, meter };
    let reply = {
        let mut call = pin!(service.clone().call(Request { head, body }, downstream));
        poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending => watch(&mut shared.borrow_mut(), cx).map(|()| None),
        })
        .await
    };
    // No reply: the downstream has gone, and with the future dropped everybody knows.
    let Some(reply) = reply else { return false };
    answer(shared, reply, &method, protocol, keep_alive, drain).await
}

/// While the service works, or an answer's source is silent: sends what there is, and is ready when the downstream has gone.
fn watch(shared: &mut Shared, cx: &mut Context<'_>) -> Poll<()> {
    if shared.transport.has_output() && matches!(shared.transport.poll_flush(cx), Poll::Ready(Err(_))) {
        return Poll::Ready(());
    }
    // The request's body broke off: nobody is there to be answered.
    if matches!(&shared.incoming, Incoming::Broken(error) if error.reason == ResetReason::ConnectionTermination)
    {
        return Poll::Ready(());
    }
    // Bytes of the next request in the buffer mean that the peer is there; more are not read before it is their turn.
    let body_over = matches!(shared.incoming, Incoming::Done) || shared.held;
    if body_over
        && shared.transport.read.is_empty()
        && shared.transport.poll_closed(cx).is_ready()
        && shared.transport.read_closed
    {
        return Poll::Ready(());
    }
    Poll::Pending
}

/// Writes a reply; true if the connection can take another request.
async fn answer(
    shared: &Rc<RefCell<Shared>>,
    reply: Reply,
    method: &Method,
    protocol: Protocol,
    keep_alive: bool,
    drain: &Drain,
) -> bool {
    if reply.reset.is_some() {
        return false;
    }
    let mut to = Answering {
        method,
        protocol,
        close: reply.close || !keep_alive || drain.phase() >= DrainPhase::Draining,
        bodiless: reply.body.is_empty(),
        keys: shared.borrow().keys,
    };
    let granted = reply.head.status == StatusCode::SWITCHING_PROTOCOLS
        || (*method == Method::CONNECT && reply.head.status.is_success());
    to.close |= !granted && !encode::self_delimiting(&reply.head, &to);
    let mut outgoing = {
        let mut shared = shared.borrow_mut();
        shared.answered = true;
        shared.held &= !granted;
        // A request that is not whole is not waited for: nobody wants the rest. (What follows a refused upgrade may be
        // bytes of the other protocol.)
        to.close |= shared.idled || (!granted && !matches!(shared.incoming, Incoming::Done));
        let trailers = shared.trailers;
        let transport = &mut shared.transport;
        let before = transport.write.len();
        let output = encode::response(&reply.head, &to, &mut transport.write);
        if let Some(meter) = transport.meter() {
            encode::count_fields(meter, &transport.write[before..]);
        }
        Outgoing::new(reply.body, output, trailers)
    };
    let sent = poll_fn(|cx| {
        // The body's source may be the very connection that we write to (a tunnel's other direction reads from it), so it
        // is polled with nothing borrowed.
        send(shared, &mut outgoing, cx)
    })
    .await;
    let shared = shared.borrow();
    sent && !to.close && !granted && matches!(shared.incoming, Incoming::Done)
}

/// One step of sending; ready with whether the whole reply went out.
fn send(shared: &Rc<RefCell<Shared>>, outgoing: &mut Outgoing, cx: &mut Context<'_>) -> Poll<bool> {
    loop {
        // What waits to be written comes before what the source gives next.
        let mut wants_more = shared.borrow().transport.wants_more();
        while wants_more && !outgoing.is_ended() {
            let Some(mut body) = outgoing.take_source() else { break };
            let polled = body.poll_frame(cx);
            outgoing.put_source(body);
            match polled {
                Poll::Pending => {
                    let flushed = shared.borrow_mut().transport.poll_flush(cx);
                    // Nobody is there any more for what the source may yet give.
                    return match (flushed, watch(&mut shared.borrow_mut(), cx)) {
                        (Poll::Ready(Err(_)), _) | (_, Poll::Ready(())) => Poll::Ready(false),
                        _ => Poll::Pending,
                    };
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(frame) => {
                    let transport = &mut shared.borrow_mut().transport;
                    outgoing.put(frame.and_then(Result::ok), transport);
                    wants_more = transport.wants_more();
                }
            }
        }
        match shared.borrow_mut().transport.poll_flush(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Ready(Ok(())) if outgoing.is_ended() => return Poll::Ready(true),
            Poll::Ready(Ok(())) => {}
        }
    }
}

/// Ends our side, then waits a little for the peer's end: closing at once would reset the connection while the peer may not
/// have read the last answer (RFC 9112, section 9.6).
async fn linger(shared: &RefCell<Shared>, limit: Duration) {
    let end = Instant::now() + limit;
    let flush = poll_fn(|cx| shared.borrow_mut().transport.poll_flush(cx));
    if !matches!(timeout_at(end, flush).await, Ok(Ok(()))) {
        return;
    }
    let shutdown = poll_fn(|cx| {
        let io = &mut shared.borrow_mut().transport.io;
        tokio::io::AsyncWrite::poll_shutdown(std::pin::Pin::new(io), cx)
    });
    if !matches!(timeout_at(end, shutdown).await, Ok(Ok(()))) {
        return;
    }
    let mut discarded = 0;
    while discarded < 1024 * 1024 {
        shared.borrow_mut().transport.read = BytesMut::new();
        let fill = poll_fn(|cx| shared.borrow_mut().transport.poll_fill(cx));
        match timeout_at(end, fill).await {
            Ok(Ok(n)) if n > 0 => discarded += n,
            _ => return,
        }
    }
}

struct RequestBody(Rc<RefCell<Shared>>);

impl BodyStream for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let shared = &mut *self.0.borrow_mut();
        if shared.held {
            // Whoever grants the upgrade polls on: it is the same task.
            return Poll::Pending;
        }
        shared.transport.poll_body(&mut shared.incoming, shared.trailers, cx)
    }

    fn remaining(&self) -> Option<u64> {
        match self.0.borrow().incoming {
            Incoming::Done => Some(0),
            Incoming::Length(n) => Some(n),
            _ => None,
        }
    }
}

struct Informational(Rc<RefCell<Shared>>);

impl InformationalSink for Informational {
    fn send(&self, head: ResponseHead) {
        let mut shared = self.0.borrow_mut();
        if !shared.answered {
            let keys = shared.keys;
            let transport = &mut shared.transport;
            let before = transport.write.len();
            encode::informational(&head, keys, &mut transport.write);
            if let Some(meter) = transport.meter() {
                encode::count_fields(meter, &transport.write[before..]);
            }
        }
    }
}
