//! What is in other networks, as one proxy reaches it: by that network's gateways, if any are written, and by mutual TLS alone.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::ProxyNode;
use crate::model::destination_rule::ClientTlsMode;
use crate::model::lookup::PortPolicy;
use crate::model::networks::{NetworkGateway, Networks};
use crate::model::service::ServiceLocation;
use crate::model::{EffectivePeerMode, Endpoint, Service, World};

/// The largest number by which weights are multiplied, so that they can be divided among gateways.
const MOST: u32 = 1 << 12;

/// How one proxy sees the networks of a service's endpoints.
pub(super) struct View<'a> {
    networks: &'a Networks,
    own: &'a str,
    asked: &'a [String],
    /// What is outside of the mesh is in no network of it, unless it says so.
    external: bool,
    mutual: Mutual,
}

/// Whether connections to a service's endpoints are mutual TLS of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mutual {
    /// As each of them can.
    Each,
    /// All are.
    All,
    /// None is.
    None,
}

/// The way to an endpoint.
pub(super) enum Reach<'a> {
    /// To its own address.
    Directly,
    /// By one of its network's gateways.
    Through(&'a [NetworkGateway]),
    /// There is none.
    Not,
}

impl<'a> View<'a> {
    pub(super) fn new(world: &'a World, node: &'a ProxyNode, service: &Service, policy: &PortPolicy) -> Self {
        let external = service.location == ServiceLocation::MeshExternal;
        let off = external
            || !world.mesh().enable_auto_mtls
            || world.namespace_peer_mode(service.namespace()) == EffectivePeerMode::Disable;
        let mutual = match &policy.tls {
            Some(tls) if tls.mode == ClientTlsMode::IstioMutual => Mutual::All,
            Some(_) => Mutual::None,
            None if off => Mutual::None,
            None => Mutual::Each,
        };
        Self {
            networks: world.networks(),
            own: node.network(world),
            asked: &node.network_view,
            external,
            mutual,
        }
    }

    /// A hash of all in it that matters to the endpoints of a service; 0 where there is but one network. Who sees them alike has the same.
    pub(super) fn key(&self, service: &Service) -> u64 {
        let version = self.networks.version();
        if self.networks.is_one() && self.asked.is_empty() {
            return version;
        }
        let mut others: BTreeMap<&str, &[NetworkGateway]> = BTreeMap::new();
        for endpoint in &service.endpoints {
            let network = self.of(endpoint);
            if !self.is_near(network)
                && !others.contains_key(network)
                && let Some(gateways) = self.networks.ways(network)
            {
                others.insert(network, gateways);
            }
        }
        let mut hasher = DefaultHasher::new();
        (version, self.asked, self.own.is_empty(), &others).hash(&mut hasher);
        if !others.is_empty() {
            self.mutual.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The network of an endpoint; empty when unknown.
    fn of<'e>(&'e self, endpoint: &'e Endpoint) -> &'e str {
        of(self.networks, self.external, endpoint)
    }

    /// Whether what is in a network is reached directly. Who does not know its own network goes by the gateways of all that have any.
    fn is_near(&self, network: &str) -> bool {
        network.is_empty() || network == self.own
    }

    /// The way to an endpoint, which takes mutual TLS by itself or does not.
    pub(super) fn reach(&self, endpoint: &Endpoint, takes_mutual: bool) -> Reach<'a> {
        let network = self.of(endpoint);
        if !self.asked.is_empty() && !network.is_empty() && !self.asked.iter().any(|asked| asked == network) {
            return Reach::Not;
        }
        let Some(gateways) = self.networks.ways(network).filter(|_| !self.is_near(network)) else {
            return directly(endpoint);
        };
        // Their names are not looked up (yet), and what is behind them is nowhere else. Who does not know where it is may be there.
        if gateways.is_empty() {
            return if self.own.is_empty() { directly(endpoint) } else { Reach::Not };
        }
        let mutual = match self.mutual {
            Mutual::Each => takes_mutual,
            // As with istiod: a rule does not give a proxy to what has none.
            Mutual::All => endpoint.mutual_tls,
            Mutual::None => false,
        };
        if mutual { Reach::Through(gateways) } else { Reach::Not }
    }
}

/// The network of a service's endpoint; empty when unknown. What is outside of the mesh is in none, unless it says so.
pub(super) fn network<'a>(world: &'a World, service: &Service, endpoint: &'a Endpoint) -> &'a str {
    of(world.networks(), service.location == ServiceLocation::MeshExternal, endpoint)
}

fn of<'a>(networks: &'a Networks, external: bool, endpoint: &'a Endpoint) -> &'a str {
    if external { Networks::said(endpoint) } else { networks.of(endpoint) }
}

/// The way to an endpoint's own address. Of one without it, its network's gateways are all that is known.
pub(super) fn directly(endpoint: &Endpoint) -> Reach<'static> {
    if endpoint.address.is_empty() { Reach::Not } else { Reach::Directly }
}

