//! The chunked transfer coding (RFC 9112, section 7.1), decoded strictly: what two parsers could read differently is refused.

use bytes::{Bytes, BytesMut};

use super::parse;
use crate::codec::headers::Headers;

/// The longest line that announces a chunk, extensions included.
const MAX_SIZE_LINE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// What a decoder gives.
#[derive(Debug)]
pub(super) enum Decoded {
    /// Some of the body.
    Data(Bytes),
    /// The end, with trailers if there were any.
    End(Option<Headers>),
    /// More input is needed.
    Incomplete,
}

/// The coding is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// A decoder.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    max_head: usize,
}

impl Chunked {
    pub(super) fn new(max_head: usize) -> Self {
        Self { state: State::Size, max_head }
    }

    /// Takes what it can from the front of the buffer.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Broken> {
        loop {
            match self.state {
                State::Size => {
                    let Some(end) = buffer.iter().position(|b| *b == b'\n') else {
                        return if buffer.len() > MAX_SIZE_LINE {
                            Err(Broken)
                        } else {
                            Ok(Decoded::Incomplete)
                        };
                    };
                    let line = buffer.split_to(end + 1);
                    let size = size(&line)?;
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::Incomplete);
                    }
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let left = left - n as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Decoded::Data(buffer.split_to(n).freeze()));
                }
                State::DataEnd => match buffer.as_ref() {
                    [b'\r', b'\n', ..] => {
                        let _ = buffer.split_to(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::Incomplete),
                    _ => return Err(Broken),
                },
                State::Trailers => {
                    if buffer.starts_with(b"\r\n") {
                        let _ = buffer.split_to(2);
                        self.state = State::Done;
                        return Ok(Decoded::End(None));
                    }
                    let Some(end) = parse::end_of_head(buffer) else {
                        return if buffer.len() > self.max_head {
                            Err(Broken)
                        } else {
                            Ok(Decoded::Incomplete)
                        };
                    };
                    let block = buffer.split_to(end.at).freeze();
                    self.state = State::Done;
                    return parse::fields(&block).map(|t| Decoded::End(Some(t))).ok_or(Broken);
                }
                State::Done => return Ok(Decoded::End(None)),
            }
        }
    }
}

/// The number in a line such as `1a;name=value\r\n`.
fn size(line: &[u8]) -> Result<u64, Broken> {
    let line = line.strip_suffix(b"\r\n").ok_or(Broken)?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    // Spaces before an extension are what RFC 9112 calls bad whitespace: to be read, not to be written.
    let rest = rest.iter().position(|b| !matches!(b, b' ' | b'\t')).map_or(&[][..], |at| &rest[at..]);
    if digits == 0 || digits > 16 || !(rest.is_empty() || rest[0] == b';') || rest.contains(&b'\r') {
        return Err(Broken);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| Broken)?;
    u64::from_str_radix(text, 16).map_err(|_| Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, bool), Broken> {
        let (mut decoder, mut buffer, mut body) = (Chunked::new(1024), BytesMut::new(), Vec::new());
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer)? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::End(trailers) => return Ok((body, trailers.is_some())),
                    Decoded::Incomplete => break,
                }
            }
        }
        panic!("the end was not found")
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        let input = b"5;a=b\r\nhello\r\n0006 \r\n world\r\n0\r\nx: y\r\n\r\n";
        for step in 1..input.len() {
            assert_eq!(decode(input, step).unwrap(), (b"hello world".to_vec(), true), "{step}");
        }
        assert_eq!(decode(b"0\r\n\r\n", 1).unwrap(), (Vec::new(), false));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"zz\r\n",
            b"-1\r\n",
            b"\r\n",
            b"5 x\r\nhello\r\n",
            b"5\r\nhelloX\r\n",
            b"10000000000000000\r\n",
            b"0x5\r\nhello\r\n",
            b"0\r\nx : y\r\n\r\n",
        ] {
            assert!(decode(bad, bad.len()).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
