//! What is to be made for Gateways of ours that nobody serves by hand: workloads, and a Service in front of them.
//!
//! A Gateway that names a Service under `addresses` has workloads of its own. `plan` puts together what is to be done.

use super::doors::service_of;
use super::infrastructure::left_out;
use super::known::serves_class;
use super::plan::Hindered;
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

/// A field, what is wrong, and what to do.
type Doubt = (String, String, String);

/// What a Gateway says in vain.
pub(super) fn doubts(gateway: &Object<ApiGateway>) -> Vec<Doubt> {
    if !is_for_us_to_make(gateway) {
        return unknown_values(gateway);
    }
    let nothing = "nothing is made for the Gateway in a cluster";
    let hindered = obstacles(gateway).into_iter();
    let mut all: Vec<_> =
        hindered.map(|(path, reason, help)| (path, format!("{nothing}: {reason}"), help)).collect();
    all.extend(left_out(&gateway.spec.infrastructure));
    all
}

/// What does not reach the pods that are made for it, for its status.
pub(super) fn without(gateway: &Object<ApiGateway>) -> String {
    let all = match is_for_us_to_make(gateway) {
        true => left_out(&gateway.spec.infrastructure),
        false => Vec::new(),
    };
    lines(all)
}

fn lines(doubts: Vec<Doubt>) -> String {
    let all = doubts.into_iter().map(|(path, reason, help)| format!("{path}: {reason}; {help}"));
    all.collect::<Vec<_>>().join("\n")
}

/// Annotations that say something that nobody understands.
fn unknown_values(gateway: &Object<ApiGateway>) -> Vec<Doubt> {
    let known: [(&str, &[&str]); 2] = [(SERVICE_TYPE, &TYPES), (MANAGED, &["true", "false"])];
    let given = known.into_iter().filter_map(|(name, values)| {
        let value = gateway.meta.annotations.get(name)?;
        (!values.contains(&value.as_str())).then_some((name, value, values))
    });
    given
        .map(|(name, value, values)| {
            let reason = format!("the value {value:?} is unknown, and has no effect");
            (format!("metadata.annotations[{name}]"), reason, format!("write one of {}", values.join(", ")))
        })
        .collect()
}

/// Whether somebody has said that he serves it.
pub(super) fn is_by_hand(gateway: &Object<ApiGateway>) -> bool {
    gateway.meta.annotations.get(MANAGED).is_some_and(|value| value == "false")
}

/// Whether nobody else has said that he serves it.
fn is_for_us_to_make(gateway: &Object<ApiGateway>) -> bool {
    let names = |value: &str| service_of(value, &gateway.meta.namespace).is_some();
    !is_by_hand(gateway) && !gateway.spec.addresses.iter().any(|address| names(&address.value))
}

/// Why nothing can be made for it: Kubernetes would not take it, or nobody knows what is meant.
fn obstacles(gateway: &Object<ApiGateway>) -> Vec<Doubt> {
    let by_hand =
        format!(", or serve it by workloads of your own, and annotate it with {MANAGED}: \"false\"");
    let mut all = Vec::new();
    let mut say = |path: String, reason: String, help: &str| {
        all.push((path, reason, format!("{help}{by_hand}")));
    };
    for (path, value) in
        [("metadata.name", &gateway.meta.name), ("spec.gatewayClassName", &gateway.spec.gateway_class_name)]
    {
        if value.len() > LONGEST_LABEL {
            let reason = format!(
                "its pods carry the name as a label, and {} characters are more than {LONGEST_LABEL}",
                value.len()
            );
            say(path.to_owned(), reason, "take a shorter name");
        }
    }
    if gateway.meta.name.starts_with(|first: char| first.is_ascii_digit()) {
        let reason = "its Service begins with the name, and names of Services begin with a letter";
        say("metadata.name".to_owned(), reason.to_owned(), "take a name that begins with a letter");
    }
    for (index, _) in gateway.spec.listeners.iter().enumerate().filter(|(_, one)| one.port == STATUS_PORT) {
        let reason =
            format!("port {STATUS_PORT} of its Service is where its pods are asked whether they are ready");
        say(format!("spec.listeners[{index}].port"), reason, "take another port");
    }
    // A guess might open to the whole world what was to stay within.
    all.extend(unknown_values(gateway));
    all
}

/// Gateways of ours that are ours to make workloads for.
fn to_make(objects: &Objects) -> impl Iterator<Item = &Object<ApiGateway>> {
    let all = objects.api_gateways.iter().map(|gateway| &**gateway);
    all.filter(|one| serves_class(objects, &one.spec.gateway_class_name) && is_for_us_to_make(one))
}

/// For which of them nothing can be made.
pub(super) fn hindered(objects: &Objects) -> Vec<Hindered> {
    let hindered = to_make(objects).filter_map(|gateway| {
        let why = lines(obstacles(gateway));
        (!why.is_empty()).then(|| Hindered {
            namespace: gateway.meta.namespace.clone(),
            gateway: gateway.meta.name.clone(),
            why,
        })
    });
    hindered.collect()
}

/// What is to be made, the owners left open.
pub(super) fn wanted(objects: &Objects) -> Vec<Wanted> {
    let ours = to_make(objects).filter(|gateway| obstacles(gateway).is_empty());
    ours.map(|gateway| {
        let mut ports: Vec<(u16, String, String)> = Vec::new();
        for listener in &gateway.spec.listeners {
            if ports.iter().all(|(port, ..)| *port != listener.port) {
                ports.push((listener.port, listener.name.clone(), listener.protocol.clone()));
            }
        }
        let service_type = gateway.meta.annotations.get(SERVICE_TYPE).map_or(TYPES[0], String::as_str);
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
