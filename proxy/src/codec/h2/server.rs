//! The downstream side of HTTP/2: a task for the connection and one for each stream, all on the worker's thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::time::Instant;

use super::shared::SharedIo;
use super::transfer::{Incoming, Outgoing};
use super::walk::{Walk, Walked};
use super::{H2Options, convert, keepalive};
use crate::codec::body::Body;
use crate::codec::drain::{Drain, DrainPhase};
use crate::codec::message::{
    ConnectionLimit, Downstream, HttpService, InformationalSink, Reply, Request, ResponseHead,
};
use crate::codec::meter::Meter;
use crate::io::Io;

/// Streams that are counted at once, at least: those that were refused are not open, and may still be known.
const COUNTED: usize = 4096;

/// Serves a connection until it ends, and closes it.
pub async fn serve<S: HttpService>(io: Io, service: Rc<S>, options: H2Options, drain: Drain) {
    let (io, socket) = SharedIo::pair(io);
    let most = usize::try_from(options.max_concurrent_streams).unwrap_or(usize::MAX).saturating_mul(2);
    let walk = service.wants_bytes().then(|| Walk::server(most.max(COUNTED)));
    serve_streams(io, walk, service, options, drain).await;
    // Boxed, so that its buffer is not part of every connection for all its life.
    Box::pin(socket.linger(options.delayed_close)).await;
}

async fn serve_streams<S: HttpService>(
    io: SharedIo,
    walk: Option<Rc<RefCell<Walk>>>,
    service: Rc<S>,
    options: H2Options,
    mut drain: Drain,
) {
    let io = Walked::new(io, walk.clone());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(options.max_head_bytes);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake::<Walked<SharedIo>, Bytes>(io).await else { return };
    let active = Rc::new(Active {
        streams: Cell::new(0),
        since: Cell::new(Instant::now()),
        ended: Cell::new(0),
        premature: Cell::new(0),
    });
    // Boxed, for most connections have no use for it.
    let asks = options.keepalive.map(|k| (connection.ping_pong(), k));
    let mut lost = asks.map(|(ping, k)| Box::pin(keepalive::lost(ping, Some(k))));
    let mut number = 0;
    let mut draining = false;
    let opened = Instant::now();
    loop {
        let idle = async {
            match options.idle_timeout {
                None => std::future::pending().await,
                // Streams that end meanwhile move the moment; the loop comes back here and looks again.
                Some(limit) => tokio::time::sleep_until(active.since.get() + limit).await,
            }
        };
        let aged = async {
            match options.longest {
                Some(longest) if !draining => tokio::time::sleep_until(opened + longest).await,
                _ => std::future::pending().await,
            }
        };
        let closing = async {
            // One GOAWAY is enough; the streams under way then finish.
            if draining { std::future::pending().await } else { drain.reached(DrainPhase::Draining).await }
        };
        let lost = async {
            match &mut lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The peer is gone; the streams learn of it by themselves.
            () = lost => return,
            accepted = connection.accept() => match accepted {
                // Who opens streams only to reset them has the work done for nothing (CVE-2023-44487).
                Some(Ok(_)) if active.is_flood() => {
                    service.ending(ConnectionLimit::Resets);
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    // What is left to say is said, if the peer takes it soon.
                    let told = poll_fn(|cx| connection.poll_closed(cx));
                    let _ = tokio::time::timeout(options.delayed_close, told).await;
                    return;
                }
                Some(Ok((request, respond))) => {
                    let counting = |walk: &Rc<RefCell<Walk>>| walk.borrow().meter(respond.stream_id().into());
                    let measured = walk.as_ref().map(|walk| counting(walk).unwrap_or_else(uncounted));
                    let asked = (request, number, measured);
                    let task = stream(asked, respond, service.clone(), Busy::new(&active));
                    tokio::task::spawn_local(task);
                    number += 1;
                }
                // A connection error; the streams learn of it by themselves.
                Some(Err(_)) | None => return,
            },
            () = closing => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = aged => {
                service.ending(ConnectionLimit::Age);
                draining = true;
                connection.graceful_shutdown();
            }
            () = idle => {
                let over = options.idle_timeout.is_some_and(|t| active.since.get().elapsed() >= t);
                if over && active.streams.get() == 0 {
                    if !draining {
                        service.ending(ConnectionLimit::Idle);
                    }
                    draining = true;
                    active.since.set(Instant::now());
                    connection.graceful_shutdown();
                } else if active.streams.get() > 0 {
                    active.since.set(Instant::now());
                }
            }
        }
    }
}

