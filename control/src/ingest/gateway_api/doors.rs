//! Listeners of the Gateways that are ours: who serves them, what they show, and which of them contradict one another.

use std::collections::BTreeSet;

use super::known::Known;
use super::standing::{Address, Condition};
use crate::model::ObjectKey;
use crate::model::gateway_api::{
    ApiGateway, FromNamespaces, GATEWAY_NAME, GROUP, Listener, SecretRef, TlsTermination,
};
use crate::model::host::DEFAULT_DOMAIN;
use crate::model::kubernetes::KubernetesService;
use crate::model::meta::{Kind, Object};
use crate::model::values::{Labels, selects};
use crate::model::world::Objects;

/// The workloads that serve a Gateway: of one namespace, with these labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) selector: Labels,
}

/// A Gateway of ours.
pub(super) struct Served<'a> {
    pub(super) object: &'a Object<ApiGateway>,
    /// Who serves it; or the reason of `Programmed` and why nobody can.
    pub(super) place: Result<Place, (&'static str, String)>,
    /// The Services in front of it.
    pub(super) fronts: Vec<&'a Object<KubernetesService>>,
    /// Where clients find it.
    pub(super) addresses: Vec<Address>,
    /// A load balancer is to give it an address, and none has.
    pub(super) awaits_address: bool,
    /// Workloads that are known to serve it.
    pub(super) workloads: BTreeSet<ObjectKey>,
}

impl Served<'_> {
    /// Whether one workload serves both: they name the same ones, or some stand among those of either, however it names them.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let named = self.place.is_ok() && self.place.as_ref().ok() == other.place.as_ref().ok();
        named || !self.workloads.is_disjoint(&other.workloads)
    }
}

/// A listener of one.
pub(super) struct Door<'a> {
    /// Index of its Gateway.
    pub(super) of: usize,
    pub(super) gateway: &'a Object<ApiGateway>,
    pub(super) listener: &'a Listener,
    /// The kinds of routes that may attach.
    pub(super) kinds: Vec<Kind>,
    /// Namespace and name of the Secrets that it shows.
    pub(super) certificates: Vec<(String, String)>,
    /// What is wrong with what it refers to: reason and message.
    pub(super) unresolved: Option<(&'static str, String)>,
    /// Nothing here speaks its protocol: why, in words.
    pub(super) unsupported: Option<String>,
    /// It contradicts one before it: reason and message.
    pub(super) conflict: Option<(&'static str, String)>,
    /// Who has attached.
    pub(super) attached: BTreeSet<ObjectKey>,
}

impl Door<'_> {
    /// The name of the Gateway that is made of it. No object of Kubernetes can have it.
    pub(super) fn name(&self) -> String {
        format!("{}~{}", self.gateway.meta.name, self.listener.name)
    }

    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.gateway.meta.namespace, self.name())
    }

    /// The hosts that it serves.
    pub(super) fn host(&self) -> &str {
        if self.listener.hostname.is_empty() { "*" } else { &self.listener.hostname }
    }

    pub(super) fn passes(&self) -> bool {
        self.listener.tls.as_ref().is_some_and(|tls| tls.mode == TlsTermination::Passthrough)
    }

    /// Whether TLS is passed on by its server name, for other networks.
    pub(super) fn passes_by_name(&self) -> bool {
        super::networks::passes_by_name(&self.gateway.meta, self.listener)
    }

    /// Whether anything is opened for it.
    pub(super) fn opens(&self) -> bool {
        let certified = self.listener.protocol == "HTTP" || self.passes() || !self.certificates.is_empty();
        self.conflict.is_none() && self.unsupported.is_none() && certified
    }

    pub(super) fn conditions(&self, served: bool) -> Vec<Condition> {
        let resolved = match &self.unresolved {
            None => Condition::holds("ResolvedRefs", "ResolvedRefs"),
            Some((reason, message)) => Condition::fails("ResolvedRefs", reason, message.as_str()),
        };
        let no_conflict = Condition::fails("Conflicted", "NoConflicts", "");
        let (accepted, conflicted) = match (&self.conflict, &self.unsupported) {
            (Some((reason, message)), _) => (
                Condition::fails("Accepted", reason, message.as_str()),
                Condition { message: message.clone(), ..Condition::holds("Conflicted", reason) },
            ),
            (None, Some(message)) => {
                (Condition::fails("Accepted", "UnsupportedProtocol", message.as_str()), no_conflict)
            }
            (None, None) => (Condition::holds("Accepted", "Accepted"), no_conflict),
        };
        let programmed = match (self.opens(), served) {
            (true, true) => Condition::holds("Programmed", "Programmed"),
            (true, false) => Condition::fails("Programmed", "Pending", "no workload serves the Gateway yet"),
            (false, _) => {
                Condition::fails("Programmed", "Invalid", "see the other conditions of the listener")
            }
        };
        vec![accepted, conflicted, resolved, programmed]
    }

    /// Whether routes of this kind and namespace may attach.
    pub(super) fn allows(&self, known: &Known<'_>, kind: Kind, namespace: &str) -> bool {
        let allowed = &self.listener.allowed_routes.namespaces;
        self.kinds.contains(&kind)
            && match allowed.from {
                FromNamespaces::Same => namespace == self.gateway.meta.namespace,
                FromNamespaces::All => true,
                FromNamespaces::None => false,
                FromNamespaces::Selector => {
                    allowed.selector.as_ref().is_some_and(|s| s.selects(&known.labels_of(namespace)))
                }
            }
    }
}

