//! A gateway's listeners and routes: the servers of the Gateways that select it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster::{is_passed_on, server_name};
use super::filters::{Routes, Way, bytes, http_connection_manager, tcp_chain};
use super::memo::Output;
use super::{ProxyNode, acme, deny_list, layer4, rate_limit, route, tls};
use crate::model::gateway::{Gateway, Server, ServerTls, ServerTlsMode};
use crate::model::host::covers;
use crate::model::lookup::served_hosts;
use crate::model::virtual_service::RouteDestination;
use crate::model::{Object, Service, VirtualService, World};

/// One server at one port of the workload.
struct Place<'a> {
    gateway: &'a Object<Gateway>,
    server: &'a Server,
}

impl Place<'_> {
    fn https_routes(&self, port: u16) -> String {
        let meta = &self.gateway.meta;
        let name = format!("https.{port}.{}.{}.{}", self.server.port.name, meta.name, meta.namespace);
        self.bound(name)
    }

    /// A name for routes, which says where the server binds, if it says that itself.
    fn bound(&self, name: String) -> String {
        if self.server.bind.is_empty() { name } else { format!("{name}.{}", self.server.bind) }
    }

    fn spoken(&self) -> Spoken {
        match self.server.port.protocol.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => Spoken::Requests,
            "TLS" | "HTTPS" => Spoken::Tls,
            _ => Spoken::Bytes,
        }
    }

    fn redirects(&self) -> bool {
        self.server.tls.as_ref().is_some_and(|t| t.https_redirect)
    }

    /// Whether ACME servers that look at a host come here (RFC 8555, section 8.3: to port 80).
    fn is_asked_about(&self, host: &str) -> bool {
        let bare = |h: &str| h.rsplit_once('/').map_or(h, |(_, host)| host).to_owned();
        self.server.port.number == 80 && self.server.hosts.iter().any(|h| covers(&bare(h), host))
    }

    /// Its hosts, each once, without the namespaces that may bind to them.
    fn bare_hosts(&self) -> BTreeSet<String> {
        self.server
            .hosts
            .iter()
            .map(|h| h.rsplit_once('/').map_or(h.as_str(), |(_, host)| host).to_owned())
            .collect()
    }

    fn server_names(&self) -> Vec<String> {
        self.bare_hosts().into_iter().filter(|h| h != "*").collect()
    }

    /// The TLS that ends here, if any does.
    fn terminates(&self) -> Option<&ServerTls> {
        use ServerTlsMode::{IstioMutual, Mutual, OptionalMutual, Simple};
        self.server
            .tls
            .as_ref()
            .filter(|t| matches!(t.mode, Simple | Mutual | OptionalMutual | IstioMutual) && !t.https_redirect)
    }

    /// Whether one of its hosts, each of a namespace if it says so, takes a service in.
    fn takes(&self, service: &Service) -> bool {
        self.server.hosts.iter().any(|host| {
            let (namespace, host) = host.rsplit_once('/').unwrap_or(("*", host));
            let namespace = if namespace == "." { self.gateway.meta.namespace.as_str() } else { namespace };
            (namespace == "*" || namespace == service.namespace()) && covers(host, &service.hostname)
        })
    }

    /// The names of a chain of its own that ends TLS.
    fn names_of_its_own(&self, world: &World, node: &ProxyNode) -> BTreeSet<String> {
        let own = match (self.server.port.protocol.to_ascii_uppercase().as_str(), self.terminates()) {
            ("HTTPS", Some(_)) => true,
            ("TLS", Some(_)) => !tcp(world, node, self).is_empty(),
            _ => false,
        };
        if own { self.bare_hosts() } else { BTreeSet::new() }
    }
}

/// What comes to a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// HTTP in plain text.
    Requests,
    /// TLS, whatever is inside.
    Tls,
    /// Anything.
    Bytes,
}

