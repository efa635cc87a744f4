//! Heads out of bytes.

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};

use super::H1Options;
use crate::codec::headers::{HeaderValue, Headers};
use crate::codec::message::{Protocol, RequestHead, ResponseHead};
use crate::codec::names;
use crate::codec::spelling::{KeyFormat, Spelling};

/// How a message's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection ends (an answer; an upgraded or tunnelled stream).
    UntilClose,
}

/// A head that is refused, with the answer it gets (Envoy's response code details).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) details: &'static str,
}

const fn bad(details: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, details }
}

/// A whole request head.
#[derive(Debug)]
pub(super) struct ParsedRequest {
    pub(super) head: RequestHead,
    pub(super) framing: Framing,
    /// The connection may serve another request.
    pub(super) keep_alive: bool,
}

/// A whole response head.
#[derive(Debug)]
pub(super) struct ParsedResponse {
    pub(super) head: ResponseHead,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
}

/// Where a head ends.
pub(super) struct HeadEnd {
    /// The position after its empty line.
    pub(super) at: usize,
    /// Every line of it ends with CR and LF. httparse takes a bare LF for a line end; two parsers that disagree on that can
    /// be played against each other.
    pub(super) strict: bool,
}

/// Looks for the empty line that ends a head.
pub(super) fn end_of_head(buffer: &[u8]) -> Option<HeadEnd> {
    let (mut line, mut strict) = (0, true);
    for at in memchr::memchr_iter(b'\n', buffer) {
        let ended = at > line && buffer[at - 1] == b'\r';
        if ended && at == line + 1 && line >= 2 && buffer[line - 2] == b'\r' {
            return Some(HeadEnd { at: at + 1, strict });
        }
        strict &= ended;
        line = at + 1;
    }
    None
}

/// Fields that a head may have before room for them is made on the heap: more than the usual limit, so that a head over it
/// is seen to be over it.
const USUAL: usize = 128;

type Slot<'a> = std::mem::MaybeUninit<httparse::Header<'a>>;

/// Room for the fields of a usual head; clearing it for every head would cost more than parsing one.
const fn storage<'a>() -> [Slot<'a>; USUAL] {
    [const { std::mem::MaybeUninit::uninit() }; USUAL]
}

/// The usual room, or as much as is allowed where that is more.
fn slots<'s, 'a>(
    usual: &'s mut [Slot<'a>; USUAL],
    large: &'s mut Vec<Slot<'a>>,
    options: &H1Options,
) -> &'s mut [Slot<'a>] {
    if options.max_headers < USUAL {
        return usual;
    }
    large.resize_with(options.max_headers + 1, std::mem::MaybeUninit::uninit);
    large
}

/// What the fields of a head say about its framing.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    other_coding: bool,
    bad_length: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

/// Fields as slices of `block`; `None` if a name or value may not be.
fn collect(
    block: &Bytes,
    parsed: &[httparse::Header<'_>],
    extra: usize,
    keys: KeyFormat,
    reason: Option<&str>,
) -> Option<Headers> {
    let mut headers = Headers::with_capacity(parsed.len() + extra);
    if let KeyFormat::Preserve { proper_case_others, reason: keep } = keys {
        let names = parsed.iter().map(|f| block.slice_ref(f.name.as_bytes())).collect();
        let reason = reason.filter(|r| keep && !r.is_empty());
        let reason = reason.map(|r| block.slice_ref(r.as_bytes()));
        headers.spelling = Some(Spelling::new(names, proper_case_others, reason));
    }
    for field in parsed {
        let (name, place) = names::name(field.name.as_bytes())?;
        let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value)).ok()?;
        headers.append_placed(name, place, value);
    }
    Some(headers)
}

/// A field's bytes as Envoy counts those that come: without the blanks around its value.
fn field_bytes(name: usize, value: usize) -> u64 {
    (name + value + ":\r\n".len()) as u64
}

