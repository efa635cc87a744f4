//! What each proxy must know: pure functions of the world and the node, with istiod's names and shapes.
//!
//! Resources are written as proto JSON, the form of Envoy's own documentation, and encoded once by their schema; an unknown
//! field or a wrong value is an error there, not a surprise in the proxy.

mod acme;
mod authentication;
mod authorization;
mod captured;
mod cluster;
mod compression;
pub mod conflicts;
mod deny_list;
mod endpoint;
mod external_credential;
mod filters;
mod gateway;
mod health_check;
mod inbound;
mod layer4;
mod listener;
mod locality;
mod logs;
mod memo;
mod metric_definition;
mod names;
#[cfg(test)]
mod names_tests;
mod networks;
mod node;
mod rate_limit;
mod route;
mod rules;
mod secret;
mod spans;
#[cfg(test)]
mod spans_tests;
mod telemetry;
#[cfg(test)]
mod telemetry_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_api;
mod tls;
mod traffic;
#[cfg(test)]
mod tuning_tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use xds_protos::ResourceType;

pub use memo::Memo;
pub use node::{Interception, NodeError, ProxyKind, ProxyNode};

use crate::model::{Service, Trust, World};
use memo::Output;

/// A rendered resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The encoded message, shared by whoever sends it.
    pub bytes: Bytes,
    /// A hash of it: equal content, equal version.
    pub version: Arc<str>,
}

/// All resources of a proxy by kind and name.
pub type Resources = BTreeMap<ResourceType, BTreeMap<Arc<str>, Resource>>;

/// Renders everything for a node, as far as `memo` has not. `secrets`: the connection may carry them.
pub fn render(world: &World, node: &ProxyNode, secrets: bool, memo: &Memo) -> Resources {
    let mut clusters = Output::new(memo, ResourceType::Cluster);
    let mut endpoints = Output::new(memo, ResourceType::Endpoint);
    let mut listeners = Output::new(memo, ResourceType::Listener);
    let mut routes = Output::new(memo, ResourceType::Route);
    let mut found = Output::new(memo, ResourceType::Secret);
    let mut table = Output::new(memo, ResourceType::Names);
    cluster::render(world, node, &mut clusters);
    endpoint::render(world, node, &mut endpoints);
    match node.kind {
        ProxyKind::Sidecar => {
            listener::sidecar(world, node, &mut listeners);
            route::sidecar(world, node, &mut routes);
        }
        ProxyKind::Router => gateway::render(world, node, &mut listeners, &mut routes),
    }
    if secrets && world.vouches(node.address(), &node.namespace, &node.service_account) {
        secret::render(world, node, &mut found);
    }
    names::render(world, node, &mut table);
    [clusters, endpoints, listeners, routes, found, table].into_iter().map(Output::into_all).collect()
}

/// Clusters and assignments of one service anew, for a node to which nothing else is new: what [`render()`] has of it. None if
/// more than these follow from the service's endpoints.
pub fn render_service(
    world: &World,
    node: &ProxyNode,
    service: &Arc<Service>,
    memo: &Memo,
) -> Option<Resources> {
    // Its members have listeners and names of their own.
    if service.headless {
        return None;
    }
    let mut clusters = Output::new(memo, ResourceType::Cluster);
    let mut endpoints = Output::new(memo, ResourceType::Endpoint);
    let by_name = cluster::passes_by_name(world, node);
    cluster::of_service(world, node, service, by_name, &mut clusters);
    endpoint::of_service(world, node, service, by_name, &mut endpoints);
    Some([clusters, endpoints].into_iter().map(Output::into_all).collect())
}

/// The clusters of a service, one for each of its ports; a node that sees the service has all of them.
pub fn cluster_names(service: &Service) -> impl Iterator<Item = String> {
    service.ports.iter().map(|port| cluster::outbound_name(port.number, "", &service.hostname))
}

/// The name under which workloads ask for the roots that they trust.
pub const ROOTS: &str = "ROOTCA";

/// Whom the mesh trusts, as the secret [`ROOTS`]. It depends on the authority alone, and not on who asks.
pub fn roots(trust: &Trust) -> Option<Resource> {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    let inline = |text: &str| serde_json::json!({"inline_bytes": engine.encode(text)});
    let mut context = serde_json::json!({"trusted_ca": inline(&trust.roots)});
    if !trust.federated.is_empty() {
        // Each domain's roots vouch for its own workloads alone.
        let own = trust.domains.iter().map(|domain| (domain, &trust.roots));
        let all = own.chain(trust.federated.iter().map(|(domain, roots)| (domain, roots)));
        let domains: Vec<_> = all
            .map(|(domain, roots)| serde_json::json!({"name": domain, "trust_bundle": inline(roots)}))
            .collect();
        context["custom_validator_config"] = serde_json::json!({
            "name": "envoy.tls.cert_validator.spiffe",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                "trust_domains": domains,
            },
        });
    }
    if !trust.revocations.is_empty() {
        // A list of the root's own would be needed to doubt intermediates, and the root is seldom at hand.
        context["crl"] = inline(&trust.revocations);
        context["only_verify_leaf_cert_crl"] = true.into();
    }
    encode(ResourceType::Secret, &serde_json::json!({"name": ROOTS, "validation_context": context}), Some)
}

/// Whether a name of this kind that is not there is answered, rather than left waiting.
pub const fn answered_empty(kind: ResourceType) -> bool {
    matches!(kind, ResourceType::Endpoint | ResourceType::Route)
}

/// What is answered for a name that is asked for and not there, so that the asker stops waiting: an empty route
/// configuration, an empty load assignment.
pub fn empty(kind: ResourceType, name: &str) -> Option<Resource> {
    match kind {
        ResourceType::Route => encode(kind, &serde_json::json!({"name": name}), Some),
        ResourceType::Endpoint => encode(kind, &serde_json::json!({"cluster_name": name}), Some),
        _ => None,
    }
}

fn encode(kind: ResourceType, value: &Value, amend: impl FnOnce(Bytes) -> Option<Bytes>) -> Option<Resource> {
    let message = xds_protos::type_url::name(kind.type_url());
    match xds_protos::json::encode(message, value) {
        Ok(bytes) => {
            let bytes = amend(bytes)?;
            let version = version(&bytes);
            Some(Resource { bytes, version })
        }
        Err(error) => {
            // A bug of ours: the resource is left out, and the proxy keeps its last good one.
            tracing::error!(message, %error, resource = %value, "a rendered resource does not fit its schema");
            metrics::counter!("pilot_total_xds_internal_errors").increment(1);
            None
        }
    }
}

/// FNV-1a over the content, 128 bits: it need not withstand an attacker, only tell versions apart.
fn version(bytes: &[u8]) -> Arc<str> {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |h, b| {
        (h ^ u128::from(*b)).wrapping_mul(PRIME)
    });
    format!("{hash:032x}").into()
}

/// A duration as proto JSON.
fn seconds(duration: std::time::Duration) -> Value {
    let (whole, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if nanos == 0 { format!("{whole}s").into() } else { format!("{whole}.{nanos:09}s").into() }
}
