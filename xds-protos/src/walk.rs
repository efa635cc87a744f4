//! Everything that is present in an encoded message, with its path.
//!
//! Generated types drop what they do not know, and do not tell a field that was set from one that was not. This walks the
//! bytes instead, by the descriptors: each field that is there, into messages and `Any`s, and also the numbers and type
//! URLs that the descriptors lack. A proxy that must refuse what it does not honour decides by it.

use std::fmt::Write as _;

use prost::encoding::{WireType, decode_key, decode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::{Any, type_url, typed_struct};

/// What was met.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A field that is present. One element of a repeated field, or one entry of a map, at a time; packed numbers at once.
    Field {
        /// The field; its `parent_message` is where the table of fields looks.
        field: &'a FieldDescriptor,
        /// Its value on the wire.
        value: Raw<'a>,
    },
    /// The message inside an `Any` (or inside a `TypedStruct` in it), before its fields.
    Contents(&'a MessageDescriptor),
    /// An `Any` of a type that the descriptors lack.
    UnknownType(&'a str),
    /// A field number that the message does not have in the descriptors.
    UnknownField {
        /// The message.
        message: &'a MessageDescriptor,
        /// The number.
        number: u32,
    },
    /// Bytes that are not a message. What follows in the same message cannot be read.
    Malformed(&'a str),
}

/// A value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw<'a> {
    /// Integers, booleans, enums.
    Varint(u64),
    /// `fixed32`, `sfixed32`, `float`.
    Fixed32(u32),
    /// `fixed64`, `sfixed64`, `double`.
    Fixed64(u64),
    /// Strings, bytes, messages, packed numbers.
    Bytes(&'a [u8]),
}

impl Raw<'_> {
    fn is_default(self) -> bool {
        match self {
            Raw::Varint(n) | Raw::Fixed64(n) => n == 0,
            Raw::Fixed32(n) => n == 0,
            Raw::Bytes(b) => b.is_empty(),
        }
    }
}

/// Whether the walk goes into the message or `Any` that was just visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Into it.
    Into,
    /// Past it.
    Over,
}

/// Messages inside messages beyond this depth are malformed, as for protobuf's own decoders.
const MAX_DEPTH: usize = 100;

/// Calls `visit` with the path (`filter_chains[0].filters[1].typed_config.route_config`) of everything present in
/// the message called `name`. A scalar without presence that holds its default is not present: on the wire it says nothing.
///
/// The `google.protobuf` messages other than `Any` are leaves. A message type that is not known is visited as
/// [`Visit::UnknownType`], with an empty path.
pub fn walk(name: &str, bytes: &[u8], visit: &mut dyn FnMut(&str, Visit<'_>) -> Next) {
    match crate::pool().get_message_by_name(name) {
        Some(kind) => Walk { path: String::new(), visit }.message(&kind, bytes, 0),
        None => {
            visit("", Visit::UnknownType(name));
        }
    }
}

struct Walk<'v> {
    path: String,
    visit: &'v mut dyn FnMut(&str, Visit<'_>) -> Next,
}

