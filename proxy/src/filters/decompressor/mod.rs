//! `envoy.filters.http.decompressor`: takes the encoding from requests and answers, as they stream by, so that whoever stands behind
//! sees them as they were.

pub mod config;
mod decoder;

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};

pub use self::decoder::Library;
use self::decoder::{Decoded, Trail};
use super::compressor::has_token;
use crate::codec::Headers;
use crate::router::{Exchange, Flow, Scratch};
use crate::telemetry::registry::{Counter, Group};

/// The filter of a connection manager.
pub struct Decompressor {
    library: Library,
    request: Way,
    response: Way,
    /// Servers are told what is understood here.
    advertise: bool,
    /// The trailers that tell how many bytes there were, encoded and decoded.
    told: (HeaderName, HeaderName),
}

/// What becomes of messages of one direction.
struct Way {
    enabled: bool,
    ignore_no_transform: bool,
    numbers: Arc<Numbers>,
}

/// Its counters.
pub struct Numbers {
    _group: Arc<Group>,
    decompressed: Counter,
    not_decompressed: Counter,
    total_uncompressed_bytes: Counter,
    total_compressed_bytes: Counter,
}

impl Numbers {
    fn new(scope: &str, prefix: &str) -> Arc<Self> {
        let group = Group::new(scope, Vec::new());
        let counter = |name| group.counter(format!("{prefix}{name}"));
        Arc::new(Self {
            decompressed: counter("decompressed"),
            not_decompressed: counter("not_decompressed"),
            total_uncompressed_bytes: counter("total_uncompressed_bytes"),
            total_compressed_bytes: counter("total_compressed_bytes"),
            _group: group,
        })
    }
}

impl Decompressor {
    /// Decodes a request's body, and tells the server what its answer may be encoded in.
    pub(super) fn request_head(&self, exchange: &mut Exchange) {
        if self.response.enabled && self.advertise {
            advertise(&mut exchange.head.headers, self.library.encoding());
        }
        if exchange.body.is_empty() || !self.takes(&self.request, &mut exchange.head.headers) {
            return;
        }
        let body = std::mem::take(&mut exchange.body);
        let trail = self.trail(&self.request, Some(exchange.flow.clone()));
        exchange.body = Decoded::wrap(body, self.library, trail);
    }

    /// Has an answer's body decoded, if it is to be. `ends`: it has none.
    pub(super) fn response_head(&self, headers: &mut Headers, ends: bool, scratch: &mut Scratch) {
        if ends || !self.takes(&self.response, headers) {
            return;
        }
        let (library, trail) = (self.library, self.trail(&self.response, None));
        scratch.later().encode.push(Box::new(move |body| Decoded::wrap(body, library, trail)));
    }

    /// Whether a message is decoded; its head is changed, then.
    fn takes(&self, way: &Way, headers: &mut Headers) -> bool {
        let transforms =
            way.ignore_no_transform || !has_token(headers, &header::CACHE_CONTROL, "no-transform");
        let rest = headers
            .get_str(&header::CONTENT_ENCODING)
            .and_then(|codings| rest(codings, self.library.encoding()));
        let (true, true, Some(rest)) = (way.enabled, transforms, rest) else {
            way.numbers.not_decompressed.inc();
            return false;
        };
        way.numbers.decompressed.inc();
        headers.remove(&header::CONTENT_LENGTH);
        match HeaderValue::try_from(rest) {
            Ok(rest) if !rest.is_empty() => headers.set(header::CONTENT_ENCODING, rest),
            _ => drop(headers.remove(&header::CONTENT_ENCODING)),
        }
        true
    }

    fn trail(&self, way: &Way, flow: Option<Rc<Flow>>) -> Trail {
        Trail { numbers: way.numbers.clone(), told: self.told.clone(), flow }
    }
}

/// The codings that are left when the first one is taken away; none if that is another. As Envoy reads the field.
fn rest(codings: &str, ours: &str) -> Option<String> {
    let (first, rest) = codings.split_once(',').unwrap_or((codings, ""));
    first.trim().eq_ignore_ascii_case(ours).then(|| rest.trim().to_owned())
}

fn advertise(headers: &mut Headers, encoding: &'static str) {
    let value = match headers.get_str(&header::ACCEPT_ENCODING) {
        Some(given) if !given.is_empty() => HeaderValue::try_from(format!("{given},{encoding}")),
        _ => Ok(HeaderValue::from_static(encoding)),
    };
    if let Ok(value) = value {
        headers.set(header::ACCEPT_ENCODING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::rest;

    #[test]
    fn the_first_coding_is_taken_away_and_others_stay() {
        assert_eq!(rest("gzip", "gzip").as_deref(), Some(""));
        assert_eq!(rest(" GZip , br", "gzip").as_deref(), Some("br"));
        assert_eq!(rest("br, gzip", "gzip"), None);
        assert_eq!(rest("gzipped", "gzip"), None);
    }
}
