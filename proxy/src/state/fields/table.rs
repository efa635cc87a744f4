//! The table, as data.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use super::parse;

/// The texts, by area.
pub(super) const TEXTS: [(&str, &str); 9] = [
    ("listener", include_str!("tables/listener.txt")),
    ("network", include_str!("tables/network.txt")),
    ("http", include_str!("tables/http.txt")),
    ("filters", include_str!("tables/filters.txt")),
    ("route", include_str!("tables/route.txt")),
    ("cluster", include_str!("tables/cluster.txt")),
    ("tls", include_str!("tables/tls.txt")),
    ("core", include_str!("tables/core.txt")),
    ("bootstrap", include_str!("tables/bootstrap.txt")),
];

/// What happens to a field that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It does what Envoy's documentation says.
    Honoured,
    /// So, if it has one of these values; any other is refused.
    Only(Vec<String>),
    /// So, if its `Any` has one of these types inside; any other is refused.
    Types(Vec<String>),
    /// Nothing, and that is safe for this reason.
    Ignored(String),
}

/// The fields of every accepted message.
#[derive(Debug, Default)]
pub(super) struct Table {
    messages: HashMap<String, BTreeMap<String, Treatment>>,
}

impl Table {
    /// Adds a field; false if it is there already.
    pub(super) fn add(&mut self, message: &str, field: &str, treatment: Treatment) -> bool {
        let fields = self.messages.entry(message.to_owned()).or_default();
        fields.insert(field.to_owned(), treatment).is_none()
    }

    /// Adds a message, of which nothing is accepted yet; false if it is there already.
    pub(super) fn add_message(&mut self, message: &str) -> bool {
        self.messages.insert(message.to_owned(), BTreeMap::new()).is_none()
    }

    /// Whether the message is accepted at all.
    pub(super) fn knows(&self, message: &str) -> bool {
        self.messages.contains_key(message)
    }

    /// What happens to a field; none: it is refused.
    pub(super) fn treatment(&self, message: &str, field: &str) -> Option<&Treatment> {
        self.messages.get(message)?.get(field)
    }

    /// Every message with its fields, sorted.
    #[cfg(test)]
    pub(super) fn messages(&self) -> BTreeMap<&str, &BTreeMap<String, Treatment>> {
        self.messages.iter().map(|(name, fields)| (name.as_str(), fields)).collect()
    }
}

/// The table of this build.
pub(super) fn get() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Table::default();
        for (area, text) in TEXTS {
            // The texts are part of this binary and a test parses them.
            #[allow(clippy::panic)]
            if let Err(error) = parse::into(&mut table, text) {
                panic!("the field table {area}: {error}");
            }
        }
        table
    })
}
