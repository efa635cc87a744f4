//! Listeners for what a captured application dials: one for each port of the mesh that speaks HTTP, which tells services apart by
//! authority, and one for each address and port of the services that do not. They bind nothing; the captured listener hands them
//! the connections that were dialled to their address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::cluster::services;
use super::super::filters::{Routes, Way, http_connection_manager, tcp_chain};
use super::super::inbound::PLAIN_HTTP;
use super::super::listener::inspector;
use super::super::memo::Output;
use super::super::{ProxyNode, layer4, seconds, spans};
use super::{at, unknown};
use crate::model::service::ServiceOrigin;
use crate::model::sidecar::{CaptureMode, EgressListener};
use crate::model::{Service, ServicePort, World};

/// Every address.
const ANY: &str = "";

/// What one listener tells apart.
#[derive(Default)]
struct Parts<'a> {
    /// Its addresses; none for all of them.
    binds: Vec<String>,
    /// The name of the routes, where HTTP may be spoken.
    http: Option<String>,
    /// By server name.
    names: Vec<(&'a Service, u16)>,
    /// By destination, for services that are a range of addresses.
    ranges: Vec<(&'a Service, u16)>,
    /// The first service whose connections are nobody else's.
    rest: Option<(&'a Service, u16)>,
    /// Another would be it as well, and is not reached.
    contested: bool,
}

/// By their first address (none for all of them) and port.
#[derive(Default)]
struct Listeners<'a>(BTreeMap<(Option<String>, u16), Parts<'a>>);

impl<'a> Parts<'a> {
    /// What is nobody else's is the first service's.
    fn rest(&mut self, service: &'a Service, number: u16) {
        match self.rest {
            Some((there, _)) => self.contested |= there.hostname != service.hostname,
            None => self.rest = Some((service, number)),
        }
    }
}

impl<'a> Listeners<'a> {
    /// Those of what a node reaches.
    fn of(world: &World, node: &ProxyNode, all: &[Reached<'a>]) -> Self {
        let mut listeners = Self::default();
        for reached in all {
            for port in reached.ports() {
                add(world, node, reached, port, &mut listeners);
            }
        }
        listeners
    }

    /// The one for these addresses and this port.
    fn at(&mut self, binds: Vec<String>, port: u16) -> &mut Parts<'a> {
        let parts = self.0.entry((binds.first().cloned(), port)).or_default();
        for bind in binds {
            if !parts.binds.contains(&bind) {
                parts.binds.push(bind);
            }
        }
        parts
    }
}

/// A service as one of a node's listeners reaches it.
pub(in super::super) struct Reached<'a> {
    /// The service.
    pub(in super::super) service: &'a Arc<Service>,
    /// The one port of it that is reached; all if none.
    only: Option<u16>,
    /// Ports of it that another listener has taken.
    not: BTreeSet<u16>,
    /// The address of the listener where it is not the service's own.
    bind: &'a str,
}

impl Reached<'_> {
    /// The ports that are reached.
    pub(in super::super) fn ports(&self) -> impl Iterator<Item = &ServicePort> {
        let reached =
            |p: &&ServicePort| self.only.map_or(!self.not.contains(&p.number), |only| only == p.number);
        self.service.ports.iter().filter(reached)
    }
}

/// What a captured node reaches: by the egress listeners of its Sidecar, those for a port of their own first.
pub(in super::super) fn reached<'a>(world: &'a World, node: &ProxyNode) -> Vec<Reached<'a>> {
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    let Some(sidecar) = sidecar.filter(|s| !s.spec.egress.is_empty()) else {
        let all = services(world, node).into_iter();
        return all.map(|service| Reached { service, only: None, not: BTreeSet::new(), bind: ANY }).collect();
    };
    let taken: BTreeSet<u16> =
        sidecar.spec.egress.iter().filter_map(|e| Some(e.port.as_ref()?.number)).collect();
    let (own, others): (Vec<&EgressListener>, Vec<_>) =
        sidecar.spec.egress.iter().partition(|e| e.port.is_some());
    let mut found = Vec::new();
    for listener in own.into_iter().chain(others) {
        if listener.capture_mode == CaptureMode::None && listener.port.is_some() {
            continue;
        }
        let only = listener.port.as_ref().map(|p| p.number);
        for service in world.imported_services(&node.namespace, Some(listener)) {
            let not = if only.is_some() { BTreeSet::new() } else { taken.clone() };
            found.push(Reached { service, only, not, bind: &listener.bind });
        }
    }
    found
}

