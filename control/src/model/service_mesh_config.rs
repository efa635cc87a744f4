//! ServiceMeshConfig: what several services are to get, in one resource (weft.dev). It stands for other objects: see
//! [`super::expand`].

use serde::Deserialize;

use super::destination_rule::SimpleBalancer;
use super::peer_authentication::PeerMode;
use super::values::Timespan;

/// The specification of a ServiceMeshConfig. Fields may be written with underscores as well.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceMeshConfig {
    /// Services of the namespace.
    pub services: Vec<MeshService>,
}

/// What one service gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshService {
    /// Its name, short or full.
    pub name: String,
    /// The label `version` that its workloads are to have; looked at, not set.
    pub version: String,
    /// How many of them there are to be; looked at, not set.
    pub replicas: Option<u32>,
    /// How clients treat it.
    #[serde(alias = "traffic_policy")]
    pub traffic_policy: Option<MeshTrafficPolicy>,
    /// Who gets to it, and how.
    #[serde(alias = "security_policy")]
    pub security_policy: Option<MeshSecurityPolicy>,
    /// What is told of its requests.
    pub observability: Option<MeshObservability>,
}

/// The traffic policy of a DestinationRule, in the model's words.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshTrafficPolicy {
    /// `loadBalancer.simple`.
    #[serde(alias = "load_balancer")]
    pub load_balancer: Option<SimpleBalancer>,
    /// `connectionPool`.
    #[serde(alias = "connection_pool")]
    pub connection_pool: Option<MeshPool>,
    /// `outlierDetection`.
    #[serde(alias = "circuit_breaker")]
    pub circuit_breaker: Option<MeshBreaker>,
}

/// Limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshPool {
    /// `tcp.maxConnections`.
    #[serde(alias = "max_connections")]
    pub max_connections: Option<u32>,
    /// `http.http1MaxPendingRequests`.
    #[serde(alias = "max_pending_requests")]
    pub max_pending_requests: Option<u32>,
    /// `http.http2MaxRequests`.
    #[serde(alias = "max_requests")]
    pub max_requests: Option<u32>,
    /// `http.maxRequestsPerConnection`.
    #[serde(alias = "max_requests_per_connection")]
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries`.
    #[serde(alias = "max_retries")]
    pub max_retries: Option<u32>,
}

/// When an endpoint is ejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshBreaker {
    /// `consecutive5xxErrors`, which has gateway errors in it.
    #[serde(alias = "consecutive_errors")]
    pub consecutive_errors: Option<u32>,
    /// `consecutiveGatewayErrors`.
    #[serde(alias = "consecutive_gateway_errors")]
    pub consecutive_gateway_errors: Option<u32>,
    /// `interval`.
    pub interval: Option<Timespan>,
    /// `baseEjectionTime`.
    #[serde(alias = "base_ejection_time")]
    pub base_ejection_time: Option<Timespan>,
    /// `maxEjectionPercent`.
    #[serde(alias = "max_ejection_percent")]
    pub max_ejection_percent: Option<u32>,
    /// `minHealthPercent`.
    #[serde(alias = "min_health_percent")]
    pub min_health_percent: Option<u32>,
}

/// Who gets to a service, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshSecurityPolicy {
    /// The mode of a PeerAuthentication for its workloads.
    #[serde(alias = "mtls_mode")]
    pub mtls_mode: Option<PeerMode>,
    /// The rules of an AuthorizationPolicy (ALLOW) for them.
    #[serde(alias = "authorization_rules")]
    pub authorization_rules: Vec<MeshRule>,
}

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshRule {
    /// Service accounts: `ACCOUNT` of the namespace, or `NAMESPACE/ACCOUNT`.
    pub from: Vec<String>,
    /// `VERB PATH`; all by default. `*` stands for every verb, and in a path as in AuthorizationPolicies.
    pub operations: Vec<String>,
}

/// What is told of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshObservability {
    /// Numbers for Prometheus.
    #[serde(alias = "metrics_enabled")]
    pub metrics_enabled: Option<bool>,
    /// Traces.
    #[serde(alias = "tracing_enabled")]
    pub tracing_enabled: Option<bool>,
    /// Access logs.
    #[serde(alias = "access_logging")]
    pub access_logging: Option<bool>,
    /// Share of requests that are traced, from 0 to 1.
    #[serde(alias = "sampling_rate")]
    pub sampling_rate: Option<f64>,
}

impl MeshRule {
    /// Verb and path of an operation, if it has both.
    pub fn operation(text: &str) -> Option<(&str, &str)> {
        let (verb, path) = text.trim().split_once(char::is_whitespace)?;
        Some((verb, path.trim()))
    }
}
