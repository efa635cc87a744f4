//! From objects to services: Kubernetes Services and ServiceEntries brought into one shape, endpoints attached.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::allocation::allocate;
use super::kubernetes::{Backends, IntOrName, KubernetesService};
use super::mesh_config::MeshConfig;
use super::meta::{Meta, Object};
use super::service::{
    Endpoint, ExportTo, Protocol, ROLE_ANNOTATION, Resolution, Service, ServiceLocation, ServiceOrigin,
    ServicePort, ServiceVersions, TargetPort, Workload,
};
use super::service_entry::{EntryPort, ServiceEntry, WorkloadEntry};
use super::values::{Labels, Locality, selects};

/// Annotation of a Kubernetes Service that says who sees it.
const EXPORT_TO_ANNOTATION: &str = "networking.istio.io/exportTo";
/// Label by which a workload says whether its proxy takes mutual TLS (`istio`) or there is none (`disabled`).
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
/// Label that gives a workload's locality.
const LOCALITY_LABEL: &str = "istio-locality";

/// Finds the workloads that a selector selects without asking every one of them.
pub(super) struct WorkloadIndex<'w> {
    workloads: &'w [Arc<Workload>],
    /// By namespace and one label.
    by_label: HashMap<(&'w str, &'w str, &'w str), Vec<usize>>,
}

impl<'w> WorkloadIndex<'w> {
    pub(super) fn new(workloads: &'w [Arc<Workload>]) -> Self {
        let mut by_label: HashMap<(&str, &str, &str), Vec<usize>> = HashMap::new();
        for (index, workload) in workloads.iter().enumerate() {
            for (key, value) in workload.labels() {
                by_label.entry((&workload.meta.namespace, key, value)).or_default().push(index);
            }
        }
        Self { workloads, by_label }
    }

    /// The endpoints of `namespace` that `selector` selects, in order. An empty selector selects none.
    fn select(&self, namespace: &str, selector: &Labels) -> Vec<Arc<Endpoint>> {
        let candidates = selector
            .iter()
            .map(|(key, value)| self.by_label.get(&(namespace, key, value)).map_or(&[][..], Vec::as_slice))
            .min_by_key(|found| found.len())
            .unwrap_or_default();
        candidates
            .iter()
            .map(|index| &self.workloads[*index])
            .filter(|workload| selects(selector, workload.labels()))
            .map(|workload| workload.endpoint.clone())
            .collect()
    }

    /// The endpoints of every workload of `namespace`.
    fn all_of(&self, namespace: &str) -> Vec<Arc<Endpoint>> {
        let own = self.workloads.iter().filter(|workload| workload.meta.namespace == namespace);
        own.map(|workload| workload.endpoint.clone()).collect()
    }
}

/// Who may stand behind services.
pub(super) struct Registered<'w> {
    /// WorkloadEntries.
    pub(super) entries: &'w WorkloadIndex<'w>,
    /// These, and pods that are ready.
    pub(super) all: &'w WorkloadIndex<'w>,
    /// What EndpointSlices say, where there are any.
    pub(super) backends: Option<&'w HashMap<(String, String), Arc<Backends>>>,
}

/// A pod as a workload of the mesh; its address and service account are in `entry`.
pub fn pod(entry: &WorkloadEntry, meta: Meta) -> Workload {
    let mut endpoint = endpoint(entry, &meta, true);
    // Every pod has a service account. Whether it has a proxy is what injection writes on it.
    endpoint.mutual_tls = endpoint.labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio");
    Workload { meta: Arc::new(meta), endpoint: Arc::new(endpoint) }
}

/// The workloads that WorkloadEntries describe.
pub(super) fn workloads(entries: &[Arc<Object<WorkloadEntry>>]) -> Vec<Arc<Workload>> {
    entries
        .iter()
        .map(|entry| {
            let endpoint = Arc::new(endpoint(&entry.spec, &entry.meta, true));
            Arc::new(Workload { meta: Arc::new(entry.meta.clone()), endpoint })
        })
        .collect()
}

/// Every service, oldest first; on a tie Kubernetes Services before ServiceEntries.
pub(super) fn services(
    kubernetes: &[Arc<Object<KubernetesService>>],
    entries: &[Arc<Object<ServiceEntry>>],
    registered: &Registered<'_>,
    mesh: &MeshConfig,
    domain: &str,
) -> Vec<Arc<Service>> {
    let mut all = Vec::with_capacity(kubernetes.len() + entries.len());
    for service in kubernetes {
        all.push(from_kubernetes(service, registered, mesh, domain));
    }
    for entry in entries {
        let meta = Arc::new(entry.meta.clone());
        let endpoints = entry_endpoints(entry, registered.all);
        for host in &entry.spec.hosts {
            all.push(from_entry(host, entry, &meta, &endpoints, mesh));
        }
    }
    all.sort_by(|a, b| a.meta.precedence(&b.meta));
    allocate(&mut all);
    all.into_iter().map(|service| Arc::new(service.versioned())).collect()
}

