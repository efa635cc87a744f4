//! Counts the frames of an HTTP/2 connection by stream.
//!
//! The h2 crate does not tell what its frames take, so this stands between it and the stream of bytes, and looks at the head of each
//! frame that goes by (RFC 9113, section 4.1). It exists only where a log wants to know; without it there is one test for each read
//! and write.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::codec::meter::Meter;

/// A frame's head.
const HEAD: usize = 9;
/// What a client sends before its first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
/// Envoy's own, which it does not count.
const METADATA: u8 = 0x4d;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame that has gone by whole.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// With its head.
    length: u64,
}

impl Frame {
    fn of(head: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s, t, u, v] = head;
        Self {
            kind,
            flags,
            stream: u32::from_be_bytes([s & 0x7f, t, u, v]),
            length: u64::from(u32::from_be_bytes([0, a, b, c])) + HEAD as u64,
        }
    }

    fn is_fields(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }
}

/// One direction, cut into frames however it is cut into reads or writes.
#[derive(Debug)]
struct Direction {
    /// Bytes before the first frame.
    preface: usize,
    head: [u8; HEAD],
    filled: usize,
    /// Of the frame's payload.
    left: u64,
}

impl Direction {
    fn new(preface: usize) -> Self {
        Self { preface, head: [0; HEAD], filled: 0, left: 0 }
    }

    /// The next frame that ends within these bytes, which are taken off their front.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        *bytes = &bytes[skipped..];
        let wanted = (HEAD - self.filled).min(bytes.len());
        self.head[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
        self.filled += wanted;
        *bytes = &bytes[wanted..];
        if self.filled < HEAD {
            return None;
        }
        let frame = Frame::of(self.head);
        if wanted > 0 {
            self.left = frame.length - HEAD as u64;
        }
        let payload = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= payload as u64;
        *bytes = &bytes[payload..];
        if self.left > 0 {
            return None;
        }
        self.filled = 0;
        Some(frame)
    }
}

/// A connection's frames.
#[derive(Debug)]
pub(super) struct Walk {
    read: Direction,
    written: Direction,
    streams: HashMap<u32, Rc<Meter>>,
    /// Servers: the last stream that began, and how many may be counted at once.
    began: Option<(u32, usize)>,
    /// The stream whose last head goes out in several frames.
    ending: Option<u32>,
}

impl Walk {
    /// Of a server: the peer's streams are counted from their first frame on, as many at once as this.
    pub(super) fn server(most: usize) -> Rc<RefCell<Self>> {
        Self::new((PREFACE, 0), Some((0, most)))
    }

    /// Of a client: streams are counted that [begin](Self::begin) here.
    pub(super) fn client() -> Rc<RefCell<Self>> {
        Self::new((0, PREFACE), None)
    }

    fn new((read, written): (usize, usize), began: Option<(u32, usize)>) -> Rc<RefCell<Self>> {
        let (read, written) = (Direction::new(read), Direction::new(written));
        Rc::new(RefCell::new(Self { read, written, streams: HashMap::new(), began, ending: None }))
    }

    /// A stream of ours begins: none of its frames has been written.
    pub(super) fn begin(&mut self, stream: u32, meter: Rc<Meter>) {
        self.streams.insert(stream, meter);
    }

    /// A stream of ours is over.
    pub(super) fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// Who counts a stream; nobody where it is over.
    pub(super) fn meter(&self, stream: u32) -> Option<Rc<Meter>> {
        self.streams.get(&stream).cloned()
    }

    /// Bytes came. Gives the next meter whose stream ended with them; to be called until there is none.
    fn came(&mut self, bytes: &mut &[u8]) -> Option<Rc<Meter>> {
        while let Some(frame) = self.read.next(bytes) {
            if let Some((last, most)) = &mut self.began
                && frame.kind == HEADERS
                && frame.stream > *last
            {
                *last = frame.stream;
                // More than these are refused, or never looked at because the connection ends.
                if self.streams.len() < *most {
                    self.streams.insert(frame.stream, Rc::default());
                }
            }
            let Some(meter) = self.streams.get(&frame.stream) else { continue };
            meter.count(|counted| {
                if frame.kind != METADATA {
                    counted.received += frame.length;
                }
                if frame.is_fields() {
                    counted.headers_received += frame.length;
                }
            });
            if frame.kind == RST_STREAM && self.began.is_some() {
                return self.streams.remove(&frame.stream);
            }
        }
        None
    }

