//! State-of-the-world xDS: each request names everything wanted of its type.
//!
//! istiod's rules: a refusal is never answered; an empty list of names ends the subscription of a type that is asked for by
//! name; a request without a nonce, or for a type not seen on this stream, subscribes anew and gets everything; a nonce
//! that is not the last one says nothing; with the last one, added names get an answer and nothing else does.

use std::collections::BTreeSet;
use std::sync::Arc;

use xds_protos::ResourceType;
use xds_protos::envoy::service::discovery::v3::DiscoveryRequest;
#[cfg(test)]
use xds_protos::{Any, envoy::service::discovery::v3::DiscoveryResponse};

#[cfg(test)]
use super::Push;
use super::{Heard, Session, named};

impl Session {
    /// Takes a state-of-the-world request.
    pub fn sotw(&mut self, request: &DiscoveryRequest) -> Heard {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else { return Heard::Nothing };
        self.touched.add(kind);
        let known = self.watches.contains_key(&kind);
        if let Some(error) = &request.error_detail {
            let Some(watch) = self.watches.get_mut(&kind) else { return Heard::Nothing };
            let reason = error.message.clone();
            return match watch.answered(&request.response_nonce, Some(reason.clone())) {
                true => Heard::Refused(kind, reason),
                false => Heard::Expired(kind),
            };
        }
        if !kind.wildcard() && request.resource_names.is_empty() {
            self.watches.remove(&kind);
            return Heard::Nothing;
        }
        let watch = self.watches.entry(kind).or_default();
        let names: BTreeSet<Arc<str>> = named(&request.resource_names).filter(|n| &**n != "*").collect();
        if request.response_nonce.is_empty() || !known {
            watch.wildcard = kind.wildcard() && names.is_empty();
            watch.names = names.into_iter().collect();
            watch.holds_nothing();
            watch.current = false;
            watch.unanswered = None;
            watch.owed = true;
            return Heard::Subscribed(kind);
        }
        if !watch.answered(&request.response_nonce, None) {
            return Heard::Expired(kind);
        }
        let added: Vec<_> = names.iter().filter(|name| !watch.names.contains(name)).cloned().collect();
        let gone: Vec<_> = watch.names.iter().filter(|name| !names.contains(*name)).cloned().collect();
        watch.current &= added.is_empty() && gone.is_empty();
        watch.subscribe(added.clone());
        for name in &gone {
            match kind.wildcard() {
                // It holds it until the next full set.
                true => watch.let_go(name),
                false => watch.unsubscribe(name),
            }
        }
        if added.is_empty() {
            return Heard::Acknowledged(kind);
        }
        watch.forced.extend(added);
        Heard::Subscribed(kind)
    }
}

/// What [`crate::serve`] writes block by block, as the whole that it is.
#[cfg(test)]
impl Push {
    /// As a state-of-the-world response.
    pub fn into_sotw(self) -> DiscoveryResponse {
        let url = self.kind.type_url();
        DiscoveryResponse {
            version_info: self.version.to_string(),
            resources: self
                .upserts
                .into_iter()
                .map(|(_, resource)| Any { type_url: url.into(), value: resource.bytes })
                .collect(),
            type_url: url.to_owned(),
            nonce: self.nonce.to_string(),
            ..DiscoveryResponse::default()
        }
    }
}
