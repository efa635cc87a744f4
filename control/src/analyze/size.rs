//! Proxies that are told of so much of the mesh that their memory goes into it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::scene::{Scene, caller, few};
use super::{Code, Message};
use crate::model::{Object, Service, Sidecar, Workload, World};

/// A proxy that knows more clusters than this should be told of fewer: with them it needs most of Istio's 128 MiB while it is told.
const MOST: usize = 4000;
/// What a cluster costs a proxy, in KiB: the service's routes and two endpoints among it (docs/tuning.md has the measurements).
const EACH: usize = 10;

/// Workloads that are told the same.
type Told<'w> = (&'w str, Option<&'w Arc<Object<Sidecar>>>);

/// What they are told, and who they are.
type Group<'w> = (Told<'w>, Vec<&'w Arc<Workload>>);

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    if world.services().iter().map(|service| service.ports.len()).sum::<usize>() <= MOST {
        return;
    }
    let mut groups: BTreeMap<(&str, usize), Group<'_>> = BTreeMap::new();
    for workload in world.workloads().iter().filter(|w| !w.is_gateway() && w.shows_identity()) {
        let namespace = workload.meta.namespace.as_str();
        let sidecar = world.sidecar_for(namespace, workload.labels());
        let key = (namespace, sidecar.map_or(0, |sidecar| Arc::as_ptr(sidecar) as usize));
        groups.entry(key).or_insert_with(|| ((namespace, sidecar), Vec::new())).1.push(workload);
    }
    for ((namespace, sidecar), workloads) in groups.into_values() {
        let clusters = clusters(world, namespace, sidecar);
        if clusters <= MOST {
            continue;
        }
        let names = few(workloads.iter().map(|workload| caller(workload)));
        let why = format!(
            "proxies of {namespace} ({names}) are told of {clusters} clusters (ports of services), which take about {} MiB of each one's memory, and twice as much while it is told",
            clusters * EACH / 1024
        );
        let help = "say whom they call: a Sidecar for the namespace with egress hosts; or leave namespaces out by discoverySelectors, or by exportTo";
        let meta = match sidecar {
            Some(sidecar) => &sidecar.meta,
            None => &workloads[0].meta,
        };
        let path = if sidecar.is_some() { "spec.egress" } else { "" };
        found.push(Message::of(Code::ProxyKnowsTooMuch, meta, path, why, help));
    }
}

/// How many clusters their proxies have of services.
fn clusters(world: &World, namespace: &str, sidecar: Option<&Arc<Object<Sidecar>>>) -> usize {
    let ports = |service: &Arc<Service>| service.ports.len();
    match sidecar.filter(|sidecar| !sidecar.spec.egress.is_empty()) {
        None => world.imported_services(namespace, None).into_iter().map(ports).sum(),
        Some(sidecar) => {
            let mut seen = HashSet::new();
            let listeners = sidecar.spec.egress.iter();
            let all = listeners.flat_map(|listener| world.imported_services(namespace, Some(listener)));
            all.filter(|service| seen.insert(Arc::as_ptr(service))).map(ports).sum()
        }
    }
}
