//! One request from its head to its answer, on one screen: shape, route, filters, router, filters in reverse, guard.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::config::HcmConfig;
use super::ending::{Ending, ResponseBody};
use super::manager::Shared;
use super::recheck::Standing;
use super::request::FORWARDED_PROTO;
use super::request_id::REQUEST_ID;
use super::{local_reply, request, response};
use crate::codec::{
    Downstream, InformationalSink, Meter, Reply, Request, RequestHead, ResetReason, ResponseHead, WireBytes,
};
use crate::route::action::{Action, DirectResponse, PathRewrite};
use crate::route::matching::{PathMatch, is_grpc};
use crate::route::redirect::Redirect;
use crate::route::rewrite::rewrite_path;
use crate::route::{Asked, Matched, RouteConfig};
use crate::router::drive::ATTEMPT_COUNT;
use crate::router::{self, Exchange, Expired, Flow, LocalReply, RequestBody, Routed, Scratch, Watchdog};
use crate::telemetry::access_log::config::BodyFormat;
use crate::telemetry::access_log::{LogContext, LogType};
use crate::telemetry::trace::OPERATION;
use crate::telemetry::{Flag, StreamInfo, Wire, pressure, tap};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
/// Tells this proxy's want from an upstream's.
const LOCAL_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-local-overloaded");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What is remembered of a request for its response.
struct Before {
    head: RequestHead,
    request_id: Option<HeaderValue>,
    /// It named its operation.
    named: bool,
    /// The answer tells its id.
    told: bool,
}

/// Handles one request of a connection. What it begins with is done before there is a future, so that the future has no room
/// for it.
pub fn handle(
    shared: Rc<Shared>,
    request: Request,
    downstream: Downstream,
) -> impl Future<Output = Reply> + use<> {
    let flow = Rc::new(Flow::new(record(&request.head)));
    if shared.config.local_replies.is_some() || tap::is_on() {
        flow.keep_whole();
    } else if let Some(wanted) = shared.config.wanted() {
        flow.keep_for_logs(wanted.clone());
    }
    if shared.config.wanted().is_some_and(|wanted| wanted.moments) {
        flow.note_moments();
    }
    if shared.config.wanted().is_some_and(|wanted| wanted.upstream_wire) {
        flow.measure_upstreams();
    }
    let mut ending = Ending::new(shared.clone(), flow.clone(), downstream.meter.clone());
    shared.count_request(request.head.protocol);
    // An answer to a request that goes no further tells the id that the request came with.
    let tells = shared.config.request_id_in_response;
    let told = tells.then(|| request.head.headers.get(&REQUEST_ID).cloned());
    let mut before =
        Before { head: outline(&request.head), request_id: told.flatten(), named: false, told: tells };
    let Request { head, body } = request;
    let exchange = Box::new(Exchange {
        head,
        body: RequestBody::wrap(body, &flow),
        matched: None,
        flow: flow.clone(),
        connection: shared.connection.clone(),
        random: fastrand::u64(..),
        scratch: Scratch { caller: Some(shared.caller.clone()), ..Scratch::default() },
        informational: None,
    });
    let stream = downstream.stream;
    async move {
        let done = {
            let work = pin!(answer(&shared, exchange, downstream, &mut before, &mut ending.scratch));
            watched(&shared, &flow, work).await
        };
        let (mut reply, matched) = match done {
            Ok(answered) => answered,
            Err(why) => {
                (local_reply::reply(&shared, &flow, &before.head, expired(&shared, &flow, why)), None)
            }
        };

        if let Some(token) = &before.head.upgrade {
            response::translate_upgrade(&mut reply.head, token, before.head.protocol);
        }
        let ends = reply.body.is_empty() || before.head.method == Method::HEAD;
        shared.config.filters.response_head(
            (&mut reply.head, ends),
            &mut ending.scratch,
            matched.as_ref(),
            (&flow, &shared.connection),
        );
        let told = before.request_id.as_ref().filter(|_| before.told);
        response::shape(&mut reply.head, &shared.config, told);
        if let Some(tracing) = &shared.config.tracing {
            tracing.answer(&flow, before.named, matched.as_ref(), &mut reply.head.headers);
        }
        if before.head.method == Method::HEAD {
            reply.body = response::without_data(reply.body);
        }
        flow.info(|info| {
            info.status = Some(reply.head.status);
            if info.is_grpc {
                info.grpc_status = reply.head.headers.get_str(&GRPC_STATUS).and_then(|s| s.parse().ok());
            }
        });
        ending.response =
            if tap::is_on() || flow.info(|info| info.trace.as_ref().is_some_and(|t| t.ids.sampled)) {
                Some(reply.head.headers.clone())
            } else {
                shared.config.wanted().map(|wanted| wanted.response.of(&reply.head.headers))
            };
        reply.close |= shared.is_spent(stream, before.head.protocol);
        reply.body = shared.config.filters.response_body(reply.body, &mut ending.scratch, &flow);
        reply.body = ResponseBody::guard(reply.body, &flow, ending);
        reply
    }
}

