//! The [`World`]: every object of one consistent state of the mesh, in order of precedence, with the services that
//! follow from them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::acme::{Acme, AcmeCertificate};
use super::addresses::Addresses;
use super::authorization_policy::AuthorizationPolicy;
use super::compression::Compression;
use super::credentials::Credentials;
use super::destination_rule::DestinationRule;
use super::expand::{Note, expand};
use super::external_credential::ExternalCredential;
use super::gateway::Gateway;
use super::gateway_api::{ApiGateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TlsRoute};
use super::health_check::HealthCheck;
use super::host::DEFAULT_DOMAIN;
use super::ip_deny_list::{DenyLists, IpDenyList};
use super::keys::KeySets;
use super::kubernetes::{Backends, KubernetesNode, KubernetesService, Pod, TlsSecret};
use super::lookup::{self, MergedRule};
use super::mesh_config::MeshConfig;
use super::meta::{Meta, Object};
use super::metric_definition::MetricDefinition;
use super::networks::{MeshNetworks, NetworkGateway, Networks, Sources};
use super::peer_authentication::PeerAuthentication;
use super::place::Place;
use super::proxy_config::ProxyConfig;
use super::rate_limit::RateLimit;
use super::registry::{self, Registry};
use super::request_authentication::RequestAuthentication;
use super::service::{Endpoint, ExportTo, Service, Workload};
use super::service_entry::{ServiceEntry, WorkloadEntry};
use super::service_mesh_config::ServiceMeshConfig;
use super::sidecar::Sidecar;
use super::telemetry::Telemetry;
use super::traffic_management::TrafficManagement;
use super::traffic_management::{Shares, serves};
use super::virtual_service::VirtualService;
use super::workload_group::{GROUP_ANNOTATION, WorkloadGroup};

/// The objects of one state of the mesh, as the reader found them; [`World::new`] makes them a World.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Mesh-wide settings; the defaults when absent.
    pub mesh: Option<Arc<Object<MeshConfig>>>,
    /// Networks; one when absent.
    pub networks: Option<Arc<Object<MeshNetworks>>>,
    /// Networks' gateways that Gateways of the Gateway API describe, as the reader found them.
    pub network_gateways: Vec<(String, NetworkGateway)>,
    /// Nodes that are reached from outside.
    pub nodes: Vec<Arc<KubernetesNode>>,
    /// Kubernetes Services.
    pub services: Vec<Arc<Object<KubernetesService>>>,
    /// ServiceEntries.
    pub service_entries: Vec<Arc<Object<ServiceEntry>>>,
    /// WorkloadEntries.
    pub workload_entries: Vec<Arc<Object<WorkloadEntry>>>,
    /// VirtualServices.
    pub virtual_services: Vec<Arc<Object<VirtualService>>>,
    /// DestinationRules.
    pub destination_rules: Vec<Arc<Object<DestinationRule>>>,
    /// Gateways.
    pub gateways: Vec<Arc<Object<Gateway>>>,
    /// Sidecars.
    pub sidecars: Vec<Arc<Object<Sidecar>>>,
    /// PeerAuthentications.
    pub peer_authentications: Vec<Arc<Object<PeerAuthentication>>>,
    /// AuthorizationPolicies.
    pub authorization_policies: Vec<Arc<Object<AuthorizationPolicy>>>,
    /// RequestAuthentications.
    pub request_authentications: Vec<Arc<Object<RequestAuthentication>>>,
    /// AcmeCertificates.
    pub acme_certificates: Vec<Arc<Object<AcmeCertificate>>>,
    /// IPDenyLists.
    pub ip_deny_lists: Vec<Arc<Object<IpDenyList>>>,
    /// ExternalCredentials.
    pub external_credentials: Vec<Arc<Object<ExternalCredential>>>,
    /// RateLimits.
    pub rate_limits: Vec<Arc<Object<RateLimit>>>,
    /// Compressions.
    pub compressions: Vec<Arc<Object<Compression>>>,
    /// TrafficManagements.
    pub traffic_managements: Vec<Arc<Object<TrafficManagement>>>,
    /// ServiceMeshConfigs.
    pub service_mesh_configs: Vec<Arc<Object<ServiceMeshConfig>>>,
    /// HealthChecks.
    pub health_checks: Vec<Arc<Object<HealthCheck>>>,
    /// Namespaces, for their labels.
    pub namespaces: Vec<Arc<Object<()>>>,
    /// GatewayClasses. What the Gateway API's kinds say is in Gateways and VirtualServices when a World is made.
    pub gateway_classes: Vec<Arc<Object<GatewayClass>>>,
    /// Gateways of the Gateway API.
    pub api_gateways: Vec<Arc<Object<ApiGateway>>>,
    /// HTTPRoutes.
    pub http_routes: Vec<Arc<Object<HttpRoute>>>,
    /// GRPCRoutes.
    pub grpc_routes: Vec<Arc<Object<GrpcRoute>>>,
    /// TLSRoutes.
    pub tls_routes: Vec<Arc<Object<TlsRoute>>>,
    /// ReferenceGrants.
    pub reference_grants: Vec<Arc<Object<ReferenceGrant>>>,
    /// Telemetries.
    pub telemetries: Vec<Arc<Object<Telemetry>>>,
    /// ProxyConfigs.
    pub proxy_configs: Vec<Arc<Object<ProxyConfig>>>,
    /// MetricDefinitions.
    pub metric_definitions: Vec<Arc<Object<MetricDefinition>>>,
    /// WorkloadGroups.
    pub workload_groups: Vec<Arc<Object<WorkloadGroup>>>,
    /// Secrets of type kubernetes.io/tls, and those with roots only.
    pub secrets: Vec<Arc<Object<TlsSecret>>>,
    /// Pods, where Kubernetes says which there are.
    pub pods: Vec<Arc<Pod>>,
    /// What stands behind each Kubernetes Service, by namespace and name, where EndpointSlices say so; else its selector does.
    pub backends: Option<HashMap<(String, String), Arc<Backends>>>,
}

