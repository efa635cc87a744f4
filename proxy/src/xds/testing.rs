//! A sink that remembers, for tests of the client.

use bytes::Bytes;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;

use super::{Rejection, ResourceSink, Subscriptions};

/// What one call of `apply` was given: `+name@version`, `-name`, and `=` when it is the full set.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) calls: Vec<(ResourceType, Vec<String>)>,
    /// Names that are refused.
    pub(super) refuse: Vec<&'static str>,
    /// Subscribes to the endpoints of every cluster, as the state engine does.
    pub(super) follow: Option<Subscriptions>,
}

impl ResourceSink for Recorder {
    fn apply(
        &mut self,
        kind: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        removed: Vec<String>,
        full_set: bool,
    ) -> Vec<Rejection> {
        let mut seen: Vec<String> = upserts.iter().map(|(n, v, _)| format!("+{n}@{v}")).collect();
        seen.extend(removed.iter().map(|n| format!("-{n}")));
        seen.extend(full_set.then(|| "=".to_owned()));
        self.calls.push((kind, seen));
        if let (Some(wanted), ResourceType::Cluster) = (&self.follow, kind) {
            let mut names = (*wanted.names(ResourceType::Endpoint)).clone();
            names.extend(upserts.iter().map(|(n, ..)| n.clone()));
            names.retain(|n| !removed.contains(n));
            wanted.set(ResourceType::Endpoint, names);
        }
        let refused = upserts.into_iter().filter(|(n, ..)| self.refuse.contains(&n.as_str()));
        refused.map(|(name, ..)| Rejection { name, reason: "is refused".into() }).collect()
    }
}

pub(super) fn node() -> Node {
    Node { id: "sidecar~10.0.0.1~a.b~b.svc".into(), ..Default::default() }
}
