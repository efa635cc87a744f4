//! Pods and what stands behind Services: Pod, Node and EndpointSlice brought together.
//!
//! A change is worked into what it touches: a pod's into the Services whose slices name it, a node's into its pods.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::shapes::{NodeShape, PodShape, SliceEndpoint, SliceShape};
use crate::model::kubernetes::KubernetesNode;
use crate::model::registry;
use crate::model::service::ROLE_ANNOTATION;
use crate::model::{Backends, Endpoint, Kind, Labels, Locality, Meta, Pod, Source, WorkloadEntry};

/// Namespace and name.
pub(super) type Name = (String, String);

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUB_ZONE: &str = "topology.istio.io/subzone";
/// What Istio's gateways are injected by.
const TEMPLATES: &str = "inject.istio.io/templates";

/// What runs where.
#[derive(Debug, Default)]
pub(super) struct Places {
    pods: BTreeMap<Name, (PodShape, Option<Arc<Pod>>)>,
    nodes: HashMap<String, Labels>,
    /// Those that are reached from outside.
    outside: BTreeMap<String, Arc<KubernetesNode>>,
    /// By Service, then by name.
    slices: HashMap<Name, BTreeMap<String, SliceShape>>,
    /// The Service of each slice, by the slice's name.
    services: HashMap<Name, Name>,
    backends: HashMap<Name, Arc<Backends>>,
    /// Services to be looked at again.
    stale: HashSet<Name>,
    /// Somebody who took requests takes none any more, since it was asked last.
    lost: bool,
}

impl Places {
    /// Whether an object of these kinds is there.
    pub(super) fn knows(&self, kind: &str, name: &Name) -> bool {
        match kind {
            "Pod" => self.pods.contains_key(name),
            "Node" => self.nodes.contains_key(&name.1),
            _ => self.services.contains_key(name),
        }
    }

    /// Takes a pod as it is now, or that it is gone. Whether that changes anything.
    pub(super) fn pod(&mut self, name: Name, shape: Option<PodShape>) -> bool {
        let shape = shape.map(trimmed);
        if self.pods.get(&name).map(|(known, _)| known) == shape.as_ref() {
            return false;
        }
        let was_ready =
            self.pods.get(&name).is_some_and(|(_, pod)| pod.as_ref().is_some_and(|pod| pod.ready));
        self.touch_services_of(&name);
        match shape {
            Some(shape) => {
                let pod = self.made(&name, &shape);
                self.lost |= was_ready && !pod.as_ref().is_some_and(|pod| pod.ready);
                self.pods.insert(name, (shape, pod));
            }
            None => {
                self.lost |= was_ready;
                self.pods.remove(&name);
            }
        }
        true
    }

    /// Whether somebody takes requests no more, since this was asked last.
    pub(super) fn lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The same of a node.
    pub(super) fn node(&mut self, name: &str, shape: Option<NodeShape>) -> bool {
        let outside = shape.as_ref().and_then(|shape| {
            let labels = shape.metadata.labels.clone();
            Some(Arc::new(KubernetesNode { labels, address: shape.outside()? }))
        });
        let moved = self.outside.get(name) != outside.as_ref();
        match outside {
            Some(outside) => drop(self.outside.insert(name.to_owned(), outside)),
            None => drop(self.outside.remove(name)),
        }
        let labels = shape.map(|shape| {
            let mut labels = shape.metadata.labels;
            labels.retain(|key, _| [REGION, ZONE, SUB_ZONE].contains(&key.as_str()));
            labels
        });
        if self.nodes.get(name) == labels.as_ref() {
            return moved;
        }
        match labels {
            Some(labels) => drop(self.nodes.insert(name.to_owned(), labels)),
            None => drop(self.nodes.remove(name)),
        }
        let there = self.pods.iter().filter(|(_, (shape, _))| shape.spec.node_name == name);
        let there: Vec<_> = there.map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
        for (name, shape) in there {
            let pod = self.made(&name, &shape);
            self.pods.insert(name, (shape, pod));
        }
        self.stale.extend(self.slices.keys().cloned());
        true
    }