/// Runs a macro with the name of each list of objects of namespaces.
macro_rules! of_namespaces {
    ($each:ident) => {
        $each!(
            services,
            service_entries,
            workload_entries,
            virtual_services,
            destination_rules,
            gateways,
            sidecars,
            peer_authentications,
            authorization_policies,
            request_authentications,
            acme_certificates,
            ip_deny_lists,
            external_credentials,
            rate_limits,
            compressions,
            traffic_managements,
            service_mesh_configs,
            health_checks,
            api_gateways,
            http_routes,
            grpc_routes,
            tls_routes,
            reference_grants,
            telemetries,
            proxy_configs,
            workload_groups,
            metric_definitions,
            secrets
        );
    };
}

impl Objects {
    /// Takes in what `other` has, too.
    pub fn absorb(&mut self, other: &Self) {
        macro_rules! each {
            ($($kind:ident),*) => { $( self.$kind.extend_from_slice(&other.$kind); )* };
        }
        of_namespaces!(each);
        each!(namespaces, gateway_classes, pods);
        if other.mesh.is_some() {
            self.mesh.clone_from(&other.mesh);
        }
        if other.networks.is_some() {
            self.networks.clone_from(&other.networks);
        }
        if let Some(backends) = &other.backends {
            let known = backends.iter().map(|(name, backends)| (name.clone(), backends.clone()));
            self.backends.get_or_insert_default().extend(known);
        }
    }

    /// Keeps of the objects of namespaces those in these. Each is asked about once; what stands behind services, and pods, go with
    /// their namespace.
    pub fn retain_namespaces(&mut self, mut stays: impl FnMut(&str) -> bool) {
        macro_rules! each {
            ($($kind:ident),*) => { $( self.$kind.retain(|object| stays(&object.meta.namespace)); )* };
        }
        of_namespaces!(each);
        self.pods.retain(|pod| stays(&pod.workload.meta.namespace));
        if let Some(backends) = &mut self.backends {
            backends.retain(|(namespace, _), _| stays(namespace));
        }
    }
}

/// One consistent state of the mesh. Cloning it copies a few pointers.
///
/// Lists are in Istio's order of precedence, oldest first ([`super::Meta::precedence`]).
#[derive(Clone, Debug)]
pub struct World {
    parts: Arc<Parts>,
    /// What was fetched for it: keys of token issuers.
    keys: Arc<KeySets>,
    /// What has come of its AcmeCertificates.
    acme: Arc<Acme>,
    /// The same: lists of addresses.
    denied: Arc<DenyLists>,
    /// The same: credentials that are kept outside.
    credentials: Arc<Credentials>,
    /// What versions on trial get.
    shares: Arc<Shares>,
    /// Who is in which network, and how it is reached.
    networks: Arc<Networks>,
}

#[derive(Debug)]
struct Parts {
    version: u64,
    shape_version: u64,
    peer_version: u64,
    /// What the mesh-wide settings are from; none for the defaults.
    settings: Option<Arc<Object<MeshConfig>>>,
    mesh_networks: Option<Arc<Object<MeshNetworks>>>,
    mesh: Arc<MeshConfig>,
    mesh_version: u64,
    domain: String,
    kubernetes: List<KubernetesService>,
    service_entries: List<ServiceEntry>,
    workload_entries: List<WorkloadEntry>,
    pods: Arc<Vec<Arc<Pod>>>,
    pods_version: u64,
    /// Whether there are pods to know of.
    knows_pods: bool,
    registry: Registry,
    by_host: Arc<HashMap<Arc<str>, Vec<usize>>>,
    addresses: Addresses,
    /// Those of the WorkloadEntries, in their order.
    entered: Arc<Vec<Arc<Workload>>>,
    workloads: Arc<Vec<Arc<Workload>>>,
    /// Keys of the labels by which clients are told apart.
    client_labels: BTreeSet<String>,
    /// VirtualServices as they are written.
    written_routes: List<VirtualService>,
    virtual_services: List<VirtualService>,
    /// Who sees each VirtualService, in the same order.
    routes_export: Arc<Vec<ExportTo>>,
    destination_rules: List<DestinationRule>,
    merged_rules: Arc<Vec<Arc<MergedRule>>>,
    rules_by_namespace: Arc<ByNamespace>,
    gateways: List<Gateway>,
    sidecars: List<Sidecar>,
    peer_authentications: List<PeerAuthentication>,
    authorization_policies: List<AuthorizationPolicy>,
    request_authentications: List<RequestAuthentication>,
    acme_certificates: List<AcmeCertificate>,
    ip_deny_lists: List<IpDenyList>,
    external_credentials: List<ExternalCredential>,
    rate_limits: List<RateLimit>,
    compressions: List<Compression>,
    traffic_managements: List<TrafficManagement>,
    service_mesh_configs: List<ServiceMeshConfig>,
    health_checks: List<HealthCheck>,
    telemetries: List<Telemetry>,
    proxy_configs: List<ProxyConfig>,
    workload_groups: List<WorkloadGroup>,
    metric_definitions: List<MetricDefinition>,
    /// What it is made of, where workloads may enter themselves.
    source: Option<Arc<Objects>>,
    secrets: List<TlsSecret>,
    expansions: Vec<Note>,
}

