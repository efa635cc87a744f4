//! What is to be made for Gateways of ours that nobody serves by hand: workloads, and a Service in front of them.
//!
//! A Gateway that names a Service under `addresses` has workloads of its own. `serve::gateways` makes what is wanted.

use super::doors::service_of;
use super::known::Known;
use crate::model::gateway_api::Infrastructure;
use crate::model::values::Labels;
use crate::model::world::Objects;

/// The annotation of a Gateway that says of which type its Service is to be. Istio's name for it.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Types that a Service may have, the usual one first.
const TYPES: [&str; 3] = ["LoadBalancer", "ClusterIP", "NodePort"];
/// The annotation of a Gateway that is served by hand: nothing is made for it.
pub const MANAGED: &str = "gateway.weft.dev/managed";

/// What is to be made for a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub gateway: String,
    /// Its class.
    pub class: String,
    /// Its `metadata.uid`.
    pub owner: String,
    /// Ports that clients use, each by the name of its first listener, and what is spoken there.
    pub ports: Vec<(u16, String, String)>,
    /// The Service's type.
    pub service_type: String,
    /// What all that is made for it carries.
    pub infrastructure: Infrastructure,
}

/// Annotations of a Gateway that say nothing: which, and what could stand there.
pub(super) fn doubts(annotations: &Labels) -> Vec<(&'static str, String)> {
    let known: [(&'static str, &[&str]); 2] = [(SERVICE_TYPE, &TYPES), (MANAGED, &["true", "false"])];
    let wrong = known.into_iter().filter(|(name, values)| {
        annotations.get(*name).is_some_and(|value| !values.contains(&value.as_str()))
    });
    wrong.map(|(name, values)| (name, values.join(", "))).collect()
}

/// What is to be made, the owners left open.
pub(in crate::ingest) fn wanted(objects: &Objects) -> Vec<Wanted> {
    let known = Known::new(objects);
    let ours = objects.api_gateways.iter().filter(|gateway| {
        let by_hand = gateway.meta.annotations.get(MANAGED).is_some_and(|value| value == "false");
        let named =
            gateway.spec.addresses.iter().any(|a| service_of(&a.value, &gateway.meta.namespace).is_some());
        known.serves_class(&gateway.spec.gateway_class_name) && !named && !by_hand
    });
    ours.map(|gateway| {
        let mut ports: Vec<(u16, String, String)> = Vec::new();
        for listener in &gateway.spec.listeners {
            if ports.iter().all(|(port, ..)| *port != listener.port) {
                ports.push((listener.port, listener.name.clone(), listener.protocol.clone()));
            }
        }
        let asked = gateway.meta.annotations.get(SERVICE_TYPE).map(String::as_str);
        let service_type = asked.filter(|asked| TYPES.contains(asked)).unwrap_or(TYPES[0]);
        Wanted {
            namespace: gateway.meta.namespace.clone(),
            gateway: gateway.meta.name.clone(),
            class: gateway.spec.gateway_class_name.clone(),
            owner: String::new(),
            ports,
            service_type: service_type.to_owned(),
            infrastructure: gateway.spec.infrastructure.clone(),
        }
    })
    .collect()
}
