//! A body on its way through a decoder. However much a piece becomes, no more of it is decoded than is asked for: a small body that
//! would fill the memory does not.

use std::cell::RefCell;
use std::io::{BufRead, ErrorKind, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use brotli::Decompressor as BrotliDecoder;
use bytes::{Buf, Bytes};
use flate2::bufread::GzDecoder;
use http::{HeaderName, HeaderValue};

use super::Numbers;
use crate::codec::{Body, BodyError, BodyStream, Frame, Headers, ResetReason};
use crate::router::Flow;

/// As much is decoded at a time: more than a decoder of gzip ever holds back, which is its window of 32 KiB.
const PIECE: usize = 64 * 1024;

thread_local! {
    /// Where pieces are decoded, before what they are is known.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// gzip; what comes out may be so many times what went in.
    Gzip(u64),
    /// Brotli.
    Brotli,
}

impl Library {
    /// The name in `content-encoding`.
    pub fn encoding(self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Brotli => "br",
        }
    }

    fn decoder(self) -> Decoder {
        match self {
            Self::Gzip(_) => Decoder::Gzip(Box::new(GzDecoder::new(Input::default()))),
            Self::Brotli => Decoder::Brotli(Box::new(BrotliDecoder::new(Input::default(), 4096))),
        }
    }

    fn most(self) -> Option<u64> {
        match self {
            Self::Gzip(most) => Some(most),
            // Envoy's own number.
            Self::Brotli => Some(100),
        }
    }
}

/// What has come and is not decoded.
///
/// A decoder of gzip asks for input before it gives what it holds back. So the last byte is kept until everything else has been
/// taken: with it in hand the decoder gives all that it has, and the end of a message does not wait for the next one.
#[derive(Default)]
struct Input {
    bytes: Bytes,
    /// The last byte, too, may be taken.
    whole: bool,
    ended: bool,
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.fill_buf()?.len().min(into.len());
        into[..n].copy_from_slice(&self.bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        let kept = usize::from(!self.whole && !self.ended);
        let given = self.bytes.len().saturating_sub(kept);
        // Decoders go on where they were, once there is more.
        if given == 0 && !self.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(&self.bytes[..given])
    }

    fn consume(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}

enum Decoder {
    Gzip(Box<GzDecoder<Input>>),
    Brotli(Box<BrotliDecoder<Input>>),
}

impl Decoder {
    fn input(&mut self) -> &mut Input {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(into),
            Self::Brotli(decoder) => decoder.read(into),
        }
    }
}

/// What is said of a body that was decoded.
pub(super) struct Trail {
    pub(super) numbers: Arc<Numbers>,
    pub(super) told: (HeaderName, HeaderName),
    /// Whose request it is, for which a body that cannot be decoded is the client's fault.
    pub(super) flow: Option<Rc<Flow>>,
}

/// The body.
pub(super) struct Decoded {
    inner: Body,
    decoder: Decoder,
    most: Option<u64>,
    trail: Trail,
    /// Bytes that came, and what became of them.
    bytes: (u64, u64),
    trailers: Option<Headers>,
    /// All that is to be decoded has been.
    decoded: bool,
    ended: bool,
}

impl Decoded {
    /// Decodes a body.
    pub(super) fn wrap(body: Body, library: Library, trail: Trail) -> Body {
        Body::stream(Self {
            inner: body,
            decoder: library.decoder(),
            most: library.most(),
            trail,
            bytes: (0, 0),
            trailers: None,
            decoded: false,
            ended: false,
        })
    }

    /// Whoever sent the body is at fault.
    fn broken(&self) -> BodyError {
        let error = BodyError { reason: ResetReason::ProtocolError, details: "decompression_failed" };
        if let Some(flow) = &self.trail.flow {
            flow.breaks_off(error);
        }
        error
    }

    /// The next piece that is decoded; none where more has to come first.
    fn piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(PIECE, 0);
            loop {
                match self.decoder.read(scratch) {
                    Ok(0) => {
                        self.decoded = true;
                        return Ok(None);
                    }
                    Ok(n) => {
                        self.bytes.1 += n as u64;
                        self.trail.numbers.total_uncompressed_bytes.add(n as u64);
                        if self.most.is_some_and(|most| self.bytes.1 > self.bytes.0.saturating_mul(most)) {
                            return Err(self.broken());
                        }
                        // As long as it is: who keeps pieces counts their bytes, and not what was set aside for them.
                        return Ok(Some(Bytes::copy_from_slice(&scratch[..n])));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let input = self.decoder.input();
                        if input.bytes.is_empty() {
                            return Ok(None);
                        }
                        input.whole = true;
                    }
                    Err(_) => return Err(self.broken()),
                }
            }
        })
    }

    /// The trailers, with how many bytes there were.
    fn last(&mut self) -> Headers {
        let mut trailers = self.trailers.take().unwrap_or_default();
        let (encoded, decoded) = &self.trail.told;
        trailers.append(encoded.clone(), HeaderValue::from(self.bytes.0));
        trailers.append(decoded.clone(), HeaderValue::from(self.bytes.1));
        trailers
    }
}

