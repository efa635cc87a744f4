//! Routes and matches that earlier ones leave nothing to do, and VirtualServices that others speak before.

use std::sync::Arc;

use super::scene::Scene;
use super::{Code, Message};
use crate::model::lookup::MESH_GATEWAY;
use crate::model::service::ExportTo;
use crate::model::virtual_service::{HttpMatch, HttpRoute};
use crate::model::{Object, StringMatch, VirtualService};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for rules in scene.world.virtual_services() {
        for index in 0..rules.spec.http.len() {
            shadowed(rules, index, found);
        }
    }
    hosts(scene, found);
}

/// What a route without matches is: everything.
fn matches(route: &HttpRoute) -> Vec<HttpMatch> {
    if route.matches.is_empty() { vec![HttpMatch::default()] } else { route.matches.clone() }
}

fn shadowed(rules: &Object<VirtualService>, index: usize, found: &mut Vec<Message>) {
    let routes = &rules.spec.http;
    let own = matches(&routes[index]);
    let before = |one: &HttpMatch| {
        (0..index).find(|earlier| matches(&routes[*earlier]).iter().any(|other| takes_all(other, one)))
    };
    let taken: Vec<Option<usize>> = own.iter().map(before).collect();
    let named = |at: usize| match routes[at].name.as_str() {
        "" => format!("spec.http[{at}]"),
        name => format!("spec.http[{at}] ({name})"),
    };
    if let Some(first) = taken.iter().copied().collect::<Option<Vec<_>>>() {
        let by = named(first.first().copied().unwrap_or_default());
        let why = format!("{by} comes before it and takes every request that it matches");
        let help = "put the more specific route first";
        let path = format!("spec.http[{index}]");
        found.push(Message::of(Code::RouteNeverReached, &rules.meta, path, why, help));
        return;
    }
    for (at, one) in own.iter().enumerate() {
        let beside = own.iter().take(at).position(|other| takes_all(other, one));
        let by = match (taken.get(at).copied().flatten(), beside) {
            (Some(earlier), _) => named(earlier),
            (None, Some(beside)) => format!("spec.http[{index}].match[{beside}]"),
            (None, None) => continue,
        };
        let why = format!("{by} comes before it and takes every request that it is about");
        let path = format!("spec.http[{index}].match[{at}]");
        found.push(Message::of(Code::MatchNeverReached, &rules.meta, path, why, "take it out"));
    }
}

/// Whether `other` holds for every request that `one` holds for. Says no where it cannot tell.
fn takes_all(other: &HttpMatch, one: &HttpMatch) -> bool {
    let field = |other: &Option<StringMatch>, one: &Option<StringMatch>| match (other, one) {
        (None, _) => true,
        (Some(other), Some(one)) => wider(other, one),
        (Some(_), None) => false,
    };
    let same_case = other.uri.is_none() || other.ignore_uri_case == one.ignore_uri_case;
    let each = |other: &std::collections::BTreeMap<String, StringMatch>,
                one: &std::collections::BTreeMap<String, StringMatch>| {
        other.iter().all(|(name, wanted)| one.get(name).is_some_and(|given| wider(wanted, given)))
    };
    same_case
        && field(&other.uri, &one.uri)
        && field(&other.scheme, &one.scheme)
        && field(&other.method, &one.method)
        && field(&other.authority, &one.authority)
        && each(&other.headers, &one.headers)
        && each(&other.query_params, &one.query_params)
        && other.without_headers.iter().all(|(name, wanted)| one.without_headers.get(name) == Some(wanted))
        && (other.port.is_none() || other.port == one.port)
        && other.source_labels.iter().all(|(key, value)| one.source_labels.get(key) == Some(value))
        && (other.source_namespace.is_empty() || other.source_namespace == one.source_namespace)
        && (other.gateways.is_empty()
            || (!one.gateways.is_empty() && one.gateways.iter().all(|at| other.gateways.contains(at))))
}

fn wider(other: &StringMatch, one: &StringMatch) -> bool {
    match (other, one) {
        (StringMatch::Present, _) => true,
        (StringMatch::Prefix(start), StringMatch::Exact(text) | StringMatch::Prefix(text)) => {
            text.starts_with(start.as_str())
        }
        (other, one) => other == one,
    }
}

/// One host, two VirtualServices in the mesh: the first in order of precedence is heard where both are seen.
fn hosts(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    let default = &world.mesh().default_virtual_service_export_to;
    let export = |rules: &Object<VirtualService>| {
        ExportTo::parse(&rules.spec.export_to, default, &rules.meta.namespace)
    };
    let in_mesh: Vec<&Arc<Object<VirtualService>>> =
        world.virtual_services().iter().filter(|rules| rules.spec.binds(MESH_GATEWAY)).collect();
    for (index, later) in in_mesh.iter().enumerate() {
        let place = export(later);
        for (at, host) in later.spec.hosts.iter().enumerate() {
            let first = in_mesh.iter().take(index).find(|earlier| {
                let other = export(earlier);
                let together = match &place {
                    ExportTo::Own => earlier.meta.namespace == later.meta.namespace,
                    _ => true,
                };
                earlier.spec.hosts.contains(host) && other == place && together && other != ExportTo::Nobody
            });
            let Some(first) = first else { continue };
            let why = format!(
                "{host} is already a host of {} ({}) in the mesh: none of the rules here hold for it",
                first.meta.key(),
                first.meta.source
            );
            let help = "write the rules into one VirtualService, or have it delegate to both";
            let path = format!("spec.hosts[{at}]");
            found.push(Message::of(Code::HostsConflict, &later.meta, path, why, help));
        }
    }
}
