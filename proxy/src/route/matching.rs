//! Whether a request is a route's: path, header fields, query parameters, gRPC, chance.

use http::HeaderName;
use regex::bytes::Regex;

use super::Asked;
use super::hash::cookie_value;
use super::template::Template;
use super::text::StringMatch;
use super::values::MetadataMatch;
use crate::codec::RequestHead;
use crate::io::metadata::DynamicMetadata;

/// What the path (without the query) must be.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Begin with this.
    Prefix(Box<[u8]>),
    /// Be this.
    Exact(Box<[u8]>),
    /// Be this, or begin with this and a slash.
    SeparatedPrefix(Box<[u8]>),
    /// Match as a whole.
    Regex(Regex),
    /// Be one of these.
    Template(Template),
    /// The method is CONNECT.
    Connect,
}

/// A part of a request that rules speak of by a header name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`.
    Method,
    /// `:authority`, or `host`.
    Authority,
    /// `:path`.
    Path,
    /// `:scheme`.
    Scheme,
    /// A field.
    Name(HeaderName),
}

impl Field {
    /// The field of this name; none if it is not a header name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            other => Self::Name(HeaderName::from_bytes(other.as_bytes()).ok()?),
        })
    }

    /// Calls `f` on the value, several fields of the name joined by commas; on none if there is no such field.
    pub fn with<R>(&self, head: &RequestHead, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let some = |v: &[u8]| if v.is_empty() { None } else { Some(v.to_vec()) };
        match self {
            Self::Method => f(Some(head.method.as_str().as_bytes())),
            Self::Authority if head.authority.is_empty() => f(None),
            Self::Authority => f(Some(&head.authority)),
            Self::Path if head.path.is_empty() => f(None),
            Self::Path => f(Some(&head.path)),
            Self::Scheme => f(some(&head.scheme).as_deref()),
            Self::Name(name) => {
                let mut values = head.headers.get_all(name);
                match (values.next(), values.next()) {
                    (None, _) => f(None),
                    (Some(one), None) => f(Some(one.as_bytes())),
                    (Some(first), Some(second)) => {
                        let mut joined = first.as_bytes().to_vec();
                        for value in std::iter::once(second).chain(values) {
                            joined.push(b',');
                            joined.extend_from_slice(value.as_bytes());
                        }
                        f(Some(&joined))
                    }
                }
            }
        }
    }
}

/// What a header field must be.
#[derive(Clone, Debug)]
pub enum HeaderRule {
    /// There (true) or not there (false).
    Present(bool),
    /// This text.
    Text(StringMatch),
    /// An integer at least the first and less than the second.
    Range(i64, i64),
}

/// `envoy.config.route.v3.HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// The field.
    pub field: Field,
    /// The rule.
    pub rule: HeaderRule,
    /// The rule must not hold. A field that is not there still matches no rule, unless it is treated as empty.
    pub invert: bool,
    /// A field that is not there counts as an empty one.
    pub missing_as_empty: bool,
}

impl HeaderMatch {
    /// Whether the request's field obeys.
    pub fn matches(&self, head: &RequestHead) -> bool {
        let Field::Name(name) = &self.field else {
            return self.field.with(head, |value| self.holds(value.into_iter()));
        };
        self.holds(head.headers.get_all(name).map(|v| v.as_bytes()))
    }

    /// Whether these values of the field obey: one of them is enough.
    fn holds<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        let first = values.next().or(if self.missing_as_empty { Some(b"") } else { None });
        if let HeaderRule::Present(present) = self.rule {
            return (first.is_some() == present) != self.invert;
        }
        let Some(first) = first else { return false };
        let one = |value: &[u8]| match &self.rule {
            HeaderRule::Present(present) => *present,
            HeaderRule::Text(text) => text.matches(value),
            HeaderRule::Range(from, to) => integer(value).is_some_and(|n| n >= *from && n < *to),
        };
        (one(first) || values.any(one)) != self.invert
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    /// The parameter's name, as it stands in the query (nothing is decoded).
    pub name: Box<[u8]>,
    /// What its first value must be; none: there at all.
    pub text: Option<StringMatch>,
    /// With no text: whether it must be there.
    pub present: bool,
}

