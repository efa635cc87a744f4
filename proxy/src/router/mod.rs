//! The terminal filter: from an admitted request to an answer, by as many tries as the route's policy allows.
//!
//! [`route`] reads top to bottom: which cluster, which limits, the head as it goes upstream, the retry loop, the answer's
//! head. One try is made by an [`attempt::Upstreams`]; the loop in [`mod@drive`] knows nothing of clusters and connections.

pub mod alpn;
pub mod attempt;
pub mod call;
pub mod charge;
pub mod collector;
mod config;
pub mod drive;
mod exchange;
mod flow;
pub mod grpc;
pub mod head;
pub mod logs;
mod mirror;
pub mod replay;
mod reply;
pub mod retry;
pub mod timeouts;
mod trace;
mod tunnel;
mod upstream;

pub use config::RouterConfig;
pub use exchange::{
    Admitted, Exchange, ForRouter, Later, OwnMetadata, PEER_METADATA, PEER_METADATA_ID, Scratch,
};
pub use flow::{Expired, Flow, RequestBody, Watchdog};
pub use reply::{LocalReply, grpc_status_of};

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, StatusCode};

use self::attempt::{Attempt, Failure, Upstreams};
use self::charge::Charge;
use self::drive::{ATTEMPT_COUNT, Tries, drive};
use self::retry::Retries;
use self::timeouts::Announce;
use self::upstream::ClusterUpstreams;
pub use self::upstream::refused as refused_hosts;
use crate::cluster::Cluster;
use crate::cluster::balance::xxhash::xxh64;
use crate::codec::headers::Of;
use crate::codec::{Body, Headers, Protocol, Reply, Request, RequestHead, digits};
use crate::io::ConnectionInfo;
use crate::route::{Forward, HeaderOps, Matched, Target, hash};
use crate::state::Slot;
use crate::telemetry::Flag;
use crate::telemetry::access_log::LogContext;
use crate::telemetry::trace::Ids;

/// `x-envoy-overloaded`.
pub(crate) const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
/// The response code details of a request whose body is longer than a filter may keep.
pub const BODY_TOO_LARGE: &str = "request_payload_too_large";
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// The most of a request that is kept for retries where neither route nor listener say.
pub const DEFAULT_BUFFER_LIMIT: u64 = 1 << 20;

/// An answer to a request, and what is left of the exchange.
pub struct Routed {
    /// The upstream's answer or one of our own.
    pub result: Result<Reply, LocalReply>,
    /// The exchange; its head and body are gone.
    pub exchange: Box<Exchange>,
}

