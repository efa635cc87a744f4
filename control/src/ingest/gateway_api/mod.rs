//! The Gateway API: its Gateways and routes become Gateways and VirtualServices, so that everything behind knows one language.
//!
//! A listener becomes a Gateway of its own (`doors`), each host of a listener a VirtualService that has the rules of all routes
//! that attach there (`attach`), each match a rule (`rules`), in the specification's order (`order`). A route whose parent is a
//! Service becomes a VirtualService of the mesh. What references lead to is looked up in `known`. `standing` has what is to be
//! said of each object: the conditions of its status, and findings. Policies that name a Gateway or a
//! Service as their target become policies for its workloads (`targets`).

mod assemble;
mod attach;
mod doors;
mod features;
mod infrastructure;
mod known;
mod networks;
mod order;
mod paths;
mod plan;
mod refused;
mod rules;
mod standing;
mod targets;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::HashMap;
use std::sync::Arc;

pub(in crate::ingest) use doors::service_of;
pub use features::FEATURES;
pub use infrastructure::INJECT;
pub(in crate::ingest) use plan::plan;
pub use plan::{Because, Hindered, Plan, Spare};
pub(in crate::ingest) use refused::{Refused, is_ours};
pub use standing::{Address, Condition, ListenerStanding, ParentStanding, Standing, Standings};
pub use wanted::{MANAGED, STATUS_PORT, Wanted};

use super::diagnostic::{Diagnostic, Severity};
use crate::model::gateway_api::{ApiGateway, CONTROLLER};
use crate::model::meta::{Meta, Object, ObjectKey};
use crate::model::networks::REMOTE_CLASS;
use crate::model::world::Objects;
use attach::{Attached, Route};
use doors::{Door, Served};
use known::Known;
use targets::Targeted as _;

/// Adds to `objects` the Gateways and VirtualServices that follow from the Gateway API's; and says how those stand.
pub(super) fn convert(objects: &mut Objects, diagnostics: &mut Vec<Diagnostic>) -> Standings {
    let mut standings = Standings::new();
    let nothing = objects.gateway_classes.is_empty()
        && objects.api_gateways.is_empty()
        && objects.http_routes.is_empty()
        && objects.grpc_routes.is_empty()
        && objects.tls_routes.is_empty();
    let targeted = objects.authorization_policies.iter().any(|p| !p.spec.targets().is_empty())
        || objects.request_authentications.iter().any(|p| !p.spec.targets().is_empty())
        || objects.telemetries.iter().any(|t| !t.spec.targets().is_empty());
    if nothing && !targeted {
        return standings;
    }
    let (made, policies, authentications, telemetries, networks) = {
        let known = Known::new(objects);
        let (mut served, mut doors) = (Vec::new(), Vec::new());
        for gateway in ours(objects, &mut standings, diagnostics) {
            let (gateway, mut its) = doors::open(&known, objects, gateway, served.len());
            served.push(gateway);
            doors.append(&mut its);
        }
        doors::contradictions(&served, &mut doors);
        let mut attached = Attached::default();
        for route in Route::all(objects) {
            strays(objects, route, diagnostics);
            let parents = attach::attach(&known, &served, &mut doors, route, &mut attached);
            for parent in &parents {
                let conditions = parent.conditions.iter();
                report(route.meta(), &format!("as to {}: ", parent.parent.name), conditions, diagnostics);
            }
            standings.insert(route.meta().key(), Standing::Route(parents));
        }
        for (index, gateway) in served.iter().enumerate() {
            let its: Vec<_> = doors.iter().filter(|door| door.of == index).collect();
            standings.insert(gateway.object.meta.key(), stands(gateway, &its, diagnostics));
        }
        let mesh = objects.mesh.as_ref().map(|mesh| &mesh.spec);
        let made = assemble::assemble(&known, mesh, &served, &doors, &attached);
        let policies = targets::resolve(&known, &served, &objects.authorization_policies, diagnostics);
        let authentications =
            targets::resolve(&known, &served, &objects.request_authentications, diagnostics);
        let telemetries = targets::resolve(&known, &served, &objects.telemetries, diagnostics);
        let networks = networks::gateways(objects, &served);
        (made, policies, authentications, telemetries, networks)
    };
    objects.network_gateways = networks;
    objects.authorization_policies = policies;
    objects.request_authentications = authentications;
    objects.telemetries = telemetries;
    objects.gateways.extend(made.gateways);
    objects.virtual_services.extend(made.virtual_services);
    standings
}

/// The Gateways whose class is ours, the oldest first.
fn ours<'a>(
    objects: &'a Objects,
    standings: &mut Standings,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<&'a Object<ApiGateway>> {
    let mut classes: HashMap<&str, bool> = HashMap::new();
    for class in &objects.gateway_classes {
        let is_ours = class.spec.controller_name == CONTROLLER;
        classes.insert(&class.meta.name, is_ours);
        if is_ours {
            let accepted = vec![Condition::holds("Accepted", "Accepted")];
            standings.insert(class.meta.key(), Standing::Class(accepted));
        }
    }
    let mut found: Vec<&Arc<Object<ApiGateway>>> = Vec::new();
    for gateway in &objects.api_gateways {
        match classes.get(gateway.spec.gateway_class_name.as_str()) {
            Some(true) => found.push(gateway),
            // Another controller's.
            Some(false) => {}
            // It says where another network is reached.
            None if gateway.spec.gateway_class_name == REMOTE_CLASS => {}
            None => {
                let reason = format!("there is no GatewayClass {:?}", gateway.spec.gateway_class_name);
                let help = format!("nobody serves it; add the class, with controllerName {CONTROLLER}");
                let path = Some("spec.gatewayClassName".to_owned());
                diagnostics.push(Diagnostic { path, ..warning(&gateway.meta, reason, &help) });
            }
        }
    }
    found.sort_by(|a, b| a.meta.precedence(&b.meta));
    found.into_iter().map(|gateway| &**gateway).collect()
}

