//! Header fields in the order they were received.
//!
//! A flat list: requests carry ten to thirty fields, for which a scan that compares interned names beats hashing, and
//! order and duplicates survive as they do in Envoy's header map. Values are slices of the read buffer where possible.

use std::sync::Arc;

pub use http::{HeaderName, HeaderValue};

pub use super::names::Place;
use super::spelling::Spelling;

/// Header fields, names lower-case, in wire order; pseudo-header fields are never in here.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Which names there may be. Most of what is looked for in a message is not there, and needs no look at its fields.
    names: Names,
    /// A name came more than once, and may still be there so.
    twice: bool,
    /// How the names were spelt, where that is kept.
    pub spelling: Option<Arc<Spelling>>,
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.fields == other.fields && self.spelling == other.spelling
    }
}

impl Eq for Headers {}

/// A set of names that may take others for its own. Names do not leave it.
#[derive(Clone, Copy, Debug, Default)]
struct Names([u64; 2]);

impl Names {
    const fn new() -> Self {
        Self([0; 2])
    }

    /// The word and the bit of a place.
    #[inline]
    const fn bit(Place(place): Place) -> (usize, u64) {
        (place / 64 % 2, 1 << (place % 64))
    }

    #[inline]
    fn may_have(self, place: Place) -> bool {
        let (word, bit) = Self::bit(place);
        self.0[word] & bit != 0
    }

    /// Adds a name; says whether it may have been there.
    #[inline]
    fn add(&mut self, place: Place) -> bool {
        let (word, bit) = Self::bit(place);
        let before = self.0[word] & bit != 0;
        self.0[word] |= bit;
        before
    }
}

/// The place of a name.
#[inline]
pub fn place_of(name: &HeaderName) -> Place {
    Place::of(name.as_str().as_bytes())
}

impl Headers {
    /// An empty list; allocates nothing.
    pub const fn new() -> Self {
        Self { fields: Vec::new(), names: Names::new(), twice: false, spelling: None }
    }

    /// An empty list with room for `n` fields.
    pub fn with_capacity(n: usize) -> Self {
        Self { fields: Vec::with_capacity(n), ..Self::new() }
    }