impl QueryMatch {
    /// Whether the query obeys.
    pub fn matches(&self, query: &[u8]) -> bool {
        let value = query_value(query, &self.name);
        match (&self.text, value) {
            (None, value) => value.is_some() == self.present,
            (Some(text), Some(value)) => text.matches(value),
            (Some(_), None) => false,
        }
    }
}

/// The first value of a query parameter; empty where it has no `=`.
pub fn query_value<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = match pair.iter().position(|b| *b == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        (key == name && !pair.is_empty()).then_some(value)
    })
}

/// A chance as `envoy.type.v3.FractionalPercent` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// So many ...
    pub numerator: u32,
    /// ... of so many: 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Chance {
    /// Always.
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };
    /// Never.
    pub const NEVER: Self = Self { numerator: 0, denominator: 100 };

    /// Whether it comes true for this random number.
    pub fn hits(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// `envoy.config.route.v3.CookieMatcher`.
#[derive(Clone, Debug)]
pub struct CookieMatch {
    /// The cookie's name.
    pub name: String,
    /// What it must be.
    pub text: StringMatch,
    /// It must not be that.
    pub invert: bool,
}

impl CookieMatch {
    /// Whether the request's cookie obeys.
    pub fn matches(&self, head: &RequestHead) -> bool {
        cookie_value(head, &self.name).is_some_and(|value| self.text.matches(value)) != self.invert
    }
}

/// `envoy.config.route.v3.RouteMatch`.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// Case counts in the path (regular expressions say it themselves).
    pub case_sensitive: bool,
    /// Header rules; all must hold.
    pub headers: Vec<HeaderMatch>,
    /// Query rules; all must hold.
    pub query: Vec<QueryMatch>,
    /// Cookies; all must obey.
    pub cookies: Vec<CookieMatch>,
    /// Whether the client must, or must not, have shown a certificate.
    pub certificate_shown: Option<bool>,
    /// Whether it must, or must not, have been found valid.
    pub certificate_valid: Option<bool>,
    /// What filters must have said; all must hold. A route that asks for it is found once they have, if one of them lets the
    /// route be found anew.
    pub metadata: Vec<MetadataMatch>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Only this share of requests.
    pub fraction: Option<Chance>,
}

