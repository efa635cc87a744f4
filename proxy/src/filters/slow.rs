//! A body at a limited rate, as Envoy's stream rate limiter lets it pass: a slice of a twentieth of a second at a time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use crate::codec::{Body, BodyError, BodyStream, Frame};

const SLICE: Duration = Duration::from_millis(50);
const SLICES: u64 = 20;

/// A body that is held back.
pub struct Slow {
    inner: Body,
    /// Bytes a slice.
    slice: u64,
    /// Bytes that may pass now.
    budget: u64,
    /// When the next slice begins.
    next: Instant,
    /// What was read and may not pass yet.
    rest: Bytes,
    sleep: Pin<Box<Sleep>>,
}

impl Slow {
    /// Holds a body back to so many bytes a second.
    pub fn wrap(body: Body, rate: u64) -> Body {
        if body.is_empty() {
            return body;
        }
        let slice = (rate / SLICES).max(1);
        let next = Instant::now() + SLICE;
        let sleep = Box::pin(tokio::time::sleep_until(next));
        Body::stream(Self { inner: body, slice, budget: slice, next, rest: Bytes::new(), sleep })
    }

    /// Adds what the time that passed lets pass; a second's worth at most.
    fn fill(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let slices = (now - self.next).as_millis() as u64 / SLICE.as_millis() as u64 + 1;
        self.next += SLICE * u32::try_from(slices).unwrap_or(u32::MAX);
        self.budget = (self.budget + slices.min(SLICES) * self.slice).min(SLICES * self.slice);
    }
}

impl BodyStream for Slow {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.rest.is_empty() {
            match self.inner.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.rest = data,
                other => return other,
            }
        }
        loop {
            self.fill();
            if self.budget > 0 {
                let n = self.rest.len().min(usize::try_from(self.budget).unwrap_or(usize::MAX));
                self.budget -= n as u64;
                return Poll::Ready(Some(Ok(Frame::Data(self.rest.split_to(n)))));
            }
            let next = self.next;
            self.sleep.as_mut().reset(next);
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.inner.remaining().map(|n| n + self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_the_time_that_its_rate_says() {
        let start = Instant::now();
        let mut body = Slow::wrap(Body::full(vec![0u8; 2048]), 1024);
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(Frame::Data(data)) = frame else { panic!("{frame:?}") };
            assert!(data.len() <= 1024 / 20);
            length += data.len();
        }
        assert_eq!(length, 2048);
        // 41 slices of 51 bytes, the first of them at once.
        assert_eq!(start.elapsed(), Duration::from_millis(2000));
    }
}