    /// The number of fields, duplicates counted.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The first value of `name`.
    #[inline]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        if self.names.may_have(place_of(name)) { self.find(name) } else { None }
    }

    /// The same for a name whose place is known.
    #[inline]
    pub fn get_placed(&self, name: &HeaderName, place: Place) -> Option<&HeaderValue> {
        if self.names.may_have(place) { self.find(name) } else { None }
    }

    /// Whether a name may be there more than once.
    pub fn may_repeat(&self) -> bool {
        self.twice
    }

    fn find(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The first value of `name`, as text where it is visible ASCII.
    pub fn get_str(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(|v| v.to_str().ok())
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> + 'a {
        let fields = if self.names.may_have(place_of(name)) { &self.fields[..] } else { &[] };
        fields.iter().filter(move |(n, _)| n == name).map(|(_, v)| v)
    }

    /// Whether `name` is there.
    #[inline]
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.names.may_have(place_of(name)) && self.find(name).is_some()
    }

    /// Adds a field at the end, keeping those of the same name.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        let place = place_of(&name);
        self.append_placed(name, place, value);
    }

    /// The same for a name whose place is known. In line, for every field of every message comes by here.
    #[inline(always)]
    pub fn append_placed(&mut self, name: HeaderName, place: Place, value: HeaderValue) {
        if self.names.add(place) {
            self.twice |= self.find(&name).is_some();
        }
        self.fields.push((name, value));
    }

    /// Adds a field to a message of this kind: to the value that is there, behind a comma, if there is at most one field of
    /// the name in such messages, else at the end.
    pub fn append_to(&mut self, of: Of, name: HeaderName, value: HeaderValue) {
        let before =
            self.names.may_have(place_of(&name)).then(|| self.fields.iter().position(|(n, _)| *n == name));
        match before.flatten() {
            Some(at) if is_singular(of, &name) => join(&mut self.fields[at].1, &value),
            _ => self.append(name, value),
        }
    }

    /// Joins the fields of which a message of this kind has at most one, as Envoy does when it takes a message in: whatever
    /// looks at one of them sees all that was sent.
    pub fn join_singular(&mut self, of: Of) {
        // Nearly no message has a name twice.
        if !self.twice {
            return;
        }
        let again = |at: usize, name: &HeaderName| {
            self.fields[..at].iter().any(|(n, _)| n == name) && is_singular(of, name)
        };
        if self.fields.iter().enumerate().any(|(at, (name, _))| again(at, name)) {
            for (name, value) in std::mem::take(&mut self.fields) {
                self.append_to(of, name, value);
            }
        }
    }

    /// Sets `name` to one value: in place of its first field (the others go), else at the end.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        if !self.names.add(place_of(&name)) {
            return self.fields.push((name, value));
        }
        match self.fields.iter().position(|(n, _)| *n == name) {
            None => self.fields.push((name, value)),
            Some(first) => {
                self.fields[first].1 = value;
                // Nearly no message has another.
                if self.twice && self.fields[first + 1..].iter().any(|(n, _)| *n == name) {
                    let mut at = 0;
                    self.fields.retain(|(n, _)| {
                        at += 1;
                        at - 1 <= first || *n != name
                    });
                }
            }
        }
    }

    /// Sets `name` to one value behind all other fields.
    pub fn set_last(&mut self, name: HeaderName, value: HeaderValue) {
        if self.names.add(place_of(&name)) {
            self.take_out(&name);
        }
        self.fields.push((name, value));
    }

    /// Removes every field of `name`; says whether there was one.
    #[inline]
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        self.names.may_have(place_of(name)) && self.take_out(name)
    }

    fn take_out(&mut self, name: &HeaderName) -> bool {
        self.take(name).is_some()
    }

    /// Removes every field of `name`; gives the first value, and whether there was another.
    pub fn take(&mut self, name: &HeaderName) -> Option<(HeaderValue, bool)> {
        let first = match self.twice {
            true => self.fields.iter().position(|(n, _)| n == name)?,
            // There is one at most. What proxies have written is what they take out, and it stands behind all else.
            false => self.fields.iter().rposition(|(n, _)| n == name)?,
        };
        let (_, value) = self.fields.remove(first);
        // Nearly no message has another.
        let more = self.twice && self.fields[first..].iter().any(|(n, _)| n == name);
        if more {
            self.fields.retain(|(n, _)| n != name);
        }
        Some((value, more))
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.fields.retain(|(n, v)| keep(n, v));
    }

    /// The fields in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&HeaderName, &HeaderValue)> + '_ {
        self.fields.iter().map(|(n, v)| (n, v))
    }
}

/// What message fields belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A request.
    Request,
    /// A response.
    Response,
}

/// Fields that requests and responses have once (Envoy's inline headers); those that framing or the authority depend on are
/// the codecs' matter.
const OF_BOTH: &[&str] =
    &["content-type", "x-request-id", "via", "x-envoy-decorator-operation", "x-envoy-attempt-count"];
const OF_REQUESTS: &[&str] = &[
    "origin",
    "access-control-request-headers",
    "access-control-request-method",
    "te",
    "user-agent",
    "grpc-timeout",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-client-cert",
    "x-client-trace-id",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
];
const OF_RESPONSES: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "date",
    "location",
    "server",
    "proxy-status",
    "grpc-message",
    "grpc-status",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-service-time",
];

fn is_singular(of: Of, name: &HeaderName) -> bool {
    let own = if of == Of::Request { OF_REQUESTS } else { OF_RESPONSES };
    OF_BOTH.iter().chain(own).any(|n| *n == name.as_str())
}

fn join(value: &mut HeaderValue, more: &HeaderValue) {
    if value.is_empty() {
        *value = more.clone();
    } else if !more.is_empty() {
        let joined = [value.as_bytes(), b",", more.as_bytes()].concat();
        // Both were values, and so is this.
        if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
            *value = joined;
        }
    }
}

impl IntoIterator for Headers {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<(HeaderName, HeaderValue)>;
    fn into_iter(self) -> Self::IntoIter {
        self.fields.into_iter()
    }
}