/// Counts the fields of a head, where somebody wants to know.
fn count(counted: Option<&mut u64>, parsed: &[httparse::Header<'_>]) {
    if let Some(counted) = counted {
        *counted += parsed.iter().map(|field| field_bytes(field.name.len(), field.value.len())).sum::<u64>();
    }
}

/// The same of trailers.
pub(super) fn trailer_bytes(trailers: &Headers) -> u64 {
    trailers.iter().map(|(name, value)| field_bytes(name.as_str().len(), value.len())).sum()
}

/// Trailer fields; the block ends with an empty line.
pub(super) fn fields(block: &Bytes) -> Option<Headers> {
    let mut storage = [httparse::EMPTY_HEADER; 100];
    match httparse::parse_headers(block, &mut storage) {
        Ok(httparse::Status::Complete((_, parsed))) if strict(block) => {
            collect(block, parsed, 0, KeyFormat::Lower, None)
        }
        _ => None,
    }
}

fn strict(block: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', block).all(|at| at > 0 && block[at - 1] == b'\r')
}

fn facts(headers: &Headers) -> Facts {
    let mut facts = Facts::default();
    for (name, value) in headers.iter() {
        if *name == http::header::CONTENT_LENGTH {
            let text = value.as_bytes();
            let number = (!text.is_empty() && text.iter().all(u8::is_ascii_digit))
                .then(|| std::str::from_utf8(text).ok()?.parse::<u64>().ok())
                .flatten();
            match (number, facts.length) {
                (Some(n), None) => facts.length = Some(n),
                // Repeating the same number is as bad as two different ones: somebody merged two messages.
                _ => facts.bad_length = true,
            }
        } else if *name == http::header::TRANSFER_ENCODING {
            if value.as_bytes().eq_ignore_ascii_case(b"chunked") && !facts.chunked {
                facts.chunked = true;
            } else {
                facts.other_coding = true;
            }
        } else if *name == http::header::CONNECTION {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                facts.close |= token.eq_ignore_ascii_case(b"close");
                facts.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                facts.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            }
        }
    }
    facts
}

/// Takes a request head off the buffer, if it is whole. `counted` gets the bytes of its fields, where they are wanted, also of a
/// head that is refused for what it says.
pub(super) fn request(
    buffer: &mut BytesMut,
    options: &H1Options,
    tls: bool,
    counted: Option<&mut u64>,
) -> Result<Option<ParsedRequest>, Refused> {
    // Empty lines before a request are a robust server's to skip (RFC 9112, section 2.2).
    while buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
    }
    let Some(end) = end_of_head(buffer) else {
        if buffer.len() > options.max_head_bytes {
            return Err(too_large());
        }
        return early(buffer, options);
    };
    if end.at > options.max_head_bytes {
        return Err(too_large());
    }
    let block = buffer.split_to(end.at).freeze();
    let (mut usual, mut large) = (storage(), Vec::new());
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(&block, slots(&mut usual, &mut large, options)) {
        Ok(httparse::Status::Complete(_)) if end.strict => {}
        Err(error) => return Err(malformed(error, &block)),
        _ => return Err(bad("http1.codec_error")),
    }
    count(counted, parsed.headers);
    if parsed.headers.len() > options.max_headers {
        return Err(too_many());
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad("http1.codec_error"));
    };
    if !options.any_method && !is_known(method) {
        return Err(bad("http1.codec_error"));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("http1.codec_error"))?;
    let protocol = if version == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let mut headers =
        collect(&block, parsed.headers, 8, options.keys, None).ok_or(bad("http1.codec_error"))?;
    let mut facts = facts(&headers);
    drop_length(&mut facts, &mut headers, options);
    let framing = request_framing(&facts, &method)?;
    if protocol == Protocol::Http10 && !options.accept_http_10 {
        return Err(low_version());
    }
    let host = host(&block, &mut headers)?;
    if !target.is_ascii() {
        return Err(bad("http1.codec_error"));
    }
    let target = block.slice_ref(target.as_bytes());
    let (scheme, authority, path) = split_target(&method, target, host, tls, options)?;
    // Whether there was one at all is for whoever answers the request to judge.
    if authority.is_empty() && has_host(&block) {
        headers.append(http::header::HOST, http::HeaderValue::from_static(""));
    }
    if !is_authority(&authority) {
        return Err(bad("http.invalid_authority"));
    }
    headers.remove(&http::header::TRANSFER_ENCODING);
    let upgrade = match (facts.upgrade, headers.get(&http::header::UPGRADE)) {
        // HTTP/2 is spoken with prior knowledge or by ALPN; its upgrade is passed over, as every server may.
        (true, Some(value)) if value.as_bytes().eq_ignore_ascii_case(b"h2c") => {
            headers.remove(&http::header::UPGRADE);
            headers.remove(&http::HeaderName::from_static("http2-settings"));
            None
        }
        (true, Some(value)) => Some(block.slice_ref(value.as_bytes())),
        _ => None,
    };
    let keep_alive =
        if protocol == Protocol::Http10 { facts.keep_alive && !facts.close } else { !facts.close };
    let head = RequestHead { method, scheme, authority, path, protocol, upgrade, headers };
    Ok(Some(ParsedRequest { head, framing, keep_alive }))
}