    /// The same of bytes that went.
    fn went(&mut self, bytes: &mut &[u8]) -> Option<Rc<Meter>> {
        while let Some(frame) = self.written.next(bytes) {
            let Some(meter) = self.streams.get(&frame.stream) else { continue };
            meter.count(|counted| {
                counted.sent += frame.length;
                if frame.is_fields() {
                    counted.headers_sent += frame.length;
                }
            });
            let last = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            if last && frame.kind == HEADERS && frame.flags & END_HEADERS == 0 {
                self.ending = Some(frame.stream);
                continue;
            }
            let continued = frame.kind == CONTINUATION
                && frame.flags & END_HEADERS != 0
                && self.ending.take_if(|stream| *stream == frame.stream).is_some();
            if self.began.is_some() && (last || continued || frame.kind == RST_STREAM) {
                return self.streams.remove(&frame.stream);
            }
        }
        None
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        // The connection is gone. A stream that waited to be told so is over.
        self.streams.drain().for_each(|(_, meter)| meter.end());
    }
}

/// A stream of bytes beneath the h2 crate, and who counts what goes by.
pub(super) struct Walked<T> {
    inner: T,
    walk: Option<Rc<RefCell<Walk>>>,
}

impl<T> Walked<T> {
    /// With or without somebody who counts.
    pub(super) fn new(inner: T, walk: Option<Rc<RefCell<Walk>>>) -> Self {
        Self { inner, walk }
    }

    fn came(&self, bytes: &[u8]) {
        self.walk_on(bytes, Walk::came);
    }

    fn went(&self, bytes: &[u8]) {
        self.walk_on(bytes, Walk::went);
    }

