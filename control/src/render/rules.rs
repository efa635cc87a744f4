//! Which VirtualServices a sidecar follows: those for the mesh that its namespace sees, as far as its Sidecar imports them.

use std::sync::Arc;

use super::ProxyNode;
use crate::model::lookup::MESH_GATEWAY;
use crate::model::{Object, Service, VirtualService, World, host};

/// Where Istio has hosts that no registry knows, unless their VirtualService speaks for a service too.
const PORT_OF_UNKNOWN: u16 = 80;

/// The VirtualServices that a sidecar follows, in Istio's order. A Sidecar imports those of which a host is among its egress
/// hosts, by the VirtualService's own namespace.
pub(super) fn imported<'a>(world: &'a World, node: &ProxyNode) -> Vec<&'a Arc<Object<VirtualService>>> {
    let mut all = world.virtual_services_for(&node.namespace, MESH_GATEWAY);
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    if let Some(sidecar) = sidecar.filter(|sidecar| !sidecar.spec.egress.is_empty()) {
        let egress = &sidecar.spec.egress;
        all.retain(|rules| {
            let own = &rules.meta.namespace;
            let imports = |host: &String| egress.iter().any(|e| e.imports(&node.namespace, own, host));
            rules.spec.hosts.iter().any(imports)
        });
    }
    all
}

/// The one of them that speaks for a host: the most specific host wins, among equals the first.
pub(super) fn of_host<'a>(
    imported: &[&'a Arc<Object<VirtualService>>],
    hostname: &str,
) -> Option<&'a Arc<Object<VirtualService>>> {
    let hosts = imported.iter().flat_map(|rules| rules.spec.hosts.iter().map(|host| (host.as_str(), *rules)));
    host::most_specific(hostname, hosts).map(|(_, rules)| rules)
}

/// Hosts of these VirtualServices that none of the services has, as far as Istio serves them at a port: at those of the
/// services for which the same VirtualService speaks, else at port 80.
pub(super) fn of_unknown<'a>(
    imported: &[&'a Arc<Object<VirtualService>>],
    services: &[&Arc<Service>],
    port: u16,
) -> Vec<(&'a str, &'a Arc<Object<VirtualService>>)> {
    let mut found = Vec::new();
    for rules in imported {
        let (mut unknown, mut spoken_for, mut at_port) = (Vec::new(), false, false);
        for host in &rules.spec.hosts {
            let mut known =
                services.iter().filter(|service| host::covers(host, &service.hostname)).peekable();
            match known.peek() {
                None => unknown.push(host.as_str()),
                Some(_) => spoken_for = true,
            }
            at_port |= known.any(|service| service.port(port).is_some());
        }
        if at_port || !spoken_for && port == PORT_OF_UNKNOWN {
            found.extend(unknown.into_iter().map(|host| (host, *rules)));
        }
    }
    found
}
