//! Messages as JSON and YAML, in protobuf's canonical form, with the contents of `Any` inline: how Envoy's bootstrap,
//! configuration files and `config_dump` are written.
//!
//! Reading takes names in either case (`typed_config`, `typedConfig`) and refuses what the message does not have, with the
//! path. Writing is for people and uses the names in the .proto files, as Envoy's admin interface does; private keys and
//! passwords are written as `[redacted]`. An `Any` of a type that is not in the
//! descriptors is written as its type and its bytes in base64, and read back from that.

mod bytes;
mod read;
mod write;
mod yaml;

use ::bytes::Bytes;
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::Value;

pub use yaml::value_from_yaml_str;

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", path, if path.is_empty() { "" } else { ": " })]
pub struct JsonError {
    /// The place, in the names that the document uses: `static_resources.listeners[0].adress`. Empty: the document.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// Reads a message from JSON.
///
/// # Errors
/// [`JsonError`] at the first field that the message does not have, or whose value is of another type.
pub fn from_value<T: Message + Name + Default>(value: Value) -> Result<T, JsonError> {
    let message = read::message(&descriptor(&T::full_name())?, &value, &mut String::new())?;
    T::decode(message.encode_to_vec().as_slice())
        .map_err(|e| JsonError { path: String::new(), message: e.to_string() })
}

/// Reads a message from YAML of the 1.2 kind: `yes`, `no`, `on` and `off` are strings.
///
/// # Errors
/// As [`from_value`], and when the text is not one YAML document.
pub fn from_yaml_str<T: Message + Name + Default>(text: &str) -> Result<T, JsonError> {
    from_value(value_from_yaml_str(text)?)
}

/// Reads JSON as the message called `name`, and gives its encoded form: the same bytes for the same JSON.
///
/// # Errors
/// As [`from_value`], and when there is no message of that name.
pub fn encode(name: &str, value: &Value) -> Result<Bytes, JsonError> {
    Ok(bytes::encode(&read::message(&descriptor(name)?, value, &mut String::new())?).into())
}

/// Writes a message as JSON. Never fails: what cannot be decoded is written as bytes.
pub fn to_value<T: Message + Name>(message: &T) -> Value {
    bytes_to_value(&T::full_name(), &message.encode_to_vec())
}

/// Writes an encoded message as JSON, given its full name. Fields that the descriptors lack are left out; bytes that do not
/// decode, and messages of unknown type, are written as base64.
pub fn bytes_to_value(name: &str, bytes: &[u8]) -> Value {
    match descriptor(name).ok().and_then(|d| DynamicMessage::decode(d, bytes).ok()) {
        Some(message) => write::message(&message),
        None => write::base64(bytes),
    }
}

fn descriptor(name: &str) -> Result<MessageDescriptor, JsonError> {
    crate::pool().get_message_by_name(name).ok_or_else(|| JsonError {
        path: String::new(),
        message: format!("message type {name} is not one that this build knows"),
    })
}

/// Messages that have a JSON form of their own, none of which can contain an `Any`.
fn has_own_form(name: &str) -> bool {
    name.strip_prefix("google.protobuf.").is_some_and(|short| {
        matches!(
            short,
            "Duration"
                | "Timestamp"
                | "FieldMask"
                | "Struct"
                | "Value"
                | "ListValue"
                | "Empty"
                | "BoolValue"
                | "BytesValue"
                | "DoubleValue"
                | "FloatValue"
                | "Int32Value"
                | "Int64Value"
                | "StringValue"
                | "UInt32Value"
                | "UInt64Value"
        )
    })
}

#[cfg(test)]
mod tests;
