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

fn needs_canonical(path: &[u8]) -> bool {
    // One look at the common case: no dot after a slash, nothing escaped, no backslash.
    path.contains(&b'\\') || path.contains(&b'%') || path.windows(2).any(|w| w == b"/.")
}

/// Resolves dot segments, escaped ones included, and turns backslashes into slashes. None for a NUL, plain or escaped.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    // Both slashes divide; `%2e` is a dot where a segment consists of dots.
    let mut segments = path.split(|b| *b == b'/' || *b == b'\\').peekable();
    segments.next();
    while let Some(segment) = segments.next() {
        if segment.contains(&0) || segment.windows(3).any(|w| w == b"%00") {
            return None;
        }
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
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

/// How many dots a segment consists of, if of nothing else.
fn dots(mut segment: &[u8]) -> Option<usize> {
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
            ("/a%20b", plain, Unchanged),
            ("/a%00b", plain, Reject),
            ("/a#b", plain, Reject),
            ("/a//b", plain, Unchanged),
            ("/a///b//", merge, changed("/a/b/")),
            ("/a//../b", merge, changed("/a/b")),
            ("/a/../b", PathRules::default(), Unchanged),
            ("/a%2fb", plain, Unchanged),
            ("/a%2Fb", slashes(EscapedSlashes::Reject), Reject),
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
