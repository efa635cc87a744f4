//! Makes `../descriptors.bin` and `../schema.txt`: `cargo run` in this directory, review the diff of schema.txt, commit both.
//!
//! The .proto files come from the published source of `envoy-types` (its directory in cargo's registry, or `ENVOY_PROTOS`)
//! and from `../proto`, our own files for what that crate lacks. They are parsed, relative type names are made absolute,
//! and everything that `roots.txt` does not reach is dropped. Options are kept as raw bytes, so validation rules survive.

mod names;
mod prune;
#[path = "../../src/schema.rs"]
mod schema;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorProto;

fn main() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    let protos = published_protos()?;
    for group in fs::read_dir(&protos).with_context(|| format!("reading {}", protos.display()))? {
        let root = group?.path();
        // cel-spec keeps its files one level deeper than the name they are imported by.
        let root = if root.ends_with("cel-spec") { root.join("proto") } else { root };
        read_tree(&root, &root, &mut files)?;
    }
    let own = here.join("../proto");
    read_tree(&own, &own, &mut files)?;

    names::qualify(&mut files)?;
    let mut pool = DescriptorPool::global();
    pool.add_file_descriptor_protos(files.into_values()).context("linking the files")?;

    let roots = prune::Roots::parse(&fs::read_to_string(here.join("roots.txt"))?);
    let set = prune::FileSet::decode(pool.encode_to_vec().as_slice())?;
    let set = prune::prune(set, &roots)?.encode_to_vec();
    let pool = DescriptorPool::decode(set.as_slice()).context("the pruned set does not link")?;

    fs::write(here.join("../descriptors.bin"), &set)?;
    fs::write(here.join("../schema.txt"), schema::render(&pool))?;
    println!("{} files, {} messages, {} bytes", pool.files().len(), pool.all_messages().len(), set.len());
    Ok(())
}

/// The directory `proto/` of the newest envoy-types source in cargo's registry.
fn published_protos() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ENVOY_PROTOS") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    for registry in fs::read_dir(home.join("registry/src")).context("run `cargo fetch` first")? {
        let dir = registry?.path().join("envoy-types-0.7.7/proto");
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    bail!("envoy-types 0.7.7 is not in cargo's registry: run `cargo fetch` here first")
}

fn read_tree(root: &Path, dir: &Path, files: &mut BTreeMap<String, FileDescriptorProto>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_tree(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            let name = path.strip_prefix(root)?.to_str().context("a file name that is not UTF-8")?.to_owned();
            let parsed = protox_parse::parse(&name, &fs::read_to_string(&path)?)
                .with_context(|| format!("parsing {name}"))?;
            files.insert(name, parsed);
        }
    }
    Ok(())
}
