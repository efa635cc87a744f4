//! A provider of tokens: who signs them with which keys, where they are, and what becomes of a good one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base64::Engine;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{ListValue, Struct, Value};
use xds_protos::value::to_json;

use super::keys::KeySet;
use super::refusal::Refusal;
use super::remote::Remote;
use super::token::Token;
use crate::codec::Headers;
use crate::io::metadata::at_path;
use crate::route::text::StringMatch;

/// A compiled provider.
#[derive(Debug)]
pub struct Provider {
    /// Who issues its tokens; empty for anybody.
    pub issuer: Box<str>,
    /// For whom they must be.
    pub audiences: Audiences,
    /// Header fields, and what stands before the token in them.
    pub from_headers: Vec<(HeaderName, Box<str>)>,
    /// Query parameters.
    pub from_params: Vec<Box<str>>,
    /// Cookies.
    pub from_cookies: Vec<Box<str>>,
    /// The token goes on to the upstream.
    pub forward: bool,
    /// Gets the payload for the upstream.
    pub payload_header: Option<HeaderName>,
    /// The payload in it is padded.
    pub pad_payload: bool,
    /// Fields that get claims for the upstream.
    pub claim_headers: Vec<(HeaderName, Vec<Box<str>>)>,
    /// The key of the payload in dynamic metadata.
    pub payload_key: Option<Arc<str>>,
    /// The key of the header in dynamic metadata.
    pub header_key: Option<Arc<str>>,
    /// Claims whose text is split into words for the metadata.
    pub split_claims: Vec<Box<str>>,
    /// Clocks may differ by so many seconds.
    pub skew: u64,
    /// What subjects must be.
    pub subjects: Option<StringMatch>,
    /// A token must end.
    pub require_expiration: bool,
    /// At the most so many seconds from now.
    pub max_lifetime: Option<u64>,
    /// A good token changes what routes match on.
    pub clear_route_cache: bool,
    /// The keys.
    pub keys: Keys,
    /// Tokens that were verified.
    pub cache: Option<Cache>,
}

/// Where keys come from.
#[derive(Debug)]
pub enum Keys {
    /// From the configuration.
    Local(Arc<KeySet>),
    /// From a server.
    Remote(Arc<Remote>),
}

/// Audiences, of which a token must be for one. A scheme before and a slash behind make no difference.
#[derive(Clone, Debug, Default)]
pub struct Audiences(Box<[Box<str>]>);

impl Audiences {
    /// These audiences; none at all allow everything.
    pub fn new(audiences: &[String]) -> Self {
        Self(audiences.iter().map(|a| bare(a).into()).collect())
    }

    /// Whether a token for these is allowed.
    pub fn allow(&self, of_token: &[String]) -> bool {
        self.0.is_empty() || of_token.iter().any(|a| self.0.iter().any(|own| **own == *bare(a)))
    }
}

fn bare(audience: &str) -> &str {
    let rest =
        audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

impl Provider {
    /// Whether a token may be used, its signature apart.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, token: &Token, audiences: Option<&Audiences>, now: u64) -> Result<(), Refusal> {
        if self.subjects.as_ref().is_some_and(|s| !s.matches(token.sub.as_bytes())) {
            return Err(Refusal::Verification);
        }
        let endless = token.exp == 0;
        let too_long = |most: u64| !endless && token.exp > now.saturating_add(most);
        if endless && (self.require_expiration || self.max_lifetime.is_some())
            || self.max_lifetime.is_some_and(too_long)
        {
            return Err(Refusal::Verification);
        }
        token.holds(now, self.skew)?;
        if audiences.unwrap_or(&self.audiences).allow(&token.aud) { Ok(()) } else { Err(Refusal::Audience) }
    }

    /// Writes what the upstream is told of a good token; says whether a claim was written.
    pub fn tell(&self, token: &Token, headers: &mut Headers) -> bool {
        if let Some(name) = &self.payload_header {
            let mut text = token.payload_text().to_owned();
            while self.pad_payload && !text.len().is_multiple_of(4) {
                text.push('=');
            }
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.append(name.clone(), value);
            }
        }
        let mut written = false;
        for (name, path) in &self.claim_headers {
            let text = at_path(&token.payload, path).and_then(claim_text).filter(|t| !t.is_empty());
            if let Some(value) = text.and_then(|t| HeaderValue::try_from(t).ok()) {
                headers.append(name.clone(), value);
                written = true;
            }
        }
        written
    }

    /// What filters and logs are told of a good token.
    pub fn metadata(&self, token: &Token, into: &mut Vec<(Arc<str>, Struct)>) {
        into.extend(self.header_key.clone().map(|key| (key, token.header.clone())));
        into.extend(self.payload_key.clone().map(|key| {
            let mut payload = token.payload.clone();
            for claim in &self.split_claims {
                if let Some(value) = payload.fields.get_mut(&**claim) {
                    split(value);
                }
            }
            (key, payload)
        }));
    }
}

