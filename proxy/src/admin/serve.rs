//! The HTTP servers of the admin interface.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::tap::{self, Lines};
use super::{AdminState, pages, prometheus};

/// What a port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Everything.
    Admin,
    /// `/healthz/ready` only.
    Status,
    /// `/stats/prometheus` only.
    Prometheus,
}

/// An answer of a page.
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) body: String,
}

impl Page {
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, kind: "text/plain; charset=UTF-8", body: body.into() }
    }

    pub(super) fn json(value: &serde_json::Value) -> Self {
        let body = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
        Self { status: StatusCode::OK, kind: "application/json", body }
    }

    pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, ..Self::text(message.into() + "\n") }
    }
}

/// Listens and answers for ever; an error says why it cannot listen.
pub async fn serve(address: SocketAddr, surface: Surface, state: Arc<AdminState>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let what = match surface {
            Surface::Admin => "admin interface (--admin-address)",
            Surface::Status => "readiness (--status-port)",
            Surface::Prometheus => "metrics (--prometheus-port)",
        };
        anyhow::anyhow!(
            "cannot listen on {address} for {what}: {error}; is another proxy running? (ss -ltnp shows)"
        )
    })?;
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let state = state.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| {
                    let watches = surface == Surface::Admin && request.uri().path() == "/weft/tap";
                    let watched = watches.then(|| watch(&request));
                    let page = answer(request, surface, from, state.clone());
                    async move {
                        Ok::<_, Infallible>(match watched {
                            Some(answer) => answer,
                            None => response(page.await).map(Either::Left),
                        })
                    }
                });
                // A client that goes away ends only its own connection.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(())
}

/// Requests as they end, for as long as the client reads.
fn watch(request: &Request<Incoming>) -> Response<Either<Full<Bytes>, Lines>> {
    match tap::begin(pages::pairs(request.uri().query().unwrap_or_default())) {
        Ok(lines) => {
            let page = Page { kind: "application/x-ndjson", ..Page::text("") };
            response(page).map(|_| Either::Right(lines))
        }
        Err(wrong) => response(Page::error(StatusCode::BAD_REQUEST, wrong)).map(Either::Left),
    }
}

async fn answer(
    request: Request<Incoming>,
    surface: Surface,
    from: SocketAddr,
    state: Arc<AdminState>,
) -> Page {
    let told = pages::changes(&request).then(|| (request.method().clone(), request.uri().path().to_owned()));
    let page = page(request, surface, state).await;
    if let Some((method, path)) = told {
        tell(from, &method, &path, page.status);
    }
    page
}

/// Tells that somebody changed something, or was refused.
pub fn tell(from: SocketAddr, method: &Method, path: &str, status: StatusCode) {
    emit(Kind::Admin, || {
        let refused = !status.is_success();
        let (outcome, severity) =
            if refused { (Outcome::Denied, Severity::Medium) } else { (Outcome::Ok, Severity::Low) };
        let words = format!("{method} {path} was {}", if refused { "refused" } else { "done" });
        Event::new(Kind::Admin, outcome, severity, "admin", words)
            .with("source_address", from.to_string())
            .with("operation", format!("{method} {path}"))
            .with("status", status.as_u16())
    });
}

async fn page(request: Request<Incoming>, surface: Surface, state: Arc<AdminState>) -> Page {
    let path = request.uri().path();
    let allowed = match surface {
        Surface::Admin => true,
        Surface::Status => path == "/healthz/ready",
        Surface::Prometheus => path == "/stats/prometheus",
    };
    if !allowed {
        return Page::error(StatusCode::NOT_FOUND, "this port answers one path only");
    }
    let (path, query) = (path.to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let accepted = request.headers().get_all(hyper::header::ACCEPT);
    let open = accepted.iter().any(|v| v.to_str().is_ok_and(prometheus::wants_open_metrics));
    read(path, query, request.method() == Method::POST, open, state).await
}

/// A page that has an end. Without `post` nothing is changed.
pub(super) async fn read(
    path: String,
    query: String,
    post: bool,
    open: bool,
    state: Arc<AdminState>,
) -> Page {
    let long = pages::is_long(&path);
    let page = move || pages::page(&path, &query, post, open, &state);
    if !long {
        return page();
    }
    // The control thread has more urgent work: the returns of ejected hosts, the answers to a control plane.
    tokio::task::spawn_blocking(page).await.unwrap_or_else(|error| {
        Page::error(StatusCode::INTERNAL_SERVER_ERROR, format!("the page could not be written: {error}"))
    })
}

fn response(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page.body));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static(page.kind));
    headers.insert("cache-control", hyper::header::HeaderValue::from_static("no-cache, max-age=0"));
    response
}
