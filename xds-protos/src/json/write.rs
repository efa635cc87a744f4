//! Messages to JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, Value as Proto};
use serde_json::{Map, Value};

use super::has_own_form;

/// Bytes, as canonical JSON writes them.
pub(super) fn base64(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

/// `Any` inside `Any` beyond this depth is written as bytes: each starts a decoder with a depth limit of its own.
const MAX_ANYS: usize = 16;

/// Keys and passwords, which are never shown.
const SENSITIVE: [&str; 6] = [
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.private_key",
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.password",
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.pkcs12",
    "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys.keys",
    "envoy.extensions.transport_sockets.tls.v3.GenericSecret.secret",
    "envoy.extensions.transport_sockets.tls.v3.GenericSecret.secrets",
];

/// Writes a message.
pub(super) fn message(message: &DynamicMessage) -> Value {
    nested(message, 0)
}

/// Writes a message that stands inside of so many `Any`s.
fn nested(message: &DynamicMessage, anys: usize) -> Value {
    let kind = message.descriptor();
    if kind.full_name() == "google.protobuf.Any" {
        return any(message, anys);
    }
    if has_own_form(kind.full_name())
        && let Ok(value) = serde_json::to_value(message)
    {
        return value;
    }
    // Also a duration or timestamp out of range, which has no form of its own.
    Value::Object(fields(message, anys))
}

fn fields(message: &DynamicMessage, anys: usize) -> Map<String, Value> {
    let mut object = Map::new();
    for (field, value) in message.fields() {
        let mut written = value_of(&field.kind(), value, anys);
        if SENSITIVE.contains(&field.full_name()) {
            redact(&mut written);
        }
        object.insert(field.name().to_owned(), written);
    }
    object
}

/// Replaces what a data source holds; where it points to may be seen.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "inline_bytes" => *value = base64(b"[redacted]"),
                    "inline_string" => *value = "[redacted]".into(),
                    _ => redact(value),
                }
            }
        }
        _ => {}
    }
}

fn value_of(kind: &Kind, value: &Proto, anys: usize) -> Value {
    match value {
        Proto::Bool(b) => Value::Bool(*b),
        Proto::I32(n) => (*n).into(),
        Proto::U32(n) => (*n).into(),
        Proto::I64(n) => n.to_string().into(),
        Proto::U64(n) => n.to_string().into(),
        Proto::F32(f) => float(f64::from(*f), || f.to_string().parse().unwrap_or(f64::from(*f))),
        Proto::F64(f) => float(*f, || *f),
        Proto::String(s) => s.clone().into(),
        Proto::Bytes(b) => base64(b),
        Proto::EnumNumber(n) => match kind {
            Kind::Enum(e) if e.full_name() == "google.protobuf.NullValue" => Value::Null,
            Kind::Enum(e) => e.get_value(*n).map_or_else(|| (*n).into(), |v| v.name().to_owned().into()),
            _ => (*n).into(),
        },
        Proto::Message(m) => nested(m, anys),
        Proto::List(items) => items.iter().map(|item| value_of(kind, item, anys)).collect(),
        Proto::Map(entries) => {
            let Kind::Message(entry) = kind else { return Value::Null };
            let kind = entry.map_entry_value_field().kind();
            Value::Object(
                entries.iter().map(|(key, value)| (map_key(key), value_of(&kind, value, anys))).collect(),
            )
        }
    }
}

/// JSON has no such numbers as NaN; `shortest` turns a single-precision one into the decimal that a person would write.
fn float(f: f64, shortest: impl FnOnce() -> f64) -> Value {
    if f.is_nan() {
        "NaN".into()
    } else if f.is_infinite() {
        if f > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        shortest().into()
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(s) => s.clone(),
    }
}

fn any(any: &DynamicMessage, anys: usize) -> Value {
    let mut object = Map::new();
    let type_url = any.get_field_by_name("type_url");
    let type_url = type_url.as_deref().and_then(Proto::as_str).unwrap_or_default();
    let bytes = any.get_field_by_name("value");
    let bytes = bytes.as_deref().and_then(Proto::as_bytes).cloned().unwrap_or_default();
    if type_url.is_empty() && bytes.is_empty() {
        return Value::Object(object);
    }
    let inner = crate::pool()
        .get_message_by_name(crate::type_url::name(type_url))
        .filter(|_| anys < MAX_ANYS)
        .and_then(|kind| DynamicMessage::decode(kind, bytes.clone()).ok());
    match inner {
        Some(inner) if inner.descriptor().full_name() == "google.protobuf.Any" => {
            object.insert("value".into(), nested(&inner, anys + 1));
        }
        Some(inner) if has_own_form(inner.descriptor().full_name()) => {
            object.insert("value".into(), nested(&inner, anys + 1));
        }
        Some(inner) => object = fields(&inner, anys + 1),
        None => {
            object.insert("value".into(), base64(&bytes));
        }
    }
    object.insert("@type".into(), type_url.into());
    Value::Object(object)
}