/// The answer: shape, route, filters, router.
async fn answer(
    shared: &Rc<Shared>,
    mut exchange: Box<Exchange>,
    downstream: Downstream,
    before: &mut Before,
    scratch: &mut Scratch,
) -> (Reply, Option<Matched>) {
    let config = &shared.config;
    let flow = &exchange.flow.clone();
    let local = |reply: LocalReply, before: &Before| local_reply::reply(shared, flow, &before.head, reply);
    let head = &mut exchange.head;

    // As in Envoy before anything else: a request that is refused is told to go on as well.
    answer_expectation(flow, head, config, &downstream);
    if pressure::sheds_requests() {
        config.stats.downstream_rq_overload_close.inc();
        flow.flag(Flag::OverloadManager);
        flow.keep(head);
        let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "envoy overloaded", "overload");
        let reply = reply.header(LOCAL_OVERLOADED, HeaderValue::from_static("true"));
        // What the connection holds is to be given back as well.
        return (local(LocalReply { close: true, ..reply }, before), None);
    }
    let origin = match request::shape(head, config, &shared.connection) {
        Ok(origin) => origin,
        Err(reply) => {
            if *reply.details == *request::UNDERSCORE {
                flow.flag(Flag::DownstreamProtocolError);
            }
            remember_unshaped(shared, flow, head);
            flow.info(|i| i.trail.id = head.headers.get(&REQUEST_ID).cloned());
            flow.keep(head);
            return (local(reply, before), None);
        }
    };
    shared.client_cert(&mut head.headers);
    before.request_id = head.headers.get(&REQUEST_ID).cloned();
    let again = head.headers.get(&ATTEMPT_COUNT).is_some_and(|count| count != "1");
    // Who has the trace kept wants to find it.
    before.told |= head.headers.contains(&FORCE_TRACE);
    flow.info(|i| {
        i.path = head.path.clone();
        i.authority = head.authority.clone();
        i.trail.id.clone_from(&before.request_id);
        i.trail.again = again;
        if origin.client != shared.connection.remote.ip() {
            i.client = Some((origin.client, 0).into());
        }
    });
    flow.scheme_of_upstream.set(config.scheme_of_upstream);

    let routes = config.route_config();
    let random = exchange.random;
    let (secure, internal, tls) = (origin.secure, origin.internal, shared.connection.tls.as_deref());
    // A virtual host that asks for TLS has no route for plain requests; the redirect is its answer after the filters.
    let wants_tls = Cell::new(false);
    let find = |head: &RequestHead| {
        let routes = routes.as_ref()?;
        let found = flow.info(|i| {
            let (metadata, client) = (Some(&i.metadata), i.client.unwrap_or(shared.connection.remote));
            let client = Some(client.ip());
            Matched::find(routes, &Asked { head, random, secure, internal, tls, metadata, client })
        });
        wants_tls.set(matches!(found, Err(true)));
        found.ok()
    };
    if let (Some(routes), false) = (&routes, origin.internal) {
        remove_internal_only(routes, head);
    }
    exchange.matched = find(head);
    set_clocks(shared, flow, &exchange.head, exchange.matched.as_ref());
    router::remember(flow, exchange.matched.as_ref(), &exchange.head);
    if let Some(tracing) = &config.tracing {
        before.named = exchange.head.headers.get_str(&OPERATION).is_some_and(|v| !v.is_empty());
        // The id tells the decision.
        if tracing.begin(flow, &mut exchange.head, exchange.matched.as_ref()) {
            before.request_id = exchange.head.headers.get(&REQUEST_ID).cloned();
            flow.info(|i| i.trail.id.clone_from(&before.request_id));
        }
    }
    if config.log_start {
        log_start(shared, flow, &exchange.head, downstream.meter.as_deref());
    }
    if config.proxy_100_continue {
        exchange.informational = Some(Rc::new(Continue(downstream.informational)));
    }
    let reroute = |exchange: &mut Exchange| {
        exchange.matched = find(&exchange.head);
        router::remember(flow, exchange.matched.as_ref(), &exchange.head);
    };
    let admitted = match config.filters.admit(exchange, reroute).await {
        Ok(admitted) => admitted,
        Err(answered) => {
            let (reply, mut exchange) = answered;
            flow.keep(&mut exchange.head);
            *scratch = std::mem::take(&mut exchange.scratch);
            if reply.status == StatusCode::PAYLOAD_TOO_LARGE && reply.details == router::BODY_TOO_LARGE {
                config.stats.downstream_rq_too_large.inc();
            }
            return (local(reply, before), exchange.matched.take());
        }
    };
    config.stats.rq_total.inc();
    let Routed { result, mut exchange } = match terminal(shared, admitted.exchange(), wants_tls.get()) {
        Some(reply) => {
            let (exchange, _) = admitted.into_parts();
            Routed { result: Err(reply), exchange }
        }
        None => router::route(admitted, config.buffer_limit).await,
    };
    let reply = match result {
        Ok(reply) => reply,
        Err(reply) => {
            flow.keep(&mut exchange.head);
            if flow.broken().is_some_and(|b| b.reason != ResetReason::ProtocolError) {
                // The downstream has gone. The codec sees it as well and drops this future, which tells everybody.
                std::future::pending::<()>().await;
            }
            if flow.info(|i| i.flags.has(Flag::NoClusterFound)) {
                config.stats.no_cluster.inc();
            }
            local(reply, before)
        }
    };
    *scratch = std::mem::take(&mut exchange.scratch);
    (reply, exchange.matched.take())
}

