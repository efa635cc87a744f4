//! The client's half of HTTP/2 for one gRPC stream and nothing else, so that a thousand simulated proxies cost little of the machine
//! that the control plane is measured on. It knows no sockets: bytes in, messages out, and the other way.

use anyhow::bail;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// A frame's head.
const HEAD: usize = 9;
/// The most in a frame where nobody says otherwise (RFC 9113 section 6.5.2).
const FRAME: usize = 16_384;
/// The most that a window may have.
const WINDOW: u32 = i32::MAX as u32;
/// What is used of the connection's window before it is opened again.
const REOPEN: usize = 1 << 28;
/// Windows where nobody says otherwise.
const FIRST_WINDOW: i64 = 65_535;
/// The setting of a stream's window.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// One stream and the connection that it is on.
pub struct Stream {
    /// Bytes to write to the peer.
    pub out: Vec<u8>,
    input: Vec<u8>,
    /// Bytes of a message that is not whole.
    body: Vec<u8>,
    /// Bytes that wait for the peer's windows.
    waiting: Vec<u8>,
    used: usize,
    connection_window: i64,
    stream_window: i64,
    /// What the peer's settings give a stream.
    initial_window: i64,
}

impl Stream {
    /// Opens it with these fields besides gRPC's own.
    pub fn open(authority: &str, path: &str, fields: &[(&str, &str)]) -> Self {
        let mut out = PREFACE.to_vec();
        let window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &WINDOW.to_be_bytes()].concat();
        // No table of fields, no pushes, and all the window there is.
        frame(&mut out, SETTINGS, 0, 0, &[&[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0][..], &window].concat());
        frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW as u32).to_be_bytes());
        let own = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", authority),
            (":path", path),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in own.iter().chain(fields) {
            // Literal, without indexing, by a new name (RFC 7541 section 6.2.2).
            block.push(0);
            for text in [name, value] {
                length(&mut block, text.len());
                block.extend_from_slice(text.as_bytes());
            }
        }
        frame(&mut out, HEADERS, END_HEADERS, 1, &block);
        Self {
            out,
            input: Vec::new(),
            body: Vec::new(),
            waiting: Vec::new(),
            used: 0,
            connection_window: FIRST_WINDOW,
            stream_window: FIRST_WINDOW,
            initial_window: FIRST_WINDOW,
        }
    }

    /// Sends a message, as far as the peer's windows allow now, and the rest when they do.
    pub fn send(&mut self, message: &impl Message) {
        let bytes = message.encode_to_vec();
        self.waiting.push(0);
        self.waiting.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.waiting.extend_from_slice(&bytes);
        self.flush();
    }

    /// The same for a message of these fields, which hold bytes.
    pub fn send_fields(&mut self, fields: &[(u32, &[u8])]) {
        let length: usize =
            fields.iter().map(|(tag, b)| key_len(*tag) + encoded_len_varint(b.len() as u64) + b.len()).sum();
        self.waiting.push(0);
        self.waiting.extend_from_slice(&(length as u32).to_be_bytes());
        for (tag, bytes) in fields {
            encode_key(*tag, WireType::LengthDelimited, &mut self.waiting);
            encode_varint(bytes.len() as u64, &mut self.waiting);
            self.waiting.extend_from_slice(bytes);
        }
        self.flush();
    }

    fn flush(&mut self) {
        loop {
            let room = self.connection_window.min(self.stream_window).clamp(0, FRAME as i64);
            let length = self.waiting.len().min(room as usize);
            if length == 0 {
                return;
            }
            frame(&mut self.out, DATA, 0, 1, &self.waiting[..length]);
            self.waiting.drain(..length);
            self.connection_window -= length as i64;
            self.stream_window -= length as i64;
        }
    }

    /// Takes bytes of the peer, and gives each whole message to `each`.
    ///
    /// # Errors
    /// The peer ended the stream or the connection, or what came is not HTTP/2.
    pub fn take(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&mut Self, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = input.get(at..at + HEAD) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags, stream) = (head[3], head[4], head[5] | head[6] | head[7] | head[8]);
            let Some(payload) = input.get(at + HEAD..at + HEAD + length) else { break };
            self.frame(kind, flags, stream != 0, payload)?;
            at += HEAD + length;
        }
        input.drain(..at);
        self.input = input;
        let mut body = std::mem::take(&mut self.body);
        let mut at = 0;
        while let Some(&[_, a, b, c, d]) = body.get(at..at + 5) {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            let Some(message) = body.get(at + 5..at + 5 + length) else { break };
            each(self, message)?;
            at += 5 + length;
        }
        body.drain(..at);
        self.body = body;
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u8, of_stream: bool, payload: &[u8]) -> anyhow::Result<()> {
        let number = |at: usize| {
            payload.get(at..at + 4).map_or(0, |b| i64::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]])))
        };
        match kind {
            DATA if flags & PADDED != 0 => bail!("padded data, which nobody asked for"),
            DATA => {
                self.body.extend_from_slice(payload);
                self.used += payload.len();
                if self.used > REOPEN {
                    let by = (self.used as u32).to_be_bytes();
                    frame(&mut self.out, WINDOW_UPDATE, 0, 0, &by);
                    frame(&mut self.out, WINDOW_UPDATE, 0, 1, &by);
                    self.used = 0;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let (id, value) = (u16::from_be_bytes([setting[0], setting[1]]), &setting[2..]);
                    if id == INITIAL_WINDOW_SIZE {
                        let value = i64::from(u32::from_be_bytes([value[0], value[1], value[2], value[3]]));
                        self.stream_window += value - self.initial_window;
                        self.initial_window = value;
                    }
                }
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
                self.flush();
            }
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
            WINDOW_UPDATE => {
                let window = if of_stream { &mut self.stream_window } else { &mut self.connection_window };
                *window += number(0);
                self.flush();
            }
            RESET => bail!("the peer reset the stream with error {}", number(0)),
            GO_AWAY => bail!("the peer closes the connection with error {}", number(4)),
            HEADERS if flags & END_STREAM != 0 => bail!("the peer ended the stream"),
            _ => {}
        }
        Ok(())
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A length as HPACK writes it, of seven bits first (RFC 7541 section 5.1), without Huffman's code.
fn length(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        out.push(n as u8);
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, kind, flags, stream, payload);
        out
    }

    fn opened() -> Stream {
        let mut stream = Stream::open("it", "/a/b", &[("authorization", "Bearer x")]);
        stream.out.clear();
        stream
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let bytes = [framed(DATA, 0, 1, b"\0\0\0\0\x05hel"), framed(DATA, 0, 1, b"lo\0\0\0\0\x01!")].concat();
        for cut in 0..bytes.len() {
            let (mut stream, mut got) = (opened(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                stream
                    .take(part, |_, message| {
                        got.push(message.to_vec());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(got, [&b"hello"[..], b"!"], "cut at {cut}");
        }
    }

    #[test]
    fn what_does_not_fit_the_windows_waits_for_them() {
        let mut stream = opened();
        stream.send(&vec![7u8; 100_000]);
        let sent = |stream: &Stream| stream.out.len() - stream.out.len().div_ceil(FRAME + HEAD) * HEAD;
        assert_eq!(sent(&stream), FIRST_WINDOW as usize);
        let more = 50_000u32.to_be_bytes();
        stream.take(&framed(WINDOW_UPDATE, 0, 1, &more), |_, _| Ok(())).unwrap();
        assert_eq!(sent(&stream), FIRST_WINDOW as usize, "the connection's window is still used up");
        stream.take(&framed(WINDOW_UPDATE, 0, 0, &more), |_, _| Ok(())).unwrap();
        assert!(stream.waiting.is_empty());
    }

    #[test]
    fn settings_and_pings_are_answered_and_ends_are_errors() {
        let mut stream = opened();
        stream
            .take(&[framed(SETTINGS, 0, 0, &[]), framed(PING, 0, 0, b"12345678")].concat(), |_, _| Ok(()))
            .unwrap();
        assert_eq!(stream.out, [framed(SETTINGS, ACK, 0, &[]), framed(PING, ACK, 0, b"12345678")].concat());
        for end in [framed(RESET, 0, 1, &[0, 0, 0, 8]), framed(HEADERS, END_STREAM | END_HEADERS, 1, b"x")] {
            assert!(opened().take(&end, |_, _| Ok(())).is_err());
        }
    }
}