impl Walk<'_> {
    fn message(&mut self, kind: &MessageDescriptor, mut bytes: &[u8], depth: usize) {
        if depth > MAX_DEPTH {
            return self.malformed("is nested too deep");
        }
        // How many elements of each repeated field have been met. Messages have few.
        let mut counts: Vec<(u32, usize)> = Vec::new();
        while !bytes.is_empty() {
            let (number, value) = match next(&mut bytes) {
                Ok(found) => found,
                Err(what) => return self.malformed(what),
            };
            let Some(field) = kind.get_field(number) else {
                let here = self.enter(format_args!("#{number}"));
                (self.visit)(&self.path, Visit::UnknownField { message: kind, number });
                self.path.truncate(here);
                continue;
            };
            if !field.is_list() && !field.is_map() && !field.supports_presence() && value.is_default() {
                continue;
            }
            let here = self.enter(format_args!("{}", field.name()));
            if field.is_map() {
                self.map_entry(&field, value, depth);
            } else {
                let packed = matches!(value, Raw::Bytes(_)) && field.is_list() && is_number(&field.kind());
                if field.is_list() && !packed {
                    let index = match counts.iter_mut().find(|(n, _)| *n == number) {
                        Some((_, count)) => {
                            *count += 1;
                            *count
                        }
                        None => {
                            counts.push((number, 0));
                            0
                        }
                    };
                    let _ = write!(self.path, "[{index}]");
                }
                if (self.visit)(&self.path, Visit::Field { field: &field, value }) == Next::Into {
                    self.into(&field.kind(), value, depth);
                }
            }
            self.path.truncate(here);
        }
    }

    fn map_entry(&mut self, field: &FieldDescriptor, value: Raw<'_>, depth: usize) {
        let (Kind::Message(entry), Raw::Bytes(mut bytes)) = (field.kind(), value) else {
            return self.malformed("is not a map entry");
        };
        let (mut key, mut inner) = (String::new(), None);
        while !bytes.is_empty() {
            match next(&mut bytes) {
                Ok((1, Raw::Bytes(b))) => key = format!("{:?}", String::from_utf8_lossy(b)),
                Ok((1, Raw::Varint(n))) => key = n.to_string(),
                Ok((2, value)) => inner = Some(value),
                Ok(_) => {}
                Err(what) => return self.malformed(what),
            }
        }
        let _ = write!(self.path, "[{key}]");
        let inner = inner.unwrap_or(Raw::Bytes(&[]));
        if (self.visit)(&self.path, Visit::Field { field, value: inner }) == Next::Into {
            self.into(&entry.map_entry_value_field().kind(), inner, depth);
        }
    }

    fn into(&mut self, kind: &Kind, value: Raw<'_>, depth: usize) {
        let Kind::Message(kind) = kind else { return };
        let Raw::Bytes(bytes) = value else { return self.malformed("is not a message") };
        if kind.full_name() == "google.protobuf.Any" {
            self.any(bytes, depth);
        } else if kind.package_name() != "google.protobuf" {
            self.message(kind, bytes, depth + 1);
        }
    }

    fn any(&mut self, bytes: &[u8], depth: usize) {
        let any = match <Any as prost::Message>::decode(bytes) {
            Ok(any) => any,
            Err(e) => return self.malformed(&e.to_string()),
        };
        if any.type_url.is_empty() && any.value.is_empty() {
            return;
        }
        let any = match typed_struct::resolve(&any) {
            Ok(any) => any,
            Err(e) => {
                let here = self.path.len();
                if !e.path.is_empty() {
                    self.enter(format_args!("{}", e.path));
                }
                self.malformed(&e.message);
                return self.path.truncate(here);
            }
        };
        // A TypedStruct that is still one holds a type that we do not have.
        let inner = typed_struct::contents(&any).ok().flatten().map(|(url, _)| url);
        let url = inner.as_deref().unwrap_or(&any.type_url);
        match crate::pool().get_message_by_name(type_url::name(url)) {
            Some(kind) => {
                if (self.visit)(&self.path, Visit::Contents(&kind)) == Next::Into {
                    self.into(&Kind::Message(kind), Raw::Bytes(&any.value), depth + 1);
                }
            }
            None => {
                (self.visit)(&self.path, Visit::UnknownType(url));
            }
        }
    }

    fn malformed(&mut self, what: &str) {
        (self.visit)(&self.path, Visit::Malformed(what));
    }

    fn enter(&mut self, segment: std::fmt::Arguments<'_>) -> usize {
        let here = self.path.len();
        if here > 0 {
            self.path.push('.');
        }
        let _ = self.path.write_fmt(segment);
        here
    }
}

fn is_number(kind: &Kind) -> bool {
    !matches!(kind, Kind::Message(_) | Kind::String | Kind::Bytes)
}

