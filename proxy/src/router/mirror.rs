//! Copies of requests for other clusters, whose answers nobody reads (`request_mirror_policies`).
//!
//! The copy's body is what the first try pulls of the request's, kept until the mirror has taken it. A mirror that falls
//! behind by more than the buffer limit is given up: it must never hold back the request itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::Exchange;
use crate::codec::{Body, BodyError, BodyStream, Frame, RequestHead, ResetReason};
use crate::route::action::Mirror;
use crate::route::hosts::port_at;
use crate::telemetry::access_log::LogContext;

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Default)]
struct Pipe {
    frames: VecDeque<Frame>,
    held: u64,
    ended: bool,
    broken: bool,
    /// The mirror's task is gone.
    closed: bool,
    waker: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Splits a body: the first is the request's own, the others are the mirrors'.
pub fn tee(body: Body, mirrors: usize, limit: u64) -> (Body, Vec<Body>) {
    match body {
        Body::Empty => (Body::Empty, (0..mirrors).map(|_| Body::Empty).collect()),
        Body::Full(bytes) => {
            let copies = (0..mirrors).map(|_| Body::Full(bytes.clone())).collect();
            (Body::Full(bytes), copies)
        }
        source => {
            let pipes: Vec<_> = (0..mirrors).map(|_| Rc::new(RefCell::new(Pipe::default()))).collect();
            let copies = pipes.iter().map(|pipe| Body::stream(Copy(pipe.clone()))).collect();
            (Body::stream(Tee { source, pipes, limit }), copies)
        }
    }
}

/// The copy's head: its authority says that it is one, unless that is switched off.
pub fn head(of: &RequestHead, mirror: &Mirror, exchange: &Exchange) -> RequestHead {
    let mut head = of.clone();
    if !mirror.changes.is_empty() {
        exchange.flow.info(|info| {
            let context = LogContext { request: Some(of), ..LogContext::new(info, &exchange.connection) };
            mirror.changes.apply(&mut head.headers, &context);
        });
    }
    // The copy is a request of this proxy's own.
    head.headers.set(INTERNAL, HeaderValue::from_static("true"));
    let own = crate::io::local::own_address().to_string();
    let list = match head.headers.get(&FORWARDED_FOR) {
        Some(before) => [before.as_bytes(), b",", own.as_bytes()].concat(),
        None => own.into_bytes(),
    };
    if let Ok(list) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
        head.headers.set(FORWARDED_FOR, list);
    }
    if let Some(host) = &mirror.host {
        head.authority = host.clone();
    } else if mirror.suffix {
        let end = port_at(&head.authority).unwrap_or(head.authority.len());
        head.authority = Bytes::from([&head.authority[..end], b"-shadow", &head.authority[end..]].concat());
    }
    head
}

struct Tee {
    source: Body,
    pipes: Vec<Rc<RefCell<Pipe>>>,
    limit: u64,
}

impl BodyStream for Tee {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.source.poll_frame(cx);
        let Poll::Ready(frame) = &polled else { return polled };
        for pipe in &self.pipes {
            let mut pipe = pipe.borrow_mut();
            match frame {
                None => pipe.ended = true,
                Some(Err(_)) => pipe.broken = true,
                Some(Ok(_)) if pipe.closed || pipe.broken => {}
                Some(Ok(Frame::Data(data))) => {
                    pipe.held += data.len() as u64;
                    if pipe.held > self.limit {
                        pipe.broken = true;
                        pipe.frames.clear();
                    } else {
                        pipe.frames.push_back(Frame::Data(data.clone()));
                    }
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    pipe.frames.push_back(Frame::Trailers(trailers.clone()));
                    pipe.ended = true;
                }
            }
            pipe.wake();
        }
        polled
    }

    fn remaining(&self) -> Option<u64> {
        self.source.remaining()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        for pipe in &self.pipes {
            let mut pipe = pipe.borrow_mut();
            pipe.broken |= !pipe.ended && self.source.remaining() != Some(0);
            pipe.ended = true;
            pipe.wake();
        }
    }
}

struct Copy(Rc<RefCell<Pipe>>);

impl BodyStream for Copy {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut pipe = self.0.borrow_mut();
        if pipe.broken {
            let error = BodyError { reason: ResetReason::Local, details: "mirror_abandoned" };
            return Poll::Ready(Some(Err(error)));
        }
        match pipe.frames.pop_front() {
            Some(frame) => {
                if let Frame::Data(data) = &frame {
                    pipe.held -= data.len() as u64;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None if pipe.ended => Poll::Ready(None),
            None => {
                pipe.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.closed = true;
        pipe.frames.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(parts: &[&'static str]) -> Body {
        Body::Frames(parts.iter().map(|p| Frame::Data(Bytes::from_static(p.as_bytes()))).collect())
    }

    async fn read(body: &mut Body) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Frame::Data(data) = frame? {
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_mirror_gets_the_same_bytes_and_one_that_falls_behind_is_given_up() {
        let (mut own, mut copies) = tee(frames(&["ab", "cd"]), 1, 100);
        assert_eq!(read(&mut own).await.unwrap(), b"abcd");
        drop(own);
        assert_eq!(read(&mut copies[0]).await.unwrap(), b"abcd");
        let (mut own, mut copies) = tee(frames(&["ab", "cd"]), 1, 3);
        assert_eq!(read(&mut own).await.unwrap(), b"abcd");
        assert!(read(&mut copies[0]).await.is_err());
    }
}