impl BodyStream for Decoded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            // A body of no bytes at all was not encoded.
            if !(self.decoded || self.ended && self.bytes.0 == 0) {
                match self.piece() {
                    Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::Data(piece)))),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            if self.ended {
                return Poll::Ready(Some(Ok(Frame::Trailers(self.last()))));
            }
            match ready!(self.inner.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    self.bytes.0 += data.len() as u64;
                    self.trail.numbers.total_compressed_bytes.add(data.len() as u64);
                    // What stands behind the end of the encoding is nothing.
                    if !self.decoded {
                        let input = self.decoder.input();
                        (input.bytes, input.whole) = (data, false);
                    }
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.trailers = Some(trailers);
                    self.end();
                }
                None => self.end(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl Decoded {
    fn end(&mut self) {
        self.ended = true;
        self.decoder.input().ended = true;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Write;

    use super::*;

    fn encoded(library: Library, text: &[u8]) -> Vec<u8> {
        match library {
            Library::Gzip(_) => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Library::Brotli => {
                let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
                encoder.write_all(text).unwrap();
                encoder.into_inner()
            }
        }
    }

    fn wrap(library: Library, pieces: impl Iterator<Item = Vec<u8>>) -> Body {
        let frames: VecDeque<_> = pieces.map(|piece| Frame::Data(piece.into())).collect();
        let told = (HeaderName::from_static("x-in"), HeaderName::from_static("x-out"));
        let trail = Trail { numbers: Numbers::new("test", ""), told, flow: None };
        Decoded::wrap(Body::Frames(frames), library, trail)
    }

    async fn all(mut body: Body) -> Result<(Vec<u8>, usize, Headers), BodyError> {
        let (mut bytes, mut largest) = (Vec::new(), 0);
        loop {
            match body.frame().await {
                Some(Ok(Frame::Data(data))) => {
                    largest = largest.max(data.len());
                    bytes.extend_from_slice(&data);
                }
                Some(Ok(Frame::Trailers(trailers))) => return Ok((bytes, largest, trailers)),
                Some(Err(error)) => return Err(error),
                None => panic!("no trailers"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_in_whatever_pieces_is_what_it_was() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for library in [Library::Gzip(100), Library::Brotli] {
            let encoded = encoded(library, &text);
            for size in [1, 7, 1000, encoded.len()] {
                let (bytes, largest, trailers) =
                    all(wrap(library, encoded.chunks(size).map(<[u8]>::to_vec))).await.unwrap();
                assert!(bytes == text && largest <= PIECE, "{library:?} {size}");
                let number = |name| {
                    trailers.get_str(&HeaderName::from_static(name)).unwrap().parse::<usize>().unwrap()
                };
                assert_eq!((number("x-in"), number("x-out")), (encoded.len(), text.len()));
            }
        }
    }

    /// Events that are flushed one by one: each is there when its bytes are, and not with the next one.
    #[test]
    fn the_end_of_a_message_does_not_wait_for_the_next_one() {
        let (mut random, mut encoder) = (
            fastrand::Rng::with_seed(1),
            flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6)),
        );
        let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
        let told = (HeaderName::from_static("x-in"), HeaderName::from_static("x-out"));
        let trail = Trail { numbers: Numbers::new("test", ""), told, flow: None };
        let mut body = Decoded::wrap(Body::stream(Events(receiver)), Library::Gzip(100), trail);
        for size in [10_000, 40_000, 1, 100_000, 70_000, 32_768, 65_536, 3] {
            let event: Vec<u8> = (0..size).map(|_| random.u8(b'a'..b'g')).collect();
            encoder.write_all(&event).unwrap();
            encoder.flush().unwrap();
            sender.send(std::mem::take(encoder.get_mut())).unwrap();
            let (mut seen, mut cx) = (Vec::new(), Context::from_waker(std::task::Waker::noop()));
            while let Poll::Ready(Some(Ok(Frame::Data(data)))) = body.poll_frame(&mut cx) {
                seen.extend_from_slice(&data);
            }
            assert!(seen == event, "{size}: {} came", seen.len());
        }
    }

    struct Events(std::sync::mpsc::Receiver<Vec<u8>>);

    impl BodyStream for Events {
        fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
            match self.0.try_recv() {
                Ok(data) => Poll::Ready(Some(Ok(Frame::Data(data.into())))),
                Err(_) => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_no_bytes_is_none() {
        for library in [Library::Gzip(100), Library::Brotli] {
            let (bytes, _, trailers) = all(wrap(library, [Vec::new()].into_iter())).await.unwrap();
            assert!(bytes.is_empty() && trailers.get_str(&HeaderName::from_static("x-out")) == Some("0"));
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_no_such_encoding_breaks_the_body() {
        for library in [Library::Gzip(100), Library::Brotli] {
            let encoded = encoded(library, &b"some words ".repeat(1000));
            assert!(all(wrap(library, [encoded[..encoded.len() - 9].to_vec()].into_iter())).await.is_err());
            assert!(
                all(wrap(library, [b"nothing of the kind".to_vec()].into_iter())).await.is_err(),
                "{library:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_small_body_that_would_fill_the_memory_does_not() {
        let bomb = encoded(Library::Gzip(100), &vec![0; 64 << 20]);
        assert!(bomb.len() < 100_000);
        let most = (bomb.len() as u64) * 50 + PIECE as u64;
        let mut body = wrap(Library::Gzip(50), [bomb].into_iter());
        let mut read = 0;
        loop {
            match body.frame().await {
                Some(Ok(Frame::Data(data))) => read += data.len() as u64,
                Some(Err(_)) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(read <= most, "{read}");
    }
}
