//! Modes of mutual TLS and who they shut out.

use std::collections::BTreeSet;

use super::scene::{Scene, few, names};
use super::{Code, Message};
use crate::model::authorization_policy::AuthorizationAction;
use crate::model::destination_rule::ClientTlsMode;
use crate::model::peer_authentication::PeerMode;
use crate::model::{EffectivePeerMode, Workload};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    shut_out(scene, found);
    conflicts(scene, found);
    port_modes(scene, found);
}

fn is_strict(scene: &Scene<'_>, workload: &Workload, port: Option<u16>) -> bool {
    let mode = scene.world.peer_mode(&workload.meta.namespace, workload.labels(), port);
    mode == EffectivePeerMode::Strict && !workload.is_gateway()
}

/// Callers without a proxy, by what is known of them: calls, and rules that go by addresses alone.
fn shut_out(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for policy in world.peer_authentications() {
        let mut out = BTreeSet::new();
        for edge in scene.edges.iter().filter(|edge| !edge.from.shows_identity()) {
            let meta = &edge.to.meta;
            let (mode, by) = world.peer_policy(&meta.namespace, edge.to.labels(), Some(edge.port));
            let is = by.is_some_and(|by| by.meta.key() == policy.meta.key());
            if is && mode == EffectivePeerMode::Strict && !edge.to.is_gateway() {
                out.insert(format!(
                    "{} ({}/{} has no proxy; {})",
                    edge.words(),
                    edge.from.meta.namespace,
                    edge.from.meta.name,
                    edge.known_by
                ));
            }
        }
        if !out.is_empty() {
            let why = format!("STRICT closes the connections of callers outside the mesh: {}", few(out));
            let help = "give them a proxy, or set PERMISSIVE for the port that they use (selector and portLevelMtls)";
            found.push(Message::of(Code::StrictShutsOut, &policy.meta, "spec.mtls.mode", why, help));
        }
    }
    for policy in scene.policies().filter(|p| p.spec.action == AuthorizationAction::Allow) {
        let selector = policy.spec.selector.as_ref().map(|selector| &selector.labels);
        let strict: Vec<_> = scene
            .selected(&policy.meta.namespace, selector)
            .into_iter()
            .filter(|workload| {
                let ports = scene.ports(workload);
                !ports.is_empty() && ports.iter().all(|(port, _)| is_strict(scene, workload, Some(*port)))
            })
            .collect();
        if strict.is_empty() {
            continue;
        }
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let by_address = rule.from.iter().filter_map(|from| from.source.as_ref()).any(|source| {
                !(source.ip_blocks.is_empty() && source.remote_ip_blocks.is_empty())
                    && source.principals.is_empty()
                    && source.namespaces.is_empty()
                    && source.service_accounts.is_empty()
                    && source.trust_domains.is_empty()
                    && source.request_principals.is_empty()
            });
            if by_address {
                let why = format!(
                    "the rule lets callers in by their addresses, but {} take mutual TLS only: callers outside the mesh do not come so far",
                    names(strict.iter().copied())
                );
                let help = "set PERMISSIVE for the port that they use (selector and portLevelMtls), or go by identities";
                let path = format!("spec.rules[{index}].from");
                found.push(Message::of(Code::StrictShutsOut, &policy.meta, path, why, help));
            }
        }
    }
}

/// DestinationRules whose TLS the server does not take.
fn conflicts(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for rule in scene.world.destination_rules() {
        let Some(tls) = rule.spec.traffic_policy.as_ref().and_then(|policy| policy.tls.as_ref()) else {
            continue;
        };
        let services = scene
            .world
            .services()
            .iter()
            .filter(|s| crate::model::host::covers(&rule.spec.host, &s.hostname));
        let (mut strict, mut plain) = (BTreeSet::new(), BTreeSet::new());
        for service in services {
            for endpoint in &service.endpoints {
                let Some(workload) = scene.world.workload_at(&endpoint.address) else { continue };
                for port in service.ports.iter().filter_map(|port| service.endpoint_port(port, endpoint)) {
                    let meta = &workload.meta;
                    let place = format!("port {port} of {}/{}", meta.namespace, meta.name);
                    match scene.world.peer_mode(&meta.namespace, workload.labels(), Some(port)) {
                        _ if workload.is_gateway() => {}
                        EffectivePeerMode::Strict => drop(strict.insert(place)),
                        EffectivePeerMode::Disable => drop(plain.insert(place)),
                        EffectivePeerMode::Permissive => {}
                    }
                }
            }
        }
        let (places, mode, wanted) = match tls.mode {
            ClientTlsMode::Disable => (strict, "plain text (tls.mode DISABLE)", "STRICT"),
            ClientTlsMode::Simple | ClientTlsMode::Mutual => {
                (strict, "TLS of another kind (tls.mode SIMPLE or MUTUAL)", "STRICT")
            }
            ClientTlsMode::IstioMutual => (plain, "mutual TLS (tls.mode ISTIO_MUTUAL)", "DISABLE"),
        };
        if !places.is_empty() {
            let why = format!(
                "clients send {mode}, and {} is {wanted} by PeerAuthentication: every request fails",
                few(places)
            );
            let help =
                "leave out trafficPolicy.tls: clients then find out by themselves what the server takes";
            found.push(Message::of(Code::TlsConflict, &rule.meta, "spec.trafficPolicy.tls.mode", why, help));
        }
    }
}

/// Modes of ports that change nothing, or that nobody serves.
fn port_modes(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for policy in scene.world.peer_authentications() {
        let Some(selector) = &policy.spec.selector else { continue };
        let selected = scene.selected(&policy.meta.namespace, Some(&selector.labels));
        let served: BTreeSet<u16> =
            selected.iter().flat_map(|w| scene.ports(w)).map(|(port, _)| port).collect();
        for (port, mtls) in &policy.spec.port_level_mtls {
            let path = format!("spec.portLevelMtls.{port}");
            if !served.is_empty() && !served.contains(port) {
                let why = format!("no workload that the policy holds for serves port {port}");
                let ports: Vec<_> = served.iter().map(u16::to_string).collect();
                let help = format!("write a port of the workload, not of its service: {}", ports.join(", "));
                found.push(Message::of(Code::PortNotServed, &policy.meta, path, why, help));
                continue;
            }
            let own = policy.spec.mtls.map(|mtls| mtls.mode).filter(|mode| *mode != PeerMode::Unset);
            if own == Some(mtls.mode) {
                let why = format!("port {port} has the mode that the policy sets for all ports");
                found.push(Message::of(Code::RedundantPortMode, &policy.meta, path, why, "leave it out"));
            }
        }
    }
}
