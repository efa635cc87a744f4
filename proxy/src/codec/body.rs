//! Bodies: frames that the receiver pulls. Back-pressure is not pulling.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::headers::Headers;
use super::message::ResetReason;

/// As much as is read of a body that nobody wants, in bytes.
const DISCARDED: usize = 64 * 1024;

/// One piece of a body.
#[derive(Debug)]
pub enum Frame {
    /// Bytes; never empty.
    Data(Bytes),
    /// Trailers; the last frame.
    Trailers(Headers),
}

/// A body that ended before it was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("body ended early: {reason:?} ({details})")]
pub struct BodyError {
    /// Why.
    pub reason: ResetReason,
    /// Envoy's response code detail where it has one, else a word of ours; static so that errors cost nothing.
    pub details: &'static str,
}

/// A source of frames. Implemented by codecs, by the replay body and by guards that wrap another body.
pub trait BodyStream {
    /// The next frame; `None` at the end. Not called again after `None`, trailers or an error.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>>;

    /// The bytes still to come, where known (content-length).
    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// A message body.
#[derive(Default)]
pub enum Body {
    /// No body: the head ends the message.
    #[default]
    Empty,
    /// The whole body is at hand.
    Full(Bytes),
    /// Frames at hand, in order (a local reply with trailers, a replayed body).
    Frames(VecDeque<Frame>),
    /// Frames to be pulled.
    Stream(Box<dyn BodyStream>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Body::Empty"),
            Self::Full(b) => write!(f, "Body::Full({} bytes)", b.len()),
            Self::Frames(q) => write!(f, "Body::Frames({})", q.len()),
            Self::Stream(_) => f.write_str("Body::Stream"),
        }
    }
}

impl Body {
    /// A body of these bytes; no body if there are none.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }

    /// A body pulled from `stream`.
    pub fn stream(stream: impl BodyStream + 'static) -> Self {
        Self::Stream(Box::new(stream))
    }

    /// Whether the message is known to have no (further) body frame.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// The bytes still to come, where known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(b) => Some(b.len() as u64),
            Self::Frames(_) => None,
            Self::Stream(s) => s.remaining(),
        }
    }

    /// The next frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::Data(bytes))))
            }
            Self::Frames(queue) => {
                let frame = queue.pop_front();
                Poll::Ready(frame.map(Ok))
            }
            Self::Stream(stream) => {
                let polled = stream.poll_frame(cx);
                if matches!(polled, Poll::Ready(None | Some(Err(_)) | Some(Ok(Frame::Trailers(_))))) {
                    // What the stream holds (a pooled connection, a guard) is let go at the end, not when the body is.
                    *self = Self::Empty;
                }
                polled
            }
        }
    }

    /// Reads what has come already and lets go of it, for a request that gets no further: a small one has come whole by then, and
    /// whoever else reads it gets it. It does not wait.
    pub async fn discard_ready(&mut self) {
        let mut left = DISCARDED;
        poll_fn(|cx| {
            while left > 0
                && let Poll::Ready(Some(Ok(Frame::Data(data)))) = self.poll_frame(cx)
            {
                left = left.saturating_sub(data.len());
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The next frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Result<Frame, BodyError>> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }
}
