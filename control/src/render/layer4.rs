//! Where connections go that nobody looks into, or only as far as their server name: the tcp and tls rules of
//! VirtualServices.

use serde_json::{Value, json};

use super::ProxyNode;
use super::cluster::outbound_name;
use super::filters::{Way, tcp_chain};
use crate::model::lookup::MESH_GATEWAY;
use crate::model::values::selects;
use crate::model::virtual_service::{L4Match, RouteDestination, TlsMatch};
use crate::model::{Service, World};

/// A destination's cluster: by its port, else by its service's first.
fn cluster(world: &World, route: &RouteDestination) -> String {
    let destination = &route.destination;
    let first = || world.services_with_host(&destination.host).next()?.ports.first().map(|p| p.number);
    let port = destination.port.as_ref().map(|p| p.number).or_else(first);
    outbound_name(port.unwrap_or_default(), &destination.subset, &destination.host)
}

/// One cluster's name, or weighted clusters.
pub(super) fn clusters(world: &World, routes: &[RouteDestination]) -> Value {
    match routes {
        [only] => cluster(world, only).into(),
        several => {
            let entries: Vec<_> = several
                .iter()
                .filter(|route| route.weight > 0)
                .map(|route| json!({"name": cluster(world, route), "weight": route.weight}))
                .collect();
            json!({"clusters": entries})
        }
    }
}

/// Whether one of a tcp rule's matches can hold here; a rule without any always does.
pub(super) fn takes(world: &World, node: &ProxyNode, matches: &[L4Match], gateway: &str, port: u16) -> bool {
    let holds = |wanted: &L4Match| {
        let here = wanted.gateways.is_empty() || wanted.gateways.iter().any(|g| g == gateway);
        // Istio asks for the source only in the mesh; at a gateway it is not the client.
        let source = gateway != MESH_GATEWAY
            || (selects(&wanted.source_labels, node.selected_by(world))
                && (wanted.source_namespace.is_empty() || wanted.source_namespace == node.namespace));
        here && source && wanted.port.is_none_or(|p| p == port)
    };
    matches.is_empty() || matches.iter().any(holds)
}

/// Where a sidecar's connections to a service's port go: by the tcp rules of the VirtualService that speaks for it, else to
/// the service.
pub(super) fn destination(world: &World, node: &ProxyNode, service: &Service, port: u16) -> Value {
    world
        .virtual_service_for_host(&node.namespace, MESH_GATEWAY, &service.hostname)
        .and_then(|rules| {
            rules.spec.tcp.iter().find(|tcp| takes(world, node, &tcp.matches, MESH_GATEWAY, port))
        })
        .map_or_else(|| outbound_name(port, "", &service.hostname).into(), |tcp| clusters(world, &tcp.route))
}

/// Whether a VirtualService tells a service's TLS connections apart by server name.
pub(super) fn has_names(world: &World, node: &ProxyNode, service: &Service, port: u16) -> bool {
    by_rules(world, node, service, port).next().is_some()
}

/// The server names and destinations of the tls rules that hold for a service's port.
fn by_rules<'a>(
    world: &'a World,
    node: &'a ProxyNode,
    service: &Service,
    port: u16,
) -> impl Iterator<Item = (&'a [String], Value)> {
    let rules = world.virtual_service_for_host(&node.namespace, MESH_GATEWAY, &service.hostname);
    rules.into_iter().flat_map(|rules| &rules.spec.tls).flat_map(move |tls| {
        let holds = move |wanted: &&'a TlsMatch| {
            let here = wanted.gateways.is_empty() || wanted.gateways.iter().any(|g| g == MESH_GATEWAY);
            let source = selects(&wanted.source_labels, node.selected_by(world))
                && (wanted.source_namespace.is_empty() || wanted.source_namespace == node.namespace);
            here && source && wanted.port.is_none_or(|p| p == port)
        };
        tls.matches
            .iter()
            .filter(holds)
            .map(|wanted| (wanted.sni_hosts.as_slice(), clusters(world, &tls.route)))
    })
}

/// A sidecar's chains for a service's TLS port, told apart by server name: those of its VirtualService's tls rules, else one
/// for the service's own name.
pub(super) fn by_server_name(world: &World, node: &ProxyNode, service: &Service, port: u16) -> Vec<Value> {
    let chain = |names: &[String], to: Value| json!({"filter_chain_match": {"server_names": names}, "filters": tcp_chain(world, node, Way::Outbound, &to)});
    let mut chains: Vec<Value> =
        by_rules(world, node, service, port).map(|(names, to)| chain(names, to)).collect();
    if chains.is_empty() {
        let name = service.hostname.to_string();
        chains.push(chain(&[name], outbound_name(port, "", &service.hostname).into()));
    }
    chains
}
