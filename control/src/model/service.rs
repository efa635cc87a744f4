//! Services, their ports and endpoints: one shape for Kubernetes Services and ServiceEntries.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;

use super::meta::{Meta, ObjectKey};
use super::values::{Labels, Locality};

/// A service of the mesh: one host name.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Full host name, or a wildcard from a ServiceEntry.
    pub hostname: Arc<str>,
    /// The object it comes from.
    pub meta: Arc<Meta>,
    /// Kubernetes Service or ServiceEntry.
    pub origin: ServiceOrigin,
    /// Virtual addresses (IP, or CIDR from a ServiceEntry); empty when it has none.
    pub addresses: Vec<String>,
    /// The addresses that it was given because it has none, one of each version of IP; for proxies that answer DNS.
    pub allocated: Vec<String>,
    /// A Kubernetes Service without a virtual address.
    pub headless: bool,
    /// Its ports, in the order of the file, but for those of UDP, which proxies leave alone.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Inside or outside the mesh.
    pub location: ServiceLocation,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Other names for it: Kubernetes Services of type ExternalName that lead here. DNS takes their clients to this service's
    /// address, so a proxy tells them by the Host alone.
    pub aliases: Vec<Alias>,
    /// Names of which the server's certificate must carry one (ServiceEntry).
    pub subject_alt_names: Vec<String>,
    /// Its endpoints, in the order of the files.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those of Kubernetes that take no requests (yet): see [`super::Backends`].
    pub waiting: Vec<Arc<Endpoint>>,
    /// Hashes of the above: what was rendered from equal parts need not be rendered again.
    pub versions: ServiceVersions,
}

/// Hashes of a service's parts, which change at different rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceVersions {
    /// Everything but the endpoints.
    pub shape: u64,
    /// The endpoints.
    pub endpoints: u64,
    /// Who the endpoints are: namespaces and service accounts.
    pub identities: u64,
}

impl Service {
    /// The same with its [`ServiceVersions`] set; to be called once all else is.
    pub(super) fn versioned(mut self) -> Self {
        let hash = |part: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            part(&mut hasher);
            hasher.finish()
        };
        self.versions = ServiceVersions {
            shape: hash(&|hasher| {
                (&self.hostname, &self.meta.namespace, &self.meta.name, self.origin).hash(hasher);
                (&self.addresses, &self.allocated, self.headless, &self.ports, self.resolution).hash(hasher);
                (self.location, &self.export_to, &self.aliases, &self.subject_alt_names).hash(hasher);
            }),
            endpoints: hash(&|hasher| self.endpoints.hash(hasher)),
            identities: hash(&|hasher| super::registry::service_accounts(&self).hash(hasher)),
        };
        self
    }

    /// Namespace of the object it comes from.
    pub fn namespace(&self) -> &str {
        &self.meta.namespace
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Where `endpoint` serves `port`; `None` when it does not.
    ///
    /// What comes from an EndpointSlice says itself where each port of the service is.
    /// A named target port is looked up in the workload's ports. A numbered one stands for itself, except that a
    /// ServiceEntry's workload may map the service port's name. Without a target port the workload's own port of that name
    /// goes before the service's number.
    pub fn endpoint_port(&self, port: &ServicePort, endpoint: &Endpoint) -> Option<u16> {
        if endpoint.resolved {
            return endpoint.ports.get(&port.name).copied();
        }
        match (&port.target, self.origin) {
            (TargetPort::Name(name), _) => endpoint.ports.get(name).copied(),
            (TargetPort::Number(number), ServiceOrigin::Kubernetes) => Some(*number),
            (TargetPort::Number(number), ServiceOrigin::ServiceEntry) => {
                Some(endpoint.ports.get(&port.name).copied().unwrap_or(*number))
            }
            (TargetPort::Same, _) => Some(endpoint.ports.get(&port.name).copied().unwrap_or(port.number)),
        }
    }
}

/// Another name for a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alias {
    /// Full host name.
    pub hostname: Arc<str>,
    /// Namespace of the Service that gives it.
    pub namespace: String,
}

/// What kind of object a service comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceOrigin {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    ServiceEntry,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Port that clients use.
    pub number: u16,
    /// Its name; may be empty for a Kubernetes Service with a single port.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Port of the workloads.
    pub target: TargetPort,
}

/// Which port of a workload stands behind a service's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// None was given.
    Same,
    /// This one.
    Number(u16),
    /// The one with this name.
    Name(String),
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP over TLS, opaque to the mesh.
    Https,
    /// HTTP/2 in plain text.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// TLS, opaque to the mesh.
    Tls,
    /// TCP.
    Tcp,
    /// MongoDB; treated as TCP.
    Mongo,
    /// MySQL; treated as TCP.
    Mysql,
    /// Redis; treated as TCP.
    Redis,
    /// UDP; left alone.
    Udp,
    /// Not declared: found out from the first bytes.
    Auto,
}

