//! From the options of a message's fields to rules.

use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, OneofDescriptor, Value};

use super::rule::{Header, Range, Rule};

/// What holds for one message.
#[derive(Debug, Default)]
pub(super) struct MessageRules {
    pub(super) fields: Vec<FieldRules>,
    pub(super) required_oneofs: Vec<OneofDescriptor>,
    /// The message asks not to be validated.
    pub(super) disabled: bool,
    /// Rules in the schema that this crate does not have; a test holds this empty.
    pub(super) unknown: Vec<String>,
}

/// What holds for one field.
#[derive(Debug)]
pub(super) struct FieldRules {
    pub(super) descriptor: FieldDescriptor,
    pub(super) required: bool,
    /// What is inside is not validated.
    pub(super) skip: bool,
    pub(super) rule: Option<Rule>,
}

impl MessageRules {
    pub(super) fn of(kind: &MessageDescriptor) -> Self {
        let mut rules = Self {
            disabled: extension(&kind.options(), "disabled").is_some_and(|v| v.as_bool() == Some(true)),
            ..Self::default()
        };
        for oneof in kind.oneofs() {
            if extension(&oneof.options(), "required").is_some_and(|v| v.as_bool() == Some(true)) {
                rules.required_oneofs.push(oneof);
            }
        }
        for descriptor in kind.fields() {
            let mut field = FieldRules { descriptor, required: false, skip: false, rule: None };
            if let Some(Value::Message(options)) = extension(&field.descriptor.options(), "rules") {
                let is_true = |part: &str, flag: &str| {
                    message(&options, part).and_then(|m| get(&m, flag)).and_then(|v| v.as_bool())
                        == Some(true)
                };
                // Of a oneof, it says that the member is not empty when it is the chosen one.
                let of_oneof = field.descriptor.containing_oneof().is_some_and(|o| !o.is_synthetic());
                field.required = !of_oneof
                    && ["message", "duration", "timestamp", "any"].iter().any(|p| is_true(p, "required"));
                field.skip = is_true("message", "skip");
                match rule(&options) {
                    Ok(rule) => field.rule = rule.map(|r| r.of_enum(&field.descriptor)),
                    Err(what) => rules.unknown.push(format!("{}: {what}", field.descriptor.full_name())),
                }
            }
            rules.fields.push(field);
        }
        rules
    }
}

fn extension(options: &DynamicMessage, name: &str) -> Option<Value> {
    options
        .extensions()
        .find(|(e, _)| e.package_name() == "validate" && e.name() == name)
        .map(|(_, v)| v.clone())
}

fn get(message: &DynamicMessage, name: &str) -> Option<Value> {
    message.has_field_by_name(name).then(|| message.get_field_by_name(name).map(|v| v.into_owned())).flatten()
}

fn message(outer: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    match get(outer, name) {
        Some(Value::Message(m)) => Some(m),
        _ => None,
    }
}

/// The rule in a `FieldRules`; an error names one that is not implemented.
fn rule(options: &DynamicMessage) -> Result<Option<Rule>, String> {
    let mut found = None;
    for (part, value) in options.fields() {
        let Value::Message(rules) = value else { continue };
        found = Some(match part.name() {
            "message" | "any" | "timestamp" => {
                only(rules, &["required", "skip"])?;
                continue;
            }
            "string" => string(rules)?,
            "bytes" => {
                only(rules, &["min_len", "max_len"])?;
                Rule::Bytes { min: length(rules, "min_len"), max: length(rules, "max_len") }
            }
            "bool" => {
                only(rules, &["const"])?;
                Rule::Bool(get(rules, "const").and_then(|v| v.as_bool()))
            }
            "enum" => {
                only(rules, &["defined_only", "not_in"])?;
                Rule::Enum {
                    kind: None,
                    defined_only: get(rules, "defined_only").and_then(|v| v.as_bool()) == Some(true),
                    not_in: list(rules, "not_in").iter().filter_map(Value::as_i32).collect(),
                }
            }
            "repeated" => {
                only(rules, &["min_items", "max_items", "unique", "items"])?;
                Rule::List {
                    min: length(rules, "min_items"),
                    max: length(rules, "max_items"),
                    unique: get(rules, "unique").and_then(|v| v.as_bool()) == Some(true),
                    items: inner(rules, "items")?,
                }
            }
            "map" => {
                only(rules, &["min_pairs", "max_pairs", "keys"])?;
                Rule::Map {
                    min: length(rules, "min_pairs"),
                    max: length(rules, "max_pairs"),
                    keys: inner(rules, "keys")?,
                }
            }
            "duration" => {
                only(rules, &["required", "lt", "lte", "gt", "gte"])?;
                if ["lt", "lte", "gt", "gte"].iter().all(|n| !rules.has_field_by_name(n)) {
                    continue;
                }
                Rule::Duration(range(rules))
            }
            "double" | "float" | "int32" | "int64" | "uint32" | "uint64" => {
                only(rules, &["lt", "lte", "gt", "gte", "ignore_empty"])?;
                Rule::Number(range(rules))
            }
            other => return Err(format!("rules for {other} are not implemented")),
        });
    }
    Ok(found)
}

