//! The ids of a span as they travel in header fields: W3C's `traceparent`, and B3 in one field and in several.

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;

/// `traceparent`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");

/// The ids of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The trace's.
    pub trace: u128,
    /// The span's.
    pub span: u64,
    /// That of the span above.
    pub parent: Option<u64>,
    /// The trace is kept.
    pub sampled: bool,
}

/// What a request brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    /// The ids.
    pub ids: Ids,
    /// `tracestate`.
    pub state: Option<HeaderValue>,
}

/// What is in a request's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing of a trace.
    Nothing,
    /// The span above.
    Context(Came),
    /// Fields that cannot be read: the request is let alone, as Envoy does.
    Nonsense,
}

/// A new id.
pub fn fresh() -> u64 {
    fastrand::u64(1..)
}

/// Reads `traceparent` and `tracestate`.
pub fn traceparent(headers: &Headers) -> Found {
    let Some(value) = headers.get(&TRACEPARENT) else { return Found::Nothing };
    let parsed = || {
        let text: &[u8; 55] = value.as_bytes().try_into().ok()?;
        let dashes = text[2] == b'-' && text[35] == b'-' && text[52] == b'-';
        let eight = |at: usize| eight_of(text.get(at..at + 8)?.try_into().ok()?).map(u128::from);
        let trace = eight(3)? << 96 | eight(11)? << 64 | eight(19)? << 32 | eight(27)?;
        let span = eight(36)? << 32 | eight(44)?;
        // The version, which may be any, and the flags.
        let rest = eight_of([b'0', b'0', b'0', b'0', text[0], text[1], text[53], text[54]])?;
        (dashes && trace != 0 && span != 0).then_some((trace, span as u64, rest & 1 == 1))
    };
    let Some((trace, span, sampled)) = parsed() else { return Found::Nonsense };
    let name = TRACESTATE;
    let state = match headers.may_repeat() {
        false => headers.get(&name).cloned(),
        true => {
            let all: Vec<_> = headers.get_all(&name).map(HeaderValue::as_bytes).collect();
            match all.is_empty() {
                true => None,
                false => HeaderValue::from_maybe_shared(bytes::Bytes::from(all.join(&b","[..]))).ok(),
            }
        }
    };
    Found::Context(Came { ids: Ids { trace, span, parent: None, sampled }, state })
}

/// Reads B3's fields; `decided` is for a request that does not say whether its trace is kept. `w3c`: where there are none, W3C's.
pub fn b3(headers: &Headers, decided: bool, w3c: bool) -> (Found, bool) {
    if let Some(value) = headers.get(&B3) {
        return single(value.as_bytes(), decided);
    }
    // Who looks for a fault wants the trace, whatever else is said.
    let debug = headers.get(&B3_FLAGS).is_some_and(|v| v.as_bytes() == b"1");
    let said = headers.get(&B3_SAMPLED).map_or(decided, |v| matches!(v.as_bytes(), b"1" | b"true"));
    let sampled = debug || said;
    let (Some(trace), Some(span)) = (headers.get(&B3_TRACE), headers.get(&B3_SPAN)) else {
        return match w3c.then(|| traceparent(headers)) {
            Some(Found::Context(came)) => {
                let sampled = if headers.contains(&B3_SAMPLED) { sampled } else { debug || came.ids.sampled };
                let ids = Ids { sampled, ..came.ids };
                (Found::Context(Came { ids, ..came }), sampled)
            }
            _ => (Found::Nothing, sampled),
        };
    };
    let parsed = || {
        let trace = trace.as_bytes();
        if trace.len() != 32 && trace.len() > 16 {
            return None;
        }
        let parent = match headers.get(&B3_PARENT) {
            Some(value) if !value.is_empty() => Some(short(value.as_bytes())?),
            _ => None,
        };
        Some(Ids { trace: number(trace)?, span: short(span.as_bytes())?, parent, sampled })
    };
    match parsed() {
        Some(ids) => (Found::Context(Came { ids, state: None }), sampled),
        None => (Found::Nonsense, sampled),
    }
}

/// B3 in one field: `TRACE-SPAN`, `-SAMPLED`, `-PARENT`; or whether the trace is kept alone.
fn single(text: &[u8], decided: bool) -> (Found, bool) {
    let flag = |text: &[u8]| match text {
        b"0" => Some(false),
        b"1" | b"d" => Some(true),
        _ => None,
    };
    if text.len() == 1 {
        return match flag(text) {
            Some(sampled) => (Found::Nothing, sampled),
            None => (Found::Nonsense, decided),
        };
    }
    let mut parts = text.split(|b| *b == b'-');
    let mut next = || parts.next();
    let (trace, span, sampled, parent, more) = (next(), next(), next(), next(), next());
    let parsed = || {
        let trace = trace.filter(|t| t.len() == 16 || t.len() == 32)?;
        let span = short(span.filter(|s| s.len() == 16)?)?;
        let sampled = sampled.map_or(Some(decided), flag)?;
        let parent = match parent {
            Some(parent) => Some(short(parent).filter(|_| parent.len() == 16)?),
            None => None,
        };
        more.is_none().then_some(Ids { trace: number(trace)?, span, parent, sampled })
    };
    match parsed() {
        Some(ids) => (Found::Context(Came { ids, state: None }), ids.sampled),
        None => (Found::Nonsense, decided),
    }
}

