//! Services as they are declared: what is spoken at their ports, who stands behind them, who guards them, and hosts that are
//! declared twice.

use std::collections::{BTreeMap, BTreeSet};

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::authorization_policy::AuthorizationAction;
use crate::model::service::{ExportTo, ServiceOrigin};
use crate::model::{Service, Workload};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    protocols(scene, found);
    workloads(scene, found);
    entries(scene, found);
    unguarded(scene, found);
}

fn protocols(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for service in world.services().iter().filter(|s| s.origin == ServiceOrigin::Kubernetes) {
        for (index, port) in service.ports.iter().enumerate().filter(|(_, port)| port.protocol.is_auto()) {
            let why = format!(
                "neither the name of port {} ({:?}) nor appProtocol says what is spoken: it is found out from each connection's first bytes, which costs time where the server speaks first",
                port.number, port.name
            );
            let help = "name it after the protocol (http-web, grpc, tcp-db, ...), or set appProtocol";
            let path = format!("spec.ports[{index}].name");
            found.push(Message::of(Code::PortProtocolUnknown, &service.meta, path, why, help));
        }
    }
    // Workload and port: who says what of it.
    let mut said: BTreeMap<(String, u16), Vec<(&Service, usize)>> = BTreeMap::new();
    for service in world.services() {
        for endpoint in &service.endpoints {
            if world.workload_at(&endpoint.address).is_none() {
                continue;
            }
            for (index, port) in service.ports.iter().enumerate().filter(|(_, port)| !port.protocol.is_auto())
            {
                if let Some(target) = service.endpoint_port(port, endpoint) {
                    said.entry((endpoint.address.clone(), target)).or_default().push((service, index));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((_, target), places) in &said {
        let Some(((first, at), others)) = places.split_first() else { continue };
        for (other, index) in others {
            let (one, two) = (first.ports[*at].protocol, other.ports[*index].protocol);
            if one == two || !told.insert((other.meta.key(), *index)) {
                continue;
            }
            let why = format!(
                "port {target} of its workloads speaks {two} by this and {one} by {} ({}): the workloads' side takes one of them",
                first.meta.key(),
                first.meta.source
            );
            let help = "give both the same protocol, or each a port of its own";
            let path = format!("spec.ports[{index}]");
            found.push(Message::of(Code::PortProtocolsConflict, &other.meta, path, why, help));
        }
    }
}

/// Others find workloads by services; one that nobody calls has no need of one.
fn workloads(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for workload in world.workloads().iter().filter(|workload| !workload.is_gateway()) {
        let listens = world
            .sidecar_for(&workload.meta.namespace, workload.labels())
            .is_some_and(|sidecar| !sidecar.spec.ingress.is_empty());
        let calls = workload.meta.annotations.contains_key(crate::model::service::CALLS_ANNOTATION);
        if listens || calls || world.served_at(workload.address()).next().is_some() {
            continue;
        }
        let labels = super::scene::written(workload.labels());
        let why = format!(
            "no Service selects it (labels {labels}): nobody reaches it by a name, and no port of it is known"
        );
        let help = "write a Service whose selector it has, or correct its labels";
        found.push(Message::of(Code::WorkloadWithoutService, &workload.meta, "", why, help));
    }
}

fn entries(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let mut declared: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
    for service in scene.world.services().iter().filter(|s| s.origin == ServiceOrigin::ServiceEntry) {
        let before = declared.entry(&service.hostname).or_default();
        let together = |other: &&&Service| match &service.export_to {
            ExportTo::Own => other.export_to == ExportTo::Own && other.namespace() == service.namespace(),
            place => other.export_to == *place && *place != ExportTo::Nobody,
        };
        if let Some(first) = before.iter().find(together) {
            let why = format!(
                "{} is already declared by {} ({}): whoever sees both uses that one, or the one of its own namespace",
                service.hostname,
                first.meta.key(),
                first.meta.source
            );
            let help = "declare a host once, or export each to its own namespace (exportTo: [\".\"])";
            found.push(Message::of(Code::EntriesConflict, &service.meta, "spec.hosts", why, help));
        }
        before.push(service);
    }
}

/// A namespace where somebody wrote policies, and a service that none of them holds for.
fn unguarded(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    let guarded = |workload: &Workload| {
        [AuthorizationAction::Allow, AuthorizationAction::Deny, AuthorizationAction::Custom]
            .into_iter()
            .any(|action| !scene.holding(workload, action).is_empty())
    };
    let namespaces: BTreeSet<&str> = world
        .workloads()
        .iter()
        .filter(|workload| guarded(workload))
        .map(|workload| workload.meta.namespace.as_str())
        .collect();
    for service in world.services().iter().filter(|s| s.origin == ServiceOrigin::Kubernetes) {
        let behind: Vec<_> =
            service.endpoints.iter().filter_map(|endpoint| world.workload_at(&endpoint.address)).collect();
        let open = !behind.is_empty() && behind.iter().all(|w| !guarded(w) && !w.is_gateway());
        if !open || !namespaces.contains(service.namespace()) {
            continue;
        }
        let beside =
            world.workloads().iter().filter(|w| w.meta.namespace == service.namespace() && guarded(w));
        let beside = few(beside.map(|w| format!("{}/{}", w.meta.namespace, w.meta.name)));
        let name = &service.hostname;
        let why = format!(
            "no AuthorizationPolicy holds for {name}, so everybody may come, while policies guard {beside}"
        );
        let help =
            "add an ALLOW policy for it, or one without a selector that allows what the namespace is for";
        found.push(Message::of(Code::OpenBesideGuarded, &service.meta, "", why, help));
    }
}
