//! What a load assignment, or DNS, says of one endpoint: the compiled form that host sets are made from.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use xds_protos::prost::Message;

use crate::telemetry::registry::label_value;

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

/// Metadata by namespace (`envoy.transport_socket_match`, `istio`), as `envoy.config.core.v3.Metadata` holds it. What is the same is
/// there once: a workload's endpoints differ in nothing but their addresses, and there may be thousands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    namespaces: Box<[(Arc<str>, Arc<prost_types::Struct>)]>,
}

static WHOLE: Shared<Metadata> = Shared::new();
static FIELDS: Shared<prost_types::Struct> = Shared::new();

impl Metadata {
    /// Metadata of these namespaces; none if there is no namespace at all.
    pub fn new(namespaces: impl IntoIterator<Item = (String, prost_types::Struct)>) -> Option<Arc<Self>> {
        let mut hashes = DefaultHasher::new();
        let mut namespaces: Vec<_> = namespaces.into_iter().collect();
        namespaces.sort_by(|a, b| a.0.cmp(&b.0));
        let namespaces: Box<[_]> = namespaces
            .into_iter()
            .map(|(name, fields)| {
                let hash = hash(&fields.encode_to_vec());
                (&name, hash).hash(&mut hashes);
                (label_value(&name), FIELDS.get(hash, fields))
            })
            .collect();
        (!namespaces.is_empty()).then(|| WHOLE.get(hashes.finish(), Self { namespaces }))
    }

    /// The fields of one namespace.
    pub fn namespace(&self, name: &str) -> Option<&prost_types::Struct> {
        self.namespaces.iter().find(|(n, _)| **n == *name).map(|(_, value)| &**value)
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
        self.namespaces.iter().map(|(name, value)| (&**name, &**value))
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Values that somebody has, by their hashes. Those that nobody has any more go when the table would grow.
struct Shared<T>(LazyLock<Mutex<Table<T>>>);

/// The values, and how many there may be before it is looked who is left.
type Table<T> = (HashMap<u64, Weak<T>>, usize);

impl<T: PartialEq> Shared<T> {
    const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// The one that is equal, or this one from now on.
    fn get(&self, hash: u64, value: T) -> Arc<T> {
        let mut shared = self.0.lock();
        let known = shared.0.get(&hash).and_then(Weak::upgrade);
        match known {
            Some(known) if *known == value => return known,
            // Another one of the same hash.
            Some(_) => return Arc::new(value),
            None => {}
        }
        if shared.0.len() >= shared.1 {
            shared.0.retain(|_, value| value.strong_count() > 0);
            shared.1 = (2 * shared.0.len()).max(1024);
        }
        let value = Arc::new(value);
        shared.0.insert(hash, Arc::downgrade(&value));
        value
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

#[cfg(test)]
mod tests {
    use prost_types::value::Kind;

    use super::*;

    fn fields(key: &str, text: &str) -> prost_types::Struct {
        let value = prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
        prost_types::Struct { fields: [(key.to_owned(), value)].into() }
    }

    #[test]
    fn what_is_the_same_is_there_once_and_goes_with_the_last_who_has_it() {
        let of = |workload: &str| {
            Metadata::new([
                ("istio".to_owned(), fields("workload", workload)),
                ("envoy.transport_socket_match".to_owned(), fields("tlsMode", "istio")),
            ])
            .unwrap()
        };
        let (one, same, other) = (of("metadata-a"), of("metadata-a"), of("metadata-b"));
        assert!(Arc::ptr_eq(&one, &same));
        assert_eq!(
            (one.get_str("istio", "workload"), other.get_str("istio", "workload")),
            (Some("metadata-a"), Some("metadata-b"))
        );
        let tls = |of: &Metadata| of.namespaces[0].1.clone();
        assert!(Arc::ptr_eq(&tls(&one), &tls(&other)), "what they have in common is there once as well");
        let gone = Arc::downgrade(&one);
        drop((one, same));
        assert!(gone.upgrade().is_none());
        assert_eq!(of("metadata-a").get_str("istio", "workload"), Some("metadata-a"));
        assert!(Metadata::new([]).is_none());
    }
}
