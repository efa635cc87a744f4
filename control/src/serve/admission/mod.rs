//! The webhooks that a Kubernetes API server asks before it stores something (port 15017, HTTPS): `/inject` puts sidecars into
//! pods, `/validate` refuses configuration that the mesh would not take.
//!
//! [`review`] is the API server's form of question and answer, [`pods`] and [`objects`] answer, [`tls`] has the certificate:
//! one of the mesh's authority, or one from files.

#[cfg(test)]
mod corpus;
mod objects;
mod pods;
mod review;
#[cfg(test)]
mod tests;
pub mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::inspect::http::{Body, Operators, is_ours as is_of_proxies, whole};
use crate::ingest::Snapshot;
use crate::ingest::cluster::Beside;
use objects::Surroundings;
use pods::SettingsFile;
use review::{Answer, Question};
use tls::Certificate;

/// The API server's objects have at most 1.5 MB or so, and a question may have two.
const LARGEST: usize = 4 * 1024 * 1024;
/// A client that does not finish its handshake in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// And one that does not say its whole question in this time. The API server itself waits for 30 s at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// An object is looked at beside all others for no longer than this: whoever applies it waits, and so does the API server.
const LOOK: Duration = Duration::from_millis(800);
/// A check that has begun is waited for this much longer.
const GRACE: Duration = Duration::from_millis(400);
/// Connections that are served at the same time; an API server has few.
const CONNECTIONS: usize = 256;
/// Questions whose bodies are read at the same time, so that they have a limit of memory.
const QUESTIONS: usize = 32;

/// The flags.
#[derive(Args, Debug, Default)]
pub struct WebhookArgs {
    /// Answer the webhooks of a Kubernetes API server here, by HTTPS: /inject and /validate (istiod has 15017); not at all
    /// without
    #[arg(long, value_name = "PORT")]
    pub webhook_port: Option<u16>,
    /// What sidecars are made from (weft inject has the same flag); read anew for each pod, and kept as it was when it breaks
    #[arg(long, value_name = "FILE", requires = "webhook_port")]
    pub injection_config: Option<PathBuf>,
    /// The webhooks' certificate chain, PEM, followed by the files' changes; by default the mesh's own authority issues one
    #[arg(long, value_name = "FILE", requires = "webhook_key")]
    pub webhook_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "webhook_cert")]
    pub webhook_key: Option<PathBuf>,
}

/// What the webhooks answer from.
pub struct Webhooks {
    settings: SettingsFile,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What objects are looked at beside; none where a directory is read, which no API server's object is part of.
    surroundings: Option<Arc<Surroundings>>,
    questions: Semaphore,
    /// One object at a time: looking at all others takes a core.
    looks: Arc<Semaphore>,
}

impl Webhooks {
    /// Reads the settings of injection.
    ///
    /// # Errors
    /// There are none, or they are wrong: what every pod gets must be right from the start.
    pub fn new(
        args: &WebhookArgs,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        beside: Option<Beside>,
    ) -> anyhow::Result<Arc<Self>> {
        let settings = SettingsFile::open(args.injection_config.clone())?;
        let surroundings = beside.map(|beside| Arc::new(Surroundings::new(beside)));
        let (questions, looks) = (Semaphore::new(QUESTIONS), Arc::new(Semaphore::new(1)));
        Ok(Arc::new(Self { settings, snapshots, surroundings, questions, looks }))
    }

    /// Answers on `listener` until the process ends.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        certificate: Arc<dyn Certificate>,
        operators: Operators,
    ) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Never closed.
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (webhooks, config) = (self.clone(), certificate.current());
                    let operators = operators.clone();
                    tokio::spawn(async move {
                        webhooks.connection(stream, from, TlsAcceptor::from(config), operators).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: it passes.
                    tracing::warn!(%error, "cannot accept a connection on the webhooks' port");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        tls: TlsAcceptor,
        operators: Operators,
    ) {
        let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::warn!(%error, "handshake on the webhooks' port failed: does the webhook configurations' caBundle have \
                    the root of the webhooks' certificate?");
                return;
            }
            Err(_) => return tracing::warn!("handshake on the webhooks' port took too long"),
        };
        let service = service_fn(|request| {
            let (webhooks, operators) = (self.clone(), operators.clone());
            async move {
                let request: Request<Incoming> = request;
                Ok::<_, Infallible>(match is_of_proxies(request.uri().path()) {
                    true => operators.answer(&request, Some(from), true).await,
                    false => webhooks.answer(request).await,
                })
            }
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PATIENCE)
            .keep_alive_timeout(PATIENCE)
            .max_concurrent_streams(QUESTIONS as u32);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(%error, "a connection of a webhook ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/inject" | "/validate" => {}
            "/ready" => return plain(StatusCode::OK, "ready\n"),
            _ => return plain(StatusCode::NOT_FOUND, "there are /inject, /validate, /proxies and /ready\n"),
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "the API server asks by POST\n");
        }
        let read = async {
            let permit = self.questions.acquire().await;
            (Limited::new(request.into_body(), LARGEST).collect().await, permit)
        };
        let (body, _permit) = match tokio::time::timeout(PATIENCE, read).await {
            Ok((Ok(body), permit)) => (body.to_bytes(), permit),
            Ok((Err(error), _)) => return plain(StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")),
            Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the question did not come in time\n"),
        };
        match Question::read(&body) {
            Ok(question) => {
                let question = Arc::new(question);
                let answer = match path.as_str() {
                    "/inject" => self.inject(&question),
                    _ => self.validate(&question).await,
                };
                if let Some(why) = &answer.refused {
                    tell(&question, why);
                }
                json(&answer.review(&question))
            }
            Err(wrong) => {
                tracing::warn!(path, wrong, "a webhook was asked what it does not understand");
                plain(StatusCode::BAD_REQUEST, format!("{wrong}\n"))
            }
        }
    }

    fn inject(&self, question: &Question) -> Answer {
        let snapshot = self.snapshots.borrow().clone();
        pods::inject(question, &self.settings.read().with_world(&snapshot.world))
    }

    async fn validate(&self, question: &Arc<Question>) -> Answer {
        let Some(surroundings) = self.surroundings.clone() else { return objects::validate(question, None) };
        let end = Instant::now() + LOOK;
        let looked = async {
            let permit = self.looks.clone().acquire_owned().await.ok()?;
            let question = question.clone();
            let look = move || {
                let answer = objects::validate(&question, Some((&surroundings, end.into_std())));
                drop(permit);
                answer
            };
            tokio::task::spawn_blocking(look).await.ok()
        };
        match tokio::time::timeout_at(end + GRACE, looked).await {
            Ok(Some(answer)) => answer,
            _ => objects::alone(question),
        }
    }
}

/// Tells of an object that was not let in.
fn tell(question: &Question, why: &str) {
    emit(Kind::ConfigRejected, || {
        let name = question.object["metadata"]["name"].as_str().unwrap_or_default();
        let [_, _, kind] = &question.kind;
        let resource = format!("{kind} {}/{name}", question.namespace);
        Event::new(
            Kind::ConfigRejected,
            Outcome::Denied,
            Severity::Medium,
            "webhook",
            format!("{resource}: {why}"),
        )
        .with("resource", resource)
        .with("resource_type", kind.as_str())
        .with("reason", why)
        .with("actor", question.user.as_str())
        .with("operation", question.operation.as_str())
        .with("source", "kube-apiserver")
    });
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(whole(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
