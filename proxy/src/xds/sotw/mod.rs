//! State-of-the-world xDS: the client's side of `StreamAggregatedResources`, free of IO.
//!
//! The rules: every request names everything wanted of its type; an ACK carries the response's version and nonce, a NACK the
//! nonce and the last version that was taken whole; a response of clusters or listeners is all there are, one of another
//! type may be a part.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use xds_protos::{Any, ResourceType};

use super::detail::{error_detail, unwell};
use super::protocol::{HEALTH, NodeOnce, Protocol, asked_for};
use super::subscriptions::index;
use super::{Rejection, ResourceSink, Stats, Subscriptions};

/// The client's state.
#[derive(Debug)]
pub(super) struct Sotw {
    node: NodeOnce,
    types: [TypeState; ResourceType::ALL.len()],
}

#[derive(Debug, Default)]
struct TypeState {
    /// Whether this stream has had a request of this type.
    asked: bool,
    /// The names in the last request of this stream.
    asked_names: Arc<BTreeSet<String>>,
    /// The version of the last response that was taken whole, on any stream.
    version: String,
    /// The nonce of the last response of this stream.
    nonce: String,
    /// Of a type sent as full sets: what the last one held.
    present: BTreeSet<String>,
}

impl Sotw {
    pub(super) fn new(node: Node) -> Self {
        Self { node: NodeOnce::new(node), types: Default::default() }
    }

    /// Brings what one type has asked for up to what is wanted.
    fn requests(&mut self, kind: ResourceType, wanted: &Subscriptions) -> Vec<DiscoveryRequest> {
        let mut requests = Vec::new();
        if kind.wildcard() {
            if !self.types[index(kind)].asked {
                requests.push(self.say(kind, Arc::default(), &[]));
            }
            return requests;
        }
        let names = wanted.names(kind);
        let given_up = wanted.take_given_up(kind);
        let asked = &self.types[index(kind)].asked_names;
        // A name that was given up and is wanted again leaves the list once: a server that believes that we hold its
        // resource need not send it.
        if given_up.iter().any(|name| names.contains(name) && asked.contains(name)) {
            let without = names.difference(&given_up).cloned().collect();
            requests.push(self.say(kind, Arc::new(without), &[]));
        }
        if names != self.types[index(kind)].asked_names {
            requests.push(self.say(kind, names, &[]));
        }
        requests
    }

    /// A request of one type with all that belongs into it: it acknowledges the last response, too.
    fn say(
        &mut self,
        kind: ResourceType,
        names: Arc<BTreeSet<String>>,
        rejections: &[Rejection],
    ) -> DiscoveryRequest {
        let state = &mut self.types[index(kind)];
        state.asked_names = names;
        state.asked = true;
        DiscoveryRequest {
            version_info: state.version.clone(),
            node: self.node.take(),
            resource_names: state.asked_names.iter().cloned().collect(),
            type_url: kind.type_url().to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail: error_detail(rejections),
            ..Default::default()
        }
    }
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn hold(&mut self, kind: ResourceType, name: String, _version: String) {
        // The version of a response is that of all it holds, and is not told of what may be a part of it.
        if kind.wildcard() {
            self.types[index(kind)].present.insert(name);
        }
    }

    fn open(&mut self, wanted: &Subscriptions) -> Vec<DiscoveryRequest> {
        self.node.rearm();
        for state in &mut self.types {
            state.asked = false;
            state.asked_names = Arc::default();
            state.nonce.clear();
        }
        self.resubscribe(wanted)
    }

    fn resubscribe(&mut self, wanted: &Subscriptions) -> Vec<DiscoveryRequest> {
        wanted.kinds().flat_map(|kind| self.requests(kind, wanted)).collect()
    }

    fn report(report: &Result<(), String>) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: HEALTH.to_owned(),
            error_detail: report.as_ref().err().map(|reason| unwell(reason)),
            ..Default::default()
        }
    }

    fn response(
        &mut self,
        response: DiscoveryResponse,
        wanted: &Subscriptions,
        sink: &mut dyn ResourceSink,
        stats: &Stats,
    ) -> Vec<DiscoveryRequest> {
        let Some(kind) = asked_for(&response.type_url, |kind| self.types[index(kind)].asked) else {
            return Vec::new();
        };
        let state = &mut self.types[index(kind)];
        let names = wanted.names(kind);

        let mut rejections = Vec::new();
        let mut upserts: Vec<(String, String, Bytes)> = Vec::new();
        let mut seen = BTreeSet::new();
        for any in response.resources {
            match content(kind, any) {
                // One that was given up while it was under way.
                Ok((name, _)) if !kind.wildcard() && !names.contains(&name) => {}
                Ok((name, bytes)) => {
                    if seen.insert(name.clone()) {
                        upserts.push((name, response.version_info.clone(), bytes));
                    } else {
                        let reason = "is in the response twice; the first one is used".into();
                        rejections.push(Rejection { name, reason });
                    }
                }
                Err(rejection) => rejections.push(rejection),
            }
        }
        let mut removed = Vec::new();
        if kind.wildcard() {
            removed.extend(state.present.difference(&seen).cloned());
            state.present = seen;
        }
        rejections.extend(sink.apply(kind, upserts, removed, kind.wildcard()));
        stats.of(kind).record(&response.version_info, &rejections);
        super::detail::tell(kind, &rejections);

        state.nonce = response.nonce;
        if rejections.is_empty() {
            state.version = response.version_info;
        }
        let asked = state.asked_names.clone();
        let mut requests = vec![self.say(kind, asked, &rejections)];
        requests.extend(self.resubscribe(wanted));
        requests
    }
}

/// The name and encoded message of a resource, which may be wrapped in a `Resource`.
fn content(kind: ResourceType, any: Any) -> Result<(String, Bytes), Rejection> {
    let rejected = |name: &str, reason: String| Rejection { name: name.to_owned(), reason };
    if any.is::<Resource>() {
        let resource: Resource = any.unpack().map_err(|e| rejected("", e.to_string()))?;
        let inner = resource.resource.unwrap_or_default();
        if inner.type_url != kind.type_url() {
            return Err(rejected(
                &resource.name,
                format!("has type {}, in a response of {kind}", inner.type_url),
            ));
        }
        return Ok((resource.name, inner.value));
    }
    if any.type_url != kind.type_url() {
        return Err(rejected("", format!("a resource has type {}, in a response of {kind}", any.type_url)));
    }
    // Of names there is one table, which has no name itself.
    if kind == ResourceType::Names {
        return Ok((String::new(), any.value));
    }
    let named = Named::decode(any.value.clone())
        .map_err(|e| rejected("", format!("a resource does not decode: {e}")))?;
    Ok((named.name, any.value))
}

/// What all resource types have in common: their name is field 1.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[cfg(test)]
mod tests;
