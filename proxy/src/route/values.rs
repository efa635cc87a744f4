//! Matching of metadata: `envoy.type.matcher.v3.MetadataMatcher` and what its values must be.

use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

use super::text::StringMatch;
use crate::io::DynamicMetadata;
use crate::io::metadata::at_path;

/// What a value must be.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// Null, and there.
    Null,
    /// This number.
    Number(f64),
    /// At least the first and less than the second.
    Range(f64, f64),
    /// Text of this kind.
    Text(StringMatch),
    /// True or false.
    Bool(bool),
    /// There (true); false matches nothing, as in Envoy.
    Present(bool),
    /// A list with a value of this kind.
    OneOf(Box<ValueMatch>),
    /// One of these.
    Any(Vec<ValueMatch>),
}

impl ValueMatch {
    /// Whether a value is of this kind; one that is not there is none.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|v| v.kind.as_ref());
        match (self, kind) {
            (Self::Any(any), _) => any.iter().any(|m| m.matches(value)),
            (Self::Present(present), kind) => *present && kind.is_some(),
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Number(n), Some(Kind::NumberValue(v))) => n == v,
            (Self::Range(from, to), Some(Kind::NumberValue(v))) => v >= from && v < to,
            (Self::Text(text), Some(Kind::StringValue(v))) => text.matches(v.as_bytes()),
            (Self::Bool(b), Some(Kind::BoolValue(v))) => b == v,
            (Self::OneOf(one), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|v| one.matches(Some(v)))
            }
            _ => false,
        }
    }
}

/// A value in some namespace's metadata, and what it must be.
#[derive(Clone, Debug)]
pub struct MetadataMatch {
    /// The namespace: a filter's name.
    pub namespace: Box<str>,
    /// Keys, from the outside in.
    pub path: Vec<Box<str>>,
    /// What the value must be.
    pub value: ValueMatch,
    /// It must not.
    pub invert: bool,
}

impl MetadataMatch {
    /// Whether what filters said obeys.
    pub fn matches_dynamic(&self, metadata: &DynamicMetadata) -> bool {
        self.value.matches(metadata.get(&self.namespace, &self.path).as_deref()) != self.invert
    }

    /// Whether configured metadata obeys. `find` gives a namespace.
    pub fn matches<'a>(&self, find: impl FnOnce(&str) -> Option<&'a Struct>) -> bool {
        let value = find(&self.namespace).and_then(|fields| at_path(fields, &self.path));
        self.value.matches(value) != self.invert
    }
}
