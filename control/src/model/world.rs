//! The [`World`]: every object of one consistent state of the mesh, in order of precedence, with the services that
//! follow from them.

use std::collections::HashMap;
use std::sync::Arc;

use super::destination_rule::DestinationRule;
use super::gateway::Gateway;
use super::host::DEFAULT_DOMAIN;
use super::kubernetes::{KubernetesService, TlsSecret};
use super::mesh_config::MeshConfig;
use super::meta::Object;
use super::peer_authentication::PeerAuthentication;
use super::registry;
use super::service::{Service, Workload};
use super::service_entry::{ServiceEntry, WorkloadEntry};
use super::sidecar::Sidecar;
use super::virtual_service::VirtualService;

/// The objects of one state of the mesh, as the reader found them; [`World::new`] makes them a World.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Mesh-wide settings; the defaults when absent.
    pub mesh: Option<Object<MeshConfig>>,
    /// Kubernetes Services.
    pub services: Vec<Object<KubernetesService>>,
    /// ServiceEntries.
    pub service_entries: Vec<Object<ServiceEntry>>,
    /// WorkloadEntries.
    pub workload_entries: Vec<Object<WorkloadEntry>>,
    /// VirtualServices.
    pub virtual_services: Vec<Object<VirtualService>>,
    /// DestinationRules.
    pub destination_rules: Vec<Object<DestinationRule>>,
    /// Gateways.
    pub gateways: Vec<Object<Gateway>>,
    /// Sidecars.
    pub sidecars: Vec<Object<Sidecar>>,
    /// PeerAuthentications.
    pub peer_authentications: Vec<Object<PeerAuthentication>>,
    /// Secrets of type kubernetes.io/tls, and those with roots only.
    pub secrets: Vec<Object<TlsSecret>>,
}

/// One consistent state of the mesh. Cloning it copies one pointer.
///
/// Lists are in Istio's order of precedence, oldest first ([`super::Meta::precedence`]).
#[derive(Clone, Debug)]
pub struct World {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    mesh: Arc<MeshConfig>,
    domain: String,
    services: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<usize>>,
    workloads: Vec<Arc<Workload>>,
    virtual_services: Vec<Arc<Object<VirtualService>>>,
    destination_rules: Vec<Arc<Object<DestinationRule>>>,
    gateways: Vec<Arc<Object<Gateway>>>,
    sidecars: Vec<Arc<Object<Sidecar>>>,
    peer_authentications: Vec<Arc<Object<PeerAuthentication>>>,
    secrets: Vec<Arc<Object<TlsSecret>>>,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Objects::default())
    }
}

impl World {
    /// Builds the state that follows from these objects, whatever their order.
    pub fn new(objects: Objects) -> Self {
        let mesh = objects.mesh.map(|object| object.spec).unwrap_or_default();
        let workload_entries = in_order(objects.workload_entries);
        let kubernetes = in_order(objects.services);
        let entries = in_order(objects.service_entries);
        let workloads = registry::workloads(&workload_entries);
        let services = registry::services(&kubernetes, &entries, &workloads, &mesh, DEFAULT_DOMAIN);
        let mut by_host: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            by_host.entry(service.hostname.clone()).or_default().push(index);
        }
        Self {
            parts: Arc::new(Parts {
                mesh: Arc::new(mesh),
                domain: DEFAULT_DOMAIN.to_owned(),
                services,
                by_host,
                workloads,
                virtual_services: in_order(objects.virtual_services),
                destination_rules: in_order(objects.destination_rules),
                gateways: in_order(objects.gateways),
                sidecars: in_order(objects.sidecars),
                peer_authentications: in_order(objects.peer_authentications),
                secrets: in_order(objects.secrets),
            }),
        }
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &Arc<MeshConfig> {
        &self.parts.mesh
    }

    /// DNS domain of the mesh's services, `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.parts.domain
    }

    /// Every service, whoever sees it.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.parts.services
    }

    /// Every workload that is written down as a WorkloadEntry.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.parts.workloads
    }

    /// Every VirtualService.
    pub fn virtual_services(&self) -> &[Arc<Object<VirtualService>>] {
        &self.parts.virtual_services
    }

    /// Every DestinationRule.
    pub fn destination_rules(&self) -> &[Arc<Object<DestinationRule>>] {
        &self.parts.destination_rules
    }

    /// Every Gateway.
    pub fn gateways(&self) -> &[Arc<Object<Gateway>>] {
        &self.parts.gateways
    }

    /// Every Sidecar.
    pub fn sidecars(&self) -> &[Arc<Object<Sidecar>>] {
        &self.parts.sidecars
    }

    /// Every PeerAuthentication.
    pub fn peer_authentications(&self) -> &[Arc<Object<PeerAuthentication>>] {
        &self.parts.peer_authentications
    }

    /// Every TLS secret.
    pub fn secrets(&self) -> &[Arc<Object<TlsSecret>>] {
        &self.parts.secrets
    }

    /// The TLS secret with this name.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Object<TlsSecret>>> {
        self.parts
            .secrets
            .iter()
            .find(|secret| secret.meta.namespace == namespace && secret.meta.name == name)
    }

    /// The services with exactly this host name, oldest first.
    pub fn services_with_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let indexes = self.parts.by_host.get(hostname).map(Vec::as_slice).unwrap_or_default();
        indexes.iter().map(|index| &self.parts.services[*index])
    }
}

fn in_order<T>(mut objects: Vec<Object<T>>) -> Vec<Arc<Object<T>>> {
    objects.sort_by(|a, b| a.meta.precedence(&b.meta));
    objects.into_iter().map(Arc::new).collect()
}
