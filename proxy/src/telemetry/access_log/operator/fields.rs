//! What operators say of a request's and an answer's heads: header fields, the path, the query, the name that was asked for.

use super::super::wanted::Fields;
use super::super::{FormatError, LogContext};
use super::{Operator, bytes, required};
use crate::codec::headers::{HeaderName, Place, place_of};
use crate::codec::{Headers, RequestHead};

/// The path before it was rewritten.
pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// Where a header operator looks.
#[derive(Clone, Debug)]
pub(in super::super) enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Name(HeaderName, Place),
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            other => {
                let name = HeaderName::from_bytes(other.as_bytes()).ok()?;
                let place = place_of(&name);
                Self::Name(name, place)
            }
        })
    }

    pub(super) fn of_request<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let found = match self {
            Self::Method => return Some(head.method.as_str().as_bytes()),
            Self::Path => &head.path,
            Self::Authority => &head.authority,
            Self::Scheme => &head.scheme,
            Self::Status => return None,
            Self::Name(name, place) => return head.headers.get_placed(name, *place).map(|v| v.as_bytes()),
        };
        (!found.is_empty()).then_some(found)
    }

    pub(super) fn of_fields<'a>(&self, headers: &'a Headers) -> Option<&'a [u8]> {
        match self {
            Self::Name(name, place) => headers.get_placed(name, *place).map(|v| v.as_bytes()),
            _ => None,
        }
    }
}

/// A header field and the one to take where it is absent.
#[derive(Clone, Debug)]
pub(in super::super) struct FieldOr(Field, Option<Field>);

impl FieldOr {
    pub(super) fn parse(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        let bad = || FormatError::Arguments(name.to_owned(), "give it a header name, such as (X-REQUEST-ID)");
        let arguments = arguments.filter(|a| !a.is_empty()).ok_or_else(bad)?;
        let (first, other) = match arguments.split_once('?') {
            Some((first, other)) => (first, Some(other)),
            None => (arguments, None),
        };
        Ok(Self(
            Field::parse(first).ok_or_else(bad)?,
            other.map(|o| Field::parse(o).ok_or_else(bad)).transpose()?,
        ))
    }

    pub(super) fn wants(&self, fields: &mut Fields) {
        for field in std::iter::once(&self.0).chain(&self.1) {
            if let Field::Name(name, _) = field {
                fields.add(name);
            }
        }
    }

    /// Whether it is an answer's status, which is no field.
    pub(super) fn is_status(&self) -> bool {
        matches!(self.0, Field::Status)
    }

    pub(super) fn find<'a>(&self, look: impl Fn(&Field) -> Option<&'a [u8]>) -> Option<&'a [u8]> {
        look(&self.0).or_else(|| self.1.as_ref().and_then(look))
    }
}

/// `%PATH(with or without query:which path)%`.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PathOf {
    query: bool,
    /// The one before a rewrite alone, the one now alone; none: the first of them that is there.
    original: Option<bool>,
}

impl PathOf {
    pub(super) fn parse(arguments: &str) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::Arguments(
                "PATH".to_owned(),
                "takes WQ or NQ, then a colon and ORIG, PATH or ORIG_OR_PATH",
            )
        };
        let (query, which) = arguments.split_once(':').unwrap_or((arguments, ""));
        let query = match query {
            "" | "WQ" => true,
            "NQ" => false,
            _ => return Err(bad()),
        };
        let original = match which {
            "PATH" => Some(false),
            "ORIG" => Some(true),
            "" | "ORIG_OR_PATH" => None,
            _ => return Err(bad()),
        };
        Ok(Self { query, original })
    }

    pub(super) fn write(self, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
        let Some(head) = context.request else { return false };
        let before = || head.headers.get(&ORIGINAL_PATH).map(|v| v.as_bytes());
        let path = match self.original {
            Some(true) => before(),
            Some(false) => Some(&head.path[..]),
            None => before().or(Some(&head.path[..])),
        };
        bytes(out, path.filter(|p| !p.is_empty()).map(|v| if self.query { v } else { without_query(v) }))
    }
}

/// A path up to its query.
pub(super) fn without_query(path: &[u8]) -> &[u8] {
    &path[..path.iter().position(|b| *b == b'?').unwrap_or(path.len())]
}

