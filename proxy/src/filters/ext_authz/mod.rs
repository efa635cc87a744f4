//! `envoy.filters.http.ext_authz`: asks another service whether a request may pass, and does to it what the service says.

mod body;
pub mod check;
pub mod config;
pub mod grpc;
mod http_service;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use xds_protos::envoy::service::auth::v3::CheckResponse;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use self::body::Kept;
use self::check::Told;
use self::http_service::HttpService;
pub use self::verdict::Answer;
use self::verdict::{Changes, Denial};
use super::Verdict;
use super::config::PerFilter;
use super::question::Question;
use crate::codec::Headers;
use crate::codec::headers::Of;
use crate::io::metadata::Datum;
use crate::route::matching::Chance;
use crate::route::values::MetadataMatch;
use crate::router::grpc::GrpcService;
use crate::router::{BODY_TOO_LARGE, Exchange, LocalReply, charge};
use crate::telemetry::Flag;
use crate::telemetry::registry::{Counter, Group};

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
/// The namespace of the network filter of the same kind.
pub const NETWORK_NAMESPACE: &str = "envoy.filters.network.ext_authz";
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// The filter of a connection manager.
pub struct ExtAuthz {
    service: Service,
    told: Told,
    body: Option<BodySettings>,
    on_failure: OnFailure,
    enabled: Option<Chance>,
    enabled_metadata: Option<MetadataMatch>,
    deny_at_disable: bool,
    clear_route_cache: bool,
    ingest_metadata: bool,
    charge: bool,
    most_denied_body: usize,
    stats: Stats,
}

/// Whom to ask.
enum Service {
    Grpc(GrpcService),
    Http(HttpService),
}

/// What becomes of a request when there is no answer.
struct OnFailure {
    allow: bool,
    tell_upstream: bool,
    status: StatusCode,
}

/// How much of a body the service is told.
#[derive(Clone, Copy, Debug)]
pub struct BodySettings {
    most: usize,
    /// A part will do.
    partial: bool,
}

/// What a route says.
#[derive(Debug)]
pub enum OfRoute {
    /// Nobody is asked.
    Disabled,
    /// What else the service is told, and how much of the body.
    Settings {
        /// Context extensions.
        extensions: BTreeMap<String, String>,
        /// The body is not told.
        no_body: bool,
        /// How much of it, in place of the filter's.
        body: Option<BodySettings>,
    },
}

/// The filter's numbers: its own, and those of the clusters that requests were for.
struct Stats {
    own: Numbers,
    disabled: Counter,
    ignored_metadata: Counter,
    prefix: String,
    by_cluster: Mutex<HashMap<Arc<str>, Arc<Numbers>>>,
}

struct Numbers {
    ok: Counter,
    denied: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
    group: Arc<Group>,
}

impl Numbers {
    fn new(scope: String, prefix: &str) -> Self {
        let group = Group::new(scope, Vec::new());
        let counter = |name| group.counter(format!("{prefix}{name}"));
        Self {
            ok: counter("ok"),
            denied: counter("denied"),
            error: counter("error"),
            failure_mode_allowed: counter("failure_mode_allowed"),
            group,
        }
    }
}

impl Stats {
    fn new(stat_prefix: &str, own_prefix: &str) -> Self {
        let dot = if own_prefix.is_empty() || own_prefix.ends_with('.') { "" } else { "." };
        let prefix = format!("ext_authz.{own_prefix}{dot}");
        let own = Numbers::new(format!("http.{stat_prefix}"), &prefix);
        Self {
            disabled: own.group.counter(format!("{prefix}disabled")),
            ignored_metadata: own.group.counter(format!("{prefix}ignored_dynamic_metadata")),
            own,
            prefix,
            by_cluster: Mutex::default(),
        }
    }

    fn count(&self, exchange: &Exchange, which: impl Fn(&Numbers) -> Counter) {
        which(&self.own).inc();
        if let Some(cluster) = exchange.cluster() {
            let mut known = self.by_cluster.lock();
            let name = cluster.name();
            let numbers = known
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Numbers::new(format!("cluster.{name}"), &self.prefix)));
            which(numbers).inc();
        }
    }
}

impl ExtAuthz {
    /// Whether the service need not be asked, and what becomes of the request then.
    pub(super) fn request_head(&self, exchange: &Exchange, of_route: Option<&OfRoute>) -> Option<Verdict> {
        if matches!(of_route, Some(OfRoute::Disabled)) {
            return Some(Verdict::Continue);
        }
        let metadata = self.enabled_metadata.as_ref();
        let enabled = self.enabled.is_none_or(|c| c.hits(fastrand::u64(..)))
            && metadata.is_none_or(|m| exchange.flow.info(|i| m.matches_dynamic(&i.metadata)));
        if enabled {
            return None;
        }
        self.stats.disabled.inc();
        if !self.deny_at_disable {
            return Some(Verdict::Continue);
        }
        exchange.flow.flag(Flag::UnauthorizedExternalService);
        Some(Verdict::Reply(LocalReply::new(self.on_failure.status, "", "ext_authz_error")))
    }

