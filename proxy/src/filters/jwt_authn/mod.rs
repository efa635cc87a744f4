//! `envoy.filters.http.jwt_authn`: requests that must show a token of somebody who is trusted, and what later filters and the
//! upstream are told of it.

pub mod config;
mod extract;
mod keys;
mod provider;
mod refusal;
pub mod remote;
mod requirement;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use xds_protos::prost_types::Value;
use xds_protos::prost_types::value::Kind;

use self::refusal::Refusal;
use self::remote::{FetchStats, Remote};
use self::requirement::{Requirement, Run, Stop};
use super::Verdict;
use crate::codec::RequestHead;
use crate::io::metadata::Datum;
use crate::route::Asked;
use crate::route::matching::RouteMatch;
use crate::router::{Exchange, LocalReply};
use crate::telemetry::record::{self, By};
use crate::telemetry::registry::{Counter, Group};

const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ASKS_METHOD: HeaderName = header::ACCESS_CONTROL_REQUEST_METHOD;
/// As much of a path as an answer repeats.
const LONGEST_PATH: usize = 256;

/// The filter of a connection manager.
pub struct JwtAuthn {
    rules: Vec<(RouteMatch, Option<Arc<Requirement>>)>,
    named: BTreeMap<Box<str>, Option<Arc<Requirement>>>,
    bypass_cors_preflight: bool,
    bare_refusals: bool,
    stats: Stats,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfRoute {
    /// Nothing is required.
    Disabled,
    /// The requirement of this name.
    Named(Box<str>),
}

/// The filter's numbers.
pub struct Stats {
    allowed: Counter,
    denied: Counter,
    preflights: Counter,
    cache_hit: Counter,
    cache_miss: Counter,
    fetches: Arc<FetchStats>,
    _group: Arc<Group>,
}

impl Stats {
    fn new(stat_prefix: &str, own_prefix: &str) -> Self {
        let group = Group::new(format!("http.{stat_prefix}"), Vec::new());
        let prefix = format!("jwt_authn.{own_prefix}");
        let counter = |name| group.counter(format!("{prefix}{name}"));
        Self {
            allowed: counter("allowed"),
            denied: counter("denied"),
            preflights: counter("cors_preflight_bypassed"),
            cache_hit: counter("jwt_cache_hit"),
            cache_miss: counter("jwt_cache_miss"),
            fetches: Arc::new(FetchStats::new(&group, &prefix)),
            _group: group,
        }
    }
}

impl JwtAuthn {
    /// Lets a request pass, or answers it.
    ///
    /// # Errors
    /// Keys must be fetched first.
    pub(super) fn request_head(
        &self,
        exchange: &mut Exchange,
        of_route: Option<&OfRoute>,
        asked: &[Arc<Remote>],
    ) -> Result<Verdict, Arc<Remote>> {
        if self.bypass_cors_preflight && is_preflight(&exchange.head) {
            self.stats.preflights.inc();
            self.stats.allowed.inc();
            return Ok(Verdict::Continue);
        }
        let requirement = match self.requirement(exchange, of_route) {
            Ok(Some(requirement)) => requirement.clone(),
            Ok(None) => {
                self.stats.allowed.inc();
                return Ok(Verdict::Continue);
            }
            Err(reply) => {
                self.stats.denied.inc();
                return Ok(Verdict::Reply(reply));
            }
        };
        // What is done in vain, because keys are missing, is undone.
        let before =
            requirement.has_remote().then(|| (exchange.head.headers.clone(), exchange.head.path.clone()));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut run = Run {
            head: &mut exchange.head,
            now,
            asked,
            stats: &self.stats,
            extracted: Vec::new(),
            reroute: false,
        };
        let path = run.head.path.clone();
        let result = requirement.evaluate(&mut run);
        let (extracted, reroute) = (run.extracted, run.reroute);
        if let Err(Stop::Ask(remote)) = result {
            if let Some((headers, path)) = before {
                exchange.head.headers = headers;
                exchange.head.path = path;
            }
            return Err(remote);
        }
        if !extracted.is_empty() {
            exchange.flow.info(|info| {
                for (key, fields) in extracted {
                    let value = Value { kind: Some(Kind::StructValue(fields)) };
                    info.metadata.set(NAMESPACE, &key, Datum::Other(Box::new(value)));
                }
            });
        }
        Ok(match result {
            Err(Stop::Refused(refusal)) => {
                self.stats.denied.inc();
                Verdict::Reply(self.refuse(refusal, &exchange.head, &path))
            }
            _ => {
                self.stats.allowed.inc();
                exchange.flow.info(|i| i.trail.decided(By::Jwt, record::Verdict::Allowed, None));
                if reroute { Verdict::Reroute } else { Verdict::Continue }
            }
        })
    }

