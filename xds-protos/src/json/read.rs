//! JSON to messages.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose as alphabets};
use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    Value as Proto,
};
use serde_json::{Map, Value};

use super::{JsonError, bytes, has_own_form};

/// Messages inside messages beyond this depth are refused, as protobuf's own decoders refuse them.
const MAX_DEPTH: usize = 100;

/// Reads a message. `path` is where it is, and is as it was on return.
pub(super) fn message(
    kind: &MessageDescriptor,
    value: &Value,
    path: &mut String,
) -> Result<DynamicMessage, JsonError> {
    at_depth(kind, value, path, 0)
}

fn at_depth(
    kind: &MessageDescriptor,
    value: &Value,
    path: &mut String,
    depth: usize,
) -> Result<DynamicMessage, JsonError> {
    if depth > MAX_DEPTH {
        return fail(path, "is nested too deep");
    }
    if kind.full_name() == "google.protobuf.Any" {
        return any(kind, value, path, depth);
    }
    if has_own_form(kind.full_name()) {
        return DynamicMessage::deserialize(kind.clone(), value)
            .or_else(|e| fail(path, format!("is not a valid {}: {e}", kind.name())));
    }
    let Value::Object(object) = value else {
        return fail(path, format!("expected an object ({}), found {}", kind.full_name(), describe(value)));
    };
    fields(kind, object.iter(), path, depth)
}

fn fields<'a>(
    kind: &MessageDescriptor,
    object: impl Iterator<Item = (&'a String, &'a Value)>,
    path: &mut String,
    depth: usize,
) -> Result<DynamicMessage, JsonError> {
    let mut message = DynamicMessage::new(kind.clone());
    for (key, value) in object {
        let here = enter(path, key);
        let Some(field) = kind.get_field_by_json_name(key).or_else(|| kind.get_field_by_name(key)) else {
            return fail(path, format!("{} has no such field", kind.full_name()));
        };
        if value.is_null() && !takes_null(&field) {
            path.truncate(here);
            continue;
        }
        if message.has_field(&field) {
            return fail(path, "is given twice");
        }
        if let Some(oneof) = field.containing_oneof()
            && let Some(other) = oneof.fields().find(|f| message.has_field(f))
        {
            return fail(path, format!("cannot be given together with {}", other.name()));
        }
        let read = whole_field(&field, value, path, depth)?;
        message.set_field(&field, read);
        path.truncate(here);
    }
    Ok(message)
}

/// `null` means "not set", but for `google.protobuf.Value`, whose null it is.
fn takes_null(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(m) => m.full_name() == "google.protobuf.Value" && !field.is_list() && !field.is_map(),
        Kind::Enum(e) => e.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn whole_field(
    field: &FieldDescriptor,
    value: &Value,
    path: &mut String,
    depth: usize,
) -> Result<Proto, JsonError> {
    if field.is_map() {
        let (Value::Object(object), Kind::Message(entry)) = (value, field.kind()) else {
            return fail(path, format!("expected an object, found {}", describe(value)));
        };
        let mut map = std::collections::HashMap::new();
        for (key, value) in object {
            let here = path.len();
            let _ = write!(path, "[{key:?}]");
            let key = map_key(&entry.map_entry_key_field().kind(), key, path)?;
            map.insert(key, single(&entry.map_entry_value_field().kind(), value, path, depth)?);
            path.truncate(here);
        }
        return Ok(Proto::Map(map));
    }
    if field.cardinality() != Cardinality::Repeated {
        return single(&field.kind(), value, path, depth);
    }
    let Value::Array(items) = value else {
        return fail(path, format!("expected a list, found {}", describe(value)));
    };
    let mut list = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let here = path.len();
        let _ = write!(path, "[{i}]");
        list.push(single(&field.kind(), item, path, depth)?);
        path.truncate(here);
    }
    Ok(Proto::List(list))
}

