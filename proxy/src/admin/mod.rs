//! Envoy-compatible admin endpoints, served on the control thread.
//!
//! One page per file: each turns what the process knows into text or JSON. [`serve`] answers on the admin address, on the
//! status port (`/healthz/ready`) and on the Prometheus port; [`relay`] answers what is asked through the control plane.

mod certs;
mod clusters;
mod config_dump;
mod events;
pub mod logging;
mod pages;
mod process;
pub mod prometheus;
pub mod push;
pub mod relay;
mod requests;
mod serve;
pub mod snapshot;
pub mod stats;
mod tap;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::Notify;
use xds_protos::envoy::config::core::v3::Node;

use crate::codec::DrainPhase;
use crate::identity::workload::Current;
use crate::state::{DrainScope, Engine, Role};
use crate::xds;

pub use pages::metrics;
pub use prometheus::{OPEN_METRICS, wants_open_metrics};
pub use serve::{Surface, serve, tell};

/// Changes what is logged; gives what is logged now, or why the rules are wrong.
pub type SetLevel = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// The pod's DNS, where it is answered here.
pub trait Dns: Send + Sync {
    /// The names of the mesh, the servers, and what was counted.
    fn page(&self) -> serde_json::Value;

    /// Whether names of the mesh can be answered.
    fn ready(&self) -> bool;
}

/// What the pages speak of.
pub struct AdminState {
    /// Resources and connections.
    pub engine: Engine,
    /// The node.
    pub node: Node,
    /// Worker threads.
    pub concurrency: usize,
    /// When the process began.
    pub started: Instant,
    /// The control plane's stream, if there is one.
    pub ads: Option<Arc<xds::Stats>>,
    /// The workload's certificate, if it has one.
    pub identity: Option<Current>,
    /// How renewing it goes.
    pub renewal: Option<tokio::sync::watch::Receiver<crate::identity::workload::Status>>,
    /// The log's level.
    pub level: SetLevel,
    /// The pod's DNS, if it is answered here.
    pub dns: Option<Box<dyn Dns>>,
    /// Somebody asked for the end (`/quitquitquit`).
    pub quit: Notify,
    /// How ready the proxy is.
    pub readiness: Readiness,
    /// Clusters and listeners are those that the control plane said in an earlier life, until it speaks again.
    pub restored: bool,
    /// A sidecar or a gateway.
    pub role: Role,
    /// How the labels of Envoy's statistics are called.
    pub tags: prometheus::Tags,
    /// Two of Istio's metrics by other names as well.
    pub tcp_aliases: bool,
}

/// What keeps a proxy from being ready.
#[derive(Debug, Default)]
pub struct Readiness {
    draining: AtomicBool,
    drained: AtomicBool,
    /// 0: as it is; 1: failed by hand.
    forced: AtomicU8,
}

impl Readiness {
    /// The proxy is on its way out.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// The same, and whoever asked for it lets the proxy run: when it is told to end, there is nothing to wait for.
    pub fn drain_beforehand(&self) {
        self.drain();
        self.drained.store(true, Relaxed);
    }

    /// Whether it was drained beforehand.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail(&self, failed: bool) {
        self.forced.store(u8::from(failed), Relaxed);
    }
}

impl AdminState {
    /// Begins to drain these listeners, which go on accepting.
    pub fn drain(&self, scope: DrainScope) {
        self.readiness.drain();
        self.engine.drain(scope, DrainPhase::Draining);
    }

    /// Why the proxy is not ready; nothing if it is. Ready is: configuration has come (or is that of an earlier life), its
    /// listeners listen, its own certificate is there, names can be answered if it answers DNS, and it is not draining.
    pub fn unready(&self) -> Option<&'static str> {
        if self.readiness.draining.load(Relaxed) {
            return Some("DRAINING");
        }
        if self.readiness.forced.load(Relaxed) != 0 {
            return Some("FAILED");
        }
        (!self.missing().is_empty()).then_some("PRE_INITIALIZING")
    }

    /// The same in words.
    pub fn why_unready(&self) -> Option<String> {
        let state = self.unready()?;
        let missing = self.missing();
        Some(if missing.is_empty() { state.to_owned() } else { format!("{state}: {}", missing.join("; ")) })
    }

    /// What is not there yet.
    fn missing(&self) -> Vec<String> {
        use xds_protos::ResourceType::{Cluster, Listener};
        let mut missing = Vec::new();
        if let Some(ads) = self.ads.as_ref().filter(|_| !self.restored) {
            for (kind, what) in [(Cluster, "clusters"), (Listener, "listeners")] {
                let stats = ads.of(kind);
                if stats.success() == 0 {
                    let how = match (stats.rejected() > 0, ads.connected()) {
                        (true, _) => "refused, see the log",
                        (false, true) => "not sent yet",
                        (false, false) => "no stream",
                    };
                    missing.push(format!("no {what} from the control plane ({how})"));
                }
            }
        }
        let warming = self.engine.warming();
        if !warming.is_empty() {
            missing.push(format!("listeners wait for their routes: {}", warming.join(", ")));
        }
        if self.identity.as_ref().is_some_and(|i| i.borrow().is_none()) {
            let error = self.renewal.as_ref().and_then(|r| r.borrow().last_error.clone());
            let error = error.as_deref().unwrap_or("it is being asked for").to_owned();
            missing.push(format!("the workload has no certificate: {error}"));
        }
        if self.dns.as_ref().is_some_and(|dns| !dns.ready()) {
            missing.push("no names of the mesh from the control plane, by which DNS is answered".to_owned());
        }
        missing
    }
}
