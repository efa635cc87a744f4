//! Namespaces that objects are exported to, and that are not there.

use std::collections::BTreeSet;

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::Meta;

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    // Where no workloads are written down, nothing is known of who could look.
    let known: BTreeSet<&str> = world.workloads().iter().map(|w| w.meta.namespace.as_str()).collect();
    if known.is_empty() {
        return;
    }
    let mut check = |meta: &Meta, list: &[String], path: &str| {
        for (index, name) in list.iter().enumerate() {
            if [".", "*", "~"].contains(&name.as_str())
                || known.contains(name.as_str())
                || *name == meta.namespace
            {
                continue;
            }
            let why = format!("no workload is in the namespace {name}: it is exported to nobody there");
            let help = format!("workloads are in {}", few(known.iter().map(|name| (*name).to_owned())));
            found.push(Message::of(Code::ExportedToNobody, meta, format!("{path}[{index}]"), why, help));
        }
    };
    for rules in world.virtual_services() {
        check(&rules.meta, &rules.spec.export_to, "spec.exportTo");
    }
    for rule in world.destination_rules() {
        check(&rule.meta, &rule.spec.export_to, "spec.exportTo");
    }
    for service in world.services() {
        if let crate::model::service::ExportTo::Namespaces(list) = &service.export_to {
            check(&service.meta, list, "spec.exportTo");
        }
    }
}
