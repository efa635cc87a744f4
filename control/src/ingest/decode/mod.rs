//! From a [`Node`] to a typed specification, with the path and line of everything that does not fit.
//!
//! The types derive `Deserialize`; this deserializer knows, from the derive, which fields a type has. A field that it does
//! not have is a finding of its own (all of them are reported, not just the first), never silently dropped.

mod misfit;
pub(crate) mod shape;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use misfit::Misfit;

use super::diagnostic::{Finding, Findings, Severity};
use super::suggest;
use super::tree::{Entry, Node, Value};

/// What is known about a field beyond the type that it is decoded into: given the dotted path of its parent, its name, and
/// whether the type has it.
pub(super) type Advice<'a> = &'a dyn Fn(&str, &str, bool) -> Option<Counsel>;

/// What to do with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Counsel {
    /// Leave it out: it has no bearing on a mesh.
    Ignore,
    /// Refuse it, for this reason; with this to do.
    Refuse(String, String),
}

/// Decodes `node` as a `T`. `root` is the path at which it stands in its document.
///
/// `None` means that the value does not fit; why is among `findings`, where unknown fields are as well.
pub(super) fn decode<'de, T: de::Deserialize<'de>>(
    node: &'de Node,
    root: &str,
    advice: Advice<'_>,
    findings: &mut Findings,
) -> Option<T> {
    let context = Context { advice, findings: RefCell::new(Vec::new()) };
    let path = Path { parent: None, segment: Segment::Root(root) };
    let result = T::deserialize(At { node, path: &path, context: &context });
    findings.0.append(&mut context.findings.into_inner());
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            findings.0.push(Finding {
                severity: Severity::Error,
                path: error.path.unwrap_or_else(|| root.to_owned()),
                line: Some(error.line.unwrap_or(node.line)),
                reason: error.reason,
                help: error.help,
            });
            None
        }
    }
}

struct Context<'a> {
    advice: Advice<'a>,
    findings: RefCell<Vec<Finding>>,
}

/// Where we are, as a list through the stack.
#[derive(Clone, Copy)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    segment: Segment<'p>,
}

#[derive(Clone, Copy)]
enum Segment<'p> {
    Root(&'p str),
    Field(&'p str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root(root) => f.write_str(root),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Field(name) => {
                let at_start = self.parent.is_some_and(|parent| {
                    parent.parent.is_none() && matches!(parent.segment, Segment::Root(""))
                });
                write!(f, "{}{name}", if at_start { "" } else { "." })
            }
        }
    }
}

/// The deserializer of one node.
struct At<'de, 'p> {
    node: &'de Node,
    path: &'p Path<'p>,
    context: &'p Context<'p>,
}

impl<'de> At<'de, '_> {
    fn wrong(&self, expected: &str) -> Misfit {
        let help = match (&self.node.value, expected) {
            (Value::Int(_) | Value::Float(_) | Value::Bool(_), "a text") => {
                Some("put it in quotes".to_owned())
            }
            (Value::Text(text), "true or false") if matches!(text.as_str(), "true" | "false") => {
                Some("leave out the quotes".to_owned())
            }
            (Value::Text(text), "a number") if text.parse::<f64>().is_ok() => {
                Some("leave out the quotes".to_owned())
            }
            (Value::Map(_), "a list") => Some("begin its entries with \"- \"".to_owned()),
            _ => None,
        };
        let reason = format!("expected {expected}, found {}", self.node.value.describe());
        Misfit { reason, help, ..Misfit::default() }.at(self.path, self.node.line)
    }

    fn located<T>(&self, result: Result<T, Misfit>) -> Result<T, Misfit> {
        result.map_err(|misfit| misfit.at(self.path, self.node.line))
    }

    fn visit_number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let result = match self.node.value {
            Value::Int(number) => match u64::try_from(number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(number),
            },
            Value::Float(number) => visitor.visit_f64(number),
            _ => return Err(self.wrong("a number")),
        };
        self.located(result)
    }

    fn visit_text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Text(text) => self.located(visitor.visit_borrowed_str(text)),
            _ => Err(self.wrong("a text")),
        }
    }

    fn visit_fields<V: Visitor<'de>>(
        self,
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => return Err(self.wrong("an object")),
        };
        let (path, context) = (self.path, self.context);
        let access = Fields { entries: entries.iter(), current: None, fields, path, context };
        self.located(visitor.visit_map(access))
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
            self.visit_number(visitor)
        })*
    };
}

