//! Several networks: endpoints that others do not reach, and gateways that nobody finds.

use std::collections::{BTreeMap, BTreeSet};

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::kubernetes::NODE_SELECTOR;
use crate::model::networks::{GATEWAY_PORT_LABEL, NETWORK_LABEL, by_nodes, gateway_port};
use crate::model::place::Place;
use crate::model::service::{Resolution, ServiceLocation};
use crate::model::{EffectivePeerMode, Endpoint, Service, World};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    without_gateway(world, found);
    for (service, networks) in in_plain_text(world) {
        for (network, addresses) in networks {
            let why = format!(
                "{} of its endpoints take no mutual TLS ({}), and are in the network {network}, whose gateways pass nothing else on: \
                 clients in other networks do not reach them",
                addresses.len(),
                few(addresses)
            );
            let help = "give them a proxy (or a service account, where they are entered by hand), and leave mutual TLS on for them";
            found.push(Message::of(Code::NetworkNeedsMutualTls, &service.meta, "", why, help));
        }
    }
    not_found(world, found);
}

/// The networks in which somebody is who calls.
fn inhabited(world: &World) -> BTreeSet<&str> {
    let all = world.workloads().iter().map(|workload| world.networks().of(&workload.endpoint));
    all.filter(|network| !network.is_empty()).collect()
}

/// The endpoints that all find by their addresses, with their networks.
fn listed(world: &World) -> impl Iterator<Item = (&Service, &Endpoint, &str)> {
    let services = world.services().iter();
    let inside = services.filter(|service| {
        service.location == ServiceLocation::MeshInternal && service.resolution == Resolution::Static
    });
    inside.flat_map(move |service| {
        service.endpoints.iter().map(move |endpoint| (&**service, &**endpoint, world.networks().of(endpoint)))
    })
}

fn without_gateway(world: &World, found: &mut Vec<Message>) {
    let inhabited = inhabited(world);
    let mut told = BTreeSet::new();
    for (service, endpoint, network) in listed(world) {
        let others: Vec<_> = inhabited.iter().filter(|other| **other != network).collect();
        if network.is_empty()
            || others.is_empty()
            || world.networks().with_gateways().any(|(name, _)| name == network)
            || !told.insert(network)
        {
            continue;
        }
        let how = match endpoint.address.is_empty() {
            true => "nobody reaches what is there without an address",
            false => "proxies in other networks connect to the addresses in it directly",
        };
        let why = format!("its endpoints are in the network {network}, of which no gateway is known: {how}");
        let help = format!(
            "label the Service before its gateways {NETWORK_LABEL}: {network}, or name their address in meshNetworks"
        );
        found.push(Message::of(Code::NetworkWithoutGateway, &service.meta, "", why, help));
    }
}

/// The endpoints that somebody reaches by gateways alone.
fn behind(world: &World) -> Vec<(&Service, &Endpoint, &str)> {
    if world.networks().is_one() {
        return Vec::new();
    }
    let inhabited = inhabited(world);
    let behind = |(_, endpoint, network): &(&Service, &Endpoint, &str)| {
        // Gateways are spoken to by what their servers say, and are the way in themselves.
        let gateway = world.workload_at(&endpoint.address).is_some_and(|workload| workload.is_gateway());
        !gateway && world.networks().ways(network).is_some() && inhabited.iter().any(|other| other != network)
    };
    listed(world).filter(behind).collect()
}

fn takes_mutual_tls(world: &World, service: &Service, endpoint: &Endpoint) -> bool {
    let mut ports = service.ports.iter().filter_map(|port| service.endpoint_port(port, endpoint));
    let takes = |port: u16| {
        world.peer_mode(&endpoint.namespace, &endpoint.labels, Some(port)) != EffectivePeerMode::Disable
    };
    endpoint.mutual_tls && ports.any(takes)
}