/// A Gateway and its listeners.
pub(super) fn open<'a>(
    known: &Known<'a>,
    objects: &'a Objects,
    object: &'a Object<ApiGateway>,
    of: usize,
) -> (Served<'a>, Vec<Door<'a>>) {
    let (place, fronts) = place(known, objects, object);
    // Where there is no cluster, nobody gives addresses.
    let awaits = |front: &&Object<KubernetesService>| {
        objects.backends.is_some()
            && front.spec.service_type == "LoadBalancer"
            && front.spec.ingress.is_empty()
    };
    let awaits_address = !fronts.is_empty() && fronts.iter().all(awaits);
    let mut addresses: Vec<_> =
        fronts.iter().filter(|front| !awaits(front)).flat_map(|front| addresses(front)).collect();
    addresses.sort();
    addresses.dedup();
    let here = |namespace: &str, labels: &Labels| {
        place.as_ref().is_ok_and(|p| p.namespace == namespace && selects(&p.selector, labels))
    };
    let entries = objects.workload_entries.iter().filter(|e| here(&e.meta.namespace, &e.spec.labels));
    let pods = objects.pods.iter().filter(|p| here(&p.workload.meta.namespace, p.workload.labels()));
    let workloads = entries.map(|e| e.meta.key()).chain(pods.map(|p| p.workload.meta.key())).collect();
    let doors = object
        .spec
        .listeners
        .iter()
        .map(|listener| {
            let mut door = Door {
                of,
                gateway: object,
                listener,
                kinds: Vec::new(),
                certificates: Vec::new(),
                unresolved: None,
                unsupported: unsupported(&listener.protocol),
                conflict: None,
                attached: BTreeSet::new(),
            };
            kinds(&mut door);
            certificates(known, &mut door);
            door
        })
        .collect();
    (Served { object, place, fronts, addresses, awaits_address, workloads }, doors)
}

/// Namespace and name of the Service whose host this is, as seen from a namespace.
pub(in crate::ingest) fn service_of(host: &str, namespace: &str) -> Option<(String, String)> {
    let mut parts = host.splitn(3, '.');
    let name = parts.next().filter(|name| !name.is_empty())?;
    let place = parts.next().unwrap_or(namespace);
    let domain = parts.next().unwrap_or("svc");
    (domain == "svc" || domain == format!("svc.{DEFAULT_DOMAIN}"))
        .then(|| (place.to_owned(), name.to_owned()))
}

/// Where clients find a Service: at its load balancers, or by its name.
fn addresses(front: &Object<KubernetesService>) -> Vec<Address> {
    let balancers = front.spec.ingress.iter().map(|one| match one.ip.is_empty() {
        true => Address::Host(one.hostname.clone()),
        false => Address::Ip(one.ip.clone()),
    });
    let balancers: Vec<_> = balancers.collect();
    match balancers.is_empty() {
        true => vec![Address::Host(super::known::full_name(&front.meta.namespace, &front.meta.name))],
        false => balancers,
    }
}

/// Who serves a Gateway; or the reason of `Programmed` and why nobody can. And the Services in front.
type Found<'a> = (Result<Place, (&'static str, String)>, Vec<&'a Object<KubernetesService>>);

fn place<'a>(known: &Known<'a>, objects: &'a Objects, object: &Object<ApiGateway>) -> Found<'a> {
    let meta = &object.meta;
    let Some(address) = object.spec.addresses.first() else {
        let selector = Labels::from([(GATEWAY_NAME.to_owned(), meta.name.clone())]);
        let fronts = objects.services.iter().map(|service| &**service).filter(|service| {
            service.meta.namespace == meta.namespace
                && service.spec.selector.get(GATEWAY_NAME) == Some(&meta.name)
        });
        return (Ok(Place { namespace: meta.namespace.clone(), selector }), fronts.collect());
    };
    let unusable = |message: String| (Err(("AddressNotUsable", message)), Vec::new());
    let Some((namespace, name)) = service_of(&address.value, &meta.namespace) else {
        return unusable(format!("{:?} is no host of a Service", address.value));
    };
    let Some(service) = known.service(&namespace, &name) else {
        return unusable(format!("there is no Service {namespace}/{name}"));
    };
    if service.spec.selector.is_empty() {
        return unusable(format!("Service {namespace}/{name} selects no workloads"));
    }
    (Ok(Place { namespace, selector: service.spec.selector.clone() }), vec![service])
}

