//! `envoy.filters.http.compressor`: answers in an encoding that the client takes, as they stream by.

mod accept;
pub mod config;
mod encoder;

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};

use self::accept::Choice;
pub use self::encoder::{Encoded, Library};
use super::config::PerFilter;
use crate::codec::Headers;
use crate::route::text::StringMatch;
use crate::router::{Exchange, Later};
use crate::telemetry::registry::{Counter, Group};

/// The filter of a connection manager.
pub struct Compressor {
    library: Library,
    enabled: bool,
    least: u64,
    content_types: Vec<Box<str>>,
    content_type_matchers: Vec<StringMatch>,
    not_with_etag: bool,
    weaken_etag: bool,
    remove_accept_encoding: bool,
    uncompressible: Vec<u16>,
    first: bool,
    numbers: Arc<Numbers>,
}

/// What a route says.
#[derive(Clone, Copy, Debug)]
pub enum OfRoute {
    /// Nothing is compressed.
    Disabled,
    /// Answers are compressed, even where the filter says otherwise.
    Overrides {
        /// In place of the filter's setting.
        remove_accept_encoding: Option<bool>,
        /// In place of the filter's.
        library: Option<Library>,
    },
}

/// Its counters.
pub struct Numbers {
    _group: Arc<Group>,
    compressed: Counter,
    not_compressed: Counter,
    total_uncompressed_bytes: Counter,
    total_compressed_bytes: Counter,
    content_length_too_small: Counter,
    no_accept_header: Counter,
    header_identity: Counter,
    header_compressor_used: Counter,
    header_compressor_overshadowed: Counter,
    header_wildcard: Counter,
    header_not_valid: Counter,
    not_compressed_etag: Counter,
}

impl Numbers {
    /// What both directions count is told apart by `direction`; what answers alone have is not.
    fn new(scope: String, prefix: &str, direction: &str) -> Self {
        let group = Group::new(scope, Vec::new());
        let counter = |name| group.counter(format!("{prefix}{direction}{name}"));
        let of_answers = |name| group.counter(format!("{prefix}{name}"));
        Self {
            compressed: counter("compressed"),
            not_compressed: counter("not_compressed"),
            total_uncompressed_bytes: counter("total_uncompressed_bytes"),
            total_compressed_bytes: counter("total_compressed_bytes"),
            content_length_too_small: counter("content_length_too_small"),
            no_accept_header: of_answers("no_accept_header"),
            header_identity: of_answers("header_identity"),
            header_compressor_used: of_answers("header_compressor_used"),
            header_compressor_overshadowed: of_answers("header_compressor_overshadowed"),
            header_wildcard: of_answers("header_wildcard"),
            header_not_valid: of_answers("header_not_valid"),
            not_compressed_etag: of_answers("not_compressed_etag"),
            _group: group,
        }
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Arc<Self> {
        Arc::new(Self::new("test".to_owned(), "", ""))
    }
}

/// What the compressors of a chain know of a request.
#[derive(Default)]
struct Known {
    /// What the client takes, as each was told.
    accepts: Vec<(Arc<Compressor>, HeaderValue)>,
    /// What they and the client agree on, once one of them has asked.
    coding: Option<Choice>,
}

/// What is known of an answer beside its fields.
#[derive(Clone, Copy)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// It has no body.
    pub ends: bool,
}

impl Compressor {
    fn enabled(&self, of_route: Option<&PerFilter>) -> bool {
        match of_route {
            Some(PerFilter::Compressor(OfRoute::Disabled)) => false,
            Some(PerFilter::Compressor(OfRoute::Overrides { .. })) => true,
            _ => self.enabled,
        }
    }

    /// The encoding, here.
    pub(super) fn library(&self, of_route: Option<&PerFilter>) -> Library {
        match of_route {
            Some(PerFilter::Compressor(OfRoute::Overrides { library: Some(library), .. })) => *library,
            _ => self.library,
        }
    }

    /// Remembers what the client takes.
    pub(super) fn request_head(self: &Arc<Self>, exchange: &mut Exchange, of_route: Option<PerFilter>) {
        let Some(accepts) = exchange.head.headers.get(&header::ACCEPT_ENCODING).cloned() else { return };
        let remove = match of_route {
            Some(PerFilter::Compressor(OfRoute::Overrides {
                remove_accept_encoding: Some(remove), ..
            })) => remove,
            _ => self.remove_accept_encoding,
        };
        if remove && self.enabled(of_route.as_ref()) {
            exchange.head.headers.remove(&header::ACCEPT_ENCODING);
        }
        let known = exchange.scratch.later().compression.get_or_insert_with(|| Box::<Known>::default());
        if let Some(known) = known.downcast_mut::<Known>() {
            known.accepts.push((self.clone(), accepts));
        }
    }