impl Protocol {
    /// Plain-text HTTP of any version.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// HTTP that is spoken as HTTP/2.
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Opaque TLS, routed by SNI.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// A plain byte stream that the mesh does not look into.
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Mongo | Self::Mysql | Self::Redis)
    }

    /// Found out from the first bytes.
    pub const fn is_auto(self) -> bool {
        matches!(self, Self::Auto)
    }

    /// The protocol's name, in any case; `None` for one that Istio does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "https" => Self::Https,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "mysql" => Self::Mysql,
            "redis" => Self::Redis,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// Istio's protocol selection for a Kubernetes port: `appProtocol` before the name's prefix; what is not declared is
    /// sniffed, except on ports where servers speak first.
    pub fn select(number: u16, transport: &str, app_protocol: Option<&str>, name: &str) -> Self {
        if transport.eq_ignore_ascii_case("udp") {
            return Self::Udp;
        }
        let declared = match app_protocol {
            Some("kubernetes.io/h2c") => Some(Self::Http2),
            Some("kubernetes.io/ws") => Some(Self::Http),
            Some("kubernetes.io/wss") => Some(Self::Https),
            Some(protocol) => Self::parse(protocol),
            None => Self::from_port_name(name),
        };
        declared.unwrap_or(match number {
            25 | 53 | 3306 | 27017 => Self::Tcp,
            _ => Self::Auto,
        })
    }

    fn from_port_name(name: &str) -> Option<Self> {
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Some(Self::GrpcWeb);
        }
        Self::parse(name.split('-').next().unwrap_or(name))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-Web",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Mongo => "Mongo",
            Self::Mysql => "MySQL",
            Self::Redis => "Redis",
            Self::Udp => "UDP",
            Self::Auto => "UnsupportedProtocol",
        })
    }
}

/// How a service's endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Resolution {
    /// They are not: connections go where the client addressed them.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// They are listed (a Kubernetes Service with a virtual address is of this sort).
    #[serde(rename = "STATIC")]
    Static,
    /// By DNS; every address is an endpoint.
    #[serde(rename = "DNS")]
    Dns,
    /// By DNS; one address at a time.
    #[serde(rename = "DNS_ROUND_ROBIN")]
    DnsRoundRobin,
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ServiceLocation {
    /// It is not; no automatic mutual TLS.
    #[default]
    #[serde(rename = "MESH_EXTERNAL")]
    MeshExternal,
    /// It is.
    #[serde(rename = "MESH_INTERNAL")]
    MeshInternal,
}

/// Which namespaces see an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExportTo {
    /// All.
    All,
    /// Its own only.
    Own,
    /// None.
    Nobody,
    /// These; its own is named as such when meant.
    Namespaces(Vec<String>),
}

impl ExportTo {
    /// Reads Istio's list; `.` within it stands for `own`. Empty takes the mesh's default, and that empty means all.
    pub fn parse(list: &[String], default: &[String], own: &str) -> Self {
        let list = if list.is_empty() { default } else { list };
        if list.is_empty() || list.iter().any(|entry| entry == "*") {
            return Self::All;
        }
        if list.iter().any(|entry| entry == "~") {
            return Self::Nobody;
        }
        if let [only] = list
            && (only == "." || only == own)
        {
            return Self::Own;
        }
        Self::Namespaces(
            list.iter().map(|entry| if entry == "." { own.to_owned() } else { entry.clone() }).collect(),
        )
    }

    /// Whether `namespace` sees an object that lives in `own`.
    pub fn reaches(&self, own: &str, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Own => own == namespace,
            Self::Nobody => false,
            Self::Namespaces(list) => list.iter().any(|entry| entry == namespace),
        }
    }
}

/// One place that serves a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// IP address, host name, or `unix:///path`.
    pub address: String,
    /// Port numbers by port name.
    pub ports: BTreeMap<String, u16>,
    /// These are the names of the service's ports, each with its number here; a port without is not served.
    pub resolved: bool,
    /// Labels, matched by subsets.
    pub labels: Labels,
    /// Namespace, part of its identity.
    pub namespace: String,
    /// Service account, part of its identity; empty when it has none.
    pub service_account: String,
    /// Where it runs, when known.
    pub locality: Option<Locality>,
    /// Share of traffic among its siblings, at least 1.
    pub weight: u32,
    /// Its network; empty for the mesh's.
    pub network: String,
    /// It has a proxy that takes mutual TLS.
    pub mutual_tls: bool,
    /// It is to report that it is well, and has not: it waits.
    pub unhealthy: bool,
    /// The WorkloadEntry or Pod it comes from; `None` for one written in a ServiceEntry.
    pub workload: Option<ObjectKey>,
}

/// A workload of the mesh: what one proxy stands beside.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The WorkloadEntry, or the Pod.
    pub meta: Arc<Meta>,
    /// The same as an endpoint.
    pub endpoint: Arc<Endpoint>,
}

/// Annotation whose value is the command line that starts a workload's application.
pub const COMMAND_ANNOTATION: &str = "weft.dev/command";
/// Annotation that names the services a workload calls, for `weft analyze`: hosts, each with `:PORT` if need be, separated by
/// commas.
pub const CALLS_ANNOTATION: &str = "weft.dev/calls";
/// Annotation that says what a workload's proxy is: `sidecar` (the default) or `gateway`.
pub const ROLE_ANNOTATION: &str = "weft.dev/role";

impl Workload {
    /// The command line that starts its application (annotation `weft.dev/command`).
    pub fn command(&self) -> Option<&str> {
        self.meta.annotations.get(COMMAND_ANNOTATION).map(String::as_str)
    }

    /// Whether its proxy is a gateway (annotation `weft.dev/role: gateway`).
    pub fn is_gateway(&self) -> bool {
        self.meta.annotations.get(ROLE_ANNOTATION).is_some_and(|role| role == "gateway")
    }

    /// Whether its proxy entered it, by a WorkloadGroup, and said itself where it is.
    pub fn entered_itself(&self) -> bool {
        self.meta.annotations.contains_key(super::workload_group::GROUP_ANNOTATION)
    }

    /// Whether it shows an identity to whom it calls: it has a proxy.
    pub fn shows_identity(&self) -> bool {
        self.endpoint.mutual_tls || self.is_gateway()
    }

    /// Its IP address.
    pub fn address(&self) -> &str {
        &self.endpoint.address
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        &self.endpoint.labels
    }

    /// Its service account; `default` when none is given.
    pub fn service_account(&self) -> &str {
        if self.endpoint.service_account.is_empty() { "default" } else { &self.endpoint.service_account }
    }
}
