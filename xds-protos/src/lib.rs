//! The protobuf types of the wire between Weft's halves, or between either half and its counterpart from elsewhere:
//! Envoy's xDS v3, Istio's extensions of it, and Istio's certificate service.
//!
//! The schema is data: `descriptors.bin` (a pruned descriptor set, made by `regen/`) and `schema.txt`, its readable form.
//! `build.rs` generates the types below from it, named as their packages are: [`envoy::config::listener::v3::Listener`].
//! The same data drives, at run time, [`json`] (configuration files, `config_dump`) and [`walk`] (which fields are present
//! in a message, known or not); a process that uses neither never decodes it.

mod any;
mod kinds;
#[cfg(test)]
mod schema;

pub mod cel;
pub mod duration;
pub mod format;
pub mod json;
pub mod otlp;
pub mod type_url;
pub mod typed_struct;
pub mod validate;
pub mod value;
pub mod walk;

pub use any::{Any, UnpackError};
pub use generated::*;
pub use kinds::ResourceType;
pub use prost;
pub use prost_reflect;
pub use prost_types;

use std::sync::OnceLock;

use prost_reflect::DescriptorPool;

#[allow(missing_docs, clippy::all, unused_qualifications)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// The descriptor set that this crate is generated from, as bytes.
pub static DESCRIPTORS: &[u8] = include_bytes!("../descriptors.bin");

/// The descriptors of every message in this crate, decoded at the first call (tens of milliseconds).
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        // The bytes are part of this binary and a test decodes them.
        #[allow(clippy::expect_used)]
        DescriptorPool::decode(DESCRIPTORS).expect("descriptors.bin is a valid descriptor set")
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readable_schema_is_that_of_the_descriptors() {
        let rendered = super::schema::render(super::pool());
        assert!(
            rendered == include_str!("../schema.txt"),
            "schema.txt does not match descriptors.bin: run `cargo run` in xds-protos/regen and commit both"
        );
    }

    #[test]
    fn validation_rules_survive_the_pruning() {
        let schema = include_str!("../schema.txt");
        let line =
            schema.lines().find(|l| l.starts_with("envoy.config.core.v3.CidrRange.prefix_len = ")).unwrap();
        assert!(line.contains("\"lte\":128"), "{line}");
    }
}
