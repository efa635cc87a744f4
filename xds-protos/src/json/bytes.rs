//! Messages as bytes, the same bytes for the same message: maps are written in the order of their keys. So a resource keeps its
//! version whoever renders it, and whenever.

use prost::Message;
use prost::encoding::{self, WireType};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};

/// The encoded message. Fields that its descriptor lacks are left out; what is read from JSON has none.
pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut out = Vec::new();
    append(message, &mut out);
    out
}

fn append(message: &DynamicMessage, out: &mut Vec<u8>) {
    for (field, value) in message.fields() {
        match value {
            Value::Message(inner) => nested(field.number(), inner, out),
            Value::List(items) if matches!(field.kind(), Kind::Message(_)) => {
                for item in items.iter().filter_map(Value::as_message) {
                    nested(field.number(), item, out);
                }
            }
            Value::Map(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|(a, _), (b, _)| compare(a, b));
                for (key, value) in sorted {
                    map_entry(&field, key, value, out);
                }
            }
            Value::String(text) => encoding::string::encode(field.number(), text, out),
            Value::Bool(value) => encoding::bool::encode(field.number(), value, out),
            Value::Bytes(value) => encoding::bytes::encode(field.number(), value, out),
            Value::F64(value) => encoding::double::encode(field.number(), value, out),
            Value::EnumNumber(value) => encoding::int32::encode(field.number(), value, out),
            // Numbers have several encodings, and lists of them are packed or not: the library knows.
            other => {
                let mut alone = DynamicMessage::new(field.parent_message().clone());
                alone.set_field(&field, other.clone());
                alone.encode_raw(out);
            }
        }
    }
}

fn nested(number: u32, message: &DynamicMessage, out: &mut Vec<u8>) {
    let inner = encode(message);
    encoding::encode_key(number, WireType::LengthDelimited, out);
    encoding::encode_varint(inner.len() as u64, out);
    out.extend_from_slice(&inner);
}

fn map_entry(field: &FieldDescriptor, key: &MapKey, value: &Value, out: &mut Vec<u8>) {
    let Kind::Message(entry) = field.kind() else { return };
    let mut message = DynamicMessage::new(entry.clone());
    message.set_field(&entry.map_entry_key_field(), key.clone().into());
    message.set_field(&entry.map_entry_value_field(), value.clone());
    nested(field.number(), &message, out);
}

fn compare(a: &MapKey, b: &MapKey) -> std::cmp::Ordering {
    let number = |key: &MapKey| match key {
        MapKey::Bool(v) => i128::from(*v),
        MapKey::I32(v) => (*v).into(),
        MapKey::I64(v) => (*v).into(),
        MapKey::U32(v) => (*v).into(),
        MapKey::U64(v) => (*v).into(),
        MapKey::String(_) => 0,
    };
    match (a, b) {
        (MapKey::String(a), MapKey::String(b)) => a.cmp(b),
        _ => number(a).cmp(&number(b)),
    }
}
