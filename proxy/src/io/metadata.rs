//! What configuration says of its parts, in metadata; and what filters say of a stream to later filters and to logs: Envoy's
//! dynamic metadata, and its filter state.
//!
//! Nothing is allocated for a stream of which no filter says anything, and what filters say often is a list of pointers to
//! texts made with the configuration: the structure that Envoy shows is made when somebody reads it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use xds_protos::prost_types::value::Kind;
use xds_protos::prost_types::{Struct, Value};

/// What configuration says of one of its parts, by namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said(BTreeMap<String, Struct>);

impl Said {
    /// What a message says; nothing if that is nothing.
    pub fn new(namespaces: impl IntoIterator<Item = (String, Struct)>) -> Option<Arc<Self>> {
        let said: BTreeMap<_, _> = namespaces.into_iter().collect();
        (!said.is_empty()).then(|| Arc::new(Self(said)))
    }

    /// The fields of one namespace.
    pub fn namespace(&self, name: &str) -> Option<&Struct> {
        self.0.get(name)
    }
}

/// Values by namespace, which is the name of the filter that wrote them, and key.
#[derive(Clone, Debug, Default)]
pub struct DynamicMetadata(Vec<Item>);

#[derive(Clone, Debug)]
struct Item {
    namespace: &'static str,
    key: Arc<str>,
    value: Datum,
}

/// One value.
#[derive(Clone, Debug)]
pub enum Datum {
    /// Text.
    Text(Arc<str>),
    /// True or false.
    Bool(bool),
    /// Anything else.
    Other(Box<Value>),
}

impl Datum {
    fn value(&self) -> Cow<'_, Value> {
        match self {
            Self::Text(text) => Cow::Owned(Value { kind: Some(Kind::StringValue((**text).to_owned())) }),
            Self::Bool(b) => Cow::Owned(Value { kind: Some(Kind::BoolValue(*b)) }),
            Self::Other(value) => Cow::Borrowed(value),
        }
    }
}

impl DynamicMetadata {
    /// Sets one value; others of the namespace stay.
    pub fn set(&mut self, namespace: &'static str, key: &Arc<str>, value: Datum) {
        match self.0.iter_mut().find(|i| i.namespace == namespace && i.key == *key) {
            Some(item) => item.value = value,
            None => self.0.push(Item { namespace, key: key.clone(), value }),
        }
    }

    /// Everything of a namespace.
    pub fn namespace(&self, namespace: &str) -> Option<Struct> {
        let items = self.0.iter().filter(|i| i.namespace == namespace);
        let fields: BTreeMap<_, _> =
            items.map(|i| ((*i.key).to_owned(), i.value.value().into_owned())).collect();
        (!fields.is_empty()).then_some(Struct { fields })
    }

    /// Everything, by namespace.
    pub fn all(&self) -> BTreeMap<String, Struct> {
        let mut all: BTreeMap<String, Struct> = BTreeMap::new();
        for item in &self.0 {
            let fields = &mut all.entry(item.namespace.to_owned()).or_default().fields;
            fields.insert((*item.key).to_owned(), item.value.value().into_owned());
        }
        all
    }

    /// The value at a path in a namespace.
    pub fn get<P: AsRef<str>>(&self, namespace: &str, path: &[P]) -> Option<Cow<'_, Value>> {
        let (first, rest) = path.split_first()?;
        let item = self.0.iter().find(|i| i.namespace == namespace && *i.key == *first.as_ref())?;
        match (&item.value, rest) {
            (datum, []) => Some(datum.value()),
            (Datum::Other(value), rest) => match &value.kind {
                Some(Kind::StructValue(inner)) => at_path(inner, rest).map(Cow::Borrowed),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What network filters say of a connection to its access log, while it lives.
#[derive(Debug, Default)]
pub struct Notes {
    /// Dynamic metadata.
    pub metadata: Mutex<DynamicMetadata>,
    /// Bytes that came and that a filter let go nowhere.
    pub refused: AtomicU64,
    /// Why a filter ended the connection, in Envoy's words.
    pub termination: Mutex<Option<Arc<str>>>,
    /// Why a service that was asked about the connection had it ended, in Envoy's words.
    pub unauthorized: Mutex<Option<&'static str>>,
    /// What filters decided about it.
    pub rulings: Mutex<Vec<Ruling>>,
}

impl Notes {
    /// Notes what a filter decided. One that decides over each piece alike says it once.
    pub fn ruled(&self, ruling: Ruling) {
        let mut all = self.rulings.lock();
        if all.len() < MOST_RULINGS && !all.contains(&ruling) {
            all.push(ruling);
        }
    }
}

/// As many decisions about one connection are kept: a filter that is asked again and again may not decide alike.
const MOST_RULINGS: usize = 16;

/// What kind of filter decides about connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruler {
    /// Policies.
    Policy,
    /// A service that was asked.
    Service,
    /// A limit.
    Limit,
}

/// What a filter decided about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Who did.
    pub by: Ruler,
    /// The connection goes on.
    pub allowed: bool,
    /// Rules that are only tried would have it so.
    pub tried: bool,
    /// The policy that decided.
    pub name: Option<Arc<str>>,
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
    use xds_protos::value::{struct_to_json, to_json};

    use super::*;

    #[test]
    fn values_are_found_by_namespace_and_path_and_written_as_json() {
        let mut metadata = DynamicMetadata::default();
        assert!(metadata.namespace("a").is_none());
        let inner =
            Struct { fields: [("n".to_owned(), Value { kind: Some(Kind::NumberValue(3.0)) })].into() };
        let inner = Value { kind: Some(Kind::StructValue(inner)) };
        metadata.set("a", &"s".into(), Datum::Other(Box::new(inner)));
        metadata.set("a", &"t".into(), Datum::Text("w".into()));
        metadata.set("a", &"t".into(), Datum::Text("x".into()));
        assert_eq!(to_json(&metadata.get("a", &["s", "n"]).unwrap()), 3);
        assert!(metadata.get("a", &["t", "n"]).is_none() && metadata.get("b", &["t"]).is_none());
        let namespace = metadata.namespace("a").unwrap();
        assert_eq!(struct_to_json(&namespace).to_string(), r#"{"s":{"n":3},"t":"x"}"#);
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
