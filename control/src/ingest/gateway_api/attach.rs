//! Routes and their parents: which listeners a route attaches to, for which hosts; and which Services it speaks for.

use super::doors::{Door, Served};
use super::known::{Broken, Known};
use super::standing::{Condition, ParentStanding};
use crate::model::ObjectKey;
use crate::model::gateway_api::{BackendRef, Filter, GrpcRoute, HttpRoute, ParentRef, TlsRoute};
use crate::model::host::covers;
use crate::model::meta::{Kind, Meta, Object};
use crate::model::world::Objects;

/// A route of any kind.
#[derive(Clone, Copy)]
pub(super) enum Route<'a> {
    Http(&'a Object<HttpRoute>),
    Grpc(&'a Object<GrpcRoute>),
    Tls(&'a Object<TlsRoute>),
}

impl<'a> Route<'a> {
    /// All routes, the oldest first, then by name.
    pub(super) fn all(objects: &'a Objects) -> Vec<Self> {
        let http = objects.http_routes.iter().map(|route| Self::Http(route));
        let grpc = objects.grpc_routes.iter().map(|route| Self::Grpc(route));
        let tls = objects.tls_routes.iter().map(|route| Self::Tls(route));
        let mut all: Vec<_> = http.chain(grpc).chain(tls).collect();
        let name = |meta: &'a Meta| (&*meta.namespace, &*meta.name);
        all.sort_by(|a, b| {
            let (a, b) = (a.meta(), b.meta());
            a.created
                .is_none()
                .cmp(&b.created.is_none())
                .then(a.created.cmp(&b.created))
                .then(name(a).cmp(&name(b)))
        });
        all
    }

    pub(super) fn meta(self) -> &'a Meta {
        match self {
            Self::Http(route) => &route.meta,
            Self::Grpc(route) => &route.meta,
            Self::Tls(route) => &route.meta,
        }
    }

    pub(super) fn parents(self) -> &'a [ParentRef] {
        match self {
            Self::Http(route) => &route.spec.parent_refs,
            Self::Grpc(route) => &route.spec.parent_refs,
            Self::Tls(route) => &route.spec.parent_refs,
        }
    }

    pub(super) fn hostnames(self) -> &'a [String] {
        match self {
            Self::Http(route) => &route.spec.hostnames,
            Self::Grpc(route) => &route.spec.hostnames,
            Self::Tls(route) => &route.spec.hostnames,
        }
    }

    /// Every backend that it names, those of mirrors among them.
    fn backends(self) -> Vec<&'a BackendRef> {
        let mirrors = |filters: &'a [Filter]| {
            filters
                .iter()
                .filter_map(|filter| filter.request_mirror.as_ref())
                .map(|mirror| &mirror.backend_ref)
        };
        match self {
            Self::Http(route) => {
                let rules = route.spec.rules.iter();
                rules.flat_map(|rule| rule.backend_refs.iter().chain(mirrors(&rule.filters))).collect()
            }
            Self::Grpc(route) => {
                let rules = route.spec.rules.iter();
                rules.flat_map(|rule| rule.backend_refs.iter().chain(mirrors(&rule.filters))).collect()
            }
            Self::Tls(route) => route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect(),
        }
    }

    /// The hosts that it has in common with a listener, the more specific name of each pair.
    fn hosts_at(self, door: &Door<'_>) -> Vec<String> {
        let offered = door.host();
        if self.hostnames().is_empty() {
            return vec![offered.to_owned()];
        }
        let mut hosts: Vec<String> = Vec::new();
        for wanted in self.hostnames() {
            let specific = if covers(offered, wanted) {
                wanted.as_str()
            } else if covers(wanted, offered) {
                offered
            } else {
                continue;
            };
            if !hosts.iter().any(|held| held.eq_ignore_ascii_case(specific)) {
                hosts.push(specific.to_ascii_lowercase());
            }
        }
        hosts
    }
}

/// A route at a listener, with the hosts that it has there.
pub(super) struct AtDoor<'a> {
    pub(super) door: usize,
    pub(super) route: Route<'a>,
    pub(super) hosts: Vec<String>,
}

/// A route that speaks for a Service.
pub(super) struct AtService<'a> {
    /// Namespace and name.
    pub(super) service: (String, String),
    /// For clients of this namespace alone; none for all.
    pub(super) clients: Option<String>,
    /// At this port alone.
    pub(super) port: Option<u16>,
    pub(super) route: Route<'a>,
}

/// Where routes are.
#[derive(Default)]
pub(super) struct Attached<'a> {
    pub(super) doors: Vec<AtDoor<'a>>,
    pub(super) services: Vec<AtService<'a>>,
}

