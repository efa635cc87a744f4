//! The mesh as the checks look at it: workloads with their ports, who calls whom as far as that is known, and which policies
//! hold where.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::authorization_policy::AuthorizationAction;
use crate::model::service::CALLS_ANNOTATION;
use crate::model::values::selects;
use crate::model::{AuthorizationPolicy, Labels, Object, Protocol, Service, StringMatch, Workload, World};

/// A state of the mesh, and what follows from it.
pub(super) struct Scene<'w> {
    pub(super) world: &'w World,
    pub(super) edges: Vec<Edge<'w>>,
}

/// Somebody calls a workload.
pub(super) struct Edge<'w> {
    pub(super) from: &'w Arc<Workload>,
    pub(super) to: &'w Arc<Workload>,
    /// The service that is called.
    pub(super) service: &'w Arc<Service>,
    /// The workload's port.
    pub(super) port: u16,
    /// The paths of its requests begin so, or are this; none where nothing is known of them.
    pub(super) path: Option<String>,
    /// What says so.
    pub(super) known_by: String,
}

impl Edge<'_> {
    /// Caller and callee in short, the same for all replicas.
    pub(super) fn words(&self) -> String {
        let paths = self.path.as_ref().map_or_else(String::new, |path| format!(" {path}"));
        format!("{} -> {}{paths}", caller(self.from), self.service.hostname)
    }
}

/// A workload's identity as people name it.
pub(super) fn caller(workload: &Workload) -> String {
    format!("{}/{}", workload.meta.namespace, workload.service_account())
}

