//! Absolute names for types. A relative name binds to the innermost scope in which the *whole* name exists, which is what
//! the authors of these files mean; strict resolvers bind its first part alone and then fail (Envoy has many packages
//! called `common`, `core` and `config`).

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// Makes every type name in `files` absolute.
pub fn qualify(files: &mut BTreeMap<String, FileDescriptorProto>) -> Result<()> {
    let mut known = HashSet::new();
    for file in files.values() {
        for message in &file.message_type {
            declare(file.package(), message, &mut known);
        }
        for e in &file.enum_type {
            known.insert(format!("{}.{}", file.package(), e.name()));
        }
    }
    for file in files.values_mut() {
        let package = file.package().to_owned();
        let name = file.name().to_owned();
        for message in &mut file.message_type {
            in_message(&package, message, &known).with_context(|| name.clone())?;
        }
        for field in &mut file.extension {
            in_field(&package, field, &known)?;
        }
        for service in &mut file.service {
            for method in &mut service.method {
                for name in [&mut method.input_type, &mut method.output_type].into_iter().flatten() {
                    *name = resolve(&package, name, &known)?;
                }
            }
        }
    }
    Ok(())
}

fn declare(scope: &str, message: &DescriptorProto, known: &mut HashSet<String>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        declare(&name, nested, known);
    }
    for e in &message.enum_type {
        known.insert(format!("{name}.{}", e.name()));
    }
    known.insert(name);
}

fn in_message(scope: &str, message: &mut DescriptorProto, known: &HashSet<String>) -> Result<()> {
    let scope = format!("{scope}.{}", message.name());
    for field in message.field.iter_mut().chain(&mut message.extension) {
        in_field(&scope, field, known)?;
    }
    message.nested_type.iter_mut().try_for_each(|nested| in_message(&scope, nested, known))
}

fn in_field(scope: &str, field: &mut FieldDescriptorProto, known: &HashSet<String>) -> Result<()> {
    if let Some(name) = &mut field.type_name {
        *name = resolve(scope, name, known)
            .with_context(|| format!("{scope}.{}", field.name.as_deref().unwrap_or("")))?;
    }
    Ok(())
}

fn resolve(scope: &str, name: &str, known: &HashSet<String>) -> Result<String> {
    if name.starts_with('.') {
        return Ok(name.to_owned());
    }
    if name.starts_with("google.protobuf.") {
        return Ok(format!(".{name}"));
    }
    let mut scope = scope;
    loop {
        let candidate = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        if known.contains(&candidate) {
            return Ok(format!(".{candidate}"));
        }
        if scope.is_empty() {
            // validate.proto and the like: left to the linker, which knows google/protobuf/descriptor.proto.
            return Ok(name.to_owned());
        }
        scope = scope.rsplit_once('.').map_or("", |(outer, _)| outer);
    }
}
