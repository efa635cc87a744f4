//! The text form of a descriptor set: one sorted line per field, enum value and method. It is what a reviewer reads when
//! `descriptors.bin` changes, and a test holds it against that file. Shared with the generator in `regen/`.

use prost_reflect::{Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind};

/// `message.field = number : type [rules]`, sorted, one line each; standard `google.*` messages are left out.
pub fn render(pool: &DescriptorPool) -> String {
    let mut lines = Vec::new();
    for message in pool.all_messages().filter(|m| ours(m.package_name()) && !m.is_map_entry()) {
        lines.push(format!("{} : message", message.full_name()));
        for field in message.fields() {
            lines.push(field_line(&field));
        }
    }
    for e in pool.all_enums().filter(|e| ours(e.package_name())) {
        for value in e.values() {
            lines.push(format!("{}.{} = {} : value", e.full_name(), value.name(), value.number()));
        }
    }
    for method in pool.services().flat_map(|s| s.methods().collect::<Vec<_>>()) {
        let stream = |yes| if yes { "stream " } else { "" };
        lines.push(format!(
            "{} : {}{} -> {}{}",
            method.full_name(),
            stream(method.is_client_streaming()),
            method.input().full_name(),
            stream(method.is_server_streaming()),
            method.output().full_name()
        ));
    }
    lines.sort();
    lines.push(String::new());
    lines.join("\n")
}

fn ours(package: &str) -> bool {
    !package.starts_with("google.") && package != "validate"
}

fn field_line(field: &FieldDescriptor) -> String {
    let kind = |kind: Kind| match kind {
        Kind::Message(m) => m.full_name().to_owned(),
        Kind::Enum(e) => e.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    let ty = match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            format!(
                "map {} {}",
                kind(entry.map_entry_key_field().kind()),
                kind(entry.map_entry_value_field().kind())
            )
        }
        other if field.cardinality() == Cardinality::Repeated => format!("repeated {}", kind(other)),
        other => kind(other),
    };
    let mut line = format!("{} = {} : {ty}", field.full_name(), field.number());
    if let Some(oneof) = field.containing_oneof() {
        line += if oneof.is_synthetic() { " optional" } else { " oneof " };
        if !oneof.is_synthetic() {
            line += oneof.name();
            if rules(&oneof.options()).is_some() {
                line += " (required)";
            }
        }
    }
    if field.field_descriptor_proto().options.as_ref().is_some_and(|o| o.deprecated()) {
        line += " deprecated";
    }
    if let Some(rules) = rules(&field.options()) {
        line += &format!(" [{rules}]");
    }
    line
}

/// The validation rules among a descriptor's options, as JSON.
fn rules(options: &DynamicMessage) -> Option<String> {
    let (_, value) = options.extensions().find(|(e, _)| e.package_name() == "validate")?;
    match value {
        prost_reflect::Value::Message(rules) => serde_json::to_string(rules).ok(),
        other => Some(format!("{other:?}")),
    }
}
