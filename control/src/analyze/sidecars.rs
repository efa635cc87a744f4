//! Sidecars that speak for the same workloads: the oldest one is heard. And those that leave out where spans are sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::scene::{Scene, names, written};
use super::{Code, Message};
use crate::model::sidecar::EgressListener;
use crate::model::values::selects;
use crate::model::{Labels, Object, Service, Sidecar, World};

fn selector(sidecar: &Object<Sidecar>) -> Option<&Labels> {
    sidecar.spec.workload_selector.as_ref().map(|s| &s.labels).filter(|labels| !labels.is_empty())
}

/// The service of the collector to which a workload's proxy sends its spans, if there is one in the mesh.
fn collector<'w>(world: &'w World, namespace: &str, labels: &Labels) -> Option<&'w Arc<Service>> {
    let mesh = world.mesh();
    let mut name = mesh.default_providers.tracing.first();
    let mut disabled = false;
    for telemetry in world.telemetries_of(namespace, labels) {
        for tracing in &telemetry.spec.tracing {
            name = tracing.providers.first().map(|provider| &provider.name).or(name);
            disabled = tracing.disable_span_reporting.unwrap_or(disabled);
        }
    }
    let name = name.filter(|_| !disabled)?;
    let provider = mesh.extension_providers.iter().find(|provider| provider.name == *name)?;
    let otlp = provider.opentelemetry.as_ref().map(|given| given.service.as_str());
    let place = otlp.or_else(|| provider.zipkin.as_ref().map(|given| given.service.as_str()))?;
    let (wanted, host) =
        place.split_once('/').map_or((None, place), |(namespace, host)| (Some(namespace), host));
    world.services_with_host(host).find(|service| wanted.is_none_or(|wanted| service.namespace() == wanted))
}

/// Spans have nowhere to go where the way to their collector is left out, and nobody misses them.
fn hidden_collectors(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    for sidecar in world.sidecars().iter().filter(|sidecar| !sidecar.spec.egress.is_empty()) {
        let hidden = world.workloads().iter().filter(|w| !w.is_gateway()).find_map(|workload| {
            let namespace = workload.meta.namespace.as_str();
            let its_own = world.sidecar_for(namespace, workload.labels())?;
            let collector = collector(world, namespace, workload.labels())?;
            let reached = |listener: &EgressListener| {
                let all = world.imported_services(namespace, Some(listener));
                all.iter().any(|service| Arc::ptr_eq(service, collector))
            };
            let hides = Arc::ptr_eq(its_own, sidecar) && !sidecar.spec.egress.iter().any(reached);
            hides.then_some((workload, collector))
        });
        if let Some((workload, collector)) = hidden {
            let (host, place) = (&collector.hostname, collector.namespace());
            let why = format!(
                "{} sends its spans to {host}, which its egress leaves out: they are lost",
                workload.meta.key()
            );
            let help = format!("add {place}/{host} to the hosts of one of its listeners");
            found.push(Message::of(Code::CollectorHidden, &sidecar.meta, "spec.egress", why, help));
        }
    }
}

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    hidden_collectors(scene, found);
    let all = scene.world.sidecars();
    let help = "make one Sidecar of the two, or give them selectors that exclude each other";
    for (index, later) in all.iter().enumerate() {
        for earlier in all[..index].iter().filter(|earlier| earlier.meta.namespace == later.meta.namespace) {
            let by = format!("{} ({})", earlier.meta.key(), earlier.meta.source);
            match (selector(earlier), selector(later)) {
                (None, None) => {
                    let why = format!(
                        "{by} is for all workloads of {} already: this one is not heard",
                        later.meta.namespace
                    );
                    found.push(Message::of(Code::SeveralDefaultSidecars, &later.meta, "spec", why, help));
                    break;
                }
                (Some(first), Some(own)) => {
                    let both: BTreeSet<_> = scene
                        .world
                        .workloads()
                        .iter()
                        .filter(|w| w.meta.namespace == later.meta.namespace)
                        .filter(|w| selects(first, w.labels()) && selects(own, w.labels()))
                        .map(|w| w.meta.name.clone())
                        .collect();
                    if both.is_empty() {
                        continue;
                    }
                    let shared =
                        scene.world.workloads().iter().filter(|w| {
                            w.meta.namespace == later.meta.namespace && both.contains(&w.meta.name)
                        });
                    let why = format!(
                        "{by} selects {} as well ({}): this one is not heard there",
                        names(shared),
                        written(first)
                    );
                    let path = "spec.workloadSelector.labels";
                    found.push(Message::of(Code::SidecarsSelectSame, &later.meta, path, why, help));
                }
                _ => {}
            }
        }
    }
}
