//! A connection's bytes: the stream with its read and write buffers, and the body that comes in on it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunked::{Chunked, Decoded};
use super::encode::{self, Output};
use super::parse::{self, Framing};
use crate::codec::body::{Body, BodyError, Frame};
use crate::codec::message::ResetReason;
use crate::codec::meter::Meter;
use crate::io::{Io, scratch};

/// A piece of a body up to this size is copied behind what waits to be written; a larger one is written by itself.
const COPY: usize = 8 * 1024;
/// No more is taken from a source while this much waits to be written.
const HIGH: usize = 64 * 1024;

/// The body that comes in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// It is over.
    Done,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    /// It broke off; further reads say so again.
    Broken(BodyError),
}

impl Incoming {
    pub(super) fn new(framing: Framing, max_head: usize) -> Self {
        match framing {
            Framing::None => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Chunked::new(max_head)),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

/// The stream and its buffers.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) io: Io,
    pub(super) read: BytesMut,
    pub(super) write: BytesMut,
    /// A large piece that goes out after `write`.
    large: Bytes,
    /// What follows the large piece.
    after: &'static [u8],
    pub(super) read_closed: bool,
    needs_flush: bool,
    /// What waits to be written has waited for its turn.
    due: bool,
    /// Bytes that were ever read from the stream, and written to it.
    filled: u64,
    flushed: u64,
    /// Counts the request that is under way, where somebody wants to know.
    meter: Option<Rc<Meter>>,
    /// How much had been taken from the buffer that is read, and put into the one that is written, when it was last told.
    told: (u64, u64),
}

impl Transport {
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            write: BytesMut::new(),
            large: Bytes::new(),
            after: b"",
            read_closed: false,
            needs_flush: false,
            due: false,
            filled: 0,
            flushed: 0,
            meter: None,
            told: (0, 0),
        }
    }

    /// Bytes that were taken, and bytes that were put out, since the beginning.
    fn positions(&self) -> (u64, u64) {
        let waiting = self.write.len() + self.large.len() + self.after.len();
        (self.filled - self.read.len() as u64, self.flushed + waiting as u64)
    }

    /// A message begins here: what comes and goes from now on is of the request that is [measured](Self::measure) next.
    pub(super) fn mark(&mut self) {
        self.told = self.positions();
    }

    /// Counts from the last mark on with this meter.
    pub(super) fn measure(&mut self, meter: Rc<Meter>) {
        self.meter = Some(meter);
    }

    /// Who counts.
    pub(super) fn meter(&self) -> Option<&Rc<Meter>> {
        self.meter.as_ref()
    }

    /// Tells the meter what came and went. `incoming` says how much of what is read ahead is of the same message.
    pub(super) fn tell(&mut self, incoming: &Incoming) {
        let Some(meter) = &self.meter else { return };
        let ahead = match incoming {
            Incoming::Done => 0,
            Incoming::Length(left) => (*left).min(self.read.len() as u64),
            // Nobody can tell yet; if the message ends before it, that is told later.
            Incoming::Chunked(_) | Incoming::UntilClose | Incoming::Broken(_) => self.read.len() as u64,
        };
        let (taken, put) = self.positions();
        let (taken, told) = (taken + ahead, self.told);
        meter.count(|bytes| {
            bytes.received = (bytes.received + taken).saturating_sub(told.0);
            bytes.sent += put - told.1;
        });
        self.told = (taken, put);
    }

    /// The same for the last time: the exchange is over. Gives back who counted.
    pub(super) fn stop_measuring(&mut self, incoming: &Incoming) -> Option<Rc<Meter>> {
        self.tell(incoming);
        self.meter.take()
    }

    /// Reads once into the buffer; 0 at the end. The bytes go by way of the worker's scratch, so that a connection holds no
    /// more than what came, and an idle one nothing.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_closed {
            return Poll::Ready(Ok(0));
        }
        let Self { io, read, filled, .. } = self;
        let polled = scratch::poll_read(io, cx, |bytes, _| {
            read.extend_from_slice(bytes);
            *filled += bytes.len() as u64;
        });
        if matches!(polled, Poll::Ready(Ok(0))) {
            self.read_closed = true;
        }
        polled
    }

    /// Whether something waits to be written.
    pub(super) fn has_output(&self) -> bool {
        !self.write.is_empty() || !self.large.is_empty() || !self.after.is_empty() || self.needs_flush
    }

    /// Whether more of a body should be taken before writing: a head and a small body leave in one write.
    pub(super) fn wants_more(&self) -> bool {
        self.large.is_empty() && self.write.len() < HIGH
    }

    /// Writes what waits. Ready when all is written and flushed.
    ///
    /// The first write of a message lets the worker's other ready tasks go first: what they have to write then goes out
    /// together with this, and a peer on the same machine is woken once for many messages and not for each.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.due && self.has_output() {
            self.due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let n = if !self.write.is_empty() && !self.large.is_empty() && self.io.is_write_vectored() {
                let slices = [io::IoSlice::new(&self.write), io::IoSlice::new(&self.large)];
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
            } else if !self.write.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.write))?
            } else if !self.large.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.large))?
            } else if !self.after.is_empty() {
                self.write.extend_from_slice(self.after);
                self.after = b"";
                continue;
            } else {
                break;
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.needs_flush = true;
            self.flushed += n as u64;
            let of_write = n.min(self.write.len());
            bytes::Buf::advance(&mut self.write, of_write);
            bytes::Buf::advance(&mut self.large, n - of_write);
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.needs_flush = false;
        }
        self.due = false;
        if self.write.capacity() > COPY {
            self.write = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame of the body that comes in.
    pub(super) fn poll_body(
        &mut self,
        incoming: &mut Incoming,
        trailers: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            match incoming {
                Incoming::Done => return Poll::Ready(None),
                Incoming::Broken(error) => return Poll::Ready(Some(Err(*error))),
                Incoming::Length(left) if !self.read.is_empty() => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(self.read.len());
                    *left -= n as u64;
                    if *left == 0 {
                        *incoming = Incoming::Done;
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(self.read.split_to(n).freeze()))));
                }
                Incoming::UntilClose if !self.read.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::Data(self.read.split().freeze()))));
                }
                Incoming::Chunked(decoder) => match decoder.decode(&mut self.read) {
                    Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                    Ok(Decoded::End(fields)) => {
                        *incoming = Incoming::Done;
                        let fields = fields.filter(|_| trailers);
                        if let (Some(meter), Some(fields)) = (&self.meter, &fields) {
                            meter.count(|bytes| bytes.headers_received += parse::trailer_bytes(fields));
                        }
                        return Poll::Ready(fields.map(|f| Ok(Frame::Trailers(f))));
                    }
                    Ok(Decoded::Incomplete) => {}
                    Err(_) => {
                        *incoming = Incoming::Broken(BodyError {
                            reason: ResetReason::ProtocolError,
                            details: "http1.codec_error",
                        });
                        continue;
                    }
                },
                Incoming::Length(_) | Incoming::UntilClose => {}
            }
            match ready!(self.poll_fill(cx)) {
                Ok(n) if n > 0 => {}
                Ok(_) if matches!(incoming, Incoming::UntilClose) => {
                    *incoming = Incoming::Done;
                }
                _ => {
                    *incoming = Incoming::Broken(BodyError {
                        reason: ResetReason::ConnectionTermination,
                        details: "connection_termination",
                    });
                }
            }
        }
    }

    /// Whether the stream has ended or has bytes to read, without waiting; what is read stays in the buffer.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.read_closed {
            return Poll::Ready(());
        }
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                self.read.extend_from_slice(buffer.filled());
                self.filled += buffer.filled().len() as u64;
                Poll::Ready(())
            }
            Poll::Ready(_) => {
                self.read_closed = true;
                Poll::Ready(())
            }
        }
    }
}

