//! A sidecar's listeners. Traffic that is not captured comes to explicit ones: inbound ports on the workload's address, the
//! HTTP proxy port, and the egress ports that a Sidecar resource names. Captured traffic: [`super::captured`].

use serde_json::{Value, json};

use super::cluster::{Inbound, inbound_ports};
use super::filters::{Routes, Way, http_connection_manager, tcp_chain};
use super::inbound::{self, Chains, Target};
use super::memo::Output;
use super::{Interception, ProxyNode, captured, layer4, route, seconds};
use crate::model::sidecar::CaptureMode;
use crate::model::{Protocol, World};

pub(super) fn address(bind: &str, port: u16) -> Value {
    json!({"socket_address": {"address": bind, "port_value": port}})
}

pub(super) fn inspector(name: &str) -> Value {
    json!({"name": format!("envoy.filters.listener.{name}"), "typed_config": {"@type": match name {
        "original_dst" => "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        "original_src" => "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
        "tls_inspector" => "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        _ => "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    }}})
}

pub(super) fn sidecar(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let inputs = (world.shape_version(), node.inputs(world));
    let is_captured = node.interception != Interception::None;
    for inbound in inbound_ports(world, node).iter().filter(|i| !is_captured || i.uncaptured) {
        let name = format!("{}_{}", inbound.bind, inbound.port);
        out.put(&name, inputs, || inbound_listener(world, node, inbound, &name));
    }
    if is_captured {
        captured::render(world, node, out);
    }
    if let Some(port) = route::http_proxy_port(world, node) {
        let bind = if node.wildcard() == node.address() { node.address() } else { "127.0.0.1" };
        let name = format!("{bind}_{port}");
        out.put(&name, inputs, || {
            let hcm = http_connection_manager(
                world,
                node,
                Way::Outbound,
                &format!("outbound_{name};"),
                Routes::Rds("http_proxy".to_owned()),
            );
            json!({
                "name": name,
                "address": address(bind, port),
                "traffic_direction": "OUTBOUND",
                "filter_chains": [{"filters": [hcm]}],
            })
        });
    }
    for (name, listener) in egress(world, node) {
        out.put(&name, inputs, || listener);
    }
}

/// A listener of its own for an inbound port.
fn inbound_listener(world: &World, node: &ProxyNode, inbound: &Inbound, name: &str) -> Value {
    let mode = world.peer_mode(&node.namespace, node.selected_by(world), Some(inbound.port));
    let Chains { chains, inspect_tls, inspect_http } =
        inbound::chains(world, node, &Target::of(inbound, name), mode);
    let inspectors: Vec<_> = [(inspect_tls, "tls_inspector"), (inspect_http, "http_inspector")]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .map(|(_, name)| inspector(name))
        .collect();
    json!({
        "name": name,
        "address": address(&inbound.bind, inbound.port),
        "traffic_direction": "INBOUND",
        "listener_filters": inspectors,
        "listener_filters_timeout": seconds(world.mesh().protocol_detection_timeout.get()),
        "continue_on_listener_filters_timeout": true,
        "filter_chains": chains,
    })
}

/// Outbound listeners that a Sidecar's egress names by port.
fn egress(world: &World, node: &ProxyNode) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let Some(sidecar) = world.sidecar_for(&node.namespace, node.selected_by(world)) else { return found };
    for listener in &sidecar.spec.egress {
        let Some(port) = &listener.port else { continue };
        if node.interception != Interception::None && listener.capture_mode != CaptureMode::None {
            continue;
        }
        let bind = match listener.bind.as_str() {
            "" if node.wildcard() == node.address() => node.address(),
            "" => "127.0.0.1",
            given => given,
        };
        let name = format!("{bind}_{}", port.number);
        let protocol = Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp);
        let mut rendered = json!({
            "name": name,
            "address": address(bind, port.number),
            "traffic_direction": "OUTBOUND",
        });
        let services: Vec<_> = world
            .imported_services(&node.namespace, Some(listener))
            .into_iter()
            .filter(|s| s.port(port.number).is_some())
            .collect();
        rendered["filter_chains"] = if protocol.is_http() || port.is_http_proxy() {
            let routes = Routes::Rds(port.number.to_string());
            let prefix = format!("outbound_{name};");
            json!([{"filters": [http_connection_manager(world, node, Way::Outbound, &prefix, routes)]}])
        } else if protocol.is_tls() {
            rendered["listener_filters"] = json!([inspector("tls_inspector")]);
            let services = services.iter().map(|s| (&***s, port.number, None));
            layer4::by_server_names(world, node, services).into()
        } else {
            // Without a look inside there is one destination: that of the first service.
            let to = services.first().map_or_else(
                || "BlackHoleCluster".into(),
                |s| layer4::destination(world, node, s, port.number),
            );
            json!([{"filters": tcp_chain(world, node, Way::Outbound, &to)}])
        };
        found.push((name, rendered));
    }
    found
}
