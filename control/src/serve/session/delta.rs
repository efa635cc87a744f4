//! Delta xDS: requests say what changed in the subscription, responses what changed in the resources.

use xds_protos::ResourceType;
use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
#[cfg(test)]
use xds_protos::{
    Any, envoy::service::discovery::v3::DeltaDiscoveryResponse,
    envoy::service::discovery::v3::Resource as Wrapper,
};

#[cfg(test)]
use super::Push;
use super::{Heard, Session, named, unknown};
use crate::render::Resource;

impl Session {
    /// Takes a delta request.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Heard::Nothing };
        self.touched.add(kind);
        let first = !self.watches.contains_key(&kind);
        let all = self.resources.get(&kind);
        let watch = self.watches.entry(kind).or_default();
        let mut heard = Heard::Nothing;
        if !request.response_nonce.is_empty() {
            let refused = request.error_detail.as_ref().map(|e| e.message.clone());
            heard = match (watch.answered(&request.response_nonce, refused.clone()), refused) {
                (false, _) => Heard::Expired(kind),
                (true, Some(reason)) => Heard::Refused(kind, reason),
                (true, None) => Heard::Acknowledged(kind),
            };
        }
        // What the subscription says holds whatever the nonce: a change of it is said once.
        if first
            || !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty()
        {
            watch.current = false;
        }
        if first {
            for (name, version) in &request.initial_resource_versions {
                let held = Resource { version: version.as_str().into(), ..unknown() };
                watch.holds(name.as_str().into(), Some(held));
            }
            if !kind.wildcard() {
                watch.names.add(request.initial_resource_versions.keys().map(|name| name.as_str().into()));
            }
            watch.wildcard = kind.wildcard() && request.resource_names_subscribe.is_empty();
            watch.owed = true;
            heard = Heard::Subscribed(kind);
        }
        let mut wanted = Vec::new();
        for name in named(&request.resource_names_subscribe) {
            if &*name == "*" {
                watch.subscribe_all();
                watch.owed = true;
                continue;
            }
            // Of what it says that it holds, a client that connects again needs only what changed.
            if !first {
                watch.forced.insert(name.clone());
            }
            // One copy of a name serves all clients.
            let name = all.and_then(|all| all.entry(&name)).map_or(name.clone(), |(known, _)| known.clone());
            wanted.push(name);
            heard = Heard::Subscribed(kind);
        }
        watch.subscribe(wanted);
        for name in named(&request.resource_names_unsubscribe) {
            if &*name == "*" {
                watch.unsubscribe_all();
            }
            watch.unsubscribe(&name);
        }
        heard
    }
}

/// What [`crate::serve`] writes block by block, as the whole that it is.
#[cfg(test)]
impl Push {
    /// As a delta response.
    pub fn into_delta(self) -> DeltaDiscoveryResponse {
        let url = self.kind.type_url();
        let wrap = |(name, resource): (std::sync::Arc<str>, Resource)| Wrapper {
            name: name.to_string(),
            version: resource.version.to_string(),
            resource: Some(Any { type_url: url.into(), value: resource.bytes }),
            ..Wrapper::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: self.version.to_string(),
            resources: self.upserts.into_iter().map(wrap).collect(),
            type_url: url.to_owned(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
            nonce: self.nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}