/// By what weights are multiplied, so that those of endpoints can be divided among so many gateways each.
pub(super) fn scale(gateways: impl Iterator<Item = usize>) -> u32 {
    let common = |a: u32, b: u32| {
        let (mut x, mut y) = (a, b);
        while y != 0 {
            (x, y) = (y, x % y);
        }
        a.saturating_mul(b / x.max(1))
    };
    gateways.fold(1, |all, one| common(all, u32::try_from(one).unwrap_or(u32::MAX).max(1)).min(MOST))
}

#[cfg(test)]
mod tests {
    use xds_protos::ResourceType;

    use super::*;
    use crate::render::tests::{mesh, node, value};
    use crate::render::{Memo, render};

    #[test]
    fn what_is_looked_up_takes_mutual_tls_as_policies_say_now() {
        let memo = Memo::default();
        for (mode, expected) in [("PERMISSIVE", "istio"), ("DISABLE", ""), ("STRICT", "istio")] {
            let world = mesh(&format!(
                "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: n, namespace: shop}}
spec:
  hosts: [n.shop.local]
  location: MESH_INTERNAL
  resolution: DNS
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: n.example, labels: {{app: n}}, serviceAccount: n}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: n, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: n}}}}, mtls: {{mode: {mode}}}}}
"
            ));
            let resources = render(&world, &node("sidecar", "127.0.9.1", "shop"), false, &memo);
            let cluster = value(&resources, ResourceType::Cluster, "outbound|80||n.shop.local");
            let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
            let mode = &endpoint["metadata"]["filter_metadata"]["envoy.transport_socket_match"]["tlsMode"];
            assert_eq!(mode.as_str().unwrap_or_default(), expected, "{endpoint:#}");
        }
    }

    #[test]
    fn a_service_of_one_name_at_a_time_whose_selector_finds_several_is_looked_up_by_all_of_them() {
        let entry = |name: &str| {
            format!(
                "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{address: {name}.example, labels: {{app: n}}}}
"
            )
        };
        let service = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: n, namespace: shop}
spec:
  hosts: [n.example]
  resolution: DNS_ROUND_ROBIN
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: n}}
";
        for (entries, expected) in [
            (vec![], "LOGICAL_DNS"),
            (vec!["a"], "LOGICAL_DNS"),
            // One name is all that a logical cluster can have; with two, proxies would refuse it.
            (vec!["a", "b"], "STRICT_DNS"),
        ] {
            let text: String = entries.iter().map(|name| entry(name)).collect();
            let world = mesh(&format!("{service}{text}"));
            let resources = render(&world, &node("sidecar", "127.0.9.1", "shop"), false, &Memo::default());
            let cluster = value(&resources, ResourceType::Cluster, "outbound|80||n.example");
            assert_eq!(cluster["type"], expected, "{entries:?}: {cluster:#}");
        }
    }

    #[test]
    fn who_is_there_and_who_waits_for_its_gateways_are_told_apart() {
        let memo = Memo::default();
        let world = mesh(
            "
networks:
  here: {endpoints: [{fromCidr: 10.1.0.0/16}]}
  there: {endpoints: [{fromCidr: 10.2.0.0/16}], gateways: [{address: gateway.invalid, port: 15443}]}
---
apiVersion: v1
kind: Service
metadata: {name: n, namespace: shop}
spec: {selector: {app: n}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: n, namespace: shop}
spec: {address: 10.2.0.1, labels: {app: n}, serviceAccount: n}
",
        );
        for (address, expected) in [("10.2.0.9", true), ("10.1.0.9", false), ("10.9.0.9", true)] {
            let resources = render(&world, &node("sidecar", address, "shop"), false, &memo);
            let found = value(&resources, ResourceType::Endpoint, "outbound|80||n.shop.svc.cluster.local");
            assert_eq!(found.to_string().contains("10.2.0.1"), expected, "{address}: {found:#}");
        }
    }

    #[test]
    fn weights_are_multiplied_by_what_all_numbers_of_gateways_divide() {
        assert_eq!(scale([].into_iter()), 1);
        assert_eq!(scale([1, 1].into_iter()), 1);
        assert_eq!(scale([2, 3].into_iter()), 6);
        assert_eq!(scale([4, 6].into_iter()), 12);
        assert_eq!(scale([4093, 4091, 4079].into_iter()), MOST);
    }
}
