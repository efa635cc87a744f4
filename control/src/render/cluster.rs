//! Clusters: one for each port and subset of each service that the node may call, the fixed ones, and its own inbound ones.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::endpoint::Wanted;
use super::health_check;
use super::locality::Nearness;
use super::memo::Output;
use super::{Interception, ProxyKind, ProxyNode, seconds, tls};
use crate::model::destination_rule::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, H2UpgradePolicy, Http2KeepAlive, HttpPool,
    OutlierDetection, ProxyProtocol, ProxyProtocolVersion, SimpleBalancer, TcpKeepalive, TcpPool, Warmup,
};
use crate::model::gateway::{Server, ServerTls};
use crate::model::lookup::{MergedRule, PortPolicy, effective_policy};
use crate::model::mesh_config::InboundMode;
use crate::model::service::{Resolution, ServiceLocation};
use crate::model::sidecar::CaptureMode;
use crate::model::{EffectivePeerMode, Endpoint, HealthCheck, Object, Protocol, Service, ServicePort, World};

/// Whether connections to a service go where the client addressed them.
fn as_chosen(node: &ProxyNode, service: &Service, policy: &PortPolicy) -> bool {
    let simple = policy.load_balancer.as_ref().and_then(|l| l.simple);
    dialled_by_clients(node, service) || simple == Some(SimpleBalancer::Passthrough)
}

/// Whether a service has no endpoints but those that clients dial. Clients of a gateway dial the gateway: it knows the endpoints itself.
pub(super) fn dialled_by_clients(node: &ProxyNode, service: &Service) -> bool {
    service.resolution == Resolution::None && node.kind != ProxyKind::Router
}

/// What istiod writes for "no limit".
const UNLIMITED: u32 = u32::MAX;

/// The services that a node's clusters are for.
pub(super) fn services<'a>(world: &'a World, node: &ProxyNode) -> Vec<&'a Arc<Service>> {
    if node.kind == ProxyKind::Router {
        return world.visible_services(&node.namespace);
    }
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    match sidecar {
        Some(sidecar) if !sidecar.spec.egress.is_empty() => {
            let mut known = HashSet::new();
            let listeners = sidecar.spec.egress.iter();
            let all = listeners.flat_map(|listener| world.imported_services(&node.namespace, Some(listener)));
            all.filter(|service| known.insert(Arc::as_ptr(service))).collect()
        }
        _ => world.imported_services(&node.namespace, None),
    }
}

/// `outbound|PORT|SUBSET|HOST`.
pub(super) fn outbound_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `outbound_.PORT_.SUBSET_.HOST`: the server name by which clients ask for it in mutual TLS, and the cluster of who passes that on.
pub(super) fn server_name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// Whether the node is a gateway that passes TLS on to the service that its server name says (AUTO_PASSTHROUGH).
pub(super) fn passes_by_name(world: &World, node: &ProxyNode) -> bool {
    node.kind == ProxyKind::Router
        && world
            .gateways_for(&node.namespace, node.selected_by(world))
            .iter()
            .any(|gateway| gateway.spec.servers.iter().any(Server::passes_by_name))
}

/// Whether a service is one of those: it is part of the mesh, and has a name that can be said. No server name has a star in it.
pub(super) fn is_passed_on(service: &Service) -> bool {
    service.location == ServiceLocation::MeshInternal && !service.hostname.starts_with('*')
}

/// Port, subset and host of such a name.
pub(super) fn outbound_parts(name: &str) -> Option<(u16, Option<&str>, &str)> {
    let mut parts = match name.strip_prefix("outbound_.") {
        Some(rest) => rest.splitn(3, "_.").collect::<Vec<_>>(),
        None => name.strip_prefix("outbound|")?.splitn(3, '|').collect(),
    }
    .into_iter();
    let (port, subset, host) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    Some((port, (!subset.is_empty()).then_some(subset), host))
}

