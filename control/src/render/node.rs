//! A proxy as its node message describes it.

use std::hash::{DefaultHasher, Hash, Hasher};

use xds_protos::envoy::config::core::v3::Node;
use xds_protos::prost_types::{self, value::Kind};
use xds_protos::value::to_json;

use crate::model::mesh_config::Topology;
use crate::model::networks::NETWORK_LABEL;
use crate::model::place::Place;
use crate::model::tracing::ProxyTracing;
use crate::model::values::Locality;
use crate::model::{Labels, World};

/// Sidecar or gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    /// Beside a workload.
    Sidecar,
    /// At the edge.
    Router,
}

/// How a workload's connections come to its sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Interception {
    /// The kernel redirects them.
    #[default]
    Redirect,
    /// The same, and inbound ones keep the address that they come from.
    Transparent,
    /// Not at all: whoever wants it dials the proxy.
    None,
}

impl Interception {
    /// As `INTERCEPTION_MODE` names it; what is not known is the default, as with istiod.
    fn parse(name: &str) -> Self {
        match name {
            "NONE" => Self::None,
            "TPROXY" => Self::Transparent,
            _ => Self::Redirect,
        }
    }
}

/// What rendering depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyNode {
    /// The whole id.
    pub id: String,
    /// What it is.
    pub kind: ProxyKind,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its service account; empty when it does not say.
    pub service_account: String,
    /// Its labels.
    pub labels: Labels,
    /// Its HTTP proxy port, when its metadata names one.
    pub http_proxy_port: Option<u16>,
    /// How its traffic comes to it.
    pub interception: Interception,
    /// Where it runs, as its message says: by its labels, else by `node.locality`.
    pub locality: Locality,
    /// What stands before it, where its own settings say so (`PROXY_CONFIG`); else the mesh's hold.
    pub own_topology: Option<Topology>,
    /// How it traces requests, where its own settings say so (`PROXY_CONFIG`); else the mesh's hold.
    pub own_tracing: Option<ProxyTracing>,
    /// The mesh that it says it is of (metadata `MESH_ID`).
    pub mesh_id: String,
    /// The cluster that it says it is in (metadata `CLUSTER_ID`).
    pub cluster_id: String,
    /// The network that it says it is in (metadata `NETWORK`); empty when it does not say.
    pub network: String,
    /// The networks of which alone it wants to know (metadata `REQUESTED_NETWORK_VIEW`); empty for all.
    pub network_view: Vec<String>,
    /// It knows Istio's and our own filters (metadata `WEFT_EXTENSIONS`), which a plain Envoy does not.
    pub extensions: bool,
    /// It answers its application's DNS (metadata `DNS_CAPTURE`).
    pub dns_capture: bool,
    /// It takes addresses that were allocated to services without one (metadata `DNS_AUTO_ALLOCATE`).
    pub dns_auto_allocate: bool,
}

/// A node that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// No node id in the first request.
    #[error("the first request has no node.id")]
    Missing,
    /// The id is not Istio's.
    #[error("node.id {0:?} is not TYPE~IP~NAME~DOMAIN with four parts")]
    Parts(String),
    /// The type is not one that is served.
    #[error("node.id: the proxy type {0:?} is not served; there are sidecar and router")]
    Kind(String),
    /// It has no address.
    #[error("node {0}: neither metadata INSTANCE_IPS nor the id has an IP address")]
    Address(String),
    /// Its own settings cannot be read.
    #[error(
        "node {0}: metadata PROXY_CONFIG.gatewayTopology: {1}; see ProxyConfig in Istio's reference of MeshConfig"
    )]
    Topology(String, String),
    /// Its own settings cannot be read.
    #[error(
        "node {0}: metadata PROXY_CONFIG.tracing: {1}; see ProxyConfig in Istio's reference of MeshConfig"
    )]
    Tracing(String, String),
}

fn text<'a>(metadata: Option<&'a prost_types::Struct>, key: &str) -> &'a str {
    match metadata.and_then(|m| m.fields.get(key)).and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text,
        _ => "",
    }
}

/// Whether metadata says yes, in text as Istio's agent does or as what it is.
fn is_on(metadata: Option<&prost_types::Struct>, key: &str) -> bool {
    let value = metadata.and_then(|m| m.fields.get(key)).and_then(|v| v.kind.as_ref());
    matches!(value, Some(Kind::BoolValue(true))) || text(metadata, key) == "true"
}

/// Kubernetes' labels of a place, and Istio's.
pub(super) const REGION_LABEL: &str = "topology.kubernetes.io/region";
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
pub(super) const SUB_ZONE_LABEL: &str = "topology.istio.io/subzone";

