//! What is read of pods, nodes and EndpointSlices: the few fields that a mesh needs of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::model::Labels;

/// Any object's `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PodShape {
    pub(super) metadata: Metadata,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) service_account_name: String,
    pub(super) node_name: String,
    pub(super) host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    pub(super) phase: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: String,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct NodeShape {
    pub(super) metadata: Metadata,
    pub(super) status: NodeStatus,
}

/// Where a node is found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    // Go writes an empty list as null.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) addresses: Vec<NodeAddress>,
}

/// One of its addresses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) address: String,
}

impl NodeShape {
    /// The first of its addresses for those outside.
    pub(super) fn outside(&self) -> Option<String> {
        let mut all = self.status.addresses.iter();
        let one = all.find(|one| one.kind == "ExternalIP" && one.address.parse::<std::net::IpAddr>().is_ok());
        one.map(|one| one.address.clone())
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SliceShape {
    pub(super) metadata: Metadata,
    pub(super) address_type: String,
    // Go writes an empty list as null.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SliceEndpoint {
    pub(super) addresses: Vec<String>,
    pub(super) conditions: SliceConditions,
    pub(super) target_ref: Option<Target>,
    pub(super) node_name: Option<String>,
    pub(super) zone: Option<String>,
}

/// Unset is as good as true for the first two.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct SliceConditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Target {
    pub(super) kind: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct SlicePort {
    pub(super) name: Option<String>,
    pub(super) port: Option<u16>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl SliceShape {
    /// The Service that it is of.
    pub(super) fn service(&self) -> Option<&str> {
        self.metadata
            .labels
            .get("kubernetes.io/service-name")
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// Its ports by the names that the Service has for them.
    pub(super) fn numbers(&self) -> BTreeMap<String, u16> {
        let named = |port: &SlicePort| Some((port.name.clone().unwrap_or_default(), port.port?));
        self.ports.iter().filter_map(named).collect()
    }
}
