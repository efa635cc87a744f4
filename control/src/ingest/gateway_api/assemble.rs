//! The Gateways and VirtualServices that follow from listeners and attached routes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::attach::{AtDoor, AtService, Attached, Route};
use super::doors::{Door, Served};
use super::known::{Known, full_name, nowhere};
use super::order::{self, of_host};
use super::rules::{self, Candidate, Site};
use crate::model::gateway::{Gateway, GatewayPort, Server, ServerTls, ServerTlsMode};
use crate::model::host::covers;
use crate::model::lookup::MESH_GATEWAY;
use crate::model::mesh_config::MeshConfig;
use crate::model::meta::{Kind, Meta, Object};
use crate::model::virtual_service as istio;
use crate::model::virtual_service::VirtualService;

/// What is made.
#[derive(Default)]
pub(super) struct Made {
    pub(super) gateways: Vec<Arc<Object<Gateway>>>,
    pub(super) virtual_services: Vec<Arc<Object<VirtualService>>>,
}

pub(super) fn assemble(
    known: &Known<'_>,
    mesh: Option<&MeshConfig>,
    served: &[Served<'_>],
    doors: &[Door<'_>],
    attached: &Attached<'_>,
) -> Made {
    let mut made = Made::default();
    let mut names: BTreeMap<(usize, u16), BTreeSet<String>> = BTreeMap::new();
    for (index, door) in doors.iter().enumerate().filter(|(_, door)| door.opens()) {
        let Ok(place) = &served[door.of].place else { continue };
        let server = server(door);
        let spec = Gateway {
            selector: place.selector.clone(),
            servers: vec![server],
            namespace: Some(place.namespace.clone()),
        };
        let meta = derived(&door.gateway.meta, &door.gateway.meta.namespace, door.name(), &spec);
        made.gateways.push(Arc::new(Object { meta, spec }));
        let here: Vec<_> = attached.doors.iter().filter(|one| one.door == index).collect();
        if door.listener.protocol == "TLS" {
            // Of Gateways with the same workloads the first one's place stands for all.
            let same = served.iter().position(|other| other.meets(&served[door.of])).unwrap_or(door.of);
            let taken = names.entry((same, door.listener.port)).or_default();
            tls(known, door, &here, taken, &mut made);
        } else {
            let others: Vec<_> = doors
                .iter()
                .filter(|other| other.opens() && other.listener.port == door.listener.port)
                .filter(|other| served[other.of].meets(&served[door.of]))
                .collect();
            http(known, mesh, door, &here, &others, &mut made);
        }
    }
    mesh_routes(known, mesh, &attached.services, &mut made);
    made
}

fn server(door: &Door<'_>) -> Server {
    let listener = door.listener;
    let mode = match door.passes() {
        true if door.passes_by_name() => ServerTlsMode::AutoPassthrough,
        true => ServerTlsMode::Passthrough,
        false => ServerTlsMode::Simple,
    };
    let tls = listener.tls.as_ref().map(|_| ServerTls {
        mode,
        certificates: door.certificates.clone(),
        ..ServerTls::default()
    });
    Server {
        port: GatewayPort {
            number: listener.port,
            protocol: listener.protocol.clone(),
            name: listener.name.clone(),
        },
        hosts: vec![door.host().to_owned()],
        tls,
        ..Server::default()
    }
}

/// A VirtualService for each host of a listener, so that its rules, of whatever routes, stand in their order of precedence.
fn http(
    known: &Known<'_>,
    mesh: Option<&MeshConfig>,
    door: &Door<'_>,
    here: &[&AtDoor<'_>],
    others: &[&Door<'_>],
    made: &mut Made,
) {
    let mut hosts: BTreeSet<&str> = here.iter().flat_map(|one| &one.hosts).map(String::as_str).collect();
    // Its own host answers for itself even without rules: 404, not what a less specific listener has.
    if !door.listener.hostname.is_empty() {
        hosts.insert(&door.listener.hostname);
    }
    for host in hosts {
        let best = others.iter().filter(|other| covers(other.host(), host)).max_by_key(|d| of_host(d.host()));
        let plain = door.listener.protocol == "HTTP";
        if plain && best.is_some_and(|best| best.full_name() != door.full_name()) {
            continue;
        }
        let site = Site {
            host: Some(host).filter(|host| !host.starts_with('*')),
            listener: Some(door.listener.port),
            secure: !plain,
            port: None,
        };
        let mut all = Vec::new();
        let mut first: Option<&Meta> = None;
        for one in here {
            if !one.hosts.iter().any(|own| covers(own, host)) {
                continue;
            }
            // By its own name for the host, not by the listener's.
            let named = one.route.hostnames().iter().filter(|own| covers(own, host));
            let specific = named.map(|own| of_host(own)).max().unwrap_or_default();
            first.get_or_insert(one.route.meta());
            all.extend(
                compiled(known, mesh, one.route, site).into_iter().map(|(rank, rule)| (specific, rank, rule)),
            );
        }
        order::sort(&mut all);
        let spec = VirtualService {
            hosts: vec![host.to_owned()],
            gateways: vec![door.full_name()],
            http: all.into_iter().map(|(_, _, rule)| rule).collect(),
            export_to: vec!["*".to_owned()],
            ..VirtualService::default()
        };
        push(first.unwrap_or(&door.gateway.meta), &door.gateway.meta.namespace, spec, made);
    }
}

fn compiled(
    known: &Known<'_>,
    mesh: Option<&MeshConfig>,
    route: Route<'_>,
    site: Site<'_>,
) -> Vec<Candidate> {
    match route {
        Route::Http(route) => rules::http(known, mesh, route, site),
        Route::Grpc(route) => rules::grpc(known, route, site),
        Route::Tls(_) => Vec::new(),
    }
}

/// By server name; of several routes with one name the oldest counts.
fn tls(
    known: &Known<'_>,
    door: &Door<'_>,
    here: &[&AtDoor<'_>],
    taken: &mut BTreeSet<String>,
    made: &mut Made,
) {
    for one in here {
        let Route::Tls(route) = one.route else { continue };
        let hosts: Vec<_> = one.hosts.iter().filter(|host| taken.insert((*host).clone())).cloned().collect();
        if hosts.is_empty() {
            continue;
        }
        let from = (Kind::TlsRoute, route.meta.namespace.as_str());
        let mut to = Vec::new();
        for backend in route.spec.rules.first().map(|rule| rule.backend_refs.as_slice()).unwrap_or_default() {
            let weight = backend.weight.unwrap_or(1);
            if weight > 0 {
                let destination = known.backend(from, backend).unwrap_or_else(|_| nowhere());
                to.push(istio::RouteDestination { destination, weight });
            }
        }
        if to.is_empty() {
            to.push(istio::RouteDestination { destination: nowhere(), weight: 1 });
        }
        let wanted = istio::TlsMatch { sni_hosts: hosts.clone(), ..istio::TlsMatch::default() };
        let spec = VirtualService {
            hosts,
            gateways: vec![door.full_name()],
            tls: vec![istio::TlsRoute { matches: vec![wanted], route: to }],
            export_to: vec!["*".to_owned()],
            ..VirtualService::default()
        };
        push(&route.meta, &door.gateway.meta.namespace, spec, made);
    }
}

/// A Service, and whose clients' routes to it are meant: a namespace's, or all.
type Audience<'a> = (&'a (String, String), &'a Option<String>);

/// A VirtualService for each Service and audience: of its own namespace's routes for all, of others for their own clients, where
/// those go before.
fn mesh_routes(known: &Known<'_>, mesh: Option<&MeshConfig>, all: &[AtService<'_>], made: &mut Made) {
    let mut grouped: BTreeMap<Audience<'_>, Vec<&AtService<'_>>> = BTreeMap::new();
    for one in all {
        grouped.entry((&one.service, &one.clients)).or_default().push(one);
    }
    for (((namespace, name), clients), routes) in grouped {
        let host = full_name(namespace, name);
        let mut candidates = Vec::new();
        for one in &routes {
            let site = Site { port: one.port, ..Site::default() };
            let made = compiled(known, mesh, one.route, site);
            candidates.extend(made.into_iter().map(|(rank, rule)| ((0, 0), rank, rule)));
        }
        order::sort(&mut candidates);
        let mut http: Vec<_> = candidates.into_iter().map(|(_, _, rule)| rule).collect();
        // Ports that no route is for go on as they did.
        if routes.iter().all(|one| one.port.is_some()) {
            let ports = known.service(namespace, name).map(|s| s.spec.ports.as_slice()).unwrap_or_default();
            let free = ports.iter().map(|p| p.port).filter(|p| routes.iter().all(|one| one.port != Some(*p)));
            http.extend(free.map(|port| straight(&host, port)));
        }
        let spec = VirtualService {
            hosts: vec![host],
            gateways: vec![MESH_GATEWAY.to_owned()],
            http,
            export_to: vec![if clients.is_some() { "." } else { "*" }.to_owned()],
            ..VirtualService::default()
        };
        let Some(first) = routes.first() else { continue };
        push(first.route.meta(), &first.route.meta().namespace, spec, made);
    }
}

fn straight(host: &str, port: u16) -> istio::HttpRoute {
    let destination = istio::Destination {
        host: host.to_owned(),
        subset: String::new(),
        port: Some(istio::PortSelector { number: port }),
    };
    istio::HttpRoute {
        matches: vec![istio::HttpMatch { port: Some(port), ..istio::HttpMatch::default() }],
        route: vec![istio::HttpRouteDestination { destination, weight: 1, headers: None }],
        ..istio::HttpRoute::default()
    }
}

/// It has the name and the place of the route that it was made of first, for messages.
fn push(from: &Meta, namespace: &str, spec: VirtualService, made: &mut Made) {
    let meta = derived(from, namespace, from.name.clone(), &spec);
    made.virtual_services.push(Arc::new(Object { meta, spec }));
}

fn derived(from: &Meta, namespace: &str, name: String, spec: &impl std::fmt::Debug) -> Meta {
    let mut hasher = DefaultHasher::new();
    // What it says decides, not what the objects say that it was made of.
    (from.kind, namespace, &name, format!("{spec:?}")).hash(&mut hasher);
    Meta { namespace: namespace.to_owned(), name, version: hasher.finish(), ..from.clone() }
}
