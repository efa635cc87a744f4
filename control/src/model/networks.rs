//! Networks: which one an endpoint is in, and by which gateways it is reached from another.
//!
//! What is in one network reaches each other directly. What is in another one is reached by that network's gateways, as far as any
//! is known, and by mutual TLS alone: its server name tells the gateway where to.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::kubernetes::{KubernetesNode, KubernetesService, NODE_SELECTOR};
use super::meta::Object;
use super::service::Endpoint;
use super::values::{Labels, selects};

/// Label of a workload, of the root namespace, or of the Service before a network's gateways: the network.
pub const NETWORK_LABEL: &str = "topology.istio.io/network";
/// Label of the Service before a network's gateways: its port for other networks.
pub const GATEWAY_PORT_LABEL: &str = "networking.istio.io/gatewayPort";
/// That port where nothing is said.
pub const GATEWAY_PORT: u16 = 15443;

/// Istio's MeshNetworks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshNetworks {
    /// By their names.
    pub networks: BTreeMap<String, MeshNetwork>,
}

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshNetwork {
    /// What is in it.
    pub endpoints: Vec<NetworkEndpoints>,
    /// How others reach it.
    pub gateways: Vec<MeshGateway>,
}

/// Endpoints of a network: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetworkEndpoints {
    /// Those with addresses in this range.
    pub from_cidr: String,
    /// All of the cluster with this name.
    pub from_registry: String,
}

/// Gateways of a network: an address, or the Service before them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshGateway {
    /// The Service's full host name.
    pub registry_service_name: String,
    /// The IP address, or a host name.
    pub address: String,
    /// The port for other networks.
    pub port: u16,
    /// Where it is; endpoints keep their own locality.
    pub locality: String,
}

/// How a network is reached from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkGateway {
    /// An IP address, or a host name while nobody has looked it up.
    pub address: String,
    /// The port.
    pub port: u16,
}

impl NetworkGateway {
    /// Whether its address is a name, which has to be looked up.
    pub fn is_named(&self) -> bool {
        self.address.parse::<IpAddr>().is_err()
    }
}

/// All networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// The root namespace's, which is that of all that say nothing else.
    of_system: String,
    /// The one that has this cluster (`fromRegistry`).
    of_registry: String,
    /// Ranges of addresses, the narrowest first.
    ranges: Vec<(IpNet, String)>,
    /// By network, in order, each once. None of them is empty.
    gateways: BTreeMap<String, Vec<NetworkGateway>>,
    /// The same with names instead of what they stand for.
    written: BTreeMap<String, Vec<NetworkGateway>>,
}

/// What networks follow from.
pub(super) struct Sources<'a> {
    pub(super) mesh: Option<&'a MeshNetworks>,
    /// Labels of the root namespace.
    pub(super) system: Option<&'a Labels>,
    pub(super) services: &'a [Arc<Object<KubernetesService>>],
    /// Those of the Gateway API.
    pub(super) gateways: &'a [(String, NetworkGateway)],
    pub(super) nodes: &'a [Arc<KubernetesNode>],
    pub(super) domain: &'a str,
    /// The name of this cluster.
    pub(super) cluster: &'a str,
}

/// The class of Gateways that describe another network's gateway, and are served there.
pub const REMOTE_CLASS: &str = "istio-remote";

/// Where connections from outside come to a port of a Service: to load balancers, or to its nodes.
pub fn external(
    service: &Object<KubernetesService>,
    port: u16,
    nodes: &[Arc<KubernetesNode>],
) -> Vec<NetworkGateway> {
    let spec = &service.spec;
    let balancers = spec.ingress.iter().map(|i| if i.ip.is_empty() { &i.hostname } else { &i.ip });
    let addresses = spec.external_ips.iter().chain(balancers).filter(|address| !address.is_empty());
    let mut found: Vec<_> =
        addresses.map(|address| NetworkGateway { address: address.clone(), port }).collect();
    if let Some((selector, port)) = by_nodes(service, port) {
        let selected = nodes.iter().filter(|node| selects(&selector, &node.labels));
        found.extend(selected.map(|node| NetworkGateway { address: node.address.clone(), port }));
    }
    found
}