    fn walk_on(&self, mut bytes: &[u8], on: fn(&mut Walk, &mut &[u8]) -> Option<Rc<Meter>>) {
        let Some(walk) = &self.walk else { return };
        loop {
            // Whoever hears that a stream is over may look at this, too.
            let ended = on(&mut walk.borrow_mut(), &mut bytes);
            let Some(meter) = ended else { return };
            meter.end();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Walked<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.came(&buffer.filled()[before..]);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Walked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = polled {
            self.went(&bytes[..n]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        if let (Poll::Ready(Ok(n)), Some(_)) = (&polled, &self.walk) {
            let mut left = *n;
            for slice in slices {
                let of_this = left.min(slice.len());
                self.went(&slice[..of_this]);
                left -= of_this;
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::meter::WireBytes;

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags]);
        // The reserved bit says nothing.
        bytes.extend((stream | 0x8000_0000).to_be_bytes());
        // A payload that looks like frames.
        bytes.extend(std::iter::repeat_n(1, payload));
        bytes
    }

    fn feed(walk: &Rc<RefCell<Walk>>, bytes: &[u8], step: usize, read: bool) {
        let walked = Walked::new((), Some(walk.clone()));
        for piece in bytes.chunks(step) {
            if read { walked.came(piece) } else { walked.went(piece) }
        }
    }

    const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[test]
    fn frames_are_counted_by_stream_however_they_are_cut() {
        // Two streams in turn, with padding (which is of the frame), a head in three frames, frames of the connection.
        let came = [
            PREFACE_BYTES.to_vec(),
            frame(4, 0, 0, 12),
            frame(HEADERS, 0x8, 1, 20),
            frame(CONTINUATION, 0, 1, 10),
            frame(CONTINUATION, END_HEADERS, 1, 0),
            frame(HEADERS, END_HEADERS | END_STREAM, 3, 7),
            frame(DATA, 0x8, 1, 300),
            frame(METADATA, 0, 1, 50),
            frame(8, 0, 3, 4),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, 5),
        ]
        .concat();
        let went = [
            frame(4, 0, 0, 0),
            frame(HEADERS, END_HEADERS, 3, 11),
            frame(HEADERS, END_HEADERS, 1, 12),
            frame(DATA, END_STREAM, 3, 0),
            frame(8, 0, 1, 4),
            frame(DATA, 0, 1, 40),
            // Trailers in two frames: the stream ends with the second.
            frame(HEADERS, END_STREAM, 1, 2),
            frame(CONTINUATION, END_HEADERS, 1, 3),
        ]
        .concat();
        let wanted = |sent, received, headers_sent, headers_received| WireBytes {
            sent,
            received,
            headers_sent,
            headers_received,
            ..WireBytes::default()
        };
        for step in 1..=came.len() {
            let walk = Walk::server(10);
            feed(&walk, &came, step, true);
            let (one, three) = (walk.borrow().meter(1).unwrap(), walk.borrow().meter(3).unwrap());
            assert!(walk.borrow().meter(0).is_none());
            let over: Rc<std::cell::Cell<usize>> = Rc::default();
            for meter in [&one, &three] {
                let over = over.clone();
                meter.then(Box::new(move |_| over.set(over.get() + 1)));
            }
            feed(&walk, &went[..went.len() - 1], step, false);
            assert_eq!(over.get(), 1, "{step}");
            feed(&walk, &went[went.len() - 1..], step, false);
            assert_eq!(over.get(), 2, "{step}");
            let head = 9 + 20 + 9 + 10 + 9;
            assert_eq!(
                one.bytes(),
                Some(wanted(21 + 13 + 49 + 11 + 12, head + 309 + 14, 44, head + 14)),
                "{step}"
            );
            assert_eq!(three.bytes(), Some(wanted(20 + 9, 16 + 13, 20, 16)), "{step}");
            // What is over is not kept.
            assert!(walk.borrow().streams.is_empty());
        }
    }

    #[test]
    fn a_stream_is_over_when_either_side_resets_it_or_the_connection_goes() {
        let walk = Walk::server(2);
        feed(&walk, PREFACE_BYTES, 100, true);
        let over: Rc<RefCell<Vec<u32>>> = Rc::default();
        for stream in [1, 3, 5] {
            feed(&walk, &frame(HEADERS, END_HEADERS, stream, 1), 100, true);
            match walk.borrow().meter(stream) {
                Some(meter) => {
                    let over = over.clone();
                    meter.then(Box::new(move |_| over.borrow_mut().push(stream)));
                }
                // More than may be open at once are not counted.
                None => assert_eq!(stream, 5),
            }
        }
        feed(&walk, &frame(RST_STREAM, 0, 3, 4), 2, true);
        assert_eq!(*over.borrow(), [3]);
        feed(&walk, &frame(HEADERS, END_HEADERS, 7, 1), 100, true);
        walk.borrow().meter(7).unwrap().then(Box::new({
            let over = over.clone();
            move |bytes| over.borrow_mut().push(bytes.map_or(0, |bytes| bytes.sent as u32))
        }));
        feed(&walk, &frame(RST_STREAM, 0, 7, 4), 100, false);
        assert_eq!(*over.borrow(), [3, 13]);
        // Late frames of a stream do not begin it anew.
        feed(&walk, &frame(HEADERS, END_HEADERS | END_STREAM, 3, 1), 100, true);
        assert!(walk.borrow().meter(3).is_none());
        drop(walk);
        assert_eq!(*over.borrow(), [3, 13, 1]);
    }

    #[test]
    fn a_client_counts_the_streams_that_it_begins() {
        let walk = Walk::client();
        let meter = Rc::new(Meter::default());
        walk.borrow_mut().begin(1, meter.clone());
        let went =
            [PREFACE_BYTES.to_vec(), frame(4, 0, 0, 6), frame(HEADERS, END_HEADERS | END_STREAM, 1, 30)];
        feed(&walk, &went.concat(), 7, false);
        let came = [frame(4, 0, 0, 0), frame(HEADERS, END_HEADERS, 1, 9), frame(DATA, END_STREAM, 1, 100)];
        feed(&walk, &came.concat(), 7, true);
        let bytes = meter.bytes().unwrap();
        assert_eq!((bytes.sent, bytes.received), (39, 18 + 109));
        assert_eq!((bytes.headers_sent, bytes.headers_received), (39, 18));
        walk.borrow_mut().forget(1);
        assert!(walk.borrow().meter(1).is_none());
    }
}
