//! Envoy-compatible admin endpoints, served on the control thread.
//!
//! One page per file: each turns what the process knows into text or JSON. [`serve`] answers on the admin address, on the
//! status port (`/healthz/ready`) and on the Prometheus port.

mod certs;
mod clusters;
mod config_dump;
pub mod logging;
mod pages;
mod process;
pub mod prometheus;
mod serve;
pub mod snapshot;
pub mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::Notify;
use xds_protos::envoy::config::core::v3::Node;

use crate::identity::workload::Current;
use crate::state::Engine;
use crate::xds;

pub use serve::{Surface, serve};

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
}

/// What keeps a proxy from being ready.
#[derive(Debug, Default)]
pub struct Readiness {
    draining: AtomicBool,
    /// 0: as it is; 1: failed by hand.
    forced: AtomicU8,
}

impl Readiness {
    /// The proxy is on its way out.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail(&self, failed: bool) {
        self.forced.store(u8::from(failed), Relaxed);
    }
}

impl AdminState {
    /// Why the proxy is not ready; nothing if it is. Ready is: configuration has come, its own certificate is there,
    /// names can be answered if it answers DNS, and it is not draining.
    pub fn unready(&self) -> Option<&'static str> {
        if self.readiness.draining.load(Relaxed) {
            return Some("DRAINING");
        }
        if self.readiness.forced.load(Relaxed) != 0 {
            return Some("FAILED");
        }
        let configured = self.ads.as_ref().is_none_or(|ads| {
            use xds_protos::ResourceType::{Cluster, Listener};
            ads.of(Cluster).success() > 0 && ads.of(Listener).success() > 0
        });
        let identified = self.identity.as_ref().is_none_or(|i| i.borrow().is_some());
        let warm = !self.engine.is_warming();
        let named = self.dns.as_ref().is_none_or(|dns| dns.ready());
        (!configured || !identified || !warm || !named).then_some("PRE_INITIALIZING")
    }
}
