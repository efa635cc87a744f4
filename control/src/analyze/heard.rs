//! Telemetries, ProxyConfigs and MetricDefinitions of which one is not heard: of those that are for the same workloads the oldest
//! holds.

use std::sync::Arc;

use super::scene::{Scene, names, written};
use super::{Code, Message};
use crate::model::Object;
use crate::model::metric_definition::MetricDefinition;
use crate::model::telemetry::Side;
use crate::model::values::{WorkloadSelector, selects};

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    of_kind(scene, world.telemetries(), |telemetry| telemetry.selector.as_ref(), found);
    of_kind(scene, world.proxy_configs(), |config| config.selector.as_ref(), found);
    metrics(scene, found);
}

/// Metrics of one's own that have one name: a proxy counts the first.
fn metrics(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let root = scene.world.mesh().root_namespace.as_str();
    for later in scene.world.metric_definitions() {
        let name = MetricDefinition::name(later);
        let shared = scene.world.workloads().iter().find_map(|workload| {
            let (namespace, labels) = (workload.meta.namespace.as_str(), workload.labels());
            let holds = |one: &Object<MetricDefinition>| {
                [root, namespace].contains(&one.meta.namespace.as_str())
                    && one.spec.selector.as_ref().is_none_or(|selector| selector.selects(labels))
            };
            if !holds(later) {
                return None;
            }
            let all = [Side::Client, Side::Server]
                .map(|side| scene.world.metric_definitions_of(namespace, labels, side));
            let first = all.iter().flatten().find(|one| MetricDefinition::name(one) == name)?;
            let heard = all.iter().flatten().any(|one| one.meta.key() == later.meta.key());
            (!heard).then(|| (workload.clone(), Arc::clone(first)))
        });
        if let Some((workload, first)) = shared {
            let why = format!(
                "{} ({}) counts {name} already for {}/{}: this one is not heard there",
                first.meta.key(),
                first.meta.source,
                workload.meta.namespace,
                workload.meta.name
            );
            let help = "give the metrics different names, or selectors that exclude each other";
            found.push(Message::of(Code::SettingsConflict, &later.meta, "spec.metric", why, help));
        }
    }
}

fn of_kind<T>(
    scene: &Scene<'_>,
    all: &[Arc<Object<T>>],
    selector: impl Fn(&T) -> Option<&WorkloadSelector>,
    found: &mut Vec<Message>,
) {
    let help = "make one of the two, or give them selectors that exclude each other";
    for (index, later) in all.iter().enumerate() {
        // One that names several targets is there for each of them.
        let beside = all[..index].iter().filter(|earlier| {
            earlier.meta.namespace == later.meta.namespace && earlier.meta.key() != later.meta.key()
        });
        for earlier in beside {
            let by = format!("{} ({})", earlier.meta.key(), earlier.meta.source);
            match (selector(&earlier.spec), selector(&later.spec)) {
                (None, None) => {
                    let why = format!(
                        "{by} is for all workloads of {} already: this one is not heard",
                        later.meta.namespace
                    );
                    found.push(Message::of(Code::SettingsConflict, &later.meta, "spec", why, help));
                    break;
                }
                (Some(first), Some(own)) => {
                    let mut both = scene.world.workloads().iter().filter(|w| {
                        w.meta.namespace == later.meta.namespace
                            && selects(&first.labels, w.labels())
                            && selects(&own.labels, w.labels())
                    });
                    if both.clone().next().is_none() {
                        continue;
                    }
                    let why = format!(
                        "{by} selects {} as well ({}): this one is not heard there",
                        names(&mut both),
                        written(&first.labels)
                    );
                    let path = "spec.selector.matchLabels";
                    found.push(Message::of(Code::SettingsConflict, &later.meta, path, why, help));
                }
                _ => {}
            }
        }
    }
}