/// The servers of one port that can stand together, the oldest first: plain HTTP with plain HTTP, TLS with TLS as far as no two
/// claim a host. Whoever comes later and does not fit is left out as a whole, as istiod does.
fn together(places: Vec<Place<'_>>) -> Vec<Place<'_>> {
    let Some(first) = places.first().map(Place::spoken) else { return places };
    let mut hosts = BTreeSet::new();
    let mut fits = |index: usize, place: &Place<'_>| match first {
        _ if place.spoken() != first => false,
        Spoken::Requests => true,
        Spoken::Bytes => index == 0,
        Spoken::Tls => {
            let own = place.bare_hosts();
            let free = own.is_disjoint(&hosts);
            if free {
                hosts.extend(own);
            }
            free
        }
    };
    places
        .into_iter()
        .enumerate()
        .filter(|(index, place)| fits(*index, place))
        .map(|(_, place)| place)
        .collect()
}

pub(super) fn render(world: &World, node: &ProxyNode, listeners: &mut Output<'_>, routes: &mut Output<'_>) {
    let inputs = (world.shape_version(), node.inputs(world));
    let gateways = world.gateways_for(&node.namespace, node.selected_by(world));
    let denied = world.deny_lists_at(&node.namespace, node.selected_by(world));
    let lists: Vec<_> =
        denied.iter().map(|(list, set)| (&list.meta.namespace, &list.meta.name, set.version())).collect();
    let mut ports: BTreeMap<(&str, u16), Vec<Place<'_>>> = BTreeMap::new();
    for gateway in &gateways {
        for server in &gateway.spec.servers {
            for port in world.gateway_ports(&node.addresses, server.port.number) {
                let bind = if server.bind.is_empty() { node.wildcard() } else { &server.bind };
                ports.entry((bind, port)).or_default().push(Place { gateway, server });
            }
        }
    }
    for ((bind, port), places) in ports {
        let places = together(places);
        // Servers come in any order: what TLS ends for is taken before names are looked for that pass through.
        let mut names: HashSet<String> =
            places.iter().flat_map(|place| place.names_of_its_own(world, node)).collect();
        let name = format!("{bind}_{port}");
        let (mut chains, mut plain, mut sni) = (Vec::new(), Vec::new(), false);
        for place in &places {
            let protocol = place.server.port.protocol.to_ascii_uppercase();
            match (protocol.as_str(), place.terminates()) {
                ("HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB", _) => plain.push(place),
                ("HTTPS", Some(settings)) => {
                    sni = true;
                    let name = place.https_routes(port);
                    let context = match settings.mode {
                        ServerTlsMode::IstioMutual => Some(tls::inbound(world, true)),
                        _ => Some(tls::server(settings)),
                    };
                    let hcm = http_connection_manager(
                        world,
                        node,
                        Way::Gateway,
                        &place.server.port.name,
                        Routes::Rds(name.clone()),
                    );
                    chains.push(json!({
                        "filter_chain_match": {"server_names": place.server_names()},
                        "filters": limited(world, node, &[place], vec![hcm]),
                        "transport_socket": context,
                    }));
                    routes.put(&name, inputs, || routes_of(world, node, &name, port, &[place]));
                }
                ("TLS", Some(settings)) => {
                    sni = true;
                    let context = match settings.mode {
                        ServerTlsMode::IstioMutual => tls::inbound(world, false),
                        _ => tls::server(settings),
                    };
                    let of_names = passthrough(world, node, place, &mut names).into_iter();
                    chains.extend(of_names.chain(terminated(world, node, place)).map(|mut chain| {
                        chain["transport_socket"].clone_from(&context);
                        chain
                    }));
                }
                ("TLS" | "HTTPS", _) if place.server.passes_by_name() => {
                    sni = true;
                    chains.extend(by_name(world, node, place, &mut names));
                }
                ("TLS" | "HTTPS", _) => {
                    sni = true;
                    chains.extend(passthrough(world, node, place, &mut names));
                }
                _ => chains.extend(tcp(world, node, place)),
            }
        }
        if !plain.is_empty() {
            let name = plain[0].bound(format!("http.{port}"));
            let prefix = format!("outbound_{bind}_{port};");
            let hcm = http_connection_manager(world, node, Way::Gateway, &prefix, Routes::Rds(name.clone()));
            chains.push(json!({"filters": limited(world, node, &plain, vec![hcm])}));
            routes.put(&name, inputs, || routes_of(world, node, &name, port, &plain));
        }
        if chains.is_empty() {
            continue;
        }
        let mut inspectors = Vec::new();
        // What comes before the connection's own first byte is read first.
        if node.topology(world).proxy_protocol.is_some() {
            inspectors
                .push(json!({"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}}));
        }
        if sni {
            inspectors.push(json!({"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type":
                "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}));
        }
        let listener = json!({
            "name": name,
            "address": {"socket_address": {"address": bind, "port_value": port}},
            "traffic_direction": "OUTBOUND",
            "listener_filters": inspectors,
            "filter_chains": chains,
        });
        // The lists are long, and go into the message as they are.
        listeners.put_amended(
            &name,
            (inputs, &lists),
            || listener,
            |bytes| deny_list::before(&denied, bytes),
        );
    }
}

/// A VirtualService at a server: the hosts that they have in common, and the gateway's full name.
type Bound<'a> = (&'a Arc<Object<VirtualService>>, Vec<String>, String);

/// The VirtualServices of a server, of those that the gateway's workload sees.
fn bound<'a>(world: &'a World, node: &ProxyNode, place: &Place<'_>) -> Vec<Bound<'a>> {
    let meta = &place.gateway.meta;
    let gateway = format!("{}/{}", meta.namespace, meta.name);
    world
        .virtual_services_for(&node.namespace, &gateway)
        .into_iter()
        .map(|rules| (rules, served_hosts(place.server, &meta.namespace, rules), gateway.clone()))
        .filter(|(_, hosts, _)| !hosts.is_empty())
        .collect()
}

fn routes_of(world: &World, node: &ProxyNode, name: &str, port: u16, places: &[&Place<'_>]) -> Value {
    let mut hosts: BTreeMap<String, (Vec<Value>, bool)> = BTreeMap::new();
    for place in places {
        for (rules, names, gateway) in bound(world, node, place) {
            // What a VirtualService says of a port is of the port that clients see, the server's.
            let made = route::http_routes(world, node, rules, &gateway, place.server.port.number);
            for host in names {
                let entry = hosts.entry(host).or_default();
                entry.0.extend(made.iter().cloned());
                entry.1 |= place.redirects();
            }
        }
        if place.redirects() {
            for host in place.server_names() {
                hosts.entry(host).or_default().1 = true;
            }
        }
    }
    let mut virtual_hosts: Vec<Value> = hosts
        .into_iter()
        .map(|(host, (mut routes, redirect))| {
            // Several VirtualServices may speak for a host: what matches everything goes last.
            routes.sort_by_key(|r| r["match"] == json!({"prefix": "/"}));
            let mut rendered = json!({
                "name": format!("{host}:{port}"),
                "domains": [host],
                "routes": routes,
                "include_request_attempt_count": true,
            });
            if redirect {
                rendered["require_tls"] = "ALL".into();
                rendered["routes"] = json!([]);
            }
            rendered
        })
        .collect();
    let asked = |host: &str| places.iter().any(|place| place.is_asked_about(host));
    acme::answer(world, node, port, asked, &mut virtual_hosts);
    if virtual_hosts.is_empty() {
        virtual_hosts.push(json!({"name": format!("blackhole:{port}"), "domains": ["*"]}));
    }
    json!({
        "name": name,
        "virtual_hosts": virtual_hosts,
        "validate_clusters": false,
        "ignore_port_in_host_matching": true,
        "max_direct_response_body_size_bytes": 1_048_576,
    })
}

/// TLS that goes through untouched, by its server name. `taken`: the names that the port's chains have already; a match that
/// repeats one is left out, for Envoy refuses a listener with two chains for the same.
fn passthrough(
    world: &World,
    node: &ProxyNode,
    place: &Place<'_>,
    taken: &mut HashSet<String>,
) -> Vec<Value> {
    let mut chains = Vec::new();
    for (rules, _, gateway) in bound(world, node, place) {
        for tls in &rules.spec.tls {
            for wanted in &tls.matches {
                if !wanted.gateways.is_empty() && !wanted.gateways.contains(&gateway) {
                    continue;
                }
                let port = place.server.port.number;
                if wanted.port.is_some_and(|wanted| wanted != port)
                    || wanted.sni_hosts.iter().any(|name| taken.contains(name))
                {
                    continue;
                }
                taken.extend(wanted.sni_hosts.iter().cloned());
                // A star alone is every name, which a match says by silence.
                let names: Vec<_> = wanted.sni_hosts.iter().filter(|name| *name != "*").collect();
                chains.push(json!({
                    "filter_chain_match": {"server_names": names},
                    "filters": to(world, node, place, &tls.route),
                }));
            }
        }
    }
    chains
}

/// What mutual TLS of the mesh offers, whichever proxy begins it.
const MUTUAL: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// Mutual TLS that goes on to the service and subset that its server name says: those that the gateway's workload sees, and its
/// hosts take in. Who the client is, the server asks; nobody is asked here, as with istiod.
fn by_name(world: &World, node: &ProxyNode, place: &Place<'_>, taken: &mut HashSet<String>) -> Vec<Value> {
    let mut chains = Vec::new();
    for service in world.visible_services(&node.namespace) {
        if !is_passed_on(service) || !place.takes(service) {
            continue;
        }
        let rule = world.destination_rule(&node.namespace, node.selected_by(world), service);
        let subsets = || rule.iter().flat_map(|r| &r.spec.subsets).map(|subset| subset.name.as_str());
        for port in &service.ports {
            for subset in std::iter::once("").chain(subsets()) {
                let name = server_name(port.number, subset, &service.hostname);
                if !taken.insert(name.clone()) {
                    continue;
                }
                let filters = bytes(world, node, Way::Gateway, &name.as_str().into());
                chains.push(json!({
                    "filter_chain_match": {"server_names": [name], "application_protocols": MUTUAL},
                    "filters": limited(world, node, &[place], filters),
                }));
            }
        }
    }
    chains
}

/// TLS that ends here, and what is inside goes by the rules for plain TCP.
fn terminated(world: &World, node: &ProxyNode, place: &Place<'_>) -> Option<Value> {
    let mut chain = tcp(world, node, place).pop()?;
    chain["filter_chain_match"] = json!({"server_names": place.server_names()});
    Some(chain)
}

fn tcp(world: &World, node: &ProxyNode, place: &Place<'_>) -> Vec<Value> {
    let server = place.server.port.number;
    bound(world, node, place)
        .into_iter()
        .find_map(|(rules, _, gateway)| {
            let mut routes = rules.spec.tcp.iter();
            routes.find(|tcp| layer4::takes(world, node, &tcp.matches, &gateway, server))
        })
        .map(|tcp| json!({"filters": to(world, node, place, &tcp.route)}))
        .into_iter()
        .collect()
}

/// The filters of a chain for bytes.
fn to(world: &World, node: &ProxyNode, place: &Place<'_>, routes: &[RouteDestination]) -> Vec<Value> {
    let filters = tcp_chain(world, node, Way::Gateway, &layer4::clusters(world, routes));
    limited(world, node, &[place], filters)
}

/// The filters of a chain, behind those that count connections to these servers, which share a port.
fn limited(world: &World, node: &ProxyNode, places: &[&Place<'_>], filters: Vec<Value>) -> Vec<Value> {
    let gateways: Vec<_> = places.iter().map(|place| place.gateway).collect();
    let port = places.first().map(|place| place.server.port.number);
    rate_limit::of_connections(world, node, port, &gateways).chain(filters).collect()
}