/// Objects in their order, shared with the states before and after that have the same ones.
type List<T> = Arc<Vec<Arc<Object<T>>>>;

/// Indexes by namespace.
type ByNamespace = HashMap<String, Vec<usize>>;

impl Default for World {
    fn default() -> Self {
        Self::new(Objects::default())
    }
}

impl World {
    /// Builds the state that follows from these objects, whatever their order.
    pub fn new(objects: Objects) -> Self {
        Self::build(objects, None)
    }

    /// The same, from what is in this one as far as that is made from the same objects (and not from equal ones: who reads the
    /// objects keeps those that did not change). What was fetched for this one is not in it.
    pub fn next(&self, objects: Objects) -> Self {
        Self::build(objects, Some(&self.parts))
    }

    fn build(objects: Objects, before: Option<&Parts>) -> Self {
        let source = (!objects.workload_groups.is_empty()).then(|| Arc::new(objects.clone()));
        let plain = objects.service_mesh_configs.is_empty() && objects.traffic_managements.is_empty();
        let (objects, expansions) = match plain {
            true => (objects, Vec::new()),
            false => expand(&objects),
        };
        let networks = networks(&objects);
        macro_rules! ordered {
            ($($kind:ident),*) => { $( let $kind = kept(in_order(objects.$kind), before.map(|b| &b.$kind)); )* };
        }
        ordered!(
            gateways,
            sidecars,
            peer_authentications,
            authorization_policies,
            request_authentications,
            acme_certificates,
            ip_deny_lists,
            external_credentials,
            rate_limits,
            compressions,
            traffic_managements,
            service_mesh_configs,
            health_checks,
            telemetries,
            proxy_configs,
            workload_groups,
            metric_definitions,
            secrets,
            service_entries,
            destination_rules
        );
        let entries =
            objects.workload_entries.into_iter().filter(|entry| Place::here().takes(entry)).collect();
        let workload_entries = kept(in_order(entries), before.map(|b| &b.workload_entries));
        let kubernetes = kept(in_order(objects.services), before.map(|b| &b.kubernetes));
        let written_routes = kept(in_order(objects.virtual_services), before.map(|b| &b.written_routes));
        let pods = kept(objects.pods, before.map(|b| &b.pods));
        let settings = objects.mesh;
        let mesh_version = settings.as_ref().map_or(0, |object| object.meta.version);
        let same_mesh = |b: &&Parts| match (&b.settings, &settings) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let mesh = match before.filter(same_mesh) {
            Some(before) => before.mesh.clone(),
            None => Arc::new(settings.as_ref().map(|object| object.spec.clone()).unwrap_or_default()),
        };
        // Everything below reads the mesh-wide settings.
        let before = before.filter(|b| Arc::ptr_eq(&b.mesh, &mesh));

        let (merged_rules, rules_by_namespace) =
            match before.filter(|b| Arc::ptr_eq(&b.destination_rules, &destination_rules)) {
                Some(b) => (b.merged_rules.clone(), b.rules_by_namespace.clone()),
                None => rules(&destination_rules, &mesh),
            };
        let default_export = &mesh.default_virtual_service_export_to;
        let (virtual_services, routes_export) =
            match before.filter(|b| Arc::ptr_eq(&b.written_routes, &written_routes)) {
                Some(b) => (b.virtual_services.clone(), b.routes_export.clone()),
                None => {
                    let export = |object: &Arc<Object<VirtualService>>| {
                        ExportTo::parse(&object.spec.export_to, default_export, &object.meta.namespace)
                    };
                    (
                        Arc::new(lookup::resolve_delegates(&written_routes, default_export)),
                        Arc::new(written_routes.iter().map(export).collect()),
                    )
                }
            };

        let same_entries = before.is_some_and(|b| Arc::ptr_eq(&b.workload_entries, &workload_entries));
        let same_pods = before.is_some_and(|b| Arc::ptr_eq(&b.pods, &pods));
        let entered = match before {
            Some(b) if same_entries => b.entered.clone(),
            _ => entered(&workload_entries, before),
        };
        let registered = registry::Registered {
            entries: &entered,
            pods: &pods,
            backends: objects.backends.as_ref(),
            same_entries,
            same_pods,
        };
        let registry = registry::services(
            &kubernetes,
            &service_entries,
            &registered,
            &mesh,
            DEFAULT_DOMAIN,
            before.map(|b| &b.registry),
        );
        let services = &registry.services;
        let same_hosts = |b: &&Parts| {
            let known = &b.registry.services;
            known.len() == services.len() && known.iter().zip(services).all(|(a, b)| a.hostname == b.hostname)
        };
        let (by_host, addresses) = match before.filter(same_hosts) {
            Some(b) => {
                let mut addresses = b.addresses.clone();
                if !same_entries || !same_pods {
                    addresses.settle((&b.entered, &b.pods), (&entered, &pods));
                }
                for (index, (before, now)) in b.registry.services.iter().zip(services).enumerate() {
                    if !Arc::ptr_eq(before, now) {
                        addresses.replace(index, before, now);
                    }
                }
                (b.by_host.clone(), addresses)
            }
            None => {
                let mut by_host: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
                for (index, service) in services.iter().enumerate() {
                    by_host.entry(service.hostname.clone()).or_default().push(index);
                }
                (Arc::new(by_host), Addresses::new(&entered, &pods, services))
            }
        };
        let workloads = match before {
            Some(b) if same_entries && same_pods => b.workloads.clone(),
            // The address of a pod in its node's network is its node's, and that of others there.
            _ => {
                let own = pods.iter().filter(|pod| !pod.host_network).map(|pod| pod.workload.clone());
                Arc::new(entered.iter().cloned().chain(own).collect())
            }
        };
        let pods_version = match before {
            Some(b) if same_pods => b.pods_version,
            _ => {
                let mut hasher = DefaultHasher::new();
                for pod in &*pods {
                    (&pod.workload.endpoint, &pod.workload.meta.annotations).hash(&mut hasher);
                    (pod.ready, pod.host_network).hash(&mut hasher);
                }
                hasher.finish()
            }
        };

        let mut hasher = DefaultHasher::new();
        mesh_version.hash(&mut hasher);
        hash_all(&kubernetes, &mut hasher);
        hash_all(&service_entries, &mut hasher);
        hash_all(&workload_entries, &mut hasher);
        hash_all(&written_routes, &mut hasher);
        hash_all(&destination_rules, &mut hasher);
        hash_all(&gateways, &mut hasher);
        hash_all(&sidecars, &mut hasher);
        hash_all(&peer_authentications, &mut hasher);
        hash_all(&authorization_policies, &mut hasher);
        hash_all(&request_authentications, &mut hasher);
        hash_all(&acme_certificates, &mut hasher);
        hash_all(&ip_deny_lists, &mut hasher);
        hash_all(&external_credentials, &mut hasher);
        hash_all(&rate_limits, &mut hasher);
        hash_all(&compressions, &mut hasher);
        hash_all(&traffic_managements, &mut hasher);
        hash_all(&service_mesh_configs, &mut hasher);
        hash_all(&health_checks, &mut hasher);
        hash_all(&telemetries, &mut hasher);
        hash_all(&proxy_configs, &mut hasher);
        hash_all(&workload_groups, &mut hasher);
        hash_all(&metric_definitions, &mut hasher);
        hash_all(&secrets, &mut hasher);
        pods_version.hash(&mut hasher);
        let knows_pods = objects.backends.is_some();
        for service in services.iter().filter(|_| knows_pods) {
            (service.versions.endpoints, &service.waiting).hash(&mut hasher);
        }
        let version = hasher.finish();
        // The same without the workloads: their comings and goings leave routes and listeners as they are.
        let mut hasher = DefaultHasher::new();
        mesh_version.hash(&mut hasher);
        services.iter().for_each(|service| service.versions.shape.hash(&mut hasher));
        hash_all(&written_routes, &mut hasher);
        hash_all(&destination_rules, &mut hasher);
        hash_all(&gateways, &mut hasher);
        hash_all(&sidecars, &mut hasher);
        hash_all(&peer_authentications, &mut hasher);
        hash_all(&authorization_policies, &mut hasher);
        hash_all(&request_authentications, &mut hasher);
        hash_all(&external_credentials, &mut hasher);
        hash_all(&rate_limits, &mut hasher);
        hash_all(&compressions, &mut hasher);
        hash_all(&traffic_managements, &mut hasher);
        hash_all(&service_mesh_configs, &mut hasher);
        hash_all(&health_checks, &mut hasher);
        // A version on trial gets nothing while nobody serves it.
        for trial in traffic_managements.iter().filter_map(|t| t.spec.canary_deployment.as_ref()) {
            for service in services.iter().filter(|s| s.hostname.eq_ignore_ascii_case(&trial.service)) {
                (serves(service, &trial.stable_version), serves(service, &trial.canary_version))
                    .hash(&mut hasher);
            }
        }
        hash_all(&telemetries, &mut hasher);
        hash_all(&metric_definitions, &mut hasher);
        let shape_version = hasher.finish();
        let mut hasher = DefaultHasher::new();
        hash_all(&peer_authentications, &mut hasher);
        mesh_version.hash(&mut hasher);
        let peer_version = hasher.finish();
        let client_labels = {
            let written = written_routes.iter().flat_map(|object| object.spec.source_labels());
            let rules = destination_rules.iter().filter_map(|object| object.spec.workload_selector.as_ref());
            let sidecars = sidecars.iter().filter_map(|object| object.spec.workload_selector.as_ref());
            let others = external_credentials.iter().filter_map(|object| object.spec.selector.as_ref());
            let others = others.chain(rate_limits.iter().filter_map(|object| object.spec.selector.as_ref()));
            let others = others
                .chain(request_authentications.iter().filter_map(|object| object.spec.selector.as_ref()));
            let others = others.chain(compressions.iter().filter_map(|object| object.spec.selector.as_ref()));
            let others = others.chain(telemetries.iter().filter_map(|object| object.spec.selector.as_ref()));
            let own = metric_definitions.iter().filter_map(|object| object.spec.selector.as_ref());
            let others = others.chain(own);
            let selectors = rules.chain(sidecars).chain(others).map(|selector| &selector.labels);
            let gateways = gateways.iter().map(|object| &object.spec.selector);
            written.chain(selectors).chain(gateways).flat_map(|labels| labels.keys().cloned()).collect()
        };
        Self {
            parts: Arc::new(Parts {
                client_labels,
                version,
                shape_version,
                peer_version,
                settings,
                mesh_networks: objects.networks,
                mesh,
                mesh_version,
                domain: DEFAULT_DOMAIN.to_owned(),
                kubernetes,
                service_entries,
                workload_entries,
                pods,
                pods_version,
                knows_pods,
                registry,
                by_host,
                addresses,
                entered,
                workloads,
                written_routes,
                virtual_services,
                routes_export,
                destination_rules,
                merged_rules,
                rules_by_namespace,
                gateways,
                sidecars,
                peer_authentications,
                authorization_policies,
                request_authentications,
                acme_certificates,
                ip_deny_lists,
                external_credentials,
                rate_limits,
                compressions,
                traffic_managements,
                service_mesh_configs,
                health_checks,
                telemetries,
                proxy_configs,
                workload_groups,
                metric_definitions,
                source,
                secrets,
                expansions,
            }),
            keys: Arc::default(),
            acme: Arc::default(),
            denied: Arc::default(),
            credentials: Arc::default(),
            shares: Arc::default(),
            networks: Arc::new(networks),
        }
    }

