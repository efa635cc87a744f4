//! The addresses of the names that a sidecar may reach (NDS), for proxies that answer their pod's DNS: of services with addresses
//! of their own, those; of headless ones, the members', and of each member under its own name; of services that an address was
//! allocated to, that one, as far as the proxy has listeners for it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::captured::outbound::addresses;
use super::cluster::services;
use super::memo::Output;
use super::{ProxyKind, ProxyNode};
use crate::model::service::ServiceOrigin;
use crate::model::{Service, World};

/// What a name stands for.
#[derive(Default)]
struct Entry {
    kubernetes: bool,
    addresses: Vec<String>,
    /// Name and namespace of what has short forms.
    short: Option<(String, String)>,
}

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    if node.kind != ProxyKind::Sidecar || !node.dns_capture {
        return;
    }
    let all = services(world, node);
    let versions = |s: &Service| (s.versions.shape, if s.headless { s.versions.endpoints } else { 0 });
    let versions: Vec<_> = all.iter().map(|s| versions(s)).collect();
    // There is one table, and it has no name.
    out.put("", (versions, node.allocated_families()), || table(&all, node));
}

fn table(services: &[&std::sync::Arc<Service>], node: &ProxyNode) -> Value {
    let mut table: BTreeMap<String, Entry> = BTreeMap::new();
    for service in services {
        let kubernetes = service.origin == ServiceOrigin::Kubernetes;
        let short = |name: &str| kubernetes.then(|| (name.to_owned(), service.namespace().to_owned()));
        let mut found: Vec<String> = addresses(service, node).into_iter().map(str::to_owned).collect();
        if found.is_empty() && kubernetes && service.headless {
            for endpoint in service.endpoints.iter().filter(|e| is_ip(&e.address)) {
                found.push(endpoint.address.clone());
                // As Kubernetes names the pods of a StatefulSet.
                let workload =
                    endpoint.workload.as_ref().map(|key| &key.name).filter(|name| !name.contains('.'));
                if let (Some(name), Some((_, domain))) = (workload, service.hostname.split_once('.')) {
                    let member = format!("{name}.{}", service.meta.name);
                    let entry = table.entry(format!("{member}.{domain}")).or_default();
                    entry.put(kubernetes, std::slice::from_ref(&endpoint.address), short(&member));
                }
            }
        }
        if !found.is_empty() {
            table.entry(service.hostname.to_string()).or_default().put(
                kubernetes,
                &found,
                short(&service.meta.name),
            );
        }
    }
    let table: serde_json::Map<String, Value> =
        table.into_iter().map(|(host, entry)| (host, entry.value())).collect();
    json!({"table": table})
}

fn is_ip(address: &str) -> bool {
    address.parse::<std::net::IpAddr>().is_ok()
}

impl Entry {
    /// One more service of the name. Kubernetes' goes before others; of others all count.
    fn put(&mut self, kubernetes: bool, addresses: &[String], short: Option<(String, String)>) {
        if self.kubernetes && !kubernetes {
            return;
        }
        if kubernetes && !self.kubernetes {
            *self = Self { kubernetes, addresses: Vec::new(), short };
        }
        for address in addresses {
            if !self.addresses.contains(address) {
                self.addresses.push(address.clone());
            }
        }
    }

    fn value(self) -> Value {
        // The registries' names are istiod's.
        let mut value = json!({"ips": self.addresses, "registry": if self.kubernetes { "Kubernetes" } else { "External" }});
        if let Some((name, namespace)) = self.short {
            value["shortname"] = name.into();
            value["namespace"] = namespace.into();
        }
        value
    }
}
