//! `weft describe`: what holds for a workload, or for a service: where it is, who may come, by which rules, and what is
//! probably not meant so. The answer follows from the configuration alone; what a running proxy has is `weft proxy-config`.

mod service;
mod text;
mod workload;

use serde::Serialize;
use weft_control::analyze::{Message, analyze};
use weft_control::model::{Meta, World};

pub use service::{ServiceView, service};
pub use text::{of_service, of_workload};
pub use workload::{WorkloadView, workload};

/// An object, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Named {
    /// `Kind namespace/name`.
    pub object: String,
    /// File and line.
    pub source: String,
}

impl Named {
    fn of(meta: &Meta) -> Self {
        Self { object: meta.key().to_string(), source: meta.source.to_string() }
    }
}

/// Routes of gateways that lead to a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// The Gateway, as `namespace/name`.
    pub gateway: String,
    /// The VirtualService that is bound to it.
    pub rules: Named,
    /// Its hosts.
    pub hosts: Vec<String>,
}

/// How a service is reached from outside the mesh.
fn entries(world: &World, hostname: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    for rules in world.virtual_services() {
        if !rules.spec.destinations().any(|to| to.host == hostname) {
            continue;
        }
        for gateway in rules.spec.gateways.iter().filter(|name| *name != "mesh") {
            let (rules, hosts) = (Named::of(&rules.meta), rules.spec.hosts.clone());
            found.push(Entry { gateway: gateway.clone(), rules, hosts });
        }
    }
    found.sort();
    found
}

/// What the analysis says of these objects.
fn findings(world: &World, objects: &[String]) -> Vec<Message> {
    let is_theirs =
        |message: &Message| message.resource.as_ref().is_some_and(|resource| objects.contains(resource));
    analyze(world).into_iter().filter(is_theirs).collect()
}
