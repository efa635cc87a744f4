//! Which fields of a configuration this proxy honours, which it may ignore, and that all others are refused.
//!
//! Before a resource is compiled, [`check`] walks its bytes and holds every field that is present against one table. What
//! the table does not list is refused with its path, and so are fields and extensions that even the schema does not know:
//! nothing is accepted silently. The table is the text in `tables/`, by area; `docs/xds-fields.md` is generated from it.
//!
//! In a table a line without indentation is a message, and below it stand its fields:
//!
//! ```text
//! envoy.config.listener.v3.Listener
//!   + name address                         honoured: compile code reads it
//!   + drain_type = DEFAULT MODIFY_ONLY     honoured, these values of it
//!   + typed_config -> a.v3.B a.v3.C        honoured, with one of these types inside
//!   ~ traffic_direction: why               ignored, safely: the reason follows the colon
//! ```
//!
//! Whoever makes compile code read a field moves it to `+` here; whoever adds an extension adds its message.

mod parse;
mod table;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod reflection;

use prost::Message;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use xds_protos::prost_reflect::{FieldDescriptor, Kind};
use xds_protos::walk::{Next, Raw, Visit, walk};

use self::table::{Table, Treatment};
use super::ConfigError;

/// Everything in an encoded message that this proxy does not honour and may not ignore, and everything that breaks a rule of
/// the schema (as Envoy enforces them), each with its path.
///
/// `type_name` is the message's full name, such as `envoy.config.listener.v3.Listener`.
pub fn check(type_name: &str, bytes: &[u8]) -> Vec<ConfigError> {
    let mut errors = unsupported(table::get(), type_name, bytes);
    // Load assignments change often and are large; their few rules are checked where they are compiled.
    if errors.is_empty() && type_name != "envoy.config.endpoint.v3.ClusterLoadAssignment" {
        let broken = xds_protos::validate::check(type_name, bytes);
        errors.extend(broken.into_iter().map(|v| ConfigError::new(v.path, v.message)));
    }
    errors
}

fn unsupported(table: &Table, type_name: &str, bytes: &[u8]) -> Vec<ConfigError> {
    if !table.knows(type_name) {
        return vec![ConfigError::unsupported("", format_args!("the message type {type_name}"))];
    }
    let mut errors = Vec::new();
    // The types that the field just visited takes; the walk visits its contents next.
    let mut types: Option<&[String]> = None;
    walk(type_name, bytes, &mut |path, visit| {
        let allowed = types.take();
        let message = match visit {
            Visit::Field { field, value } => match judge(table, field, value) {
                Ok((next, inside)) => {
                    types = inside;
                    return next;
                }
                Err(message) => message,
            },
            Visit::Contents(kind) if takes(table, allowed, kind.full_name()) => return Next::Into,
            Visit::Contents(kind) if table.knows(kind.full_name()) => {
                format!("the type {} is not supported in this place", kind.full_name())
            }
            Visit::Contents(kind) => format!("the type {} is not supported", kind.full_name()),
            Visit::UnknownType(url) => {
                format!("the type {} is not supported", xds_protos::type_url::name(url))
            }
            Visit::UnknownField { message, number } => {
                format!("{} has a field number {number} that is newer than this proxy", message.full_name())
            }
            Visit::Malformed(what) => what.to_owned(),
        };
        errors.push(ConfigError::new(path, message));
        Next::Over
    });
    errors
}

/// Whether a field that takes these types (none: any that the table has) takes this one.
fn takes(table: &Table, types: Option<&[String]>, name: &str) -> bool {
    table.knows(name) && types.is_none_or(|types| types.iter().any(|t| t == name))
}

/// Whether to go into a field, and the types it takes; or why it is refused.
type Judgement<'t> = Result<(Next, Option<&'t [String]>), String>;

fn judge<'t>(table: &'t Table, field: &FieldDescriptor, value: Raw<'_>) -> Judgement<'t> {
    match table.treatment(field.parent_message().full_name(), field.name()) {
        Some(Treatment::Honoured) if is_optional_and_unknown(table, field, value) => Ok((Next::Over, None)),
        Some(Treatment::Honoured) => Ok((Next::Into, None)),
        Some(Treatment::Types(types)) => Ok((Next::Into, Some(types))),
        Some(Treatment::Ignored(_)) => Ok((Next::Over, None)),
        Some(Treatment::Only(values)) => match shown(field, value) {
            Some(shown) if values.contains(&shown) => Ok((Next::Into, None)),
            Some(shown) => Err(format!("{shown} is not supported, only {}", values.join(", "))),
            None => Err(format!("only {} is supported", values.join(", "))),
        },
        None => Err("is not supported".to_owned()),
    }
}

/// A value as tables write it: the name of an enum's value, a number, `true` or `false`; wrappers as what they wrap.
fn shown(field: &FieldDescriptor, value: Raw<'_>) -> Option<String> {
    match (field.kind(), value) {
        (Kind::Enum(kind), Raw::Varint(n)) => {
            let n = i32::try_from(n as i64).ok()?;
            Some(kind.get_value(n).map_or_else(|| n.to_string(), |v| v.name().to_owned()))
        }
        (Kind::Bool, Raw::Varint(n)) => Some((n != 0).to_string()),
        (_, Raw::Varint(n)) => Some(n.to_string()),
        (Kind::String, Raw::Bytes(b)) => String::from_utf8(b.to_vec()).ok(),
        (Kind::Message(m), Raw::Bytes(b)) if m.full_name() == "google.protobuf.BoolValue" => {
            bool::decode(b).ok().map(|b| b.to_string())
        }
        (Kind::Message(m), Raw::Bytes(b)) if m.full_name() == "google.protobuf.UInt32Value" => {
            u32::decode(b).ok().map(|n| n.to_string())
        }
        _ => None,
    }
}

/// An HTTP filter that says of itself that a proxy without it may go on: then its configuration is not ours to judge.
fn is_optional_and_unknown(table: &Table, field: &FieldDescriptor, value: Raw<'_>) -> bool {
    use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    let (Kind::Message(kind), Raw::Bytes(bytes)) = (field.kind(), value) else { return false };
    if kind.name() != "HttpFilter" {
        return false;
    }
    let Ok(HttpFilter { is_optional: true, config_type: Some(ConfigType::TypedConfig(any)), .. }) =
        HttpFilter::decode(bytes)
    else {
        return false;
    };
    let types = match table.treatment(kind.full_name(), "typed_config") {
        Some(Treatment::Types(types)) => Some(types.as_slice()),
        _ => None,
    };
    let inner = xds_protos::typed_struct::resolve(&any).map(|any| takes(table, types, any.type_name()));
    !inner.unwrap_or(true)
}

#[cfg(test)]
mod tests;
