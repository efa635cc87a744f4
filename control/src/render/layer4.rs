//! Where connections go that nobody looks into, or only as far as their server name: the tcp and tls rules of
//! VirtualServices.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cluster::outbound_name;
use super::filters::{Way, tcp_chain};
use super::{ProxyNode, rules};
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

/// Whether one of a tcp rule's matches holds here for every destination; a rule without any does.
pub(super) fn takes(world: &World, node: &ProxyNode, matches: &[L4Match], gateway: &str, port: u16) -> bool {
    let everywhere = |wanted: &L4Match| wanted.destination_subnets.is_empty();
    let holds = |wanted: &L4Match| everywhere(wanted) && holds(world, node, wanted, gateway, port);
    matches.is_empty() || matches.iter().any(holds)
}

/// Whether a match holds here, for the destinations that it is for.
fn holds(world: &World, node: &ProxyNode, wanted: &L4Match, gateway: &str, port: u16) -> bool {
    let here = wanted.gateways.is_empty() || wanted.gateways.iter().any(|g| g == gateway);
    // Istio asks for the source only in the mesh; at a gateway it is not the client.
    let source = gateway != MESH_GATEWAY
        || (selects(&wanted.source_labels, node.selected_by(world))
            && (wanted.source_namespace.is_empty() || wanted.source_namespace == node.namespace));
    here && source && wanted.port.is_none_or(|p| p == port)
}

/// Where a sidecar's connections to a service's port go that were dialled to certain addresses: by the tcp rules before the
/// one that takes all.
pub(super) fn by_subnets(world: &World, node: &ProxyNode, service: &Service, port: u16) -> Vec<Value> {
    let rules = rules::of_host(&rules::imported(world, node), &service.hostname);
    let mut chains = Vec::new();
    let mut taken = HashSet::new();
    for tcp in rules.iter().flat_map(|rules| &rules.spec.tcp) {
        let here = tcp.matches.iter().filter(|m| holds(world, node, m, MESH_GATEWAY, port));
        for subnet in here.flat_map(|m| &m.destination_subnets).filter(|subnet| taken.insert(*subnet)) {
            let filters = tcp_chain(world, node, Way::Outbound, &clusters(world, &tcp.route));
            let wanted = json!({"prefix_ranges": ranges([subnet])});
            chains.push(json!({"filter_chain_match": wanted, "filters": filters}));
        }
        if takes(world, node, &tcp.matches, MESH_GATEWAY, port) {
            break;
        }
    }
    chains
}

/// Addresses and ranges of them as Envoy has them; what is neither is left out.
pub(super) fn ranges<'a>(subnets: impl IntoIterator<Item = &'a String>) -> Value {
    let range = |subnet: &String| {
        let (address, length) = match subnet.split_once('/') {
            Some((address, length)) => (address, length.parse::<u8>().ok()?),
            None => (subnet.as_str(), if subnet.contains(':') { 128 } else { 32 }),
        };
        Some(json!({"address_prefix": address, "prefix_len": length}))
    };
    subnets.into_iter().filter_map(range).collect()
}

/// Where a sidecar's connections to a service's port go: by the tcp rules of the VirtualService that speaks for it, else to
/// the service.
pub(super) fn destination(world: &World, node: &ProxyNode, service: &Service, port: u16) -> Value {
    rules::of_host(&rules::imported(world, node), &service.hostname)
        .and_then(|rules| {
            rules.spec.tcp.iter().find(|tcp| takes(world, node, &tcp.matches, MESH_GATEWAY, port))
        })
        .map_or_else(|| outbound_name(port, "", &service.hostname).into(), |tcp| clusters(world, &tcp.route))
}

/// Whether a VirtualService tells a service's TLS connections apart by server name.
pub(super) fn has_names(world: &World, node: &ProxyNode, service: &Service, port: u16) -> bool {
    by_rules(world, node, service, port).next().is_some()
}

/// The server names, addresses (if not all) and destinations of the tls rules that hold for a service's port.
fn by_rules<'a>(
    world: &'a World,
    node: &'a ProxyNode,
    service: &Service,
    port: u16,
) -> impl Iterator<Item = (&'a [String], &'a [String], Value)> {
    let rules = rules::of_host(&rules::imported(world, node), &service.hostname);
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
            .map(|wanted| (&*wanted.sni_hosts, &*wanted.destination_subnets, clusters(world, &tls.route)))
    })
}

/// A sidecar's chains for services' TLS ports, told apart by server name: as a service's VirtualService has them in its tls
/// rules, else by its own name; and by its ranges of addresses, where it is known by some.
pub(super) fn by_server_names<'a>(
    world: &World,
    node: &ProxyNode,
    services: impl IntoIterator<Item = (&'a Service, u16, Option<Value>)>,
) -> Vec<Value> {
    let mut chains = Vec::new();
    let mut taken = HashSet::new();
    for (service, port, own) in services {
        let mut add = |names: &[String], subnets: &[String], to: &Value| {
            let ranges = if subnets.is_empty() { own.clone() } else { Some(ranges(subnets)) };
            // Rules that speak for several services name all of them, each time.
            let of = ranges.as_ref().map(Value::to_string);
            let names: Vec<_> = names.iter().filter(|n| taken.insert((of.clone(), (*n).clone()))).collect();
            if names.is_empty() {
                return;
            }
            let mut wanted = json!({"server_names": names});
            if let Some(ranges) = ranges {
                wanted["prefix_ranges"] = ranges;
            }
            chains.push(
                json!({"filter_chain_match": wanted, "filters": tcp_chain(world, node, Way::Outbound, to)}),
            );
        };
        let mut ruled = by_rules(world, node, service, port).peekable();
        if ruled.peek().is_none() {
            add(&[service.hostname.to_string()], &[], &outbound_name(port, "", &service.hostname).into());
        }
        ruled.for_each(|(names, subnets, to)| add(names, subnets, &to));
    }
    chains
}
