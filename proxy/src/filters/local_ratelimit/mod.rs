//! `envoy.filters.http.local_ratelimit`: token buckets that all workers share, for all requests and for those of a
//! descriptor.

mod bucket;

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use xds_protos::envoy::extensions::common::ratelimit::v3::{
    VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use xds_protos::envoy::extensions::filters::http::local_ratelimit::v3 as proto;

pub use bucket::{Bucket, Buckets, Rate};

use super::Verdict;
use super::ratelimit::descriptors::Which;
use super::ratelimit::service::{LIMIT, REMAINING, RESET};
use super::ratelimit::{EXHAUSTED, details};
use crate::codec::Headers;
use crate::route::HeaderOps;
use crate::route::config::{header_ops, own_rate_limits, runtime_chance};
use crate::route::matching::Chance;
use crate::route::rate_limit::{Descriptor, RateLimit};
use crate::router::{Exchange, LocalReply};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::access_log::LogContext;
use crate::telemetry::registry::{Counter, Group};
use crate::telemetry::{Details, Flag};

/// The filter of a connection manager.
pub struct LocalRateLimit {
    own: Arc<Limits>,
    service_cluster: Arc<str>,
    limited: Details,
}

/// Its settings, or a route's.
pub struct Limits {
    enabled: Option<Chance>,
    enforced: Option<Chance>,
    status: StatusCode,
    grpc_status: Option<u32>,
    buckets: Buckets,
    has_descriptors: bool,
    stage: u32,
    virtual_host: VhRateLimitsOptions,
    own_actions: Vec<RateLimit>,
    tell_client: bool,
    retry_after: bool,
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    stats: Stats,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("buckets", &self.buckets).finish_non_exhaustive()
    }
}

struct Stats {
    _group: Arc<Group>,
    enabled: Counter,
    enforced: Counter,
    ok: Counter,
    rate_limited: Counter,
}

impl LocalRateLimit {
    /// The filter with these settings; `name` is what it is called in its chain, `service_cluster` is our own.
    pub fn new(limits: Limits, name: &str, service_cluster: &str) -> Self {
        let limited = details("local_rate_limited", name);
        Self { own: Arc::new(limits), service_cluster: service_cluster.into(), limited }
    }

    /// Lets a request pass, or answers in the upstream's place.
    pub(super) fn request_head(&self, exchange: &mut Exchange, of_route: Option<&Arc<Limits>>) -> Verdict {
        let limits = of_route.unwrap_or(&self.own).clone();
        if !limits.enabled.is_some_and(|c| c.hits(fastrand::u64(..))) {
            return Verdict::Continue;
        }
        limits.stats.enabled.inc();
        let descriptors = limits.descriptors(exchange, &self.service_cluster);
        let answer = limits.buckets.take(&descriptors);
        let reset = answer.bucket.as_ref().map(|bucket| bucket.reset());
        if let (true, Some(bucket)) = (answer.told.unwrap_or(limits.tell_client), answer.bucket) {
            exchange.scratch.later().tells.push(Box::new(move |headers| tell(&bucket, headers)));
        }
        if answer.allowed {
            limits.stats.ok.inc();
            return Verdict::Continue;
        }
        limits.stats.rate_limited.inc();
        if !limits.enforced.is_some_and(|c| c.hits(fastrand::u64(..))) {
            change(exchange, &limits.request_headers);
            return Verdict::Continue;
        }
        limits.stats.enforced.inc();
        exchange.flow.flag(Flag::RateLimited);
        let mut reply = LocalReply::new(limits.status, "local_rate_limited", self.limited.clone());
        reply.grpc_status = limits.grpc_status;
        if !limits.response_headers.is_empty() {
            let mut headers = Headers::new();
            exchange.flow.info(|info| {
                let context = LogContext {
                    request: Some(&exchange.head),
                    ..LogContext::new(info, &exchange.connection)
                };
                limits.response_headers.apply(&mut headers, &context);
            });
            reply.headers.extend(headers);
        }
        let known = |(name, _): &(_, HeaderValue)| *name == header::RETRY_AFTER;
        if let (true, Some(reset)) =
            (limits.retry_after && limits.status == StatusCode::TOO_MANY_REQUESTS, reset)
            && !reply.headers.iter().any(known)
        {
            reply.headers.push((header::RETRY_AFTER, reset.max(1).into()));
        }
        Verdict::Reply(reply)
    }
}

