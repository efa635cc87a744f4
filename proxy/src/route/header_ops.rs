//! Additions to and removals from header fields that a route, its virtual host or its configuration asks for.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;
use crate::codec::headers::Of;
use crate::telemetry::access_log::{Format, LogContext};

/// What to do where the field is there already (`HeaderAppendAction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendAction {
    /// Add another field of the name.
    #[default]
    AppendOrAdd,
    /// Leave what is there.
    AddIfAbsent,
    /// Replace what is there, or add.
    OverwriteOrAdd,
    /// Replace what is there; add nothing.
    OverwriteIfExists,
}

/// A value: text, or text with commands.
#[derive(Clone, Debug)]
pub enum Value {
    /// The same for every request.
    Static(HeaderValue),
    /// Made from the request.
    Format(Arc<Format>),
}

/// One addition.
#[derive(Clone, Debug)]
pub struct Addition {
    /// The field.
    pub name: HeaderName,
    /// Its value.
    pub value: Value,
    /// What to do where it is there.
    pub action: AppendAction,
    /// Add it even if the value is empty.
    pub keep_empty: bool,
}

/// Removals and additions; removals come first, as in Envoy.
#[derive(Clone, Debug, Default)]
pub struct HeaderOps {
    /// Additions in order.
    pub add: Vec<Addition>,
    /// Names to remove.
    pub remove: Vec<HeaderName>,
}

impl HeaderOps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Whether a value is made from the request or its answer.
    pub fn speaks(&self) -> bool {
        self.add.iter().any(|a| matches!(a.value, Value::Format(_)))
    }

    /// Changes a response's `headers`, in which nothing is looked up by the formats' own view of them.
    pub fn apply(&self, headers: &mut Headers, context: &LogContext<'_>) {
        self.remove_from(headers);
        self.additions(headers, context).make(headers, Of::Response);
    }

    /// Takes out what is to be removed; this comes first.
    pub fn remove_from(&self, headers: &mut Headers) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// What is to be added to `headers`, which stay as they are: as in Envoy, values and conditions of all additions see the
    /// fields as they were before the first. `context` supplies what formats speak of.
    pub fn additions(&self, headers: &Headers, context: &LogContext<'_>) -> Additions {
        let mut additions = Additions::default();
        for addition in &self.add {
            let value = match &addition.value {
                Value::Static(value) => value.clone(),
                Value::Format(format) => {
                    let mut text = Vec::new();
                    format.write_or_empty(context, &mut text);
                    match HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
                        Ok(value) => value,
                        // A value with control characters would break the message; it is left out.
                        Err(_) => continue,
                    }
                }
            };
            if value.is_empty() && !addition.keep_empty {
                continue;
            }
            let name = addition.name.clone();
            match addition.action {
                AppendAction::AppendOrAdd => additions.append.push((name, value)),
                AppendAction::AddIfAbsent if headers.contains(&name) => {}
                AppendAction::AddIfAbsent => additions.append.push((name, value)),
                AppendAction::OverwriteIfExists if !headers.contains(&name) => {}
                _ => additions.set.push((name, value)),
            }
        }
        additions
    }
}

/// Fields that were worked out and are to be added: those that replace come first, as in Envoy.
#[derive(Debug, Default)]
pub struct Additions {
    set: Vec<(HeaderName, HeaderValue)>,
    append: Vec<(HeaderName, HeaderValue)>,
}

impl Additions {
    /// Adds them to a message's.
    pub fn make(self, headers: &mut Headers, of: Of) {
        for (name, value) in self.set {
            headers.set(name, value);
        }
        for (name, value) in self.append {
            headers.append_to(of, name, value);
        }
    }
}
