//! Bodies of streams: what comes in, with the flow-control window opened as it is taken; and what goes out, as far as the
//! peer's window lets it.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::convert;
use crate::codec::body::{Body, BodyError, BodyStream, Frame};
use crate::codec::meter::Meter;

/// The body of a stream that comes in.
pub(super) struct Incoming {
    stream: RecvStream,
    data_over: bool,
    meter: Option<Rc<Meter>>,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, data_over: false, meter: None }
    }

    /// The same, counted by this meter as far as the connection does not do so itself.
    pub(super) fn measured(self, meter: Option<Rc<Meter>>) -> Self {
        Self { meter, ..self }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let broken =
            |e: h2::Error| BodyError { reason: convert::reset_reason(&e), details: "http2.remote_reset" };
        while !self.data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Pulled is taken: whoever pulls has room for it, or would not pull.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::Data(data))));
                    }
                }
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                    // The peer has answered without needing the rest (RFC 9113, section 8.1).
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => self.data_over = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                let trailers = trailers.map(convert::headers);
                if let (Some(meter), Some(trailers)) = (&self.meter, &trailers) {
                    meter.count(|bytes| bytes.plain_headers_received += convert::plain(trailers));
                }
                Poll::Ready(trailers.map(|trailers| Ok(Frame::Trailers(trailers))))
            }
            Err(error) => Poll::Ready(Some(Err(broken(error)))),
        }
    }
}

impl BodyStream for Incoming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.poll(cx)
    }
}

/// Why sending ended early.
pub(super) enum SendError {
    /// The source broke off; the stream was reset.
    Source(BodyError),
    /// The peer reset the stream, or the connection is gone.
    Stream,
}

/// A body on its way out.
pub(super) struct Outgoing {
    body: Body,
    stream: SendStream<Bytes>,
    waiting: Bytes,
    ended: bool,
    meter: Option<Rc<Meter>>,
}

impl Outgoing {
    /// `ended` says that the head ended the stream.
    pub(super) fn new(body: Body, stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { body, stream, waiting: Bytes::new(), ended, meter: None }
    }

    /// The same, counted by this meter as far as the connection does not do so itself.
    pub(super) fn measured(self, meter: Option<Rc<Meter>>) -> Self {
        Self { meter, ..self }
    }

    /// Ready when all is handed to the connection.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            while !self.waiting.is_empty() {
                self.stream.reserve_capacity(self.waiting.len());
                let room = match self.stream.capacity() {
                    0 => match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(room)) => room,
                        _ => return Poll::Ready(Err(SendError::Stream)),
                    },
                    room => room,
                };
                let piece = self.waiting.split_to(room.min(self.waiting.len()));
                if !piece.is_empty() && self.stream.send_data(piece, false).is_err() {
                    return Poll::Ready(Err(SendError::Stream));
                }
            }
            let frame = match self.body.poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    // While the source is silent, the peer may give up.
                    return match self.stream.poll_reset(cx) {
                        Poll::Ready(_) => Poll::Ready(Err(SendError::Stream)),
                        Poll::Pending => Poll::Pending,
                    };
                }
            };
            match frame {
                Some(Ok(Frame::Data(data))) => self.waiting = data,
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.ended = true;
                    if let Some(meter) = &self.meter {
                        meter.count(|bytes| bytes.plain_headers_sent += convert::plain(&trailers));
                    }
                    if self.stream.send_trailers(convert::map(trailers)).is_err() {
                        return Poll::Ready(Err(SendError::Stream));
                    }
                }
                Some(Err(error)) => {
                    self.stream.send_reset(convert::reason(error.reason));
                    return Poll::Ready(Err(SendError::Source(error)));
                }
                None => {
                    self.ended = true;
                    if self.stream.send_data(Bytes::new(), true).is_err() {
                        return Poll::Ready(Err(SendError::Stream));
                    }
                }
            }
        }
    }

    /// Resets the stream: the peer broke the protocol on it.
    pub(super) fn refuse(&mut self) {
        self.ended = true;
        self.stream.send_reset(Reason::PROTOCOL_ERROR);
    }

    /// Resets the stream if it has not ended.
    pub(super) fn cancel(&mut self) {
        if !self.ended {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
