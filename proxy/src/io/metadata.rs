//! What filters say of a stream to later filters and to logs: Envoy's dynamic metadata, and its filter state.
//!
//! Nothing is allocated for a stream of which no filter says anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

/// Values by namespace, which is the name of the filter that wrote them, and key.
#[derive(Clone, Debug, Default)]
pub struct DynamicMetadata(BTreeMap<&'static str, Struct>);

impl DynamicMetadata {
    /// Sets one value; others of the namespace stay.
    pub fn set(&mut self, namespace: &'static str, key: impl Into<String>, value: Kind) {
        let fields = &mut self.0.entry(namespace).or_default().fields;
        fields.insert(key.into(), Value { kind: Some(value) });
    }

    /// Everything of a namespace.
    pub fn namespace(&self, namespace: &str) -> Option<&Struct> {
        self.0.get(namespace)
    }
}

/// What network filters say of a connection to its access log, while it lives.
#[derive(Debug, Default)]
pub struct Notes {
    /// Dynamic metadata.
    pub metadata: Mutex<DynamicMetadata>,
    /// Why a filter ended the connection, in Envoy's words.
    pub termination: Mutex<Option<Arc<str>>>,
}

/// The value at a path inside of a struct; none where a step leads nowhere.
pub fn at_path<'a, P: AsRef<str>>(fields: &'a Struct, path: &[P]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let mut found = fields.fields.get(first.as_ref())?;
    for key in rest {
        let Some(Kind::StructValue(inner)) = &found.kind else { return None };
        found = inner.fields.get(key.as_ref())?;
    }
    Some(found)
}

/// A value as JSON.
pub fn json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        // A number without a fraction is written without one, as protobuf's JSON does.
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => (*n as i64).into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::StringValue(s)) => s.clone().into(),
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::StructValue(s)) => json_of(s),
        Some(Kind::ListValue(l)) => l.values.iter().map(json).collect(),
    }
}

/// A struct as JSON, its keys sorted.
pub fn json_of(fields: &Struct) -> serde_json::Value {
    fields.fields.iter().map(|(k, v)| (k.clone(), json(v))).collect::<serde_json::Map<_, _>>().into()
}

/// Named objects of a connection or a request, as text. A connection's are seen by all its requests.
#[derive(Clone, Debug, Default)]
pub struct FilterState(Option<Arc<BTreeMap<Arc<str>, Entry>>>);

#[derive(Clone, Debug)]
struct Entry {
    text: Arc<str>,
    read_only: bool,
}

impl FilterState {
    /// Sets an object, unless one that may not be replaced has its name.
    pub fn set(&mut self, key: &Arc<str>, text: impl Into<Arc<str>>, read_only: bool) {
        let map = Arc::make_mut(self.0.get_or_insert_default());
        if map.get(key).is_none_or(|e| !e.read_only) {
            map.insert(key.clone(), Entry { text: text.into(), read_only });
        }
    }

    /// The text of an object.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.as_ref()?.get(key).map(|e| &*e.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_namespace_and_path_and_written_as_json() {
        let mut metadata = DynamicMetadata::default();
        assert!(metadata.namespace("a").is_none());
        let inner =
            Struct { fields: [("n".to_owned(), Value { kind: Some(Kind::NumberValue(3.0)) })].into() };
        metadata.set("a", "s", Kind::StructValue(inner));
        metadata.set("a", "t", Kind::StringValue("x".into()));
        let namespace = metadata.namespace("a").unwrap();
        assert_eq!(json(at_path(namespace, &["s", "n"]).unwrap()), 3);
        assert!(at_path(namespace, &["t", "n"]).is_none());
        assert_eq!(json_of(namespace).to_string(), r#"{"s":{"n":3},"t":"x"}"#);
    }

    #[test]
    fn an_object_that_is_read_only_stays() {
        let (mut state, key) = (FilterState::default(), Arc::from("k"));
        state.set(&key, "1", false);
        state.set(&key, "2", true);
        state.set(&key, "3", false);
        assert_eq!(state.get("k"), Some("2"));
        assert_eq!(state.get("other"), None);
    }
}
