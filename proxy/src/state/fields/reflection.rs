//! Holds the table against the schema: no stale names, and no field of an accepted message without an answer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;

use xds_protos::prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::table::{self, Treatment};
use super::*;

/// What arrives from outside: the resources, and a bootstrap file.
const ROOTS: [&str; 7] = [
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.config.core.v3.TypedExtensionConfig",
    "envoy.config.bootstrap.v3.Bootstrap",
];

fn message(name: &str) -> MessageDescriptor {
    xds_protos::pool().get_message_by_name(name).unwrap_or_else(|| panic!("{name} is not in the schema"))
}

#[test]
fn the_table_names_only_what_the_schema_has() {
    for (name, fields) in table::get().messages() {
        let kind = message(name);
        for (field, treatment) in fields {
            let field =
                kind.get_field_by_name(field).unwrap_or_else(|| panic!("{name} has no field {field}"));
            if let (Treatment::Only(values), Kind::Enum(e)) = (treatment, field.kind()) {
                for value in values {
                    assert!(
                        e.get_value_by_name(value).is_some(),
                        "{name}.{} has no value {value}",
                        field.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_any_that_is_accepted_says_which_types_it_takes() {
    for (name, fields) in table::get().messages() {
        for field in message(name).fields() {
            let holds_any = match field.kind() {
                Kind::Message(m) if field.is_map() => {
                    matches!(m.map_entry_value_field().kind(), Kind::Message(v) if v.full_name() == "google.protobuf.Any")
                }
                Kind::Message(m) => m.full_name() == "google.protobuf.Any",
                _ => false,
            };
            let bare = fields.get(field.name()) == Some(&Treatment::Honoured);
            assert!(!(holds_any && bare), "{} needs `-> types`", field.full_name());
        }
    }
}

/// A field that is honoured is read by the code that compiles it; one that nothing names does nothing.
#[test]
fn every_honoured_field_is_read() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let words: BTreeSet<&str> =
        sources.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let mut unread = Vec::new();
    for (name, fields) in table::get().messages() {
        let kind = message(name);
        for (field, treatment) in fields {
            // What may have few values, or few types, is honoured by refusing all others.
            if *treatment != Treatment::Honoured || READ_ELSEWHERE.contains(&field.as_str()) {
                continue;
            }
            let descriptor = kind.get_field_by_name(field).unwrap();
            // A member of a oneof is a variant, and named as variants are.
            let in_oneof = descriptor.containing_oneof().is_some_and(|o| o.fields().len() > 1);
            let variant: String =
                field.split('_').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
            let read = words.contains(field.as_str()) || (in_oneof && words.contains(variant.as_str()));
            if !read {
                unread.push(format!("{name}.{field}"));
            }
        }
    }
    assert_eq!(unread, [""; 0], "honoured by the table, and read by nothing");
}

/// Honoured by what they may hold: endpoints that come by ADS, a round robin without settings of its own, request ids that
/// are UUIDs.
const READ_ELSEWHERE: [&str; 3] = ["eds_config", "round_robin_lb_config", "request_id_extension"];

/// The crate's sources without this table.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("state/fields") {
            text += &sources(&path);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}

/// One step from a message to one inside it.
#[derive(Clone)]
enum Step {
    Field(FieldDescriptor),
    /// Into an `Any` field, as this type.
    Any(FieldDescriptor, MessageDescriptor),
}

/// Every accepted message that can be reached, with the steps to it from a root.
fn reachable() -> Vec<(&'static str, Vec<Step>, MessageDescriptor)> {
    let table = table::get();
    let mut inside = BTreeSet::new();
    let mut found = Vec::new();
    let mut queue: VecDeque<_> = ROOTS.into_iter().map(|root| (root, Vec::new(), message(root))).collect();
    while let Some((root, steps, kind)) = queue.pop_front() {
        if !inside.insert(kind.full_name().to_owned()) {
            continue;
        }
        for field in kind.fields() {
            let types = match table.treatment(kind.full_name(), field.name()) {
                Some(Treatment::Honoured) => None,
                Some(Treatment::Types(types)) => Some(types),
                _ => continue,
            };
            let Kind::Message(mut inner) = field.kind() else { continue };
            if field.is_map() {
                let Kind::Message(value) = inner.map_entry_value_field().kind() else { continue };
                inner = value;
            }
            let next = |step, kind| (root, steps.iter().cloned().chain([step]).collect::<Vec<_>>(), kind);
            if inner.full_name() == "google.protobuf.Any" {
                for name in types.into_iter().flatten() {
                    queue.push_back(next(Step::Any(field.clone(), message(name)), message(name)));
                }
            } else if inner.package_name() != "google.protobuf" {
                queue.push_back(next(Step::Field(field), inner));
            }
        }
        found.push((root, steps, kind));
    }
    found
}

/// A message that holds `inner` at the end of `steps`, and the path to it.
fn nest(root: &MessageDescriptor, steps: &[Step], inner: DynamicMessage) -> (DynamicMessage, String) {
    let Some((step, rest)) = steps.split_first() else { return (inner, String::new()) };
    let (field, child, rest_path) = match step {
        Step::Field(field) => {
            let kind = element(field);
            let (child, path) = nest(&kind, rest, inner);
            (field, child, path)
        }
        Step::Any(field, kind) => {
            let (child, path) = nest(kind, rest, inner);
            let mut any = DynamicMessage::new(element(field));
            any.set_field_by_name(
                "type_url",
                Value::String(format!("type.googleapis.com/{}", kind.full_name())),
            );
            any.set_field_by_name("value", Value::Bytes(child.encode_to_vec().into()));
            (field, any, path)
        }
    };
    let mut outer = DynamicMessage::new(root.clone());
    outer.set_field(field, many(field, Value::Message(child)));
    let path = path_of(field);
    (outer, if rest_path.is_empty() { path } else { format!("{path}.{rest_path}") })
}

/// The message in a field, also in a map's.
fn element(field: &FieldDescriptor) -> MessageDescriptor {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => match entry.map_entry_value_field().kind() {
            Kind::Message(kind) => kind,
            _ => panic!("{} holds no message", field.full_name()),
        },
        Kind::Message(kind) => kind,
        _ => panic!("{} holds no message", field.full_name()),
    }
}

fn many(field: &FieldDescriptor, value: Value) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!() };
        let key = match entry.map_entry_key_field().kind() {
            Kind::String => MapKey::String("k".into()),
            Kind::Uint32 => MapKey::U32(1),
            other => panic!("a map by {other:?}"),
        };
        Value::Map(HashMap::from([(key, value)]))
    } else if field.is_list() {
        Value::List(vec![value])
    } else {
        value
    }
}