/// Why a protocol cannot be spoken, if it cannot.
fn unsupported(protocol: &str) -> Option<String> {
    let spoken = matches!(protocol, "HTTP" | "HTTPS" | "TLS");
    (!spoken).then(|| {
        format!(
            "{protocol} is not supported: Weft serves HTTP, HTTPS and TLS for the Gateway API; for TCP there is Istio's Gateway"
        )
    })
}

/// The kinds of routes that a listener takes: those of its protocol, or as many of them as it names.
fn kinds(door: &mut Door<'_>) {
    let of_protocol: &[Kind] = match door.listener.protocol.as_str() {
        // Names say where everything goes.
        "TLS" if door.passes_by_name() => &[],
        "HTTP" | "HTTPS" => &[Kind::HttpRoute, Kind::GrpcRoute],
        "TLS" => &[Kind::TlsRoute],
        _ => &[],
    };
    let named = &door.listener.allowed_routes.kinds;
    if named.is_empty() {
        door.kinds = of_protocol.to_vec();
        return;
    }
    for wanted in named {
        let ours = wanted.group.as_deref().is_none_or(|group| group == GROUP);
        match of_protocol.iter().find(|kind| ours && kind.as_str() == wanted.kind) {
            Some(kind) => door.kinds.push(*kind),
            None => {
                let message = format!(
                    "routes of kind {} do not go with protocol {}",
                    wanted.kind, door.listener.protocol
                );
                door.unresolved = Some(("InvalidRouteKinds", message));
            }
        }
    }
}

fn certificates(known: &Known<'_>, door: &mut Door<'_>) {
    let Some(tls) = door.listener.tls.as_ref().filter(|tls| tls.mode == TlsTermination::Terminate) else {
        return;
    };
    let own = door.gateway.meta.namespace.as_str();
    for one in &tls.certificate_refs {
        match certificate(known, own, one) {
            Ok(found) => door.certificates.push(found),
            Err(wrong) => door.unresolved = Some(wrong),
        }
    }
}

fn certificate(
    known: &Known<'_>,
    own: &str,
    one: &SecretRef,
) -> Result<(String, String), (&'static str, String)> {
    let group = one.group.as_deref().unwrap_or_default();
    let kind = one.kind.as_deref().unwrap_or("Secret");
    if !group.is_empty() || kind != "Secret" {
        let message = format!("{kind} ({group:?}) is no kind that has certificates for Weft: name a Secret");
        return Err(("InvalidCertificateRef", message));
    }
    let namespace = one.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(own);
    let name = &one.name;
    if !known.lets((Kind::ApiGateway, own), "", "Secret", namespace, name) {
        let message = format!(
            "Secret {namespace}/{name} is in another namespace, and no ReferenceGrant there lets a Gateway of {own} refer to it"
        );
        return Err(("RefNotPermitted", message));
    }
    if let Err(why) = known.certificate(namespace, name) {
        return Err(("InvalidCertificateRef", format!("Secret {namespace}/{name}: {why}")));
    }
    Ok((namespace.to_owned(), name.clone()))
}

/// Of listeners at one port of the same workloads each has a host of its own, and all or none have TLS: what contradicts one
/// before it is not opened.
pub(super) fn contradictions(served: &[Served<'_>], doors: &mut [Door<'_>]) {
    for index in 0..doors.len() {
        let (before, rest) = doors.split_at_mut(index);
        let Some(door) = rest.first_mut() else { return };
        if served[door.of].place.is_err() {
            continue;
        }
        let plain = door.listener.protocol == "HTTP";
        if door.unsupported.is_some() {
            continue;
        }
        for other in before.iter().filter(|other| other.conflict.is_none() && other.unsupported.is_none()) {
            if other.listener.port != door.listener.port || !served[other.of].meets(&served[door.of]) {
                continue;
            }
            let what = format!(
                "port {} with listener {} of {}",
                door.listener.port,
                other.listener.name,
                other.gateway.meta.key()
            );
            if plain != (other.listener.protocol == "HTTP") {
                let message = format!("it shares {what}, which speaks {}", other.listener.protocol);
                door.conflict = Some(("ProtocolConflict", message));
            } else if door.host().eq_ignore_ascii_case(other.host()) {
                door.conflict = Some(("HostnameConflict", format!("it shares {what}, and the host")));
            } else {
                continue;
            }
            break;
        }
    }
}
