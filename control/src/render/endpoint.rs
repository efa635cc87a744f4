//! Load assignments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ProxyNode;
use super::cluster::{is_passed_on, outbound_name, passes_by_name, server_name, services};
use super::locality::Nearness;
use super::memo::Output;
use super::networks::{Reach, View, directly, network, scale};
use crate::model::lookup::effective_policy;
use crate::model::networks::NetworkGateway;
use crate::model::place::{CLUSTER_LABEL, Place};
use crate::model::service::Resolution;
use crate::model::values::{Labels, Locality, selects};
use crate::model::{EffectivePeerMode, Endpoint, Service, ServicePort, World};

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let by_name = passes_by_name(world, node);
    for service in services(world, node) {
        of_service(world, node, service, by_name, out);
    }
}

/// The assignments of one service. `by_name`: the node passes on what asks for the service by its server name.
pub(super) fn of_service(
    world: &World,
    node: &ProxyNode,
    service: &Service,
    by_name: bool,
    out: &mut Output<'_>,
) {
    let listed = matches!(service.resolution, Resolution::Static | Resolution::None)
        && !super::cluster::dialled_by_clients(node, service);
    let by_name = by_name && is_passed_on(service) && (listed || service.resolution == Resolution::None);
    if !listed && !by_name {
        return;
    }
    let rule = world.destination_rule(&node.namespace, node.selected_by(world), service);
    for port in &service.ports {
        let whole = std::iter::once(("", None));
        let subsets = rule.iter().flat_map(|r| &r.spec.subsets).map(|s| (s.name.as_str(), Some(&s.labels)));
        for (subset, labels) in whole.chain(subsets) {
            let name = outbound_name(port.number, subset, &service.hostname);
            let versions = service.versions;
            let subset = (!subset.is_empty()).then_some(subset);
            let policy = rule.map(|r| effective_policy(&r.spec, subset, port.number)).unwrap_or_default();
            let nearness = Nearness::new(world, node, &policy);
            let view = View::new(world, node, service, &policy);
            let inputs = (versions.shape, versions.endpoints, labels, world.peer_version());
            let inputs = (inputs, nearness.key(), view.key(service));
            let wanted =
                Wanted { service, port, labels, nearness: &nearness, view: Some(&view), mutual_only: false };
            if listed {
                out.put(&name, &inputs, || assignment(world, &wanted, &name));
            }
            if by_name {
                // What comes was made for mutual TLS, and would be taken for something else by who does not speak it.
                let name = server_name(port.number, subset.unwrap_or_default(), &service.hostname);
                let wanted = Wanted { mutual_only: true, ..wanted };
                out.put(&name, &inputs, || assignment(world, &wanted, &name));
            }
        }
    }
}

/// Which endpoints an assignment is to have.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    /// Those of a subset.
    pub(super) labels: Option<&'a Labels>,
    pub(super) nearness: &'a Nearness,
    /// How other networks are reached; none for where a name is looked up.
    pub(super) view: Option<&'a View<'a>>,
    /// Those alone that take mutual TLS.
    pub(super) mutual_only: bool,
}

/// The endpoints of one priority and locality.
#[derive(Default)]
struct Group<'a> {
    /// Those that are reached directly, each with its port and whether by mutual TLS.
    near: Vec<(&'a Endpoint, u16, bool)>,
    /// Weights of those behind gateways, with how many share each.
    far: Vec<(u32, &'a [NetworkGateway])>,
}

impl Group<'_> {
    /// Its members, and the sum of their weights.
    fn members(&self, scale: u32) -> (u64, Vec<Value>) {
        let (mut sum, mut members) = (0, Vec::new());
        for (endpoint, port, mutual) in &self.near {
            let weight = endpoint.weight.max(1).saturating_mul(scale);
            sum += u64::from(weight);
            members.push(lb_endpoint(endpoint, *port, *mutual, weight));
        }
        let mut gateways: BTreeMap<&NetworkGateway, u32> = BTreeMap::new();
        for (weight, shared) in &self.far {
            let each = (weight.saturating_mul(scale) / shared.len().max(1) as u32).max(1);
            for gateway in *shared {
                let weight = gateways.entry(gateway).or_default();
                *weight = weight.saturating_add(each);
            }
        }
        for (gateway, weight) in gateways {
            sum += u64::from(weight);
            members.push(json!({
                "endpoint": {"address": {"socket_address": {
                    "address": gateway.address, "port_value": gateway.port}}},
                "metadata": {"filter_metadata": {
                    "envoy.transport_socket_match": {"tlsMode": "istio"},
                    // Who answers is behind the gateway, and says itself who it is.
                    "istio": {"workload": format!(";;;;{}", Place::here().cluster)}}},
                "load_balancing_weight": weight,
            }));
        }
        (sum, members)
    }
}

