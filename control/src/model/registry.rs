//! From objects to services: Kubernetes Services and ServiceEntries brought into one shape, endpoints attached.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::aliases::aliases;
use super::allocation::allocate;
use super::kubernetes::{Backends, IntOrName, KubernetesService, Pod};
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
struct WorkloadIndex {
    workloads: Vec<Arc<Workload>>,
    /// By a hash of namespace and one label; what else has that hash is told apart by the selector.
    by_label: HashMap<u64, Vec<usize>>,
}

fn label_hash(namespace: &str, key: &str, value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, key, value).hash(&mut hasher);
    hasher.finish()
}

impl WorkloadIndex {
    fn new(workloads: Vec<Arc<Workload>>) -> Self {
        let mut by_label: HashMap<u64, Vec<usize>> = HashMap::new();
        for (index, workload) in workloads.iter().enumerate() {
            for (key, value) in workload.labels() {
                by_label.entry(label_hash(&workload.meta.namespace, key, value)).or_default().push(index);
            }
        }
        Self { workloads, by_label }
    }

    /// The endpoints of `namespace` that `selector` selects, in order. An empty selector selects none.
    fn select(&self, namespace: &str, selector: &Labels) -> Vec<Arc<Endpoint>> {
        let candidates = selector
            .iter()
            .map(|(key, value)| {
                self.by_label.get(&label_hash(namespace, key, value)).map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|found| found.len())
            .unwrap_or_default();
        candidates
            .iter()
            .map(|index| &self.workloads[*index])
            .filter(|workload| workload.meta.namespace == namespace && selects(selector, workload.labels()))
            .map(|workload| workload.endpoint.clone())
            .collect()
    }

    /// The endpoints of every workload of `namespace`.
    fn all_of(&self, namespace: &str) -> Vec<Arc<Endpoint>> {
        let own = self.workloads.iter().filter(|workload| workload.meta.namespace == namespace);
        own.map(|workload| workload.endpoint.clone()).collect()
    }
}

/// Who may stand behind services, and what of that is as it was.
pub(super) struct Registered<'w> {
    /// WorkloadEntries.
    pub(super) entries: &'w [Arc<Workload>],
    /// Every pod.
    pub(super) pods: &'w [Arc<Pod>],
    /// What EndpointSlices say, where there are any.
    pub(super) backends: Option<&'w HashMap<(String, String), Arc<Backends>>>,
    /// The entries are those of the state before.
    pub(super) same_entries: bool,
    /// So are the pods.
    pub(super) same_pods: bool,
}

/// What one object came to: kept, so that the next state makes anew only what is made from something else.
#[derive(Clone, Debug)]
pub(super) struct Made {
    object: Origin,
    /// Workloads that its selector selects; none where it has no selector.
    selected: Vec<Arc<Endpoint>>,
    backends: Option<Arc<Backends>>,
    services: Vec<Arc<Service>>,
}

/// The object that services come from. While it is held, no other one has its address.
#[derive(Clone, Debug)]
enum Origin {
    Kubernetes(Arc<Object<KubernetesService>>),
    Entry(Arc<Object<ServiceEntry>>),
}

impl Origin {
    fn place(&self) -> *const u8 {
        match self {
            Self::Kubernetes(object) => Arc::as_ptr(object).cast(),
            Self::Entry(object) => Arc::as_ptr(object).cast(),
        }
    }
}

/// All services, and what the next state takes over of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    /// Oldest first; on a tie Kubernetes Services before ServiceEntries.
    pub(super) services: Vec<Arc<Service>>,
    made: Vec<Made>,
}

/// A pod as a workload of the mesh; its address and service account are in `entry`.
pub fn pod(entry: &WorkloadEntry, meta: Meta) -> Workload {
    let mut endpoint = endpoint(entry, &meta, true);
    // Every pod has a service account. Whether it has a proxy is what injection writes on it.
    endpoint.mutual_tls = endpoint.labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio");
    Workload { meta: Arc::new(meta), endpoint: Arc::new(endpoint) }
}

/// The workload that a WorkloadEntry describes.
pub(super) fn workload(entry: &Object<WorkloadEntry>) -> Workload {
    let endpoint = Arc::new(endpoint(&entry.spec, &entry.meta, true));
    Workload { meta: Arc::new(entry.meta.clone()), endpoint }
}