/// The clusters of one service. `by_name`: the node passes on what asks for the service by its server name.
pub(super) fn of_service(
    world: &World,
    node: &ProxyNode,
    service: &Arc<Service>,
    by_name: bool,
    out: &mut Output<'_>,
) {
    let by_name = by_name && is_passed_on(service);
    let rule = world.destination_rule(&node.namespace, node.selected_by(world), service);
    let peer = world.namespace_peer_mode(service.namespace()) == EffectivePeerMode::Disable;
    for port in &service.ports {
        let subsets = rule.iter().flat_map(|r| &r.spec.subsets).map(|s| Some(s.name.as_str()));
        for subset in std::iter::once(None).chain(subsets) {
            let name = outbound_name(port.number, subset.unwrap_or_default(), &service.hostname);
            let policy = rule.map(|r| effective_policy(&r.spec, subset, port.number)).unwrap_or_default();
            let nearness = Nearness::new(world, node, &policy);
            // Where clients choose the endpoint, all have to take mutual TLS, or none gets it; by DNS, endpoints are part of
            // the cluster itself, each with whether it takes mutual TLS.
            let (endpoints, peers) = match service.resolution {
                Resolution::Static if !as_chosen(node, service, &policy) => (0, 0),
                _ => (service.versions.endpoints, world.peer_version()),
            };
            let versions = (service.versions.shape, service.versions.identities, endpoints, peers);
            let place = if endpoints == 0 { String::new() } else { nearness.key() };
            let check = world.health_check(&node.namespace, service, port.number);
            let ours = (node.kind, node.extensions, check.map(|c| c.meta.version));
            let networks = if endpoints == 0 { 0 } else { world.networks().version() };
            let inputs =
                (versions, rule.map(|r| r.version), world.mesh_version(), peer, place, ours, networks);
            let rules = Rules { policy: &policy, rule, subset, nearness: &nearness, check, by_name: false };
            out.put(&name, &inputs, || outbound(world, node, service, port, &rules, &name));
            if by_name {
                let name = server_name(port.number, subset.unwrap_or_default(), &service.hostname);
                let rules = Rules { by_name, ..rules };
                out.put(&name, &inputs, || outbound(world, node, service, port, &rules, &name));
            }
        }
    }
}

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let by_name = passes_by_name(world, node);
    for service in services(world, node) {
        of_service(world, node, service, by_name, out);
    }
    let connect = seconds(world.mesh().connect_timeout.get());
    out.put(
        "BlackHoleCluster",
        world.mesh_version(),
        || json!({"name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": connect}),
    );
    if node.kind == ProxyKind::Sidecar {
        out.put("PassthroughCluster", world.mesh_version(), || {
            json!({
                "name": "PassthroughCluster",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": connect,
                "circuit_breakers": unlimited(),
                "typed_extension_protocol_options": protocol_options(json!({
                    "common_http_protocol_options": {"idle_timeout": "300s"},
                    "use_downstream_protocol_config": {
                        "http_protocol_options": {}, "http2_protocol_options": {}},
                })),
            })
        });
        if node.interception != Interception::None {
            let families = node.wildcards();
            out.put(INBOUND_PASSTHROUGH, (world.mesh_version(), &families, node.interception), || {
                let mut cluster = json!({
                    "name": INBOUND_PASSTHROUGH,
                    "circuit_breakers": unlimited(),
                    "typed_extension_protocol_options": protocol_options(json!({
                        "common_http_protocol_options": {"idle_timeout": "300s"},
                        "use_downstream_protocol_config": {
                            "http_protocol_options": {}, "http2_protocol_options": {}}})),
                    "connect_timeout": connect,
                });
                as_dialled(node, &mut cluster);
                cluster
            });
        }
        for inbound in inbound_ports(world, node) {
            let served = inbound.service.as_ref().map(|(service, port)| (service.versions.shape, *port));
            let pool = inbound.pool.as_ref().map(|(_, version)| version);
            let from = (inbound.to.is_none(), node.wildcards(), node.interception);
            let inputs =
                (world.mesh_version(), inbound.port, inbound.protocol, &inbound.to, from, served, pool);
            out.put(&inbound.cluster(), inputs, || inbound_cluster(world, node, &inbound));
        }
    }
}

fn unlimited() -> Value {
    json!({"thresholds": [{
        "max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED,
        "max_retries": UNLIMITED, "track_remaining": true,
    }]})
}