    /// Decides whether an answer is compressed. `offered` are the chain's compressors, each with what it does here.
    pub(super) fn response_head(
        &self,
        headers: &mut Headers,
        answer: Answer,
        later: Option<&mut Later>,
        of_route: Option<&PerFilter>,
        offered: &[(&Self, Library)],
    ) {
        let big_enough = self.enabled(of_route) && self.is_big_enough(headers);
        let compressible = big_enough && self.is_compressible(headers, answer.status);
        let wanted = !answer.ends && big_enough;
        let mut chosen = None;
        if let Some(later) = later.filter(|_| wanted)
            && let Some(known) = later.compression.as_mut().and_then(|k| k.downcast_mut::<Known>())
            && let Some((_, accepts)) =
                known.accepts.iter().find(|(by, _)| std::ptr::eq(&raw const **by, self))
        {
            // The first that asks decides for all.
            let choice = *known.coding.get_or_insert_with(|| choose(headers, accepts, offered));
            let library = self.library(of_route);
            if self.takes(choice, library) && compressible {
                let numbers = self.numbers.clone();
                later.encode.push(Box::new(move |body| Encoded::wrap(body, library, numbers)));
                chosen = Some(library);
            }
        } else if wanted {
            self.numbers.no_accept_header.inc();
        }
        match chosen {
            Some(library) => {
                self.mark(headers, library);
                self.numbers.compressed.inc();
            }
            None => self.numbers.not_compressed.inc(),
        }
        if compressible {
            vary(headers);
        }
    }

    fn takes(&self, choice: Choice, library: Library) -> bool {
        let numbers = &self.numbers;
        match choice {
            Choice::Named(name) => {
                let ours = name == library.encoding();
                let counter = if ours {
                    &numbers.header_compressor_used
                } else {
                    &numbers.header_compressor_overshadowed
                };
                counter.inc();
                ours
            }
            Choice::Any(name) => {
                numbers.header_wildcard.inc();
                name == library.encoding()
            }
            Choice::Identity => {
                numbers.header_identity.inc();
                false
            }
            Choice::NotValid => {
                numbers.header_not_valid.inc();
                false
            }
        }
    }

    fn is_big_enough(&self, headers: &Headers) -> bool {
        let Some(length) = headers.get_str(&header::CONTENT_LENGTH) else { return true };
        let enough = length.parse::<u64>().is_ok_and(|length| length >= self.least);
        if !enough {
            self.numbers.content_length_too_small.inc();
        }
        enough
    }

    fn is_compressible(&self, headers: &Headers, status: StatusCode) -> bool {
        !status.is_informational()
            && !headers.contains(&header::UPGRADE)
            && self.takes_type(headers)
            && !has_token(headers, &header::CACHE_CONTROL, "no-transform")
            && self.takes_etag(headers)
            && !headers.contains(&header::CONTENT_ENCODING)
            && !self.uncompressible.contains(&status.as_u16())
    }

    fn takes_type(&self, headers: &Headers) -> bool {
        let Some(given) = headers.get(&header::CONTENT_TYPE) else { return true };
        let given = given.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if self.content_types.is_empty() && self.content_type_matchers.is_empty() {
            return true;
        }
        self.content_types.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(given))
            || self.content_type_matchers.iter().any(|matcher| matcher.matches(given))
    }

    fn takes_etag(&self, headers: &Headers) -> bool {
        let refused = self.not_with_etag && !self.weaken_etag && headers.contains(&header::ETAG);
        if refused {
            self.numbers.not_compressed_etag.inc();
        }
        !refused
    }

    /// The fields of an answer that is compressed: a strong validator is none any more.
    fn mark(&self, headers: &mut Headers, library: Library) {
        let etag = headers.get(&header::ETAG).cloned();
        let weak =
            |value: &HeaderValue| value.as_bytes().starts_with(b"W/") || value.as_bytes().starts_with(b"w/");
        if let Some(strong) = etag.filter(|value| !weak(value)) {
            let weakened = [b"W/", strong.as_bytes()].concat();
            match HeaderValue::from_bytes(&weakened) {
                Ok(weakened) if self.weaken_etag => headers.set(header::ETAG, weakened),
                _ => drop(headers.remove(&header::ETAG)),
            }
        }
        headers.remove(&header::CONTENT_LENGTH);
        headers.set(header::CONTENT_ENCODING, HeaderValue::from_static(library.encoding()));
    }
}

/// What the chain's compressors, as far as they take the answer's type, and the client agree on.
fn choose(headers: &Headers, accepts: &HeaderValue, offered: &[(&Compressor, Library)]) -> Choice {
    let mut names: Vec<(&'static str, bool)> = Vec::new();
    for (compressor, library) in offered.iter().filter(|(compressor, _)| compressor.takes_type(headers)) {
        if names.iter().all(|(known, _)| *known != library.encoding()) {
            names.push((library.encoding(), compressor.first));
        }
    }
    accept::choose(&String::from_utf8_lossy(accepts.as_bytes()), &names)
}

pub(super) fn has_token(headers: &Headers, name: &http::HeaderName, token: &str) -> bool {
    headers.get_str(name).is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
}

/// Tells caches that the answer depends on what the client takes.
fn vary(headers: &mut Headers) {
    let wanted = "Accept-Encoding";
    // As Envoy looks for it: in this spelling.
    if headers.get_str(&header::VARY).is_some_and(|v| v.split(',').any(|t| t.trim() == wanted)) {
        return;
    }
    let value = match headers.get_str(&header::VARY) {
        Some(given) if !given.is_empty() => HeaderValue::try_from(format!("{given}, {wanted}")),
        _ => Ok(HeaderValue::from_static(wanted)),
    };
    if let Ok(value) = value {
        headers.set(header::VARY, value);
    }
}