/// The addresses at which a node's application dials a service, if there are some that are its alone.
pub(in super::super) fn addresses<'a>(service: &'a Service, node: &ProxyNode) -> Vec<&'a str> {
    let own = |a: &&String| a.parse::<IpAddr>().is_ok_and(|a| !a.is_unspecified());
    let [v4, v6] = node.allocated_families();
    let allocated = service.allocated.iter().filter(|a| if a.contains(':') { v6 } else { v4 });
    service.addresses.iter().filter(own).chain(allocated).map(String::as_str).collect()
}

/// The name of the routes for a port at which HTTP may be spoken: the port's own for all services that share it, the service's for
/// one that is known by its address.
pub(in super::super) fn routes_of(node: &ProxyNode, reached: &Reached<'_>, port: &ServicePort) -> String {
    let service = reached.service;
    let known = !addresses(service, node).is_empty()
        || (service.origin == ServiceOrigin::Kubernetes && service.headless);
    match port.protocol.is_http() || !known || reached.bind != ANY {
        true => port.number.to_string(),
        false => format!("{}:{}", service.hostname, port.number),
    }
}

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let all = reached(world, node);
    let listeners = Listeners::of(world, node, &all);
    let families = node.wildcards();
    // Proxies of one namespace with the same labels, as far as these matter, get the same listeners.
    let labels = node.client_labels(world);
    let traced = spans::key(world, node, Way::Outbound);
    let of_node = (&node.namespace, &labels, &families, node.extensions, &traced);
    for ((_, port), mut parts) in listeners.0 {
        let any: Vec<String> = families.iter().map(|any| (*any).to_owned()).collect();
        let binds = if parts.binds.is_empty() { any } else { std::mem::take(&mut parts.binds) };
        let name = format!("{}_{port}", binds.first().map_or("", String::as_str));
        out.put(&name, (world.shape_version(), of_node, &binds, parts.key()), || {
            listener(world, node, &name, (&binds, port), &parts)
        });
    }
}

/// The listeners, `ADDRESS_PORT`, of which a node reaches but the first of several services.
pub(in super::super) fn contested(world: &World, node: &ProxyNode) -> BTreeSet<String> {
    let all = reached(world, node);
    let any = node.wildcards();
    let of = |((address, port), parts): ((Option<String>, u16), Parts<'_>)| {
        let address = address.as_deref().or(any.first().copied()).unwrap_or_default();
        parts.contested.then(|| format!("{address}_{port}"))
    };
    Listeners::of(world, node, &all).0.into_iter().filter_map(of).collect()
}

impl Parts<'_> {
    /// What tells it from another of its name.
    fn key(&self) -> impl std::hash::Hash + use<> {
        let named = |(service, port): &(&Service, u16)| (service.hostname.clone(), *port);
        let all = |list: &[(&Service, u16)]| list.iter().map(named).collect::<Vec<_>>();
        (self.http.clone(), all(&self.names), all(&self.ranges), self.rest.as_ref().map(named))
    }
}

