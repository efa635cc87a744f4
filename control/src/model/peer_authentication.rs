//! PeerAuthentication: whether a workload takes plain text, mutual TLS or both (security.istio.io).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::values::WorkloadSelector;

/// The specification of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// Workloads to which it applies; absent for the whole namespace, or the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// The mode of all ports.
    pub mtls: Option<MutualTls>,
    /// By port of the workload (not of its service).
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// A mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MutualTls {
    /// The mode.
    pub mode: PeerMode,
}

/// A mode as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum PeerMode {
    /// Whatever the wider policy says.
    #[default]
    #[serde(rename = "UNSET")]
    Unset,
    /// Plain text only.
    #[serde(rename = "DISABLE")]
    Disable,
    /// Plain text and mutual TLS.
    #[serde(rename = "PERMISSIVE")]
    Permissive,
    /// Mutual TLS only.
    #[serde(rename = "STRICT")]
    Strict,
}

/// A mode in effect, after inheritance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EffectivePeerMode {
    /// Plain text only.
    Disable,
    /// Plain text and mutual TLS.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}