/// Sends an admitted request to its cluster. Its route must be one that forwards.
pub async fn route(admitted: Admitted, buffer_limit: u64) -> Routed {
    let (mut exchange, wishes) = admitted.into_parts();
    let config = wishes.config.clone();
    let envoy_headers = !config.suppress_envoy_headers;
    let flow = exchange.flow.clone();
    let Some(matched) = exchange.matched.clone() else {
        flow.flag(Flag::NoRouteFound);
        let reply = LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found");
        return Routed { result: Err(reply), exchange };
    };
    let Some(forward) = matched.forward() else {
        let reply = LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found");
        return Routed { result: Err(reply), exchange };
    };
    let mut head = std::mem::replace(&mut exchange.head, RequestHead::empty(Protocol::Http11));
    let body = std::mem::take(&mut exchange.body);
    let not_found = forward.cluster_not_found;
    let Some(slot) = cluster_slot(&matched, forward, &head) else {
        flow.flag(Flag::NoClusterFound);
        flow.keep(&mut head);
        let reply = attempt::Failure::NoCluster.reply(false, not_found, envoy_headers);
        return Routed { result: Err(reply), exchange };
    };
    let Some(stats) = slot.load().as_ref().map(|cluster| cluster.kept_stats().clone()) else {
        flow.flag(Flag::NoClusterFound);
        flow.keep(&mut head);
        let reply = attempt::Failure::NoCluster.reply(false, not_found, envoy_headers);
        return Routed { result: Err(reply), exchange };
    };
    let head_method = head.method.clone();
    *flow.charge.borrow_mut() = Some(Charge::new(stats, &matched, &head));
    flow.info(|i| {
        if i.cluster.as_ref().is_none_or(|known| !Arc::ptr_eq(known, slot.name())) {
            i.cluster = Some(slot.name().clone());
        }
        i.virtual_cluster = matched.virtual_cluster(&head).map(|c| c.name.clone());
    });

    let is_grpc = flow.info(|i| i.is_grpc);
    let limits = timeouts::of(forward, &mut head, is_grpc, config.respect_expected_timeout);
    flow.set_route_timeout(Some(limits.global));
    let announce = Announce { expected: envoy_headers, grpc: is_grpc && forward.max_grpc_timeout.is_some() };
    limits.announce(&mut head.headers, announce, Duration::ZERO);
    let policy = forward.retry.as_deref();
    let connection = exchange.connection.clone();
    head::prepare(&mut head, &matched, forward, &flow, &connection, envoy_headers);
    if let Some(trace) = flow.info(|i| i.trace.clone()).filter(|t| t.settings.propagate && !t.settings.spawn)
    {
        trace.inject(&trace.ids, &mut head.headers);
    }
    // As the request goes upstream, so it is judged.
    let retries = Retries::of(policy, &mut head);
    let host = matched.virtual_host();
    let buffer_limit = matched.route().buffer_limit.or(host.buffer_limit).unwrap_or(buffer_limit);
    let addresses = || format!("{}{}", connection.remote, connection.local);
    let client = flow.info(|i| i.client).map_or(connection.remote.ip(), |c| c.ip());
    let (hash, cookie) = hash::hash(&forward.hash, &head, client, addresses, |b| xxh64(b, 0));
    if host.attempt_count_in_request {
        // Copies say it as well.
        head.headers.set(ATTEMPT_COUNT, digits::value(1));
    }
    let body = mirror(forward, &wishes, &exchange, &head, body, buffer_limit);
    *flow.cluster.borrow_mut() = Some(slot.clone());
    let mut upstreams = ClusterUpstreams::new(slot, forward, wishes, connection.clone(), flow.clone());
    upstreams.hash = hash;
    upstreams.terminate = forward.connect.is_some_and(|c| {
        head_method == http::Method::CONNECT || (c.allow_post && head_method == http::Method::POST)
    });
    upstreams.informational = exchange.informational.clone();
    let mut tries = Tries {
        flow: &flow,
        policy,
        retries,
        head,
        body,
        buffer_limit,
        limits,
        announce,
        attempt_count: host.attempt_count_in_request,
        timeout_retry: host.timeout_retry_in_request,
        random: || fastrand::u64(..),
    };
    let result = match drive(&upstreams, &mut tries).await {
        Err(failure) => {
            let retried = flow.info(|i| i.attempts) > 1;
            let reply = failure.reply(retried, not_found, envoy_headers);
            if !matches!(failure, Failure::Downstream(_)) {
                answered(&flow, reply.status, None);
            }
            Err(reply)
        }
        Ok(mut reply) => {
            answered(&flow, reply.head.status, Some(&reply.head.headers));
            if reply.body.is_empty() {
                completed(&flow);
            }
            flow.set_try_idle(policy.map(|p| p.per_try_idle_timeout));
            answer_head(&mut reply, &matched, &exchange, envoy_headers, cookie);
            Ok(reply)
        }
    };
    upstreams.leave(&mut exchange.scratch);
    Routed { result, exchange }
}

/// The client gets an answer of this status, which has these fields if it is the upstream's.
fn answered(flow: &Flow, status: StatusCode, upstream: Option<&Headers>) {
    if let Some(charge) = &*flow.charge.borrow() {
        charge.answered(status, upstream);
    }
}

/// The upstream's answer is whole.
pub fn completed(flow: &Flow) {
    flow.info(|i| {
        if let Some(trace) = &i.trace {
            trace.note(|attempt| attempt.end = attempt.end.or_else(|| Some(Instant::now())));
        }
    });
    if let (Some(charge), Some(end)) = (&*flow.charge.borrow(), flow.request_end()) {
        charge.completed(end);
    }
}

