//! `envoy.filters.http.cors`: answers preflights, marks responses. The policies of weighted cluster, route, virtual host and
//! route configuration count together: each field is that of the most specific policy that has it set. Whether they are
//! enabled, the most specific one says alone.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use xds_protos::envoy::extensions::filters::http::cors::v3 as proto;

use super::Verdict;
use super::config::PerFilter;
use crate::codec::Headers;
use crate::route::Matched;
use crate::route::config::{runtime_chance, string_match};
use crate::route::matching::Chance;
use crate::route::text::StringMatch;
use crate::router::{Exchange, LocalReply};
use crate::state::ConfigError;
use crate::telemetry::registry::{Counter, Group};

const PRIVATE_REQUEST: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_ALLOW: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// How many origins were allowed, and how many were not.
pub struct CorsStats {
    _group: Arc<Group>,
    valid: Counter,
    invalid: Counter,
}

impl CorsStats {
    /// The numbers of the filter of one connection manager.
    pub fn new(stat_prefix: &str) -> Self {
        let group = Group::new(format!("http.{stat_prefix}"), Vec::new());
        Self {
            valid: group.counter("cors.origin_valid"),
            invalid: group.counter("cors.origin_invalid"),
            _group: group,
        }
    }
}

/// A compiled policy.
#[derive(Debug)]
pub struct CorsPolicy {
    origins: Vec<StringMatch>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    enabled: Chance,
    /// Where it is not enabled, how often it is evaluated for the counters alone.
    shadow: Option<Chance>,
    forward_unmatched_preflights: Option<bool>,
}

/// The policies of a route, for the filter of this name.
#[derive(Clone, Copy)]
pub(super) struct Policies<'a> {
    matched: &'a Matched,
    name: &'a str,
}

impl CorsPolicy {
    /// Compiles a policy.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(policy: &proto::CorsPolicy) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut origins = Vec::with_capacity(policy.allow_origin_string_match.len());
        for (index, origin) in policy.allow_origin_string_match.iter().enumerate() {
            match string_match(origin) {
                Ok(origin) => origins.push(origin),
                Err(e) => errors.push(e.at(format!("allow_origin_string_match[{index}]"))),
            }
        }
        let shadow = match &policy.shadow_enabled {
            Some(fraction) => runtime_chance(fraction).map_err(|e| errors.push(e.at("shadow_enabled"))).ok(),
            None => None,
        };
        let enabled = match &policy.filter_enabled {
            Some(fraction) => runtime_chance(fraction).map_err(|e| errors.push(e.at("filter_enabled"))).ok(),
            None => Some(Chance::ALWAYS),
        };
        let mut value = |text: &str, path: &str| {
            if text.is_empty() {
                return None;
            }
            HeaderValue::from_str(text)
                .map_err(|_| errors.push(ConfigError::new(path, "holds a character that no header may hold")))
                .ok()
        };
        let compiled = Self {
            origins,
            methods: value(&policy.allow_methods, "allow_methods"),
            headers: value(&policy.allow_headers, "allow_headers"),
            expose: value(&policy.expose_headers, "expose_headers"),
            max_age: value(&policy.max_age, "max_age"),
            credentials: policy.allow_credentials,
            private_network: policy.allow_private_network_access,
            enabled: enabled.unwrap_or(Chance::ALWAYS),
            shadow,
            forward_unmatched_preflights: policy.forward_not_matching_preflights,
        };
        if errors.is_empty() { Ok(compiled) } else { Err(errors) }
    }
}

impl<'a> Policies<'a> {
    pub(super) fn new(matched: &'a Matched, name: &'a str) -> Self {
        Self { matched, name }
    }

    /// The most specific first.
    fn iter(self) -> impl Iterator<Item = &'a CorsPolicy> {
        self.matched.per_filter().filter_map(move |p| match p.get(self.name) {
            Some(PerFilter::Cors(policy)) => Some(&**policy),
            _ => None,
        })
    }

    /// A field, from the first policy that has it set.
    fn field<T>(self, get: impl Fn(&'a CorsPolicy) -> Option<T>) -> Option<T> {
        self.iter().find_map(get)
    }

    fn allows(self, origin: &[u8]) -> bool {
        let origins = self.field(|p| (!p.origins.is_empty()).then_some(&p.origins));
        origins.is_some_and(|all| all.iter().any(|o| o.matches(b"*") || o.matches(origin)))
    }

    fn allows_credentials(self) -> bool {
        self.field(|p| p.credentials).unwrap_or(false)
    }

    /// Answers a preflight; remembers the origin of other requests for the response.
    pub(super) fn request_head(self, exchange: &mut Exchange, stats: &CorsStats) -> Verdict {
        // As in Envoy, redirects and direct responses are not shared with other origins.
        if self.matched.forward().is_none() {
            return Verdict::Continue;
        }
        let head = &exchange.head;
        let Some(origin) = head.headers.get(&header::ORIGIN).filter(|o| !o.is_empty()).cloned() else {
            return Verdict::Continue;
        };
        let Some(own) = self.iter().next() else { return Verdict::Continue };
        let enabled = own.enabled.hits(exchange.random);
        if !enabled && !own.shadow.is_some_and(|s| s.hits(fastrand::u64(..))) {
            return Verdict::Continue;
        }
        let asked = head.headers.get(&header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
        let preflight = head.method == Method::OPTIONS && asked;
        let allowed = self.allows(origin.as_bytes());
        if allowed {
            stats.valid.inc()
        } else {
            stats.invalid.inc()
        }
        if !enabled {
            return Verdict::Continue;
        }
        if !preflight {
            if allowed {
                exchange.scratch.later().cors_origin = Some(origin);
            }
            return Verdict::Continue;
        }
        if !allowed && self.field(|p| p.forward_unmatched_preflights).unwrap_or(true) {
            return Verdict::Continue;
        }
        // A browser reads nothing of it that does not name the origin.
        let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response");
        let headers = &mut reply.headers;
        let mut optional = vec![
            (header::ACCESS_CONTROL_ALLOW_METHODS, self.field(|p| p.methods.as_ref())),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, self.field(|p| p.headers.as_ref())),
            (header::ACCESS_CONTROL_MAX_AGE, self.field(|p| p.max_age.as_ref())),
        ];
        if allowed {
            headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
            optional.push((header::ACCESS_CONTROL_EXPOSE_HEADERS, self.field(|p| p.expose.as_ref())));
        }
        if self.allows_credentials() {
            headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        headers.extend(optional.into_iter().filter_map(|(n, v)| Some((n, v?.clone()))));
        if self.field(|p| p.private_network).unwrap_or(false)
            && head.headers.get(&PRIVATE_REQUEST).is_some_and(|v| v == "true")
        {
            headers.push((PRIVATE_ALLOW, HeaderValue::from_static("true")));
        }
        Verdict::Reply(reply)
    }

    /// Marks the response to a request from an allowed origin.
    pub(super) fn response_head(self, origin: &HeaderValue, headers: &mut Headers) {
        headers.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.allows_credentials() {
            headers.set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = self.field(|p| p.expose.as_ref()) {
            headers.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}