/// The endpoints of a service's port, grouped by priority and locality.
pub(super) fn assignment(world: &World, wanted: &Wanted<'_>, name: &str) -> Value {
    let Wanted { service, port, labels, nearness, view, mutual_only } = *wanted;
    let mut groups: BTreeMap<(u32, Locality), Group<'_>> = BTreeMap::new();
    for endpoint in &service.endpoints {
        if labels.is_some_and(|l| !selects(l, &endpoint.labels)) {
            continue;
        }
        let Some(number) = service.endpoint_port(port, endpoint) else { continue };
        let peer = world.peer_mode(&endpoint.namespace, &endpoint.labels, Some(number));
        let mutual = endpoint.mutual_tls && peer != EffectivePeerMode::Disable;
        let reach = view.map_or_else(|| directly(endpoint), |view| view.reach(endpoint, mutual));
        if matches!(reach, Reach::Not) || (mutual_only && !mutual) {
            continue;
        }
        let place = endpoint.locality.clone().unwrap_or_default();
        let distance = nearness.distance(endpoint, network(world, service, endpoint));
        let group = groups.entry((distance, place)).or_default();
        match reach {
            Reach::Through(gateways) => group.far.push((endpoint.weight.max(1), gateways)),
            _ => group.near.push((&**endpoint, number, mutual)),
        }
    }
    let scale = scale(groups.values().flat_map(|group| &group.far).map(|(_, gateways)| gateways.len()));
    let groups: Vec<_> = groups.into_iter().map(|(at, group)| (at, group.members(scale))).collect();
    let places: Vec<(Locality, u64)> =
        groups.iter().map(|((_, place), (weight, _))| (place.clone(), *weight)).collect();
    let shares = nearness.shares(&places);
    let (mut endpoints, mut priority, mut before) = (Vec::with_capacity(groups.len()), 0, None);
    for (index, ((distance, place), (weight, members))) in groups.into_iter().enumerate() {
        // Distances become priorities without gaps.
        if before.replace(distance).is_some_and(|before| before != distance) {
            priority += 1;
        }
        let weight = shares.as_ref().map_or(weight, |shares| shares[index]);
        let mut group = json!({
            "locality": {"region": place.region, "zone": place.zone, "sub_zone": place.sub_zone},
        });
        if priority > 0 {
            group["priority"] = priority.into();
        }
        // A locality without a share keeps its place and loses its endpoints, as with istiod.
        if weight > 0 {
            group["load_balancing_weight"] = weight.into();
            group["lb_endpoints"] = members.into();
        }
        endpoints.push(group);
    }
    json!({"cluster_name": name, "endpoints": endpoints})
}

fn lb_endpoint(endpoint: &Endpoint, port: u16, mutual: bool, weight: u32) -> Value {
    let mut metadata = json!({});
    if mutual {
        metadata["envoy.transport_socket_match"] = json!({"tlsMode": "istio"});
    }
    let label = |key: &str| endpoint.labels.get(key).map_or("", String::as_str);
    let app = label("app");
    let canonical = match label("service.istio.io/canonical-name") {
        "" => app,
        given => given,
    };
    let revision = match label("service.istio.io/canonical-revision") {
        "" => label("version"),
        given => given,
    };
    let workload =
        endpoint.workload.as_ref().map_or(app, |w| if app.is_empty() { w.name.as_str() } else { app });
    let cluster = match label(CLUSTER_LABEL) {
        "" => &Place::here().cluster,
        given => given,
    };
    metadata["istio"] =
        json!({"workload": format!("{workload};{};{canonical};{revision};{cluster}", endpoint.namespace)});
    let address = match endpoint.address.strip_prefix("unix://") {
        Some(path) => json!({"pipe": {"path": path}}),
        None => json!({"socket_address": {"address": endpoint.address, "port_value": port}}),
    };
    json!({
        "endpoint": {"address": address},
        "metadata": {"filter_metadata": metadata},
        "load_balancing_weight": weight,
    })
}
