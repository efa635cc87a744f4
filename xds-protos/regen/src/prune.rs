//! Drops every message, enum, service and file that the roots do not reach.
//!
//! Works on mirrors of descriptor.proto's messages in which options are raw bytes: a decoder that does not know an
//! extension option would lose it. Of the options we keep the standard ones and the validation rules (field 1071).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result};
use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field},
};

const VALIDATE: &str = "validate/validate.proto";
const DESCRIPTOR: &str = "google/protobuf/descriptor.proto";

/// What to keep.
pub struct Roots {
    files: HashSet<String>,
    services: HashSet<String>,
}

impl Roots {
    /// Reads `roots.txt`.
    pub fn parse(text: &str) -> Self {
        let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        Self {
            files: lines().filter(|l| !l.starts_with('+')).map(str::to_owned).collect(),
            services: lines().filter_map(|l| l.strip_prefix('+')).map(str::to_owned).collect(),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FileSet {
    #[prost(message, repeated, tag = "1")]
    pub file: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
pub struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    message: Vec<Descriptor>,
    #[prost(message, repeated, tag = "5")]
    enums: Vec<Enum>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
    #[prost(message, repeated, tag = "7")]
    extension: Vec<Field>,
    #[prost(string, tag = "12")]
    syntax: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    field: Vec<Field>,
    #[prost(message, repeated, tag = "3")]
    nested: Vec<Descriptor>,
    #[prost(message, repeated, tag = "4")]
    enums: Vec<Enum>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    extension_range: Vec<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "7")]
    options: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "8")]
    oneof: Vec<Oneof>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Oneof {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", optional, tag = "2")]
    options: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Field {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, optional, tag = "2")]
    extendee: Option<String>,
    #[prost(int32, tag = "3")]
    number: i32,
    #[prost(int32, tag = "4")]
    label: i32,
    #[prost(int32, tag = "5")]
    kind: i32,
    #[prost(string, optional, tag = "6")]
    type_name: Option<String>,
    #[prost(string, optional, tag = "7")]
    default: Option<String>,
    #[prost(bytes = "vec", optional, tag = "8")]
    options: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "9")]
    oneof_index: Option<i32>,
    #[prost(string, optional, tag = "10")]
    json_name: Option<String>,
    #[prost(bool, optional, tag = "17")]
    proto3_optional: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Enum {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    value: Vec<EnumValue>,
    #[prost(bytes = "vec", optional, tag = "3")]
    options: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct EnumValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, optional, tag = "2")]
    number: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    input: String,
    #[prost(string, tag = "3")]
    output: String,
    #[prost(bool, optional, tag = "5")]
    client_streaming: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    server_streaming: Option<bool>,
}

/// The part of `set` that `roots` reach, with dependencies recomputed and files in an order that links.
pub fn prune(set: FileSet, roots: &Roots) -> Result<FileSet> {
    let mut types = HashMap::new();
    for file in &set.file {
        for message in &file.message {
            index(&format!(".{}", file.package), message, &file.name, &mut types);
        }
        for e in &file.enums {
            types.insert(format!(".{}.{}", file.package, e.name), (file.name.clone(), Vec::new()));
        }
    }
    for root in &roots.files {
        anyhow::ensure!(set.file.iter().any(|f| f.name == *root), "no file {root}, named in roots.txt");
    }

    // Well-known types whole: they are few, and the runtime treats them by name.
    let whole = |file: &File| {
        roots.files.contains(&file.name) || file.name.starts_with("google/protobuf/") || file.name == VALIDATE
    };
    let mut queue: Vec<String> = types
        .iter()
        .filter(|(_, (f, _))| set.file.iter().any(|x| x.name == *f && whole(x)))
        .map(|(n, _)| n.clone())
        .collect();
    for file in &set.file {
        for service in file.service.iter().filter(|s| keeps(roots, file, s)) {
            queue.extend(service.method.iter().flat_map(|m| [m.input.clone(), m.output.clone()]));
        }
    }
    let mut reached = HashSet::new();
    while let Some(name) = queue.pop() {
        if reached.insert(name.clone()) {
            let (_, uses) = types.get(&name).with_context(|| format!("{name} is used and not defined"))?;
            queue.extend(uses.iter().cloned());
        }
    }

    let mut kept = BTreeMap::new();
    for mut file in set.file {
        let package = format!(".{}", file.package);
        file.message.retain_mut(|m| retain(&package, m, &reached));
        file.enums.retain(|e| reached.contains(&format!("{package}.{}", e.name)));
        for e in &mut file.enums {
            e.options = options(e.options.take());
        }
        let services = std::mem::take(&mut file.service);
        file.service = services.into_iter().filter(|s| keeps(roots, &file, s)).collect();
        if file.name != VALIDATE {
            file.extension.clear();
        }
        if file.message.is_empty() && file.enums.is_empty() && file.service.is_empty() {
            continue;
        }
        let mut uses = BTreeSet::new();
        let mut rules = false;
        for message in &file.message {
            gather(message, &mut uses, &mut rules);
        }
        uses.extend(
            file.service.iter().flat_map(|s| &s.method).flat_map(|m| [m.input.clone(), m.output.clone()]),
        );
        let mut dependency: BTreeSet<String> =
            uses.iter().filter_map(|u| types.get(u)).map(|(f, _)| f.clone()).collect();
        if rules {
            dependency.insert(VALIDATE.to_owned());
        }
        if file.name == VALIDATE {
            dependency.insert(DESCRIPTOR.to_owned());
        }
        dependency.remove(&file.name);
        file.dependency = dependency.into_iter().collect();
        kept.insert(file.name.clone(), file);
    }

    let mut ordered = Vec::new();
    let names: Vec<_> = kept.keys().cloned().collect();
    for name in names {
        place(&name, &mut kept, &mut ordered);
    }
    Ok(FileSet { file: ordered })
}

