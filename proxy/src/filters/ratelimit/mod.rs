//! `envoy.filters.http.ratelimit`: asks a rate limit service, which counts for all proxies, whether a request may pass.

pub mod config;
pub mod descriptors;
pub mod service;

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use xds_protos::envoy::extensions::common::ratelimit::v3::VhRateLimitsOptions;
use xds_protos::envoy::service::ratelimit::v3 as rls;

use self::descriptors::Which;
use self::service::Service;
use super::Verdict;
use crate::cluster::Cluster;
use crate::codec::Headers;
use crate::io::metadata::Datum;
use crate::route::HeaderOps;
use crate::route::matching::Chance;
use crate::route::rate_limit::{Descriptor, RateLimit};
use crate::router::{Exchange, LocalReply, charge};
use crate::state::Slot;
use crate::telemetry::access_log::LogContext;
use crate::telemetry::registry::{Counter, Group};
use crate::telemetry::{Details, Flag};

const NAMESPACE: &str = "envoy.filters.http.ratelimit";
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// gRPC's RESOURCE_EXHAUSTED.
pub const EXHAUSTED: u32 = 8;
/// What the names of filters begin with that name a limit of a mesh; what follows is told in response code details.
const NAMED: &str = "weft.ratelimit/";

/// Response code details, with the name of the limit if the filter has one: `words{name}`.
pub fn details(words: &'static str, filter: &str) -> Details {
    named(words, filter).unwrap_or_else(|| words.into())
}

/// The same; none if the filter has no limit's name.
pub fn named(words: &'static str, filter: &str) -> Option<Details> {
    filter.strip_prefix(NAMED).map(|name| Arc::<str>::from(format!("{words}{{{name}}}")).into())
}

/// The filter of a connection manager.
pub struct GlobalRateLimit {
    service: Service,
    domain: Arc<str>,
    stage: u32,
    /// Only requests from inside of the mesh (true), or from outside.
    only: Option<bool>,
    own: Vec<RateLimit>,
    enabled: Option<Chance>,
    enforced: Option<Chance>,
    /// How many requests go no further when there is no answer.
    deny: Chance,
    status: StatusCode,
    status_on_error: StatusCode,
    grpc_status: Option<u32>,
    tell_client: bool,
    mark: bool,
    retry_after: bool,
    response_headers: HeaderOps,
    service_cluster: Arc<str>,
    limited: Details,
    stats: Stats,
}

/// What a route says.
#[derive(Debug)]
pub struct OfRoute {
    virtual_host: VhRateLimitsOptions,
    limits: Vec<RateLimit>,
    domain: Option<Arc<str>>,
}

/// The numbers of the clusters that requests were for.
struct Stats {
    prefix: String,
    by_cluster: Mutex<HashMap<Arc<str>, Arc<Numbers>>>,
}

struct Numbers {
    _group: Arc<Group>,
    ok: Counter,
    over_limit: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
}

impl Stats {
    fn of(&self, cluster: &Slot<Cluster>) -> Arc<Numbers> {
        let make = || {
            let group = Group::new(format!("cluster.{}", cluster.name()), Vec::new());
            let counter = |name| group.counter(format!("{}{name}", self.prefix));
            Arc::new(Numbers {
                ok: counter("ok"),
                over_limit: counter("over_limit"),
                error: counter("error"),
                failure_mode_allowed: counter("failure_mode_allowed"),
                _group: group,
            })
        };
        self.by_cluster.lock().entry(cluster.name().clone()).or_insert_with(make).clone()
    }
}

/// A question, and what its answer is read by.
pub(super) struct Asking {
    descriptors: Vec<Descriptor>,
    request: rls::RateLimitRequest,
    cluster: Arc<Slot<Cluster>>,
}

