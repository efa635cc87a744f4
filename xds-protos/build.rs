//! Turns `descriptors.bin` into Rust types, and into gRPC clients and servers.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=descriptors.bin");
    println!("cargo:rerun-if-changed=build.rs");
    let mut set = FileDescriptorSet::decode(fs::read("descriptors.bin")?.as_slice())?;
    // These describe descriptors: needed by the pool at run time, not as Rust types.
    set.file.retain(|f| !matches!(f.name(), "validate/validate.proto" | "google/protobuf/descriptor.proto"));

    let mut config = prost_build::Config::new();
    config
        .out_dir(env::var("OUT_DIR")?)
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .bytes(["."])
        .disable_comments(["."])
        .include_file("mod.rs")
        .extern_path(".google.protobuf.Any", "crate::Any");
    tonic_prost_build::configure().compile_fds_with_config(set, config)?;
    Ok(())
}
