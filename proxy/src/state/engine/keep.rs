//! What outlives a restart: the control plane's resources as they serve, and taking them up again.

use bytes::Bytes;
use tokio::sync::watch;
use xds_protos::ResourceType;

use super::{Engine, Stored};
use crate::state::error::join;

/// A resource of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its kind.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// Its version, as the control plane called it.
    pub version: String,
    /// The message.
    pub bytes: Bytes,
}

/// What is referred to comes before what refers to it, so that a listener is whole when it comes.
const ORDER: [ResourceType; 5] = [
    ResourceType::Secret,
    ResourceType::Cluster,
    ResourceType::Endpoint,
    ResourceType::Route,
    ResourceType::Listener,
];

impl Engine {
    /// Tells when the control plane changed something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.lock().changes.subscribe()
    }

    /// The control plane's resources, each in its last good version.
    pub fn kept(&self) -> Vec<Kept> {
        let inner = self.0.lock();
        let mut all = Vec::new();
        let mut put = |kind, name: &str, stored: &Stored| {
            if !stored.is_static {
                let (version, bytes) = (stored.version.clone(), stored.bytes.clone());
                all.push(Kept { kind, name: name.to_owned(), version, bytes });
            }
        };
        inner.secrets.all().for_each(|(n, s)| put(ResourceType::Secret, n, s));
        inner.clusters.all().for_each(|(n, s, _)| put(ResourceType::Cluster, n, s));
        inner.clusters.all_assignments().for_each(|(n, s)| put(ResourceType::Endpoint, n, s));
        inner.routes.iter().for_each(|(n, s)| put(ResourceType::Route, n, s));
        inner.listeners.good().for_each(|(n, s)| put(ResourceType::Listener, n, s));
        all
    }

    /// Takes up what an earlier life kept. What cannot be taken any more is left out with a word in the log; gives what was
    /// taken.
    pub fn restore(&self, mut kept: Vec<Kept>) -> Vec<Kept> {
        let place = |kind| ORDER.iter().position(|k| *k == kind).unwrap_or(ORDER.len());
        kept.sort_by_key(|k| place(k.kind));
        let mut inner = self.0.lock();
        kept.retain(|k| {
            if inner.is_static(k.kind, &k.name) {
                return false;
            }
            let taken = inner.upsert(k.kind, &k.name, &k.version, &k.bytes, false);
            if let Err(errors) = &taken {
                let (kind, name) = (k.kind.short(), &k.name);
                tracing::warn!(kind, name, reason = join(errors), "a kept resource is not taken up");
            }
            taken.is_ok()
        });
        let failed = inner.settle();
        kept.retain(|k| k.kind != ResourceType::Listener || failed.iter().all(|(name, _)| *name != k.name));
        kept
    }
}