/// Puts `traceparent` behind the other fields.
pub fn write_traceparent(ids: &Ids, headers: &mut Headers) {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    digits(&mut text[3..35], ids.trace);
    digits(&mut text[36..52], ids.span.into());
    text[54] = b'0' + u8::from(ids.sampled);
    put(headers, TRACEPARENT, &text);
}

/// Puts B3's fields behind the others: in the one field if the request came with it.
pub fn write_b3(ids: &Ids, headers: &mut Headers) {
    let sampled: &[u8] = if ids.sampled { b"1" } else { b"0" };
    let (trace, span) = (b3_trace(ids.trace), hex(ids.span));
    let parent = ids.parent.map(hex);
    if headers.contains(&B3) {
        let mut text = [trace.as_bytes(), b"-", &span, b"-", sampled].concat();
        if let Some(parent) = parent {
            text.push(b'-');
            text.extend_from_slice(&parent);
        }
        return put(headers, B3, &text);
    }
    put(headers, B3_TRACE, trace.as_bytes());
    put(headers, B3_SPAN, &span);
    if let Some(parent) = parent {
        put(headers, B3_PARENT, &parent);
    }
    put(headers, B3_SAMPLED, sampled);
}

/// A trace's id as B3 writes it: of 64 bits where it needs no more.
pub fn b3_trace(trace: u128) -> String {
    match u64::try_from(trace) {
        Ok(narrow) => format!("{narrow:016x}"),
        Err(_) => format!("{trace:032x}"),
    }
}

/// Envoy puts a field that it writes anew behind the others.
fn put(headers: &mut Headers, name: HeaderName, value: &[u8]) {
    // Digits and dashes make a value.
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.set_last(name, value);
    }
}

fn hex(id: u64) -> [u8; 16] {
    let mut text = [b'0'; 16];
    digits(&mut text, id.into());
    text
}

/// Each byte of eight the same.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Fills the text, two digits for each byte, with the last bytes of the number.
fn digits(text: &mut [u8], number: u128) {
    let mut halves = text.rchunks_exact_mut(8);
    let mut left = number;
    for eight in &mut halves {
        eight.copy_from_slice(&eight_digits(left as u32));
        left >>= 32;
    }
    let rest = halves.into_remainder();
    let last = eight_digits(left as u32);
    rest.copy_from_slice(&last[8 - rest.len()..]);
}

/// A number's eight digits, all at once: a request has fifty to be written.
fn eight_digits(number: u32) -> [u8; 8] {
    // Each half-byte in a byte of its own, the first in front.
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let spread = (spread | spread << 4) & each(0xf);
    letters(spread).to_be_bytes()
}

/// The digits of eight half-bytes.
fn letters(spread: u64) -> u64 {
    // Those above nine, whose digits are letters.
    let above = (spread + each(6)) >> 4 & each(1);
    spread + each(b'0') + above * u64::from(b'a' - b'0' - 10)
}

/// The number that hexadecimal digits are: one to thirty-two of them.
pub fn number(text: &[u8]) -> Option<u128> {
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    let mut eights = text.rchunks_exact(8);
    let (mut sum, mut place) = (0u128, 0);
    for eight in &mut eights {
        sum |= u128::from(eight_of(eight.try_into().ok()?)?) << place;
        place += 32;
    }
    let rest = eights.remainder();
    if !rest.is_empty() {
        let mut eight = [b'0'; 8];
        eight[8 - rest.len()..].copy_from_slice(rest);
        sum |= u128::from(eight_of(eight)?) << place;
    }
    Some(sum)
}

/// The number that eight digits are, all at once: a request has up to fifty to be read.
fn eight_of(digits: [u8; 8]) -> Option<u32> {
    let text = u64::from_be_bytes(digits);
    // Letters have a bit that digits have not; with another one they are small.
    let letter = text & each(0x40);
    let spread = (text & each(0xf)) + (letter >> 6) * 9;
    if spread & !each(0xf) != 0 || letters(spread) != text | letter >> 1 {
        return None;
    }
    let pairs = (spread | spread >> 4) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((fours | fours >> 16) as u32)
}