impl RouteMatch {
    /// A match of every path.
    pub fn any() -> Self {
        Self {
            path: PathMatch::Prefix(b"/".as_slice().into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            certificate_shown: None,
            certificate_valid: None,
            metadata: Vec::new(),
            grpc: false,
            fraction: None,
        }
    }

    /// Whether the request is this route's.
    pub fn matches(&self, asked: &Asked<'_>, ignore_parameters: bool) -> bool {
        let head = asked.head;
        let (path, query) = split_query(&head.path);
        let plain = (ignore_parameters && path.contains(&b';')).then(|| without_parameters(path));
        let path = plain.as_deref().unwrap_or(path);
        self.matches_path(head, path)
            && self.fraction.is_none_or(|f| f.hits(asked.random))
            && (!self.grpc || is_grpc(head))
            && self.headers.iter().all(|h| h.matches(head))
            && self.query.iter().all(|q| q.matches(query))
            && self.cookies.iter().all(|c| c.matches(head))
            && self.matches_peer(asked)
            && (self.metadata.is_empty() || self.matches_metadata(asked))
    }

    /// The first of its rules that the request does not obey, in words; none if it is this route's.
    pub fn misses(&self, asked: &Asked<'_>, ignore_parameters: bool) -> Option<String> {
        if self.matches(asked, ignore_parameters) {
            return None;
        }
        let head = asked.head;
        let (path, query) = split_query(&head.path);
        let plain = if ignore_parameters { without_parameters(path) } else { path.to_vec() };
        if !self.matches_path(head, &plain) {
            return Some(format!("the path {:?} is not its ({})", lossy(path), self.path));
        }
        if self.grpc && !is_grpc(head) {
            return Some("it is for gRPC alone".to_owned());
        }
        if let Some(rule) = self.headers.iter().find(|h| !h.matches(head)) {
            let found = rule.field.with(head, |value| value.map(lossy));
            return Some(format!("{} {}", rule.field, told(found)));
        }
        if let Some(rule) = self.query.iter().find(|q| !q.matches(query)) {
            let found = query_value(query, &rule.name).map(lossy);
            return Some(format!("query parameter {} {}", lossy(&rule.name), told(found)));
        }
        if let Some(rule) = self.cookies.iter().find(|c| !c.matches(head)) {
            return Some(format!("cookie {} {}", rule.name, told(cookie_value(head, &rule.name).map(lossy))));
        }
        if !self.matches_peer(asked) {
            return Some("the client's certificate is not as it asks".to_owned());
        }
        if !self.metadata.is_empty() && !self.matches_metadata(asked) {
            return Some("no filter has said what it asks for".to_owned());
        }
        Some("it is for a share of requests, and chance left this one out".to_owned())
    }

    fn matches_metadata(&self, asked: &Asked<'_>) -> bool {
        let nothing = DynamicMetadata::default();
        let said = asked.metadata.unwrap_or(&nothing);
        self.metadata.iter().all(|m| m.matches_dynamic(said))
    }

    fn matches_peer(&self, asked: &Asked<'_>) -> bool {
        // A certificate that is shown and not found valid ends the handshake.
        let shown = asked.tls.is_some_and(|t| !t.peer_chain.is_empty());
        self.certificate_shown.is_none_or(|wanted| wanted == shown)
            && self.certificate_valid.is_none_or(|wanted| wanted == shown)
    }

    fn matches_path(&self, head: &RequestHead, path: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| if self.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
        match &self.path {
            PathMatch::Connect => head.method == http::Method::CONNECT,
            // A plain CONNECT has no path, so no other rule is for it.
            _ if path.is_empty() => false,
            PathMatch::Prefix(p) => path.len() >= p.len() && same(&path[..p.len()], p),
            PathMatch::Exact(p) => same(path, p),
            PathMatch::SeparatedPrefix(p) => {
                path.len() >= p.len()
                    && same(&path[..p.len()], p)
                    && path.get(p.len()).is_none_or(|next| *next == b'/')
            }
            PathMatch::Regex(regex) => regex.is_match(path),
            PathMatch::Template(template) => template.matches(path),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn told(found: Option<String>) -> String {
    found.map_or_else(|| "is not there".to_owned(), |value| format!("is {value:?}, not as it asks"))
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Method => f.write_str("the method"),
            Self::Authority => f.write_str("the host"),
            Self::Path => f.write_str("the path with its query"),
            Self::Scheme => f.write_str("the scheme"),
            Self::Name(name) => write!(f, "header {name}"),
        }
    }
}

impl std::fmt::Display for PathMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefix(path) => write!(f, "prefix {}", lossy(path)),
            Self::Exact(path) => write!(f, "exact {}", lossy(path)),
            Self::SeparatedPrefix(path) => write!(f, "path prefix {}", lossy(path)),
            Self::Regex(regex) => {
                // As it was written, without what makes it match as a whole.
                let text = regex.as_str();
                let inner = text.strip_prefix(r"\A(?:").and_then(|rest| rest.strip_suffix(r")\z"));
                write!(f, "regex {}", inner.unwrap_or(text))
            }
            Self::Template(_) => f.write_str("a template of paths"),
            Self::Connect => f.write_str("CONNECT"),
        }
    }
}

/// A path without what follows a semicolon in each segment.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|b| *b == b'/');
    let bare = segments.map(|s| s.split(|b| *b == b';').next().unwrap_or_default());
    bare.collect::<Vec<_>>().join(&b'/')
}

/// Path and query (without the question mark).
pub fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|b| *b == b'?') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &[]),
    }
}

/// Whether the request's content type is gRPC's: `application/grpc` alone, or followed by `+` and a message format.
pub fn is_grpc(head: &RequestHead) -> bool {
    head.headers
        .get(&http::header::CONTENT_TYPE)
        .and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}
