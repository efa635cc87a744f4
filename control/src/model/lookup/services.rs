//! Which services a namespace sees, and which a workload serves.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::host;
use crate::model::service::{Service, ServiceOrigin};
use crate::model::sidecar::EgressListener;
use crate::model::world::World;

impl World {
    /// The services exported to `namespace`, one per host name. Where several have the same name, the namespace's own goes
    /// first, then a Kubernetes Service, then the oldest.
    pub fn visible_services(&self, namespace: &str) -> Vec<&Arc<Service>> {
        let mut seen: HashSet<&str> = HashSet::new();
        self.services()
            .iter()
            .filter(|service| seen.insert(&service.hostname))
            .filter_map(|service| self.service(&service.hostname, namespace))
            .collect()
    }

    /// The service with exactly this host name, as `namespace` sees it.
    pub fn service(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.services_with_host(hostname)
            .filter(|service| service.export_to.reaches(service.namespace(), namespace))
            .min_by_key(|service| {
                (service.namespace() != namespace, service.origin != ServiceOrigin::Kubernetes)
            })
    }

    /// The services that a workload of `namespace` reaches through `listener`; without one, all that it sees.
    ///
    /// Destinations of the VirtualServices that the listener imports come along, as in Istio.
    pub fn imported_services(
        &self,
        namespace: &str,
        listener: Option<&EgressListener>,
    ) -> Vec<&Arc<Service>> {
        let visible = self.visible_services(namespace);
        let Some(listener) = listener else { return visible };
        let mut wanted: HashSet<String> = HashSet::new();
        for rule in self.imported_virtual_services(namespace, Some(listener)) {
            wanted.extend(rule.spec.destinations().map(|destination| destination.host.clone()));
        }
        let mut imported = Vec::new();
        for service in visible {
            // Of several services with one name the listener may import another than the namespace prefers.
            let chosen = self
                .services_with_host(&service.hostname)
                .filter(|other| other.export_to.reaches(other.namespace(), namespace))
                .filter(|other| listener.imports(namespace, other.namespace(), &other.hostname))
                .min_by_key(|other| {
                    (other.namespace() != namespace, other.origin != ServiceOrigin::Kubernetes)
                });
            match chosen {
                Some(chosen) => imported.push(chosen),
                None if wanted.contains(&*service.hostname) => imported.push(service),
                None => {}
            }
        }
        imported
    }

    /// The ports that stand for a gateway server's `port` at the workload with these `addresses`: the target ports of
    /// its services' port of that number, or the number itself where no service has it.
    pub fn gateway_ports(&self, addresses: &[String], port: u16) -> Vec<u16> {
        let mut ports: Vec<u16> = addresses
            .iter()
            .flat_map(|address| self.served_at(address))
            .filter_map(|(service, endpoint)| service.endpoint_port(service.port(port)?, endpoint))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() {
            ports.push(port);
        }
        ports
    }

    /// A host name made full as seen from `namespace`.
    pub fn full_host(&self, name: &str, namespace: &str) -> String {
        host::resolve_short(name, namespace, self.domain())
    }
}