fn from_kubernetes(
    object: &Object<KubernetesService>,
    registered: &Registered<'_>,
    mesh: &MeshConfig,
    domain: &str,
) -> Service {
    let (meta, spec) = (&object.meta, &object.spec);
    let headless = spec.cluster_ip == "None";
    let mut addresses: Vec<String> = Vec::new();
    for address in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        if address.parse::<IpAddr>().is_ok() && !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    let export: Vec<String> = meta
        .annotations
        .get(EXPORT_TO_ANNOTATION)
        .map(|list| {
            list.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect()
        })
        .unwrap_or_default();
    // WorkloadEntries are selected as pods would be; Kubernetes knows nothing of them.
    let mut endpoints = registered.entries.select(&meta.namespace, &spec.selector);
    let name = (meta.namespace.clone(), meta.name.clone());
    let backends = registered.backends.and_then(|known| known.get(&name));
    let waiting = backends.map(|b| b.waiting.clone()).unwrap_or_default();
    endpoints.extend(backends.into_iter().flat_map(|b| b.ready.iter().cloned()));
    Service {
        hostname: format!("{}.{}.svc.{domain}", meta.name, meta.namespace).into(),
        meta: Arc::new(meta.clone()),
        origin: ServiceOrigin::Kubernetes,
        addresses,
        allocated: Vec::new(),
        headless,
        ports: spec
            .ports
            .iter()
            .map(|port| ServicePort {
                number: port.port,
                name: port.name.clone(),
                protocol: Protocol::select(
                    port.port,
                    &port.protocol,
                    port.app_protocol.as_deref(),
                    &port.name,
                ),
                target: match &port.target_port {
                    None | Some(IntOrName::Number(0)) => TargetPort::Same,
                    Some(IntOrName::Number(number)) => TargetPort::Number(*number),
                    Some(IntOrName::Name(name)) => TargetPort::Name(name.clone()),
                },
            })
            .collect(),
        resolution: if headless { Resolution::None } else { Resolution::Static },
        location: ServiceLocation::MeshInternal,
        export_to: ExportTo::parse(&export, &mesh.default_service_export_to, &meta.namespace),
        subject_alt_names: Vec::new(),
        endpoints,
        waiting,
        versions: ServiceVersions::default(),
    }
}

fn from_entry(
    host: &str,
    entry: &Object<ServiceEntry>,
    meta: &Arc<Meta>,
    endpoints: &[Arc<Endpoint>],
    mesh: &MeshConfig,
) -> Service {
    let spec = &entry.spec;
    let by_dns = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let endpoints = if endpoints.is_empty() && by_dns && spec.workload_selector.is_none() {
        // Without endpoints of its own, a service found by DNS is found under its own name.
        let own = WorkloadEntry { address: host.to_owned(), ..WorkloadEntry::default() };
        vec![Arc::new(endpoint(&own, meta, false))]
    } else {
        endpoints.to_vec()
    };
    Service {
        hostname: host.into(),
        meta: meta.clone(),
        origin: ServiceOrigin::ServiceEntry,
        addresses: spec.addresses.clone(),
        allocated: Vec::new(),
        headless: false,
        ports: spec.ports.iter().map(entry_port).collect(),
        resolution: spec.resolution,
        location: spec.location,
        export_to: ExportTo::parse(&spec.export_to, &mesh.default_service_export_to, &meta.namespace),
        subject_alt_names: spec.subject_alt_names.clone(),
        endpoints,
        waiting: Vec::new(),
        versions: ServiceVersions::default(),
    }
}

fn entry_port(port: &EntryPort) -> ServicePort {
    let declared = if port.protocol.is_empty() { None } else { Some(port.protocol.as_str()) };
    ServicePort {
        number: port.number,
        name: port.name.clone(),
        protocol: Protocol::select(port.number, "TCP", declared, &port.name),
        target: port.target_port.map_or(TargetPort::Same, TargetPort::Number),
    }
}

fn entry_endpoints(entry: &Object<ServiceEntry>, workloads: &WorkloadIndex<'_>) -> Vec<Arc<Endpoint>> {
    match &entry.spec.workload_selector {
        Some(selector) if selector.labels.is_empty() => workloads.all_of(&entry.meta.namespace),
        Some(selector) => workloads.select(&entry.meta.namespace, &selector.labels),
        None => {
            entry.spec.endpoints.iter().map(|inline| Arc::new(endpoint(inline, &entry.meta, false))).collect()
        }
    }
}

/// `registered` tells a WorkloadEntry of its own, whose labels its metadata may complete, from one in a ServiceEntry.
fn endpoint(entry: &WorkloadEntry, meta: &Meta, registered: bool) -> Endpoint {
    let mut labels = entry.labels.clone();
    if registered {
        for (key, value) in &meta.labels {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    let locality = if entry.locality.is_empty() {
        labels.get(LOCALITY_LABEL).map(|text| Locality::parse(&text.replace('.', "/")))
    } else {
        Some(Locality::parse(&entry.locality))
    };
    // Istio's rule: a service account means a proxy, unless the label says otherwise. A gateway's servers say by themselves how
    // they are spoken to: TLS that is to go through one untouched is not wrapped.
    let gateway = registered && meta.annotations.get(ROLE_ANNOTATION).is_some_and(|role| role == "gateway");
    let mutual_tls = match labels.get(TLS_MODE_LABEL) {
        Some(mode) => mode == "istio",
        None => !entry.service_account.is_empty() && !gateway,
    };
    Endpoint {
        address: entry.address.clone(),
        ports: entry.ports.clone(),
        resolved: false,
        labels,
        namespace: meta.namespace.clone(),
        service_account: entry.service_account.clone(),
        locality,
        weight: entry.weight.max(1),
        network: entry.network.clone(),
        mutual_tls,
        workload: registered.then(|| meta.key()),
    }
}

/// The service accounts behind a service's endpoints, as `(namespace, service account)`, sorted: the identities that a
/// client expects there.
pub fn service_accounts(service: &Service) -> BTreeSet<(&str, &str)> {
    service
        .endpoints
        .iter()
        .filter(|endpoint| !endpoint.service_account.is_empty())
        .map(|endpoint| (endpoint.namespace.as_str(), endpoint.service_account.as_str()))
        .collect()
}