    /// The same of an EndpointSlice.
    pub(super) fn slice(&mut self, name: Name, shape: Option<SliceShape>) -> bool {
        let service =
            shape.as_ref().and_then(|s| s.service()).map(|service| (name.0.clone(), service.to_owned()));
        let before = self.services.get(&name).cloned();
        if before == service
            && service.as_ref().and_then(|s| self.slices.get(s)).and_then(|s| s.get(&name.1))
                == shape.as_ref()
        {
            return false;
        }
        if let Some(before) = before {
            self.services.remove(&name);
            if let Some(slices) = self.slices.get_mut(&before)
                && let Some(slice) = slices.remove(&name.1)
            {
                let still = shape.as_ref().map(ready).unwrap_or_default();
                self.lost |= !ready(&slice).is_subset(&still);
            }
            self.stale.insert(before);
        }
        if let (Some(service), Some(shape)) = (service, shape) {
            self.slices.entry(service.clone()).or_default().insert(name.1.clone(), shape);
            self.services.insert(name, service.clone());
            self.stale.insert(service);
        }
        true
    }

    /// A Service has changed, and with it perhaps the version of IP that it speaks.
    pub(super) fn service(&mut self, name: Name) {
        self.stale.insert(name);
    }

    /// The names of everything of a kind that is known.
    pub(super) fn names(&self, kind: &str) -> Vec<Name> {
        match kind {
            "Pod" => self.pods.keys().cloned().collect(),
            "Node" => self.nodes.keys().map(|name| (String::new(), name.clone())).collect(),
            "EndpointSlice" => self.services.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Every pod that has an address.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.values().filter_map(|(_, pod)| pod.clone()).collect()
    }

    /// Every node that is reached from outside.
    pub(super) fn nodes(&self) -> Vec<Arc<KubernetesNode>> {
        self.outside.values().cloned().collect()
    }

    /// What stands behind each Service; `prefers_v6` says of one whether its own address is of that version.
    pub(super) fn backends(&mut self, prefers_v6: impl Fn(&Name) -> bool) -> HashMap<Name, Arc<Backends>> {
        for name in std::mem::take(&mut self.stale) {
            let slices = self.slices.get(&name).filter(|slices| !slices.is_empty());
            let Some(slices) = slices else {
                self.slices.remove(&name);
                self.backends.remove(&name);
                continue;
            };
            let made = Arc::new(self.behind(&name.0, slices, prefers_v6(&name)));
            self.backends.insert(name, made);
        }
        self.backends.clone()
    }

    fn behind(&self, namespace: &str, slices: &BTreeMap<String, SliceShape>, v6: bool) -> Backends {
        let of = |family: &str| slices.values().any(|s| s.address_type == family && !s.endpoints.is_empty());
        // A Service of both versions has each pod twice: once is enough.
        let family = if of("IPv6") && (v6 || !of("IPv4")) { "IPv6" } else { "IPv4" };
        let mut ready = Vec::new();
        let mut leaving = Vec::new();
        let mut waiting = Vec::new();
        for slice in slices.values().filter(|slice| slice.address_type == family) {
            let ports = slice.numbers();
            for entry in &slice.endpoints {
                let Some(endpoint) = self.endpoint(namespace, entry, &ports) else { continue };
                let conditions = &entry.conditions;
                if conditions.ready.unwrap_or(true) {
                    ready.push(endpoint);
                } else if conditions.terminating == Some(true) && conditions.serving.unwrap_or(true) {
                    leaving.push(endpoint);
                } else {
                    waiting.push(endpoint);
                }
            }
        }
        // Those that are about to leave but still answer are better than none.
        if ready.is_empty() {
            ready = leaving
        } else {
            waiting.append(&mut leaving)
        }
        for list in [&mut ready, &mut waiting] {
            list.sort_by(|a, b| (&a.address, &a.ports).cmp(&(&b.address, &b.ports)));
            list.dedup();
        }
        Backends { ready, waiting }
    }

    fn endpoint(
        &self,
        namespace: &str,
        entry: &SliceEndpoint,
        ports: &BTreeMap<String, u16>,
    ) -> Option<Arc<Endpoint>> {
        let address = entry.addresses.first().filter(|address| address.parse::<IpAddr>().is_ok())?;
        let target = entry.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let pod = match target {
            // One that is not known, or not any more, cannot be spoken to: whether by mutual TLS, its labels would say.
            Some(target) => {
                let known = self.pods.get(&(namespace.to_owned(), target.name.clone()));
                let pod = known.and_then(|(_, pod)| pod.as_ref());
                if pod.is_none() {
                    metrics::counter!("endpoint_no_pod").increment(1);
                }
                Some(pod?)
            }
            None => None,
        };
        let mut endpoint = match pod {
            Some(pod) => Endpoint::clone(&pod.workload.endpoint),
            None => {
                let node = entry.node_name.as_deref().and_then(|node| self.nodes.get(node));
                let locality = node.map(locality_of).filter(|locality| *locality != Locality::default());
                let zone = || entry.zone.clone().map(|zone| Locality { zone, ..Locality::default() });
                Endpoint {
                    address: String::new(),
                    ports: BTreeMap::new(),
                    resolved: true,
                    labels: Labels::new(),
                    namespace: namespace.to_owned(),
                    service_account: String::new(),
                    locality: locality.or_else(zone),
                    weight: 1,
                    network: String::new(),
                    mutual_tls: false,
                    unhealthy: false,
                    workload: None,
                }
            }
        };
        address.clone_into(&mut endpoint.address);
        endpoint.ports.clone_from(ports);
        endpoint.resolved = true;
        Some(Arc::new(endpoint))
    }

    fn touch_services_of(&mut self, pod: &Name) {
        let names_it =
            |entry: &SliceEndpoint| entry.target_ref.as_ref().is_some_and(|target| target.name == pod.1);
        let touched = self.slices.iter().filter(|((namespace, _), slices)| {
            *namespace == pod.0 && slices.values().any(|slice| slice.endpoints.iter().any(names_it))
        });
        self.stale.extend(touched.map(|(service, _)| service.clone()));
    }

    /// The pod as a workload; none before it has an address, and after it has ended.
    fn made(&self, (namespace, name): &Name, shape: &PodShape) -> Option<Arc<Pod>> {
        let ended = matches!(shape.status.phase.as_str(), "Succeeded" | "Failed");
        if ended || shape.status.pod_ip.parse::<IpAddr>().is_err() {
            return None;
        }
        let locality = self.nodes.get(&shape.spec.node_name).map(locality_of).unwrap_or_default();
        let locality = match locality {
            none if none == Locality::default() => String::new(),
            Locality { region, zone, sub_zone } => format!("{region}/{zone}/{sub_zone}"),
        };
        let entry = WorkloadEntry {
            address: shape.status.pod_ip.clone(),
            locality: locality.trim_end_matches('/').to_owned(),
            service_account: match shape.spec.service_account_name.as_str() {
                "" => "default".to_owned(),
                given => given.to_owned(),
            },
            ..WorkloadEntry::default()
        };
        let mut hasher = DefaultHasher::new();
        (namespace, name, &entry.address, &entry.locality, &entry.service_account).hash(&mut hasher);
        (&shape.metadata.labels, &shape.metadata.annotations).hash(&mut hasher);
        let created = shape.metadata.creation_timestamp.as_deref();
        let meta = Meta {
            kind: Kind::Pod,
            api_version: "v1".to_owned(),
            namespace: namespace.clone(),
            name: name.clone(),
            labels: shape.metadata.labels.clone(),
            annotations: shape.metadata.annotations.clone(),
            created: created
                .and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok())
                .map(OffsetDateTime::unix_timestamp),
            source: Source { file: super::SOURCE.into(), ..Source::default() },
            version: hasher.finish(),
        };
        let ready = shape.metadata.deletion_timestamp.is_none()
            && shape.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True");
        let workload = Arc::new(registry::pod(&entry, meta));
        Some(Arc::new(Pod { workload, ready, host_network: shape.spec.host_network }))
    }
}

/// The addresses of a slice that take requests.
fn ready(slice: &SliceShape) -> HashSet<&str> {
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready.unwrap_or(true));
    ready.flat_map(|endpoint| &endpoint.addresses).map(String::as_str).collect()
}

fn locality_of(labels: &Labels) -> Locality {
    let of = |key: &str| labels.get(key).cloned().unwrap_or_default();
    Locality { region: of(REGION), zone: of(ZONE), sub_zone: of(SUB_ZONE) }
}

/// Without what changes all the time and means nothing here.
fn trimmed(mut shape: PodShape) -> PodShape {
    let gateway =
        shape.metadata.annotations.get(TEMPLATES).is_some_and(|t| t.split(',').any(|t| t == "gateway"));
    shape.metadata.annotations.retain(|key, _| key.starts_with("weft.dev/"));
    if gateway {
        shape.metadata.annotations.entry(ROLE_ANNOTATION.to_owned()).or_insert_with(|| "gateway".to_owned());
    }
    shape.status.conditions.retain(|condition| condition.kind == "Ready");
    shape
}