/// The labels of the nodes at which a port of a Service is found, and the port there, if that is where it is to be found.
pub fn by_nodes(service: &Object<KubernetesService>, port: u16) -> Option<(Labels, u16)> {
    let annotation = service.meta.annotations.get(NODE_SELECTOR)?;
    let port = service.spec.ports.iter().find(|one| one.port == port && one.node_port != 0)?;
    let is_meant = service.spec.service_type == "NodePort";
    is_meant.then_some((KubernetesNode::selector(annotation).ok()?, port.node_port))
}

/// The port at which other networks come in, by the labels of what stands before a network's gateways.
pub fn gateway_port(labels: &Labels) -> u16 {
    labels.get(GATEWAY_PORT_LABEL).and_then(|port| port.parse().ok()).unwrap_or(GATEWAY_PORT)
}

impl Networks {
    pub(super) fn new(sources: &Sources<'_>) -> Self {
        let all = || sources.mesh.iter().flat_map(|mesh| &mesh.networks);
        let holds = |network: &MeshNetwork| {
            network
                .endpoints
                .iter()
                .any(|e| !e.from_registry.is_empty() && e.from_registry == sources.cluster)
        };
        let of_registry = all().find(|(_, network)| holds(network)).map(|(name, _)| name.clone());
        let mut ranges: Vec<(IpNet, String)> = all()
            .flat_map(|(name, network)| network.endpoints.iter().map(move |e| (&e.from_cidr, name)))
            .filter_map(|(range, name)| Some((range.parse::<IpNet>().ok()?.trunc(), name.clone())))
            .collect();
        ranges.sort_by(|a, b| b.0.prefix_len().cmp(&a.0.prefix_len()).then_with(|| a.cmp(b)));
        // Those of Services are of this cluster, and nearer to its endpoints than what is written for all clusters.
        let mut of_services: BTreeMap<String, BTreeSet<NetworkGateway>> = BTreeMap::new();
        let mut of_mesh: BTreeMap<String, BTreeSet<NetworkGateway>> = BTreeMap::new();
        let mut named: BTreeMap<&str, Vec<(&String, u16)>> = BTreeMap::new();
        for (name, network) in all() {
            for gateway in &network.gateways {
                if gateway.address.is_empty() {
                    if Some(name) == of_registry.as_ref() {
                        named.entry(&gateway.registry_service_name).or_default().push((name, gateway.port));
                    }
                    continue;
                }
                let gateway = NetworkGateway { address: gateway.address.clone(), port: gateway.port };
                of_mesh.entry(name.clone()).or_default().insert(gateway);
            }
        }
        for service in sources.services {
            let meta = &service.meta;
            let places: Vec<(&String, u16)> = match meta.labels.get(NETWORK_LABEL).filter(|n| !n.is_empty()) {
                Some(network) => {
                    vec![(network, gateway_port(&meta.labels))]
                }
                None if named.is_empty() => continue,
                None => {
                    let host = format!("{}.{}.svc.{}", meta.name, meta.namespace, sources.domain);
                    named.get(host.as_str()).cloned().unwrap_or_default()
                }
            };
            for (network, port) in places {
                for gateway in external(service, port, sources.nodes) {
                    of_services.entry(network.clone()).or_default().insert(gateway);
                }
            }
        }
        for (network, gateway) in sources.gateways {
            of_services.entry(network.clone()).or_default().insert(gateway.clone());
        }
        for (network, gateways) in of_services {
            of_mesh.insert(network, gateways);
        }
        let written: BTreeMap<String, Vec<NetworkGateway>> =
            of_mesh.into_iter().map(|(name, gateways)| (name, gateways.into_iter().collect())).collect();
        let system = sources.system.and_then(|labels| labels.get(NETWORK_LABEL));
        let networks = Self {
            of_system: system.cloned().unwrap_or_default(),
            of_registry: of_registry.unwrap_or_default(),
            ranges,
            gateways: BTreeMap::new(),
            written,
        };
        networks.resolved(&BTreeMap::new())
    }

    /// The same with these addresses for the host names of gateways. A name that nobody knows is no gateway.
    #[must_use]
    pub fn resolved(&self, names: &BTreeMap<String, Vec<IpAddr>>) -> Self {
        let mut gateways = BTreeMap::new();
        for (network, written) in &self.written {
            let mut found = BTreeSet::new();
            for gateway in written {
                if !gateway.is_named() {
                    found.insert(gateway.clone());
                    continue;
                }
                for address in names.get(&gateway.address).into_iter().flatten() {
                    found.insert(NetworkGateway { address: address.to_string(), port: gateway.port });
                }
            }
            if !found.is_empty() {
                gateways.insert(network.clone(), found.into_iter().collect());
            }
        }
        Self { gateways, ..self.clone() }
    }