    /// The same with these keys of token issuers.
    pub fn with_keys(&self, keys: Arc<KeySets>) -> Self {
        Self { keys, ..self.clone() }
    }

    /// The same with what has come of its AcmeCertificates.
    pub fn with_acme(&self, acme: Arc<Acme>) -> Self {
        Self { acme, ..self.clone() }
    }

    /// What has come of its AcmeCertificates.
    pub fn acme(&self) -> &Arc<Acme> {
        &self.acme
    }

    /// The same with these lists of addresses.
    pub fn with_deny_lists(&self, denied: Arc<DenyLists>) -> Self {
        Self { denied, ..self.clone() }
    }

    /// The same with these credentials.
    pub fn with_credentials(&self, credentials: Arc<Credentials>) -> Self {
        Self { credentials, ..self.clone() }
    }

    /// The same with these shares of versions on trial.
    pub fn with_shares(&self, shares: Arc<Shares>) -> Self {
        Self { shares, ..self.clone() }
    }

    /// The same with these addresses for the names of networks' gateways.
    pub fn with_gateway_names(&self, names: &BTreeMap<String, Vec<IpAddr>>) -> Self {
        Self { networks: Arc::new(self.networks.resolved(names)), ..self.clone() }
    }

    /// The same with networks' gateways as they are written, be it by names that nobody has looked up.
    pub fn with_gateways_as_written(&self) -> Self {
        Self { networks: Arc::new(self.networks.as_written()), ..self.clone() }
    }