fn inner(rules: &DynamicMessage, name: &str) -> Result<Option<Box<Rule>>, String> {
    Ok(message(rules, name).map(|rules| rule(&rules)).transpose()?.flatten().map(Box::new))
}

fn string(rules: &DynamicMessage) -> Result<Rule, String> {
    only(
        rules,
        &[
            "min_len",
            "max_len",
            "min_bytes",
            "max_bytes",
            "pattern",
            "prefix",
            "suffix",
            "in",
            "well_known_regex",
            "strict",
            "ignore_empty",
        ],
    )?;
    let text = |name: &str| get(rules, name).and_then(|v| v.as_str().map(str::to_owned));
    let strict = get(rules, "strict").and_then(|v| v.as_bool()) != Some(false);
    Ok(Rule::Text {
        min_len: length(rules, "min_len"),
        max_len: length(rules, "max_len"),
        min_bytes: length(rules, "min_bytes"),
        max_bytes: length(rules, "max_bytes"),
        pattern: text("pattern").map(|p| regex::Regex::new(&p).map_err(|e| e.to_string())).transpose()?,
        prefix: text("prefix").unwrap_or_default(),
        suffix: text("suffix").unwrap_or_default(),
        one_of: list(rules, "in").iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        // KnownRegex: HTTP_HEADER_NAME = 1, HTTP_HEADER_VALUE = 2.
        header: match (get(rules, "well_known_regex").and_then(|v| v.as_enum_number()), strict) {
            (Some(1), true) => Some(Header::Name),
            (Some(2), true) => Some(Header::Value),
            (Some(1 | 2), false) => Some(Header::Line),
            _ => None,
        },
        ignore_empty: get(rules, "ignore_empty").and_then(|v| v.as_bool()) == Some(true),
    })
}

fn range(rules: &DynamicMessage) -> Range {
    let bound = |name: &str| get(rules, name).as_ref().and_then(super::rule::number);
    Range {
        low: bound("gte").map(|n| (n, true)).or_else(|| bound("gt").map(|n| (n, false))),
        high: bound("lte").map(|n| (n, true)).or_else(|| bound("lt").map(|n| (n, false))),
        ignore_empty: get(rules, "ignore_empty").and_then(|v| v.as_bool()) == Some(true),
    }
}

fn length(rules: &DynamicMessage, name: &str) -> Option<usize> {
    get(rules, name).and_then(|v| v.as_u64()).and_then(|n| usize::try_from(n).ok())
}

fn list(rules: &DynamicMessage, name: &str) -> Vec<Value> {
    get(rules, name).and_then(|v| v.as_list().map(<[Value]>::to_vec)).unwrap_or_default()
}

fn only(rules: &DynamicMessage, known: &[&str]) -> Result<(), String> {
    match rules.fields().find(|(f, _)| !known.contains(&f.name())) {
        Some((field, _)) => Err(format!("the rule {} is not implemented", field.full_name())),
        None => Ok(()),
    }
}
