//! Load assignments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ProxyNode;
use super::cluster::{outbound_name, services};
use super::locality::Nearness;
use super::memo::Output;
use crate::model::lookup::effective_policy;
use crate::model::service::Resolution;
use crate::model::values::{Labels, Locality, selects};
use crate::model::{EffectivePeerMode, Endpoint, Service, ServicePort, World};

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    for service in services(world, node) {
        of_service(world, node, service, out);
    }
}

/// The assignments of one service.
pub(super) fn of_service(world: &World, node: &ProxyNode, service: &Service, out: &mut Output<'_>) {
    if !matches!(service.resolution, Resolution::Static) {
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
            let inputs = (versions.shape, versions.endpoints, labels, world.peer_version(), nearness.key());
            out.put(&name, inputs, || assignment(world, service, port, labels, &nearness, &name));
        }
    }
}

/// The endpoints of a service's port, grouped by priority and locality; `labels` selects a subset.
pub(super) fn assignment(
    world: &World,
    service: &Service,
    port: &ServicePort,
    labels: Option<&Labels>,
    nearness: &Nearness,
    name: &str,
) -> Value {
    let mut groups: BTreeMap<(u32, Locality), (u64, Vec<Value>)> = BTreeMap::new();
    for endpoint in &service.endpoints {
        if labels.is_some_and(|l| !selects(l, &endpoint.labels)) {
            continue;
        }
        let Some(number) = service.endpoint_port(port, endpoint) else { continue };
        let place = endpoint.locality.clone().unwrap_or_default();
        let group = groups.entry((nearness.distance(endpoint), place)).or_default();
        group.0 += u64::from(endpoint.weight.max(1));
        group.1.push(lb_endpoint(world, endpoint, number));
    }
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

fn lb_endpoint(world: &World, endpoint: &Endpoint, port: u16) -> Value {
    let mut metadata = json!({});
    let peer = world.peer_mode(&endpoint.namespace, &endpoint.labels, Some(port));
    if endpoint.mutual_tls && peer != EffectivePeerMode::Disable {
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
    metadata["istio"] =
        json!({"workload": format!("{workload};{};{canonical};{revision};Kubernetes", endpoint.namespace)});
    let address = match endpoint.address.strip_prefix("unix://") {
        Some(path) => json!({"pipe": {"path": path}}),
        None => json!({"socket_address": {"address": endpoint.address, "port_value": port}}),
    };
    json!({
        "endpoint": {"address": address},
        "metadata": {"filter_metadata": metadata},
        "load_balancing_weight": endpoint.weight.max(1),
    })
}
