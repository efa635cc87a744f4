//! Compression: which answers gateways compress (weft.dev).

use std::sync::Arc;

use serde::Deserialize;

use super::meta::Object;
use super::values::{Labels, WorkloadSelector};
use super::world::World;

/// The specification of a Compression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Compression {
    /// Gateways to which it applies; absent for all of the namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// The encodings; the first is taken where a client likes several equally. Both by default.
    pub algorithms: Vec<Algorithm>,
    /// Answers of less bytes stay as they are; 30 by default.
    pub min_bytes: Option<u32>,
    /// What is compressed; text and its like by default.
    pub content_types: Vec<String>,
}

/// An encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum Algorithm {
    /// `br` in `accept-encoding`.
    #[serde(rename = "brotli")]
    Brotli,
    /// `gzip` there.
    #[serde(rename = "gzip")]
    Gzip,
}

impl Compression {
    /// The encodings, the one that is liked best first.
    pub fn algorithms(&self) -> &[Algorithm] {
        if self.algorithms.is_empty() { &[Algorithm::Brotli, Algorithm::Gzip] } else { &self.algorithms }
    }
}

impl World {
    /// Those that hold at a gateway: those of the root namespace, then those of its own; each oldest first.
    pub fn compressions_at<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<Object<Compression>>> {
        let root = self.mesh().root_namespace.as_str();
        let of = move |wanted: &'a str| {
            self.compressions().iter().filter(move |object| {
                let selects = |selector: &WorkloadSelector| selector.selects(labels);
                object.meta.namespace == wanted && object.spec.selector.as_ref().is_none_or(selects)
            })
        };
        let own = (namespace != root).then(|| of(namespace)).into_iter().flatten();
        of(root).chain(own)
    }
}
