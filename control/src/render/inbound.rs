//! The filter chains of an inbound port by its peer mode and protocol (istiod's matrix), whether the port has a listener of its
//! own or is one of many behind the captured one.

use serde_json::{Value, json};

use super::cluster::Inbound;
use super::filters::{Routes, Way, http_connection_manager, tcp_chain};
use super::{ProxyNode, rate_limit, route, tls};
use crate::model::gateway::ServerTls;
use crate::model::{EffectivePeerMode, Protocol, World};

/// What the chains lead to.
#[derive(Clone)]
pub(super) struct Target<'a> {
    /// The cluster of the application.
    pub(super) cluster: String,
    /// What counts HTTP.
    pub(super) prefix: String,
    /// What is spoken.
    pub(super) protocol: Protocol,
    /// How TLS ends where mutual TLS of the mesh is off.
    pub(super) tls: Option<&'a ServerTls>,
    /// The one route.
    pub(super) route: Value,
    /// The port, if it is one.
    pub(super) port: Option<u16>,
}

impl<'a> Target<'a> {
    /// A port that the node serves, counted under `name`.
    pub(super) fn of(inbound: &'a Inbound, name: &str) -> Self {
        Self {
            cluster: inbound.cluster(),
            prefix: format!("inbound_{name};"),
            protocol: inbound.protocol,
            tls: inbound.tls.as_ref(),
            route: route::inbound(inbound),
            port: Some(inbound.port),
        }
    }
}

/// Chains, and what has to look at a connection's first bytes to choose among them.
pub(super) struct Chains {
    /// The chains, the more specific first.
    pub(super) chains: Vec<Value>,
    /// Whether it is TLS.
    pub(super) inspect_tls: bool,
    /// Whether it is HTTP.
    pub(super) inspect_http: bool,
}

const ISTIO_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What the inspector calls HTTP in plain text.
pub(super) const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// The chains to a target of this peer mode.
pub(super) fn chains(
    world: &World,
    node: &ProxyNode,
    target: &Target<'_>,
    mode: EffectivePeerMode,
) -> Chains {
    let filters = |is_http: bool| -> Vec<Value> {
        let last = match is_http {
            true => {
                let routes = Routes::Inline(target.route.clone());
                vec![http_connection_manager(world, node, Way::Inbound, &target.prefix, routes)]
            }
            false => tcp_chain(world, node, Way::Inbound, &target.cluster.as_str().into()),
        };
        rate_limit::of_connections(world, node, target.port, &[]).chain(last).collect()
    };
    let secured = |matches: Value, is_http: bool| json!({"filter_chain_match": matches, "filters": filters(is_http), "transport_socket": tls::inbound(world, is_http)});
    let plain =
        |matches: Value, is_http: bool| json!({"filter_chain_match": matches, "filters": filters(is_http)});
    let is_http = target.protocol.is_http();
    let own = target.tls.filter(|_| mode == EffectivePeerMode::Disable);
    let mut inspect_http = false;
    let chains = match (mode, target.protocol.is_auto()) {
        // The Sidecar's own TLS holds where the mesh's is off.
        _ if own.is_some() => vec![json!({
            "filter_chain_match": {"transport_protocol": "tls"},
            "filters": filters(is_http),
            "transport_socket": own.map(tls::server),
        })],
        (EffectivePeerMode::Strict, true) => vec![
            secured(json!({"transport_protocol": "tls", "application_protocols": ISTIO_HTTP}), true),
            secured(json!({"transport_protocol": "tls"}), false),
        ],
        (EffectivePeerMode::Strict, false) => vec![secured(json!({"transport_protocol": "tls"}), is_http)],
        (EffectivePeerMode::Disable, true) => {
            inspect_http = true;
            vec![
                plain(json!({"transport_protocol": "raw_buffer", "application_protocols": PLAIN_HTTP}), true),
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
                secured(json!({"transport_protocol": "tls", "application_protocols": ISTIO_HTTP}), true),
                plain(json!({"transport_protocol": "raw_buffer", "application_protocols": PLAIN_HTTP}), true),
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
            istio.extend(ISTIO_HTTP);
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
    Chains { chains, inspect_tls: mode != EffectivePeerMode::Disable || own.is_some(), inspect_http }
}