/// A text becomes the list of its words.
fn split(value: &mut Value) {
    if let Some(Kind::StringValue(text)) = &value.kind {
        let word = |w: &str| Value { kind: Some(Kind::StringValue(w.to_owned())) };
        let values = text.split(' ').filter(|w| !w.is_empty()).map(word).collect();
        value.kind = Some(Kind::ListValue(ListValue { values }));
    }
}

/// A claim as a field's value: lists and objects as JSON in base64.
fn claim_text(value: &Value) -> Option<String> {
    Some(match value.kind.as_ref()? {
        Kind::NullValue(_) => return None,
        Kind::StringValue(text) => text.clone(),
        Kind::BoolValue(b) => b.to_string(),
        // Envoy shows negative ones as fractions.
        Kind::NumberValue(n) if n.fract() == 0.0 && *n >= 0.0 => format!("{}", *n as u64),
        Kind::NumberValue(n) => format!("{n:.6}"),
        Kind::StructValue(_) | Kind::ListValue(_) => {
            base64::engine::general_purpose::STANDARD.encode(to_json(value).to_string())
        }
    })
}

/// Tokens whose signature was verified, with the keys that it was verified with: what else holds of a token is checked each
/// time. The oldest goes when there are too many.
#[derive(Debug)]
pub struct Cache {
    most: usize,
    longest: usize,
    tokens: Mutex<Tokens>,
}

#[derive(Debug, Default)]
struct Tokens {
    by_text: HashMap<Arc<str>, (Arc<Token>, Arc<KeySet>)>,
    order: VecDeque<Arc<str>>,
}

impl Cache {
    /// A cache of so many tokens of at most so many bytes each.
    pub fn new(most: usize, longest: usize) -> Self {
        Self { most: most.max(1), longest, tokens: Mutex::default() }
    }

    /// A token that these keys verified before.
    pub fn get(&self, text: &str, keys: &Arc<KeySet>) -> Option<Arc<Token>> {
        let tokens = self.tokens.lock();
        let (token, by) = tokens.by_text.get(text)?;
        Arc::ptr_eq(by, keys).then(|| token.clone())
    }

    /// Remembers a token that these keys verified.
    pub fn put(&self, text: &str, token: &Arc<Token>, keys: &Arc<KeySet>) {
        if text.len() > self.longest {
            return;
        }
        let mut tokens = self.tokens.lock();
        let text: Arc<str> = text.into();
        if tokens.by_text.insert(text.clone(), (token.clone(), keys.clone())).is_none() {
            tokens.order.push_back(text);
        }
        while tokens.order.len() > self.most {
            if let Some(oldest) = tokens.order.pop_front() {
                tokens.by_text.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_compared_without_scheme_and_slash() {
        let own = Audiences::new(&["https://a.example/".to_owned(), "b".to_owned()]);
        let allow = |of: &[&str]| own.allow(&of.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert!(allow(&["a.example"]) && allow(&["x", "http://b/"]));
        assert!(!allow(&["c"]) && !allow(&[]));
        assert!(Audiences::default().allow(&[]));
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_what_other_keys_verified() {
        let cache = Cache::new(2, 40);
        let text = |n: usize| format!("eyJhbGciOiJSUzI1NiJ9.e30.{}", "ab".repeat(n));
        let keys = Arc::new(KeySet::default());
        for n in 1..=3 {
            cache.put(&text(n), &Arc::new(Token::read(&text(n)).unwrap()), &keys);
        }
        assert!(cache.get(&text(1), &keys).is_none() && cache.get(&text(3), &keys).is_some());
        assert!(cache.get(&text(3), &Arc::new(KeySet::default())).is_none());
        cache.put(&text(20), &Arc::new(Token::read(&text(20)).unwrap()), &keys);
        assert!(cache.get(&text(20), &keys).is_none());
    }
}
