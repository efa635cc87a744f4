//! What is to be done for the Gateways of the Gateway API: what is to be made, what cannot be, and for which of them nothing is to be
//! there that was made. `serve::gateways` does it, where it may.

use std::fmt;

use serde_json::Value;

use super::doors::service_of;
use super::known::serves_class;
use super::wanted::{MANAGED, Wanted, hindered, is_by_hand, wanted};
use crate::model::gateway_api::{ApiGateway, GATEWAY_NAME};
use crate::model::meta::Object;
use crate::model::networks::REMOTE_CLASS;
use crate::model::values::selects;
use crate::model::world::Objects;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is to be made.
    pub wanted: Vec<Wanted>,
    /// For which Gateways nothing is made, nor changed, until they are mended.
    pub hindered: Vec<Hindered>,
    /// For which Gateways nothing is to be there.
    pub spare: Vec<Spare>,
}

/// A Gateway that asks for something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindered {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub gateway: String,
    /// The fields, what is wrong, and what to do.
    pub why: String,
}

/// A Gateway that is somebody else's to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub gateway: String,
    /// Its `metadata.uid`.
    pub owner: String,
    /// By what it says so.
    pub because: Because,
}

/// By what a Gateway says who makes what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// It is of this class.
    Class(String),
    /// It names this Service, behind which a workload is ready.
    Address(String),
}

impl Because {
    /// Whether the Gateway still says so. Of one that is served by hand everything stays.
    pub fn holds(&self, gateway: &Value) -> bool {
        let by_hand = gateway["metadata"]["annotations"][MANAGED] == "false";
        let says = match self {
            Self::Class(class) => gateway["spec"]["gatewayClassName"] == class.as_str(),
            Self::Address(host) => gateway["spec"]["addresses"][0]["value"] == host.as_str(),
        };
        says && !by_hand
    }
}

impl fmt::Display for Because {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(out, "it is of the class {class} now"),
            Self::Address(host) => write!(out, "it names the Service {host} under addresses"),
        }
    }
}

/// What is to be done, the owners left open.
pub(in crate::ingest) fn plan(objects: &Objects) -> Plan {
    let spare = objects.api_gateways.iter().filter_map(|gateway| {
        Some(Spare {
            namespace: gateway.meta.namespace.clone(),
            gateway: gateway.meta.name.clone(),
            owner: String::new(),
            because: elsewhere(objects, gateway)?,
        })
    });
    Plan { wanted: wanted(objects), hindered: hindered(objects), spare: spare.collect() }
}

/// By what a Gateway says that somebody else serves it.
fn elsewhere(objects: &Objects, gateway: &Object<ApiGateway>) -> Option<Because> {
    // Whoever serves it by hand may have taken over the very objects that were made: nothing goes on that account.
    if is_by_hand(gateway) {
        return None;
    }
    let class = &gateway.spec.gateway_class_name;
    if !serves_class(objects, class) {
        // A class that is not there may be a slip of the pen, or come back: nothing goes on its account.
        let known =
            class == REMOTE_CLASS || objects.gateway_classes.iter().any(|one| one.meta.name == *class);
        return known.then(|| Because::Class(class.clone()));
    }
    let host = &gateway.spec.addresses.first()?.value;
    let (namespace, name) = service_of(host, &gateway.meta.namespace)?;
    let service = objects.services.iter().find(|s| s.meta.namespace == namespace && s.meta.name == name)?;
    // It may stand in front of the very pods that were made; and until another is ready, those are better than none.
    let behind = objects.pods.iter().filter(|pod| {
        pod.workload.meta.namespace == namespace && selects(&service.spec.selector, pod.workload.labels())
    });
    let behind: Vec<_> = behind.collect();
    let other = behind.iter().all(|pod| pod.workload.labels().get(GATEWAY_NAME) != Some(&gateway.meta.name));
    let ready = behind.iter().any(|pod| pod.ready);
    let taken_over = !service.spec.selector.is_empty() && other && ready;
    taken_over.then(|| Because::Address(host.clone()))
}
