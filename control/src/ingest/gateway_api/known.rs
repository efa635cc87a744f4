//! What references of the Gateway API are looked up in: Services, hosts, grants, and labels of namespaces.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::model::gateway_api::{BackendRef, CONTROLLER};
use crate::model::host::{DEFAULT_DOMAIN, resolve_short};
use crate::model::kubernetes::{KubernetesService, TlsSecret};
use crate::model::mesh_config::ROOT_NAMESPACE;
use crate::model::meta::{Kind, NAMESPACE_NAME, Object};
use crate::model::values::Labels;
use crate::model::virtual_service::{Destination, PortSelector};
use crate::model::world::Objects;

/// The destination that is never there, for references that lead nowhere. No Service can have this name.
const NOWHERE: &str = "invalid-backend.gateway-api.weft.internal";

/// Why a reference leads nowhere: the reason of `ResolvedRefs`, and in words.
pub(super) struct Broken {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) struct Known<'a> {
    objects: &'a Objects,
    services: HashMap<(&'a str, &'a str), &'a Object<KubernetesService>>,
    hosts: HashSet<&'a str>,
    labels: HashMap<&'a str, &'a Labels>,
}

impl<'a> Known<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let services = objects.services.iter().map(|s| ((&*s.meta.namespace, &*s.meta.name), &**s)).collect();
        let hosts = objects.service_entries.iter().flat_map(|entry| &entry.spec.hosts).map(String::as_str);
        let labels = objects.namespaces.iter().map(|n| (n.meta.name.as_str(), &n.meta.labels)).collect();
        Self { objects, services, hosts: hosts.collect(), labels }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&'a Object<KubernetesService>> {
        self.services.get(&(namespace, name)).copied()
    }

    /// The namespace whose policies hold for the whole mesh.
    pub(super) fn root_namespace(&self) -> &'a str {
        self.objects.mesh.as_ref().map_or(ROOT_NAMESPACE, |mesh| mesh.spec.root_namespace.as_str())
    }

    /// Whether there is a class of this name, and it is ours.
    pub(super) fn serves_class(&self, name: &str) -> bool {
        serves_class(self.objects, name)
    }

    /// The labels of a namespace, its name among them.
    pub(super) fn labels_of(&self, namespace: &str) -> Labels {
        let mut labels = self.labels.get(namespace).map(|labels| (*labels).clone()).unwrap_or_default();
        labels.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
        labels
    }

    /// Whether an object of `from` in a namespace may refer to something in another one.
    pub(super) fn lets(
        &self,
        from: (Kind, &str),
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        // The specification's name of the kind: grants know no other group's.
        let of = match from.0 {
            Kind::ApiGateway => "Gateway",
            other => other.as_str(),
        };
        from.1 == namespace
            || self.objects.reference_grants.iter().any(|grant| {
                grant.meta.namespace == namespace && grant.spec.lets(of, from.1, group, kind, name)
            })
    }

    /// Whether a Secret with this name can be shown to clients; else why not.
    pub(super) fn certificate(&self, namespace: &str, name: &str) -> Result<(), String> {
        let acme = |o: &std::sync::Arc<Object<crate::model::AcmeCertificate>>| {
            o.meta.namespace == namespace && o.spec.credential_name == name
        };
        if self.objects.acme_certificates.iter().any(acme) {
            return Ok(());
        }
        let all = &self.objects.secrets;
        let secret = all.iter().find(|s| s.meta.namespace == namespace && s.meta.name == name);
        match secret {
            Some(secret) if !secret.spec.private_key.is_empty() => checked(secret),
            Some(_) => Err("it has no tls.crt and tls.key".to_owned()),
            // Where it would be good, people look first.
            None => match all.iter().find(|s| s.meta.name == name) {
                Some(other) => Err(format!(
                    "not there; there is one of this name in namespace {}: name that in the reference, and let a \
                     ReferenceGrant there allow it",
                    other.meta.namespace
                )),
                None => Err("not there, or not readable: a Secret with tls.crt and tls.key".to_owned()),
            },
        }
    }

    /// Where a reference of a route leads.
    pub(super) fn backend(&self, from: (Kind, &str), to: &BackendRef) -> Result<Destination, Broken> {
        let broken = |reason, message| Err(Broken { reason, message });
        let group = to.group.as_deref().unwrap_or_default();
        let kind = to.kind.as_deref().unwrap_or("Service");
        let namespace = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(from.1);
        let port = to.port.map(|number| PortSelector { number });
        match (group, kind) {
            ("", "Service") => {
                if !self.lets(from, group, kind, namespace, &to.name) {
                    let message = format!(
                        "Service {namespace}/{} is in another namespace, and no ReferenceGrant there lets a {} of {} refer \
                         to it",
                        to.name, from.0, from.1
                    );
                    return broken("RefNotPermitted", message);
                }
                let Some(service) = self.service(namespace, &to.name) else {
                    return broken("BackendNotFound", format!("there is no Service {namespace}/{}", to.name));
                };
                if to.port.is_none_or(|wanted| service.spec.ports.iter().all(|p| p.port != wanted)) {
                    let port = to.port.unwrap_or_default();
                    let message = format!("Service {namespace}/{} has no port {port}", to.name);
                    return broken("BackendNotFound", message);
                }
                Ok(Destination { host: full_name(namespace, &to.name), subset: String::new(), port })
            }
            ("networking.istio.io", "Hostname") => {
                if !self.hosts.contains(to.name.as_str()) {
                    return broken("BackendNotFound", format!("no ServiceEntry has the host {}", to.name));
                }
                Ok(Destination { host: to.name.clone(), subset: String::new(), port })
            }
            _ => broken(
                "InvalidKind",
                format!("{kind} ({group:?}) is no kind that routes lead to: name a Service"),
            ),
        }
    }
}

/// Whether there is a class of this name, and it is ours.
pub(super) fn serves_class(objects: &Objects, name: &str) -> bool {
    let classes = &objects.gateway_classes;
    classes.iter().any(|class| class.meta.name == name && class.spec.controller_name == CONTROLLER)
}

/// What is to be said of a Secret's pair. A state is made anew with each change: what was looked at once is remembered by its content.
fn checked(secret: &Object<TlsSecret>) -> Result<(), String> {
    static SEEN: LazyLock<Mutex<HashMap<u64, Result<(), String>>>> = LazyLock::new(Mutex::default);
    /// Secrets that are remembered at most, before all are looked at anew.
    const MOST: usize = 4096;
    let mut seen = SEEN.lock();
    if let Some(known) = seen.get(&secret.meta.version) {
        return known.clone();
    }
    if seen.len() >= MOST {
        seen.clear();
    }
    let said = weft_certs::pem::check_pair(&secret.spec.certificate_chain, &secret.spec.private_key);
    seen.insert(secret.meta.version, said.clone());
    said
}

/// Where nothing is.
pub(super) fn nowhere() -> Destination {
    Destination { host: NOWHERE.to_owned(), subset: String::new(), port: Some(PortSelector { number: 1 }) }
}

pub(super) fn full_name(namespace: &str, name: &str) -> String {
    resolve_short(name, namespace, DEFAULT_DOMAIN)
}