    /// The same with gateways as they are written, host names among them: for who is told where it goes, and goes nowhere.
    #[must_use]
    pub fn as_written(&self) -> Self {
        Self { gateways: self.written.clone(), ..self.clone() }
    }

    /// The host names of gateways, which somebody has to look up.
    pub fn names(&self) -> BTreeSet<String> {
        let all = self.written.values().flatten();
        all.filter(|gateway| gateway.is_named()).map(|gateway| gateway.address.clone()).collect()
    }

    /// Whether there is but one network: nobody has written of a gateway to another.
    pub fn is_one(&self) -> bool {
        self.written.is_empty()
    }

    /// The network of an endpoint: as it says itself, or by its label, or by where it is; empty when unknown.
    pub fn of<'a>(&'a self, endpoint: &'a Endpoint) -> &'a str {
        match Self::said(endpoint) {
            "" => self.of_address(&endpoint.address),
            said => said,
        }
    }

    /// The network that an endpoint itself says that it is in.
    pub fn said(endpoint: &Endpoint) -> &str {
        if !endpoint.network.is_empty() {
            return &endpoint.network;
        }
        endpoint.labels.get(NETWORK_LABEL).map_or("", String::as_str)
    }

    /// The network of what is at an address and says nothing: the root namespace's, else that which the mesh's settings have.
    pub fn of_address(&self, address: &str) -> &str {
        if !self.of_system.is_empty() {
            return &self.of_system;
        }
        if !self.of_registry.is_empty() {
            return &self.of_registry;
        }
        let Ok(address) = address.parse::<IpAddr>() else { return "" };
        self.ranges.iter().find(|(range, _)| range.contains(&address)).map_or("", |(_, network)| network)
    }

    /// The gateways of a network, in order.
    pub fn gateways(&self, network: &str) -> &[NetworkGateway] {
        self.gateways.get(network).map(Vec::as_slice).unwrap_or_default()
    }

    /// How a network is reached from others: by these gateways, of which none may be known (yet); none if nobody has written of any.
    pub fn ways(&self, network: &str) -> Option<&[NetworkGateway]> {
        self.written.contains_key(network).then(|| self.gateways(network))
    }

    /// Every network that has gateways, or should have them by a name that is not known (yet).
    pub fn with_gateways(&self) -> impl Iterator<Item = (&String, &Vec<NetworkGateway>)> {
        self.written.iter()
    }

    /// A hash of what says who is in which network; 0 when nothing does but the endpoints themselves.
    pub fn version(&self) -> u64 {
        if self.of_system.is_empty() && self.of_registry.is_empty() && self.ranges.is_empty() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        (&self.of_system, &self.of_registry, &self.ranges).hash(&mut hasher);
        hasher.finish()
    }

    /// A hash of the gateways.
    pub fn gateways_version(&self) -> u64 {
        if self.gateways.is_empty() && self.written.is_empty() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        (&self.gateways, &self.written).hash(&mut hasher);
        hasher.finish()
    }