fn path_of(field: &FieldDescriptor) -> String {
    let packed = field.is_packed();
    match field.name() {
        name if field.is_map() => format!("{name}[\"k\"]"),
        name if field.is_list() && !packed => format!("{name}[0]"),
        name => name.to_owned(),
    }
}

/// A value that is not the field's default.
fn some_value(kind: &Kind) -> Value {
    match kind {
        Kind::Double => Value::F64(1.5),
        Kind::Float => Value::F32(1.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(7),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(7),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(7),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(7),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("x".into()),
        Kind::Bytes => Value::Bytes(bytes::Bytes::from_static(b"x")),
        Kind::Enum(e) => Value::EnumNumber(e.values().map(|v| v.number()).find(|n| *n != 0).unwrap_or(1)),
        Kind::Message(m) if m.full_name() == "google.protobuf.BoolValue" => {
            let mut wrapped = DynamicMessage::new(m.clone());
            wrapped.set_field_by_name("value", Value::Bool(true));
            Value::Message(wrapped)
        }
        Kind::Message(m) => Value::Message(DynamicMessage::new(m.clone())),
    }
}

#[test]
fn every_field_that_can_arrive_is_in_the_table_or_refused_with_its_path() {
    let table = table::get();
    let mut fields = 0;
    for (root, steps, kind) in reachable() {
        for field in kind.fields() {
            let value_kind = match field.kind() {
                Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
                other => other,
            };
            let mut inner = DynamicMessage::new(kind.clone());
            inner.set_field(&field, many(&field, some_value(&value_kind)));
            let (outer, path) = nest(&message(root), &steps, inner);
            let path = if path.is_empty() { path_of(&field) } else { format!("{path}.{}", path_of(&field)) };
            let errors = unsupported(table, root, &outer.encode_to_vec());
            let refused = errors.iter().any(|e| e.path == path);
            match table.treatment(kind.full_name(), field.name()) {
                None => {
                    assert!(refused, "{root}: {path} is not in the table and was not refused: {errors:?}")
                }
                Some(Treatment::Only(_)) => {}
                Some(_) => {
                    assert!(errors.is_empty(), "{root}: {path} is in the table and was refused: {errors:?}")
                }
            }
            fields += 1;
        }
    }
    assert!(fields > 500, "only {fields} fields were reached");
}

#[test]
fn every_message_of_the_table_can_arrive() {
    let arriving: BTreeSet<_> =
        reachable().into_iter().map(|(_, _, kind)| kind.full_name().to_owned()).collect();
    let idle: Vec<_> = table::get().messages().into_keys().filter(|name| !arriving.contains(*name)).collect();
    assert!(idle.is_empty(), "no honoured field leads to {idle:?}");
}

#[test]
fn a_message_that_an_honoured_field_holds_is_in_the_table() {
    let missing: BTreeSet<_> = reachable()
        .into_iter()
        .map(|(_, _, kind)| kind.full_name().to_owned())
        .filter(|name| !table::get().knows(name))
        .filter(|name| message(name).fields().len() > 0)
        .collect();
    assert!(missing.is_empty(), "every field of these is refused, though they are reached: {missing:#?}");
}
