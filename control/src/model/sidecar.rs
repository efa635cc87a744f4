//! Sidecar: what one workload's proxy accepts, and which services it can reach (networking.istio.io).

use serde::Deserialize;

use super::destination_rule::ConnectionPool;
use super::gateway::{GatewayPort, ServerTls};
use super::values::WorkloadSelector;
use super::virtual_service::Destination;

/// The specification of a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Sidecar {
    /// Workloads to which it applies; absent for the whole namespace.
    pub workload_selector: Option<WorkloadSelector>,
    /// Listeners for requests to the workload; empty derives them from its services.
    pub ingress: Vec<IngressListener>,
    /// Listeners for requests of the workload; empty reaches everything visible.
    pub egress: Vec<EgressListener>,
    /// What happens to requests for unknown destinations; unset means the mesh's policy.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Limits for connections from the proxy to the application.
    pub inbound_connection_pool: Option<ConnectionPool>,
}

/// A listener for requests to the workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IngressListener {
    /// Its port.
    pub port: GatewayPort,
    /// Address to bind; empty for the workload's own.
    pub bind: String,
    /// Whether traffic is captured.
    pub capture_mode: CaptureMode,
    /// Where the application listens: `127.0.0.1:PORT`, `0.0.0.0:PORT` (the instance's own address), `[::1]:PORT`,
    /// `[::]:PORT` or `unix:///path`; empty means the same port of the loopback address.
    pub default_endpoint: String,
    /// Ends TLS instead of mutual TLS.
    pub tls: Option<ServerTls>,
    /// Limits for connections from the proxy to the application, for this port.
    pub connection_pool: Option<ConnectionPool>,
}

/// A listener for requests of the workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressListener {
    /// Its port; absent for all ports that no other listener takes.
    pub port: Option<GatewayPort>,
    /// Address to bind.
    pub bind: String,
    /// Whether traffic is captured.
    pub capture_mode: CaptureMode,
    /// Services that it reaches: `namespace/host`, with `.`, `*` and `~` for the namespace.
    pub hosts: Vec<String>,
}

/// Whether a listener's traffic is captured by the network or addressed to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum CaptureMode {
    /// As the proxy's interception mode says.
    #[default]
    #[serde(rename = "DEFAULT")]
    Default,
    /// Captured by iptables.
    #[serde(rename = "IPTABLES")]
    Iptables,
    /// Not captured: the listener binds its port.
    #[serde(rename = "NONE")]
    None,
}

/// What happens to requests for destinations that the mesh does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundTrafficPolicy {
    /// The answer. A policy that is given and says nothing of it is REGISTRY_ONLY, the first of Istio's modes; where no policy is
    /// given anywhere, any destination is allowed.
    #[serde(default = "registry_only")]
    pub mode: OutboundMode,
    /// Where ALLOW_ANY sends them, instead of where the client addressed them: a service that goes on from there, with its port.
    #[serde(default)]
    pub egress_proxy: Option<Destination>,
}

fn registry_only() -> OutboundMode {
    OutboundMode::RegistryOnly
}

/// Whether unknown destinations are reachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum OutboundMode {
    /// They are not.
    #[serde(rename = "REGISTRY_ONLY")]
    RegistryOnly,
    /// They are, as the client addressed them.
    #[default]
    #[serde(rename = "ALLOW_ANY")]
    AllowAny,
}