    /// Who is in which network, and how it is reached.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The mesh's settings of networks, where there are any.
    pub fn mesh_networks(&self) -> Option<&Arc<Object<MeshNetworks>>> {
        self.parts.mesh_networks.as_ref()
    }

    /// Every Kubernetes Service as it is written.
    pub fn kubernetes_services(&self) -> &[Arc<Object<KubernetesService>>] {
        &self.parts.kubernetes
    }

    /// What versions on trial get.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The credentials that were read for it.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The lists of addresses that were read for it.
    pub fn deny_lists(&self) -> &Arc<DenyLists> {
        &self.denied
    }

    /// The keys of token issuers that were fetched for it.
    pub fn keys(&self) -> &Arc<KeySets> {
        &self.keys
    }

    /// Hash of everything in it: two Worlds of equal version say the same.
    pub fn version(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let read = (self.acme.version(), self.denied.version(), self.credentials.version());
        let networks = (self.networks.version(), self.networks.gateways_version());
        (self.with_keys_version(self.parts.version), read, networks).hash(&mut hasher);
        hasher.finish()
    }

    fn with_keys_version(&self, version: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (version, self.keys.version(), self.acme.challenges_version(), self.shares.version())
            .hash(&mut hasher);
        hasher.finish()
    }

    /// Hash of everything but endpoints, secrets and lists of addresses.
    pub fn shape_version(&self) -> u64 {
        self.with_keys_version(self.parts.shape_version)
    }

