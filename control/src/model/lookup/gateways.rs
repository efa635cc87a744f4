//! Which Gateways a gateway workload serves, and for which hosts.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::gateway::{Gateway, Server};
use crate::model::host;
use crate::model::meta::Object;
use crate::model::values::{Labels, selects};
use crate::model::virtual_service::VirtualService;
use crate::model::world::World;

impl World {
    /// The Gateways of any namespace that select a workload of `namespace` with these labels, oldest first.
    pub fn gateways_for(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Object<Gateway>>> {
        let here = |gateway: &Gateway| gateway.namespace.as_deref().is_none_or(|only| only == namespace);
        let selected = |gateway: &Gateway| here(gateway) && selects(&gateway.selector, labels);
        self.gateways().iter().filter(|gateway| selected(&gateway.spec)).collect()
    }
}

/// A Secret that a Gateway's server names and that is not where its workloads read it.
#[derive(Debug)]
pub struct MissingSecret<'w> {
    /// Its name.
    pub name: &'w str,
    /// The namespace of the gateway's workloads, where it should be.
    pub namespace: &'w str,
    /// Namespaces that have one of this name.
    pub elsewhere: Vec<&'w str>,
}

impl World {
    /// Secrets that a server of a Gateway names, and that its workloads will not find. Where no Secret is written down at all, they
    /// are kept elsewhere.
    pub fn missing_secrets<'w>(&'w self, gateway: &'w Gateway, server: &'w Server) -> Vec<MissingSecret<'w>> {
        let (Some(tls), false) = (&server.tls, self.secrets().is_empty()) else { return Vec::new() };
        let at = self.workloads().iter().filter(|w| w.is_gateway() && selects(&gateway.selector, w.labels()));
        let here = |namespace: &&str| gateway.namespace.as_deref().is_none_or(|only| only == *namespace);
        let namespaces: BTreeSet<&str> = at.map(|w| w.meta.namespace.as_str()).filter(here).collect();
        let mut missing = Vec::new();
        for name in tls.credentials() {
            for namespace in &namespaces {
                let ordered = self
                    .acme_certificates()
                    .iter()
                    .any(|order| order.meta.namespace == *namespace && order.spec.credential_name == name);
                if ordered || self.secret(namespace, name).is_some() {
                    continue;
                }
                let elsewhere = self.secrets().iter().filter(|secret| secret.meta.name == name);
                let elsewhere = elsewhere.map(|secret| secret.meta.namespace.as_str()).collect();
                missing.push(MissingSecret { name, namespace, elsewhere });
            }
        }
        missing
    }
}

/// The hosts that `server` of a Gateway in `gateway_namespace` serves for a VirtualService: where the two lists meet, the
/// more specific of both names. Sorted in the VirtualService's order, without repetition.
pub fn served_hosts(server: &Server, gateway_namespace: &str, rules: &Object<VirtualService>) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::new();
    for wanted in &rules.spec.hosts {
        for entry in &server.hosts {
            let (place, offered) = entry.split_once('/').unwrap_or(("*", entry));
            let admitted = match place {
                "*" => true,
                "." => rules.meta.namespace == gateway_namespace,
                place => rules.meta.namespace == place,
            };
            if !admitted {
                continue;
            }
            let specific = if host::covers(offered, wanted) {
                wanted
            } else if host::covers(wanted, offered) {
                offered
            } else {
                continue;
            };
            if !hosts.iter().any(|held| held == specific) {
                hosts.push(specific.to_owned());
            }
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::meta::{Kind, Meta, Source};

    fn rules(namespace: &str, hosts: &[&str]) -> Object<VirtualService> {
        let meta = Meta {
            kind: Kind::VirtualService,
            api_version: String::new(),
            namespace: namespace.into(),
            name: "rules".into(),
            labels: Labels::new(),
            annotations: Labels::new(),
            created: None,
            source: Source::default(),
            version: 0,
        };
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Object { meta, spec: VirtualService { hosts, ..VirtualService::default() } }
    }

    fn server(hosts: &[&str]) -> Server {
        Server { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Server::default() }
    }

    #[test]
    fn the_more_specific_of_both_names_is_served() {
        let server = server(&["*.a.com", "exact.b.com"]);
        let found = served_hosts(&server, "gw", &rules("shop", &["api.a.com", "*.b.com", "c.com"]));
        assert_eq!(found, ["api.a.com", "exact.b.com"]);
    }

    #[test]
    fn a_host_with_a_namespace_admits_only_that_namespace() {
        let found = |entry: &str, namespace: &str| {
            served_hosts(&server(&[entry]), "gw", &rules(namespace, &["api.a.com"])).len()
        };
        assert_eq!(found("shop/*.a.com", "shop"), 1);
        assert_eq!(found("shop/*.a.com", "other"), 0);
        assert_eq!(found("./*.a.com", "gw"), 1);
        assert_eq!(found("./*.a.com", "shop"), 0);
        assert_eq!(found("*/*.a.com", "other"), 1);
    }
}
