//! The agent's port of our own proxy (15020): what kubelet and Prometheus are told to ask there, and how a pod's containers tell
//! the proxy that it is to drain or to end. Istio's agent answers the same.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::by_tls::Door;
use super::exposition;
use super::health::{Asked, Health, Probers};
use super::scrape::{self, Deadline, Format, Place, Scraped};
use crate::admin::{self, AdminState};
use crate::state::{DrainScope, Role};

/// What the port is told at the start.
#[derive(Debug)]
pub struct Sidecar {
    health: Health,
    places: Vec<Known>,
    pod: IpAddr,
    port: u16,
    counts: Counts,
}

/// A place where the application gives metrics.
#[derive(Debug)]
struct Known {
    place: Place,
    /// It has answered in OpenMetrics where that was of no use: it is asked for text at once.
    text: AtomicBool,
}

/// What one of them says.
#[derive(Debug)]
struct Said {
    /// Which of them.
    at: usize,
    /// It was asked for text alone.
    for_text: bool,
    scraped: Scraped,
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
        Ok(Self::asking(places, health, pod, port))
    }

    fn asking(places: Vec<Place>, health: Health, pod: IpAddr, port: u16) -> Self {
        let known = |place| Known { place, text: AtomicBool::new(false) };
        let places = places.into_iter().map(known).collect();
        Self { health, places, pod, port, counts: Counts::default() }
    }

    /// Listens and answers for ever; an error says why it cannot listen.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve(self: &Arc<Self>, address: SocketAddr, state: Arc<AdminState>) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for probes and merged metrics (--agent-port); is another proxy running? (ss \
                 -ltnp shows)"
            )
        })?;
        let own = self.clone();
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

    /// Listens for who wants metrics by TLS, and answers for ever.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve_by_tls(
        self: &Arc<Self>,
        address: SocketAddr,
        door: Door,
        state: Arc<AdminState>,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for metrics by TLS (--metrics-tls-port; ss -ltnp shows who does)"
            )
        })?;
        let (own, door) = (self.clone(), Arc::new(door));
        tokio::task::spawn_local(async move {
            loop {
                let Ok(caller) = door.next(&listener).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (own, door, state) = (own.clone(), door.clone(), state.clone());
                tokio::task::spawn_local(async move {
                    let peer = caller.address;
                    let stream = match door.accept(caller).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            tracing::debug!(%peer, %error, "nobody was let in for metrics by TLS");
                            return;
                        }
                    };
                    let chain: Arc<[_]> = stream.get_ref().1.peer_certificates().unwrap_or_default().into();
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (own, state) = (own.clone(), state.clone());
                        let admitted = door.still_admits(&chain);
                        async move {
                            Ok::<_, Infallible>(match (admitted, request.uri().path()) {
                                (Err(error), _) => {
                                    tracing::debug!(%peer, %error, "metrics by TLS are refused from now on");
                                    let mut refused = text(StatusCode::FORBIDDEN, format!("{error}\n"));
                                    let close = HeaderValue::from_static("close");
                                    refused.headers_mut().insert(hyper::header::CONNECTION, close);
                                    refused
                                }
                                (Ok(()), "/stats/prometheus" | "/metrics") => {
                                    own.metrics(&request, &state).await
                                }
                                (Ok(()), _) => {
                                    text(StatusCode::NOT_FOUND, "there are /stats/prometheus and /metrics\n")
                                }
                            })
                        }
                    });
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
    ///
    /// OpenMetrics is answered where it is asked for and can be: all of the application speaks it, and no family is in two parts. All
    /// else is Prometheus' text, for which an application that has answered in OpenMetrics is asked once more, and from then on at once.
    async fn metrics(&self, request: &Request<Incoming>, state: &Arc<AdminState>) -> Response<Full<Bytes>> {
        self.counts.scrapes.fetch_add(1, Relaxed);
        let headers = request.headers();
        let accepted = headers.get_all(hyper::header::ACCEPT).iter();
        let open = accepted.filter_map(|v| v.to_str().ok()).any(admin::wants_open_metrics);
        let query = request.uri().query().unwrap_or_default().to_owned();
        let deadline = Deadline::of(headers);
        let application = self.application(headers, deadline).await;
        // Whoever asks for nothing gets what the application has, as from Istio's agent.
        if (open || !application.is_empty())
            && application.iter().all(|said| said.scraped.format == Format::OpenMetrics)
        {
            let parts = self.own(&query, true, state).await;
            let parts = match parts {
                Ok(parts) => parts,
                Err(wrong) => return text(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
            };
            let all = || {
                std::iter::once(parts.as_bytes()).chain(application.iter().map(|said| &said.scraped.text[..]))
            };
            if exposition::can_be_one(all()) {
                return answer(Format::OpenMetrics, all().chain([&b"# EOF\n"[..]]));
            }
        }
        let application = self.in_text(application, open, headers, deadline).await;
        match self.own(&query, false, state).await {
            Ok(own) => {
                let all = application.iter().map(|said| &said.scraped.text[..]);
                answer(Format::Text, std::iter::once(own.as_bytes()).chain(all))
            }
            Err(wrong) => text(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
        }
    }

    /// What each place of the application says.
    async fn application(&self, headers: &HeaderMap, deadline: Deadline) -> Vec<Said> {
        let all = self.places.iter().enumerate().map(|(at, known)| (at, known.text.load(Relaxed)));
        self.ask(all, headers, deadline).await
    }

    /// The same where it cannot be answered in OpenMetrics. `open`: that is what was asked for.
    async fn in_text(
        &self,
        application: Vec<Said>,
        open: bool,
        headers: &HeaderMap,
        deadline: Deadline,
    ) -> Vec<Said> {
        let (mut texts, others): (Vec<_>, Vec<_>) =
            application.into_iter().partition(|said| said.scraped.format == Format::Text);
        let (again, stubborn): (Vec<_>, Vec<_>) = others.into_iter().partition(|said| !said.for_text);
        for said in &again {
            // Who asks for an older version himself says nothing of what Prometheus gets.
            if open || said.scraped.format == Format::OpenMetrics {
                self.places[said.at].text.store(true, Relaxed);
            }
        }
        let again = again.into_iter().map(|said| (said.at, true));
        let (found, still): (Vec<_>, Vec<_>) = self
            .ask(again, headers, deadline)
            .await
            .into_iter()
            .partition(|said| said.scraped.format == Format::Text);
        for said in stubborn.iter().chain(&still) {
            let error = anyhow::anyhow!(
                "it answers in OpenMetrics though it was asked for text, and its metrics cannot stand beside the others in that: \
                 does a metric of it have the name of one of the proxy's, or is there an application that knows text only?"
            );
            self.missing(&self.places[said.at].place, &error);
        }
        texts.extend(found);
        texts.sort_by_key(|said| said.at);
        texts
    }

    /// Asks these places, all at the same time: for text alone or not.
    async fn ask(
        &self,
        which: impl Iterator<Item = (usize, bool)>,
        headers: &HeaderMap,
        deadline: Deadline,
    ) -> Vec<Said> {
        let mut asking = JoinSet::new();
        for (at, for_text) in which {
            let (place, pod) = (self.places[at].place.clone(), self.pod);
            let headers = if for_text { scrape::for_text(headers) } else { headers.clone() };
            asking.spawn(async move {
                let scraped = scrape::scrape(&place, &headers, pod, deadline).await;
                (at, for_text, scraped)
            });
        }
        let mut all = Vec::new();
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok((at, for_text, Ok(scraped))) => all.push(Said { at, for_text, scraped }),
                Ok((at, _, Err(error))) => self.missing(&self.places[at].place, &error),
                Err(_) => drop(self.counts.application.fetch_add(1, Relaxed)),
            }
        }
        all.sort_by_key(|said| said.at);
        all
    }

    fn missing(&self, place: &Place, error: &anyhow::Error) {
        self.counts.application.fetch_add(1, Relaxed);
        let error = format!("{error:#}");
        tracing::warn!(?place, error, "the application's metrics are missing");
    }

    /// The agent's numbers and the proxy's; an error says what is wrong with the query.
    async fn own(&self, query: &str, open: bool, state: &Arc<AdminState>) -> Result<String, String> {
        let (query, state) = (query.to_owned(), state.clone());
        // The control thread has more urgent work.
        let proxy = tokio::task::spawn_blocking(move || admin::metrics(&query, open, &state));
        let proxy = match proxy.await {
            Ok(proxy) => proxy?,
            Err(_) => {
                self.counts.proxy.fetch_add(1, Relaxed);
                String::new()
            }
        };
        Ok(self.counts.text(open) + &proxy)
    }
}