fn keeps(roots: &Roots, file: &File, service: &Service) -> bool {
    roots.services.contains(&format!("{}.{}", file.package, service.name))
}

fn place(name: &str, left: &mut BTreeMap<String, File>, ordered: &mut Vec<File>) {
    if let Some(file) = left.remove(name) {
        for dependency in &file.dependency {
            place(dependency, left, ordered);
        }
        ordered.push(file);
    }
}

fn index(scope: &str, message: &Descriptor, file: &str, types: &mut HashMap<String, (String, Vec<String>)>) {
    let name = format!("{scope}.{}", message.name);
    for nested in &message.nested {
        index(&name, nested, file, types);
    }
    for e in &message.enums {
        types.insert(format!("{name}.{}", e.name), (file.to_owned(), Vec::new()));
    }
    let uses = message.field.iter().filter_map(|f| f.type_name.clone()).collect();
    types.insert(name, (file.to_owned(), uses));
}

/// Whether the message, or one inside it, is reached; a message that is only a scope loses its fields.
fn retain(scope: &str, message: &mut Descriptor, reached: &HashSet<String>) -> bool {
    let name = format!("{scope}.{}", message.name);
    message.nested.retain_mut(|m| retain(&name, m, reached));
    message.enums.retain(|e| reached.contains(&format!("{name}.{}", e.name)));
    for e in &mut message.enums {
        e.options = options(e.options.take());
    }
    if !reached.contains(&name) {
        message.field.clear();
        message.oneof.clear();
        message.options = None;
        return !message.nested.is_empty() || !message.enums.is_empty();
    }
    message.options = options(message.options.take());
    for field in &mut message.field {
        field.options = options(field.options.take());
    }
    for oneof in &mut message.oneof {
        oneof.options = options(oneof.options.take());
    }
    true
}

fn gather(message: &Descriptor, uses: &mut BTreeSet<String>, rules: &mut bool) {
    uses.extend(message.field.iter().filter_map(|f| f.type_name.clone()));
    *rules |= has_rules(&message.options)
        || message.field.iter().any(|f| has_rules(&f.options))
        || message.oneof.iter().any(|o| has_rules(&o.options));
    for nested in &message.nested {
        gather(nested, uses, rules);
    }
}

/// Numbers of validate.proto's extensions: rules of a field, `required` of a oneof, `disabled` and `ignored` of a message.
const RULES: [u32; 2] = [1071, 1072];

fn has_rules(options: &Option<Vec<u8>>) -> bool {
    let mut found = false;
    if let Some(bytes) = options {
        each(bytes, |number, _, _| found |= RULES.contains(&number));
    }
    found
}

/// Standard options and validation rules; other extensions (versioning, migration, work in progress) are dropped.
fn options(options: Option<Vec<u8>>) -> Option<Vec<u8>> {
    let bytes = options?;
    let mut kept = Vec::new();
    each(&bytes, |number, wire, value| {
        if number < 1000 || RULES.contains(&number) {
            encode_key(number, wire, &mut kept);
            if wire == WireType::LengthDelimited {
                encode_varint(value.len() as u64, &mut kept);
            }
            kept.extend_from_slice(value);
        }
    });
    (!kept.is_empty()).then_some(kept)
}

/// Calls `visit` with the number, wire type and value bytes (without a length prefix) of every field.
fn each(mut bytes: &[u8], mut visit: impl FnMut(u32, WireType, &[u8])) {
    while !bytes.is_empty() {
        let Ok((number, wire)) = decode_key(&mut bytes) else { return };
        let whole = bytes;
        if skip_field(wire, number, &mut bytes, DecodeContext::default()).is_err() {
            return;
        }
        let mut value = &whole[..whole.len() - bytes.len()];
        if wire == WireType::LengthDelimited {
            while value.has_remaining() && value.get_u8() & 0x80 != 0 {}
        }
        visit(number, wire, value);
    }
}
