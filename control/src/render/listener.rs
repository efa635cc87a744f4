//! A sidecar's listeners. Traffic that is not captured comes to explicit ones: inbound ports on the workload's address, the
//! HTTP proxy port, and the egress ports that a Sidecar resource names.

use serde_json::{Value, json};

use super::cluster::{Inbound, inbound_ports};
use super::filters::{Routes, Way, http_connection_manager, tcp_chain};
use super::memo::Output;
use super::{ProxyNode, layer4, route, seconds, tls};
use crate::model::{EffectivePeerMode, Protocol, World};

fn address(bind: &str, port: u16) -> Value {
    json!({"socket_address": {"address": bind, "port_value": port}})
}

fn inspector(name: &str) -> Value {
    json!({"name": format!("envoy.filters.listener.{name}"), "typed_config": {"@type": match name {
        "tls_inspector" => "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        _ => "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    }}})
}

pub(super) fn sidecar(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let inputs = (world.shape_version(), node.inputs(world));
    for inbound in inbound_ports(world, node) {
        let name = format!("{}_{}", inbound.bind, inbound.port);
        out.put(&name, inputs, || inbound_listener(world, node, &inbound, &name));
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

/// The chains of an inbound port by its peer mode and protocol (istiod's matrix).
fn inbound_listener(world: &World, node: &ProxyNode, inbound: &Inbound, name: &str) -> Value {
    let mode = world.peer_mode(&node.namespace, node.selected_by(world), Some(inbound.port));
    let http = || {
        http_connection_manager(
            world,
            node,
            Way::Inbound,
            &format!("inbound_{name};"),
            Routes::Inline(route::inbound(inbound)),
        )
    };
    let filters = |is_http: bool| match is_http {
        true => vec![http()],
        false => tcp_chain(world, node, Way::Inbound, &inbound.cluster().into()),
    };
    let secured = |matches: Value, is_http: bool| json!({"filter_chain_match": matches, "filters": filters(is_http), "transport_socket": tls::inbound(world, is_http)});
    let plain =
        |matches: Value, is_http: bool| json!({"filter_chain_match": matches, "filters": filters(is_http)});
    let istio_http = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
    let is_http = inbound.protocol.is_http();
    let auto = inbound.protocol.is_auto();
    let mut inspect_http = false;
    let own = inbound.tls.as_ref().filter(|_| mode == EffectivePeerMode::Disable);
    let chains = match (mode, auto) {
        // The Sidecar's own TLS holds where the mesh's is off.
        _ if own.is_some() => vec![json!({
            "filter_chain_match": {"transport_protocol": "tls"},
            "filters": filters(is_http),
            "transport_socket": own.map(tls::server),
        })],
        (EffectivePeerMode::Strict, true) => vec![
            secured(json!({"transport_protocol": "tls", "application_protocols": istio_http}), true),
            secured(json!({"transport_protocol": "tls"}), false),
        ],
        (EffectivePeerMode::Strict, false) => vec![secured(json!({"transport_protocol": "tls"}), is_http)],
        (EffectivePeerMode::Disable, true) => {
            inspect_http = true;
            vec![
                plain(
                    json!({"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]}),
                    true,
                ),
                // Not for any transport: Envoy would keep to the more specific chains, and find none for what is not HTTP.
                plain(json!({"transport_protocol": "raw_buffer"}), false),
            ]
        }
        (EffectivePeerMode::Disable, false) => {
            vec![plain(json!({"transport_protocol": "raw_buffer"}), is_http)]
        }
        (EffectivePeerMode::Permissive, true) => {
            inspect_http = true;
            vec![
                secured(json!({"transport_protocol": "tls", "application_protocols": istio_http}), true),
                plain(
                    json!({"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]}),
                    true,
                ),
                secured(
                    json!({"transport_protocol": "tls", "application_protocols": ["istio-peer-exchange", "istio"]}),
                    false,
                ),
                plain(json!({"transport_protocol": "raw_buffer"}), false),
                plain(json!({"transport_protocol": "tls"}), false),
            ]
        }
        (EffectivePeerMode::Permissive, false) => {
            let mut istio = vec!["istio", "istio-peer-exchange"];
            istio.extend(istio_http);
            let mut chains = vec![
                secured(json!({"transport_protocol": "tls", "application_protocols": istio}), is_http),
                plain(json!({"transport_protocol": "raw_buffer"}), is_http),
            ];
            if !is_http {
                chains.push(plain(json!({"transport_protocol": "tls"}), false));
            }
            chains
        }
    };
    let mut inspectors = Vec::new();
    if mode != EffectivePeerMode::Disable || own.is_some() {
        inspectors.push(inspector("tls_inspector"));
    }
    if inspect_http {
        inspectors.push(inspector("http_inspector"));
    }
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
            let chains = services.iter().flat_map(|s| layer4::by_server_name(world, node, s, port.number));
            chains.collect()
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