/// Envoy names the route even of a request that it refuses before it has one, and lets the route change the answer, but finds it
/// only where the request tells its scheme.
fn remember_unshaped(shared: &Shared, flow: &Flow, head: &RequestHead) {
    let Some(scheme) = head.headers.get(&FORWARDED_PROTO) else { return };
    let Some(routes) = shared.config.route_config() else { return };
    let tls = shared.connection.tls.as_deref();
    let secure = scheme == "https";
    let asked = Asked { random: fastrand::u64(..), secure, tls, ..Asked::new(head) };
    router::remember(flow, Matched::find(&routes, &asked).ok().as_ref(), head);
}

/// The reply to a request whose route does not forward, or may not forward it.
fn terminal(shared: &Shared, exchange: &Exchange, wants_tls: bool) -> Option<LocalReply> {
    let config = &shared.config;
    let flow = &exchange.flow;
    if wants_tls {
        config.stats.rq_direct_response.inc();
        let head = &exchange.head;
        return Some(redirect(&Redirect::to_https(head), head, &crate::route::RouteMatch::any().path));
    }
    let Some(matched) = &exchange.matched else {
        config.stats.no_route.inc();
        flow.flag(Flag::NoRouteFound);
        return Some(LocalReply::new(StatusCode::NOT_FOUND, "", "route_not_found"));
    };
    let route = matched.route();
    match &route.action {
        Action::Redirect(to) => {
            // Envoy counts a redirect as an answer of its own; its `rq_redirect` stays zero.
            config.stats.rq_direct_response.inc();
            let envoy_headers = !config.filters.router.suppress_envoy_headers;
            log_rewritten(flow, &exchange.head, &to.rewrite, &route.matching.path, envoy_headers);
            Some(redirect(to, &exchange.head, &route.matching.path))
        }
        Action::Direct(direct) => {
            config.stats.rq_direct_response.inc();
            Some(direct_response(direct, exchange))
        }
        Action::Forward(forward) => {
            if shared.newest.is_some() {
                Standing::keep(exchange);
            }
            let token: &[u8] = match (&exchange.head.upgrade, exchange.head.method == Method::CONNECT) {
                (Some(token), _) => token,
                (None, true) => b"connect",
                (None, false) => return None,
            };
            let own = |list: &[(Box<[u8]>, bool)]| {
                list.iter().find(|(name, _)| name.eq_ignore_ascii_case(token)).map(|(_, on)| *on)
            };
            let on = own(&forward.upgrades).or_else(|| own(&config.upgrades)).unwrap_or(false);
            (!on).then(|| {
                config.stats.downstream_rq_ws_on_non_ws_route.inc();
                // What follows the head is not the next request.
                LocalReply { close: true, ..LocalReply::new(StatusCode::FORBIDDEN, "", "upgrade_failed") }
            })
        }
    }
}

