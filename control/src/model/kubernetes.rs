//! The Kubernetes objects that a mesh is made of: Service and the TLS Secret; and, where its API is read, pods and what stands
//! behind Services.

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use std::fmt;
use std::sync::Arc;

use super::service::{Endpoint, Workload};
use super::values::Labels;

/// The specification of a Kubernetes Service, as far as a mesh sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubernetesService {
    /// Labels of its workloads; empty selects none.
    pub selector: Labels,
    /// Its ports.
    pub ports: Vec<KubernetesPort>,
    /// Its virtual address; `None` makes it headless.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All its virtual addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    #[serde(rename = "type")]
    pub service_type: String,
    /// Target of a Service of type ExternalName.
    pub external_name: String,
    /// Endpoints that are not ready count as ready.
    pub publish_not_ready_addresses: bool,
    /// `None`, or `ClientIP`, which is for kube-proxy.
    pub session_affinity: String,
    /// Addresses at which it is reached from outside.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Where load balancers take connections for it, as its status says.
    #[serde(skip)]
    pub ingress: Vec<Ingress>,
}

/// A load balancer's address, or its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Ingress {
    /// The address; empty where there is a name.
    pub ip: String,
    /// The name.
    pub hostname: String,
}

impl KubernetesService {
    /// It is another name for something else, and nothing stands behind it.
    pub fn is_external_name(&self) -> bool {
        self.service_type == "ExternalName"
    }
}

/// A port of a Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubernetesPort {
    /// Its name; its prefix may declare the protocol.
    pub name: String,
    /// Port that clients use.
    pub port: u16,
    /// Port of the workloads; absent means the same.
    pub target_port: Option<IntOrName>,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Application protocol; goes before the name's prefix.
    pub app_protocol: Option<String>,
    /// Port on the node; no matter here.
    pub node_port: u16,
}

/// A port by number or by the workload's name for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IntOrName {
    /// The number.
    Number(u16),
    /// The name.
    Name(String),
}

impl<'de> Deserialize<'de> for IntOrName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Port;
        impl Visitor<'_> for Port {
            type Value = IntOrName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or the name of a port")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<IntOrName, E> {
                u16::try_from(number)
                    .map(IntOrName::Number)
                    .map_err(|_| E::custom(format_args!("{number} is no port; ports go from 1 to 65535")))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<IntOrName, E> {
                Ok(text.parse().map_or_else(|_| IntOrName::Name(text.to_owned()), IntOrName::Number))
            }
        }
        deserializer.deserialize_any(Port)
    }
}

/// Annotation of a Service of type NodePort before a network's gateways: labels of the nodes at which others find it, as JSON.
pub const NODE_SELECTOR: &str = "traffic.istio.io/nodeSelector";

/// A node that is reached from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesNode {
    /// Its labels.
    pub labels: Labels,
    /// The address for those outside.
    pub address: String,
}

impl KubernetesNode {
    /// Reads the annotation: empty selects every node.
    ///
    /// # Errors
    /// It is no object of texts.
    pub fn selector(text: &str) -> Result<Labels, serde_json::Error> {
        if text.trim().is_empty() { Ok(Labels::new()) } else { serde_json::from_str(text) }
    }
}

/// A pod of Kubernetes.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// The same as a workload.
    pub workload: Arc<Workload>,
    /// It is ready, as its conditions say.
    pub ready: bool,
    /// It is in its node's network, whose address is not its alone.
    pub host_network: bool,
}

/// What stands behind a Kubernetes Service, as its EndpointSlices say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backends {
    /// Those that take requests.
    pub ready: Vec<Arc<Endpoint>>,
    /// Those that do not, or not yet: no client is to know them, but their own proxies must know what they serve.
    pub waiting: Vec<Arc<Endpoint>>,
}

/// A Secret that holds a key and chain, or roots.
///
/// Its `Debug` form hides the key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsSecret {
    /// PEM chain, leaf first (`tls.crt` or `cert`); empty when the Secret holds roots only.
    pub certificate_chain: Vec<u8>,
    /// PEM key (`tls.key` or `key`); empty when the Secret holds roots only.
    pub private_key: Vec<u8>,
    /// PEM roots (`ca.crt` or `cacert`); empty when there are none.
    pub ca_certificates: Vec<u8>,
}

impl fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSecret")
            .field("certificate_chain", &self.certificate_chain.len())
            .field("private_key", &"hidden")
            .field("ca_certificates", &self.ca_certificates.len())
            .finish()
    }
}
