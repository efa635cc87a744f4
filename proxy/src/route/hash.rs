//! What consistent hashing hashes of a request (`RouteAction.HashPolicy`), with Envoy's hash so that both agree on hosts.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::matching::{Field, query_value, split_query};
use super::text::Substitution;
use crate::codec::RequestHead;

/// A cookie that is made where the request has none.
#[derive(Clone, Debug)]
pub struct CookiePolicy {
    /// Its name.
    pub name: String,
    /// How long it lives; none: it is not made, zero: for the session.
    pub ttl: Option<Duration>,
    /// Its path.
    pub path: String,
    /// `; name=value` of further attributes.
    pub attributes: String,
}

/// Where the text comes from.
#[derive(Clone, Debug)]
pub enum HashSource {
    /// A header field, possibly rewritten.
    Header(Field, Option<Substitution>),
    /// A cookie.
    Cookie(CookiePolicy),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Box<[u8]>),
}

/// One policy.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// Where the text comes from.
    pub source: HashSource,
    /// Stop here if this or an earlier policy gave a hash.
    pub terminal: bool,
}

/// The request's hash, and the cookie to give the client where a policy made one. `addresses` names the
/// connection, of which a new cookie's value is made; `xxh64` is the hash that the clusters' tables use.
pub fn hash(
    policies: &[HashPolicy],
    head: &RequestHead,
    remote: IpAddr,
    addresses: impl Fn() -> String,
    xxh64: impl Fn(&[u8]) -> u64,
) -> (Option<u64>, Option<HeaderValue>) {
    let mut cookie = None;
    let mut make = |policy: &CookiePolicy, ttl: Duration| {
        let value = format!("{:016x}", xxh64(addresses().as_bytes()));
        cookie = policy.header(&value, ttl);
        Some(value)
    };
    (summed(policies, head, Some(remote), &mut make, &xxh64), cookie)
}

/// The same of what the request brings with it: no cookie is made. So weights are chosen by before the request goes anywhere, as in Envoy.
pub fn known(
    policies: &[HashPolicy],
    head: &RequestHead,
    remote: Option<IpAddr>,
    xxh64: impl Fn(&[u8]) -> u64,
) -> Option<u64> {
    summed(policies, head, remote, &mut |_, _| None, &xxh64)
}

fn summed(
    policies: &[HashPolicy],
    head: &RequestHead,
    remote: Option<IpAddr>,
    make: &mut dyn FnMut(&CookiePolicy, Duration) -> Option<String>,
    xxh64: &dyn Fn(&[u8]) -> u64,
) -> Option<u64> {
    let mut sum: Option<u64> = None;
    for policy in policies {
        let one = match &policy.source {
            HashSource::Header(field, rewrite) => field.with(head, |value| {
                value.map(|v| match rewrite {
                    Some(rewrite) => xxh64(&rewrite.apply(v)),
                    None => xxh64(v),
                })
            }),
            HashSource::SourceIp => remote.map(|remote| xxh64(remote.to_string().as_bytes())),
            HashSource::Query(name) => query_value(split_query(&head.path).1, name).map(xxh64),
            HashSource::Cookie(policy) => match (cookie_value(head, &policy.name), policy.ttl) {
                (Some(value), _) => Some(xxh64(value)),
                (None, None) => None,
                (None, Some(ttl)) => make(policy, ttl).map(|value| xxh64(value.as_bytes())),
            },
        };
        if let Some(one) = one {
            sum = Some(sum.map_or(one, |s| s.rotate_left(1) ^ one));
        }
        if policy.terminal && sum.is_some() {
            break;
        }
    }
    sum
}

impl CookiePolicy {
    fn header(&self, value: &str, ttl: Duration) -> Option<HeaderValue> {
        let mut text = format!("{}=\"{value}\"", self.name);
        if !ttl.is_zero() {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !self.path.is_empty() {
            text.push_str(&format!("; Path={}", self.path));
        }
        text.push_str(&self.attributes);
        text.push_str("; HttpOnly");
        HeaderValue::try_from(text).ok()
    }
}

/// The value of a cookie, without quotes.
pub fn cookie_value<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    const COOKIE: HeaderName = http::header::COOKIE;
    for field in head.headers.iter().filter(|(n, _)| **n == COOKIE).map(|(_, v)| v.as_bytes()) {
        for pair in field.split(|b| *b == b';') {
            let pair = pair.trim_ascii();
            if let Some(value) = pair.strip_prefix(name.as_bytes()).and_then(|r| r.strip_prefix(b"=")) {
                let inner = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
                return Some(inner.unwrap_or(value));
            }
        }
    }
    None
}
