//! Turns `descriptors.bin` into Rust types, and into gRPC clients and servers.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=descriptors.bin");
    println!("cargo:rerun-if-changed=build.rs");
    let mut set = FileDescriptorSet::decode(fs::read("descriptors.bin")?.as_slice())?;
    // These describe descriptors: needed by the pool at run time, not as Rust types.
    set.file.retain(|f| !matches!(f.name(), "validate/validate.proto" | "google/protobuf/descriptor.proto"));
    // Control planes still send deprecated fields (Istio: max_grpc_timeout), so reading one deserves no warning.
    for message in set.file.iter_mut().flat_map(|f| &mut f.message_type) {
        undeprecate(message);
    }

    let mut config = prost_build::Config::new();
    config
        .out_dir(env::var("OUT_DIR")?)
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .bytes(["."])
        // Maps in the order of their keys: equal messages have equal bytes, and a resource has one version everywhere.
        .btree_map(["."])
        .disable_comments(["."])
        .include_file("mod.rs")
        .extern_path(".google.protobuf.Any", "crate::Any");
    tonic_prost_build::configure().compile_fds_with_config(set, config)?;
    Ok(())
}

fn undeprecate(message: &mut DescriptorProto) {
    if let Some(options) = &mut message.options {
        options.deprecated = None;
    }
    for options in message.field.iter_mut().filter_map(|f| f.options.as_mut()) {
        options.deprecated = None;
    }
    let values = message.enum_type.iter_mut().flat_map(|e| &mut e.value);
    for options in values.filter_map(|v| v.options.as_mut()) {
        options.deprecated = None;
    }
    message.nested_type.iter_mut().for_each(undeprecate);
}
