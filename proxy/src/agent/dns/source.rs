//! Where the table of names comes from: the stream to the control plane.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use xds_protos::ResourceType;
use xds_protos::istio::networking::nds::v1::NameTable;

use super::Dns;
use super::table::Table;
use crate::xds::{Rejection, ResourceSink};

/// Keeps tables of names for the pod's DNS, and hands everything else on.
#[derive(Clone, Debug)]
pub struct WithNames<S> {
    inner: S,
    dns: Dns,
}

impl<S> WithNames<S> {
    pub(super) fn new(inner: S, dns: Dns) -> Self {
        Self { inner, dns }
    }
}

impl<S: ResourceSink> ResourceSink for WithNames<S> {
    fn apply(
        &mut self,
        kind: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        removed: Vec<String>,
        full_set: bool,
    ) -> Vec<Rejection> {
        if kind != ResourceType::Names {
            return self.inner.apply(kind, upserts, removed, full_set);
        }
        // A table that is taken away leaves the last one: a control plane that has none to give has not forgotten the mesh.
        let refused = |(name, _, bytes): (String, String, Bytes)| {
            let reason = self.dns.take(&bytes).err()?;
            tracing::warn!(reason, "the table of names is refused; the last good one stays");
            Some(Rejection { name, reason })
        };
        upserts.into_iter().filter_map(refused).collect()
    }
}

/// Takes nothing: what follows the table of names where nothing else is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl ResourceSink for Nothing {
    fn apply(
        &mut self,
        _: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        _: Vec<String>,
        _: bool,
    ) -> Vec<Rejection> {
        let refused =
            |(name, _, _)| Rejection { name, reason: "only the table of names is taken".to_owned() };
        upserts.into_iter().map(refused).collect()
    }
}

impl Dns {
    /// Takes a table of names in the place of the one before.
    ///
    /// # Errors
    /// Something in it is wrong; the one before stays.
    pub(super) fn take(&self, bytes: &[u8]) -> Result<(), String> {
        let source = NameTable::decode(bytes).map_err(|e| format!("not a NameTable: {e}"))?;
        let table = Table::new(source, &self.0.settings)?;
        tracing::debug!(names = table.len(), "names of the mesh");
        self.0.table.store(Some(Arc::new(table)));
        self.0.taken.send_replace(Some(Bytes::copy_from_slice(bytes)));
        Ok(())
    }
}