/// Logs speak of a redirected request as if it had been rewritten so.
fn log_rewritten(
    flow: &Flow,
    head: &RequestHead,
    rewrite: &PathRewrite,
    matched: &PathMatch,
    envoy_headers: bool,
) {
    let Some(path) = rewrite_path(rewrite, matched, &head.path).filter(|_| flow.keeps()) else {
        return;
    };
    let mut head = head.clone();
    let original = std::mem::replace(&mut head.path, path);
    if envoy_headers && let Ok(value) = HeaderValue::from_maybe_shared(original) {
        head.headers.set(ORIGINAL_PATH, value);
    }
    flow.keep(&mut head);
}

fn direct_response(direct: &DirectResponse, exchange: &Exchange) -> LocalReply {
    let mut reply = LocalReply::new(direct.status, direct.body.clone(), "direct_response");
    // RFC 9110, section 10.2.2; without a place of its own it is the request's.
    if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
        let head = &exchange.head;
        let place = [&head.scheme[..], b"://", &head.authority, &head.path].concat();
        if let Ok(location) = HeaderValue::from_maybe_shared(Bytes::from(place)) {
            reply = reply.header(header::LOCATION, location);
        }
    }
    let Some(BodyFormat { format, content_type }) = direct.format.as_deref() else { return reply };
    let mut text = Vec::new();
    exchange.flow.info(|info| {
        let context = LogContext {
            request: Some(&exchange.head),
            body: Some(&direct.body),
            configured: Some(&*exchange.flow),
            ..LogContext::new(info, &exchange.connection)
        };
        format.write(&context, &mut text);
    });
    LocalReply { body: text.into(), content_type: content_type.clone().map(Box::new), ..reply }
}

fn redirect(to: &Redirect, head: &RequestHead, matched: &crate::route::matching::PathMatch) -> LocalReply {
    let forwarded = head.headers.get(&FORWARDED_PROTO).map(|v| v.as_bytes()).unwrap_or_default();
    let reply = LocalReply::new(to.status, "", "direct_response");
    match HeaderValue::from_maybe_shared(to.location(head, matched, forwarded)) {
        Ok(location) => reply.header(header::LOCATION, location),
        Err(_) => LocalReply::new(StatusCode::BAD_REQUEST, "", "direct_response"),
    }
}

/// Runs the work until it is done or a clock of the stream runs out before there is an answer.
async fn watched<T>(
    shared: &Shared,
    flow: &Rc<Flow>,
    mut work: std::pin::Pin<&mut impl Future<Output = T>>,
) -> Result<T, Expired> {
    let mut watchdog = Watchdog { alarm: shared.take_alarm() };
    let done = poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        watchdog.poll(flow, cx).map(|why| {
            // The work hears of it when it is dropped.
            flow.set_expired(why);
            Err(why)
        })
    })
    .await;
    shared.put_alarm(watchdog.alarm);
    done
}

