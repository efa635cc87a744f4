//! Numbers about the control plane, under Envoy's names.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use xds_protos::ResourceType;

use super::Rejection;
use super::subscriptions::index;

/// Shared by the client, which writes, and the admin interface, which reads.
#[derive(Debug, Default)]
pub struct Stats {
    connected: AtomicBool,
    connects: AtomicU64,
    types: [TypeStats; ResourceType::ALL.len()],
}

/// Numbers about one type of resource.
#[derive(Debug, Default)]
pub struct TypeStats {
    attempt: AtomicU64,
    success: AtomicU64,
    rejected: AtomicU64,
    updated_at: AtomicU64,
    version: Mutex<String>,
    last_rejection: Mutex<Vec<Rejection>>,
}

impl Stats {
    /// `control_plane.connected_state`: whether a stream is open and has delivered something.
    pub fn connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// How many streams were opened since the start.
    pub fn streams(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// The numbers of one type: `cluster_manager.cds.*`, `listener_manager.lds.*` and so on.
    pub fn of(&self, kind: ResourceType) -> &TypeStats {
        &self.types[index(kind)]
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Relaxed);
    }

    pub(super) fn stream_opened(&self) {
        self.connects.fetch_add(1, Relaxed);
    }
}

impl TypeStats {
    /// `update_attempt`: responses received.
    pub fn attempt(&self) -> u64 {
        self.attempt.load(Relaxed)
    }

    /// `update_success`: responses taken as a whole.
    pub fn success(&self) -> u64 {
        self.success.load(Relaxed)
    }

    /// `update_rejected`: responses of which at least one resource was refused.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// `update_time`: when the last good response was taken, in milliseconds since 1970; 0 before the first.
    pub fn updated_at_ms(&self) -> u64 {
        self.updated_at.load(Relaxed)
    }

    /// `version_text`: the version of the last response, as the control plane called it.
    pub fn version(&self) -> String {
        self.version.lock().clone()
    }

    /// What the last response that was not wholly good had refused; empty after a good one.
    pub fn last_rejection(&self) -> Vec<Rejection> {
        self.last_rejection.lock().clone()
    }

    pub(super) fn record(&self, version: &str, rejections: &[Rejection]) {
        self.attempt.fetch_add(1, Relaxed);
        if rejections.is_empty() {
            self.success.fetch_add(1, Relaxed);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.updated_at.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        } else {
            self.rejected.fetch_add(1, Relaxed);
        }
        version.clone_into(&mut self.version.lock());
        *self.last_rejection.lock() = rejections.to_vec();
    }
}