impl<'w> Scene<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let mut scene = Self { world, edges: Vec::new() };
        scene.edges_of_gateways();
        scene.edges_of_workloads();
        scene
    }

    /// The policies that are enforced, with the workloads that each holds for.
    pub(super) fn policies(&self) -> impl Iterator<Item = &'w Arc<Object<AuthorizationPolicy>>> {
        self.world.all_authorization_policies().iter().filter(|policy| !policy.is_tried())
    }

    /// The enforced policies of this action that hold for a workload.
    pub(super) fn holding(
        &self,
        workload: &Workload,
        action: AuthorizationAction,
    ) -> Vec<&'w Arc<Object<AuthorizationPolicy>>> {
        let all = self.world.authorization_policies(
            &workload.meta.namespace,
            workload.labels(),
            Some(&workload.meta.name),
            action,
        );
        all.into_iter().filter(|policy| !policy.is_tried()).collect()
    }

    /// The workloads that a policy of this namespace could hold for.
    pub(super) fn scope(&self, namespace: &str) -> impl Iterator<Item = &'w Arc<Workload>> {
        let everywhere = namespace == self.world.mesh().root_namespace;
        let namespace = namespace.to_owned();
        self.world.workloads().iter().filter(move |w| everywhere || w.meta.namespace == namespace)
    }

    /// The workloads that a policy with this selector holds for.
    pub(super) fn selected(&self, namespace: &str, selector: Option<&Labels>) -> Vec<&'w Arc<Workload>> {
        self.scope(namespace)
            .filter(|workload| selector.is_none_or(|selector| selects(selector, workload.labels())))
            .collect()
    }

    /// The workload's ports, with what is spoken there; none of a gateway's, whose Gateways say what they open.
    pub(super) fn ports(&self, workload: &Workload) -> Vec<(u16, Protocol)> {
        let mut found: Vec<(u16, Protocol)> = Vec::new();
        if workload.is_gateway() {
            return found;
        }
        let sidecar = self.world.sidecar_for(&workload.meta.namespace, workload.labels());
        if let Some(sidecar) = sidecar.filter(|sidecar| !sidecar.spec.ingress.is_empty()) {
            for ingress in &sidecar.spec.ingress {
                let protocol = Protocol::parse(&ingress.port.protocol).unwrap_or(Protocol::Tcp);
                found.push((ingress.port.number, protocol));
            }
            return found;
        }
        for (service, endpoint) in self.world.served_at(workload.address()) {
            for port in &service.ports {
                let target = service.endpoint_port(port, endpoint);
                let new = target.filter(|target| found.iter().all(|(known, _)| known != target));
                found.extend(new.map(|target| (target, port.protocol)));
            }
        }
        found
    }

    /// What comes by gateways: the routes of VirtualServices that are bound to them.
    fn edges_of_gateways(&mut self) {
        let world = self.world;
        for rules in world.virtual_services() {
            let bound = world.gateways().iter().filter(|gateway| rules.spec.binds(&gateway.full_name()));
            let gateways: Vec<_> = bound
                .flat_map(|gateway| {
                    let (selector, place) = (&gateway.spec.selector, gateway.spec.namespace.as_deref());
                    world.workloads().iter().filter(move |w| {
                        let here = place.is_none_or(|place| place == w.meta.namespace);
                        w.is_gateway() && here && selects(selector, w.labels())
                    })
                })
                .collect();
            for route in &rules.spec.http {
                let paths: BTreeSet<Option<String>> = match route.matches.as_slice() {
                    [] => BTreeSet::from([None]),
                    matches => matches.iter().map(|one| one.uri.as_ref().and_then(beginning)).collect(),
                };
                for destination in route.route.iter().map(|route| &route.destination) {
                    let port = destination.port.map(|port| port.number);
                    for path in &paths {
                        for gateway in &gateways {
                            let by = format!("{} ({})", rules.meta.key(), rules.meta.source);
                            self.call(gateway, (&destination.host, port), path.clone(), &by);
                        }
                    }
                }
            }
        }
    }

    /// What workloads call: what their annotation says, and the hosts that their Sidecar names one by one.
    fn edges_of_workloads(&mut self) {
        let world = self.world;
        for workload in world.workloads() {
            let meta = &workload.meta;
            let named = meta.annotations.get(CALLS_ANNOTATION).map(String::as_str).unwrap_or_default();
            for name in named.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                let (host, port) = match name.rsplit_once(':') {
                    Some((host, port)) => (host, port.parse().ok()),
                    None => (name, None),
                };
                let host = world.full_host(host, &meta.namespace);
                let by = format!("annotation {CALLS_ANNOTATION} of {} ({})", meta.key(), meta.source);
                self.call(workload, (&host, port), None, &by);
            }
            let Some(sidecar) = world.sidecar_for(&meta.namespace, workload.labels()) else { continue };
            let by = format!("{} ({})", sidecar.meta.key(), sidecar.meta.source);
            for listener in &sidecar.spec.egress {
                for host in listener.hosts.iter().filter_map(|entry| entry.split_once('/')) {
                    if !host.1.contains('*') {
                        let port = listener.port.as_ref().map(|port| port.number);
                        self.call(workload, (host.1, port), None, &by);
                    }
                }
            }
        }
    }

    /// Enters that a workload calls a service, at this port or at all of them.
    fn call(
        &mut self,
        from: &'w Arc<Workload>,
        (host, port): (&str, Option<u16>),
        path: Option<String>,
        by: &str,
    ) {
        let Some(service) = self.world.service(host, &from.meta.namespace) else { return };
        for endpoint in &service.endpoints {
            let Some(to) = self.world.workload_at(&endpoint.address) else { continue };
            for of in service.ports.iter().filter(|of| port.is_none_or(|port| port == of.number)) {
                let Some(port) = service.endpoint_port(of, endpoint) else { continue };
                let (path, known_by) = (path.clone(), by.to_owned());
                self.edges.push(Edge { from, to, service, port, path, known_by });
            }
        }
    }
}

/// How the paths begin that a match is about.
fn beginning(uri: &StringMatch) -> Option<String> {
    match uri {
        StringMatch::Exact(path) | StringMatch::Prefix(path) => Some(path.clone()),
        StringMatch::Regex(_) | StringMatch::Present => None,
    }
}

/// Names in a list, the first few of them.
pub(super) fn few(names: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 6;
    let names: BTreeSet<String> = names.into_iter().collect();
    let shown: Vec<_> = names.iter().take(SHOWN).cloned().collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Labels as people write them.
pub(super) fn written(labels: &Labels) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// Workloads by name.
pub(super) fn names<'a>(workloads: impl IntoIterator<Item = &'a Arc<Workload>>) -> String {
    few(workloads.into_iter().map(|w| format!("{}/{}", w.meta.namespace, w.meta.name)))
}