/// Changes the request's fields.
fn change(exchange: &mut Exchange, ops: &HeaderOps) {
    if ops.is_empty() {
        return;
    }
    let mut headers = std::mem::take(&mut exchange.head.headers);
    exchange.flow.info(|info| {
        let context =
            LogContext { request: Some(&exchange.head), ..LogContext::new(info, &exchange.connection) };
        ops.apply(&mut headers, &context);
    });
    exchange.head.headers = headers;
}

/// Tells the client how much is left.
fn tell(bucket: &Bucket, headers: &mut Headers) {
    headers.append(LIMIT, HeaderValue::from(bucket.max()));
    headers.append(REMAINING, HeaderValue::from(bucket.left()));
    headers.append(RESET, HeaderValue::from(bucket.reset()));
}

impl Limits {
    /// Compiles the settings of the filter, or of a route (which must have a bucket).
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(config: &proto::LocalRateLimit, of_route: bool) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let default = config
            .token_bucket
            .as_ref()
            .and_then(|b| collect(Rate::compile(b).map_err(Vec::from), "token_bucket", &mut errors));
        if of_route && config.token_bucket.is_none() {
            errors.push(ConfigError::missing("token_bucket"));
        }
        let mut described: Vec<(Vec<(String, String)>, Rate)> = Vec::with_capacity(config.descriptors.len());
        for (index, descriptor) in config.descriptors.iter().enumerate() {
            let path = format!("descriptors[{index}]");
            let rate = match &descriptor.token_bucket {
                Some(bucket) => Rate::compile(bucket).map_err(|e| Vec::from(e.at("token_bucket"))),
                None => Err(ConfigError::missing("token_bucket").into()),
            };
            let entries: Vec<_> =
                descriptor.entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
            if described.iter().any(|(other, _)| *other == entries) {
                errors.push(ConfigError::new(&path, "another descriptor has the same entries"));
            }
            described.extend(collect(rate, path, &mut errors).map(|rate| (entries, rate)));
        }
        let mut chance = |value: &Option<_>, path: &str| {
            value.as_ref().and_then(|f| runtime_chance(f).map_err(|e| errors.push(e.at(path))).ok())
        };
        let enabled = chance(&config.filter_enabled, "filter_enabled");
        let enforced = chance(&config.filter_enforced, "filter_enforced");
        let mut wrong = Vec::new();
        let request_headers =
            header_ops(&config.request_headers_to_add_when_not_enforced, &[], "request", &mut wrong);
        let longer = |e: ConfigError| ConfigError {
            path: e.path.replacen("request_headers_to_add", "request_headers_to_add_when_not_enforced", 1),
            ..e
        };
        errors.extend(wrong.into_iter().map(longer));
        let response_headers = header_ops(&config.response_headers_to_add, &[], "response", &mut errors);
        let own_actions = collect(own_rate_limits(&config.rate_limits), "", &mut errors);
        if config.stat_prefix.is_empty() {
            errors.push(ConfigError::missing("stat_prefix"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let status = config.status.as_ref().map_or(429, |s| s.code);
        let status =
            u16::try_from(status).ok().filter(|s| *s >= 400).and_then(|s| StatusCode::from_u16(s).ok());
        let group = Group::new(format!("{}.http_local_rate_limit", config.stat_prefix), Vec::new());
        Ok(Self {
            enabled,
            enforced,
            // Envoy as well puts 429 in the place of what is no error.
            status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            grpc_status: config.rate_limited_as_resource_exhausted.then_some(EXHAUSTED),
            has_descriptors: !described.is_empty(),
            buckets: Buckets::new(
                default,
                described,
                config.always_consume_default_token_bucket.unwrap_or(true),
                config.max_dynamic_descriptors.unwrap_or(20) as usize,
            ),
            stage: config.stage,
            virtual_host: config.vh_rate_limits(),
            own_actions: own_actions.unwrap_or_default(),
            retry_after: config.enable_retry_after_header,
            tell_client: config.enable_x_ratelimit_headers() == XRateLimitHeadersRfcVersion::DraftVersion03,
            request_headers,
            response_headers,
            stats: Stats {
                enabled: group.counter("enabled"),
                enforced: group.counter("enforced"),
                ok: group.counter("ok"),
                rate_limited: group.counter("rate_limited"),
                _group: group,
            },
        })
    }

    /// What the request counts as, by the filter's own actions, else by its route's and its virtual host's.
    fn descriptors(&self, exchange: &Exchange, service_cluster: &str) -> Vec<Descriptor> {
        if !self.has_descriptors {
            return Vec::new();
        }
        let which = Which {
            stage: self.stage,
            with_disable_keys: false,
            own: &self.own_actions,
            virtual_host: self.virtual_host,
            service_cluster,
        };
        which.descriptors(exchange)
    }
}