    /// The networks whose gateways are others than in `before`.
    pub fn moved<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a str> {
        let names = self.written.keys().chain(before.written.keys());
        names.filter(|n| self.ways(n) != before.ways(n)).map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::World;

    fn world(text: &str) -> World {
        crate::ingest::load_str("x.yaml", text).into_result().unwrap_or_else(|e| panic!("{e:#?}"))
    }

    fn at(networks: &Networks, network: &str) -> Vec<String> {
        networks.gateways(network).iter().map(|g| format!("{}:{}", g.address, g.port)).collect()
    }

    const GATEWAY: &str = "
apiVersion: v1
kind: Service
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: two}}
spec: {externalIPs: [203.0.113.9], ports: [{name: tls, port: 15443}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}, {hostname: lb.example.com}]}}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: istio-system, labels: {topology.istio.io/network: three, networking.istio.io/gatewayPort: '443'}}
spec: {ports: [{name: tls, port: 443}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.11}]}}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: istio-system, labels: {topology.istio.io/network: four}}
spec: {ports: [{name: tls, port: 15443}]}
";

    #[test]
    fn services_with_a_networks_label_are_its_gateways_where_they_are_reached_from_outside() {
        let world = world(GATEWAY);
        let networks = world.networks();
        assert_eq!(at(networks, "two"), ["203.0.113.10:15443", "203.0.113.9:15443"], "the name is not known");
        assert_eq!(at(networks, "three"), ["203.0.113.11:443"]);
        assert_eq!(at(networks, "four"), [] as [&str; 0]);
        assert_eq!(networks.names(), BTreeSet::from(["lb.example.com".to_owned()]));
        let names = BTreeMap::from([("lb.example.com".to_owned(), vec!["203.0.113.12".parse().unwrap()])]);
        let known = networks.resolved(&names);
        assert_eq!(at(&known, "two"), ["203.0.113.10:15443", "203.0.113.12:15443", "203.0.113.9:15443"]);
        assert_eq!(known.moved(networks), BTreeSet::from(["two"]));
        // One that is written, and one that nobody knows, are two things.
        let unwritten = Networks::default();
        assert_eq!(networks.moved(&unwritten), BTreeSet::from(["two", "three"]));
        assert_eq!((networks.ways("four"), unwritten.ways("two")), (None, None));
        let waiting = self::world(
            &GATEWAY.replace("externalIPs: [203.0.113.9], ", "").replace("{ip: 203.0.113.10}, ", ""),
        );
        let waiting = waiting.networks();
        assert_eq!(waiting.ways("two"), Some(&[] as &[NetworkGateway]));
        assert_eq!(
            waiting.moved(&unwritten),
            BTreeSet::from(["two", "three"]),
            "the way there is another one already"
        );
    }

    const NETWORKS: &str = "
networks:
  one:
    endpoints: [{fromCidr: 10.0.0.0/8}]
    gateways: [{address: 203.0.113.1, port: 443}]
  two:
    endpoints: [{fromCidr: 10.2.0.0/16}]
    gateways: [{address: 203.0.113.2, port: 15443}, {address: gw.example.com, port: 15443}]
  far:
    endpoints: [{fromRegistry: elsewhere}]
    gateways: [{registryServiceName: eastwest.istio-system.svc.cluster.local, port: 15444}]
";

    #[test]
    fn the_meshs_settings_say_what_is_where_by_ranges_the_narrowest_first() {
        let world = world(NETWORKS);
        let networks = world.networks();
        assert_eq!(networks.of_address("10.1.2.3"), "one");
        assert_eq!(networks.of_address("10.2.2.3"), "two");
        assert_eq!(networks.of_address("192.0.2.1"), "");
        assert_eq!(networks.of_address("gw.example.com"), "");
        assert_eq!(at(networks, "one"), ["203.0.113.1:443"]);
        assert_eq!(at(networks, "two"), ["203.0.113.2:15443"]);
        // What another cluster's Services are, that cluster's control plane knows.
        assert_eq!(at(networks, "far"), [] as [&str; 0]);
    }

    #[test]
    fn a_network_that_has_this_cluster_has_all_that_say_nothing_and_its_services_gateways() {
        let text = format!("{}\n---\n{GATEWAY}", NETWORKS.replace("elsewhere", "Kubernetes"))
            .replace(", labels: {topology.istio.io/network: two}", "");
        let world = world(&text);
        let networks = world.networks();
        assert_eq!(networks.of_address("10.1.2.3"), "far");
        assert_eq!(at(networks, "far"), ["203.0.113.10:15444", "203.0.113.9:15444"]);
    }

    #[test]
    fn an_endpoints_own_word_goes_before_its_label_and_that_before_the_root_namespaces() {
        let text = format!(
            "{NETWORKS}\n---\n{}",
            "
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: home}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: x}
spec: {address: 10.2.0.1, network: vm, labels: {topology.istio.io/network: label}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: b, namespace: x, labels: {topology.istio.io/network: label}}
spec: {address: 10.2.0.2}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: c, namespace: x}
spec: {address: 10.2.0.3}
"
        );
        let world = world(&text);
        let of =
            |address: &str| world.networks().of(&world.workload_at(address).unwrap().endpoint).to_owned();
        assert_eq!(of("10.2.0.1"), "vm");
        assert_eq!(of("10.2.0.2"), "label");
        assert_eq!(of("10.2.0.3"), "home");
    }
}
