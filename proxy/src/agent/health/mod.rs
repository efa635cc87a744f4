//! Probes of the application by way of the agent.
//!
//! Kubelet has no certificate of the mesh, so an injector has it ask the agent (`/app-health/CONTAINER/readyz`) and tells the
//! agent what to ask the application in turn ([`config`]). The agent does as kubelet would have done ([`http`], [`grpc`], a TCP
//! connection), from the address that no redirection captures ([`dial`]), and passes on what came of it. Of a workload that no
//! kubelet looks after, the proxy or the agent asks by itself ([`report`]), also by a command ([`exec`]).

mod config;
mod dial;
mod exec;
mod grpc;
mod http;
mod report;

use std::net::IpAddr;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use anyhow::Context;
use parking_lot::Mutex;

pub(super) use config::Probers;
use config::{Action, Prober};
pub(super) use dial::Target;
pub(crate) use report::Reporter;

/// What a probe came to, as kubelet is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The application's own status; 500 where it gave none.
    pub(super) status: StatusCode,
    /// The beginning of its answer, or why there is none.
    pub(super) body: Vec<u8>,
}

/// What a probe that comes in says itself.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// Its header fields.
    pub(super) headers: &'a HeaderMap,
    /// The port at which it came in, whose number in `host` becomes the application's.
    pub(super) port: u16,
}

/// Makes the probes of one pod.
#[derive(Debug)]
pub(super) struct Health {
    probers: Probers,
    /// The pod's own address.
    pod: IpAddr,
    /// Paths of probes that failed last, to log changes only.
    failing: Mutex<Vec<String>>,
}

impl Health {
    pub(super) fn new(probers: Probers, pod: IpAddr) -> Self {
        Self { probers, pod, failing: Mutex::default() }
    }

    /// Whether a path is one of probes.
    pub(super) fn is_probe(path: &str) -> bool {
        path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/")
    }

    /// Asks the application what a probe at `path` wants to know.
    pub(super) async fn probe(&self, path: &str, asked: &Asked<'_>) -> Outcome {
        let Some(prober) = self.probers.get(path) else {
            let body = format!("there is no probe at {path} in ISTIO_KUBE_APP_PROBERS\n").into_bytes();
            return Outcome { status: StatusCode::BAD_REQUEST, body };
        };
        let made = async {
            match prober.timeout {
                Some(limit) => {
                    let late = || format!("not within {limit:?} (timeoutSeconds)");
                    tokio::time::timeout(limit, ask(prober, self.pod, asked)).await.with_context(late)?
                }
                None => ask(prober, self.pod, asked).await,
            }
        };
        let outcome = made.await.unwrap_or_else(|error| Outcome {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: format!("{error:#}\n").into_bytes(),
        });
        self.note(path, &outcome);
        outcome
    }

    /// Says so when a probe begins to fail, and when it no longer does.
    fn note(&self, path: &str, outcome: &Outcome) {
        let mut failing = self.failing.lock();
        let place = failing.iter().position(|p| p == path);
        match (outcome.status.as_u16() < 400, place) {
            (false, None) => {
                failing.push(path.to_owned());
                let answer =
                    String::from_utf8_lossy(&outcome.body[..outcome.body.len().min(200)]).into_owned();
                tracing::warn!(
                    path,
                    status = outcome.status.as_u16(),
                    answer,
                    "the application fails its probe"
                );
            }
            (true, Some(place)) => {
                failing.swap_remove(place);
                tracing::info!(path, "the application passes its probe again");
            }
            _ => {}
        }
    }
}

/// Asks once, as long as it takes.
async fn ask(prober: &Prober, pod: IpAddr, asked: &Asked<'_>) -> anyhow::Result<Outcome> {
    if let Action::Exec(command) = &prober.action {
        return exec::probe(command).await;
    }
    let target = Target::new(prober.host.as_deref(), prober.port, pod).await?;
    match &prober.action {
        Action::Exec(command) => exec::probe(command).await,
        Action::Http(get) => http::probe(&target, get, asked).await,
        Action::Tcp => target.connect().await.map(|_| up()),
        Action::Grpc(service) => {
            grpc::probe(&target, service, asked.headers.get(::http::header::USER_AGENT)).await
        }
    }
}

fn up() -> Outcome {
    Outcome { status: StatusCode::OK, body: Vec::new() }
}

/// Kubernetes' default of `timeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(1);