/// The next field's number and value.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<(u32, Raw<'a>), &'static str> {
    let (number, wire) = decode_key(bytes).map_err(|_| "a field's key is cut off or invalid")?;
    let value = match wire {
        WireType::Varint => Raw::Varint(decode_varint(bytes).map_err(|_| "a number is cut off or too long")?),
        WireType::ThirtyTwoBit => Raw::Fixed32(u32::from_le_bytes(*take(bytes)?)),
        WireType::SixtyFourBit => Raw::Fixed64(u64::from_le_bytes(*take(bytes)?)),
        WireType::LengthDelimited => {
            let length = decode_varint(bytes).map_err(|_| "a length is cut off or too long")?;
            let length = usize::try_from(length).map_err(|_| "a length is too long")?;
            let (value, rest) = bytes.split_at_checked(length).ok_or("a field is cut off")?;
            *bytes = rest;
            Raw::Bytes(value)
        }
        WireType::StartGroup | WireType::EndGroup => return Err("holds a group, which no message here has"),
    };
    Ok((number, value))
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], &'static str> {
    let (value, rest) = bytes.split_first_chunk().ok_or("a field is cut off")?;
    *bytes = rest;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use prost::{Message, encoding};
    use serde_json::json;

    use super::*;
    use crate::json;

    fn paths(name: &str, bytes: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        walk(name, bytes, &mut |path, visit| {
            match visit {
                Visit::Field { .. } => seen.push(path.to_owned()),
                Visit::Contents(kind) => seen.push(format!("{path} is {}", kind.name())),
                Visit::UnknownType(url) => seen.push(format!("{path} ? {url}")),
                Visit::UnknownField { message, number } => {
                    seen.push(format!("{path} ? {} {number}", message.name()))
                }
                Visit::Malformed(what) => seen.push(format!("{path} ! {what}")),
            }
            Next::Into
        });
        seen
    }

    const LISTENER: &str = "envoy.config.listener.v3.Listener";

    #[test]
    fn every_present_field_is_met_with_its_path_into_any_and_typed_struct() {
        let hcm = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "route_config": {"virtual_hosts": [{"name": "a", "domains": ["x", "y"]}, {"name": "b"}]},
        });
        let typed = json!({
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
            "value": {"protocol": "p"},
        });
        let value = json!({
            "metadata": {"filter_metadata": {"istio": {"a": 1}}},
            "filter_chains": [{"filters": [{"typed_config": hcm}, {"typed_config": typed}]}],
        });
        let filter = "filter_chains[0].filters[0].typed_config";
        assert_eq!(
            paths(LISTENER, &json::encode(LISTENER, &value).unwrap()),
            [
                "filter_chains[0]",
                "filter_chains[0].filters[0]",
                filter,
                &format!("{filter} is HttpConnectionManager"),
                &format!("{filter}.route_config"),
                &format!("{filter}.route_config.virtual_hosts[0]"),
                &format!("{filter}.route_config.virtual_hosts[0].name"),
                &format!("{filter}.route_config.virtual_hosts[0].domains[0]"),
                &format!("{filter}.route_config.virtual_hosts[0].domains[1]"),
                &format!("{filter}.route_config.virtual_hosts[1]"),
                &format!("{filter}.route_config.virtual_hosts[1].name"),
                "filter_chains[0].filters[1]",
                "filter_chains[0].filters[1].typed_config",
                "filter_chains[0].filters[1].typed_config is MetadataExchange",
                "filter_chains[0].filters[1].typed_config.protocol",
                "metadata",
                "metadata.filter_metadata[\"istio\"]",
            ]
        );
    }

    #[test]
    fn what_the_descriptors_lack_is_met_too() {
        let value = json!({"name": "x", "filter_chains": [{"filters": [
            {"typed_config": {"@type": "a/nobody.Knows", "value": ""}}
        ]}]});
        let mut bytes = json::encode(LISTENER, &value).unwrap().to_vec();
        encoding::uint32::encode(9999, &7, &mut bytes);
        let seen = paths(LISTENER, &bytes);
        assert!(
            seen.contains(&"filter_chains[0].filters[0].typed_config ? a/nobody.Knows".to_owned()),
            "{seen:?}"
        );
        assert_eq!(seen.last().unwrap(), "#9999 ? Listener 9999");
        assert_eq!(paths("nobody.Knows", b""), [" ? nobody.Knows"]);
    }

    #[test]
    fn a_default_without_presence_says_nothing_and_a_wrapper_does() {
        let mut bytes = Vec::new();
        encoding::string::encode(1, &String::new(), &mut bytes);
        assert_eq!(paths(LISTENER, &bytes), [""; 0]);
        let value = json!({"use_original_dst": false});
        assert_eq!(paths(LISTENER, &json::encode(LISTENER, &value).unwrap()), ["use_original_dst"]);
    }

    #[test]
    fn torn_bytes_are_reported_and_never_panic() {
        let value = json!({"filter_chains": [{"filters": [{"name": "abcdef"}]}], "address": {"pipe": {"path": "/x"}}});
        let whole = json::encode(LISTENER, &value).unwrap();
        for end in 0..whole.len() {
            paths(LISTENER, &whole[..end]);
        }
        let torn =
            crate::envoy::config::listener::v3::Listener { name: "abcdef".into(), ..Default::default() };
        let torn = torn.encode_to_vec();
        assert_eq!(paths(LISTENER, &torn[..4]), [" ! a field is cut off"]);
        assert_eq!(paths(LISTENER, &[0x0b]), [" ! holds a group, which no message here has"]);
        let deep = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| {
            let mut outer = Vec::new();
            encoding::bytes::encode(1, &inner, &mut outer); // and_rules / set.rules[...] nest without end
            outer
        });
        paths("envoy.config.rbac.v3.Permission", &deep);
        let deep = (0..10_000).fold(Any::default(), |inner, _| Any::pack(&inner));
        assert!(paths("google.protobuf.Any", &deep.encode_to_vec()).iter().all(|p| !p.is_empty()));
    }
}