/// Where connections that no service of the node takes go on to: where they were going.
pub(super) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Connections go where the client wanted, from an address by which the kernel's rules know them again and let them pass. One
/// that keeps the client's own address is known by its mark.
fn as_dialled(node: &ProxyNode, cluster: &mut Value) {
    cluster["type"] = "ORIGINAL_DST".into();
    cluster["lb_policy"] = "CLUSTER_PROVIDED".into();
    if node.interception == Interception::Transparent {
        return;
    }
    let own = |any: &str| if any == "::" { "::6" } else { "127.0.0.6" };
    let addresses: Vec<_> =
        node.wildcards().iter().map(|any| json!({"address": own(any), "port_value": 0})).collect();
    if let Some((first, others)) = addresses.split_first() {
        let mut bind = json!({"source_address": first});
        if !others.is_empty() {
            let extra: Vec<_> = others.iter().map(|a| json!({"address": a})).collect();
            bind["extra_source_addresses"] = extra.into();
        }
        cluster["upstream_bind_config"] = bind;
    }
}

/// A port that the node serves: where it listens, and where its application is.
pub(super) struct Inbound {
    pub(super) port: u16,
    pub(super) bind: String,
    pub(super) protocol: crate::model::Protocol,
    /// Application host and port; `unix:///path` and no port for a socket; none for where the client was going.
    pub(super) to: Option<(String, u16)>,
    /// It has a listener of its own although the node's traffic is captured.
    pub(super) uncaptured: bool,
    /// The service and its port, for names and metrics.
    pub(super) service: Option<(Arc<Service>, u16)>,
    /// Limits for connections to the application, and the version of the Sidecar that sets them.
    pool: Option<(ConnectionPool, u64)>,
    /// How TLS ends here where mutual TLS of the mesh is off.
    pub(super) tls: Option<ServerTls>,
}

impl Inbound {
    pub(super) fn cluster(&self) -> String {
        format!("inbound|{}||", self.port)
    }
}

/// The ports that a sidecar serves: those of its Sidecar's ingress, else those of its services.
pub(super) fn inbound_ports(world: &World, node: &ProxyNode) -> Vec<Inbound> {
    let mut found: Vec<Inbound> = Vec::new();
    let mut served: Vec<(Arc<Service>, u16, u16, crate::model::Protocol)> = Vec::new();
    for (service, endpoint) in node.addresses.iter().flat_map(|a| world.served_at(a)) {
        for port in &service.ports {
            if let Some(target) = service.endpoint_port(port, endpoint) {
                served.push((service.clone(), port.number, target, port.protocol));
            }
        }
    }
    // As the mesh says, captured connections go on to the address that was dialled, or to the loopback address.
    let dialled = node.interception != Interception::None
        && world.mesh().inbound_traffic_policy.mode == InboundMode::Passthrough;
    let of = |target: u16| served.iter().find(|s| s.2 == target).map(|s| (s.0.clone(), s.1));
    let sidecar = world.sidecar_for(&node.namespace, node.selected_by(world));
    // A port's own limits replace those of all ports.
    let pool = |own: Option<&ConnectionPool>| {
        let sidecar = sidecar?;
        Some((own.or(sidecar.spec.inbound_connection_pool.as_ref())?.clone(), sidecar.meta.version))
    };
    if let Some(sidecar) = sidecar.filter(|s| !s.spec.ingress.is_empty()) {
        for ingress in &sidecar.spec.ingress {
            let number = ingress.port.number;
            let bind = if ingress.bind.is_empty() { node.address().to_owned() } else { ingress.bind.clone() };
            let (host, port) = ingress.default_endpoint.rsplit_once(':').unwrap_or(("127.0.0.1", ""));
            let host = match host {
                // Istio's word for the instance's own address.
                "" | "0.0.0.0" | "[::]" => node.address(),
                host => host,
            };
            // What is not declared is seen from what clients send.
            let protocol = Protocol::parse(&ingress.port.protocol).unwrap_or(Protocol::Auto);
            let uncaptured = ingress.capture_mode == CaptureMode::None;
            let to = match ingress.default_endpoint.as_str() {
                "" if dialled && !uncaptured => None,
                socket if socket.starts_with("unix://") => Some((socket.to_owned(), 0)),
                _ => Some((host.to_owned(), port.parse().unwrap_or(number))),
            };
            found.push(Inbound {
                port: number,
                bind,
                protocol,
                to,
                uncaptured,
                service: of(number),
                pool: pool(ingress.connection_pool.as_ref()),
                tls: ingress.tls.clone(),
            });
        }
        return found;
    }
    for (service, number, target, protocol) in &served {
        if !found.iter().any(|f| f.port == *target) {
            found.push(Inbound {
                port: *target,
                bind: node.address().to_owned(),
                protocol: *protocol,
                to: (!dialled).then(|| ("127.0.0.1".to_owned(), *target)),
                uncaptured: false,
                service: Some((service.clone(), *number)),
                pool: pool(None),
                tls: None,
            });
        }
    }
    found
}