/// Every service. Those that come from the same as in `before` are the same; that was made with the same mesh-wide settings.
pub(super) fn services(
    kubernetes: &[Arc<Object<KubernetesService>>],
    entries: &[Arc<Object<ServiceEntry>>],
    registered: &Registered<'_>,
    mesh: &MeshConfig,
    domain: &str,
    before: Option<&Registry>,
) -> Registry {
    let known: HashMap<*const u8, &Made> =
        before.into_iter().flat_map(|b| &b.made).map(|made| (made.object.place(), made)).collect();
    // Built when something is selected anew, which is seldom.
    let of_entries = LazyCell::new(|| WorkloadIndex::new(registered.entries.to_vec()));
    let of_all = LazyCell::new(|| {
        // Pods stand behind Services as EndpointSlices say, and behind ServiceEntries as these select them.
        let ready = registered.pods.iter().filter(|pod| pod.ready).map(|pod| pod.workload.clone());
        WorkloadIndex::new(registered.entries.iter().cloned().chain(ready).collect())
    });
    let mut made = Vec::with_capacity(kubernetes.len() + entries.len());
    for service in kubernetes.iter().filter(|service| !service.spec.is_external_name()) {
        let object = Origin::Kubernetes(service.clone());
        let before = known.get(&object.place()).copied();
        let (meta, spec) = (&service.meta, &service.spec);
        // WorkloadEntries are selected as pods would be; Kubernetes knows nothing of them.
        let selected = match before.filter(|_| registered.same_entries) {
            Some(before) => before.selected.clone(),
            None if registered.entries.is_empty() => Vec::new(),
            None => of_entries.select(&meta.namespace, &spec.selector),
        };
        let backends = registered.backends.filter(|known| !known.is_empty());
        let backends = backends.and_then(|known| known.get(&(meta.namespace.clone(), meta.name.clone())));
        let unchanged =
            |b: &&Made| same_all(&b.selected, &selected) && same_one(b.backends.as_ref(), backends);
        let services = match before.filter(unchanged) {
            Some(before) => before.services.clone(),
            None => vec![Arc::new(from_kubernetes(service, &selected, backends, mesh, domain))],
        };
        made.push(Made { object, selected, backends: backends.cloned(), services });
    }
    for entry in entries {
        let object = Origin::Entry(entry.clone());
        let before = known.get(&object.place()).copied();
        let selected = match &entry.spec.workload_selector {
            None => Vec::new(),
            Some(selector) => match before.filter(|_| registered.same_entries && registered.same_pods) {
                Some(before) => before.selected.clone(),
                None if selector.labels.is_empty() => of_all.all_of(&entry.meta.namespace),
                None => of_all.select(&entry.meta.namespace, &selector.labels),
            },
        };
        let services = match before.filter(|before| same_all(&before.selected, &selected)) {
            Some(before) => before.services.clone(),
            None => {
                let meta = Arc::new(entry.meta.clone());
                let endpoints = match &entry.spec.workload_selector {
                    Some(_) => selected.clone(),
                    None => inline_endpoints(entry),
                };
                let hosts = entry.spec.hosts.iter();
                hosts.map(|host| Arc::new(from_entry(host, entry, &meta, &endpoints, mesh))).collect()
            }
        };
        made.push(Made { object, selected, backends: None, services });
    }
    // Which of which object, for addresses are given to all together.
    let mut all: Vec<(usize, usize)> = Vec::with_capacity(made.len());
    for (index, made) in made.iter().enumerate() {
        all.extend((0..made.services.len()).map(|place| (index, place)));
    }
    let at = |made: &[Made], (index, place): (usize, usize)| made[index].services[place].clone();
    all.sort_by(|a, b| {
        let (a, b) = (&made[a.0].services[a.1], &made[b.0].services[b.1]);
        a.meta.precedence(&b.meta)
    });
    let mut services: Vec<Arc<Service>> = all.iter().map(|place| at(&made, *place)).collect();
    let aliases = aliases(kubernetes, domain);
    for ((index, place), (service, allocated)) in
        all.iter().zip(services.iter_mut().zip(allocate_for(&all, &made)))
    {
        let aliases = aliases.get(&service.hostname).cloned().unwrap_or_default();
        if service.versions == ServiceVersions::default()
            || service.allocated != allocated
            || service.aliases != aliases
        {
            let whole = Service { allocated, aliases, ..Service::clone(service) };
            *service = Arc::new(whole.versioned());
            made[*index].services[*place] = service.clone();
        }
    }
    Registry { services, made }
}

fn allocate_for(all: &[(usize, usize)], made: &[Made]) -> Vec<Vec<String>> {
    let services: Vec<&Service> = all.iter().map(|(index, place)| &*made[*index].services[*place]).collect();
    allocate(&services)
}

/// Whether two lists have the same in them, and not merely equal.
fn same_all<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn same_one<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn from_kubernetes(
    object: &Object<KubernetesService>,
    selected: &[Arc<Endpoint>],
    backends: Option<&Arc<Backends>>,
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
    let (mut endpoints, mut waiting) = by_health(selected);
    waiting.extend(backends.into_iter().flat_map(|b| b.waiting.iter().cloned()));
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
            .filter(|port| !port.protocol.eq_ignore_ascii_case("udp"))
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
        aliases: Vec::new(),
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
    let (endpoints, waiting) = by_health(&endpoints);
    Service {
        hostname: host.into(),
        meta: meta.clone(),
        origin: ServiceOrigin::ServiceEntry,
        addresses: spec.addresses.clone(),
        allocated: Vec::new(),
        headless: false,
        ports: spec.ports.iter().map(entry_port).filter(|port| port.protocol != Protocol::Udp).collect(),
        resolution: spec.resolution,
        location: spec.location,
        export_to: ExportTo::parse(&spec.export_to, &mesh.default_service_export_to, &meta.namespace),
        aliases: Vec::new(),
        subject_alt_names: spec.subject_alt_names.clone(),
        endpoints,
        waiting,
        versions: ServiceVersions::default(),
    }
}

/// Those that take requests, and those that wait.
fn by_health(endpoints: &[Arc<Endpoint>]) -> (Vec<Arc<Endpoint>>, Vec<Arc<Endpoint>>) {
    endpoints.iter().cloned().partition(|endpoint| !endpoint.unhealthy)
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

fn inline_endpoints(entry: &Object<ServiceEntry>) -> Vec<Arc<Endpoint>> {
    entry.spec.endpoints.iter().map(|inline| Arc::new(endpoint(inline, &entry.meta, false))).collect()
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
        unhealthy: entry.unhealthy,
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