    /// Hash of what says which workloads take mutual TLS.
    pub fn peer_version(&self) -> u64 {
        self.parts.peer_version
    }

    /// Whether the two differ in nothing but endpoints and workloads.
    pub(super) fn says_the_same_beside_endpoints(&self, other: &Self) -> bool {
        let (a, b) = (&self.parts, &other.parts);
        self.shape_version() == other.shape_version()
            && a.peer_version == b.peer_version
            && a.knows_pods == b.knows_pods
            && hash_of(&a.secrets) == hash_of(&b.secrets)
            && hash_of(&a.acme_certificates) == hash_of(&b.acme_certificates)
            && hash_of(&a.ip_deny_lists) == hash_of(&b.ip_deny_lists)
            && self.networks.version() == other.networks.version()
            && self.acme.version() == other.acme.version()
            && self.denied.version() == other.denied.version()
            && self.credentials.version() == other.credentials.version()
    }

    /// What another state has otherwise, for tests.
    #[cfg(test)]
    pub(crate) fn differing(&self, other: &Self) -> Option<&'static str> {
        let (a, b) = (&self.parts, &other.parts);
        macro_rules! same {
            ($($part:ident),*) => { $( if a.$part != b.$part { return Some(stringify!($part)); } )* };
        }
        same!(
            client_labels,
            version,
            shape_version,
            peer_version,
            mesh,
            mesh_version,
            knows_pods,
            by_host,
            pods,
            entered,
            workloads
        );
        same!(virtual_services, routes_export, merged_rules, rules_by_namespace, gateways, sidecars, secrets);
        same!(peer_authentications, authorization_policies, request_authentications, destination_rules);
        if self.services() != other.services() {
            return Some("services");
        }
        if self.networks != other.networks {
            return Some("networks");
        }
        (!a.addresses.same(&b.addresses)).then_some("addresses")
    }

    /// The addresses at which other workloads are than in `before`.
    pub(super) fn moved_workloads(&self, before: &Self) -> HashSet<Arc<str>> {
        let (a, b) = (&self.parts, &before.parts);
        if Arc::ptr_eq(&a.entered, &b.entered) && Arc::ptr_eq(&a.pods, &b.pods) {
            return HashSet::new();
        }
        super::addresses::moved((&b.entered, &b.pods), (&a.entered, &a.pods))
    }

    /// Version of the mesh-wide settings; 0 when they are the defaults.
    pub fn mesh_version(&self) -> u64 {
        self.parts.mesh_version
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &Arc<MeshConfig> {
        &self.parts.mesh
    }

    /// Keys of the labels that can matter to where a workload's own requests go. What else it is labelled tells it apart from others
    /// as a server alone.
    pub fn client_labels(&self) -> &BTreeSet<String> {
        &self.parts.client_labels
    }

    /// DNS domain of the mesh's services, `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.parts.domain
    }

    /// Every service, whoever sees it.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.parts.registry.services
    }

    /// Every workload that is written down as a WorkloadEntry, and every pod.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.parts.workloads
    }

    /// Every VirtualService, with the rules of its delegates in place.
    pub fn virtual_services(&self) -> &[Arc<Object<VirtualService>>] {
        &self.parts.virtual_services
    }

    /// Every DestinationRule.
    pub fn destination_rules(&self) -> &[Arc<Object<DestinationRule>>] {
        &self.parts.destination_rules
    }

    /// DestinationRules merged by namespace, host, selector and audience.
    pub fn merged_rules(&self) -> &[Arc<MergedRule>] {
        &self.parts.merged_rules
    }

    /// Every Gateway.
    pub fn gateways(&self) -> &[Arc<Object<Gateway>>] {
        &self.parts.gateways
    }

    /// Every Sidecar.
    pub fn sidecars(&self) -> &[Arc<Object<Sidecar>>] {
        &self.parts.sidecars
    }

    /// Every pod at this address, in its own network or its node's.
    pub fn pods_at(&self, address: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.parts.addresses.pods(address)
    }

    /// Whether somebody of this namespace and service account is at this address, as far as the world knows who is where: a pod
    /// that claims another's address does not get what the other one gets. In a directory nobody says who is where.
    pub fn vouches(&self, address: &str, namespace: &str, account: &str) -> bool {
        if !self.parts.knows_pods {
            return true;
        }
        // Nobody vouches for who said itself where it is.
        let is = |w: &Arc<Workload>| {
            w.meta.namespace == namespace && w.service_account() == account && !w.entered_itself()
        };
        self.workload_at(address).is_some_and(is) || self.parts.addresses.pods(address).any(is)
    }

    /// Every PeerAuthentication.
    pub fn peer_authentications(&self) -> &[Arc<Object<PeerAuthentication>>] {
        &self.parts.peer_authentications
    }

    /// Every AuthorizationPolicy.
    pub fn all_authorization_policies(&self) -> &[Arc<Object<AuthorizationPolicy>>] {
        &self.parts.authorization_policies
    }

    /// Every RequestAuthentication.
    pub fn request_authentications(&self) -> &[Arc<Object<RequestAuthentication>>] {
        &self.parts.request_authentications
    }

    /// Every AcmeCertificate.
    pub fn acme_certificates(&self) -> &[Arc<Object<AcmeCertificate>>] {
        &self.parts.acme_certificates
    }

    /// Every IPDenyList.
    pub fn ip_deny_lists(&self) -> &[Arc<Object<IpDenyList>>] {
        &self.parts.ip_deny_lists
    }

    /// Every ExternalCredential.
    pub fn external_credentials(&self) -> &[Arc<Object<ExternalCredential>>] {
        &self.parts.external_credentials
    }

    /// Every RateLimit.
    pub fn rate_limits(&self) -> &[Arc<Object<RateLimit>>] {
        &self.parts.rate_limits
    }

    /// Every MetricDefinition.
    pub fn metric_definitions(&self) -> &[Arc<Object<MetricDefinition>>] {
        &self.parts.metric_definitions
    }

    /// Every WorkloadGroup.
    pub fn workload_groups(&self) -> &[Arc<Object<WorkloadGroup>>] {
        &self.parts.workload_groups
    }

    /// The same with workloads that entered themselves, as far as their groups are there and nothing else has their names; made from
    /// what is in `before` as far as that is the same.
    #[must_use]
    pub fn with_entries(&self, entered: &[Arc<Object<WorkloadEntry>>], before: Option<&Self>) -> Self {
        let Some(source) = self.parts.source.as_ref().filter(|_| !entered.is_empty()) else {
            return self.clone();
        };
        let mut objects = Objects::clone(source);
        let holds = |entry: &&Arc<Object<WorkloadEntry>>| {
            let meta = &entry.meta;
            let group = meta.annotations.get(GROUP_ANNOTATION);
            let is_it = |other: &Meta| other.namespace == meta.namespace && Some(&other.name) == group;
            source.workload_groups.iter().any(|group| is_it(&group.meta))
                && !source.workload_entries.iter().any(|written| written.meta.key() == meta.key())
        };
        objects.workload_entries.extend(entered.iter().filter(holds).cloned());
        Self::build(objects, before.map(|before| &*before.parts))
    }

    /// Every ProxyConfig.
    pub fn proxy_configs(&self) -> &[Arc<Object<ProxyConfig>>] {
        &self.parts.proxy_configs
    }

    /// Every Telemetry.
    pub fn telemetries(&self) -> &[Arc<Object<Telemetry>>] {
        &self.parts.telemetries
    }

    /// Every Compression.
    pub fn compressions(&self) -> &[Arc<Object<Compression>>] {
        &self.parts.compressions
    }

    /// Every HealthCheck.
    pub fn health_checks(&self) -> &[Arc<Object<HealthCheck>>] {
        &self.parts.health_checks
    }

    /// Every ServiceMeshConfig.
    pub fn service_mesh_configs(&self) -> &[Arc<Object<ServiceMeshConfig>>] {
        &self.parts.service_mesh_configs
    }

    /// What the ServiceMeshConfigs stand for, and what there is to say about that.
    pub fn expansions(&self) -> &[Note] {
        &self.parts.expansions
    }

    /// Every TrafficManagement.
    pub fn traffic_managements(&self) -> &[Arc<Object<TrafficManagement>>] {
        &self.parts.traffic_managements
    }

    /// Every TLS secret.
    pub fn secrets(&self) -> &[Arc<Object<TlsSecret>>] {
        &self.parts.secrets
    }

    /// What was written of everything that is here: settings, services and workloads, Istio's kinds and Weft's. Objects may be named
    /// several times, as a ServiceEntry for each of its hosts; what only follows from others is not among them.
    pub fn written(&self) -> Vec<&Meta> {
        let parts = &*self.parts;
        let mut all: Vec<&Meta> = Vec::new();
        all.extend(parts.settings.iter().map(|object| &object.meta));
        all.extend(parts.mesh_networks.iter().map(|object| &object.meta));
        all.extend(self.services().iter().map(|service| &*service.meta));
        all.extend(self.workloads().iter().map(|workload| &*workload.meta));
        macro_rules! each {
            ($($kind:ident),*) => { $( all.extend(parts.$kind.iter().map(|object| &object.meta)); )* };
        }
        each!(
            service_entries,
            written_routes,
            destination_rules,
            gateways,
            sidecars,
            peer_authentications,
            authorization_policies,
            request_authentications,
            acme_certificates,
            ip_deny_lists,
            external_credentials,
            rate_limits,
            compressions,
            traffic_managements,
            service_mesh_configs,
            health_checks,
            telemetries,
            proxy_configs,
            workload_groups,
            metric_definitions
        );
        all.retain(|meta| meta.source.position != super::expand::MADE);
        all
    }

    /// The TLS secret with this name, or the credential that an ACME server issued in the place of one.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Object<TlsSecret>>> {
        self.parts
            .secrets
            .iter()
            .find(|secret| secret.meta.namespace == namespace && secret.meta.name == name)
            .or_else(|| self.acme.credential(namespace, name))
    }

    /// The workload with this address.
    pub fn workload_at(&self, address: &str) -> Option<&Arc<Workload>> {
        self.parts.addresses.workload(address)
    }

    /// The services that the workload at `address` serves, or will once it is ready, each with the endpoint that it is there, oldest first.
    pub fn served_at(&self, address: &str) -> impl Iterator<Item = (&Arc<Service>, &Arc<Endpoint>)> {
        self.parts.addresses.serves(address).iter().map(|(service, endpoint)| {
            let service = &self.services()[*service];
            let ready = service.endpoints.len();
            (service, service.endpoints.get(*endpoint).unwrap_or_else(|| &service.waiting[*endpoint - ready]))
        })
    }

    /// The merged DestinationRules of one namespace.
    pub(super) fn rules_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<MergedRule>> {
        let indexes = self.parts.rules_by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default();
        indexes.iter().map(|index| &self.parts.merged_rules[*index])
    }

    /// Every VirtualService, with who sees it.
    pub(super) fn exported_routes(&self) -> impl Iterator<Item = (&Arc<Object<VirtualService>>, &ExportTo)> {
        self.parts.virtual_services.iter().zip(&*self.parts.routes_export)
    }

    /// The services with exactly this host name, oldest first.
    pub fn services_with_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let indexes = self.parts.by_host.get(hostname).map(Vec::as_slice).unwrap_or_default();
        indexes.iter().map(|index| &self.services()[*index])
    }
}

