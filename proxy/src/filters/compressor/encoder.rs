//! A body on its way through an encoder: each piece is encoded when it comes and flushed, so that nothing waits for what follows.

use std::io::Write;
use std::sync::Arc;
use std::task::{Context, Poll};

use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Numbers;
use crate::codec::{Body, BodyError, BodyStream, Frame, Headers, ResetReason};

/// An encoding and its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// gzip of this level, 0 to 9.
    Gzip(u32),
    /// Brotli of this quality (0 to 11), with a window of so many bits.
    Brotli(u32, u32),
}

impl Library {
    /// The name in `content-encoding`.
    pub fn encoding(self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Brotli(..) => "br",
        }
    }

    fn encoder(self) -> Encoder {
        match self {
            Self::Gzip(level) => Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::new(level))),
            Self::Brotli(quality, window) => {
                Encoder::Brotli(Box::new(CompressorWriter::new(Vec::new(), 4096, quality, window)))
            }
        }
    }
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Finished,
}

impl Encoder {
    /// Encodes a piece, or flushes what there is if it is the last; all that comes of it.
    fn encode(&mut self, data: &[u8], last: bool) -> std::io::Result<Vec<u8>> {
        if last {
            return match std::mem::replace(self, Self::Finished) {
                Self::Gzip(mut encoder) => {
                    encoder.write_all(data)?;
                    encoder.finish()
                }
                Self::Brotli(mut encoder) => {
                    encoder.write_all(data)?;
                    Ok(encoder.into_inner())
                }
                Self::Finished => Ok(Vec::new()),
            };
        }
        match self {
            Self::Gzip(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::Brotli(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::Finished => Ok(Vec::new()),
        }
    }
}

/// The body.
pub struct Encoded {
    inner: Body,
    encoder: Encoder,
    trailers: Option<Headers>,
    ended: bool,
    numbers: Arc<Numbers>,
}

impl Encoded {
    /// Encodes a body.
    pub fn wrap(body: Body, library: Library, numbers: Arc<Numbers>) -> Body {
        let encoder = library.encoder();
        Body::stream(Self { inner: body, encoder, trailers: None, ended: false, numbers })
    }

    fn encode(&mut self, data: &[u8], last: bool) -> Result<Option<Frame>, BodyError> {
        self.numbers.total_uncompressed_bytes.add(data.len() as u64);
        // Writing to memory does not fail; an encoder that is at fault ends the stream.
        let failed = |_| BodyError { reason: ResetReason::Local, details: "compression_failed" };
        let made = self.encoder.encode(data, last).map_err(failed)?;
        self.numbers.total_compressed_bytes.add(made.len() as u64);
        Ok((!made.is_empty()).then(|| Frame::Data(Bytes::from(made))))
    }
}

impl BodyStream for Encoded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            if self.ended {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::Trailers(trailers))));
            }
            let made = match std::task::ready!(self.inner.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => {
                    self.ended = self.inner.remaining() == Some(0);
                    self.encode(&data, self.ended)
                }
                Some(Ok(Frame::Trailers(trailers))) => {
                    self.ended = true;
                    self.trailers = Some(trailers);
                    self.encode(&[], true)
                }
                None => {
                    self.ended = true;
                    self.encode(&[], true)
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            match made {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;

    use super::*;

    fn decoded(library: Library, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        match library {
            Library::Gzip(_) => flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).unwrap(),
            Library::Brotli(..) => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut text).unwrap(),
        };
        text
    }

    #[tokio::test]
    async fn pieces_pass_as_they_come_and_the_whole_is_what_it_was() {
        for library in [Library::Gzip(6), Library::Brotli(3, 18)] {
            let pieces: Vec<_> = ["one ", "two ", "two "].iter().map(|text| text.repeat(2000)).collect();
            let mut frames: VecDeque<_> =
                pieces.iter().map(|text| Frame::Data(Bytes::from(text.clone()))).collect();
            let mut trailers = Headers::new();
            trailers.append(http::header::ETAG, http::HeaderValue::from_static("t"));
            frames.push_back(Frame::Trailers(trailers));
            let mut body = Encoded::wrap(Body::Frames(frames), library, Numbers::for_tests());
            let mut bytes = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let Some(Ok(Frame::Data(data))) = body.frame().await else { panic!("{library:?} {index}") };
                bytes.extend_from_slice(&data);
                assert!(data.len() < piece.len() / 10);
            }
            let Some(Ok(Frame::Data(data))) = body.frame().await else { panic!("{library:?}: the end") };
            bytes.extend_from_slice(&data);
            assert!(matches!(body.frame().await, Some(Ok(Frame::Trailers(_)))));
            assert_eq!(decoded(library, &bytes), pieces.concat().into_bytes(), "{library:?}");
        }
    }
}