/// The answer to a request that took too long, in Envoy's words.
fn expired(shared: &Shared, flow: &Flow, why: Expired) -> LocalReply {
    let stats = &shared.config.stats;
    let complete = flow.request_end().is_some();
    let late = if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    let reply = match why {
        Expired::Idle => {
            stats.downstream_rq_idle_timeout.inc();
            flow.flag(Flag::StreamIdleTimeout);
            LocalReply::new(late, "stream timeout", "stream_idle_timeout")
        }
        Expired::MaxDuration => {
            stats.downstream_rq_max_duration_reached.inc();
            LocalReply::new(late, "downstream duration timeout", "max_duration_timeout").grpc(4)
        }
        Expired::Request => {
            stats.downstream_rq_timeout.inc();
            LocalReply::new(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout")
        }
        Expired::Route | Expired::TryIdle => {
            flow.flag(Flag::UpstreamRequestTimeout);
            let reply = router::attempt::timeout_reply("response_timeout");
            if let Some(charge) = &*flow.charge.borrow() {
                charge.timed_out();
                charge.answered(reply.status, None);
            }
            reply
        }
    };
    flow.set_route_timeout(None);
    reply
}

/// Logs that a request has come.
fn log_start(shared: &Shared, flow: &Flow, head: &RequestHead, meter: Option<&Meter>) {
    flow.info(|info| {
        if let Some(meter) = meter {
            let upstream = Some(WireBytes::default());
            info.wire = Some(Box::new(Wire { downstream: meter.bytes(), upstream }));
        }
        let context = LogContext {
            request: Some(head),
            occasion: LogType::DownstreamStart,
            configured: Some(flow),
            ..LogContext::new(info, &shared.connection)
        };
        shared.config.logs().iter().for_each(|log| log.log(&context));
    });
}

/// Limits that hold from here on: the route's where it has some, else the connection manager's.
fn set_clocks(shared: &Shared, flow: &Flow, head: &RequestHead, matched: Option<&Matched>) {
    let config = &shared.config;
    let forward = matched.and_then(Matched::forward);
    flow.set_idle(forward.and_then(|f| f.idle_timeout).or(Some(config.stream_idle_timeout)));
    flow.set_request_timeout(Some(config.request_timeout));
    let longest = router::timeouts::max_duration(forward, &head.headers, config.max_stream_duration);
    flow.set_max_duration(Some(longest));
}

/// Tells a client that waits for leave to send its body to go on, unless that is the upstream's to say.
fn answer_expectation(flow: &Flow, head: &mut RequestHead, config: &HcmConfig, downstream: &Downstream) {
    let expects =
        head.headers.get(&header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects && !config.proxy_100_continue {
        head.headers.remove(&header::EXPECT);
        config.stats.downstream_rq_1xx.inc();
        config.stats.downstream_rq_completed.inc();
        // Until there is another answer, this was it.
        flow.info(|i| i.status = Some(StatusCode::CONTINUE));
        downstream.informational.send(ResponseHead {
            status: StatusCode::CONTINUE,
            protocol: head.protocol,
            headers: crate::codec::Headers::new(),
        });
    }
}

/// Lets 100 through alone, as Envoy does: the others are hints, and an answer is whole without them.
struct Continue(Rc<dyn InformationalSink>);

impl InformationalSink for Continue {
    fn send(&self, head: ResponseHead) {
        if head.status == StatusCode::CONTINUE {
            self.0.send(head);
        }
    }
}

pub(super) fn remove_internal_only(routes: &RouteConfig, head: &mut RequestHead) {
    for name in &routes.internal_only_headers {
        head.headers.remove(name);
    }
}

/// The record of a request that has just come.
pub(super) fn record(head: &RequestHead) -> StreamInfo {
    let mut info = StreamInfo::new(Some(head.protocol));
    info.method = Some(head.method.clone());
    info.path = head.path.clone();
    info.authority = head.authority.clone();
    info.is_grpc = is_grpc(head);
    info
}

/// As much of a head as a local reply depends on.
fn outline(head: &RequestHead) -> RequestHead {
    let mut outline = RequestHead::empty(head.protocol);
    outline.method = head.method.clone();
    outline.upgrade = head.upgrade.clone();
    if let Some(value) = head.headers.get(&header::CONTENT_TYPE).filter(|_| is_grpc(head)) {
        outline.headers.append(header::CONTENT_TYPE, value.clone());
    }
    outline
}