/// The networks that follow from these.
fn networks(objects: &Objects) -> Networks {
    let settings = objects.mesh.as_ref().map(|object| object.spec.root_namespace.as_str());
    let default = MeshConfig::default();
    let root = settings.unwrap_or(&default.root_namespace);
    let system = objects.namespaces.iter().find(|namespace| namespace.meta.name == root);
    Networks::new(&Sources {
        mesh: objects.networks.as_ref().map(|object| &object.spec),
        system: system.map(|namespace| &namespace.meta.labels),
        services: &objects.services,
        gateways: &objects.network_gateways,
        nodes: &objects.nodes,
        domain: DEFAULT_DOMAIN,
        cluster: &Place::here().cluster,
    })
}

fn in_order<T>(mut objects: Vec<Arc<Object<T>>>) -> Vec<Arc<Object<T>>> {
    objects.sort_by(|a, b| a.meta.precedence(&b.meta));
    objects
}

/// The list of the state before, if it has the same in it.
fn kept<T>(now: Vec<Arc<T>>, before: Option<&Arc<Vec<Arc<T>>>>) -> Arc<Vec<Arc<T>>> {
    let same =
        |b: &&Arc<Vec<Arc<T>>>| b.len() == now.len() && b.iter().zip(&now).all(|(a, b)| Arc::ptr_eq(a, b));
    match before.filter(same) {
        Some(before) => before.clone(),
        None => Arc::new(now),
    }
}