/// A body on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Body,
    output: Output,
    trailers: bool,
    ended: bool,
}

/// Why a body did not go out.
#[derive(Debug)]
pub(super) enum SendError {
    /// Its source broke off.
    Source(BodyError),
    /// The connection broke.
    Write,
}

impl Outgoing {
    pub(super) fn new(body: Body, output: Output, trailers: bool) -> Self {
        let ended = match output {
            // What is not sent may still break off.
            Output::None => !matches!(body, Body::Stream(_)),
            Output::Raw => body.is_empty(),
            Output::Chunked => false,
        };
        Self { body, output, trailers, ended }
    }

    /// Whether everything has been taken from the source (it may still wait to be written).
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Moves frames to the transport and writes. Ready when the body is out and flushed.
    pub(super) fn poll_send(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            // Take what is at hand before writing, so that a head and a small body leave in one write.
            while !self.ended && transport.wants_more() {
                match self.body.poll_frame(cx) {
                    Poll::Pending => {
                        return match transport.poll_flush(cx) {
                            Poll::Ready(Err(_)) => Poll::Ready(Err(SendError::Write)),
                            _ => Poll::Pending,
                        };
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.ended = true;
                        return Poll::Ready(Err(SendError::Source(error)));
                    }
                    Poll::Ready(frame) => self.put(frame.and_then(Result::ok), transport),
                }
            }
            ready!(transport.poll_flush(cx)).map_err(|_| SendError::Write)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The source, to be polled while the transport is not borrowed; it must be put back.
    pub(super) fn take_source(&mut self) -> Option<Body> {
        (!self.ended).then(|| std::mem::take(&mut self.body))
    }

    /// Puts the source back.
    pub(super) fn put_source(&mut self, body: Body) {
        self.body = body;
    }

    /// Moves one frame, or the end, to the transport's buffers.
    pub(super) fn put(&mut self, frame: Option<Frame>, transport: &mut Transport) {
        let chunked = self.output == Output::Chunked;
        match frame {
            Some(Frame::Data(data)) => {
                if data.is_empty() || self.output == Output::None {
                    return;
                }
                if chunked {
                    encode::chunk_start(data.len(), &mut transport.write);
                }
                if data.len() <= COPY {
                    transport.write.extend_from_slice(&data);
                    if chunked {
                        transport.write.extend_from_slice(b"\r\n");
                    }
                } else {
                    transport.large = data;
                    transport.after = if chunked { b"\r\n" } else { b"" };
                }
            }
            other => {
                let trailers = match &other {
                    Some(Frame::Trailers(trailers)) if self.trailers => Some(trailers),
                    _ => None,
                };
                if chunked {
                    let before = transport.write.len();
                    encode::last_chunk(trailers, &mut transport.write);
                    if let (Some(meter), Some(_)) = (&transport.meter, trailers) {
                        encode::count_fields(meter, &transport.write[before..]);
                    }
                }
                self.ended = true;
                self.body = Body::Empty;
            }
        }
    }
}
