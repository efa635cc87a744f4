//! Load assignments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ProxyNode;
use super::cluster::{outbound_name, services};
use super::memo::Output;
use crate::model::service::Resolution;
use crate::model::values::{Labels, selects};
use crate::model::{EffectivePeerMode, Endpoint, Service, ServicePort, World};

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    for service in services(world, node) {
        if !matches!(service.resolution, Resolution::Static) {
            continue;
        }
        let rule = world.destination_rule(&node.namespace, node.selected_by(world), service);
        for port in &service.ports {
            let whole = std::iter::once(("", None));
            let subsets =
                rule.iter().flat_map(|r| &r.spec.subsets).map(|s| (s.name.as_str(), Some(&s.labels)));
            for (subset, labels) in whole.chain(subsets) {
                let name = outbound_name(port.number, subset, &service.hostname);
                let versions = service.versions;
                let inputs = (versions.shape, versions.endpoints, labels, world.peer_version());
                out.put(&name, inputs, || assignment(world, service, port, labels, &name));
            }
        }
    }
}

/// The endpoints of a service's port, grouped by locality; `labels` selects a subset.
pub(super) fn assignment(
    world: &World,
    service: &Service,
    port: &ServicePort,
    labels: Option<&Labels>,
    name: &str,
) -> Value {
    let mut groups: BTreeMap<String, (Value, u64, Vec<Value>)> = BTreeMap::new();
    for endpoint in &service.endpoints {
        if labels.is_some_and(|l| !selects(l, &endpoint.labels)) {
            continue;
        }
        let Some(number) = service.endpoint_port(port, endpoint) else { continue };
        let (key, locality) = match &endpoint.locality {
            Some(l) => (
                format!("{}/{}/{}", l.region, l.zone, l.sub_zone),
                json!({"region": l.region, "zone": l.zone, "sub_zone": l.sub_zone}),
            ),
            None => (String::new(), json!({})),
        };
        let group = groups.entry(key).or_insert_with(|| (locality, 0, Vec::new()));
        group.1 += u64::from(endpoint.weight.max(1));
        group.2.push(lb_endpoint(world, endpoint, number));
    }
    let endpoints: Vec<_> = groups
        .into_values()
        .map(|(locality, weight, endpoints)| {
            json!({"locality": locality, "load_balancing_weight": weight, "lb_endpoints": endpoints})
        })
        .collect();
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
    json!({
        "endpoint": {"address": {"socket_address": {"address": endpoint.address, "port_value": port}}},
        "metadata": {"filter_metadata": metadata},
        "load_balancing_weight": endpoint.weight.max(1),
    })
}
