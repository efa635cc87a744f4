//! Asking by HTTP: the request itself, with the fields that the service may see, goes to the service; its answer decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use xds_protos::envoy::service::auth::v3 as auth;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use super::super::question::Question;
use super::check::any;
use super::verdict::{Answer, Change, Changes, Denial};
use crate::cluster::Cluster;
use crate::codec::{Body, Headers};
use crate::io::ConnectionInfo;
use crate::route::HeaderOps;
use crate::route::header_ops::AppendAction;
use crate::route::text::StringMatch;
use crate::router::{Exchange, call};
use crate::state::Slot;
use crate::telemetry::access_log::LogContext;

/// Names fields of the request that a service that allows it wants removed.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// The most of an answer that is read, in bytes.
const LONGEST: usize = 4 << 20;

/// An HTTP service.
#[derive(Debug)]
pub struct HttpService {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// For the whole call; zero for no limit.
    pub timeout: Duration,
    /// Comes before the request's path.
    pub path_prefix: String,
    /// Changes of the fields that the service sees.
    pub headers: HeaderOps,
    /// Fields of an answer that allows, for the upstream: in place of the request's.
    pub upstream: Vec<StringMatch>,
    /// The same, joined to the request's.
    pub upstream_append: Vec<StringMatch>,
    /// Fields of an answer that denies, for the client; none for all.
    pub client: Option<Vec<StringMatch>>,
    /// Fields of an answer that allows, for the client.
    pub client_on_success: Vec<StringMatch>,
    /// Fields of an answer that allows, for later filters and logs.
    pub metadata: Vec<StringMatch>,
}

impl HttpService {
    /// Asks. `told` is what may be told.
    pub async fn ask(&self, told: &auth::CheckRequest, body: Bytes, exchange: &Exchange) -> Answer {
        let mut head = self.head(told, &body, exchange);
        let question = Question::begin(&exchange.flow);
        question.iter().for_each(|question| question.tell(&mut head.headers));
        let mut reached = call::Asked::default();
        let connection: &Arc<ConnectionInfo> = &exchange.connection;
        let asked = Instant::now();
        let work = async {
            let (body, connection) = (Body::full(body), connection.clone());
            let called = call::call_noting(&self.cluster, head, body, self.timeout, connection, &mut reached);
            let mut reply = called.await.ok()?;
            let (bytes, _) = call::read(&mut reply.body, LONGEST).await.ok()?;
            let mut headers = reply.head.headers;
            // As for any upstream's answer.
            headers.set(SERVICE_TIME, HeaderValue::from(asked.elapsed().as_millis() as u64));
            Some((reply.head.status, headers, bytes))
        };
        let answered = if self.timeout.is_zero() {
            work.await
        } else {
            tokio::time::timeout(self.timeout, work).await.ok().flatten()
        };
        if let Some(question) = question {
            // Where nobody answers, the proxy does in the service's place.
            let status = answered.as_ref().map_or(StatusCode::SERVICE_UNAVAILABLE, |(status, ..)| *status);
            let verdict = super::verdict(status == StatusCode::OK);
            question.of_http(self.cluster.name(), reached.host, reached.protocol, status, verdict);
        }
        match answered {
            None => Answer::Error(None),
            Some((status, ..)) if status.is_server_error() => Answer::Error(None),
            Some((StatusCode::OK, headers, _)) => Answer::Ok(Box::new(self.changes(&headers))),
            Some((status, headers, body)) => Answer::Denied(Box::new(Denial {
                status,
                body,
                headers: self.denial(&headers),
                metadata: None,
            })),
        }
    }

    fn head(
        &self,
        told: &auth::CheckRequest,
        body: &Bytes,
        exchange: &Exchange,
    ) -> crate::codec::RequestHead {
        let original = &exchange.head;
        let path = [self.path_prefix.as_bytes(), &original.path].concat();
        let mut head = call::head(original.method.clone(), original.authority.clone(), path.into());
        // To this service the request looks as if it came from the client itself.
        head.headers.remove(&FORWARDED_FOR);
        head.headers.append(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let http = told.attributes.as_ref().and_then(|a| a.request.as_ref()?.http.as_ref());
        for (name, value) in http.iter().flat_map(|h| &h.headers) {
            if name.starts_with(':') || name == "content-length" {
                continue;
            }
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
            {
                head.headers.append(name, value);
            }
        }
        if !self.headers.is_empty() {
            exchange.flow.info(|info| {
                let context =
                    LogContext { request: Some(original), ..LogContext::new(info, &exchange.connection) };
                self.headers.apply(&mut head.headers, &context);
            });
        }
        head
    }

    fn changes(&self, answer: &Headers) -> Changes {
        let mut changes = Changes::default();
        let change = |name: &HeaderName, value: &HeaderValue, action| Change {
            name: name.clone(),
            value: value.clone(),
            action,
        };
        let mut said = Struct::default();
        for (name, value) in answer.iter() {
            let text = name.as_str();
            if any(&self.upstream, text) {
                changes.request.push(change(name, value, AppendAction::OverwriteOrAdd));
            }
            if any(&self.upstream_append, text) {
                changes.request.push(change(name, value, AppendAction::AppendOrAdd));
            }
            if any(&self.client_on_success, text) {
                changes.response.push(change(name, value, AppendAction::AppendOrAdd));
            }
            if any(&self.metadata, text) {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                said.fields.insert(text.to_owned(), Value { kind: Some(Kind::StringValue(value)) });
            }
        }
        for names in answer.get_all(&REMOVE).filter_map(|v| v.to_str().ok()) {
            let names = names.split(',').map(str::trim).filter(|n| !n.eq_ignore_ascii_case("host"));
            changes.remove.extend(names.filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()));
        }
        changes.metadata = (!said.fields.is_empty()).then_some(said);
        changes
    }

    fn denial(&self, answer: &Headers) -> Vec<Change> {
        let of_framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
        let shown = |name: &HeaderName| match &self.client {
            None => *name != header::HOST,
            Some(rules) => any(rules, name.as_str()),
        };
        let fields = answer.iter().filter(|(name, _)| !of_framing.contains(name) && shown(name));
        fields
            .map(|(name, value)| Change {
                name: name.clone(),
                value: value.clone(),
                action: AppendAction::AppendOrAdd,
            })
            .collect()
    }
}