/// The answer to what the parser refused.
fn malformed(error: httparse::Error, head: &[u8]) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => too_many(),
        // A request line of another version of HTTP, or of the one before versions: the client may try again with ours.
        httparse::Error::Version | httparse::Error::Token if other_version(head) => low_version(),
        httparse::Error::HeaderValue => bad("http1.invalid_characters"),
        _ => bad("http1.codec_error"),
    }
}

fn low_version() -> Refused {
    Refused { status: StatusCode::UPGRADE_REQUIRED, details: "low_version" }
}

/// Whether the request line is one of HTTP, but not of 1.0 or 1.1.
fn other_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii_end().split(|b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let version = match (words.next(), words.next()) {
        (None, None) => true,
        (Some(word), None) => matches!(word, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']),
        _ => false,
    };
    version && !target.is_empty() && std::str::from_utf8(method).is_ok_and(is_known)
}

/// The methods that are taken unless the configuration allows any (`allow_custom_methods`); Envoy's list.
fn is_known(method: &str) -> bool {
    matches!(
        method,
        "GET"
            | "POST"
            | "PUT"
            | "HEAD"
            | "DELETE"
            | "OPTIONS"
            | "PATCH"
            | "CONNECT"
            | "TRACE"
            | "ACL"
            | "BIND"
            | "CHECKOUT"
            | "COPY"
            | "LINK"
            | "LOCK"
            | "MERGE"
            | "MKACTIVITY"
            | "MKCALENDAR"
            | "MKCOL"
            | "MOVE"
            | "MSEARCH"
            | "NOTIFY"
            | "PROPFIND"
            | "PROPPATCH"
            | "PURGE"
            | "REBIND"
            | "REPORT"
            | "SEARCH"
            | "SOURCE"
            | "SUBSCRIBE"
            | "UNBIND"
            | "UNLINK"
            | "UNLOCK"
            | "UNSUBSCRIBE"
    )
}

/// Whether these may be the characters of an authority.
fn is_authority(authority: &[u8]) -> bool {
    authority.iter().all(|b| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'!' | b'$'..=b'.' | b':' | b';' | b'=' | b'@' | b'[' | b']' | b'_' | b'~')
    })
}

fn too_large() -> Refused {
    Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, details: "http1.headers_too_large" }
}

fn too_many() -> Refused {
    Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, details: "http1.too_many_headers" }
}

/// A head that is not whole may already be hopeless; the sender may wait for an answer before it sends more.
fn early(buffer: &[u8], options: &H1Options) -> Result<Option<ParsedRequest>, Refused> {
    let (mut usual, mut large) = (storage(), Vec::new());
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(buffer, slots(&mut usual, &mut large, options)) {
        // Which version it is shows when the line is whole.
        Err(httparse::Error::Version) if !buffer.contains(&b'\n') => Ok(None),
        Err(error) => Err(malformed(error, buffer)),
        // Whole for httparse, which takes a bare LF for a line end; see [`strict`].
        Ok(httparse::Status::Complete(_)) => Err(bad("http1.codec_error")),
        Ok(httparse::Status::Partial) => Ok(None),
    }
}

/// The chunked coding is what counts where both are allowed (RFC 9112, section 6.3).
fn drop_length(facts: &mut Facts, headers: &mut Headers, options: &H1Options) {
    if options.allow_chunked_length && facts.chunked && facts.length.take().is_some() {
        headers.remove(&http::header::CONTENT_LENGTH);
    }
}

fn request_framing(facts: &Facts, method: &Method) -> Result<Framing, Refused> {
    if facts.bad_length {
        return Err(bad("http1.codec_error"));
    }
    if facts.other_coding {
        return Err(Refused {
            status: StatusCode::NOT_IMPLEMENTED,
            details: "http1.invalid_transfer_encoding",
        });
    }
    if facts.chunked && facts.length.is_some() {
        return Err(bad("http1.content_length_and_chunked_not_allowed"));
    }
    if *method == Method::CONNECT {
        if facts.chunked || facts.length.is_some_and(|l| l > 0) {
            return Err(bad("http1.body_disallowed"));
        }
        return Ok(Framing::UntilClose);
    }
    Ok(match (facts.chunked, facts.length) {
        (true, _) => Framing::Chunked,
        (false, Some(n)) if n > 0 => Framing::Length(n),
        _ => Framing::None,
    })
}

fn has_host(block: &[u8]) -> bool {
    block.windows(6).any(|w| w[0] == b'\n' && w[1..5].eq_ignore_ascii_case(b"host") && w[5] == b':')
}

/// Takes the Host field out of the headers; more than one is a smuggler's.
fn host(block: &Bytes, headers: &mut Headers) -> Result<Bytes, Refused> {
    let Some((host, more)) = headers.take(&http::header::HOST) else { return Ok(Bytes::new()) };
    if more {
        return Err(bad("http1.codec_error"));
    }
    Ok(block.slice_ref(host.as_bytes()))
}

