//! MeshNetworks.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::diagnostic::Findings;
use super::{host_form, port};
use crate::model::networks::{MeshNetwork, MeshNetworks};

pub(in super::super) fn mesh_networks(spec: &MeshNetworks, findings: &mut Findings) {
    let mut ranges: HashMap<IpNet, &str> = HashMap::new();
    let mut registries: HashMap<&str, &str> = HashMap::new();
    for (name, network) in &spec.networks {
        let path = format!("networks.{name}");
        if name.is_empty() {
            findings.error(&path, "a network without a name", "name it");
        }
        endpoints(findings, &path, network);
        gateways(findings, &path, network);
        for (index, entry) in network.endpoints.iter().enumerate() {
            let mut again = |field: &str, what: &str, other: &str| {
                let reason = format!("{what} is in the network {other} already");
                findings.error(
                    format!("{path}.endpoints[{index}].{field}"),
                    reason,
                    "take it out of one of them",
                );
            };
            if let Ok(range) = entry.from_cidr.parse::<IpNet>()
                && let Some(other) = ranges.insert(range.trunc(), name)
            {
                again("fromCidr", &entry.from_cidr, other);
            }
            if !entry.from_registry.is_empty()
                && let Some(other) = registries.insert(&entry.from_registry, name)
            {
                again("fromRegistry", &entry.from_registry, other);
            }
        }
    }
}

fn endpoints(findings: &mut Findings, path: &str, network: &MeshNetwork) {
    for (index, entry) in network.endpoints.iter().enumerate() {
        let path = format!("{path}.endpoints[{index}]");
        if entry.from_cidr.is_empty() == entry.from_registry.is_empty() {
            let help = "give a range of addresses (fromCidr), or the name of a cluster (fromRegistry)";
            findings.error(&path, "exactly one of fromCidr and fromRegistry is needed", help);
        }
        if !entry.from_cidr.is_empty() && entry.from_cidr.parse::<IpNet>().is_err() {
            let reason = format!("{:?} is no range of addresses", entry.from_cidr);
            findings.error(format!("{path}.fromCidr"), reason, "write it as 10.0.0.0/8 or fd00::/8");
        }
    }
}

fn gateways(findings: &mut Findings, path: &str, network: &MeshNetwork) {
    let registry = network.endpoints.iter().any(|entry| !entry.from_registry.is_empty());
    for (index, gateway) in network.gateways.iter().enumerate() {
        let path = format!("{path}.gateways[{index}]");
        let service = &gateway.registry_service_name;
        if gateway.address.is_empty() == service.is_empty() {
            let help = "give the gateway's address, or the Service before it (registryServiceName)";
            findings.error(&path, "exactly one of address and registryServiceName is needed", help);
        }
        let is_host = |name: &str| host_form(name, false).is_ok() && !name.contains('*');
        if !gateway.address.is_empty() {
            let fits = match gateway.address.parse::<IpAddr>() {
                Ok(address) => !address.is_unspecified(),
                Err(_) => is_host(&gateway.address),
            };
            if !fits {
                let reason = format!("{:?} is no address", gateway.address);
                findings.error(format!("{path}.address"), reason, "give an IP address or a host name");
            }
        }
        if !service.is_empty() {
            let at = format!("{path}.registryServiceName");
            if !is_host(service) || !service.contains('.') {
                let help = "write it in full, such as istio-eastwestgateway.istio-system.svc.cluster.local";
                findings.error(&at, format!("{service:?} is no host name of a Service"), help);
            }
            if !registry {
                let help = "say whose Service it is: add fromRegistry to the network's endpoints";
                findings.error(&at, "the network has no cluster in which to look for it", help);
            }
        }
        port(findings, &format!("{path}.port"), gateway.port);
        if !gateway.locality.is_empty() {
            let help = "take it out: endpoints behind a gateway keep their own locality";
            findings.warn(format!("{path}.locality"), "has no effect, here as with istiod", help);
        }
    }
}