impl GlobalRateLimit {
    /// What the service is to be asked about a request; none if it need not be.
    pub(super) fn request_head(&self, exchange: &Exchange, of_route: Option<&OfRoute>) -> Option<Asking> {
        if self.enabled.is_some_and(|c| !c.hits(fastrand::u64(..))) {
            return None;
        }
        let internal = || exchange.head.headers.get(&INTERNAL).is_some_and(|v| v == "true");
        if self.only.is_some_and(|wanted| wanted != internal()) {
            return None;
        }
        let cluster = exchange.cluster()?;
        cluster.load().as_ref()?;
        let own = match of_route {
            Some(of_route) if !of_route.limits.is_empty() => &of_route.limits,
            _ => &self.own,
        };
        let which = Which {
            stage: self.stage,
            with_disable_keys: true,
            own,
            virtual_host: of_route.map_or(VhRateLimitsOptions::Override, |r| r.virtual_host),
            service_cluster: &self.service_cluster,
        };
        let descriptors = which.descriptors(exchange);
        if descriptors.is_empty() {
            return None;
        }
        let domain = of_route.and_then(|r| r.domain.as_ref()).unwrap_or(&self.domain);
        let request = service::request(domain, &descriptors);
        Some(Asking { descriptors, request, cluster })
    }

    /// Asks, and does what the service says.
    pub(super) async fn ask(&self, exchange: &mut Exchange, asking: Asking) -> Verdict {
        let Asking { descriptors, request, cluster } = asking;
        let stats = self.stats.of(&cluster);
        let Some(mut response) = self.service.ask_of(&request, &exchange.connection, &exchange.flow).await
        else {
            stats.error.inc();
            if !self.deny.hits(fastrand::u64(..)) {
                stats.failure_mode_allowed.inc();
                return Verdict::Continue;
            }
            exchange.flow.flag(Flag::RateLimitServiceError);
            return Verdict::Reply(LocalReply::new(self.status_on_error, "", "rate_limiter_error"));
        };
        if let Some(said) = response.dynamic_metadata.take() {
            exchange.flow.info(|info| {
                for (key, value) in said.fields {
                    info.metadata.set(NAMESPACE, &key.into(), Datum::Other(Box::new(value)));
                }
            });
        }
        let over = service::is_over(&response);
        let mut headers = Headers::new();
        headers.extend(service::fields(std::mem::take(&mut response.response_headers_to_add)));
        if over {
            stats.over_limit.inc();
            charge::copy_answered(&cluster, self.status);
            if self.mark {
                headers.set(RATE_LIMITED, HeaderValue::from_static("true"));
            }
        } else {
            stats.ok.inc();
        }
        let told = |index: usize| descriptors.get(index).and_then(|d| d.told).unwrap_or(self.tell_client);
        service::tell(&response.statuses, told, &mut headers);
        if over && self.enforced.is_none_or(|c| c.hits(fastrand::u64(..))) {
            return self.refuse(exchange, headers, response);
        }
        let wanted = service::fields(response.request_headers_to_add);
        exchange.head.headers.extend(wanted);
        if !headers.is_empty() {
            exchange.scratch.later().tells.push(Box::new(move |of_response| of_response.extend(headers)));
        }
        Verdict::Continue
    }

    fn refuse(&self, exchange: &Exchange, headers: Headers, response: rls::RateLimitResponse) -> Verdict {
        exchange.flow.flag(Flag::RateLimited);
        let mut headers = headers;
        if self.retry_after
            && self.status == StatusCode::TOO_MANY_REQUESTS
            && !headers.contains(&header::RETRY_AFTER)
        {
            headers.append(header::RETRY_AFTER, service::retry_after(&response.statuses).into());
        }
        if !self.response_headers.is_empty() {
            exchange.flow.info(|info| {
                let context = LogContext {
                    request: Some(&exchange.head),
                    ..LogContext::new(info, &exchange.connection)
                };
                self.response_headers.apply(&mut headers, &context);
            });
        }
        let mut reply = LocalReply::new(self.status, response.raw_body, self.limited.clone());
        reply.grpc_status = self.grpc_status;
        reply.headers.extend(headers);
        Verdict::Reply(reply)
    }
}