/// Sends the copies that the route asks for, each on a task of its own, and returns the request's own body.
fn mirror(
    forward: &Forward,
    wishes: &ForRouter,
    exchange: &Exchange,
    head: &RequestHead,
    body: Body,
    limit: u64,
) -> Body {
    let chosen: Vec<_> = forward.mirrors.iter().filter(|m| m.chance.hits(fastrand::u64(..))).collect();
    if chosen.is_empty() || head.upgrade.is_some() || head.method == http::Method::CONNECT {
        return body;
    }
    let (own, copies) = mirror::tee(body, chosen.len(), limit);
    for (mirror, body) in chosen.into_iter().zip(copies) {
        let mut info = exchange.flow.info(|i| i.clone());
        let trace = info.trace.take();
        let flow = Rc::new(Flow::new(info));
        let body = RequestBody::wrap(body, &flow);
        let Some(cluster) = mirror.cluster.slot(head) else { continue };
        let slot = cluster.clone();
        let mut request = Request { head: mirror::head(head, mirror, exchange), body };
        if let Some(trace) = trace.filter(|t| t.settings.propagate) {
            let sampled = trace.ids.sampled && mirror.trace_sampled;
            trace.inject(&Ids { sampled, ..trace.ids }, &mut request.head.headers);
        }
        let timeout = forward.timeout;
        let upstreams =
            ClusterUpstreams::new(cluster, forward, wishes.clone(), exchange.connection.clone(), flow);
        tokio::task::spawn_local(async move {
            let attempt = Attempt { request: &mut request, tried: &[], omit: None, repicks: 0, timeout };
            match upstreams.attempt(attempt).await.result {
                Ok(mut reply) => {
                    charge::copy_answered(&slot, reply.head.status);
                    while let Some(Ok(_)) = reply.body.frame().await {}
                }
                Err(failure) => {
                    let reply = failure.reply(false, StatusCode::SERVICE_UNAVAILABLE, false);
                    charge::copy_answered(&slot, reply.status);
                }
            }
        });
    }
    own
}

/// The cluster that the route names for this request.
fn cluster_slot(matched: &Matched, forward: &Forward, head: &RequestHead) -> Option<Arc<Slot<Cluster>>> {
    match &forward.target {
        Target::Cluster(slot) => Some(slot.clone()),
        Target::Weighted { .. } => matched.weighted()?.cluster.slot(head),
        Target::Header(name, clusters) => clusters.find(head.headers.get_str(name)?),
    }
}

/// Makes an upstream's answer the route's.
fn answer_head(
    reply: &mut Reply,
    matched: &Matched,
    exchange: &Exchange,
    envoy_headers: bool,
    cookie: Option<HeaderValue>,
) {
    let flow = &exchange.flow;
    let now = Instant::now();
    let headers = &mut reply.head.headers;
    if envoy_headers && let Some(end) = flow.request_end() {
        let millis = now.saturating_duration_since(end).as_millis() as u64;
        headers.set(SERVICE_TIME, digits::value(millis));
    }
    if matched.virtual_host().attempt_count_in_response {
        headers.set(ATTEMPT_COUNT, digits::value(flow.info(|i| i.attempts).into()));
    }
    if let Some(cookie) = cookie {
        headers.append(http::header::SET_COOKIE, cookie);
    }
    flow.info(|i| {
        i.upstream_first_byte = Some(now);
        i.details = Some("via_upstream".into());
        i.status = Some(reply.head.status);
    });
    change_response(matched, flow, &exchange.connection, &mut reply.head.headers);
}

/// Applies the route's changes to a response's head.
pub fn change_response(matched: &Matched, flow: &Flow, connection: &ConnectionInfo, headers: &mut Headers) {
    let kept = flow.kept_head.borrow();
    for ops in matched.header_ops(false) {
        ops.remove_from(headers);
        let additions = flow.info(|info| {
            let context = LogContext {
                request: kept.as_ref(),
                response: Some(headers),
                configured: Some(flow),
                ..LogContext::new(info, connection)
            };
            ops.additions(headers, &context)
        });
        additions.make(headers, Of::Response);
    }
}

/// Remembers the route of a request: for logs, and for answers of our own, which are changed by it, with what those changes
/// speak of.
pub fn remember(flow: &Flow, matched: Option<&Matched>, head: &RequestHead) {
    // Logs name both even where a filter answers in the cluster's place.
    let cluster = matched.and_then(|m| cluster_slot(m, m.forward()?, head)).filter(|slot| slot.serves());
    flow.info(|i| {
        i.route = matched.map(|m| m.route().name.clone()).filter(|name| !name.is_empty());
        i.cluster = cluster.map(|slot| slot.name().clone());
    });
    *flow.route.borrow_mut() = matched.cloned();
    if matched.is_some_and(|m| m.header_ops(false).any(HeaderOps::speaks)) {
        flow.keep_whole();
    }
}

/// Changes an answer of our own to a request whose route is known.
pub fn change_own(flow: &Flow, connection: &ConnectionInfo, headers: &mut crate::codec::Headers) {
    let route = flow.route.borrow();
    let Some(matched) = &*route else { return };
    // A route that answers itself has its say only there: not where a filter answers before it.
    if matched.forward().is_none() && flow.info(|i| i.details.as_deref() != Some("direct_response")) {
        return;
    }
    change_response(matched, flow, connection, headers);
    let attempts = flow.info(|i| i.attempts);
    if attempts > 0 && matched.virtual_host().attempt_count_in_response {
        headers.set(ATTEMPT_COUNT, digits::value(attempts.into()));
    }
}

#[cfg(test)]
mod tests;
