//! YAML as a tree whose every node knows its line: the first form of a document, before its kind is known.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    /// From 1; 0 when unknown.
    pub(super) line: u32,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A whole number.
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<Entry>),
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key.
    pub(super) line: u32,
    pub(super) node: Node,
}

/// Why a text is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) reason: String,
}

/// Deepest nesting of a document. Istio's objects stay below 16; each level costs the reading thread's stack.
const MAX_DEPTH: usize = 32;

/// Reads all documents of a text; empty documents are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: 100_000,
            max_nodes: 10_000_000,
            max_events: 30_000_000,
        },
    };
    let documents: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| SyntaxError {
            line: error.location().map_or(0, |location| line_number(location.line())),
            reason: reason_of(&error),
        })?;
    Ok(documents.into_iter().map(Node::from).filter(|node| node.value != Value::Null).collect())
}

/// The parser's message on one line, without the position that stands elsewhere.
fn reason_of(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("the text is not YAML");
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.find(" at line ") {
        Some(position) if position > 0 => line[..position].trim_end_matches([',', ':']).to_owned(),
        _ => line.to_owned(),
    }
}

fn line_number(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { value: spanned.value, line: line_number(spanned.referenced.line()) }
    }
}

impl Node {
    /// The field `key`, if this is an object that has it and it is not null.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key && entry.node.value != Value::Null)
    }

    /// The fields of an object; none for any other value.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The text of a string.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a dotted path such as `spec.http[0].route`, or of as much of it as exists.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        let mut line = self.line;
        let mut node = self;
        let mut rest = path;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let Some((index, after)) = after.split_once(']') else { break };
                let Value::List(items) = &node.value else { break };
                let Some(item) = index.parse::<usize>().ok().and_then(|index| items.get(index)) else {
                    break;
                };
                (node, line, rest) = (item, item.line, after.strip_prefix('.').unwrap_or(after));
                continue;
            }
            // Keys may hold dots themselves (labels), so the longest key that fits is taken.
            let found = node
                .entries()
                .iter()
                .filter(|entry| {
                    rest.strip_prefix(entry.key.as_str())
                        .is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
                })
                .max_by_key(|entry| entry.key.len());
            let Some(entry) = found else { break };
            let after = &rest[entry.key.len()..];
            (node, line, rest) = (&entry.node, entry.line, after.strip_prefix('.').unwrap_or(after));
        }
        line
    }
}

/// What an API server sends stands on no line.
impl From<serde_json::Value> for Node {
    fn from(json: serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(number) => Value::Int(number),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => Value::List(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(fields) => Value::Map(
                fields.into_iter().map(|(key, value)| Entry { key, line: 0, node: value.into() }).collect(),
            ),
        };
        Self { value, line: 0 }
    }
}

impl Value {
    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Int(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) if text.chars().count() <= 60 => format!("the text {text:?}"),
            Self::Text(_) => "a text".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "an object".to_owned(),
        }
    }
}

/// Content only: equal trees hash alike wherever they stand. The order of an object's fields does not count.
impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null => {}
            Self::Bool(value) => value.hash(state),
            Self::Int(value) => value.hash(state),
            Self::Float(value) => value.to_bits().hash(state),
            Self::Text(text) => text.hash(state),
            Self::List(items) => {
                items.len().hash(state);
                items.iter().for_each(|item| item.value.hash(state));
            }
            Self::Map(entries) => {
                let mut sorted: Vec<&Entry> = entries.iter().collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                sorted.len().hash(state);
                for entry in sorted {
                    entry.key.hash(state);
                    entry.node.value.hash(state);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                // Beyond i64 no field of ours has room; as a float it is refused with its value.
                #[allow(clippy::cast_precision_loss, reason = "it is refused anyway, and shown")]
                Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Value, E> {
                Ok(Value::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<Spanned<Value>>()? {
                    items.push(Node::from(item));
                }
                Ok(Value::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let node = Node::from(map.next_value::<Spanned<Value>>()?);
                    entries.push(Entry { line: line_number(key.referenced.line()), key: key.value, node });
                }
                Ok(Value::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_line() {
        let text =
            "a: 1\n---\nspec:\n  http:\n    - name: x\n      route:\n        - weight: 5\n  8080: on\n";
        let documents = parse(text).unwrap();
        assert_eq!(documents.len(), 2);
        let second = &documents[1];
        assert_eq!(second.line, 3);
        assert_eq!(second.line_of("spec.http"), 4);
        assert_eq!(second.line_of("spec.http[0].name"), 5);
        assert_eq!(second.line_of("spec.http[0].route[0].weight"), 7);
        assert_eq!(second.line_of("spec.http[0].route[7].weight"), 6);
        let odd = second.get("spec").and_then(|spec| spec.get("8080"));
        assert_eq!(odd.and_then(Node::text), Some("on"), "YAML 1.1 booleans are plain text");
    }

    #[test]
    fn a_key_with_dots_is_one_key() {
        let documents = parse("metadata:\n  labels:\n    a.b/c: x\n    a: y\n").unwrap();
        assert_eq!(documents[0].line_of("metadata.labels.a.b/c"), 3);
        assert_eq!(documents[0].line_of("metadata.labels.a"), 4);
    }

    #[test]
    fn broken_yaml_names_its_line() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!((2..=4).contains(&error.line), "{error:?}");
        let error = parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!(error.line, 2, "{error:?}");
        assert!(error.reason.to_lowercase().contains("duplicate"), "{error:?}");
    }

    #[test]
    fn deep_nesting_is_refused_before_it_costs_the_stack() {
        for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000)] {
            assert!(parse(&text).is_err());
        }
        let nested = |depth: usize| "{a: ".repeat(depth) + "1" + &"}".repeat(depth);
        assert!(parse(&nested(MAX_DEPTH - 1)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).is_err());
    }

    #[test]
    fn the_order_of_fields_does_not_change_a_hash() {
        let hash = |text: &str| {
            let mut hasher = std::hash::DefaultHasher::new();
            parse(text).unwrap()[0].value.hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash("a: 1\nb: 2\n"), hash("# note\n\nb: 2\na: 1\n"));
        assert_ne!(hash("a: [1, 2]"), hash("a: [2, 1]"));
    }
}
