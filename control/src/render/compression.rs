//! Compressions of a gateway as Envoy's compressor filters, one for each encoding.

use serde_json::{Value, json};

use super::ProxyNode;
use crate::model::World;
use crate::model::compression::Algorithm;

/// The filters.
pub(super) fn filters<'a>(world: &'a World, node: &'a ProxyNode) -> impl Iterator<Item = Value> + 'a {
    world.compressions_at(&node.namespace, node.selected_by(world)).flat_map(|object| {
        let (meta, spec) = (&object.meta, &object.spec);
        let several = spec.algorithms().len() > 1;
        spec.algorithms().iter().enumerate().map(move |(index, algorithm)| {
            let (name, kind) = match algorithm {
                Algorithm::Brotli => ("brotli", "brotli.compressor.v3.Brotli"),
                Algorithm::Gzip => ("gzip", "gzip.compressor.v3.Gzip"),
            };
            let mut common = json!({"min_content_length": spec.min_bytes.unwrap_or(30)});
            if !spec.content_types.is_empty() {
                common["content_type"] = json!(spec.content_types);
            }
            json!({
                "name": format!("weft.compression/{}/{}/{name}", meta.namespace, meta.name),
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
                    "choose_first": several && index == 0,
                    "compressor_library": {
                        "name": format!("{}.{}", meta.namespace, meta.name),
                        "typed_config": {"@type": format!("type.googleapis.com/envoy.extensions.compression.{kind}")},
                    },
                    // A part of something is not the something that its other parts belong to once it is encoded.
                    "response_direction_config": {"common_config": common, "uncompressible_response_codes": [206]},
                },
            })
        })
    })
}