/// A parent that is not there is most often a slip of the pen. No controller can say so in the route's status.
fn strays(objects: &Objects, route: Route<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let own = &route.meta().namespace;
    for (index, parent) in route.parents().iter().enumerate().filter(|(_, parent)| parent.is_gateway()) {
        let namespace = parent.namespace.as_ref().filter(|namespace| !namespace.is_empty()).unwrap_or(own);
        let is_it = |meta: &Meta| meta.namespace == *namespace && meta.name == parent.name;
        if !objects.api_gateways.iter().any(|gateway| is_it(&gateway.meta)) {
            let reason = format!("there is no Gateway {namespace}/{}", parent.name);
            let path = Some(format!("spec.parentRefs[{index}]"));
            let help = "the route has no effect there; correct the name, or add the Gateway";
            diagnostics.push(Diagnostic { path, ..warning(route.meta(), reason, help) });
        }
    }
}

/// How a Gateway stands.
fn stands(gateway: &Served<'_>, doors: &[&Door<'_>], diagnostics: &mut Vec<Diagnostic>) -> Standing {
    let meta = &gateway.object.meta;
    let opened = doors.iter().filter(|door| door.opens()).count();
    let invalid = "no listener can be opened: see their conditions";
    let accepted = match opened {
        0 => Condition::fails("Accepted", "ListenersNotValid", invalid),
        n if n < doors.len() => Condition {
            message: "some listeners are not opened: see their conditions".to_owned(),
            ..Condition::holds("Accepted", "ListenersNotValid")
        },
        _ => Condition::holds("Accepted", "Accepted"),
    };
    let accepted = accepted.with(&wanted::without(gateway.object));
    let there = gateway.place.is_ok() && !gateway.workloads.is_empty();
    let programmed = match &gateway.place {
        Err((reason, message)) => Condition::fails("Programmed", reason, message.as_str()),
        Ok(_) if opened == 0 => Condition::fails("Programmed", "Invalid", invalid),
        Ok(place) if !there => {
            let labels: Vec<_> = place.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let message = format!(
                "no workload of namespace {} has the labels {}: nobody serves the Gateway",
                place.namespace,
                labels.join(", ")
            );
            Condition::fails("Programmed", "NoResources", message)
        }
        Ok(_) if gateway.awaits_address => {
            let message = "no load balancer has given the Service of the Gateway an address yet";
            Condition::fails("Programmed", "AddressNotAssigned", message)
        }
        Ok(_) => Condition::holds("Programmed", "Programmed"),
    };
    if let Err((_, message)) = &gateway.place {
        let help = "name a Service in front of the gateway workloads";
        let path = Some("spec.addresses".to_owned());
        diagnostics.push(Diagnostic { path, ..warning(meta, message.clone(), help) });
    }
    for (path, reason, help) in wanted::doubts(gateway.object) {
        diagnostics.push(Diagnostic { path: Some(path), ..warning(meta, reason, &help) });
    }
    let listeners = doors
        .iter()
        .map(|door| {
            let conditions = door.conditions(there);
            let wrong = conditions.iter().filter(|one| matches!(one.kind, "Accepted" | "ResolvedRefs"));
            report(meta, &format!("listener {}: ", door.listener.name), wrong, diagnostics);
            ListenerStanding {
                name: door.listener.name.clone(),
                kinds: door.kinds.iter().map(|kind| kind.as_str()).collect(),
                attached: door.attached.len(),
                conditions,
            }
        })
        .collect();
    Standing::Gateway {
        conditions: vec![accepted, programmed],
        listeners,
        addresses: gateway.addresses.clone(),
    }
}

/// What does not hold is worth a warning.
fn report<'c>(
    meta: &Meta,
    of: &str,
    conditions: impl Iterator<Item = &'c Condition>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for condition in conditions.filter(|condition| !condition.holds) {
        let help = match condition.kind {
            "ResolvedRefs" => "what goes there fails until it is mended",
            _ => "it has no effect there",
        };
        let reason = format!("{of}{} ({})", condition.message, condition.reason);
        diagnostics.push(warning(meta, reason, help));
    }
}

fn warning(meta: &Meta, reason: String, help: &str) -> Diagnostic {
    Diagnostic {
        file: meta.source.file.to_string(),
        line: meta.source.line,
        severity: Severity::Warning,
        object: Some(meta.key().to_string()),
        path: None,
        reason,
        help: Some(help.to_owned()),
    }
}

/// What a finding says, for a condition.
pub(super) fn said(finding: &Diagnostic) -> String {
    let path = finding.path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default();
    let help = finding.help.as_deref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{path}{}{help}", finding.reason)
}

/// The object's name for its standing, whatever its namespace is called where it has none.
pub(super) fn key(kind: crate::model::Kind, namespace: &str, name: &str) -> ObjectKey {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}
