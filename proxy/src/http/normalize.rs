//! The path as routes, filters and upstreams see it: dot segments resolved, slashes merged, escaped slashes treated, so that
//! no two of them can understand it differently.

use bytes::Bytes;

/// What becomes of `%2F` and `%5C` in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// The request is refused with 400.
    Reject,
    /// The client is redirected to the path with plain slashes (307).
    UnescapeAndRedirect,
    /// They become plain slashes.
    UnescapeAndForward,
}

/// How paths are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// Resolve dot segments and turn backslashes into slashes (RFC 3986, section 6).
    pub normalize: bool,
    /// Runs of slashes become one.
    pub merge_slashes: bool,
    /// Escaped slashes.
    pub escaped_slashes: EscapedSlashes,
}

/// What to do with a request after looking at its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathVerdict {
    /// It stays as it is.
    Unchanged,
    /// It is this now.
    Changed(Bytes),
    /// 400.
    Reject,
    /// 307 to this.
    Redirect(Bytes),
}

/// Normalises a path with its query.
pub fn path(path: &Bytes, rules: PathRules) -> PathVerdict {
    // A fragment is never sent by a correct client; Envoy refuses it, since hops differ in what they make of it.
    if path.contains(&b'#') {
        return PathVerdict::Reject;
    }
    let end = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    let (bare, query) = path.split_at(end);
    let mut new: Option<Vec<u8>> = None;
    let mut redirect = false;
    if rules.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(bare)
    {
        match rules.escaped_slashes {
            EscapedSlashes::Reject => return PathVerdict::Reject,
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            _ => {}
        }
        new = Some(unescaped);
    }
    if rules.normalize && needs_canonical(new.as_deref().unwrap_or(bare)) {
        match canonical(new.as_deref().unwrap_or(bare)) {
            Some(canonical) => new = Some(canonical),
            None => return PathVerdict::Reject,
        }
    }
    if rules.merge_slashes && new.as_deref().unwrap_or(bare).windows(2).any(|w| w == b"//") {
        let mut merged = Vec::with_capacity(bare.len());
        for byte in new.as_deref().unwrap_or(bare) {
            if *byte != b'/' || merged.last() != Some(&b'/') {
                merged.push(*byte);
            }
        }
        // Envoy keeps the first and the last slash, even where nothing is between them.
        if merged == b"/" {
            merged.push(b'/');
        }
        new = Some(merged);
    }
    match new {
        None => PathVerdict::Unchanged,
        Some(new) if new == bare => PathVerdict::Unchanged,
        Some(mut new) => {
            new.extend_from_slice(query);
            if redirect { PathVerdict::Redirect(new.into()) } else { PathVerdict::Changed(new.into()) }
        }
    }
}

fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut found = false;
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        match rest {
            [b'%', b'2', b'f' | b'F', ..] => out.push(b'/'),
            [b'%', b'5', b'c' | b'C', ..] => out.push(b'\\'),
            _ => {
                out.push(*first);
                rest = after;
                continue;
            }
        }
        found = true;
        rest = &rest[3..];
    }
    found.then_some(out)
}

/// What Envoy's URL library writes percent-encoded in a path.
fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}') || byte <= b' ' || byte >= 0x7f
}

fn needs_canonical(path: &[u8]) -> bool {
    // One look at the common case: no dot after a slash, nothing escaped or to be escaped, no backslash.
    path.iter().any(|b| matches!(b, b'\\' | b'%') || is_escaped(*b)) || path.windows(2).any(|w| w == b"/.")
}

/// Resolves dot segments, escaped ones included, turns backslashes into slashes, and gives every other byte one spelling. None
/// for a NUL, plain or escaped.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|b| *b == b'/' || *b == b'\\').peekable();
    segments.next();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Some(1) => {
                if last {
                    out.push(b'/');
                }
            }
            Some(2) => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                spell(segment, &mut out)?;
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

