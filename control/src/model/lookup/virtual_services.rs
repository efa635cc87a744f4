//! Which VirtualService speaks for a host.

use std::sync::Arc;

use crate::model::host;
use crate::model::meta::Object;
use crate::model::service::ExportTo;
use crate::model::sidecar::EgressListener;
use crate::model::values::Labels;
use crate::model::virtual_service::{Destination, VirtualService};
use crate::model::world::World;

/// What VirtualServices call the sidecars of the mesh.
pub const MESH_GATEWAY: &str = "mesh";

impl VirtualService {
    /// Every destination that it names, those of mirrors included.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let routes = self.http.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
        let mirrors = self.http.iter().flat_map(|rule| &rule.mirrors).map(|mirror| &mirror.destination);
        let http = routes.chain(mirrors);
        let tls = self.tls.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
        http.chain(tls).chain(tcp)
    }

    /// Every set of labels by which it tells clients apart.
    pub fn source_labels(&self) -> impl Iterator<Item = &Labels> {
        let http = self.http.iter().flat_map(|rule| &rule.matches).map(|wanted| &wanted.source_labels);
        let tls = self.tls.iter().flat_map(|rule| &rule.matches).map(|wanted| &wanted.source_labels);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.matches).map(|wanted| &wanted.source_labels);
        http.chain(tls).chain(tcp)
    }
}

impl World {
    /// The VirtualServices that bind `gateway` (`namespace/name`, or `mesh`) and that `namespace` sees, in Istio's order:
    /// private ones of the namespace, then those exported to it by name, then public ones; oldest first within each.
    pub fn virtual_services_for(&self, namespace: &str, gateway: &str) -> Vec<&Arc<Object<VirtualService>>> {
        let mut found: Vec<(u8, &Arc<Object<VirtualService>>)> = self
            .exported_routes()
            .filter(|(object, _)| object.spec.binds(gateway))
            .filter_map(|(object, export)| {
                let own = &object.meta.namespace;
                let rank = match export {
                    ExportTo::Own => 0,
                    ExportTo::Namespaces(_) => 1,
                    ExportTo::All => 2,
                    ExportTo::Nobody => return None,
                };
                export.reaches(own, namespace).then_some((rank, object))
            })
            .collect();
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, object)| object).collect()
    }

    /// The VirtualServices for sidecars of `namespace` whose hosts `listener` imports; without one, all.
    pub fn imported_virtual_services(
        &self,
        namespace: &str,
        listener: Option<&EgressListener>,
    ) -> Vec<&Arc<Object<VirtualService>>> {
        let mut found = self.virtual_services_for(namespace, MESH_GATEWAY);
        if let Some(listener) = listener {
            found.retain(|object| {
                object.spec.hosts.iter().any(|host| listener.imports(namespace, &object.meta.namespace, host))
            });
        }
        found
    }

    /// The VirtualService that speaks for `hostname` on `gateway` as seen from `namespace`: the most specific host wins,
    /// among equals the first in [`Self::virtual_services_for`]'s order.
    pub fn virtual_service_for_host(
        &self,
        namespace: &str,
        gateway: &str,
        hostname: &str,
    ) -> Option<&Arc<Object<VirtualService>>> {
        let candidates = self.virtual_services_for(namespace, gateway);
        let hosts = candidates
            .iter()
            .flat_map(|object| object.spec.hosts.iter().map(move |host| (host.as_str(), *object)));
        host::most_specific(hostname, hosts).map(|(_, object)| object)
    }
}