fn answer<'a>(format: Format, parts: impl Iterator<Item = &'a [u8]>) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    parts.for_each(|part| body.extend_from_slice(part));
    let mut response = Response::new(Full::from(body));
    let kind = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

impl Counts {
    fn text(&self, open: bool) -> String {
        let mut out = String::new();
        // OpenMetrics has the suffix in the samples' names alone.
        let total = if open { "" } else { "_total" };
        let (scrapes, application, proxy) =
            (self.scrapes.load(Relaxed), self.application.load(Relaxed), self.proxy.load(Relaxed));
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "# HELP istio_agent_scrapes{total} Times that these metrics were asked for.\n\
             # TYPE istio_agent_scrapes{total} counter\n\
             istio_agent_scrapes_total {scrapes}\n\
             # HELP istio_agent_scrape_failures{total} Times that a part of them was missing.\n\
             # TYPE istio_agent_scrape_failures{total} counter\n\
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
    use std::sync::Mutex;

    use super::*;

    /// An application whose places speak OpenMetrics, and text where they are asked for that alone, once so many ask at the same time.
    /// It tells what each was asked for.
    async fn application(places: usize, at_once: usize) -> (Sidecar, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, together) = (Arc::default(), Arc::new(tokio::sync::Barrier::new(at_once)));
        let heard: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (heard, together) = (heard.clone(), together.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let accept = request.headers()[hyper::header::ACCEPT].to_str().unwrap().to_owned();
                    heard.lock().unwrap().push(accept.clone());
                    let together = together.clone();
                    async move {
                        let open = accept.contains("openmetrics");
                        if !open {
                            together.wait().await;
                        }
                        let kind = if open { admin::OPEN_METRICS } else { "text/plain" };
                        let answer = Response::builder().header("content-type", kind);
                        answer.body(Full::new(Bytes::from(request.uri().path().to_owned())))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let targets = (0..places).map(|at| format!(r#"{{"port": "{port}", "path": "/{at}"}}"#));
        let targets = targets.collect::<Vec<_>>().join(", ");
        let places = scrape::parse(&format!(r#"{{"targets": [{targets}]}}"#), 15020).unwrap();
        let pod = IpAddr::from([127, 0, 0, 1]);
        (Sidecar::asking(places, Health::new(Probers::default(), pod), pod, 15020), asked)
    }

    fn prometheus() -> HeaderMap {
        let accept = HeaderValue::from_static("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
        [(hyper::header::ACCEPT, accept)].into_iter().collect()
    }

    #[tokio::test]
    async fn who_is_to_say_it_in_text_is_asked_with_the_others_and_from_then_on_at_once() {
        let (sidecar, asked) = application(3, 3).await;
        let headers = prometheus();
        // In text none answers before all are asked.
        for round in 1..=2 {
            let deadline = Deadline::of(&headers);
            let said = sidecar.application(&headers, deadline).await;
            let text = sidecar.in_text(said, true, &headers, deadline).await;
            let texts: Vec<_> = text.iter().map(|said| &said.scraped.text[..]).collect();
            assert_eq!(texts, [b"/0\n", b"/1\n", b"/2\n"], "{round}");
        }
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        let open: Vec<_> = asked.iter().map(|accept| accept.contains("openmetrics")).collect();
        assert_eq!(open, [[true; 3], [false; 3], [false; 3]].concat());
        assert_eq!(sidecar.counts.application.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn who_is_asked_twice_has_the_time_of_one() {
        let (sidecar, _) = application(1, 1).await;
        let headers = prometheus();
        let open = sidecar.application(&headers, Deadline::of(&headers)).await;
        // What Prometheus would wait for one answer is not what counts.
        let text = sidecar.in_text(open, true, &headers, Deadline::passed()).await;
        assert!(text.is_empty());
        assert_eq!(sidecar.counts.application.load(Relaxed), 1);
        // The next time it is asked for text at once, and has all of the time for it.
        let headers = prometheus();
        let said = sidecar.application(&headers, Deadline::of(&headers)).await;
        assert!(said.len() == 1 && said[0].scraped.format == Format::Text, "{said:?}");
    }

    #[tokio::test]
    async fn who_knows_openmetrics_alone_is_not_asked_for_text_twice() {
        let (sidecar, asked) = application(1, 1).await;
        let headers = prometheus();
        let mut said = sidecar.application(&headers, Deadline::of(&headers)).await;
        said[0].for_text = true;
        assert!(sidecar.in_text(said, true, &headers, Deadline::of(&headers)).await.is_empty());
        assert_eq!((asked.lock().unwrap().len(), sidecar.counts.application.load(Relaxed)), (1, 1));
    }

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
