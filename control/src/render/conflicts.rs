//! What of a mesh's configuration a sidecar cannot have, because something else has its place; what istiod counts of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Interception, ProxyKind, ProxyNode, captured};
use crate::model::World;

/// What one proxy misses, each by a name that is the same for all that miss it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// It serves no service.
    pub no_service: bool,
    /// It is an endpoint that takes no requests yet.
    pub not_ready: bool,
    /// Services at a port that it serves by another service's protocol.
    pub inbound: BTreeSet<String>,
}

/// What a sidecar misses of what it serves. Nothing of a gateway: its services are not what it serves.
pub fn inbound(world: &World, node: &ProxyNode) -> Missing {
    if node.kind != ProxyKind::Sidecar {
        return Missing::default();
    }
    let served: Vec<_> = node.addresses.iter().flat_map(|address| world.served_at(address)).collect();
    let waits = |(service, endpoint): &(&Arc<crate::model::Service>, &Arc<crate::model::Endpoint>)| {
        service.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, endpoint))
    };
    let mut missing =
        Missing { no_service: served.is_empty(), not_ready: served.iter().any(waits), ..Missing::default() };
    let own = world.sidecar_for(&node.namespace, node.selected_by(world));
    if own.is_some_and(|sidecar| !sidecar.spec.ingress.is_empty()) {
        // It says itself what is served.
        return missing;
    }
    let mut held = Vec::new();
    for (service, endpoint) in served {
        for port in &service.ports {
            let Some(target) = service.endpoint_port(port, endpoint) else { continue };
            match held.iter().find(|(there, _)| *there == target) {
                None => held.push((target, port.protocol)),
                Some((_, protocol)) if *protocol != port.protocol => {
                    missing.inbound.insert(format!("{}:{}", service.hostname, port.number));
                }
                Some(_) => {}
            }
        }
    }
    missing
}

/// The captured listeners, `ADDRESS_PORT`, of which a sidecar's application reaches but the first of several services that speak bytes.
pub fn outbound(world: &World, node: &ProxyNode) -> BTreeSet<String> {
    match (node.kind, node.interception) {
        (ProxyKind::Router, _) | (_, Interception::None) => BTreeSet::new(),
        _ => captured::outbound::contested(world, node),
    }
}

/// Hosts of which several DestinationRules say the same subset: the first counts.
pub fn subsets(world: &World) -> usize {
    let mut seen = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for rule in world.destination_rules() {
        for subset in &rule.spec.subsets {
            if !seen.insert((&rule.meta.namespace, &rule.spec.host, &subset.name)) {
                twice.insert((&rule.meta.namespace, &rule.spec.host));
            }
        }
    }
    twice.len()
}

#[cfg(test)]
mod tests {
    use xds_protos::envoy::config::core::v3::Node;

    use super::*;
    use crate::ingest::load_str;

    fn service(name: &str, app: &str, protocol: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\n\
             spec: {{selector: {{app: {app}}}, ports: [{{name: {protocol}, port: 80, targetPort: 8080}}]}}\n---\n"
        )
    }

    fn external(name: &str, address: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: n}}\n\
             spec: {{hosts: [{name}.example], resolution: DNS, ports: [{{number: 5432, name: tcp, protocol: TCP}}]{address}}}\n---\n"
        )
    }

    fn world(more: &str) -> World {
        let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a, namespace: n}\n\
                     spec: {address: 10.0.0.1, labels: {app: a}}\n---\n";
        load_str("x.yaml", &format!("{entry}{more}")).into_result().unwrap()
    }

    fn node(ip: &str) -> ProxyNode {
        let id = format!("sidecar~{ip}~a.n~n.svc.cluster.local");
        ProxyNode::parse(&Node { id, ..Node::default() }).unwrap()
    }

    #[test]
    fn whoever_serves_nothing_or_by_two_protocols_is_found() {
        let one = service("one", "a", "http");
        let two = |protocol: &str| world(&format!("{one}{}", service("two", "a", protocol)));
        assert_eq!(inbound(&two("http"), &node("10.0.0.1")), Missing::default());
        let missing = inbound(&two("tcp"), &node("10.0.0.1"));
        assert_eq!(missing.inbound, ["two.n.svc.cluster.local:80".to_owned()].into());
        assert!(inbound(&two("tcp"), &node("10.0.0.2")).no_service);
        let gateway = ProxyNode { kind: ProxyKind::Router, ..node("10.0.0.2") };
        assert_eq!(inbound(&two("tcp"), &gateway), Missing::default());
    }

    #[test]
    fn services_that_nothing_tells_apart_are_found() {
        let at = |first: &str, second: &str| {
            let world = world(&format!("{}{}", external("one", first), external("two", second)));
            outbound(&world, &node("10.0.0.1"))
        };
        assert_eq!(at("", ""), ["0.0.0.0_5432".to_owned()].into());
        assert_eq!(at(", addresses: [10.9.0.1]", ""), BTreeSet::new());
        assert_eq!(at(", addresses: [10.9.0.1]", ", addresses: [10.9.0.2]"), BTreeSet::new());
        assert_eq!(
            at(", addresses: [10.9.0.1]", ", addresses: [10.9.0.1]"),
            ["10.9.0.1_5432".to_owned()].into()
        );
    }

    #[test]
    fn subsets_that_are_said_twice_are_found() {
        let rule = |name: &str, subset: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: n}}\n\
                 spec: {{host: one, subsets: [{{name: {subset}, labels: {{v: x}}}}]}}\n---\n"
            )
        };
        let of = |second: &str| {
            subsets(&world(&format!(
                "{}{}{}",
                service("one", "a", "http"),
                rule("a", "v1"),
                rule("b", second)
            )))
        };
        assert_eq!((of("v2"), of("v1")), (0, 1));
    }
}