/// Puts a service's port where its clients dial it.
fn add<'a>(
    world: &World,
    node: &ProxyNode,
    reached: &Reached<'a>,
    port: &ServicePort,
    listeners: &mut Listeners<'a>,
) {
    let (service, number): (&'a Service, u16) = (reached.service, port.number);
    let protocol = port.protocol;
    let own: Vec<String> = match reached.bind {
        ANY => addresses(service, node).into_iter().map(str::to_owned).collect(),
        given => vec![given.to_owned()],
    };
    if protocol.is_http() {
        let binds = if reached.bind == ANY { Vec::new() } else { own };
        listeners.at(binds, number).http.get_or_insert_with(|| number.to_string());
        return;
    }
    // Clients know the members of a headless service one by one, and may mean this one.
    if service.origin == ServiceOrigin::Kubernetes && service.headless && reached.bind == ANY {
        let elsewhere = |e: &&std::sync::Arc<crate::model::Endpoint>| {
            !e.address.is_empty() && !node.addresses.contains(&e.address)
        };
        for endpoint in service.endpoints.iter().filter(elsewhere) {
            let parts = listeners.at(vec![endpoint.address.clone()], number);
            parts.rest(service, number);
            if protocol.is_auto() {
                parts.http.get_or_insert_with(|| routes_of(node, reached, port));
            }
        }
        return;
    }
    let range = service.addresses.iter().any(|a| a.contains('/'));
    let by_name = protocol.is_tls() && (own.is_empty() || layer4::has_names(world, node, service, number));
    let in_range = own.is_empty() && range;
    let parts = listeners.at(own, number);
    if by_name {
        parts.names.push((service, number));
    } else if in_range {
        parts.ranges.push((service, number));
    } else {
        parts.rest(service, number);
        if protocol.is_auto() {
            parts.http.get_or_insert_with(|| routes_of(node, reached, port));
        }
    }
}

fn listener(
    world: &World,
    node: &ProxyNode,
    name: &str,
    (binds, port): (&[String], u16),
    parts: &Parts<'_>,
) -> Value {
    let to = |service: &Service, port| {
        let destination = layer4::destination(world, node, service, port);
        tcp_chain(world, node, Way::Outbound, &destination)
    };
    // Where several services share the port, each is known by its addresses too.
    let names = parts.names.iter().map(|(service, port)| (*service, *port, ranges_of(service)));
    let mut chains = layer4::by_server_names(world, node, names);
    for (service, port) in parts.ranges.iter().chain(&parts.rest) {
        chains.extend(layer4::by_subnets(world, node, service, *port));
    }
    for (service, port) in &parts.ranges {
        if let Some(ranges) = ranges_of(service) {
            chains.push(
                json!({"filter_chain_match": {"prefix_ranges": ranges}, "filters": to(service, *port)}),
            );
        }
    }
    if let Some(routes) = &parts.http {
        let prefix = format!("outbound_{name};");
        let routes = Routes::Rds(routes.clone());
        chains.push(json!({
            "filter_chain_match": {"transport_protocol": "raw_buffer", "application_protocols": PLAIN_HTTP},
            "filters": [http_connection_manager(world, node, Way::Outbound, &prefix, routes)],
        }));
    }
    let rest = match parts.rest {
        Some((service, port)) => json!({"filters": to(service, port)}),
        None => json!({"name": "PassthroughFilterChain", "filters": unknown(world, node)}),
    };
    let mut listener = json!({
        "name": name,
        "bind_to_port": false,
        "traffic_direction": "OUTBOUND",
        "continue_on_listener_filters_timeout": true,
        "listener_filters_timeout": "0s",
    });
    let mut inspectors = Vec::new();
    if !parts.names.is_empty() {
        inspectors.push(inspector("tls_inspector"));
    }
    if parts.http.is_some() {
        inspectors.push(inspector("http_inspector"));
        listener["listener_filters_timeout"] = seconds(world.mesh().protocol_detection_timeout.get());
    }
    listener["listener_filters"] = inspectors.into();
    // A chain for everything is one among others only as the default.
    if chains.is_empty() {
        chains.push(rest);
    } else {
        listener["default_filter_chain"] = rest;
    }
    listener["filter_chains"] = chains.into();
    at(&mut listener, binds, port);
    listener
}

/// The ranges of addresses that a service is, where it is some.
fn ranges_of(service: &Service) -> Option<Value> {
    let ranges: Vec<_> = service.addresses.iter().filter(|a| a.contains('/')).collect();
    (!ranges.is_empty()).then(|| layer4::ranges(ranges))
}
