//! What cluster this control plane is of, and whether entries of others count: said once, at the start.

use std::sync::OnceLock;

use super::meta::Object;
use super::service_entry::WorkloadEntry;

/// Label of a workload that says in which cluster it is.
pub const CLUSTER_LABEL: &str = "topology.istio.io/cluster";

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of this cluster.
    pub cluster: String,
    /// WorkloadEntries of other clusters count as well.
    pub takes_others: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { cluster: "Kubernetes".to_owned(), takes_others: true }
    }
}

static HERE: OnceLock<Place> = OnceLock::new();

impl Place {
    /// The settings of this process.
    pub fn here() -> &'static Self {
        HERE.get_or_init(Self::default)
    }

    /// Says them, before anything is read. What was said first holds.
    pub fn set(self) {
        let _ = HERE.set(self);
    }

    /// Whether an entry counts: those of other clusters say so by their label.
    pub fn takes(&self, entry: &Object<WorkloadEntry>) -> bool {
        let cluster = entry.spec.labels.get(CLUSTER_LABEL).or_else(|| entry.meta.labels.get(CLUSTER_LABEL));
        self.takes_others || cluster.is_none_or(|cluster| *cluster == self.cluster)
    }
}