fn single(kind: &Kind, value: &Value, path: &mut String, depth: usize) -> Result<Proto, JsonError> {
    let read = match kind {
        Kind::Message(m) => return at_depth(m, value, path, depth + 1).map(Proto::Message),
        Kind::Enum(e) => return enumerator(e, value, path),
        Kind::Bool => value.as_bool().map(Proto::Bool),
        Kind::String => value.as_str().map(|s| Proto::String(s.to_owned())),
        Kind::Bytes => value.as_str().and_then(unbase64).map(|b| Proto::Bytes(b.into())),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            integer(value).and_then(|i| i.try_into().ok()).map(Proto::I32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            integer(value).and_then(|i| i.try_into().ok()).map(Proto::I64)
        }
        Kind::Uint32 | Kind::Fixed32 => integer(value).and_then(|i| i.try_into().ok()).map(Proto::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(value).and_then(|i| i.try_into().ok()).map(Proto::U64),
        Kind::Float => float(value).map(|f| Proto::F32(f as f32)),
        Kind::Double => float(value).map(Proto::F64),
    };
    read.map_or_else(
        || fail(path, format!("expected {}, found {}", format!("{kind:?}").to_lowercase(), describe(value))),
        Ok,
    )
}

fn enumerator(kind: &EnumDescriptor, value: &Value, path: &str) -> Result<Proto, JsonError> {
    if let Some(number) = value.as_i64().and_then(|n| i32::try_from(n).ok()) {
        return Ok(Proto::EnumNumber(number));
    }
    let named = value.as_str().and_then(|name| kind.get_value_by_name(name));
    named.map(|v| Proto::EnumNumber(v.number())).map_or_else(
        || {
            let names: Vec<_> = kind.values().map(|v| v.name().to_owned()).collect();
            fail(path, format!("{value} is not one of {}", names.join(", ")))
        },
        Ok,
    )
}

fn any(
    kind: &MessageDescriptor,
    value: &Value,
    path: &mut String,
    depth: usize,
) -> Result<DynamicMessage, JsonError> {
    let Value::Object(object) = value else {
        return fail(path, format!("expected an object with @type, found {}", describe(value)));
    };
    let mut read = DynamicMessage::new(kind.clone());
    if object.is_empty() {
        return Ok(read);
    }
    let Some(Value::String(type_url)) = object.get("@type") else {
        return fail(path, "@type is missing: a typed configuration names its type");
    };
    let name = crate::type_url::name(type_url);
    let inner = crate::pool().get_message_by_name(name);
    let bytes = match inner {
        Some(inner) if inner.full_name() == "google.protobuf.Any" || has_own_form(inner.full_name()) => {
            let empty = Value::Object(Map::new());
            let here = enter(path, "value");
            let bytes =
                bytes::encode(&at_depth(&inner, object.get("value").unwrap_or(&empty), path, depth + 1)?);
            path.truncate(here);
            bytes
        }
        Some(inner) => {
            let rest = object.iter().filter(|(key, _)| *key != "@type");
            bytes::encode(&fields(&inner, rest, path, depth + 1)?)
        }
        None => match object.get("value").and_then(Value::as_str).and_then(unbase64) {
            Some(bytes) if object.len() == 2 => bytes,
            _ => return fail(path, format!("@type {type_url:?} is not one that this build knows")),
        },
    };
    read.set_field_by_name("type_url", Proto::String(type_url.clone()));
    read.set_field_by_name("value", Proto::Bytes(bytes.into()));
    Ok(read)
}

fn map_key(kind: &Kind, key: &str, path: &str) -> Result<MapKey, JsonError> {
    let read = match kind {
        Kind::String => Some(MapKey::String(key.to_owned())),
        Kind::Bool => key.parse().ok().map(MapKey::Bool),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => key.parse().ok().map(MapKey::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => key.parse().ok().map(MapKey::I64),
        Kind::Uint32 | Kind::Fixed32 => key.parse().ok().map(MapKey::U32),
        Kind::Uint64 | Kind::Fixed64 => key.parse().ok().map(MapKey::U64),
        _ => None,
    };
    read.map_or_else(|| fail(path, "is not a valid key"), Ok)
}

/// Whole numbers, as numbers or as strings: JSON's numbers do not hold all 64-bit ones.
fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Number(n) => n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)).or_else(|| {
            let f = n.as_f64()?;
            // Within this range a double that has no fraction is that integer.
            (f.fract() == 0.0 && f.abs() < 9e15).then_some(f as i128)
        }),
        Value::String(s) => s.parse().ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => match s.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            s => s.parse().ok().filter(|f: &f64| f.is_finite()),
        },
        _ => None,
    }
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    alphabets::STANDARD_NO_PAD.decode(text).or_else(|_| alphabets::URL_SAFE_NO_PAD.decode(text)).ok()
}

/// Appends a field to the path and gives the length to cut it back to.
fn enter(path: &mut String, key: &str) -> usize {
    let here = path.len();
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
    here
}

fn fail<T>(path: &str, message: impl Into<String>) -> Result<T, JsonError> {
    Err(JsonError { path: path.to_owned(), message: message.into() })
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(s) => format!("the string {s:?}"),
        other => other.to_string(),
    }
}
