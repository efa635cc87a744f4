//! `weft plan`: what a change of a directory would change in the xDS of which proxies. Both states are rendered for every
//! workload as the control plane would, and what differs is told field by field, once for proxies that change alike.

mod base;
mod differ;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use weft_control::model::{Severity, Workload, World};
use weft_control::render::{Interception, Memo, ProxyKind, Resource, Resources, render};
use xds_protos::ResourceType;

pub use base::{Base, read_base};
pub use differ::{Difference, values};

/// What a change comes to.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// How many proxies there are afterwards.
    pub proxies: usize,
    /// Proxies that are there afterwards only, as `NAMESPACE/NAME`.
    pub new: Vec<String>,
    /// Proxies that are there before only.
    pub gone: Vec<String>,
    /// What ServiceMeshConfigs stand for afterwards.
    pub expansions: Vec<String>,
    /// Proxies that change, those together that change alike.
    pub changes: Vec<Change>,
}

/// A change, and whose it is.
#[derive(Debug, Serialize)]
pub struct Change {
    /// `NAMESPACE/NAME` of each.
    pub proxies: Vec<String>,
    /// Its resources that change.
    pub resources: Vec<Changed>,
}

/// A resource that changes.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// Its kind: `cds`, `eds`, `lds`, `rds`, `sds` or `nds`.
    pub kind: &'static str,
    /// Its name; the table of names has none.
    pub name: String,
    /// What becomes of it.
    pub what: What,
    /// Fields that differ, if it is there before and after. Of secrets nothing is told.
    pub differences: Vec<Difference>,
}

/// What becomes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is there afterwards only.
    Added,
    /// It is there before only.
    Removed,
    /// It is there before and after, and differs.
    Changed,
}

/// By what two changes are alike: kind, name, and both versions.
type Key = (ResourceType, Arc<str>, Option<Arc<str>>, Option<Arc<str>>);

/// Compares what every proxy gets. `captured`: the kernel redirects the workloads' connections, as in a pod.
pub fn plan(before: &World, after: &World, captured: bool) -> Plan {
    let (before, after) = (&before.with_gateways_as_written(), &after.with_gateways_as_written());
    let (old, new) = (by_name(before), by_name(after));
    let memos = (Memo::default(), Memo::default());
    let mut groups: BTreeMap<Vec<Key>, Vec<String>> = BTreeMap::new();
    let mut told = HashMap::new();
    for (name, workload) in &new {
        let Some(earlier) = old.get(name) else { continue };
        let keys = differing(
            &resources(before, earlier, captured, &memos.0),
            &resources(after, workload, captured, &memos.1),
            &mut told,
        );
        if !keys.is_empty() {
            groups.entry(keys).or_default().push(name.clone());
        }
    }
    let changes = groups.into_iter().map(|(keys, proxies)| Change {
        proxies,
        resources: keys.iter().filter_map(|key| told.get(key)).cloned().collect(),
    });
    let mut changes: Vec<_> = changes.collect();
    changes.sort_by(|a, b| a.proxies.cmp(&b.proxies));
    let only = |these: &BTreeMap<String, _>, those: &BTreeMap<String, _>| {
        these.keys().filter(|name| !those.contains_key(*name)).cloned().collect()
    };
    Plan {
        proxies: new.len(),
        new: only(&new, &old),
        gone: only(&old, &new),
        expansions: expansions(after),
        changes,
    }
}

fn expansions(world: &World) -> Vec<String> {
    let told = world.expansions().iter().filter(|note| note.severity == Severity::Info);
    told.map(|note| format!("{} {} {}", note.of.key(), note.path, note.reason)).collect()
}

fn by_name(world: &World) -> BTreeMap<String, Arc<Workload>> {
    let name = |workload: &Workload| format!("{}/{}", workload.meta.namespace, workload.meta.name);
    world.workloads().iter().map(|workload| (name(workload), workload.clone())).collect()
}

fn resources(world: &World, workload: &Workload, captured: bool, memo: &Memo) -> Resources {
    let mut node = crate::up::plan::node(workload, workload.meta.name.clone());
    if captured && node.kind == ProxyKind::Sidecar {
        node.interception = Interception::Redirect;
    }
    render(world, &node, true, memo)
}

/// What differs, by key; what each key says is added to `told`.
fn differing(before: &Resources, after: &Resources, told: &mut HashMap<Key, Changed>) -> Vec<Key> {
    let mut keys = Vec::new();
    for kind in ResourceType::ALL {
        let (old, new) = (before.get(&kind), after.get(&kind));
        let version = |r: Option<&Resource>| r.map(|r| r.version.clone());
        let names: std::collections::BTreeSet<_> =
            old.into_iter().chain(new).flat_map(BTreeMap::keys).cloned().collect();
        for name in names {
            let (was, is) = (old.and_then(|o| o.get(&name)), new.and_then(|n| n.get(&name)));
            let what = match (was, is) {
                (None, _) => What::Added,
                (_, None) => What::Removed,
                (Some(was), Some(is)) if was.version == is.version => continue,
                _ => What::Changed,
            };
            let key: Key = (kind, name.clone(), version(was), version(is));
            told.entry(key.clone()).or_insert_with(|| Changed {
                kind: kind.short(),
                name: name.to_string(),
                what,
                differences: match (was, is) {
                    (Some(was), Some(is)) if kind != ResourceType::Secret => {
                        differ::differences(kind, was, is)
                    }
                    _ => Vec::new(),
                },
            });
            keys.push(key);
        }
    }
    keys
}
