//! Sidecars that speak for the same workloads: the oldest one is heard.

use std::collections::BTreeSet;

use super::scene::{Scene, names, written};
use super::{Code, Message};
use crate::model::values::selects;
use crate::model::{Labels, Object, Sidecar};

fn selector(sidecar: &Object<Sidecar>) -> Option<&Labels> {
    sidecar.spec.workload_selector.as_ref().map(|s| &s.labels).filter(|labels| !labels.is_empty())
}

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
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
