//! The listener for everything that is dialled to a captured workload: chains by port for those of its services, and by the same
//! rules for the others, whose connections go where they were going.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::cluster::{INBOUND_PASSTHROUGH, inbound_ports};
use super::super::filters::Way;
use super::super::inbound::{Chains, Target, chains};
use super::super::listener::inspector;
use super::super::{Interception, ProxyNode, rate_limit, route, seconds};
use super::{MARK, at, black_hole};
use crate::model::{EffectivePeerMode, Protocol, World};

/// Ports for which an inspector has nothing to do, so that it does not wait for first bytes that a server would say.
#[derive(Default)]
struct Needless {
    tls: BTreeSet<u16>,
    http: BTreeSet<u16>,
}

pub(super) fn listener(world: &World, node: &ProxyNode) -> Value {
    let port = world.mesh().proxy_inbound_listen_port;
    let labels = node.selected_by(world);
    let mode = |port| world.peer_mode(&node.namespace, labels, port);
    let mut all = vec![black_hole(world, node, "virtualInbound", Way::Inbound, port)];
    let mut needless = Needless::default();
    // For one port, or with none for all that have no chains of their own.
    let mut add = |all: &mut Vec<Value>,
                   target: &Target<'_>,
                   mode: EffectivePeerMode,
                   port: Option<u16>,
                   name: &str| {
        let Chains { chains, inspect_tls, inspect_http } = chains(world, node, target, mode);
        if let Some(port) = port {
            needless.tls.extend((!inspect_tls).then_some(port));
            needless.http.extend((!inspect_http).then_some(port));
        }
        for mut chain in chains {
            let http = chain["filters"].as_array().is_some_and(|filters| {
                filters.iter().any(|f| f["name"] == "envoy.filters.network.http_connection_manager")
            });
            chain["name"] = match (port, http) {
                (None, true) => format!("{name}-catchall-http"),
                _ => name.to_owned(),
            }
            .into();
            if let Some(port) = port {
                chain["filter_chain_match"]["destination_port"] = port.into();
            }
            all.push(chain);
        }
    };
    let passthrough = Target {
        cluster: INBOUND_PASSTHROUGH.to_owned(),
        prefix: format!("{INBOUND_PASSTHROUGH};"),
        protocol: Protocol::Auto,
        tls: None,
        route: route::inbound_passthrough(),
        port: None,
    };
    add(&mut all, &passthrough, mode(None), None, "virtualInbound");
    let served: Vec<_> = inbound_ports(world, node).into_iter().filter(|i| !i.uncaptured).collect();
    // A port may have a mode or a limit of its own though no service has it.
    let own = world.peer_ports(&node.namespace, labels).into_iter().chain(rate_limit::ports(world, node));
    for port in own.collect::<BTreeSet<_>>() {
        if !served.iter().any(|inbound| inbound.port == port) {
            let target = Target { port: Some(port), ..passthrough.clone() };
            add(&mut all, &target, mode(Some(port)), Some(port), "virtualInbound");
        }
    }
    for inbound in &served {
        let name = format!("{}_{}", node.wildcards().first().unwrap_or(&"0.0.0.0"), inbound.port);
        add(&mut all, &Target::of(inbound, &name), mode(Some(inbound.port)), Some(inbound.port), &name);
    }
    let mut inspectors = vec![inspector("original_dst")];
    if node.interception == Interception::Transparent {
        let mut source = inspector("original_src");
        source["typed_config"]["mark"] = MARK.into();
        inspectors.push(source);
    }
    inspectors.push(except(inspector("tls_inspector"), &needless.tls));
    inspectors.push(except(inspector("http_inspector"), &needless.http));
    let mut listener = json!({
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "listener_filters": inspectors,
        "listener_filters_timeout": seconds(world.mesh().protocol_detection_timeout.get()),
        "continue_on_listener_filters_timeout": true,
        "filter_chains": all,
    });
    if node.interception == Interception::Transparent {
        listener["transparent"] = true.into();
    }
    at(&mut listener, &node.wildcards(), port);
    listener
}

/// The inspector, but not for connections to these ports.
fn except(mut inspector: Value, ports: &BTreeSet<u16>) -> Value {
    let range = |port: &u16| json!({"destination_port_range": {"start": port, "end": u32::from(*port) + 1}});
    let rules: Vec<_> = ports.iter().map(range).collect();
    match rules.as_slice() {
        [] => {}
        [only] => inspector["filter_disabled"] = only.clone(),
        several => inspector["filter_disabled"] = json!({"or_match": {"rules": several}}),
    }
    inspector
}
