//! What config_dump shows.

use std::time::SystemTime;

use bytes::Bytes;
use xds_protos::ResourceType;

use super::{Inner, Stored};

/// A resource as it came.
#[derive(Clone, Debug)]
pub struct Dumped {
    /// Its kind.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The message.
    pub bytes: Bytes,
    /// When it came.
    pub updated: SystemTime,
    /// Why the version after it was refused.
    pub refused: Option<String>,
    /// It came from the bootstrap.
    pub is_static: bool,
    /// It waits for what it refers to.
    pub warming: bool,
}

pub(super) fn dump(inner: &Inner) -> Vec<Dumped> {
    let make = |kind, name: &str, stored: &Stored, warming| Dumped {
        kind,
        name: name.to_owned(),
        version: stored.version.clone(),
        bytes: stored.bytes.clone(),
        updated: stored.updated,
        refused: stored.refused.clone(),
        is_static: stored.is_static,
        warming,
    };
    let mut all: Vec<Dumped> = Vec::new();
    all.extend(inner.clusters.all().map(|(n, s, w)| make(ResourceType::Cluster, n, s, w)));
    all.extend(inner.clusters.all_assignments().map(|(n, s)| make(ResourceType::Endpoint, n, s, false)));
    all.extend(inner.listeners.all().map(|(n, s, w)| make(ResourceType::Listener, n, s, w)));
    all.extend(inner.routes.iter().map(|(n, s)| make(ResourceType::Route, n, s, false)));
    all.extend(inner.secrets.all().map(|(n, s)| make(ResourceType::Secret, n, s, false)));
    all
}
