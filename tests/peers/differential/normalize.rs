//! Raw bytes as text that can be compared: messages taken apart, and what must differ between two programs and two runs
//! replaced.

use std::fmt::Write;

/// What kind of message is read.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// A request.
    Request,
    /// The answer to a request of this method; informational heads before it belong to it.
    Response(&'static str),
}

/// A head and where its body begins.
struct Head<'a> {
    lines: Vec<&'a [u8]>,
    end: usize,
}

impl<'a> Head<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let mut lines: Vec<_> = bytes[..end - 4].split(|b| *b == b'\n').collect();
        for line in &mut lines {
            *line = line.strip_suffix(b"\r").unwrap_or(line);
        }
        Some(Self { lines, end })
    }

    fn field(&self, name: &str) -> Option<String> {
        self.lines[1..].iter().find_map(|line| {
            let (n, v) = line.split_at(line.iter().position(|b| *b == b':')?);
            n.eq_ignore_ascii_case(name.as_bytes())
                .then(|| String::from_utf8_lossy(&v[1..]).trim().to_ascii_lowercase())
        })
    }

    fn status(&self) -> Option<u16> {
        let line = self.lines.first()?;
        std::str::from_utf8(line.get(9..12)?).ok()?.parse().ok()
    }
}

enum Body {
    None,
    Length(usize),
    Chunked,
    UntilEnd,
}

fn body(head: &Head<'_>, kind: &Message) -> Body {
    if let Message::Response(method) = kind {
        let status = head.status().unwrap_or(0);
        if *method == "HEAD" || status == 204 || status == 304 || status < 200 {
            return Body::None;
        }
        if *method == "CONNECT" && status < 300 {
            return Body::None;
        }
    }
    if head.field("transfer-encoding").is_some_and(|v| v == "chunked") {
        return Body::Chunked;
    }
    match (head.field("content-length").and_then(|v| v.parse().ok()), kind) {
        (Some(0), _) | (None, Message::Request) => Body::None,
        (Some(n), _) => Body::Length(n),
        (None, Message::Response(_)) => Body::UntilEnd,
    }
}

/// A chunked body: its data, its trailers, and how many bytes it took; whole or not.
struct Chunks {
    data: Vec<u8>,
    trailers: Vec<u8>,
    taken: usize,
    whole: bool,
}

fn chunks(bytes: &[u8]) -> Chunks {
    let mut out = Chunks { data: Vec::new(), trailers: Vec::new(), taken: 0, whole: false };
    loop {
        let rest = &bytes[out.taken..];
        let Some(line) = rest.windows(2).position(|w| w == b"\r\n") else { return out };
        let digits = rest[..line].split(|b| *b == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits).ok().and_then(|d| usize::from_str_radix(d.trim(), 16).ok());
        let Some(size) = size else { return out };
        let rest = &rest[line + 2..];
        if size == 0 {
            let Some(end) = trailers_end(rest) else { return out };
            out.trailers = rest[..end - 2].to_vec();
            out.taken += line + 2 + end;
            out.whole = true;
            return out;
        }
        if rest.len() < size + 2 {
            // How much of a piece has come depends on the moment.
            out.data.extend_from_slice(&rest[..rest.len().min(size)]);
            out.taken = bytes.len();
            return out;
        }
        out.data.extend_from_slice(&rest[..size]);
        out.taken += line + 2 + size + 2;
    }
}

fn trailers_end(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\r\n") {
        return Some(2);
    }
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// How many bytes a whole message takes, if it is whole.
pub fn whole(bytes: &[u8], kind: &Message) -> Option<usize> {
    let head = Head::of(bytes)?;
    if let (Message::Response(_), Some(status)) = (kind, head.status())
        && status < 200
        && status != 101
    {
        return Some(head.end + whole(&bytes[head.end..], kind)?);
    }
    match body(&head, kind) {
        Body::None => Some(head.end),
        Body::Length(n) => (bytes.len() >= head.end + n).then_some(head.end + n),
        Body::Chunked => {
            let chunks = chunks(&bytes[head.end..]);
            chunks.whole.then_some(head.end + chunks.taken)
        }
        Body::UntilEnd => None,
    }
}

