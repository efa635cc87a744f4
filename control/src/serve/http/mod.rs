//! The control plane's plain HTTP ports: metrics (15014) and debugging (8080), with istiod's paths.

mod conflicts;
mod debug;
mod numbers;
mod objects;
mod push;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use weft_events::{Event, Kind, Outcome, Severity, emit};

pub use numbers::record;
pub use push::PushArgs;

use self::conflicts::Found;
use super::inspect::http::{Body, Operators, is_ours as is_of_proxies, whole};
use super::quarantine::http::{self as quarantine, Responders};
use super::{Proxies, RenderCache};
use crate::ingest::Snapshot;
use crate::model::Trust;
use crate::queue::Queue;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// The directory's latest state.
    pub snapshots: tokio::sync::watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub proxies: Proxies,
    /// What they get.
    pub cache: Arc<RenderCache>,
    /// The numbers.
    pub metrics: PrometheusHandle,
    /// What they are brought to.
    pub queue: Queue,
    /// Whom the mesh trusts.
    pub trust: tokio::sync::watch::Receiver<Arc<Trust>>,
    /// How versions on trial stand.
    pub trials: tokio::sync::watch::Receiver<Arc<serde_json::Value>>,
    /// Who may put workloads under quarantine, if anybody may.
    pub responders: Option<Responders>,
    /// Who may read proxies' admin pages.
    pub operators: Operators,
    /// What conflicts were found last.
    pub conflicts: Found,
    /// Since when.
    pub began: std::time::Instant,
}

/// Which of the two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// `/metrics` and `/version`.
    Metrics,
    /// `/ready`, `/debug/...`, and what the metrics port has.
    Debug,
}

/// An answer: status, content type, text.
type Answer = (StatusCode, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn json(value: &serde_json::Value) -> Answer {
    (StatusCode::OK, JSON, format!("{value:#}\n"))
}

impl Pages {
    /// Answers on `listener` until the process ends.
    pub async fn serve(self, listener: TcpListener, port: Port) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes.
                    tracing::warn!(%error, ?port, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let pages = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let pages = pages.clone();
                    async move {
                        let head = request.method() == Method::HEAD;
                        if port == Port::Debug && is_of_proxies(request.uri().path()) {
                            return Ok(pages.operators.answer(&request, Some(from), false).await);
                        }
                        let ours = port == Port::Debug && quarantine::is_ours(request.uri().path());
                        let answer = match pages.responders.as_ref().filter(|_| ours) {
                            Some(responders) => {
                                let (status, body) = responders.answer(request, from).await;
                                (status, JSON, format!("{body:#}\n"))
                            }
                            None => pages.answer(&request, port, from),
                        };
                        Ok::<_, Infallible>(response(head, answer))
                    }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, %from, "connection of a page ended");
                }
            });
        }
    }

    /// What the metrics port says.
    fn numbers(&self) -> String {
        self.gauges();
        self.metrics.run_upkeep();
        self.metrics.render()
    }

    fn answer(&self, request: &Request<Incoming>, port: Port, from: SocketAddr) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            tell(from, request, StatusCode::METHOD_NOT_ALLOWED);
            return (StatusCode::METHOD_NOT_ALLOWED, TEXT, "these pages are read by GET\n".to_owned());
        }
        tracing::debug!(path = request.uri().path(), %from, "page");
        let path = request.uri().path();
        match (path, port) {
            ("/metrics", _) => (StatusCode::OK, "text/plain; version=0.0.4", self.numbers()),
            ("/version", _) => {
                (StatusCode::OK, TEXT, concat!("weft-", env!("CARGO_PKG_VERSION"), "\n").to_owned())
            }
            // The ports are opened once the first state is read: whoever gets an answer gets it from a ready one.
            ("/ready", Port::Debug) => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            (_, Port::Debug) => debug::page(self, path, request.uri().query().unwrap_or_default())
                .unwrap_or_else(|| (StatusCode::NOT_FOUND, TEXT, debug::INDEX.to_owned())),
            _ => (StatusCode::NOT_FOUND, TEXT, "there are /metrics and /version\n".to_owned()),
        }
    }
}

/// Tells that somebody changed something, or was refused.
pub(super) fn tell<B>(from: SocketAddr, request: &Request<B>, status: StatusCode) {
    emit(Kind::Admin, || {
        let (method, path) = (request.method(), request.uri().path());
        let (outcome, severity) = match status.is_success() {
            true => (Outcome::Ok, Severity::Low),
            false => (Outcome::Denied, Severity::Medium),
        };
        let words = format!("{method} {path} was {}", if status.is_success() { "done" } else { "refused" });
        Event::new(Kind::Admin, outcome, severity, "debug", words)
            .with("source_address", from.to_string())
            .with("operation", format!("{method} {path}"))
            .with("status", status.as_u16())
    });
}

fn response(head: bool, (status, kind, text): Answer) -> Response<Body> {
    let body = if head { Bytes::new() } else { text.into() };
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
