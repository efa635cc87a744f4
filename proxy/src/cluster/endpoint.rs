//! What a load assignment, or DNS, says of one endpoint: the compiled form that host sets are made from.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// TCP.
    Ip(SocketAddr),
    /// A UNIX stream socket's path.
    Pipe(Arc<str>),
}

impl HostAddress {
    /// The socket address, if it is one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Pipe(_) => None,
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

impl From<SocketAddr> for HostAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

/// Where an endpoint is, in Envoy's three levels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Sub-zone.
    pub sub_zone: Box<str>,
}

/// An endpoint's `health_status`, as far as balancing tells the values apart (Envoy's `HealthStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointHealth {
    /// UNKNOWN and HEALTHY.
    #[default]
    Healthy,
    /// DEGRADED: used when the healthy ones do not suffice.
    Degraded,
    /// UNHEALTHY and TIMEOUT.
    Unhealthy,
    /// DRAINING: unhealthy for new requests.
    Draining,
}

/// Metadata by namespace (`envoy.transport_socket_match`, `istio`), as `envoy.config.core.v3.Metadata` holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    namespaces: Vec<(Box<str>, prost_types::Struct)>,
}

impl Metadata {
    /// Metadata of these namespaces; none if there is no namespace at all.
    pub fn new(namespaces: impl IntoIterator<Item = (String, prost_types::Struct)>) -> Option<Arc<Self>> {
        let mut namespaces: Vec<_> =
            namespaces.into_iter().map(|(name, value)| (name.into_boxed_str(), value)).collect();
        namespaces.sort_by(|a, b| a.0.cmp(&b.0));
        (!namespaces.is_empty()).then(|| Arc::new(Self { namespaces }))
    }

    /// The fields of one namespace.
    pub fn namespace(&self, name: &str) -> Option<&prost_types::Struct> {
        self.namespaces.iter().find(|(n, _)| **n == *name).map(|(_, value)| value)
    }

    /// A text value: `get_str("istio", "workload")`.
    pub fn get_str(&self, namespace: &str, key: &str) -> Option<&str> {
        match self.namespace(namespace)?.fields.get(key)?.kind.as_ref()? {
            prost_types::value::Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }

    /// All namespaces, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &prost_types::Struct)> {
        self.namespaces.iter().map(|(name, value)| (&**name, value))
    }
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where it is.
    pub address: HostAddress,
    /// Its host name; empty where the assignment gives none.
    pub hostname: Arc<str>,
    /// Its load balancing weight, at least 1.
    pub weight: u32,
    /// Its health as the management server sees it.
    pub health: EndpointHealth,
    /// Its metadata.
    pub metadata: Option<Arc<Metadata>>,
    /// How it wants to be checked.
    pub check: EndpointCheck,
}

/// What an endpoint says of its active health checks (`health_check_config`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointCheck {
    /// Where they go, if not where requests go.
    pub address: Option<SocketAddr>,
    /// The authority to ask with; none if empty.
    pub hostname: String,
    /// It is not checked.
    pub disabled: bool,
}

impl Endpoint {
    /// A healthy endpoint of weight 1 with nothing else said of it.
    pub fn new(address: impl Into<HostAddress>) -> Self {
        Self {
            address: address.into(),
            hostname: Arc::from(""),
            weight: 1,
            health: EndpointHealth::Healthy,
            metadata: None,
            check: EndpointCheck::default(),
        }
    }
}

/// The endpoints of one locality in one priority.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Arc<Locality>,
    /// The locality's weight for locality weighted balancing; none counts as 0 there.
    pub weight: Option<u32>,
    /// 0 is used first.
    pub priority: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A whole assignment (`envoy.config.endpoint.v3.ClusterLoadAssignment`, compiled).
#[derive(Clone, Debug, PartialEq)]
pub struct LoadAssignment {
    /// The groups, in the message's order.
    pub localities: Vec<LocalityEndpoints>,
    /// How much healthier than needed a priority counts, in percent.
    pub overprovisioning_factor: u32,
    /// Priorities are judged by the weights of their hosts, not by their number.
    pub weighted_priority_health: bool,
}

impl Default for LoadAssignment {
    fn default() -> Self {
        Self { localities: Vec::new(), overprovisioning_factor: 140, weighted_priority_health: false }
    }
}

impl LoadAssignment {
    /// These endpoints in one locality of priority 0.
    pub fn flat(endpoints: Vec<Endpoint>) -> Self {
        Self {
            localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
            ..Self::default()
        }
    }
}
