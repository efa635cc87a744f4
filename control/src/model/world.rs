//! The [`World`]: every object of one consistent state of the mesh, in order of precedence, with the services that
//! follow from them.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::acme::{Acme, AcmeCertificate};
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
use super::kubernetes::{Backends, KubernetesService, Pod, TlsSecret};
use super::lookup::{self, MergedRule};
use super::mesh_config::MeshConfig;
use super::meta::Object;
use super::peer_authentication::PeerAuthentication;
use super::rate_limit::RateLimit;
use super::registry::{self, WorkloadIndex};
use super::request_authentication::RequestAuthentication;
use super::service::{Endpoint, ExportTo, Service, Workload};
use super::service_entry::{ServiceEntry, WorkloadEntry};
use super::service_mesh_config::ServiceMeshConfig;
use super::sidecar::Sidecar;
use super::traffic_management::TrafficManagement;
use super::traffic_management::{Shares, serves};
use super::virtual_service::VirtualService;

/// The objects of one state of the mesh, as the reader found them; [`World::new`] makes them a World.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Mesh-wide settings; the defaults when absent.
    pub mesh: Option<Arc<Object<MeshConfig>>>,
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
    /// Secrets of type kubernetes.io/tls, and those with roots only.
    pub secrets: Vec<Arc<Object<TlsSecret>>>,
    /// Pods, where Kubernetes says which there are.
    pub pods: Vec<Arc<Pod>>,
    /// What stands behind each Kubernetes Service, by namespace and name, where EndpointSlices say so; else its selector does.
    pub backends: Option<HashMap<(String, String), Arc<Backends>>>,
}

impl Objects {
    /// Takes in what `other` has, too.
    pub fn absorb(&mut self, other: &Self) {
        macro_rules! each {
            ($($kind:ident),*) => { $( self.$kind.extend_from_slice(&other.$kind); )* };
        }
        each!(
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
            namespaces,
            gateway_classes,
            api_gateways,
            http_routes,
            grpc_routes,
            tls_routes,
            reference_grants,
            secrets,
            pods
        );
        if other.mesh.is_some() {
            self.mesh.clone_from(&other.mesh);
        }
        if let Some(backends) = &other.backends {
            let known = backends.iter().map(|(name, backends)| (name.clone(), backends.clone()));
            self.backends.get_or_insert_default().extend(known);
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
}

#[derive(Debug)]
struct Parts {
    version: u64,
    shape_version: u64,
    peer_version: u64,
    mesh: Arc<MeshConfig>,
    mesh_version: u64,
    domain: String,
    services: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<usize>>,
    by_address: HashMap<String, AtAddress>,
    workloads: Vec<Arc<Workload>>,
    virtual_services: Vec<Arc<Object<VirtualService>>>,
    /// Who sees each VirtualService, in the same order.
    routes_export: Vec<ExportTo>,
    destination_rules: Vec<Arc<Object<DestinationRule>>>,
    merged_rules: Vec<Arc<MergedRule>>,
    rules_by_namespace: HashMap<String, Vec<usize>>,
    gateways: Vec<Arc<Object<Gateway>>>,
    sidecars: Vec<Arc<Object<Sidecar>>>,
    peer_authentications: Vec<Arc<Object<PeerAuthentication>>>,
    authorization_policies: Vec<Arc<Object<AuthorizationPolicy>>>,
    request_authentications: Vec<Arc<Object<RequestAuthentication>>>,
    acme_certificates: Vec<Arc<Object<AcmeCertificate>>>,
    ip_deny_lists: Vec<Arc<Object<IpDenyList>>>,
    external_credentials: Vec<Arc<Object<ExternalCredential>>>,
    rate_limits: Vec<Arc<Object<RateLimit>>>,
    compressions: Vec<Arc<Object<Compression>>>,
    traffic_managements: Vec<Arc<Object<TrafficManagement>>>,
    service_mesh_configs: Vec<Arc<Object<ServiceMeshConfig>>>,
    health_checks: Vec<Arc<Object<HealthCheck>>>,
    secrets: Vec<Arc<Object<TlsSecret>>>,
    expansions: Vec<Note>,
    /// Address, namespace and service account of each pod, where pods are known.
    pods: Option<HashSet<(String, String, String)>>,
}

/// What is at one address.
#[derive(Debug, Default)]
struct AtAddress {
    workload: Option<usize>,
    /// Indexes of services, each with the index of its endpoint.
    serves: Vec<(usize, usize)>,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Objects::default())
    }
}

