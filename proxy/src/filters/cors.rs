//! `envoy.filters.http.cors`: answers preflights, marks responses. The policy is the most specific one of the route.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use xds_protos::envoy::extensions::filters::http::cors::v3 as proto;

use super::Verdict;
use crate::codec::Headers;
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
    credentials: bool,
    private_network: bool,
    enabled: Chance,
    /// Where it is not enabled, how often it is evaluated for the counters alone.
    shadow: Option<Chance>,
    forward_unmatched_preflights: bool,
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
            credentials: policy.allow_credentials.unwrap_or(false),
            private_network: policy.allow_private_network_access.unwrap_or(false),
            enabled: enabled.unwrap_or(Chance::ALWAYS),
            shadow,
            forward_unmatched_preflights: policy.forward_not_matching_preflights.unwrap_or(true),
        };
        if errors.is_empty() { Ok(compiled) } else { Err(errors) }
    }

    fn allows(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|o| o.matches(b"*") || o.matches(origin))
    }

    /// Answers a preflight; remembers the origin of other requests for the response.
    pub(super) fn request_head(&self, exchange: &mut Exchange, stats: &CorsStats) -> Verdict {
        // As in Envoy, redirects and direct responses are not shared with other origins.
        if exchange.matched.as_ref().is_none_or(|m| m.forward().is_none()) {
            return Verdict::Continue;
        }
        let head = &exchange.head;
        let Some(origin) = head.headers.get(&header::ORIGIN).filter(|o| !o.is_empty()).cloned() else {
            return Verdict::Continue;
        };
        let enabled = self.enabled.hits(exchange.random);
        if !enabled && !self.shadow.is_some_and(|s| s.hits(fastrand::u64(..))) {
            return Verdict::Continue;
        }
        let asked = head.headers.get(&header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
        let preflight = head.method == Method::OPTIONS && asked;
        let reply = || LocalReply::new(StatusCode::OK, "", "cors_response");
        if !self.allows(origin.as_bytes()) {
            stats.invalid.inc();
            return if enabled && preflight && !self.forward_unmatched_preflights {
                Verdict::Reply(reply())
            } else {
                Verdict::Continue
            };
        }
        stats.valid.inc();
        if !enabled {
            return Verdict::Continue;
        }
        if !preflight {
            exchange.scratch.later().cors_origin = Some(origin);
            return Verdict::Continue;
        }
        let mut reply = reply();
        let headers = &mut reply.headers;
        headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
        let optional = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose),
            (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ];
        if self.credentials {
            headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        headers.extend(optional.into_iter().filter_map(|(n, v)| Some((n, v.clone()?))));
        if self.private_network && head.headers.get(&PRIVATE_REQUEST).is_some_and(|v| v == "true") {
            headers.push((PRIVATE_ALLOW, HeaderValue::from_static("true")));
        }
        Verdict::Reply(reply)
    }

    /// Marks the response to a request from an allowed origin.
    pub(super) fn response_head(&self, origin: &HeaderValue, headers: &mut Headers) {
        headers.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            headers.set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}
