//! The agent's HTTP port: `/healthz/ready` and `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::dns::Dns;
use super::stats::Stats;
use crate::identity::workload::{Current, Status};

/// How long the proxy's admin interface may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the pages speak of.
#[derive(Debug)]
pub(super) struct StatusPages {
    pub(super) current: Current,
    pub(super) certificate: watch::Receiver<Status>,
    pub(super) stats: Stats,
    pub(super) admin: SocketAddr,
    /// The pod's DNS, if it is answered here.
    pub(super) dns: Option<Dns>,
}

/// Listens; the future answers for ever.
pub(super) async fn listen(
    address: SocketAddr,
    pages: Arc<StatusPages>,
) -> anyhow::Result<impl Future<Output = Infallible>> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address} for readiness and metrics (--status-address); is another agent running? (ss -ltnp \
             shows)"
        )
    })?;
    Ok(serve(listener, pages))
}

async fn serve(listener: TcpListener, pages: Arc<StatusPages>) -> Infallible {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let pages = pages.clone();
                async move { Ok::<_, Infallible>(pages.answer(&request).await) }
            });
            // A client that goes away ends only its own connection.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl StatusPages {
    async fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match request.uri().path() {
            "/healthz/ready" => match self.unready().await {
                None => (StatusCode::OK, "ready\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
            },
            "/metrics" => {
                let own = self.stats.prometheus(&self.certificate.borrow(), &self.current);
                let dns = self.dns.as_ref().map(Dns::prometheus).unwrap_or_default();
                (StatusCode::OK, own + &dns)
            }
            "/dns" if self.dns.is_some() => {
                let page = self.dns.as_ref().map(crate::admin::Dns::page).unwrap_or_default();
                (StatusCode::OK, format!("{page:#}\n"))
            }
            _ => (
                StatusCode::NOT_FOUND,
                "there are /healthz/ready, /metrics, and /dns where DNS is answered\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert("content-type", kind);
        response
    }

    /// Why the proxy cannot take traffic yet; none if it can.
    pub(super) async fn unready(&self) -> Option<String> {
        if self.current.borrow().is_none() {
            let why = self.certificate.borrow().last_error.clone();
            return Some(format!(
                "the workload has no certificate: {}",
                why.as_deref().unwrap_or("it is being asked for")
            ));
        }
        if self.dns.as_ref().is_some_and(|dns| !crate::admin::Dns::ready(dns)) {
            return Some("the control plane has not sent the names of the mesh yet (DNS)".to_owned());
        }
        let reason = match tokio::time::timeout(PATIENCE, stats(self.admin)).await {
            Ok(Ok(text)) => unready(&text)?,
            Ok(Err(error)) => {
                format!("the proxy's admin interface at {} does not answer: {error:#}", self.admin)
            }
            Err(_) => {
                format!("the proxy's admin interface at {} did not answer within {PATIENCE:?}", self.admin)
            }
        };
        Some(match self.stats.relay_error() {
            Some(error) => format!("{reason} (the control plane: {error})"),
            None => reason,
        })
    }
}

/// What Envoy's numbers say against its being ready: it needs clusters and listeners from the control plane, and workers.
fn unready(stats: &str) -> Option<String> {
    let value = |name: &str| {
        let line = stats.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|v| v.trim().parse::<u64>().ok())
    };
    let least = |name: &str| value(name).is_some_and(|v| v > 0);
    let clusters = least("cluster_manager.cds.update_success");
    let listeners = least("listener_manager.lds.update_success");
    if !clusters || !listeners {
        let told = |has: bool| if has { "received" } else { "not received" };
        return Some(format!(
            "the proxy is not configured: clusters {}, listeners {}",
            told(clusters),
            told(listeners)
        ));
    }
    match value("server.state") {
        Some(0) if least("listener_manager.workers_started") => None,
        Some(0) => Some("the proxy's workers have not started".to_owned()),
        Some(1) => Some("the proxy is draining".to_owned()),
        _ => Some("the proxy is initializing".to_owned()),
    }
}

async fn stats(admin: SocketAddr) -> anyhow::Result<String> {
    const FILTER: &str = "/stats?usedonly&filter=%5E(cluster_manager%5C.cds%5C.update_success%7C\
                          listener_manager%5C.lds%5C.update_success%7Cserver%5C.state%7C\
                          listener_manager%5C.workers_started)$";
    let stream = TcpStream::connect(admin).await?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(FILTER).header("host", admin.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = client.send_request(request).await?;
        Ok::<_, hyper::Error>(response.into_body().collect().await?.to_bytes())
    };
    tokio::pin!(answer);
    let body = tokio::select! {
        biased;
        body = &mut answer => body,
        ended = connection => {
            ended?;
            // Whoever closes the connection with the answer has said all of it, which is here by now.
            answer.await
        }
    };
    Ok(String::from_utf8_lossy(&body.context("it closed the connection")?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_configured_live_and_with_workers() {
        let text = |cds, lds, state, workers| {
            format!(
                "cluster_manager.cds.update_success: {cds}\nlistener_manager.lds.update_success: {lds}\n\
                 listener_manager.workers_started: {workers}\nserver.state: {state}\n"
            )
        };
        assert_eq!(unready(&text(1, 1, 0, 1)), None);
        assert!(unready(&text(1, 0, 0, 1)).unwrap().contains("clusters received, listeners not received"));
        assert!(unready(&text(1, 1, 2, 1)).unwrap().contains("initializing"));
        assert!(unready(&text(1, 1, 1, 1)).unwrap().contains("draining"));
        assert!(unready(&text(1, 1, 0, 0)).unwrap().contains("workers"));
        assert!(unready("").is_some());
    }
}
