//! Additions to and removals from header fields that a route, its virtual host or its configuration asks for.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::codec::Headers;
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

    /// Changes `headers`. `context` supplies what formats speak of; its own view of the fields is from before the change.
    pub fn apply(&self, headers: &mut Headers, context: &LogContext<'_>) {
        for name in &self.remove {
            headers.remove(name);
        }
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
                AppendAction::AppendOrAdd => headers.append(name, value),
                AppendAction::AddIfAbsent if headers.contains(&name) => {}
                AppendAction::OverwriteIfExists if !headers.contains(&name) => {}
                _ => headers.set(name, value),
            }
        }
    }
}