fn short(text: &[u8]) -> Option<u64> {
    u64::try_from(number(text)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Headers {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const SPAN: u64 = 0xb7ad_6b71_6920_3331;

    fn came(ids: Ids) -> Found {
        Found::Context(Came { ids, state: None })
    }

    #[test]
    fn digits_are_read_and_written_as_the_standard_library_does_it() {
        for byte in 0..=255u8 {
            for at in 0..8 {
                let mut text = *b"0a9fF1bC";
                text[at] = byte;
                let wanted = std::str::from_utf8(&text).ok().filter(|t| !t.starts_with('+'));
                let wanted = wanted.and_then(|t| u32::from_str_radix(t, 16).ok());
                assert_eq!(eight_of(text), wanted, "{text:?}");
            }
        }
        fastrand::seed(3);
        for length in (1..=16).map(|pairs| 2 * pairs).chain([1, 7, 17]) {
            let whole = fastrand::u128(..);
            let of_length = whole & (u128::MAX >> (128 - 4 * length));
            let mut text = vec![b'x'; length];
            digits(&mut text, whole);
            assert_eq!(String::from_utf8_lossy(&text), format!("{of_length:0length$x}"));
            assert_eq!(number(&text), Some(of_length));
            text[length / 2] = b'g';
            assert_eq!(number(&text), None);
        }
        assert_eq!((number(b""), number(&[b'0'; 33])), (None, None));
    }

    #[test]
    fn traceparent_is_read_as_envoy_reads_it() {
        let of = |value: &'static str| traceparent(&fields(&[("traceparent", value)]));
        let ids = Ids { trace: TRACE, span: SPAN, parent: None, sampled: true };
        for good in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03",
        ] {
            assert_eq!(of(good), came(ids), "{good}");
        }
        let not = of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        assert_eq!(not, came(Ids { sampled: false, ..ids }));
        for bad in [
            "",
            "xx",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(bad), Found::Nonsense, "{bad}");
        }
        assert_eq!(traceparent(&fields(&[("tracestate", "a=b")])), Found::Nothing);
        let states = fields(&[
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=b"),
            ("tracestate", "c=d"),
        ]);
        let Found::Context(Came { state, .. }) = traceparent(&states) else { panic!("it can be read") };
        assert_eq!(state.unwrap(), "a=b,c=d");
    }

    #[test]
    fn b3_comes_in_one_field_or_in_several_and_goes_out_as_it_came() {
        let ids = Ids { trace: TRACE, span: SPAN, parent: None, sampled: true };
        let one = [("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1")];
        assert_eq!(b3(&fields(&one), false, false), (came(ids), true));
        let several = [
            ("x-b3-traceid", "8448eb211c80319c"),
            ("x-b3-spanid", "b7ad6b7169203331"),
            ("x-b3-parentspanid", "00000000000000aa"),
            ("x-b3-sampled", "0"),
        ];
        let narrow =
            Ids { trace: TRACE & u128::from(u64::MAX), span: SPAN, parent: Some(0xaa), sampled: false };
        assert_eq!(b3(&fields(&several), true, false), (came(narrow), false));
        assert!(b3(&fields(&several[..2]), true, false).1, "who says nothing leaves it to us");
        assert_eq!(b3(&fields(&[("b3", "0")]), true, false), (Found::Nothing, false));
        let forced = [("x-b3-flags", "1"), ("x-b3-sampled", "0")];
        assert_eq!(b3(&fields(&forced), false, false), (Found::Nothing, true));
        assert_eq!(b3(&fields(&[("b3", "d")]), false, false), (Found::Nothing, true));
        for bad in ["bad", "x", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-2"] {
            assert_eq!(b3(&fields(&[("b3", bad)]), true, false).0, Found::Nonsense, "{bad}");
        }
        let mut headers = fields(&one);
        write_b3(&Ids { parent: Some(SPAN), span: 2, ..ids }, &mut headers);
        let text = "0af7651916cd43dd8448eb211c80319c-0000000000000002-1-b7ad6b7169203331";
        assert_eq!(headers, fields(&[("b3", text)]));
        let mut headers = fields(&several);
        write_b3(&Ids { span: 2, ..narrow }, &mut headers);
        let mut wanted = several;
        wanted[1].1 = "0000000000000002";
        assert_eq!(headers, fields(&wanted));
    }

    #[test]
    fn w3c_serves_where_there_is_no_b3_and_that_is_wanted() {
        let headers = fields(&[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]);
        let ids = Ids { trace: TRACE, span: SPAN, parent: None, sampled: false };
        assert_eq!(b3(&headers, true, true), (came(ids), false));
        assert_eq!(b3(&headers, true, false), (Found::Nothing, true));
        let mut headers = headers;
        write_traceparent(&Ids { span: 1, sampled: true, ..ids }, &mut headers);
        let text = "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01";
        assert_eq!(headers, fields(&[("traceparent", text)]));
    }
}