fn inbound_cluster(world: &World, node: &ProxyNode, inbound: &Inbound) -> Value {
    let name = inbound.cluster();
    let pool = inbound.pool.as_ref().map(|(pool, _)| pool.clone()).unwrap_or_default();
    let (tcp, http) = (pool.tcp.unwrap_or_default(), pool.http.unwrap_or_default());
    let mut cluster = json!({
        "name": name,
        "connect_timeout": seconds(tcp.connect_timeout.unwrap_or(world.mesh().connect_timeout).get()),
        "circuit_breakers": breakers(None, tcp.max_connections, &http),
        "common_lb_config": {},
    });
    match &inbound.to {
        Some((host, port)) => {
            let address = match host.strip_prefix("unix://") {
                Some(path) => json!({"pipe": {"path": path}}),
                None => json!({"socket_address": {"address": host, "port_value": port}}),
            };
            cluster["type"] = "STATIC".into();
            cluster["load_assignment"] = json!({"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address}}]}]});
        }
        None => as_dialled(node, &mut cluster),
    }
    if let Some(own) = &tcp.tcp_keepalive {
        cluster["upstream_connection_options"] = keepalive(own);
    }
    let common = common_options(&tcp, &http);
    let given = common.as_object().is_some_and(|c| !c.is_empty());
    if inbound.protocol.is_http2() {
        cluster["typed_extension_protocol_options"] = http2_options(&common, &http);
    } else if inbound.protocol.is_http() && !http.use_client_protocol {
        // The port says that its application speaks HTTP/1.1, whatever a client's sidecar speaks.
        if given {
            cluster["typed_extension_protocol_options"] = protocol_options(json!({
                "explicit_http_config": {"http_protocol_options": {}}, "common_http_protocol_options": common}));
        }
    } else if inbound.protocol.is_http() || inbound.protocol.is_auto() {
        let mut options = json!({"use_downstream_protocol_config": {
            "http_protocol_options": {}, "http2_protocol_options": http2_limits(&http)}});
        if given {
            options["common_http_protocol_options"] = common;
        }
        cluster["typed_extension_protocol_options"] = protocol_options(options);
    }
    if let Some((service, _)) = &inbound.service {
        cluster["metadata"] = service_metadata(service, None);
    }
    cluster
}

fn service_metadata(service: &Service, subset: Option<&str>) -> Value {
    let name = service.hostname.split('.').next().unwrap_or_default();
    let mut istio = json!({"services": [
        {"host": &*service.hostname, "name": name, "namespace": service.namespace()}
    ]});
    if let Some(subset) = subset {
        istio["subset"] = subset.into();
    }
    if service.location == ServiceLocation::MeshExternal {
        istio["external"] = true.into();
    }
    json!({"filter_metadata": {"istio": istio}})
}

fn protocol_options(mut options: Value) -> Value {
    options["@type"] = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

/// The options of HTTP/2 connections: streams at once, and pings.
fn http2_limits(http: &HttpPool) -> Value {
    let mut options = json!({});
    if let Some(streams) = http.max_concurrent_streams.filter(|n| *n > 0) {
        options["max_concurrent_streams"] = streams.into();
    }
    if let Some(Http2KeepAlive { interval: Some(interval), timeout: Some(timeout) }) = http.http2_keep_alive {
        options["connection_keepalive"] =
            json!({"interval": seconds(interval.get()), "timeout": seconds(timeout.get())});
    }
    options
}

fn http2_options(common: &Value, http: &HttpPool) -> Value {
    let mut options = json!({"explicit_http_config": {"http2_protocol_options": http2_limits(http)}});
    if common.as_object().is_some_and(|c| !c.is_empty()) {
        options["common_http_protocol_options"] = common.clone();
    }
    protocol_options(options)
}

/// What is said about a cluster beside its service.
#[derive(Clone, Copy)]
struct Rules<'a> {
    policy: &'a PortPolicy,
    rule: Option<&'a Arc<MergedRule>>,
    subset: Option<&'a str>,
    nearness: &'a Nearness,
    check: Option<&'a Arc<Object<HealthCheck>>>,
    /// It gets bytes that are TLS already, of clients that asked for it by its name.
    by_name: bool,
}

fn outbound(
    world: &World,
    node: &ProxyNode,
    service: &Service,
    port: &ServicePort,
    rules: &Rules<'_>,
    name: &str,
) -> Value {
    let Rules { policy, rule, subset, nearness, check, by_name } = *rules;
    let mesh = world.mesh();
    let pool = policy.connection_pool.clone().unwrap_or_default();
    let (tcp, http) = (pool.tcp.unwrap_or_default(), pool.http.unwrap_or_default());
    let connect = tcp.connect_timeout.unwrap_or(mesh.connect_timeout);
    let mut cluster = json!({
        "name": name,
        "alt_stat_name": format!("{name};"),
        "connect_timeout": seconds(connect.get()),
        "metadata": service_metadata(service, subset),
    });
    if let Some(rule) = rule {
        // As istiod names the object that says what the cluster is like; records of requests have it from here.
        let (namespace, name) = (&rule.meta.namespace, &rule.meta.name);
        let config = format!("/apis/networking.istio.io/v1/namespaces/{namespace}/destination-rule/{name}");
        cluster["metadata"]["filter_metadata"]["istio"]["config"] = config.into();
    }
    match service.resolution {
        _ if !by_name && as_chosen(node, service, policy) => {
            cluster["type"] = "ORIGINAL_DST".into();
        }
        Resolution::None | Resolution::Static => {
            cluster["type"] = "EDS".into();
            cluster["eds_cluster_config"] = json!({"service_name": name, "eds_config": {
                "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}});
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            let labels = subset.and_then(|name| {
                rule.and_then(|r| r.spec.subsets.iter().find(|s| s.name == name)).map(|s| &s.labels)
            });
            let wanted = Wanted { service, port, labels, nearness, view: None, mutual_only: by_name };
            let assignment = super::endpoint::assignment(world, &wanted, name);
            let empty = assignment["endpoints"].as_array().is_none_or(Vec::is_empty);
            // Without endpoints of its own it is found by its own name, if that is one.
            let own_name = !by_name
                && !service.hostname.starts_with('*')
                && service.endpoints.iter().all(|endpoint| !endpoint.address.is_empty());
            if empty && !own_name {
                // A DNS cluster without a name is refused, and all clusters with it.
                cluster["type"] = "STATIC".into();
                cluster["load_assignment"] = assignment;
            } else {
                // A selector may find several entries. A logical cluster has but one name, and proxies refuse another.
                let several = assignment["endpoints"].as_array().is_some_and(|places| {
                    places
                        .iter()
                        .filter_map(|place| place["lb_endpoints"].as_array())
                        .map(Vec::len)
                        .sum::<usize>()
                        > 1
                });
                let logical = service.resolution == Resolution::DnsRoundRobin && !several;
                cluster["type"] = if logical { "LOGICAL_DNS" } else { "STRICT_DNS" }.into();
                cluster["dns_refresh_rate"] = seconds(mesh.dns_refresh_rate.get());
                cluster["respect_dns_ttl"] = true.into();
                cluster["dns_lookup_family"] = "V4_ONLY".into();
                cluster["load_assignment"] = match empty {
                    true => {
                        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                        {"socket_address": {"address": &*service.hostname, "port_value": port.number}}}}]}]})
                    }
                    false => assignment,
                };
            }
        }
    }
    let original = cluster["type"] == "ORIGINAL_DST";
    let balancer = policy.load_balancer.as_ref();
    cluster["lb_policy"] = match balancer.and_then(|l| l.simple) {
        _ if original => "CLUSTER_PROVIDED",
        Some(SimpleBalancer::RoundRobin) => "ROUND_ROBIN",
        Some(SimpleBalancer::Random) => "RANDOM",
        _ => "LEAST_REQUEST",
    }
    .into();
    if let Some(hash) = balancer.and_then(|l| l.consistent_hash.as_ref()).filter(|_| !original) {
        consistent_hash(hash, &mut cluster);
    }
    if let Some(warmup) = balancer.and_then(|l| l.warm_up()) {
        warm_up(warmup, &mut cluster);
    }
    // A plain Envoy knows nothing of it.
    let window = rule.filter(|_| node.extensions).and_then(|r| r.return_window());
    if let Some(window) = window {
        cluster["metadata"]["filter_metadata"]["weft.dev"] = json!({"return_window": seconds(window.get())});
    }
    cluster["circuit_breakers"] = breakers(Some(policy), tcp.max_connections, &http);
    let panic = policy.outlier_detection.as_ref().and_then(|o| o.min_health_percent).unwrap_or_default();
    cluster["common_lb_config"] = json!({"healthy_panic_threshold": {"value": panic}});
    if matches!(nearness, Nearness::Shares(_)) {
        cluster["common_lb_config"]["locality_weighted_lb_config"] = json!({});
    }
    if let Some(outlier) = &policy.outlier_detection {
        cluster["outlier_detection"] = outlier_detection(outlier);
    }
    let own = tcp.tcp_keepalive.as_ref().or(mesh.tcp_keepalive.as_ref()).map(keepalive);
    cluster["upstream_connection_options"] =
        own.unwrap_or_else(|| json!({"tcp_keepalive": {"keepalive_time": KEEPALIVE_SECONDS}}));
    if by_name {
        return cluster;
    }
    let common = common_options(&tcp, &http);
    let upgrade = match http.h2_upgrade_policy {
        None | Some(H2UpgradePolicy::Default) => mesh.h2_upgrade_policy,
        Some(given) => given,
    };
    // Only plain HTTP/1.1 is upgraded, and not where the client's version is kept.
    let upgraded = upgrade == H2UpgradePolicy::Upgrade
        && !http.use_client_protocol
        && (port.protocol.is_http() || port.protocol.is_auto());
    let http2 = port.protocol.is_http2() || upgraded;
    if http2 {
        cluster["typed_extension_protocol_options"] = http2_options(&common, &http);
    } else if port.protocol.is_auto() || http.use_client_protocol {
        let mut options = json!({"use_downstream_protocol_config": {
            "http_protocol_options": {}, "http2_protocol_options": http2_limits(&http)}});
        options["common_http_protocol_options"] = common;
        cluster["typed_extension_protocol_options"] = protocol_options(options);
    } else if port.protocol.is_http() && common.as_object().is_some_and(|c| !c.is_empty()) {
        cluster["typed_extension_protocol_options"] = protocol_options(json!({
            "explicit_http_config": {"http_protocol_options": {}}, "common_http_protocol_options": common}));
    }
    let selected = rule.is_some_and(|r| r.spec.workload_selector.is_some());
    let credentials = node.kind == ProxyKind::Router || selected;
    secure(world, service, port, subset, policy, http2, credentials, &mut cluster);
    // Where clients choose the endpoint there is none to ask; gRPC is not spoken by HTTP/1.
    if let Some(check) = check.filter(|c| !original && (http2 || c.spec.grpc.is_none())) {
        let mutual = policy.tls.as_ref().is_none_or(|tls| tls.mode == ClientTlsMode::IstioMutual)
            && service.location == ServiceLocation::MeshInternal;
        let spoken = health_check::Spoken { http2, mutual };
        health_check::put(&check.spec, &service.hostname, &spoken, &mut cluster);
    }
    if let Some(header) = policy.proxy_protocol {
        say_first(header, &mut cluster);
    }
    cluster
}