struct Active {
    streams: Cell<u64>,
    since: Cell<Instant>,
    /// Streams that have ended.
    ended: Cell<u64>,
    /// Those of them that the peer reset before there was an answer, within [`MATURE`] of their beginning.
    premature: Cell<u64>,
}

impl Active {
    /// Envoy's rule: half of the streams ended so, or so many that it cannot be less than half at the count that it judges by.
    fn is_flood(&self) -> bool {
        self.premature.get() * 2 >= self.ended.get().max(JUDGED)
    }
}

/// How long a stream must have lived to be ended by a reset in earnest (`overload.premature_reset_min_stream_lifetime_seconds`).
const MATURE: Duration = Duration::from_secs(1);
/// How many streams a judgement takes (`overload.premature_reset_total_stream_count`).
const JUDGED: u64 = 500;

/// Counts a stream while it lives, and how it ended.
struct Busy {
    active: Rc<Active>,
    began: Instant,
    /// An answer began.
    answered: bool,
}

impl Busy {
    fn new(active: &Rc<Active>) -> Self {
        active.streams.set(active.streams.get() + 1);
        Self { active: active.clone(), began: Instant::now(), answered: false }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let (active, now) = (&self.active, Instant::now());
        active.streams.set(active.streams.get() - 1);
        active.since.set(now);
        active.ended.set(active.ended.get() + 1);
        if !self.answered && now - self.began < MATURE {
            active.premature.set(active.premature.get() + 1);
        }
    }
}

/// A meter that knows nothing, of a stream that was over before it was looked at.
fn uncounted() -> Rc<Meter> {
    let meter = Meter::default();
    meter.blind();
    meter.end();
    Rc::new(meter)
}

async fn stream<S: HttpService>(
    (request, number, meter): (http::Request<RecvStream>, u64, Option<Rc<Meter>>),
    mut respond: SendResponse<Bytes>,
    service: Rc<S>,
    mut busy: Busy,
) {
    let (parts, body) = request.into_parts();
    let head = match convert::request_head(parts) {
        Ok(head) => head,
        Err(reason) => {
            busy.answered = true;
            return respond.send_reset(reason);
        }
    };
    if let Some(meter) = &meter {
        meter.count(|bytes| bytes.plain_headers_received += convert::plain_request(&head));
    }
    let body = match body.is_end_stream() {
        true => Body::Empty,
        false => Body::stream(Incoming::new(body).measured(meter.clone())),
    };
    let informational = Rc::new(Informational::default());
    let downstream =
        Downstream { informational: informational.clone(), stream: number, meter: meter.clone() };
    let reply = {
        let mut call = pin!(service.call(Request { head, body }, downstream));
        poll_fn(|cx| {
            let polled = call.as_mut().poll(cx);
            for head in informational.heads.take() {
                count_response(meter.as_deref(), &head);
                // Fails only when the stream is gone, which shows next.
                let _ = respond.send_informational(convert::response(head));
            }
            match polled {
                Poll::Ready(reply) => Poll::Ready(Some(reply)),
                Poll::Pending => respond.poll_reset(cx).map(|_| None),
            }
        })
        .await
    };
    informational.closed.set(true);
    let Some(Reply { head, body, reset, .. }) = reply else { return };
    busy.answered = true;
    if let Some(reset) = reset {
        return respond.send_reset(convert::reason(reset));
    }
    let ended = body.is_empty();
    count_response(meter.as_deref(), &head);
    let Ok(send) = respond.send_response(convert::response(head), ended) else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    let mut outgoing = Outgoing::new(body, send, ended).measured(meter);
    // Its errors are told by the stream itself: a source that broke off has reset it.
    let _ = poll_fn(|cx| outgoing.poll_send(cx)).await;
}

/// Counts a head that is about to be compressed.
fn count_response(meter: Option<&Meter>, head: &ResponseHead) {
    if let Some(meter) = meter {
        meter.count(|bytes| bytes.plain_headers_sent += convert::plain_response(&head.headers));
    }
}

#[derive(Default)]
struct Informational {
    heads: RefCell<Vec<ResponseHead>>,
    closed: Cell<bool>,
}

impl InformationalSink for Informational {
    fn send(&self, head: ResponseHead) {
        if !self.closed.get() {
            self.heads.borrow_mut().push(head);
        }
    }
}
