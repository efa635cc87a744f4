//! Matching of texts: `envoy.type.matcher.v3.StringMatcher`, and regular expressions as RE2 runs them.

use bytes::Bytes;
use regex::bytes::{Regex, RegexBuilder};

/// A regular expression may not compile to more than this; RE2's own default in Envoy (32768 instructions) is about as
/// much.
pub const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// What a text must be.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Equal to this.
    Exact(Box<[u8]>),
    /// Begin with this.
    Prefix(Box<[u8]>),
    /// End with this.
    Suffix(Box<[u8]>),
    /// Contain this.
    Contains(Box<[u8]>),
    /// Match as a whole.
    Regex(Regex),
}

/// A pattern and how case counts.
#[derive(Clone, Debug)]
pub struct StringMatch {
    /// The pattern; lower-case where case is ignored.
    pub pattern: Pattern,
    /// ASCII case does not count. Has no meaning for regular expressions.
    pub ignore_case: bool,
}

impl StringMatch {
    /// A matcher; patterns that ignore case are folded here, once.
    pub fn new(mut pattern: Pattern, ignore_case: bool) -> Self {
        if ignore_case {
            match &mut pattern {
                Pattern::Exact(p) | Pattern::Prefix(p) | Pattern::Suffix(p) | Pattern::Contains(p) => {
                    p.make_ascii_lowercase();
                }
                Pattern::Regex(_) => {}
            }
        }
        Self { pattern, ignore_case }
    }

    /// A matcher of exactly this text.
    pub fn exact(text: &str) -> Self {
        Self::new(Pattern::Exact(text.as_bytes().into()), false)
    }

    /// Whether `text` matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        match &self.pattern {
            Pattern::Regex(regex) => regex.is_match(text),
            Pattern::Exact(p) => self.same(text, p),
            Pattern::Prefix(p) => text.len() >= p.len() && self.same(&text[..p.len()], p),
            Pattern::Suffix(p) => text.len() >= p.len() && self.same(&text[text.len() - p.len()..], p),
            Pattern::Contains(p) => p.is_empty() || text.windows(p.len()).any(|w| self.same(w, p)),
        }
    }

    fn same(&self, text: &[u8], pattern: &[u8]) -> bool {
        if self.ignore_case { text.eq_ignore_ascii_case(pattern) } else { text == pattern }
    }
}

/// A regular expression that must match the whole text.
///
/// # Errors
/// The parser's own words.
pub fn full_regex(source: &str) -> Result<Regex, String> {
    compile(&format!(r"\A(?:{source})\z"))
}

/// A regular expression that is searched for.
///
/// # Errors
/// The parser's own words.
pub fn search_regex(source: &str) -> Result<Regex, String> {
    compile(source)
}

fn compile(source: &str) -> Result<Regex, String> {
    // RE2's \d, \s and \w are ASCII, so Unicode mode is off; that also lets a pattern meet bytes that are not UTF-8.
    RegexBuilder::new(source).unicode(false).size_limit(REGEX_SIZE_LIMIT).build().map_err(|e| e.to_string())
}

/// A search and what replaces each hit (`envoy.type.matcher.v3.RegexMatchAndSubstitute`).
#[derive(Clone, Debug)]
pub struct Substitution {
    regex: Regex,
    /// Literal pieces and group numbers.
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Box<[u8]>),
    Group(usize),
}

impl Substitution {
    /// A substitution in RE2's notation: `\1` is the first group, `\0` the whole match, `\\` a backslash.
    ///
    /// # Errors
    /// Why pattern or replacement are not well-formed.
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, String> {
        let regex = search_regex(pattern)?;
        let mut pieces = Vec::new();
        let mut text = Vec::new();
        let mut rest = replacement.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'\\' {
                text.push(byte);
                continue;
            }
            match rest.next() {
                Some(b'\\') => text.push(b'\\'),
                Some(digit @ b'0'..=b'9') => {
                    let group = usize::from(digit - b'0');
                    if group >= regex.captures_len() {
                        return Err(format!("\\{group} names a group that the pattern does not have"));
                    }
                    if !text.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                    }
                    pieces.push(Piece::Group(group));
                }
                _ => return Err("a backslash must be followed by a digit or a backslash".to_owned()),
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        Ok(Self { regex, pieces })
    }

    /// `text` with every hit replaced.
    pub fn apply(&self, text: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(text.len() + 16);
        let mut last = 0;
        for captures in self.regex.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(&text[last..whole.start()]);
            for piece in &self.pieces {
                match piece {
                    Piece::Text(t) => out.extend_from_slice(t),
                    Piece::Group(n) => {
                        out.extend_from_slice(captures.get(*n).map_or(&[][..], |g| g.as_bytes()));
                    }
                }
            }
            last = whole.end();
        }
        out.extend_from_slice(&text[last..]);
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_envoy_says() {
        let p = |s: &str| -> Box<[u8]> { s.as_bytes().into() };
        let cases = [
            (StringMatch::exact("true"), "true", true),
            (StringMatch::exact("true"), "TRUE", false),
            (StringMatch::new(Pattern::Exact(p("True")), true), "tRUE", true),
            (StringMatch::new(Pattern::Prefix(p("ab")), false), "abc", true),
            (StringMatch::new(Pattern::Suffix(p("BC")), true), "abc", true),
            (StringMatch::new(Pattern::Contains(p("b")), false), "abc", true),
            (StringMatch::new(Pattern::Contains(p("x")), false), "abc", false),
            (StringMatch::new(Pattern::Regex(full_regex("a|ab").unwrap()), false), "ab", true),
            (StringMatch::new(Pattern::Regex(full_regex("a.").unwrap()), false), "abc", false),
        ];
        for (matcher, text, expected) in cases {
            assert_eq!(matcher.matches(text.as_bytes()), expected, "{matcher:?} {text}");
        }
    }

    #[test]
    fn a_substitution_uses_groups_and_refuses_ones_that_are_not_there() {
        let s = Substitution::new("^/service/([^/]+)(/.*)$", r"\2/instance/\1").unwrap();
        assert_eq!(s.apply(b"/service/foo/v1/api"), "/v1/api/instance/foo");
        assert_eq!(Substitution::new("one", "two").unwrap().apply(b"/xx/one/yy/one"), "/xx/two/yy/two");
        assert!(Substitution::new("one", r"\1").is_err());
        assert!(full_regex("(").is_err());
    }
}
