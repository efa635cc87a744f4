//! Tracing of the connection manager's requests: the decision, once for each; the span's beginning, before the filters; its
//! end, with the request's record.

mod config;
pub mod export;
mod sampling;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

pub use self::sampling::{Reason, Sampling};
use super::request_id;
use crate::codec::{Headers, RequestHead};
use crate::route::Matched;
use crate::router::Flow;
use crate::telemetry::access_log::LogContext;
use crate::telemetry::registry::{Counter, Group};
use crate::telemetry::trace::tags::{self, Source};
use crate::telemetry::trace::{Came, Flavor, Found, Ids, OPERATION, Settings, Trace, Tracer, ids};

/// How a connection manager traces its requests.
pub struct Tracing {
    /// Who gets the spans; without one ids of requests tell the decision, and that is all.
    tracer: Option<Arc<Tracer>>,
    settings: Arc<Settings>,
    sampling: Sampling,
    /// The decision is told in `x-request-id`.
    pack_reason: bool,
    /// The decision is what `x-request-id` tells.
    by_request_id: bool,
    stats: Stats,
}

/// Envoy's numbers, `http.PREFIX.tracing.*`.
struct Stats {
    _group: Arc<Group>,
    random_sampling: Counter,
    service_forced: Counter,
    client_enabled: Counter,
    not_traceable: Counter,
    _health_check: Counter,
}

impl Stats {
    fn new(stat_prefix: &str) -> Self {
        let group = Group::new(format!("http.{stat_prefix}.tracing"), Vec::new());
        Self {
            random_sampling: group.counter("random_sampling"),
            service_forced: group.counter("service_forced"),
            client_enabled: group.counter("client_enabled"),
            not_traceable: group.counter("not_traceable"),
            _health_check: group.counter("health_check"),
            _group: group,
        }
    }

    fn count(&self, reason: Reason) {
        match reason {
            Reason::Sampled => self.random_sampling.inc(),
            Reason::Forced => self.service_forced.inc(),
            Reason::Client => self.client_enabled.inc(),
            Reason::Not => self.not_traceable.inc(),
        }
    }
}

impl Tracing {
    /// A request's route is known: decides, and begins its span. Says whether the request's id is another now, for it tells the
    /// decision.
    pub fn begin(&self, flow: &Flow, head: &mut RequestHead, matched: Option<&Matched>) -> bool {
        let mut told = false;
        let route = matched.map(Matched::route);
        let of_route = route.and_then(|r| r.tracing.as_ref());
        let reason = if self.by_request_id {
            let sampling = of_route.map_or(self.sampling, |r| Sampling::of_route(r));
            let reason = sampling.decide(&head.headers);
            if self.pack_reason {
                told = request_id::tell(&mut head.headers, reason.digit());
            }
            reason
        } else {
            Reason::Sampled
        };
        self.stats.count(reason);
        let Some(tracer) = &self.tracer else { return told };
        let decided = reason != Reason::Not;
        // The span is of who sends the request on, and not of who takes it.
        let client = self.settings.egress && !self.settings.spawn;
        let Some((ids, came)) = start(tracer.flavor, &head.headers, decided, client) else { return told };
        let words = of_route.map(|r| r.words.clone());
        let found = match ids.sampled {
            true => self.of_route(matched, words.as_deref().map(|w| &w.tags[..]).unwrap_or_default()),
            false => Vec::new(),
        };
        if ids.sampled {
            flow.keep_whole();
        }
        let trace = Trace {
            tracer: tracer.clone(),
            settings: self.settings.clone(),
            route: words,
            ids,
            remote: came.is_some(),
            state: came.and_then(|c| c.state),
            name: RefCell::new(self.name(head, matched)),
            found,
            attempts: RefCell::default(),
        };
        flow.info(|info| info.trace = Some(Rc::new(trace)));
        told
    }

    /// The name that the request or its route gives to the span, and what the next hop is told of it.
    fn name(&self, head: &mut RequestHead, matched: Option<&Matched>) -> Option<Arc<str>> {
        if self.names_itself(matched) {
            return None;
        }
        let decorated = matched.and_then(|m| m.route().operation.clone());
        if self.settings.egress {
            if let Some(operation) = &decorated
                && operation.propagate
                && let Ok(value) = HeaderValue::from_str(&operation.name)
            {
                head.headers.set(OPERATION, value);
            }
            return decorated.map(|o| o.name.clone());
        }
        let given =
            head.headers.get(&OPERATION).map(|v| v.to_str().ok().filter(|v| !v.is_empty()).map(Arc::from));
        if given.is_some() {
            head.headers.remove(&OPERATION);
        }
        given.flatten().or(decorated.map(|o| o.name.clone()))
    }