/// How long a connection is silent before the other side is asked whether it is there still, where nobody says anything. Load
/// balancers of clouds forget connections after 350 s of silence, and the kernel's own two hours are beyond that.
const KEEPALIVE_SECONDS: u32 = 300;

fn keepalive(keepalive: &TcpKeepalive) -> Value {
    let mut fields = json!({});
    for (key, value) in [
        ("keepalive_probes", keepalive.probes),
        ("keepalive_time", keepalive.time.map(|t| t.get().as_secs() as u32)),
        ("keepalive_interval", keepalive.interval.map(|t| t.get().as_secs() as u32)),
    ] {
        if let Some(value) = value {
            fields[key] = value.into();
        }
    }
    json!({"tcp_keepalive": fields})
}

/// The options of connections of either HTTP version.
fn common_options(tcp: &TcpPool, http: &HttpPool) -> Value {
    let mut common = json!({});
    if let Some(idle) = http.idle_timeout.or(tcp.idle_timeout) {
        common["idle_timeout"] = seconds(idle.get());
    }
    if let Some(most) = http.max_requests_per_connection.filter(|n| *n > 0) {
        common["max_requests_per_connection"] = most.into();
    }
    if let Some(longest) = tcp.max_connection_duration {
        common["max_connection_duration"] = seconds(longest.get());
    }
    common
}

