//! What is to be made for Gateways of ours that nobody serves by hand: workloads, and a Service in front of them.
//!
//! A Gateway that names a Service under `addresses` has workloads of its own. `serve::gateways` makes what is wanted.

use super::doors::service_of;
use super::infrastructure::left_out;
use super::known::serves_class;
use crate::model::gateway_api::{ApiGateway, Infrastructure};
use crate::model::meta::Object;
use crate::model::world::Objects;

/// The annotation of a Gateway that says of which type its Service is to be. Istio's name for it.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Types that a Service may have, the usual one first.
const TYPES: [&str; 3] = ["LoadBalancer", "ClusterIP", "NodePort"];
/// The annotation of a Gateway that is served by hand: nothing is made for it.
pub const MANAGED: &str = "gateway.weft.dev/managed";

/// Where gateways say that they are ready: a port of each Service that is made.
pub const STATUS_PORT: u16 = 15021;
/// The longest value of a label.
const LONGEST_LABEL: usize = 63;

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

/// What a Gateway says in vain: the field, why, and what to do.
pub(super) fn doubts(gateway: &Object<ApiGateway>) -> Vec<(String, String, String)> {
    let known: [(&str, &[&str]); 2] = [(SERVICE_TYPE, &TYPES), (MANAGED, &["true", "false"])];
    let annotations = &gateway.meta.annotations;
    let wrong = known.into_iter().filter(|(name, values)| {
        annotations.get(*name).is_some_and(|value| !values.contains(&value.as_str()))
    });
    let mut all: Vec<_> = wrong
        .map(|(name, values)| {
            let reason = "it has no effect: the value is unknown".to_owned();
            (format!("metadata.annotations[{name}]"), reason, format!("write one of {}", values.join(", ")))
        })
        .collect();
    if is_for_us_to_make(gateway) {
        let nothing = "nothing is made for the Gateway in a cluster";
        let by_hand =
            format!("or serve it by workloads of your own, and annotate it with {MANAGED}: \"false\"");
        all.extend(obstacles(gateway).into_iter().map(|(path, reason, help)| {
            (path, format!("{nothing}: {reason}"), format!("{help}, {by_hand}"))
        }));
        all.extend(left_out(&gateway.spec.infrastructure));
    }
    all
}

/// Whether nobody else has said that he serves it.
fn is_for_us_to_make(gateway: &Object<ApiGateway>) -> bool {
    let by_hand = gateway.meta.annotations.get(MANAGED).is_some_and(|value| value == "false");
    let names = |value: &str| service_of(value, &gateway.meta.namespace).is_some();
    !by_hand && !gateway.spec.addresses.iter().any(|address| names(&address.value))
}

/// Why Kubernetes would not take what is to be made: the field, the reason, and what to do.
fn obstacles(gateway: &Object<ApiGateway>) -> Vec<(String, String, &'static str)> {
    let mut all = Vec::new();
    for (path, value) in
        [("metadata.name", &gateway.meta.name), ("spec.gatewayClassName", &gateway.spec.gateway_class_name)]
    {
        if value.len() > LONGEST_LABEL {
            let reason = format!(
                "its pods carry the name as a label, and {} characters are more than {LONGEST_LABEL}",
                value.len()
            );
            all.push((path.to_owned(), reason, "take a shorter name"));
        }
    }
    if gateway.meta.name.starts_with(|first: char| first.is_ascii_digit()) {
        let reason = "its Service begins with the name, and names of Services begin with a letter";
        all.push(("metadata.name".to_owned(), reason.to_owned(), "take a name that begins with a letter"));
    }
    for (index, _) in gateway.spec.listeners.iter().enumerate().filter(|(_, one)| one.port == STATUS_PORT) {
        let reason =
            format!("port {STATUS_PORT} of its Service is where its pods are asked whether they are ready");
        all.push((format!("spec.listeners[{index}].port"), reason, "take another port"));
    }
    all
}

/// What is to be made, the owners left open.
pub(in crate::ingest) fn wanted(objects: &Objects) -> Vec<Wanted> {
    let ours = objects.api_gateways.iter().filter(|gateway| {
        serves_class(objects, &gateway.spec.gateway_class_name)
            && is_for_us_to_make(gateway)
            && obstacles(gateway).is_empty()
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
