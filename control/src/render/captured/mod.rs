//! A sidecar's listeners where the kernel redirects the workload's traffic (`weft init`, istio-init): one takes in what the
//! application dials, one what is dialled to it, and each hands a connection to what its original destination asks for.

mod inbound;
pub(super) mod outbound;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use super::cluster::outbound_name;
use super::filters::{Way, tcp_chain};
use super::listener::address;
use super::memo::Output;
use super::{Interception, ProxyNode};
use crate::model::World;
use crate::model::sidecar::OutboundMode;

/// A mark by which the kernel's rules know what a sidecar sends in a client's name (Istio's).
const MARK: u32 = 1337;

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let inputs = (world.shape_version(), node.inputs(world));
    out.put("virtualOutbound", inputs, || virtual_outbound(world, node));
    out.put("virtualInbound", inputs, || inbound::listener(world, node));
    outbound::render(world, node, out);
}

/// Puts an address, or one for each version of IP, in a listener.
fn at(listener: &mut Value, binds: &[impl AsRef<str>], port: u16) {
    let mut addresses = binds.iter().map(|bind| address(bind.as_ref(), port));
    if let Some(first) = addresses.next() {
        listener["address"] = first;
    }
    let others: Vec<_> = addresses.map(|address| json!({"address": address})).collect();
    if !others.is_empty() {
        listener["additional_addresses"] = others.into();
    }
}

/// The cluster for connections and requests to places that the mesh does not know; none where they are not let out.
pub(super) fn unknown_cluster(world: &World, node: &ProxyNode) -> Option<String> {
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    let own = sidecar.as_ref().and_then(|s| s.spec.outbound_traffic_policy.as_ref());
    let policy = own.unwrap_or(&world.mesh().outbound_traffic_policy);
    match (policy.mode, &policy.egress_proxy) {
        (OutboundMode::RegistryOnly, _) => None,
        (OutboundMode::AllowAny, None) => Some("PassthroughCluster".to_owned()),
        (OutboundMode::AllowAny, Some(proxy)) => {
            let port = proxy.port.unwrap_or_default().number;
            Some(outbound_name(port, &proxy.subset, &proxy.host))
        }
    }
}

/// The filters for connections to places that the mesh does not know.
fn unknown(world: &World, node: &ProxyNode) -> Vec<Value> {
    let cluster = unknown_cluster(world, node).unwrap_or_else(|| "BlackHoleCluster".to_owned());
    tcp_chain(world, node, Way::Outbound, &cluster.into())
}

/// A connection to the captured port itself would be handed round in circles.
fn black_hole(world: &World, node: &ProxyNode, name: &str, way: Way, port: u16) -> Value {
    json!({
        "name": format!("{name}-blackhole"),
        "filter_chain_match": {"destination_port": port},
        "filters": tcp_chain(world, node, way, &"BlackHoleCluster".into()),
    })
}

fn virtual_outbound(world: &World, node: &ProxyNode) -> Value {
    let port = world.mesh().proxy_listen_port;
    let mut listener = json!({
        "name": "virtualOutbound",
        "use_original_dst": true,
        "traffic_direction": "OUTBOUND",
        "filter_chains": [
            black_hole(world, node, "virtualOutbound", Way::Outbound, port),
            {"name": "virtualOutbound-catchall-tcp", "filters": unknown(world, node)},
        ],
    });
    if node.interception == Interception::Transparent {
        listener["transparent"] = true.into();
    }
    at(&mut listener, &node.wildcards(), port);
    listener
}