/// Scheme, authority and path of a request target (RFC 9112, section 3.2).
fn split_target(
    method: &Method,
    target: Bytes,
    host: Bytes,
    tls: bool,
    options: &H1Options,
) -> Result<(Bytes, Bytes, Bytes), Refused> {
    let own = Bytes::from_static(if tls { b"https" } else { b"http" });
    if *method == Method::CONNECT {
        return Ok((own, target, Bytes::new()));
    }
    let plain = target.starts_with(b"/") || (target.as_ref() == b"*" && *method == Method::OPTIONS);
    if plain || !options.absolute_targets {
        return Ok((own, host, target));
    }
    // Absolute form: its authority wins over the Host field.
    let text = std::str::from_utf8(&target).map_err(|_| bad("http1.invalid_url"))?;
    let details = if text == "*" { "http1.invalid_url" } else { "http1.codec_error" };
    let (scheme, rest) = text.split_once("://").ok_or(bad(details))?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(bad("http1.invalid_scheme"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if authority.is_empty() {
        return Err(bad("http1.invalid_url"));
    }
    // A query without a path is left as it is, for whoever refuses paths without a slash.
    let path = if path.is_empty() { Bytes::from_static(b"/") } else { target.slice_ref(path.as_bytes()) };
    let scheme = Bytes::from(scheme.to_ascii_lowercase());
    Ok((scheme, target.slice_ref(authority.as_bytes()), path))
}

/// Takes a response head off the buffer, if it is whole. `request` is the method that it answers; `counted` gets the bytes of its
/// fields, where they are wanted.
pub(super) fn response(
    buffer: &mut BytesMut,
    options: &H1Options,
    request: &Method,
    counted: Option<&mut u64>,
) -> Result<Option<ParsedResponse>, &'static str> {
    let Some(end) = end_of_head(buffer) else {
        if buffer.len() > options.max_head_bytes {
            return Err("headers size exceeds limit");
        }
        let (mut usual, mut large) = (storage(), Vec::new());
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let slots = slots(&mut usual, &mut large, options);
        return match config.parse_response_with_uninit_headers(&mut parsed, buffer, slots) {
            Err(_) => Err("http/1.1 protocol error"),
            Ok(_) => Ok(None),
        };
    };
    if end.at > options.max_head_bytes {
        return Err("headers size exceeds limit");
    }
    let block = buffer.split_to(end.at).freeze();
    let (mut usual, mut large) = (storage(), Vec::new());
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let slots = slots(&mut usual, &mut large, options);
    match config.parse_response_with_uninit_headers(&mut parsed, &block, slots) {
        Ok(httparse::Status::Complete(_)) if end.strict => {}
        Err(httparse::Error::TooManyHeaders) => return Err("headers count exceeds limit"),
        _ => return Err("http/1.1 protocol error"),
    }
    count(counted, parsed.headers);
    if parsed.headers.len() > options.max_headers {
        return Err("headers count exceeds limit");
    }
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else {
        return Err("http/1.1 protocol error");
    };
    let status = StatusCode::from_u16(code).map_err(|_| "http/1.1 protocol error")?;
    let mut headers =
        collect(&block, parsed.headers, 8, options.keys, parsed.reason).ok_or("http/1.1 protocol error")?;
    let mut facts = facts(&headers);
    drop_length(&mut facts, &mut headers, options);
    if facts.bad_length || facts.other_coding || (facts.chunked && facts.length.is_some()) {
        return Err("http/1.1 protocol error");
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // These end with their head (RFC 9110, section 8.6); one that says otherwise would be read in two ways.
        if facts.chunked || facts.length.is_some_and(|n| n > 0) {
            return Err("http/1.1 protocol error");
        }
        headers.remove(&http::header::CONTENT_LENGTH);
    }
    headers.remove(&http::header::TRANSFER_ENCODING);
    let protocol = if version == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let bodiless = *request == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || (status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS);
    let tunnel =
        status == StatusCode::SWITCHING_PROTOCOLS || (*request == Method::CONNECT && status.is_success());
    let framing = match (facts.chunked, facts.length) {
        _ if bodiless => Framing::None,
        _ if tunnel => Framing::UntilClose,
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(n)) => Framing::Length(n),
        (false, None) => Framing::UntilClose,
    };
    let keep_alive = framing != Framing::UntilClose
        && if protocol == Protocol::Http10 { facts.keep_alive } else { !facts.close };
    Ok(Some(ParsedResponse { head: ResponseHead { status, protocol, headers }, framing, keep_alive }))
}