impl World {
    /// Builds the state that follows from these objects, whatever their order.
    pub fn new(objects: Objects) -> Self {
        let plain = objects.service_mesh_configs.is_empty() && objects.traffic_managements.is_empty();
        let (objects, expansions) = match plain {
            true => (objects, Vec::new()),
            false => expand(&objects),
        };
        let mesh_version = objects.mesh.as_ref().map_or(0, |object| object.meta.version);
        let mesh = objects.mesh.map(|object| object.spec.clone()).unwrap_or_default();
        let virtual_services = in_order(objects.virtual_services);
        let gateways = in_order(objects.gateways);
        let sidecars = in_order(objects.sidecars);
        let peer_authentications = in_order(objects.peer_authentications);
        let authorization_policies = in_order(objects.authorization_policies);
        let request_authentications = in_order(objects.request_authentications);
        let acme_certificates = in_order(objects.acme_certificates);
        let ip_deny_lists = in_order(objects.ip_deny_lists);
        let external_credentials = in_order(objects.external_credentials);
        let rate_limits = in_order(objects.rate_limits);
        let compressions = in_order(objects.compressions);
        let traffic_managements = in_order(objects.traffic_managements);
        let service_mesh_configs = in_order(objects.service_mesh_configs);
        let health_checks = in_order(objects.health_checks);
        let secrets = in_order(objects.secrets);
        let workload_entries = in_order(objects.workload_entries);
        let kubernetes = in_order(objects.services);
        let entries = in_order(objects.service_entries);
        let destination_rules = in_order(objects.destination_rules);
        let merged_rules = lookup::merge(&destination_rules, &mesh.default_destination_rule_export_to);
        let mut workloads = registry::workloads(&workload_entries);
        let services = {
            // Pods stand behind Services as EndpointSlices say, and behind ServiceEntries as these select them.
            let ready = objects.pods.iter().filter(|pod| pod.ready).map(|pod| pod.workload.clone());
            let all: Vec<_> = workloads.iter().cloned().chain(ready).collect();
            let registered = registry::Registered {
                entries: &WorkloadIndex::new(&workloads),
                all: &WorkloadIndex::new(&all),
                backends: objects.backends.as_ref(),
            };
            registry::services(&kubernetes, &entries, &registered, &mesh, DEFAULT_DOMAIN)
        };
        // The address of a pod in its node's network is its node's, and that of others there.
        workloads.extend(objects.pods.iter().filter(|pod| !pod.host_network).map(|pod| pod.workload.clone()));
        let mut by_host: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            by_host.entry(service.hostname.clone()).or_default().push(index);
        }
        let mut by_address: HashMap<String, AtAddress> = HashMap::new();
        for (index, workload) in workloads.iter().enumerate() {
            let at = by_address.entry(workload.address().to_owned()).or_default();
            at.workload.get_or_insert(index);
        }
        for (index, service) in services.iter().enumerate() {
            for (place, endpoint) in service.endpoints.iter().chain(&service.waiting).enumerate() {
                let at = by_address.entry(endpoint.address.clone()).or_default();
                if at.serves.last().is_none_or(|(last, _)| *last != index) {
                    at.serves.push((index, place));
                }
            }
        }
        let mut rules_by_namespace: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, rule) in merged_rules.iter().enumerate() {
            rules_by_namespace.entry(rule.meta.namespace.clone()).or_default().push(index);
        }
        let default_export = &mesh.default_virtual_service_export_to;
        let routes_export = virtual_services
            .iter()
            .map(|object| ExportTo::parse(&object.spec.export_to, default_export, &object.meta.namespace))
            .collect();
        let mut hasher = DefaultHasher::new();
        mesh_version.hash(&mut hasher);
        hash_all(&kubernetes, &mut hasher);
        hash_all(&entries, &mut hasher);
        hash_all(&workload_entries, &mut hasher);
        hash_all(&virtual_services, &mut hasher);
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
        hash_all(&secrets, &mut hasher);
        for pod in &objects.pods {
            (&pod.workload.endpoint, &pod.workload.meta.annotations, pod.ready).hash(&mut hasher);
        }
        for service in services.iter().filter(|_| objects.backends.is_some()) {
            (service.versions.endpoints, &service.waiting).hash(&mut hasher);
        }
        let pods = objects.backends.is_some().then(|| {
            let of = |pod: &Arc<Pod>| {
                let workload = &pod.workload;
                let account = workload.service_account().to_owned();
                (workload.address().to_owned(), workload.meta.namespace.clone(), account)
            };
            objects.pods.iter().map(of).collect()
        });
        let version = hasher.finish();
        // The same without the workloads: their comings and goings leave routes and listeners as they are.
        let mut hasher = DefaultHasher::new();
        mesh_version.hash(&mut hasher);
        services.iter().for_each(|service| service.versions.shape.hash(&mut hasher));
        hash_all(&virtual_services, &mut hasher);
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
            for service in
                by_host.get(trial.service.as_str()).into_iter().flatten().map(|index| &services[*index])
            {
                (serves(service, &trial.stable_version), serves(service, &trial.canary_version))
                    .hash(&mut hasher);
            }
        }
        let shape_version = hasher.finish();
        let mut hasher = DefaultHasher::new();
        hash_all(&peer_authentications, &mut hasher);
        mesh_version.hash(&mut hasher);
        let peer_version = hasher.finish();
        let virtual_services =
            lookup::resolve_delegates(&virtual_services, &mesh.default_virtual_service_export_to);
        Self {
            parts: Arc::new(Parts {
                pods,
                version,
                shape_version,
                peer_version,
                mesh: Arc::new(mesh),
                mesh_version,
                domain: DEFAULT_DOMAIN.to_owned(),
                services,
                by_host,
                by_address,
                workloads,
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
                secrets,
                expansions,
            }),
            keys: Arc::default(),
            acme: Arc::default(),
            denied: Arc::default(),
            credentials: Arc::default(),
            shares: Arc::default(),
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
        (self.with_keys_version(self.parts.version), read).hash(&mut hasher);
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

    /// Version of the mesh-wide settings; 0 when they are the defaults.
    pub fn mesh_version(&self) -> u64 {
        self.parts.mesh_version
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

    /// Whether somebody of this namespace and service account is at this address, as far as the world knows who is where: a pod
    /// that claims another's address does not get what the other one gets. In a directory nobody says who is where.
    pub fn vouches(&self, address: &str, namespace: &str, account: &str) -> bool {
        let Some(pods) = &self.parts.pods else { return true };
        let entry = self.workload_at(address);
        entry.is_some_and(|w| w.meta.namespace == namespace && w.service_account() == account)
            || pods.contains(&(address.to_owned(), namespace.to_owned(), account.to_owned()))
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
        self.parts.by_address.get(address)?.workload.map(|index| &self.parts.workloads[index])
    }

    /// The services that the workload at `address` serves, or will once it is ready, each with the endpoint that it is there, oldest first.
    pub fn served_at(&self, address: &str) -> impl Iterator<Item = (&Arc<Service>, &Arc<Endpoint>)> {
        let serves = self.parts.by_address.get(address).map(|at| at.serves.as_slice()).unwrap_or_default();
        serves.iter().map(|(service, endpoint)| {
            let service = &self.parts.services[*service];
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
        self.parts.virtual_services.iter().zip(&self.parts.routes_export)
    }

    /// The services with exactly this host name, oldest first.
    pub fn services_with_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let indexes = self.parts.by_host.get(hostname).map(Vec::as_slice).unwrap_or_default();
        indexes.iter().map(|index| &self.parts.services[*index])
    }
}

fn in_order<T>(mut objects: Vec<Arc<Object<T>>>) -> Vec<Arc<Object<T>>> {
    objects.sort_by(|a, b| a.meta.precedence(&b.meta));
    objects
}

/// Objects with their order: which of two rules is older is part of what a World says.
fn hash_all<T>(objects: &[Arc<Object<T>>], hasher: &mut DefaultHasher) {
    objects.len().hash(hasher);
    for object in objects {
        object.meta.version.hash(hasher);
    }
}