    /// [`request_head`](Self::request_head), with all keys that it asks for.
    pub(super) async fn with_keys(
        &self,
        exchange: &mut Exchange,
        of_route: Option<&OfRoute>,
        first: Arc<Remote>,
    ) -> Verdict {
        let mut asked = vec![first];
        loop {
            if let Some(remote) = asked.last() {
                remote.fetched().await;
            }
            match self.request_head(exchange, of_route, &asked) {
                Ok(verdict) => return verdict,
                Err(next) => asked.push(next),
            }
        }
    }

    /// What is required of a request.
    fn requirement(
        &self,
        exchange: &Exchange,
        of_route: Option<&OfRoute>,
    ) -> Result<Option<&Arc<Requirement>>, LocalReply> {
        match of_route {
            Some(OfRoute::Disabled) => Ok(None),
            Some(OfRoute::Named(name)) => match self.named.get(name) {
                Some(requirement) => Ok(requirement.as_ref()),
                None => {
                    let known: Vec<_> = self.named.keys().map(|n| &**n).collect();
                    let known = known.join(",");
                    let words = format!("Wrong requirement_name: {name}. It should be one of [{known}]");
                    let body = format!("Failed JWT authentication: {words}");
                    Err(LocalReply::new(StatusCode::FORBIDDEN, body, details(&words)))
                }
            },
            None => {
                let asked = Asked {
                    random: exchange.random,
                    tls: exchange.connection.tls.as_deref(),
                    ..Asked::new(&exchange.head)
                };
                let rule = self.rules.iter().find(|(matching, _)| matching.matches(&asked, false));
                Ok(rule.and_then(|(_, requirement)| requirement.as_ref()))
            }
        }
    }

    /// The answer to a request that came with this path.
    fn refuse(&self, refusal: Refusal, head: &RequestHead, path: &[u8]) -> LocalReply {
        let status = match refusal {
            Refusal::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let details = details(refusal.words());
        if self.bare_refusals {
            return LocalReply::new(status, "", details);
        }
        let reply = LocalReply::new(status, refusal.words(), details);
        let path = head.headers.get(&ORIGINAL_PATH).map_or(path, |v| v.as_bytes());
        let path = &path[..path.len().min(LONGEST_PATH)];
        let error: &[u8] = if refusal == Refusal::Missing { b"" } else { b", error=\"invalid_token\"" };
        let realm =
            [b"Bearer realm=\"", &*head.scheme, b"://", &*head.authority, path, b"\"", error].concat();
        match HeaderValue::from_bytes(&realm) {
            Ok(value) => reply.header(header::WWW_AUTHENTICATE, value),
            Err(_) => reply,
        }
    }
}

fn details(words: &str) -> Arc<str> {
    format!("jwt_authn_access_denied{{{}}}", words.replace(' ', "_")).into()
}

fn is_preflight(head: &RequestHead) -> bool {
    let filled = |name: &HeaderName| head.headers.get(name).is_some_and(|v| !v.is_empty());
    head.method == Method::OPTIONS && filled(&header::ORIGIN) && filled(&ASKS_METHOD)
}
