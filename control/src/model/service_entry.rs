//! ServiceEntry and WorkloadEntry: services and workloads that no Kubernetes knows (networking.istio.io).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::service::{Resolution, ServiceLocation};
use super::values::{Labels, WorkloadSelector};

/// The specification of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntry {
    /// Host names; each becomes a service.
    pub hosts: Vec<String>,
    /// Virtual addresses, IP or CIDR.
    pub addresses: Vec<String>,
    /// Ports of the service.
    pub ports: Vec<EntryPort>,
    /// Inside or outside the mesh.
    pub location: ServiceLocation,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints given in place.
    pub endpoints: Vec<WorkloadEntry>,
    /// Workloads that are endpoints; excludes `endpoints`.
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see it: `.`, `*`, or names. Empty means the mesh's default.
    pub export_to: Vec<String>,
    /// Names of which the server's certificate must carry one.
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryPort {
    /// Port that clients use.
    pub number: u16,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS, as written; empty lets the name decide.
    pub protocol: String,
    /// Its name.
    pub name: String,
    /// Port of the endpoints, when it differs.
    pub target_port: Option<u16>,
}

/// The specification of a WorkloadEntry, and of an endpoint in a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// IP address, or a host name to resolve, or `unix:///path` in a ServiceEntry.
    pub address: String,
    /// Port numbers by port name.
    pub ports: BTreeMap<String, u16>,
    /// Its labels.
    pub labels: Labels,
    /// Its network; empty for the mesh's.
    pub network: String,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// Share of traffic among its siblings; 0 means 1.
    pub weight: u32,
    /// Its service account; gives its identity.
    pub service_account: String,
    /// It is to report that it is well, and has not: it gets no requests.
    #[serde(skip)]
    pub unhealthy: bool,
}
