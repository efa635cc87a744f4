//! Gateways of networks that are Gateways of the Gateway API: those with the label of a network, and with a listener to which other
//! networks come with TLS that is passed on by its server name.

use std::sync::Arc;

use super::doors::Served;
use crate::model::gateway_api::{AddressKind, ApiGateway, GatewayAddress, Listener, TlsTermination};
use crate::model::meta::{Meta, Object};
use crate::model::networks::{NETWORK_LABEL, NetworkGateway, external, gateway_port};
use crate::model::world::Objects;

/// The network whose gateway it is.
fn network(meta: &Meta) -> Option<&String> {
    meta.labels.get(NETWORK_LABEL).filter(|network| !network.is_empty())
}

/// Whether other networks come to this listener.
pub(super) fn passes_by_name(meta: &Meta, listener: &Listener) -> bool {
    let passes = listener.tls.as_ref().is_some_and(|tls| tls.mode == TlsTermination::Passthrough);
    passes && network(meta).is_some() && listener.port == gateway_port(&meta.labels)
}

/// Networks' gateways. Those that we serve are found at the Services before them; others at their addresses.
pub(super) fn gateways(objects: &Objects, served: &[Served<'_>]) -> Vec<(String, NetworkGateway)> {
    let mut found = Vec::new();
    for gateway in &objects.api_gateways {
        let Some(network) = network(&gateway.meta) else { continue };
        let ports: Vec<u16> = gateway
            .spec
            .listeners
            .iter()
            .filter(|listener| passes_by_name(&gateway.meta, listener))
            .map(|listener| listener.port)
            .collect();
        let ours = served.iter().find(|one| std::ptr::eq(one.object, &**gateway));
        for port in ports {
            let all = match ours {
                Some(ours) => before(objects, ours, port),
                None => elsewhere(gateway, port),
            };
            found.extend(all.into_iter().map(|one| (network.clone(), one)));
        }
    }
    found
}

/// Where the Services before a Gateway of ours are found from outside.
fn before(objects: &Objects, gateway: &Served<'_>, port: u16) -> Vec<NetworkGateway> {
    gateway.fronts.iter().flat_map(|service| external(service, port, &objects.nodes)).collect()
}

fn elsewhere(gateway: &Arc<Object<ApiGateway>>, port: u16) -> Vec<NetworkGateway> {
    let spec = &gateway.spec;
    let is_meant =
        |address: &&GatewayAddress| address.kind != AddressKind::NamedAddress && !address.value.is_empty();
    let all = spec.addresses.iter().chain(&spec.found_at).filter(is_meant);
    all.map(|address| NetworkGateway { address: address.value.clone(), port }).collect()
}