/// New endpoints get ever more requests; Envoy does this by turns and by the less busy, so that others stay as they are.
fn warm_up(warmup: Warmup, cluster: &mut Value) {
    let config = match cluster["lb_policy"].as_str() {
        Some("ROUND_ROBIN") => "round_robin_lb_config",
        Some("LEAST_REQUEST") => "least_request_lb_config",
        _ => return,
    };
    let mut ramp = json!({
        // Envoy wants a runtime key, and istiod gives it one that nobody can set.
        "aggression": {"default_value": warmup.aggression.unwrap_or(1.0), "runtime_key": "("},
        "min_weight_percent": {"value": warmup.minimum_percent.unwrap_or(10.0)},
    });
    if let Some(duration) = warmup.duration {
        ramp["slow_start_window"] = seconds(duration.get());
    }
    cluster[config] = json!({"slow_start_config": ramp});
}

/// Puts the PROXY protocol's header in front of whatever the cluster's connections speak.
fn say_first(header: ProxyProtocol, cluster: &mut Value) {
    let wrapped = |inner: Value| {
        let version = match header.version {
            ProxyProtocolVersion::V1 => "V1",
            ProxyProtocolVersion::V2 => "V2",
        };
        let mut typed = json!({"config": {"version": version}, "transport_socket": inner});
        typed["@type"] =
            "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
                .into();
        json!({"name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": typed})
    };
    if let Some(matches) = cluster.get_mut("transport_socket_matches").and_then(Value::as_array_mut) {
        for entry in matches {
            entry["transport_socket"] = wrapped(entry["transport_socket"].take());
        }
        return;
    }
    let inner = cluster.get("transport_socket").cloned().unwrap_or_else(tls::raw_buffer);
    cluster["transport_socket"] = wrapped(inner);
}