/// The place that labels tell, if they do.
fn locality_of(labels: &Labels) -> Option<Locality> {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    if labels.contains_key(REGION_LABEL) {
        return Some(Locality {
            region: label(REGION_LABEL),
            zone: label(ZONE_LABEL),
            sub_zone: label(SUB_ZONE_LABEL),
        });
    }
    labels.get("istio-locality").map(|text| Locality::parse(&text.replace('.', "/")))
}

impl ProxyNode {
    /// Reads the message; labels of a workload that the world knows win over those it sends.
    pub fn parse(node: &Node) -> Result<Self, NodeError> {
        if node.id.is_empty() {
            return Err(NodeError::Missing);
        }
        let parts: Vec<_> = node.id.split('~').collect();
        let [kind, ip, _, domain] = parts.as_slice() else { return Err(NodeError::Parts(node.id.clone())) };
        let kind = match *kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Router,
            other => return Err(NodeError::Kind(other.to_owned())),
        };
        let metadata = node.metadata.as_ref();
        let listed = text(metadata, "INSTANCE_IPS");
        let candidates = if listed.is_empty() { *ip } else { listed };
        let addresses: Vec<String> = candidates
            .split(',')
            .map(str::trim)
            .filter(|a| a.parse::<std::net::IpAddr>().is_ok())
            .map(str::to_owned)
            .collect();
        if addresses.is_empty() {
            return Err(NodeError::Address(node.id.clone()));
        }
        let namespace = match text(metadata, "NAMESPACE") {
            "" => domain.split('.').next().unwrap_or_default(),
            given => given,
        };
        let labels = match metadata.and_then(|m| m.fields.get("LABELS")).and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => labels
                .fields
                .iter()
                .filter_map(|(k, v)| match &v.kind {
                    Some(Kind::StringValue(v)) => Some((k.clone(), v.clone())),
                    _ => None,
                })
                .collect(),
            _ => Labels::new(),
        };
        let locality = locality_of(&labels).unwrap_or_else(|| {
            let said = node.locality.clone().unwrap_or_default();
            Locality { region: said.region, zone: said.zone, sub_zone: said.sub_zone }
        });
        let own = metadata.and_then(|m| m.fields.get("PROXY_CONFIG")).map(to_json);
        let own_topology = match own.as_ref().and_then(|config| config.get("gatewayTopology")) {
            None => None,
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|e| NodeError::Topology(node.id.clone(), e.to_string()))?,
            ),
        };
        let own_tracing = match own.as_ref().and_then(|config| config.get("tracing")) {
            None => None,
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|e| NodeError::Tracing(node.id.clone(), e.to_string()))?,
            ),
        };
        Ok(Self {
            locality,
            own_topology,
            own_tracing,
            mesh_id: text(metadata, "MESH_ID").to_owned(),
            cluster_id: text(metadata, "CLUSTER_ID").to_owned(),
            network: text(metadata, "NETWORK").to_owned(),
            network_view: text(metadata, "REQUESTED_NETWORK_VIEW")
                .split(',')
                .map(|network| network.trim().to_owned())
                .filter(|network| !network.is_empty())
                .collect(),
            id: node.id.clone(),
            kind,
            addresses,
            namespace: namespace.to_owned(),
            service_account: text(metadata, "SERVICE_ACCOUNT").to_owned(),
            labels,
            http_proxy_port: text(metadata, "HTTP_PROXY_PORT").parse().ok(),
            interception: Interception::parse(text(metadata, "INTERCEPTION_MODE")),
            extensions: text(metadata, "WEFT_EXTENSIONS") == "true",
            dns_capture: is_on(metadata, "DNS_CAPTURE"),
            dns_auto_allocate: is_on(metadata, "DNS_AUTO_ALLOCATE"),
        })
    }

    /// What it calls itself within its namespace.
    pub fn own_name(&self) -> &str {
        let name = self.id.split('~').nth(2).unwrap_or_default();
        name.strip_suffix(&self.namespace).and_then(|name| name.strip_suffix('.')).unwrap_or(name)
    }

    /// Its first address.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// Where its listeners bind that in a pod would bind every address: a workload on a loopback address of its own shares
    /// the machine with others, and takes that address only.
    pub fn wildcard(&self) -> &str {
        let loopback = self.address().parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback());
        if loopback { self.address() } else { "0.0.0.0" }
    }

    /// The addresses that stand for every address of its families, in a network of its own.
    pub(super) fn wildcards(&self) -> Vec<&'static str> {
        let has = |v6: bool| self.addresses.iter().any(|a| a.contains(':') == v6);
        [(false, "0.0.0.0"), (true, "::")]
            .into_iter()
            .filter(|(v6, _)| has(*v6))
            .map(|(_, any)| any)
            .collect()
    }

    /// Whether its application dials allocated addresses of version 4, and of version 6: it answers DNS with them, and the
    /// kernel brings the connections to it.
    pub(super) fn allocated_families(&self) -> [bool; 2] {
        let any = self.dns_capture && self.dns_auto_allocate && self.interception != Interception::None;
        [false, true].map(|v6| any && self.addresses.iter().any(|a| a.contains(':') == v6))
    }

    /// Hash of what listeners and routes of this very node are made from, beside the world's shape.
    pub(super) fn inputs(&self, world: &World) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.kind, &self.addresses, &self.namespace, &self.service_account).hash(&mut hasher);
        let here = world.workload_at(self.address()).filter(|w| w.meta.namespace == self.namespace);
        here.map(|w| (&w.meta.name, w.proxy_key())).hash(&mut hasher);
        (self.selected_by(world), self.http_proxy_port, self.interception, self.extensions).hash(&mut hasher);
        self.topology(world).hash(&mut hasher);
        // What its spans say.
        (&self.own_tracing, &self.mesh_id, &self.cluster_id, &self.labels).hash(&mut hasher);
        self.allocated_families().hash(&mut hasher);
        for (service, endpoint) in self.addresses.iter().flat_map(|a| world.served_at(a)) {
            (&service.hostname, endpoint).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// What stands before it.
    pub(super) fn topology<'a>(&'a self, world: &'a World) -> &'a Topology {
        self.own_topology.as_ref().unwrap_or(&world.mesh().default_config.gateway_topology)
    }

    /// Where it runs: as its workload's entry says, else as its message did.
    pub fn locality<'a>(&'a self, world: &'a World) -> &'a Locality {
        let here = world.workload_at(self.address()).filter(|w| w.meta.namespace == self.namespace);
        let entered = here.and_then(|w| w.endpoint.locality.as_ref());
        entered.unwrap_or(&self.locality)
    }

    /// The cluster that it is in: as it says itself, else the control plane's.
    pub(super) fn cluster(&self) -> &str {
        if self.cluster_id.is_empty() { &Place::here().cluster } else { &self.cluster_id }
    }

    /// The network that it is in: as it says itself, else as its workload's entry or its labels do, else by where it is; empty when
    /// unknown.
    pub fn network<'a>(&'a self, world: &'a World) -> &'a str {
        if !self.network.is_empty() {
            return &self.network;
        }
        let here = world.workload_at(self.address()).filter(|w| w.meta.namespace == self.namespace);
        if let Some(workload) = here {
            return world.networks().of(&workload.endpoint);
        }
        match self.labels.get(NETWORK_LABEL).filter(|network| !network.is_empty()) {
            Some(network) => network,
            None => world.networks().of_address(self.address()),
        }
    }

    /// Those of its labels that can matter to where its own requests go.
    pub(super) fn client_labels<'a>(&'a self, world: &'a World) -> Vec<(&'a String, &'a String)> {
        let all = self.selected_by(world);
        world.client_labels().iter().filter_map(|key| all.get_key_value(key)).collect()
    }

    /// What its workload is called, where that is known.
    pub fn name<'a>(&self, world: &'a World) -> Option<&'a str> {
        let here = world.workload_at(self.address()).filter(|w| w.meta.namespace == self.namespace);
        here.map(|w| w.meta.name.as_str())
    }

    /// The labels that policies select it by.
    pub fn selected_by<'a>(&'a self, world: &'a World) -> &'a Labels {
        // Somebody of another namespace who claims its address says nothing of it.
        let here = world.workload_at(self.address()).filter(|w| w.meta.namespace == self.namespace);
        here.map_or(&self.labels, |w| w.labels())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use xds_protos::value::from_json;

    use super::*;
    use crate::model::mesh_config::ForwardClientCert;

    fn gateway(proxy_config: serde_json::Value) -> Result<ProxyNode, NodeError> {
        let Some(Kind::StructValue(metadata)) = from_json(json!({"PROXY_CONFIG": proxy_config})).kind else {
            unreachable!("an object is a struct")
        };
        ProxyNode::parse(&Node {
            id: "router~10.0.0.1~ingress-1.edge~edge.svc.cluster.local".to_owned(),
            metadata: Some(metadata),
            ..Node::default()
        })
    }

    #[test]
    fn a_gateway_says_itself_what_stands_before_it() {
        let said =
            json!({"gatewayTopology": {"numTrustedProxies": 2, "forwardClientCertDetails": "FORWARD_ONLY"}});
        let own = gateway(said).unwrap().own_topology.unwrap();
        assert_eq!(own.num_trusted_proxies, 2);
        assert_eq!(own.forward_client_cert_details, ForwardClientCert::ForwardOnly);
        assert!(own.proxy_protocol.is_none());
        assert!(gateway(json!({"concurrency": 2})).unwrap().own_topology.is_none());
        let error =
            gateway(json!({"gatewayTopology": {"numTrustedProxies": "two"}})).unwrap_err().to_string();
        assert!(error.contains("PROXY_CONFIG.gatewayTopology") && error.contains("ingress-1"), "{error}");
    }
}