/// Appends a segment: unreserved characters plain (RFC 3986, section 2.3), others as they are or percent-encoded. A percent sign
/// that begins no escape is encoded where it would begin one in what is written: else `%%361` would become `%61`, and whoever
/// reads it next would see an `a` that no rule has seen.
fn spell(mut segment: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    /// Encodes the last such percent sign if two digits have come to stand behind it.
    fn settle(out: &mut Vec<u8>, bare: &mut Option<usize>) {
        if let Some(at) = *bare
            && let [b'%', high, low] = out[at..]
        {
            if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() {
                out.splice(at..=at, *b"%25");
            }
            *bare = None;
        }
    }
    let mut bare = None;
    while let Some((first, rest)) = segment.split_first() {
        segment = rest;
        if let (b'%', [high, low, after @ ..]) = (first, rest)
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
        {
            match (high * 16 + low) as u8 {
                0 => return None,
                byte if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                    out.push(byte);
                    settle(out, &mut bare);
                }
                _ => {
                    out.extend_from_slice(&[b'%', rest[0], rest[1]]);
                    bare = None;
                }
            }
            segment = after;
            continue;
        }
        match *first {
            0 => return None,
            b'%' => {
                bare = Some(out.len());
                out.push(b'%');
            }
            byte if is_escaped(byte) => {
                bare = None;
                out.extend_from_slice(&[
                    b'%',
                    DIGITS[usize::from(byte >> 4)],
                    DIGITS[usize::from(byte & 15)],
                ]);
            }
            byte => {
                out.push(byte);
                settle(out, &mut bare);
            }
        }
    }
    Some(())
}

/// How many dots a segment consists of, if of nothing else. Plain dots may have path parameters behind them.
fn dots(mut segment: &[u8]) -> Option<usize> {
    match segment {
        [b'.', b';', ..] => return Some(1),
        [b'.', b'.', b';', ..] => return Some(2),
        _ => {}
    }
    let mut count = 0;
    loop {
        segment = match segment {
            [] => return Some(count),
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_as_the_table_says() {
        use PathVerdict::{Changed, Redirect, Reject, Unchanged};
        let changed = |s: &'static str| Changed(Bytes::from_static(s.as_bytes()));
        let plain = PathRules { normalize: true, ..PathRules::default() };
        let merge = PathRules { merge_slashes: true, ..plain };
        let slashes = |escaped_slashes| PathRules { escaped_slashes, ..plain };
        let cases = [
            ("/a/b?x=/../y", plain, Unchanged),
            ("/a/../b", plain, changed("/b")),
            ("/a/./b/.", plain, changed("/a/b/")),
            ("/a/b/..", plain, changed("/a/")),
            ("/../../a", plain, changed("/a")),
            ("/a/%2e%2E/b?q", plain, changed("/b?q")),
            ("/a/.%2e/b", plain, changed("/b")),
            ("/a\\..\\b", plain, changed("/b")),
            ("/a/..b/...", plain, Unchanged),
            // What Envoy 1.40 makes of these was seen on the wire.
            ("/a%2Db%41%7E", plain, changed("/a-bA~")),
            ("/a%2e%2e/b", plain, changed("/a../b")),
            ("/a\"b<>", plain, changed("/a%22b%3C%3E")),
            ("/!$&'()*+,:=@[]^`{}~_-", plain, changed("/!$&'()*+,:=@[]%5E%60%7B%7D~_-")),
            ("/a/%5c../b", plain, Unchanged),
            ("/a%zz%2", plain, Unchanged),
            // An escape that unescaping would make is none.
            ("/%%361dmin", plain, changed("/%2561dmin")),
            ("/a%7%41%2vE", plain, changed("/a%257A%2vE")),
            ("/%%32e%%32e/a", plain, changed("/%252e%252e/a")),
            ("/%%%3361%2%35c", plain, changed("/%%25361%2525c")),
            ("/%%41%%2f%%4/%41", plain, changed("/%A%%2f%%4/A")),
            ("/a/.;x/b", plain, changed("/a/b")),
            ("/a/..;x=1/b", plain, changed("/b")),
            ("/a/%2e%2e;/b", plain, changed("/a/..;/b")),
            ("/a/;../b", plain, Unchanged),
            ("/a/b/..;?q", plain, changed("/a/?q")),
            ("//../a", plain, changed("/a")),
            ("/a%20b", plain, Unchanged),
            ("/a%00b", plain, Reject),
            ("/a#b", plain, Reject),
            ("/a//b", plain, Unchanged),
            ("/a///b//", merge, changed("/a/b/")),
            ("/a//../b", merge, changed("/a/b")),
            ("//", merge, Unchanged),
            ("///?q", merge, changed("//?q")),
            ("/a/../b", PathRules::default(), Unchanged),
            ("/a%2fb", plain, Unchanged),
            ("/a%2Fb?q", slashes(EscapedSlashes::Reject), Reject),
            ("/a%2Fb", slashes(EscapedSlashes::UnescapeAndForward), changed("/a/b")),
            ("/a%5c..%2fb", slashes(EscapedSlashes::UnescapeAndForward), changed("/b")),
            (
                "/a%2F..%2fb?q",
                slashes(EscapedSlashes::UnescapeAndRedirect),
                Redirect(Bytes::from_static(b"/b?q")),
            ),
        ];
        for (given, rules, expected) in cases {
            assert_eq!(path(&Bytes::from_static(given.as_bytes()), rules), expected, "{given}");
        }
    }
}