/// A ring, or Maglev's table.
fn consistent_hash(hash: &ConsistentHash, cluster: &mut Value) {
    if let Some(maglev) = hash.maglev {
        cluster["lb_policy"] = "MAGLEV".into();
        if let Some(size) = maglev.table_size {
            cluster["maglev_lb_config"] = json!({"table_size": size});
        }
        return;
    }
    let size = hash.ring_hash.and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
    cluster["lb_policy"] = "RING_HASH".into();
    cluster["ring_hash_lb_config"] = json!({"minimum_ring_size": size.unwrap_or(1024)});
}

fn breakers(policy: Option<&PortPolicy>, connections: Option<u32>, http: &HttpPool) -> Value {
    let or = |n: Option<u32>| n.filter(|n| *n > 0).unwrap_or(UNLIMITED);
    let mut threshold = json!({
        "max_connections": or(connections),
        "max_pending_requests": or(http.http1_max_pending_requests),
        "max_requests": or(http.http2_max_requests),
        "max_retries": or(http.max_retries),
        "track_remaining": true,
    });
    if let Some(budget) = policy.and_then(|p| p.retry_budget.as_ref()) {
        threshold["retry_budget"] = json!({
            "budget_percent": {"value": budget.percent.as_ref().map_or(20.0, |p| p.value)},
            "min_retry_concurrency": budget.min_retry_concurrency.unwrap_or(3),
        });
    }
    json!({"thresholds": [threshold]})
}

fn outlier_detection(outlier: &OutlierDetection) -> Value {
    let mut rendered = json!({
        "enforcing_success_rate": 0,
        "split_external_local_origin_errors": outlier.split_external_local_origin_errors,
    });
    if let Some(n) = outlier.consecutive_5xx_errors {
        rendered["consecutive_5xx"] = n.into();
        rendered["enforcing_consecutive_5xx"] = if n > 0 { 100 } else { 0 }.into();
    }
    if let Some(n) = outlier.consecutive_gateway_errors.or(outlier.consecutive_errors) {
        rendered["consecutive_gateway_failure"] = n.into();
        rendered["enforcing_consecutive_gateway_failure"] = if n > 0 { 100 } else { 0 }.into();
    }
    if let Some(n) = outlier.consecutive_local_origin_failures {
        rendered["consecutive_local_origin_failure"] = n.into();
        rendered["enforcing_consecutive_local_origin_failure"] = if n > 0 { 100 } else { 0 }.into();
    }
    if let Some(interval) = outlier.interval {
        rendered["interval"] = seconds(interval.get());
    }
    if let Some(base) = outlier.base_ejection_time {
        rendered["base_ejection_time"] = seconds(base.get());
    }
    if let Some(percent) = outlier.max_ejection_percent {
        rendered["max_ejection_percent"] = percent.into();
    }
    rendered
}