/// How many endpoints somebody does not reach: gateways pass on mutual TLS alone, or none of them is known (yet).
pub(super) fn without_a_way(world: &World) -> usize {
    let lost = |(service, endpoint, network): &(&Service, &Endpoint, &str)| {
        world.networks().gateways(network).is_empty() || !takes_mutual_tls(world, service, endpoint)
    };
    behind(world).into_iter().filter(lost).count()
}

/// Services with endpoints behind gateways that pass on mutual TLS alone, and that do not take it: their addresses, by network.
fn in_plain_text(world: &World) -> Vec<(&Service, BTreeMap<&str, Vec<String>>)> {
    let mut found: Vec<(&Service, BTreeMap<&str, Vec<String>>)> = Vec::new();
    for (service, endpoint, network) in behind(world) {
        if takes_mutual_tls(world, service, endpoint) {
            continue;
        }
        if found.last().is_none_or(|(last, _)| !std::ptr::eq(*last, service)) {
            found.push((service, BTreeMap::new()));
        }
        if let Some((_, networks)) = found.last_mut() {
            networks.entry(network).or_default().push(endpoint.address.clone());
        }
    }
    found
}

/// Gateways that are written down, and without an address.
fn not_found(world: &World, found: &mut Vec<Message>) {
    for service in world.kubernetes_services() {
        let Some(network) = service.meta.labels.get(NETWORK_LABEL) else { continue };
        let ports = service.spec.ports.iter().map(|port| port.port);
        let port = gateway_port(&service.meta.labels);
        let unassigned = service.spec.ingress.is_empty() && service.spec.external_ips.is_empty();
        if let Some((selector, at)) = by_nodes(service, port).filter(|_| unassigned) {
            if world.networks().gateways(network).iter().all(|gateway| gateway.port != at) {
                let labels = selector.iter().map(|(key, value)| format!("{key}={value}"));
                let of = if selector.is_empty() { String::new() } else { format!(" with {}", few(labels)) };
                let why = format!(
                    "it is to be the gateway of the network {network} at its nodes, and no node{of} has an address of type ExternalIP: other networks do not find it"
                );
                let help = format!("give nodes such addresses, or name others in {NODE_SELECTOR}");
                found.push(Message::of(Code::NetworkGatewayNotFound, &service.meta, "", why, help));
            }
        } else if unassigned {
            let why = format!(
                "it is to be the gateway of the network {network}, and has no address outside of its cluster: other networks do not find it"
            );
            let help = "make it of type LoadBalancer and see why it gets no address, or give externalIPs";
            found.push(Message::of(Code::NetworkGatewayNotFound, &service.meta, "", why, help));
        } else if !service.spec.ports.is_empty() && !ports.clone().any(|number| number == port) {
            let why = format!(
                "other networks come to port {port} of the network {network}'s gateway, which this Service has not"
            );
            let help = format!(
                "add the port, or say by {GATEWAY_PORT_LABEL} which of {} it is",
                few(ports.map(|p| p.to_string()))
            );
            found.push(Message::of(Code::NetworkGatewayNotFound, &service.meta, "spec.ports", why, help));
        }
    }
    let Some(settings) = world.mesh_networks() else { return };
    let here = |network: &crate::model::networks::MeshNetwork| {
        network.endpoints.iter().any(|entry| entry.from_registry == Place::here().cluster)
    };
    for (name, network) in settings.spec.networks.iter().filter(|(_, network)| here(network)) {
        for (index, gateway) in network.gateways.iter().enumerate() {
            let host = &gateway.registry_service_name;
            if host.is_empty() || world.services_with_host(host).next().is_some() {
                continue;
            }
            let path = format!("networks.{name}.gateways[{index}].registryServiceName");
            let why = format!("there is no Service {host}: other networks find no gateway of {name} by it");
            let help = "correct the name, or write the Service";
            found.push(Message::of(Code::NetworkGatewayNotFound, &settings.meta, path, why, help));
        }
    }
}
