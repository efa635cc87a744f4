//! Which Sidecar a workload follows, and what its egress listeners import.

use std::sync::Arc;

use crate::model::host;
use crate::model::meta::Object;
use crate::model::sidecar::{EgressListener, Sidecar};
use crate::model::values::Labels;
use crate::model::world::World;

impl World {
    /// The Sidecar of a workload: the oldest that selects it, else its namespace's, else the root namespace's.
    pub fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Object<Sidecar>>> {
        let root = self.mesh().root_namespace.as_str();
        let selecting = |sidecar: &&Arc<Object<Sidecar>>| {
            sidecar.meta.namespace == namespace
                && sidecar.spec.workload_selector.as_ref().is_some_and(|selector| selector.selects(labels))
        };
        let wide = |namespace: &str| {
            self.sidecars().iter().find(|sidecar| {
                sidecar.meta.namespace == namespace && sidecar.spec.workload_selector.is_none()
            })
        };
        self.sidecars().iter().find(selecting).or_else(|| wide(namespace)).or_else(|| wide(root))
    }
}

impl EgressListener {
    /// Whether it imports `hostname` (a name or wildcard) of `namespace`, for a workload of `own` namespace.
    ///
    /// Entries are `namespace/host`: the namespace may be `.` (own), `*` (any) or `~` (none); `~namespace/host` takes out
    /// again what another entry lets in.
    pub fn imports(&self, own: &str, namespace: &str, hostname: &str) -> bool {
        let mut imported = false;
        for entry in &self.hosts {
            let (place, pattern) = entry.split_once('/').unwrap_or(("*", entry));
            let (excluding, place) = match place.strip_prefix('~') {
                Some("") => continue,
                Some(place) => (true, place),
                None => (false, place),
            };
            let place_matches = place == "*" || place == namespace || (place == "." && own == namespace);
            if !place_matches || !host::overlap(pattern, hostname) {
                continue;
            }
            if excluding {
                return false;
            }
            imported = true;
        }
        imported
    }
}