macro_rules! texts {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
            self.visit_text(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for At<'de, '_> {
    type Error = Misfit;

    numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
    deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 }
    texts! { deserialize_str deserialize_string deserialize_char deserialize_identifier deserialize_bytes
    deserialize_byte_buf }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Null => self.located(visitor.visit_unit()),
            Value::Bool(value) => self.located(visitor.visit_bool(*value)),
            Value::Int(_) | Value::Float(_) => self.visit_number(visitor),
            Value::Text(_) => self.visit_text(visitor),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.value {
            Value::Bool(value) => self.located(visitor.visit_bool(value)),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.value {
            Value::Null => visitor.visit_unit(),
            _ => Err(self.wrong("nothing")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let items = match &self.node.value {
            Value::List(items) => items.as_slice(),
            Value::Null => &[],
            _ => return Err(self.wrong("a list")),
        };
        let items = Items { items: items.iter().enumerate(), path: self.path, context: self.context };
        self.located(visitor.visit_seq(items))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.visit_fields(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.visit_fields(Some(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Text(text) => self.located(visitor.visit_enum(text.as_str().into_deserializer())),
            _ => Err(self.wrong("a text")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    path: &'p Path<'p>,
    context: &'p Context<'p>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path { parent: Some(self.path), segment: Segment::Index(index) };
        seed.deserialize(At { node, path: &path, context: self.context })
            .map(Some)
            .map_err(|misfit| misfit.at(&path, node.line))
    }
}

struct Fields<'de, 'p> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
    /// The fields of a struct; `None` for a map with free keys.
    fields: Option<&'static [&'static str]>,
    path: &'p Path<'p>,
    context: &'p Context<'p>,
}

impl Fields<'_, '_> {
    fn unknown(&self, entry: &Entry, fields: &'static [&'static str]) {
        let help = match suggest::closest(&entry.key, fields.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("the fields here are {}", fields.join(", ")),
        };
        self.refuse(entry, "unknown field".to_owned(), help);
    }

    fn refuse(&self, entry: &Entry, reason: String, help: String) {
        let path = Path { parent: Some(self.path), segment: Segment::Field(&entry.key) };
        self.context.findings.borrow_mut().push(Finding {
            severity: Severity::Error,
            path: path.to_string(),
            line: Some(entry.line),
            reason,
            help: (!help.is_empty()).then_some(help),
        });
    }
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        while let Some(entry) = self.entries.next() {
            if let Some(fields) = self.fields {
                let known = fields.contains(&entry.key.as_str());
                match (self.context.advice)(&self.path.to_string(), &entry.key, known) {
                    Some(Counsel::Ignore) => continue,
                    Some(Counsel::Refuse(reason, help)) => {
                        self.refuse(entry, reason, help);
                        continue;
                    }
                    None if known => {}
                    None => {
                        self.unknown(entry, fields);
                        continue;
                    }
                }
                // A field that is there but empty is a field that is not there.
                if entry.node.value == Value::Null {
                    continue;
                }
            }
            self.current = Some(entry);
            let path = Path { parent: Some(self.path), segment: Segment::Field(&entry.key) };
            return seed
                .deserialize(Key(&entry.key))
                .map(Some)
                .map_err(|misfit| misfit.at(&path, entry.line));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let entry = self.current.take().ok_or_else(|| de::Error::custom("a value without its key"))?;
        let path = Path { parent: Some(self.path), segment: Segment::Field(&entry.key) };
        seed.deserialize(At { node: &entry.node, path: &path, context: self.context })
            .map_err(|misfit| misfit.at(&path, entry.line))
    }
}

/// A key: a text that may stand for a number (ports).
struct Key<'de>(&'de str);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u16(number),
            Err(_) => {
                Err(de::Error::custom(format_args!("{:?} is no port; ports go from 1 to 65535", self.0)))
            }
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
