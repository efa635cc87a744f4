//! Which header fields the logs of a connection manager speak of, known when configuration is compiled: those are kept of a
//! request and its answer until it ends. (Of a request to HTTP/1 its whole head is there already, and is kept until there is
//! something to wait for.)

use crate::codec::headers::{HeaderName, Place, place_of};
use crate::codec::{Headers, RequestHead};

/// What is to be kept of the fields of a message.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    all: bool,
    /// The workload's description is among them.
    description: bool,
    names: Vec<(HeaderName, Place)>,
}

/// What is to be kept of a request and its answer.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of the request.
    pub request: Fields,
    /// Of the answer.
    pub response: Fields,
    /// Moments on the way that are only noted where somebody asks for them.
    pub moments: bool,
    /// What is told of the bytes on the wire, if anything is: the name of the first that tells it. They are counted only then.
    pub wire: Option<&'static str>,
    /// Those of the upstreams are among them.
    pub upstream_wire: bool,
}

impl Fields {
    /// Every field.
    pub fn all(&mut self) {
        self.all = true;
    }

    /// Fields of this name.
    pub fn add(&mut self, name: &HeaderName) {
        if !self.names.iter().any(|(known, _)| known == name) {
            self.names.push((name.clone(), place_of(name)));
            self.description |= name.as_str().starts_with("x-envoy-peer-metadata");
        }
    }

    /// Whether the workload's description (`x-envoy-peer-metadata` and its id) is to be kept.
    pub fn have_description(&self) -> bool {
        self.all || self.description
    }

    /// Whether every field is to be kept.
    pub fn are_all(&self) -> bool {
        self.all
    }

    /// Those fields of a message; those of one name in order.
    pub fn of(&self, headers: &Headers) -> Headers {
        if self.all {
            return headers.clone();
        }
        let mut kept = Headers::with_capacity(self.names.len());
        for (name, place) in &self.names {
            if headers.may_repeat() {
                headers.get_all(name).for_each(|v| kept.append_placed(name.clone(), *place, v.clone()));
            } else if let Some(value) = headers.get_placed(name, *place) {
                // A name of our own is copied without a piece of memory of its own.
                kept.append_placed(name.clone(), *place, value.clone());
            }
        }
        kept
    }
}

impl Wanted {
    /// Everything.
    pub fn whole(&mut self) {
        self.request.all();
        self.response.all();
        self.moments = true;
    }

    /// A request's head with those fields.
    pub fn of_request(&self, head: &RequestHead) -> RequestHead {
        RequestHead {
            method: head.method.clone(),
            scheme: head.scheme.clone(),
            authority: head.authority.clone(),
            path: head.path.clone(),
            protocol: head.protocol,
            upgrade: head.upgrade.clone(),
            headers: self.request.of(&head.headers),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::telemetry::access_log::Format;

    fn wanted(format: &str) -> Wanted {
        let mut wanted = Wanted::default();
        Format::text(format).unwrap().wants(&mut wanted);
        wanted
    }

    fn sorted<'a>(names: &[&'a str]) -> Vec<&'a str> {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    }

    #[test]
    fn of_a_message_those_fields_are_kept_that_a_format_names() {
        let fields = ["user-agent", "x-a", "x-b", "x-envoy-original-path", "x-request-id", "grpc-status"];
        let headers: Headers = fields
            .into_iter()
            .chain(["x-a"])
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .collect();
        let kept = |fields: &Fields| {
            let mut kept: Vec<_> = fields.of(&headers).iter().map(|(n, _)| n.to_string()).collect();
            kept.sort();
            kept
        };
        for (format, request, response) in [
            ("%REQ(:METHOD)% %RESPONSE_CODE%", &[][..], &[][..]),
            ("%REQ(X-A?X-B)% %RESP(X-B)%", &["x-a", "x-b", "x-a"], &["x-b"]),
            ("%REQ_WITHOUT_QUERY(USER-AGENT)% %STREAM_ID%", &["user-agent", "x-request-id"], &[]),
            ("%PATH(NQ:ORIG)%", &["x-envoy-original-path"], &[]),
            ("%REQUEST_HEADERS_BYTES%", &[&fields[..], &["x-a"]].concat(), &[]),
            ("%RESPONSE_HEADERS_BYTES%", &[], &[&fields[..], &["x-a"]].concat()),
        ] {
            let wanted = wanted(format);
            assert_eq!(kept(&wanted.request), sorted(request), "{format}");
            assert_eq!(kept(&wanted.response), sorted(response), "{format}");
        }
        let everything = wanted("%CEL(request.headers['x-a'])%");
        assert!(everything.request.are_all() && everything.response.are_all());
    }
}
