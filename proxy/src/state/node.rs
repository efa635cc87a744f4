//! Who this proxy is: the xDS node, as compile functions, metrics and logs need it.

use std::collections::BTreeMap;

/// Sidecar or gateway: Istio's node types `sidecar` and `router`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Beside one workload.
    #[default]
    Sidecar,
    /// A proxy of its own (ingress, egress, east-west, waypoint).
    Gateway,
}

/// The node's facts.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local`.
    pub id: String,
    /// The service cluster, such as `orders.default`.
    pub cluster: String,
    /// Sidecar or gateway.
    pub role: Role,
    /// Istio's node metadata (`NAMESPACE`, `LABELS`, `WORKLOAD_NAME`, ...), as sent to the control plane.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Region of the locality.
    pub region: String,
    /// Zone of the locality.
    pub zone: String,
    /// Sub-zone of the locality.
    pub sub_zone: String,
}

impl NodeInfo {
    /// A text value of the metadata; empty when it is absent.
    pub fn meta(&self, key: &str) -> &str {
        self.metadata.get(key).and_then(|v| v.as_str()).unwrap_or_default()
    }

    /// The workload's labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.metadata.get("LABELS").and_then(|v| v.as_object());
        labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
    }
}