    /// Whether the configuration names spans, so that no decorator does.
    fn names_itself(&self, matched: Option<&Matched>) -> bool {
        let of_route = matched.and_then(|m| m.route().tracing.as_ref());
        self.settings.words.operation.is_some() || of_route.is_some_and(|r| r.words.operation.is_some())
    }

    /// Tags whose values the route's metadata has.
    fn of_route(
        &self,
        matched: Option<&Matched>,
        more: &[crate::telemetry::trace::Tag],
    ) -> Vec<(Arc<str>, String)> {
        let own = self.settings.words.tags.iter().filter(|t| !more.iter().any(|o| o.name == t.name));
        own.chain(more)
            .filter_map(|tag| {
                let Source::Route(path, default) = &tag.source else { return None };
                let metadata = matched.and_then(|m| m.route().metadata.as_ref());
                let (namespace, keys) = path.split_first()?;
                let value = metadata
                    .and_then(|m| crate::io::metadata::at_path(m.namespace(namespace)?, keys))
                    .and_then(|v| tags::tag_text(&xds_protos::value::to_json(v)));
                Some((tag.name.clone(), value.or_else(|| default.clone())?))
            })
            .collect()
    }

    /// An answer goes to the client: names of operations travel with it.
    pub fn answer(&self, flow: &Flow, asked: bool, matched: Option<&Matched>, headers: &mut Headers) {
        if self.names_itself(matched) {
            return;
        }
        if self.settings.egress {
            let Some(name) = headers.get_str(&OPERATION).map(Arc::<str>::from) else { return };
            headers.remove(&OPERATION);
            if !name.is_empty() {
                flow.info(|info| {
                    if let Some(trace) = &info.trace {
                        *trace.name.borrow_mut() = Some(name);
                    }
                });
            }
        } else if !asked
            && let Some(operation) = matched.and_then(|m| m.route().operation.as_ref())
            && operation.propagate
            && let Ok(value) = HeaderValue::from_str(&operation.name)
        {
            headers.set(OPERATION, value);
        }
    }
}

/// Reports the spans of a request that has ended.
pub fn end(trace: &Trace, context: &LogContext<'_>) {
    if !trace.ids.sampled {
        return;
    }
    for (number, attempt) in trace.attempts.borrow().iter().enumerate() {
        trace.tracer.report(tags::of_try(trace, number, attempt, context));
    }
    trace.tracer.report(tags::of_request(trace, context));
}

/// The ids of a request's span, and what it goes on from; none where the request's fields cannot be read.
fn start(flavor: Flavor, headers: &Headers, decided: bool, client: bool) -> Option<(Ids, Option<Came>)> {
    match flavor {
        Flavor::OpenTelemetry => match ids::traceparent(headers) {
            Found::Nonsense => None,
            Found::Context(came) => {
                // Both must want it: who came before, and whoever decides here.
                let sampled = came.ids.sampled && decided;
                let ids =
                    Ids { trace: came.ids.trace, span: ids::fresh(), parent: Some(came.ids.span), sampled };
                Some((ids, Some(came)))
            }
            Found::Nothing => {
                let trace = (u128::from(ids::fresh()) << 64) | u128::from(ids::fresh());
                Some((Ids { trace, span: ids::fresh(), parent: None, sampled: decided }, None))
            }
        },
        Flavor::Zipkin { wide, shared, w3c } => match ids::b3(headers, decided, w3c) {
            (Found::Nonsense, _) => None,
            (Found::Context(came), sampled) => {
                let above = came.ids;
                // A span is shared by who sends a request and who takes it: this side may share the sender's.
                let ids = match shared && !client {
                    true => Ids { sampled, ..above },
                    false => {
                        Ids { trace: above.trace, span: ids::fresh(), parent: Some(above.span), sampled }
                    }
                };
                Some((ids, Some(came)))
            }
            (Found::Nothing, sampled) => {
                let span = ids::fresh();
                let high = if wide { u128::from(ids::fresh()) << 64 } else { 0 };
                Some((Ids { trace: high | u128::from(span), span, parent: None, sampled }, None))
            }
        },
    }
}