/// The workloads of WorkloadEntries, those of entries that were there before as they were.
fn entered(entries: &[Arc<Object<WorkloadEntry>>], before: Option<&Parts>) -> Arc<Vec<Arc<Workload>>> {
    let known: HashMap<*const Object<WorkloadEntry>, &Arc<Workload>> = before
        .into_iter()
        .flat_map(|b| b.workload_entries.iter().zip(&*b.entered))
        .map(|(entry, workload)| (Arc::as_ptr(entry), workload))
        .collect();
    let made = |entry: &Arc<Object<WorkloadEntry>>| match known.get(&Arc::as_ptr(entry)) {
        Some(known) => (*known).clone(),
        None => Arc::new(registry::workload(entry)),
    };
    Arc::new(entries.iter().map(made).collect())
}

/// DestinationRules merged, and where those of each namespace are.
fn rules(
    all: &[Arc<Object<DestinationRule>>],
    mesh: &MeshConfig,
) -> (Arc<Vec<Arc<MergedRule>>>, Arc<ByNamespace>) {
    let merged = lookup::merge(all, &mesh.default_destination_rule_export_to);
    let mut by_namespace = ByNamespace::new();
    for (index, rule) in merged.iter().enumerate() {
        by_namespace.entry(rule.meta.namespace.clone()).or_default().push(index);
    }
    (Arc::new(merged), Arc::new(by_namespace))
}

fn hash_of<T>(objects: &[Arc<Object<T>>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hash_all(objects, &mut hasher);
    hasher.finish()
}

/// Objects with their order: which of two rules is older is part of what a World says.
fn hash_all<T>(objects: &[Arc<Object<T>>], hasher: &mut DefaultHasher) {
    objects.len().hash(hasher);
    for object in objects {
        object.meta.version.hash(hasher);
    }
}
