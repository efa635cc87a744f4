//! The agent's port of our own proxy (15020): what kubelet and Prometheus are told to ask there, and how a pod's containers tell
//! the proxy that it is to drain or to end. Istio's agent answers the same.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::health::{Asked, Health, Probers};
use super::scrape::{self, Format, Place, scrape};
use crate::admin::{self, AdminState};
use crate::state::{DrainScope, Role};

/// What the port is told at the start.
#[derive(Debug)]
pub struct Sidecar {
    health: Health,
    places: Vec<Place>,
    pod: IpAddr,
    port: u16,
    counts: Counts,
}

/// Istio's numbers of an agent.
#[derive(Debug, Default)]
struct Counts {
    scrapes: AtomicU64,
    /// `istio_agent_scrape_failures_total`, of the application and of the proxy.
    application: AtomicU64,
    proxy: AtomicU64,
}

impl Sidecar {
    /// Reads the environment. `pod` is the pod's own address, where the application is asked.
    ///
    /// # Errors
    /// What an injector left there cannot be read.
    pub fn from_environment(pod: IpAddr, port: u16, role: Role) -> anyhow::Result<Self> {
        let legacy = std::env::var("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION");
        let legacy = legacy.is_ok_and(|v| v.eq_ignore_ascii_case("true") || v == "1");
        let localhost =
            if pod.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { std::net::Ipv6Addr::LOCALHOST.into() };
        let health = Health::new(Probers::from_environment()?, if legacy { localhost } else { pod });
        // The port of a gateway is open to others.
        let places = if role == Role::Sidecar { scrape::from_environment(port)? } else { Vec::new() };
        Ok(Self { health, places, pod, port, counts: Counts::default() })
    }

    /// Listens and answers for ever; an error says why it cannot listen.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve(self, address: SocketAddr, state: Arc<AdminState>) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for probes and merged metrics (--agent-port); is another proxy running? (ss \
                 -ltnp shows)"
            )
        })?;
        let own = Arc::new(self);
        tokio::task::spawn_local(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (own, state) = (own.clone(), state.clone());
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| {
                        let (own, state) = (own.clone(), state.clone());
                        async move { Ok::<_, Infallible>(own.answer(request, peer, &state).await) }
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

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        state: &Arc<AdminState>,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        match path {
            "/healthz/ready" => match state.why_unready() {
                None => text(StatusCode::OK, "LIVE\n"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/stats/prometheus" | "/metrics" => self.metrics(&request, state).await,
            "/quitquitquit" => self.order(&request, peer, || {
                tracing::info!("told to end by /quitquitquit");
                state.quit.notify_one();
            }),
            "/drain" => self.order(&request, peer, || {
                tracing::info!("told to drain by /drain");
                state.readiness.drain_beforehand();
                state.drain(DrainScope::of(state.role));
            }),
            _ if Health::is_probe(path) => {
                let asked = Asked { headers: request.headers(), port: self.port };
                let outcome = self.health.probe(path, &asked).await;
                text(outcome.status, outcome.body)
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /healthz/ready, /stats/prometheus, /metrics, /app-health/..., /app-lifecycle/..., and for this pod \
                 by POST: /drain, /quitquitquit\n",
            ),
        }
    }

    /// Does what a container of the same pod asks for.
    fn order(
        &self,
        request: &Request<Incoming>,
        peer: SocketAddr,
        act: impl FnOnce(),
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !is_local(peer.ip()) {
            admin::tell(peer, request.method(), path, StatusCode::FORBIDDEN);
            return text(StatusCode::FORBIDDEN, "only this pod's own containers may ask, at localhost\n");
        }
        let status = match *request.method() {
            Method::POST => StatusCode::OK,
            _ => StatusCode::METHOD_NOT_ALLOWED,
        };
        admin::tell(peer, request.method(), path, status);
        if status != StatusCode::OK {
            return text(status, format!("{path} wants POST\n"));
        }
        act();
        text(StatusCode::OK, "OK")
    }

    /// The agent's numbers, the proxy's and the application's. Whoever fails is missing, and counted.
    async fn metrics(&self, request: &Request<Incoming>, state: &Arc<AdminState>) -> Response<Full<Bytes>> {
        self.counts.scrapes.fetch_add(1, Relaxed);
        let query = request.uri().query().unwrap_or_default().to_owned();
        let proxy = {
            let state = state.clone();
            // The control thread has more urgent work.
            tokio::task::spawn_blocking(move || admin::metrics(&query, &state))
        };
        let mut application = Vec::new();
        let asking: Vec<_> = self
            .places
            .iter()
            .map(|place| {
                let (place, headers, pod) = (place.clone(), request.headers().clone(), self.pod);
                tokio::spawn(async move { scrape(&place, &headers, pod).await.map_err(|e| (place, e)) })
            })
            .collect();
        for asked in asking {
            match asked.await {
                Ok(Ok(scraped)) => application.push(scraped),
                Ok(Err((place, error))) => {
                    self.counts.application.fetch_add(1, Relaxed);
                    let error = format!("{error:#}");
                    tracing::warn!(?place, error, "the application's metrics are missing");
                }
                Err(_) => drop(self.counts.application.fetch_add(1, Relaxed)),
            }
        }
        let proxy = match proxy.await {
            Ok(Ok(text)) => text,
            Ok(Err(wrong)) => return text(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
            Err(_) => {
                self.counts.proxy.fetch_add(1, Relaxed);
                String::new()
            }
        };
        // One format for all: OpenMetrics, if all of the application speaks it. It is text with an end.
        let format = application.first().map_or(Format::Text, |s| s.format);
        let format = if application.iter().all(|s| s.format == format) { format } else { Format::Text };
        let mut body = self.counts.text();
        body.push_str(&proxy);
        let mut body = body.into_bytes();
        application.iter().for_each(|s| body.extend_from_slice(&s.text));
        if format != Format::Text {
            body.extend_from_slice(b"# EOF\n");
        }
        let mut response = Response::new(Full::from(body));
        response
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        response
    }
}

impl Counts {
    fn text(&self) -> String {
        let mut out = String::new();
        let (scrapes, application, proxy) =
            (self.scrapes.load(Relaxed), self.application.load(Relaxed), self.proxy.load(Relaxed));
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "# HELP istio_agent_scrapes_total Times that these metrics were asked for.\n\
             # TYPE istio_agent_scrapes_total counter\n\
             istio_agent_scrapes_total {scrapes}\n\
             # HELP istio_agent_scrape_failures_total Times that a part of them was missing.\n\
             # TYPE istio_agent_scrape_failures_total counter\n\
             istio_agent_scrape_failures_total{{type=\"application\"}} {application}\n\
             istio_agent_scrape_failures_total{{type=\"envoy\"}} {proxy}\n"
        );
        out
    }
}

/// Whether that is this pod itself.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
        IpAddr::V4(v4) => v4.is_loopback(),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_this_pod() {
        for (ip, local) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_local(ip.parse().unwrap()), local, "{ip}");
        }
    }
}
