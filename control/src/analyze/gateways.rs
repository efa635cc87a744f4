//! Gateways and what is bound to them: names, hosts, ports and certificates that do not fit together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::gateway::{Gateway, Server};
use crate::model::lookup::MESH_GATEWAY;
use crate::model::values::selects;
use crate::model::{Object, VirtualService, Workload, World, host, served_hosts};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for rules in world.virtual_services() {
        bound(world, rules, found);
    }
    for (index, gateway) in world.gateways().iter().enumerate() {
        let at: Vec<_> = workloads(world, gateway).collect();
        for (place, server) in gateway.spec.servers.iter().enumerate() {
            let path = format!("spec.servers[{place}]");
            port(world, gateway, server, &at, &path, found);
            credentials(world, gateway, server, &path, found);
            for earlier in world.gateways().iter().take(index) {
                conflict(gateway, server, earlier, &path, found);
            }
        }
    }
}

fn workloads<'w>(
    world: &'w World,
    gateway: &'w Object<Gateway>,
) -> impl Iterator<Item = &'w Arc<Workload>> + 'w {
    world.workloads().iter().filter(|w| w.is_gateway() && selects(&gateway.spec.selector, w.labels()))
}

fn bound(world: &World, rules: &Object<VirtualService>, found: &mut Vec<Message>) {
    let mut held = BTreeSet::new();
    for (index, name) in rules.spec.gateways.iter().enumerate().filter(|(_, name)| *name != MESH_GATEWAY) {
        let path = format!("spec.gateways[{index}]");
        let Some(gateway) = world.gateways().iter().find(|gateway| gateway.full_name() == *name) else {
            let short = name.rsplit_once('/').map_or(name.as_str(), |(_, short)| short);
            let others = world.gateways().iter().filter(|gateway| gateway.meta.name == short);
            let others = few(others.map(|gateway| gateway.full_name()));
            let help = match others.is_empty() {
                true => "correct the name, or write the Gateway".to_owned(),
                false => format!("there is {others}; without a namespace the VirtualService's own is meant"),
            };
            let why = format!("there is no Gateway {name}: the rules hold for nothing that comes there");
            found.push(Message::of(Code::GatewayUnknown, &rules.meta, path, why, help));
            continue;
        };
        let served = taken_in(gateway, rules);
        if served.is_empty() {
            let why = format!("{name} takes in none of these hosts: {}", few(rules.spec.hosts.clone()));
            let help = format!(
                "{}; add the host there, with this namespace if one is named",
                offered(&gateway.spec)
            );
            found.push(Message::of(Code::HostNotOnGateway, &rules.meta, path, why, help));
        }
        held.extend(served);
    }
    // Hosts that are for the mesh may stand beside those that are for a gateway.
    if rules.spec.binds(MESH_GATEWAY) || held.is_empty() {
        return;
    }
    for (index, host) in rules.spec.hosts.iter().enumerate() {
        if !held.iter().any(|held| host::covers(host, held)) {
            let why = format!("no Gateway of these takes {host} in: requests for it are answered with 404");
            let help = "add it to the hosts of a Gateway's server, or take it out of here";
            let path = format!("spec.hosts[{index}]");
            found.push(Message::of(Code::HostNotOnGateway, &rules.meta, path, why, help));
        }
    }
}

fn offered(gateway: &Gateway) -> String {
    format!("its servers have {}", few(gateway.servers.iter().flat_map(|server| server.hosts.clone())))
}

/// The rules' hosts that a Gateway takes in.
fn taken_in(gateway: &Object<Gateway>, rules: &Object<VirtualService>) -> BTreeSet<String> {
    let servers = gateway.spec.servers.iter();
    servers.flat_map(|server| served_hosts(server, &gateway.meta.namespace, rules)).collect()
}

/// What comes to a gateway comes by the Service before it.
fn port(
    world: &World,
    gateway: &Object<Gateway>,
    server: &Server,
    at: &[&Arc<Workload>],
    path: &str,
    found: &mut Vec<Message>,
) {
    let number = server.port.number;
    let mut ports = BTreeSet::new();
    for workload in at {
        for (service, endpoint) in world.served_at(workload.address()) {
            for port in &service.ports {
                ports.insert(port.number);
                ports.extend(service.endpoint_port(port, endpoint));
            }
        }
    }
    if !ports.is_empty() && !ports.contains(&number) {
        let why = format!("the Service of these gateways has no port {number}: nobody comes there");
        let help = format!("add it to the Service, or use one of {}", few(ports.iter().map(u16::to_string)));
        let path = format!("{path}.port.number");
        found.push(Message::of(Code::GatewayPortNotServed, &gateway.meta, path, why, help));
    }
}

/// Secrets are read in the namespace of the gateway's workloads.
fn credentials(
    world: &World,
    gateway: &Object<Gateway>,
    server: &Server,
    path: &str,
    found: &mut Vec<Message>,
) {
    for missing in world.missing_secrets(&gateway.spec, server) {
        let (name, namespace) = (missing.name, missing.namespace);
        let elsewhere = few(missing.elsewhere.iter().map(ToString::to_string));
        let why = format!("there is no Secret {namespace}/{name}: the port refuses every handshake");
        let help = match elsewhere.is_empty() {
            true => format!("create it as a Secret of type kubernetes.io/tls in {namespace}"),
            false => format!("it is in {elsewhere}; it is read in the namespace of the gateway's workloads"),
        };
        let path = format!("{path}.tls.credentialName");
        found.push(Message::of(Code::CredentialMissing, &gateway.meta, path, why, help));
    }
}

fn conflict(
    gateway: &Object<Gateway>,
    server: &Server,
    earlier: &Object<Gateway>,
    path: &str,
    found: &mut Vec<Message>,
) {
    if earlier.spec.selector != gateway.spec.selector {
        return;
    }
    for other in earlier.spec.servers.iter().filter(|s| s.port.number == server.port.number) {
        let shared: Vec<_> = server.hosts.iter().filter(|host| other.hosts.contains(host)).cloned().collect();
        if other.bind != server.bind || shared.is_empty() {
            continue;
        }
        let why = format!(
            "{} ({}) opens port {} for {} as well, at the same workloads: of two settings for TLS one holds",
            earlier.meta.key(),
            earlier.meta.source,
            server.port.number,
            few(shared)
        );
        let help =
            "have one Gateway for a port and host; VirtualServices of any namespace can be bound to it";
        found.push(Message::of(Code::GatewaysConflict, &gateway.meta, path, why, help));
    }
}