    /// Asks, and does what the service says.
    pub(super) async fn check(&self, exchange: &mut Exchange, name: &str) -> Verdict {
        let (mut extensions, mut settings, mut decided) = (BTreeMap::new(), self.body, false);
        if let Some(matched) = &exchange.matched {
            // The most specific comes first; it counts for all but the extensions, which add up.
            for said in matched.per_filter().filter_map(|p| p.get(name)) {
                let PerFilter::ExtAuthz(of_route) = said else { continue };
                let OfRoute::Settings { extensions: more, no_body, body } = &**of_route else { continue };
                for (key, value) in more {
                    extensions.entry(key.clone()).or_insert_with(|| value.clone());
                }
                if !decided {
                    decided = true;
                    settings = if *no_body { None } else { body.or(self.body) };
                }
            }
        }
        let told = match self.told_body(exchange, settings).await {
            Ok(told) => told,
            Err(verdict) => return verdict,
        };
        let request = self.told.of_request(exchange, told.as_ref(), extensions);
        let asked = Instant::now();
        let answer = match &self.service {
            Service::Grpc(service) => {
                let question = Question::begin(&exchange.flow);
                let tell = |headers: &mut Headers| question.iter().for_each(|q| q.tell(headers));
                let answer = service.ask_with(grpc::METHOD, &request, &exchange.connection, tell).await;
                if let Some(question) = question {
                    question.of_grpc(
                        grpc::METHOD,
                        service.cluster.name(),
                        &answer,
                        |answer: &CheckResponse| {
                            verdict(answer.status.as_ref().is_none_or(|status| status.code == 0))
                        },
                    );
                }
                match answer {
                    Ok(response) => grpc::read(response),
                    Err(_) => Answer::Error(None),
                }
            }
            Service::Http(service) => {
                let body = told.map(|kept| kept.bytes).unwrap_or_default();
                service.ask(&request, body, exchange).await
            }
        };
        match answer {
            Answer::Ok(changes) => self.allow(exchange, *changes, asked),
            Answer::Denied(denial) => self.deny(exchange, *denial),
            Answer::Error(status) => self.fail(exchange, status),
        }
    }

    /// What the service is told of the body; the body itself stays as it is.
    async fn told_body(
        &self,
        exchange: &mut Exchange,
        settings: Option<BodySettings>,
    ) -> Result<Option<Kept>, Verdict> {
        let Some(settings) = settings else { return Ok(None) };
        if exchange.body.is_empty() || exchange.head.upgrade.is_some() {
            return Ok(None);
        }
        let Ok(kept) = body::keep(&mut exchange.body, settings.most).await else {
            // The downstream has gone; the connection's codec drops this as soon as it sees that.
            return std::future::pending().await;
        };
        if kept.more && !settings.partial {
            let reply = LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", BODY_TOO_LARGE);
            // What is left of the body is not the next request.
            return Err(Verdict::Reply(LocalReply { close: true, ..reply }));
        }
        Ok(Some(kept))
    }

    fn allow(&self, exchange: &mut Exchange, mut changes: Changes, asked: Instant) -> Verdict {
        self.stats.count(exchange, |n| n.ok);
        if let Some(mut said) = changes.metadata.take() {
            let millis = asked.elapsed().as_millis() as f64;
            let duration = Value { kind: Some(Kind::NumberValue(millis)) };
            said.fields.insert("ext_authz_duration".to_owned(), duration);
            self.ingest(exchange, said);
        }
        let reroute = self.clear_route_cache && changes.touch_request();
        changes.apply(&mut exchange.head);
        if !changes.response.is_empty() {
            let response = changes.response;
            exchange.scratch.later().tells.push(Box::new(move |headers| {
                verdict::change(headers, response, Of::Response);
            }));
        }
        if reroute { Verdict::Reroute } else { Verdict::Continue }
    }

    fn deny(&self, exchange: &mut Exchange, denial: Denial) -> Verdict {
        self.stats.count(exchange, |n| n.denied);
        if self.charge
            && let Some(cluster) = exchange.cluster()
        {
            charge::copy_answered(&cluster, denial.status);
        }
        if let Some(said) = denial.metadata {
            self.ingest(exchange, said);
        }
        exchange.flow.flag(Flag::UnauthorizedExternalService);
        let mut body = denial.body;
        if self.most_denied_body > 0 {
            body.truncate(self.most_denied_body);
        }
        let mut headers = Headers::new();
        verdict::change(&mut headers, denial.headers, Of::Response);
        let mut reply = LocalReply::new(denial.status, body, "ext_authz_denied");
        reply.headers.extend(headers);
        Verdict::Reply(reply)
    }

    fn fail(&self, exchange: &mut Exchange, status: Option<StatusCode>) -> Verdict {
        self.stats.count(exchange, |n| n.error);
        if self.on_failure.allow {
            self.stats.count(exchange, |n| n.failure_mode_allowed);
            if self.on_failure.tell_upstream {
                exchange.head.headers.set(FAILURE_ALLOWED, HeaderValue::from_static("true"));
            }
            return Verdict::Continue;
        }
        exchange.flow.flag(Flag::UnauthorizedExternalService);
        Verdict::Reply(LocalReply::new(status.unwrap_or(self.on_failure.status), "", "ext_authz_error"))
    }

    fn ingest(&self, exchange: &Exchange, said: Struct) {
        if !self.ingest_metadata {
            self.stats.ignored_metadata.inc();
            return;
        }
        exchange.flow.info(|info| {
            for (key, value) in said.fields {
                info.metadata.set(NAMESPACE, &key.into(), Datum::Other(Box::new(value)));
            }
        });
    }
}

/// What a span says of a check's answer, with Envoy's words.
fn verdict(allowed: bool) -> (&'static str, &'static str) {
    ("ext_authz_status", if allowed { "ext_authz_ok" } else { "ext_authz_unauthorized" })
}