/// How connections to the cluster are secured: by its DestinationRule, else automatically by what its endpoints can.
/// `credentials`: the node may have the rule's Secret.
#[expect(clippy::too_many_arguments, reason = "what a cluster's security depends on")]
fn secure(
    world: &World,
    service: &Service,
    port: &ServicePort,
    subset: Option<&str>,
    policy: &PortPolicy,
    http2: bool,
    credentials: bool,
    cluster: &mut Value,
) {
    let sni = server_name(port.number, subset.unwrap_or_default(), &service.hostname);
    let Some(settings) = &policy.tls else {
        let inside = service.location == ServiceLocation::MeshInternal;
        let wanted = world.mesh().enable_auto_mtls
            && inside
            && world.namespace_peer_mode(service.namespace()) != EffectivePeerMode::Disable;
        let mutual = |endpoint: &Arc<Endpoint>| {
            let port = service.endpoint_port(port, endpoint);
            let peer = world.peer_mode(&endpoint.namespace, &endpoint.labels, port);
            endpoint.mutual_tls && peer != EffectivePeerMode::Disable
        };
        if wanted && cluster["type"] != "ORIGINAL_DST" {
            cluster["transport_socket_matches"] = json!([
                {"name": "tlsMode-istio", "match": {"tlsMode": "istio"},
                 "transport_socket": tls::mutual(world, service, &sni, http2)},
                {"name": "tlsMode-disabled", "match": {}, "transport_socket": tls::raw_buffer()},
            ]);
        } else if wanted && !service.endpoints.is_empty() && service.endpoints.iter().all(mutual) {
            // Whichever the client chooses.
            cluster["transport_socket"] = tls::mutual(world, service, &sni, http2);
        }
        return;
    };
    match settings.mode {
        ClientTlsMode::Disable => {}
        ClientTlsMode::IstioMutual => {
            let sni = if settings.sni.is_empty() { sni } else { settings.sni.clone() };
            cluster["transport_socket"] = tls::mutual(world, service, &sni, http2);
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            cluster["transport_socket"] = tls::external(settings, http2, credentials);
            cluster["metadata"]["filter_metadata"]["istio"]["alpn_override"] = "false".into();
            if settings.sni.is_empty() {
                by_authority(settings, cluster);
            }
        }
    }
}

/// Where nobody says which server name to ask for, it is the request's host; and the certificate must carry it, unless other
/// names are demanded or nothing is.
fn by_authority(settings: &ClientTls, cluster: &mut Value) {
    let demanded = settings.subject_alt_names.is_empty() && settings.insecure_skip_verify != Some(true);
    if cluster["typed_extension_protocol_options"].is_null() {
        let plain = json!({"explicit_http_config": {"http_protocol_options": {}}});
        cluster["typed_extension_protocol_options"] = protocol_options(plain);
    }
    for options in
        cluster["typed_extension_protocol_options"].as_object_mut().into_iter().flat_map(|o| o.values_mut())
    {
        options["upstream_http_protocol_options"] =
            json!({"auto_sni": true, "auto_san_validation": demanded});
    }
}

/// The Secrets that the node's clusters name: of the rules for services that it calls, as far as it may have them.
pub(super) fn credentials(world: &World, node: &ProxyNode) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    for service in services(world, node) {
        let Some(rule) = world.destination_rule(&node.namespace, node.selected_by(world), service) else {
            continue;
        };
        if node.kind != ProxyKind::Router && rule.spec.workload_selector.is_none() {
            continue;
        }
        let subsets = rule.spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref());
        for policy in rule.spec.traffic_policy.iter().chain(subsets) {
            let ports = policy.port_level_settings.iter().filter_map(|p| p.tls.as_ref());
            let named = |tls: &ClientTls| Some(tls.credential_name.clone()).filter(|n| !n.is_empty());
            names.extend(policy.tls.iter().chain(ports).filter_map(named));
        }
    }
    names.into_iter().collect()
}
