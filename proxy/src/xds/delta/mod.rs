//! Delta xDS: the client's side of `DeltaAggregatedResources`, free of IO.
//!
//! The rules, from the protocol's description and from what istiod does: the first request of a type subscribes, and
//! subscribes to all when it names none; an ACK or NACK carries the response's nonce and nothing else; subscriptions change
//! in requests without a nonce; `initial_resource_versions` on a new stream says what is held already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::detail::{error_detail, unwell};
use super::protocol::{HEALTH, NodeOnce, Protocol, asked_for};
use super::subscriptions::index;
use super::{Rejection, ResourceSink, Stats, Subscriptions};

/// The client's state.
#[derive(Debug)]
pub(super) struct Delta {
    node: NodeOnce,
    types: [TypeState; ResourceType::ALL.len()],
}

#[derive(Debug, Default)]
struct TypeState {
    /// Whether this stream has had a request of this type.
    asked: bool,
    /// The names that this stream was asked for.
    asked_names: Arc<BTreeSet<String>>,
    /// What the sink took, with versions; lives longer than a stream. A refused resource is not in it with the refused
    /// version, so that a new stream gets it again.
    held: BTreeMap<String, String>,
}

impl Delta {
    pub(super) fn new(node: Node) -> Self {
        Self { node: NodeOnce::new(node), types: Default::default() }
    }

    /// Brings what one type has asked for up to what is wanted.
    fn requests(&mut self, kind: ResourceType, wanted: &Subscriptions) -> Vec<DeltaDiscoveryRequest> {
        let state = &mut self.types[index(kind)];
        let request = || DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        let mut requests = Vec::new();
        if kind.wildcard() {
            if !state.asked {
                let initial_resource_versions = state.held.clone().into_iter().collect();
                requests.push(DeltaDiscoveryRequest { initial_resource_versions, ..request() });
            }
        } else {
            let names = wanted.names(kind);
            let given_up = wanted.take_given_up(kind);
            state.held.retain(|name, _| names.contains(name) && !given_up.contains(name));
            let gone = |name: &&String| !names.contains(*name) || given_up.contains(*name);
            let gone: Vec<String> = state.asked_names.iter().filter(gone).cloned().collect();
            let added = |name: &&String| !state.asked_names.contains(*name) || given_up.contains(*name);
            let added: Vec<String> = names.iter().filter(added).cloned().collect();
            // A name that was given up and is wanted again is unsubscribed first: a server that believes that we hold its
            // resource need not send it.
            let again = gone.iter().any(|name| names.contains(name));
            if again {
                requests.push(DeltaDiscoveryRequest { resource_names_unsubscribe: gone, ..request() });
                requests.push(DeltaDiscoveryRequest { resource_names_subscribe: added, ..request() });
            } else if !gone.is_empty() || !added.is_empty() {
                // A first request without names would subscribe to everything; this one has some.
                let held = if state.asked { BTreeMap::new() } else { state.held.clone() };
                requests.push(DeltaDiscoveryRequest {
                    resource_names_subscribe: added,
                    resource_names_unsubscribe: gone,
                    initial_resource_versions: held.into_iter().collect(),
                    ..request()
                });
            }
            state.asked_names = names;
        }
        if let Some(first) = requests.first_mut() {
            state.asked = true;
            first.node = self.node.take();
        }
        requests
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn hold(&mut self, kind: ResourceType, name: String, version: String) {
        self.types[index(kind)].held.insert(name, version);
    }

    fn open(&mut self, wanted: &Subscriptions) -> Vec<DeltaDiscoveryRequest> {
        self.node.rearm();
        for state in &mut self.types {
            state.asked = false;
            state.asked_names = Arc::default();
        }
        self.resubscribe(wanted)
    }

    fn resubscribe(&mut self, wanted: &Subscriptions) -> Vec<DeltaDiscoveryRequest> {
        wanted.kinds().flat_map(|kind| self.requests(kind, wanted)).collect()
    }

    fn report(report: &Result<(), String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: HEALTH.to_owned(),
            error_detail: report.as_ref().err().map(|reason| unwell(reason)),
            ..Default::default()
        }
    }

    fn response(
        &mut self,
        response: DeltaDiscoveryResponse,
        wanted: &Subscriptions,
        sink: &mut dyn ResourceSink,
        stats: &Stats,
    ) -> Vec<DeltaDiscoveryRequest> {
        let Some(kind) = asked_for(&response.type_url, |kind| self.types[index(kind)].asked) else {
            return Vec::new();
        };
        let state = &mut self.types[index(kind)];
        let names = wanted.names(kind);
        let is_wanted = |name: &str| kind.wildcard() || names.contains(name);

        let mut rejections = Vec::new();
        let mut upserts = Vec::new();
        let mut versions = HashMap::new();
        for resource in response.resources {
            // One that was given up while it was under way.
            if !is_wanted(&resource.name) {
                continue;
            }
            let (name, version) = (resource.name.clone(), resource.version.clone());
            if versions.insert(name.clone(), version.clone()).is_some() {
                rejections.push(Rejection {
                    name,
                    reason: "is in the response twice; the first one is used".into(),
                });
                continue;
            }
            match content(kind, resource) {
                Ok(Some(bytes)) => upserts.push((name, version, bytes)),
                // A heartbeat: the version is held already.
                Ok(None) => {
                    versions.remove(&name);
                }
                Err(reason) => {
                    versions.remove(&name);
                    rejections.push(Rejection { name, reason });
                }
            }
        }
        let mut removed = response.removed_resources;
        removed.retain(|name| is_wanted(name) && !versions.contains_key(name));
        for name in &removed {
            state.held.remove(name);
        }

        rejections.extend(sink.apply(kind, upserts, removed, false));
        for Rejection { name, .. } in &rejections {
            versions.remove(name);
        }
        state.held.extend(versions);
        stats.of(kind).record(&response.system_version_info, &rejections);
        super::detail::tell(kind, &rejections);

        let mut requests = vec![DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: error_detail(&rejections),
            ..Default::default()
        }];
        requests.extend(self.resubscribe(wanted));
        requests
    }
}

/// The encoded message of a resource, if it is of the right type; none for a resource without one.
fn content(kind: ResourceType, resource: Resource) -> Result<Option<Bytes>, String> {
    match resource.resource {
        None => Ok(None),
        Some(any) if any.type_url == kind.type_url() => Ok(Some(any.value)),
        Some(any) => Err(format!("has type {}, in a response of {}", any.type_url, kind.type_url())),
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