/// What stands behind the question mark of a path; nothing where it has none.
fn query(path: &[u8]) -> Option<&[u8]> {
    let at = path.iter().position(|b| *b == b'?')?;
    path.get(at + 1..)
}

/// `%QUERY_PARAM(name)%`: the first value of a parameter; unlike those that routes match by, it is decoded.
pub(super) fn query_value(path: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    query(path)?.split(|b| *b == b'&').find_map(|pair| {
        let end = pair.iter().position(|b| *b == b'=');
        let (key, value) = end.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        (!pair.is_empty() && decoded(key) == name).then(|| decoded(value))
    })
}

/// `%QUERY_PARAMS%`: all of them, as they came.
pub(super) fn query_whole(path: &[u8]) -> Option<&[u8]> {
    query(path)
}

/// Whether `%QUERY_PARAMS(form)%` is one.
pub(super) fn query_form(arguments: Option<&str>) -> Result<Operator, FormatError> {
    match arguments {
        None | Some("" | "ORIG") => Ok(Operator::QueryWhole),
        Some(_) => Err(FormatError::Arguments("QUERY_PARAMS".to_owned(), "takes ORIG or nothing")),
    }
}

/// Text without percent-encoding (RFC 3986, section 2.1); what is none stays.
fn decoded(mut text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        (text, _) = match rest {
            [high, low, after @ ..] if *first == b'%' => match digit(*high).zip(digit(*low)) {
                Some((high, low)) => (after, out.push((high * 16 + low) as u8)),
                None => (rest, out.push(*first)),
            },
            _ => (rest, out.push(*first)),
        };
    }
    out
}

/// `%REQUESTED_SERVER_NAME(which name:of which host)%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum ServerName {
    /// The name that TLS was asked for, alone.
    Sni,
    /// That name, or else the request's host.
    SniOr(HostOf),
    /// The request's host.
    Host(HostOf),
}

/// Which host of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum HostOf {
    Original,
    Now,
    OriginalOrNow,
}

impl ServerName {
    pub(super) fn parse(arguments: &str) -> Result<Self, FormatError> {
        let bad = || {
            FormatError::Arguments(
                "REQUESTED_SERVER_NAME".to_owned(),
                "takes SNI_ONLY, SNI_FIRST or HOST_FIRST, then a colon and ORIG, HOST or ORIG_OR_HOST",
            )
        };
        let (which, host) = arguments.split_once(':').unwrap_or((arguments, ""));
        let host = match host {
            "ORIG" => HostOf::Original,
            "HOST" => HostOf::Now,
            "" | "ORIG_OR_HOST" => HostOf::OriginalOrNow,
            _ => return Err(bad()),
        };
        Ok(match which {
            "" | "SNI_ONLY" => Self::Sni,
            "SNI_FIRST" => Self::SniOr(host),
            "HOST_FIRST" => Self::Host(host),
            _ => return Err(bad()),
        })
    }

    pub(super) fn wants(self, fields: &mut Fields) {
        if self != Self::Sni {
            fields.add(&ORIGINAL_HOST);
        }
    }

    pub(super) fn write(self, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
        let sni = context.connection.sni.as_deref().map(str::as_bytes);
        let host = |of| host(context, of);
        bytes(
            out,
            match self {
                Self::Sni => sni,
                Self::SniOr(of) => sni.or_else(|| host(of)),
                // Without a host there is still the name.
                Self::Host(of) => host(of).or(sni),
            },
        )
    }
}

fn host<'a>(context: &LogContext<'a>, of: HostOf) -> Option<&'a [u8]> {
    let head = context.request?;
    let before = || head.headers.get(&ORIGINAL_HOST).map(|v| v.as_bytes());
    let now = || Some(&head.authority[..]).filter(|host| !host.is_empty());
    match of {
        HostOf::Original => before(),
        HostOf::Now => now(),
        HostOf::OriginalOrNow => before().or_else(now),
    }
}

/// `%QUERY_PARAM(name)%`.
pub(super) fn query_param(name: &str, arguments: Option<&str>) -> Result<Operator, FormatError> {
    Ok(Operator::Query(required(name, arguments, "give it a parameter's name")?.to_owned()))
}