/// Attaches a route to its parents, and says how it stands with those that are ours.
pub(super) fn attach<'a>(
    known: &Known<'a>,
    served: &[Served<'a>],
    doors: &mut [Door<'a>],
    route: Route<'a>,
    attached: &mut Attached<'a>,
) -> Vec<ParentStanding> {
    let meta = route.meta();
    let resolved = references(known, route);
    let mut standings = Vec::new();
    for parent in route.parents() {
        let namespace = parent.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(&meta.namespace);
        let accepted = if parent.is_gateway() {
            let gateway = served
                .iter()
                .position(|s| s.object.meta.namespace == namespace && s.object.meta.name == parent.name);
            let Some(gateway) = gateway else { continue };
            at_gateway(known, doors, route, parent, gateway, attached)
        } else if parent.is_service() {
            at_service(known, route, parent, namespace, attached)
        } else {
            continue;
        };
        let accepted = match accepted {
            Ok(()) => Condition::holds("Accepted", "Accepted"),
            Err((reason, message)) => Condition::fails("Accepted", reason, message),
        };
        standings
            .push(ParentStanding { parent: parent.clone(), conditions: vec![accepted, resolved.clone()] });
    }
    standings
}

/// Whether everything that a route refers to is there.
fn references(known: &Known<'_>, route: Route<'_>) -> Condition {
    let meta = route.meta();
    let broken = route
        .backends()
        .into_iter()
        .find_map(|backend| known.backend((meta.kind, &meta.namespace), backend).err());
    match broken {
        None => Condition::holds("ResolvedRefs", "ResolvedRefs"),
        Some(Broken { reason, message }) => Condition::fails("ResolvedRefs", reason, message),
    }
}

fn at_gateway<'a>(
    known: &Known<'_>,
    doors: &mut [Door<'a>],
    route: Route<'a>,
    parent: &ParentRef,
    gateway: usize,
    attached: &mut Attached<'a>,
) -> Result<(), (&'static str, String)> {
    let meta = route.meta();
    let section = parent.section_name.as_deref().filter(|name| !name.is_empty());
    let named = |door: &Door<'_>| {
        door.of == gateway
            && section.is_none_or(|name| door.listener.name == name)
            && parent.port.is_none_or(|port| door.listener.port == port)
    };
    let mut candidates: Vec<_> = (0..doors.len()).filter(|index| named(&doors[*index])).collect();
    if candidates.is_empty() {
        let all: Vec<_> =
            doors.iter().filter(|d| d.of == gateway).map(|d| d.listener.name.as_str()).collect();
        let message = format!("the Gateway has no such listener; its listeners are {}", all.join(", "));
        return Err(("NoMatchingParent", message));
    }
    candidates.retain(|index| doors[*index].allows(known, meta.kind, &meta.namespace));
    if candidates.is_empty() {
        let message = format!(
            "no listener lets a {} of namespace {} attach; look at allowedRoutes and the protocol of its listeners",
            meta.kind, meta.namespace
        );
        return Err(("NotAllowedByListeners", message));
    }
    let key: ObjectKey = meta.key();
    let mut found = false;
    for index in candidates {
        let hosts = route.hosts_at(&doors[index]);
        if !hosts.is_empty() {
            found = true;
            doors[index].attached.insert(key.clone());
            attached.doors.push(AtDoor { door: index, route, hosts });
        }
    }
    if found {
        return Ok(());
    }
    Err(("NoMatchingListenerHostname", "no listener has one of its hostnames".to_owned()))
}

fn at_service<'a>(
    known: &Known<'_>,
    route: Route<'a>,
    parent: &ParentRef,
    namespace: &str,
    attached: &mut Attached<'a>,
) -> Result<(), (&'static str, String)> {
    let meta = route.meta();
    if meta.kind == Kind::TlsRoute {
        let message = "Weft takes a Service as parent of HTTPRoutes and GRPCRoutes alone";
        return Err(("NotAllowedByListeners", message.to_owned()));
    }
    let Some(service) = known.service(namespace, &parent.name) else {
        return Err(("NoMatchingParent", format!("there is no Service {namespace}/{}", parent.name)));
    };
    if parent.port.is_some_and(|port| service.spec.ports.iter().all(|p| p.port != port)) {
        return Err(("NoMatchingParent", format!("Service {namespace}/{} has no such port", parent.name)));
    }
    attached.services.push(AtService {
        service: (namespace.to_owned(), parent.name.clone()),
        clients: (meta.namespace != namespace).then(|| meta.namespace.clone()),
        port: parent.port,
        route,
    });
    Ok(())
}