/// The messages in these bytes as text. `kinds` are the kinds of the messages expected; the last one repeats.
pub fn render(mut bytes: &[u8], kinds: &[Message], requests: bool) -> String {
    let mut out = String::new();
    let mut kinds = kinds.iter();
    let mut kind = Message::Response("GET");
    let mut informational = false;
    if requests {
        kind = Message::Request;
    }
    while !bytes.is_empty() {
        if !informational && let Some(next) = kinds.next() {
            kind = *next;
        }
        let Some(head) = Head::of(bytes) else {
            text("bytes", bytes, &mut out);
            break;
        };
        for line in &head.lines {
            let _ = writeln!(out, "{}", normal(line));
        }
        let status = head.status().unwrap_or(0);
        informational = !requests && (100..200).contains(&status) && status != 101;
        bytes = &bytes[head.end..];
        match body(&head, &kind) {
            Body::None => {}
            Body::Length(n) => {
                let n = n.min(bytes.len());
                text("body", &bytes[..n], &mut out);
                bytes = &bytes[n..];
            }
            Body::UntilEnd => {
                text("body", bytes, &mut out);
                bytes = &[];
            }
            Body::Chunked => {
                let chunks = chunks(bytes);
                encoded_text("chunked body", &chunks.data, &head, &mut out);
                for line in chunks.trailers.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    let _ = writeln!(out, "  trailer: {}", normal(line.strip_suffix(b"\r").unwrap_or(line)));
                }
                if !chunks.whole {
                    out.push_str("  (its end did not come)\n");
                }
                bytes = &bytes[chunks.taken..];
                if !chunks.whole && !bytes.is_empty() {
                    text("bytes", bytes, &mut out);
                    break;
                }
            }
        }
        if status == 101 || matches!((kind, status), (Message::Response("CONNECT"), 200..300)) {
            if !bytes.is_empty() {
                text("tunnel", bytes, &mut out);
            }
            break;
        }
    }
    out
}

/// What is compressed, decoded: how it is compressed is up to the encoder. gzip is known by how it begins.
pub fn decoded(bytes: &[u8], encoding: Option<&str>) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let read = match encoding {
        Some("br") => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut text),
        _ if bytes.starts_with(&[0x1f, 0x8b]) => flate2::read::GzDecoder::new(bytes).read_to_end(&mut text),
        _ => return None,
    };
    read.ok().map(|_| text)
}

fn encoded_text(what: &str, bytes: &[u8], head: &Head<'_>, out: &mut String) {
    match decoded(bytes, head.field("content-encoding").as_deref()) {
        Some(plain) => text(&format!("{what}, decoded"), &plain, out),
        None => text(what, bytes, out),
    }
}

fn text(what: &str, bytes: &[u8], out: &mut String) {
    let _ = writeln!(out, "  {what}: {}", short(&bytes.escape_ascii().to_string()));
}

/// A long text by its beginning, its length and a sum over all of it.
/// What is left of the time for a retry is a number that is not round; hardly any time may have passed, or none.
fn left(millis: u64) -> String {
    match millis {
        long if long > 1000 => long.next_multiple_of(1000).to_string(),
        round if round.is_multiple_of(50) => round.to_string(),
        _ => "<left>".to_owned(),
    }
}

fn short(text: &str) -> String {
    if text.len() <= 300 {
        return text.to_owned();
    }
    let sum = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{}... ({} bytes, {sum:016x})", &text[..80], text.len())
}

/// A line of a head without what must differ: the date, made-up ids, times, the two proxies' addresses.
fn normal(line: &[u8]) -> String {
    let line = line.escape_ascii().to_string();
    field(&line.replace("\\\"", "\"").replace("\\'", "'"))
}

/// The id of a trace or a span, where a case made it; what proxies make up is only an id of its length.
pub fn known_id(id: &str) -> String {
    const KNOWN: [&str; 4] =
        ["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "8448eb211c80319c", "00f067aa0ba902b7"];
    let made_up = [16, 32].contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_hexdigit())
        && !KNOWN.iter().any(|known| id.ends_with(known))
        && id.bytes().any(|b| b != b'0');
    if made_up { format!("<{} digits>", id.len()) } else { id.to_owned() }
}

/// The same for a field that is text already.
pub fn field(line: &str) -> String {
    let line = line.replace("127.30.0.2", "127.30.0.1").replace("127.30.1.2", "127.30.1.1");
    let line = line.replace("127.30.3.2", "127.30.3.1");
    let Some((name, value)) = line.split_once(": ") else { return short(&line) };
    let uuid = value.len() == 36 && value.bytes().filter(|b| *b == b'-').count() == 4;
    match name.to_ascii_lowercase().as_str() {
        "date" if value.len() == 29 && value.ends_with(" GMT") => format!("{name}: <date>"),
        // The digit that tells that the request is traced.
        "x-request-id" if uuid && !value[14..].starts_with('4') => format!("{name}: <id {}>", &value[14..15]),
        "x-request-id" if uuid => format!("{name}: <id>"),
        "traceparent" | "b3" => {
            let parts: Vec<_> = value.split('-').map(known_id).collect();
            format!("{name}: {}", parts.join("-"))
        }
        "x-b3-traceid" | "x-b3-spanid" | "x-b3-parentspanid" => format!("{name}: {}", known_id(value)),
        "x-envoy-upstream-service-time" if value.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{name}: <time>")
        }
        "x-envoy-expected-rq-timeout-ms" if let Ok(millis) = value.parse() => {
            format!("{name}: {}", left(millis))
        }
        "grpc-timeout" if let Some(Ok(millis)) = value.strip_suffix('m').map(str::parse) => {
            format!("{name}: {}", left(millis))
        }
        _ => short(&line),
    }
}