impl Extend<(HeaderName, HeaderValue)> for Headers {
    fn extend<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, fields: I) {
        fields.into_iter().for_each(|(name, value)| self.append(name, value));
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Headers {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        let fields = fields.into_iter();
        let mut headers = Self::with_capacity(fields.size_hint().0);
        headers.extend(fields);
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&'static str, &'static str)]) -> Headers {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn set_replaces_the_first_field_and_drops_its_duplicates() {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]);
        headers.set(HeaderName::from_static("a"), HeaderValue::from_static("9"));
        assert_eq!(headers, list(&[("a", "9"), ("b", "2"), ("c", "4")]));
        headers.set(HeaderName::from_static("d"), HeaderValue::from_static("5"));
        assert_eq!(headers, list(&[("a", "9"), ("b", "2"), ("c", "4"), ("d", "5")]));
    }

    #[test]
    fn what_was_looked_for_before_it_came_is_found_when_it_came() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let mut headers = Headers::new();
        // More names than there are places, so that most share theirs with others.
        let names: Vec<_> =
            (0..300).map(|n| HeaderName::try_from(format!("x-{n}-{}", n * 7)).unwrap()).collect();
        for (number, one) in names.iter().enumerate() {
            assert!(!headers.contains(one) && headers.get(one).is_none() && !headers.remove(one));
            headers.append(one.clone(), number.into());
            assert_eq!(headers.get(one).unwrap(), &number.to_string());
        }
        headers.join_singular(Of::Request);
        assert_eq!(headers.len(), 300);
        headers.set(names[7].clone(), HeaderValue::from_static("new"));
        assert_eq!((headers.len(), headers.get_str(&names[7])), (300, Some("new")));
        assert!(headers.remove(&names[7]) && !headers.contains(&names[7]) && !headers.remove(&names[7]));
        headers.append(name("via"), HeaderValue::from_static("a"));
        headers.append_to(Of::Request, name("via"), HeaderValue::from_static("b"));
        assert_eq!(headers.get_str(&name("via")), Some("a,b"));
        let copy = std::mem::take(&mut headers);
        assert!(headers.is_empty() && !headers.contains(&name("via")) && copy.contains(&name("via")));
    }

    #[test]
    fn what_is_set_behind_all_others_is_there_once_and_last() {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]);
        for (name, text) in [
            ("a", "b: 2, c: 4, a: 9"),
            ("d", "b: 2, c: 4, a: 9, d: 9"),
            ("b", "c: 4, a: 9, d: 9, b: 9"),
            ("b", "c: 4, a: 9, d: 9, b: 9"),
        ] {
            headers.set_last(HeaderName::from_static(name), HeaderValue::from_static("9"));
            let all: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
            assert_eq!(all.join(", "), text);
        }
        headers.append(HeaderName::from_static("b"), HeaderValue::from_static("8"));
        assert_eq!(
            headers.take(&HeaderName::from_static("b")).unwrap(),
            (HeaderValue::from_static("9"), true)
        );
        assert!(!headers.contains(&HeaderName::from_static("b")));
    }

    #[test]
    fn remove_takes_every_duplicate() {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("a", "3")]);
        assert!(headers.remove(&HeaderName::from_static("a")));
        assert!(!headers.remove(&HeaderName::from_static("a")));
        assert_eq!(headers, list(&[("b", "2")]));
    }

    #[test]
    fn fields_that_a_message_has_once_are_joined_and_others_stay_apart() {
        let mut headers: Headers =
            [("x-a", "1"), ("user-agent", "a"), ("x-a", "2"), ("user-agent", ""), ("user-agent", "b")]
                .into_iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect();
        let mut answer = headers.clone();
        headers.join_singular(Of::Request);
        let text: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(text, ["x-a: 1", "user-agent: a,b", "x-a: 2"]);
        answer.join_singular(Of::Response);
        assert_eq!(answer.len(), 5, "an answer may have several of them");
        // The same behind many others.
        let many = (0..20).map(|n| HeaderName::try_from(format!("x-{n}")).unwrap());
        let mut headers: Headers = many.map(|n| (n, HeaderValue::from_static("1"))).collect();
        for value in ["a", "b"] {
            headers.append(http::header::USER_AGENT, HeaderValue::from_static(value));
        }
        headers.join_singular(Of::Request);
        assert_eq!((headers.len(), headers.get_str(&http::header::USER_AGENT)), (21, Some("a,b")));
    }
}
