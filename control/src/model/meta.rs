//! What every object carries, whatever its kind: who it is, where it was written, and which version it is.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::values::Labels;

/// The label by which every namespace of Kubernetes has its name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The kinds of object that Weft reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Kubernetes Service (`v1`).
    Service,
    /// Kubernetes Pod (`v1`), known from its API alone.
    Pod,
    /// Kubernetes Secret of type `kubernetes.io/tls` (`v1`).
    Secret,
    /// Istio's mesh-wide settings, as a file or in the ConfigMap `istio`.
    MeshConfig,
    /// networking.istio.io.
    VirtualService,
    /// networking.istio.io.
    DestinationRule,
    /// networking.istio.io.
    Gateway,
    /// networking.istio.io.
    ServiceEntry,
    /// networking.istio.io.
    WorkloadEntry,
    /// networking.istio.io.
    Sidecar,
    /// security.istio.io.
    PeerAuthentication,
    /// security.istio.io.
    AuthorizationPolicy,
    /// security.istio.io.
    RequestAuthentication,
    /// weft.dev.
    AcmeCertificate,
    /// weft.dev.
    IPDenyList,
    /// weft.dev.
    ExternalCredential,
    /// weft.dev.
    RateLimit,
    /// weft.dev.
    Compression,
    /// weft.dev.
    TrafficManagement,
    /// weft.dev.
    ServiceMeshConfig,
    /// weft.dev.
    HealthCheck,
    /// Kubernetes Namespace (`v1`), for its labels.
    Namespace,
    /// gateway.networking.k8s.io.
    GatewayClass,
    /// gateway.networking.k8s.io. Istio's is [`Self::Gateway`].
    ApiGateway,
    /// gateway.networking.k8s.io.
    HttpRoute,
    /// gateway.networking.k8s.io.
    GrpcRoute,
    /// gateway.networking.k8s.io.
    TlsRoute,
    /// gateway.networking.k8s.io.
    ReferenceGrant,
    /// Logs and metrics.
    Telemetry,
    /// How proxies are started.
    ProxyConfig,
    /// networking.istio.io.
    WorkloadGroup,
    /// A metric of one's own.
    MetricDefinition,
    /// Istio's networks, as a file or in the ConfigMap `istio`.
    MeshNetworks,
}

impl Kind {
    /// The kind's name as written in YAML; with the group where two groups have one of that name, as kubectl takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Secret => "Secret",
            Self::MeshConfig => "MeshConfig",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Gateway => "Gateway",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AcmeCertificate => "AcmeCertificate",
            Self::IPDenyList => "IPDenyList",
            Self::ExternalCredential => "ExternalCredential",
            Self::RateLimit => "RateLimit",
            Self::Compression => "Compression",
            Self::TrafficManagement => "TrafficManagement",
            Self::ServiceMeshConfig => "ServiceMeshConfig",
            Self::HealthCheck => "HealthCheck",
            Self::Namespace => "Namespace",
            Self::GatewayClass => "GatewayClass",
            Self::ApiGateway => "Gateway.gateway.networking.k8s.io",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Telemetry => "Telemetry",
            Self::ProxyConfig => "ProxyConfig",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::MetricDefinition => "MetricDefinition",
            Self::MeshNetworks => "MeshNetworks",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one object of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// What it is.
    pub kind: Kind,
    /// Where it lives.
    pub namespace: String,
    /// Its name within the namespace.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Where an object was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// Path of the file, as given to the reader.
    pub file: Arc<str>,
    /// Line of the object's first field, from 1; 0 when unknown.
    pub line: u32,
    /// Position among all objects that were read together: files by name, then documents in their order.
    pub position: u32,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What every object carries besides its specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Group and version as written, such as `networking.istio.io/v1`.
    pub api_version: String,
    /// Namespace; `default` when the file gives none.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// `creationTimestamp` in seconds since 1970, when given.
    pub created: Option<i64>,
    /// Where it was written.
    pub source: Source,
    /// Hash of the object's whole content (not of its place in a file): equal content, equal version.
    pub version: u64,
}

impl Meta {
    /// Names the object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Istio's order of precedence: oldest first, then by name and namespace.
    ///
    /// Files rarely carry creation times: objects without one come after those that have one, in the order in which
    /// they were read.
    pub fn precedence(&self, other: &Self) -> Ordering {
        match (self.created, other.created) {
            (Some(mine), Some(theirs)) => mine
                .cmp(&theirs)
                .then_with(|| self.name.cmp(&other.name))
                .then_with(|| self.namespace.cmp(&other.namespace)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.source.position.cmp(&other.source.position),
        }
    }
}

/// One object: its metadata and its typed specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<T> {
    /// Who it is and where it was written.
    pub meta: Meta,
    /// What it says.
    pub spec: T,
}

impl<T> Object<T> {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.meta.namespace, self.meta.name)
    }
}
