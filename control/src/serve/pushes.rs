//! What is counted of each push, looked up once: there are thousands of pushes to a change.

use metrics::{Counter, Histogram};
use xds_protos::ResourceType;

/// Of pushes of one type.
pub(super) struct OfKind {
    pub(super) pushes: Counter,
    pub(super) size: Histogram,
    pub(super) time: Histogram,
}

/// Of all of them.
pub(super) struct Numbers {
    kinds: [OfKind; ResourceType::ALL.len()],
    pub(super) send: Histogram,
    pub(super) queue: Histogram,
    pub(super) convergence: Histogram,
}

impl Numbers {
    /// Of whoever counts now for the process.
    pub(super) fn new() -> Self {
        let of = |kind: ResourceType| OfKind {
            pushes: metrics::counter!("pilot_xds_pushes", "type" => kind.short()),
            size: metrics::histogram!("pilot_xds_config_size_bytes", "type" => kind.short()),
            time: metrics::histogram!("pilot_xds_push_time", "type" => kind.short()),
        };
        Self {
            kinds: ResourceType::ALL.map(of),
            send: metrics::histogram!("pilot_xds_send_time"),
            queue: metrics::histogram!("pilot_proxy_queue_time"),
            convergence: metrics::histogram!("pilot_proxy_convergence_time"),
        }
    }

    pub(super) fn of(&self, kind: ResourceType) -> &OfKind {
        &self.kinds[kind as usize]
    }
}
