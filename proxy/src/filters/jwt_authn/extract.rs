//! Where tokens are in a request: header fields, query parameters, cookies.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use http::HeaderName;

use super::provider::Provider;
use crate::codec::{Headers, RequestHead};
use crate::route::hash::cookie_value;
use crate::route::matching::split_query;

/// The default place: `Authorization: Bearer TOKEN` (RFC 6750, section 2.1).
pub const BEARER: &str = "Bearer ";
/// The default parameter (RFC 6750, section 2.3).
pub const ACCESS_TOKEN: &str = "access_token";

/// Whose tokens may be in a place; none: anybody's.
type Issuers = Option<BTreeSet<Box<str>>>;

/// A token in a request.
pub struct Found<'a> {
    /// The token.
    pub text: String,
    /// Whose it may be.
    issuers: &'a Issuers,
    place: Place<'a>,
}

/// Where a token is.
enum Place<'a> {
    Header(&'a HeaderName),
    Param(&'a str),
    Cookie,
}

impl Found<'_> {
    /// Whether tokens of this issuer may be where this one was.
    pub fn may_be_of(&self, issuer: &str) -> bool {
        self.issuers.as_ref().is_none_or(|i| i.contains(issuer))
    }

    /// Takes it out of the request, so that it does not go on to the upstream. Cookies stay, as in Envoy.
    pub fn remove_from(&self, head: &mut RequestHead) {
        match self.place {
            Place::Header(name) => drop(head.headers.remove(name)),
            Place::Param(name) => {
                let (path, query) = split_query(&head.path);
                let kept: Vec<_> = query
                    .split(|b| *b == b'&')
                    .filter(|pair| decoded(key_of(pair)) != name.as_bytes())
                    .collect();
                let mut whole = path.to_vec();
                let kept = kept.join(&b'&');
                if !kept.is_empty() {
                    whole.push(b'?');
                    whole.extend_from_slice(&kept);
                }
                head.path = whole.into();
            }
            Place::Cookie => {}
        }
    }
}

/// The name in `name=value`.
fn key_of(pair: &[u8]) -> &[u8] {
    pair.split(|b| *b == b'=').next().unwrap_or_default()
}

/// Finds the tokens of some providers.
#[derive(Debug, Default)]
pub struct Extractor {
    /// By name and prefix together, which is also the order in which tokens are found.
    headers: BTreeMap<String, (HeaderName, Box<str>, Issuers)>,
    params: BTreeMap<Box<str>, Issuers>,
    cookies: BTreeMap<Box<str>, Issuers>,
    /// What is written for the upstream, and so never taken from the client.
    written: Vec<HeaderName>,
}

impl Extractor {
    /// An extractor for these providers.
    pub fn new<'a>(providers: impl IntoIterator<Item = &'a Provider>) -> Self {
        let mut all = Self::default();
        for provider in providers {
            let none = || Some(BTreeSet::new());
            for (name, prefix) in &provider.from_headers {
                let key = format!("{name}{prefix}");
                let place = all.headers.entry(key).or_insert_with(|| (name.clone(), prefix.clone(), none()));
                add(&mut place.2, &provider.issuer);
            }
            for name in &provider.from_params {
                add(all.params.entry(name.clone()).or_insert_with(none), &provider.issuer);
            }
            for name in &provider.from_cookies {
                add(all.cookies.entry(name.clone()).or_insert_with(none), &provider.issuer);
            }
            all.written.extend(provider.payload_header.clone());
            all.written.extend(provider.claim_headers.iter().map(|(name, _)| name.clone()));
        }
        all
    }

    /// Removes the fields that only this filter may write.
    pub fn sanitize(&self, headers: &mut Headers) {
        for name in &self.written {
            headers.remove(name);
        }
    }

    /// The tokens of a request.
    pub fn find(&self, head: &RequestHead) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for (name, prefix, issuers) in self.headers.values() {
            for value in head.headers.get_all(name) {
                let text = token_in(value.as_bytes(), prefix);
                found.extend(text.map(|text| Found { text, issuers, place: Place::Header(name) }));
            }
        }
        let (_, query) = split_query(&head.path);
        for (name, issuers) in &self.params {
            let text = parameter(query, name);
            found.extend(text.map(|text| Found { text, issuers, place: Place::Param(name) }));
        }
        for (name, issuers) in &self.cookies {
            let text = cookie_value(head, name).and_then(|v| String::from_utf8(v.to_vec()).ok());
            found.extend(text.map(|text| Found { text, issuers, place: Place::Cookie }));
        }
        found
    }
}

fn add(issuers: &mut Issuers, issuer: &str) {
    match issuers {
        _ if issuer.is_empty() => *issuers = None,
        Some(known) => drop(known.insert(issuer.into())),
        None => {}
    }
}

/// The token in a field's value: what follows the prefix, wherever that is.
fn token_in(value: &[u8], prefix: &str) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?;
    Some(value[value.find(prefix)? + prefix.len()..].to_owned())
}

/// The first value of a query parameter; names and values are percent-decoded.
fn parameter(query: &[u8], name: &str) -> Option<String> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let key = key_of(pair);
        let value = pair.get(key.len() + 1..).unwrap_or_default();
        let wanted = decoded(key) == name.as_bytes();
        wanted.then(|| String::from_utf8(decoded(value).into_owned()).ok()).flatten()
    })
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return text.into();
    }
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        match (byte, digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_follows_the_prefix_wherever_that_is() {
        let of = |value: &str| token_in(value.as_bytes(), BEARER);
        assert_eq!(of("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("Basic x,Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("bearer a.b.c"), None);
        assert_eq!(token_in(b"a.b.c x", "").as_deref(), Some("a.b.c x"));
    }

    #[test]
    fn a_parameter_is_decoded_and_the_first_counts() {
        assert_eq!(parameter(b"x=1&access_token=a%2Eb&access_token=c", ACCESS_TOKEN).as_deref(), Some("a.b"));
        assert_eq!(parameter(b"access%5Ftoken=%zz", ACCESS_TOKEN).as_deref(), Some("%zz"));
        assert_eq!(parameter(b"x=access_token", ACCESS_TOKEN), None);
    }

    #[test]
    fn a_parameter_is_removed_with_all_of_its_name() {
        let issuers = None;
        let found = Found { text: String::new(), issuers: &issuers, place: Place::Param("t") };
        for (before, after) in
            [("/a?t=1", "/a"), ("/a?b=1&t=1&c&%74=2", "/a?b=1&c"), ("/a?tt=1&t", "/a?tt=1"), ("/a", "/a")]
        {
            let mut head = crate::router::call::head(http::Method::GET, "a".into(), before.into());
            found.remove_from(&mut head);
            assert_eq!(head.path, after);
        }
    }
}
