//! The validation rules that the schema carries (protoc-gen-validate's): what every Envoy enforces before it looks at a
//! resource. A control plane that passes them here will not be refused there, and a proxy gives the same answers.
//!
//! `schema.txt` shows each field's rules in brackets. Rules apply inside `Any` as well, where the type is known.

mod compile;
mod rule;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock, RwLock};

use prost_reflect::{DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, Value};

use self::compile::MessageRules;
use self::rule::Rule;
use crate::{Any, type_url, typed_struct};

/// A value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where: `filter_chains[0].filters[1].typed_config.stat_prefix`.
    pub path: String,
    /// What would be right.
    pub message: String,
}

/// Everything in the message called `name` that breaks a rule. Bytes that do not decode are one violation; a message that
/// the schema lacks has no rules.
pub fn check(name: &str, bytes: &[u8]) -> Vec<Violation> {
    let mut found = Check { path: String::new(), anys: 0, violations: Vec::new() };
    if let Some(kind) = crate::pool().get_message_by_name(name) {
        match DynamicMessage::decode(kind, bytes) {
            Ok(message) => found.message(&message),
            Err(error) => found.fail(&error.to_string()),
        }
    }
    found.violations
}

/// `Any` inside `Any` beyond this depth is a violation.
const MAX_ANYS: usize = 16;

struct Check {
    path: String,
    anys: usize,
    violations: Vec<Violation>,
}

impl Check {
    fn message(&mut self, message: &DynamicMessage) {
        let kind = message.descriptor();
        if kind.full_name() == "google.protobuf.Any" {
            return self.any(message);
        }
        let rules = rules(&kind);
        if rules.disabled {
            return;
        }
        for oneof in &rules.required_oneofs {
            if !oneof.fields().any(|f| message.has_field(&f)) {
                let names: Vec<_> = oneof.fields().map(|f| f.name().to_owned()).collect();
                self.fail(&format!("one of {} is required", names.join(", ")));
            }
        }
        for field in &rules.fields {
            let here = self.enter(field.descriptor.name());
            let present = message.has_field(&field.descriptor);
            if field.required && !present {
                self.fail("is required");
            } else if present || !field.descriptor.supports_presence() {
                let value = message.get_field(&field.descriptor);
                if let Some(rule) = &field.rule {
                    self.apply(rule, &value);
                }
                if present && !field.skip {
                    self.inside(&value);
                }
            }
            self.path.truncate(here);
        }
    }

    fn apply(&mut self, rule: &Rule, value: &Value) {
        match rule {
            Rule::List { items: Some(item), .. } => {
                for (i, element) in value.as_list().unwrap_or_default().iter().enumerate() {
                    let here = self.path.len();
                    let _ = write!(self.path, "[{i}]");
                    self.apply(item, element);
                    self.path.truncate(here);
                }
            }
            Rule::Map { keys: Some(rule), .. } => {
                for key in value.as_map().into_iter().flat_map(HashMap::keys) {
                    if let MapKey::String(key) = key {
                        self.apply(rule, &Value::String(key.clone()));
                    }
                }
            }
            _ => {}
        }
        if let Err(message) = rule.judge(value) {
            self.fail(&message);
        }
    }

    /// Messages in a value.
    fn inside(&mut self, value: &Value) {
        match value {
            Value::Message(message) => self.message(message),
            Value::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    let Value::Message(message) = item else { return };
                    let here = self.path.len();
                    let _ = write!(self.path, "[{i}]");
                    self.message(message);
                    self.path.truncate(here);
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    let Value::Message(message) = value else { return };
                    let here = self.path.len();
                    let _ = match key {
                        MapKey::String(key) => write!(self.path, "[{key:?}]"),
                        other => write!(self.path, "[{other:?}]"),
                    };
                    self.message(message);
                    self.path.truncate(here);
                }
            }
            _ => {}
        }
    }

    fn any(&mut self, any: &DynamicMessage) {
        let Ok(any) = any.transcode_to::<Any>() else { return };
        // Bytes and structs that are not what they claim are found by whoever unpacks them.
        let Ok(any) = typed_struct::resolve(&any) else { return };
        let kind = crate::pool().get_message_by_name(type_url::name(&any.type_url));
        match kind.map(|kind| DynamicMessage::decode(kind, any.value.clone())) {
            Some(Ok(_)) if self.anys == MAX_ANYS => self.fail("is nested too deep"),
            Some(Ok(message)) => {
                self.anys += 1;
                self.message(&message);
                self.anys -= 1;
            }
            Some(Err(error)) => self.fail(&error.to_string()),
            None => {}
        }
    }

    fn fail(&mut self, message: &str) {
        self.violations.push(Violation { path: self.path.clone(), message: message.to_owned() });
    }

    fn enter(&mut self, name: &str) -> usize {
        let here = self.path.len();
        if here > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        here
    }
}

/// The rules of a message, compiled when it is first met.
fn rules(kind: &MessageDescriptor) -> Arc<MessageRules> {
    static CACHE: OnceLock<RwLock<HashMap<String, Arc<MessageRules>>>> = OnceLock::new();
    let cache = CACHE.get_or_init(RwLock::default);
    if let Some(rules) = cache.read().ok().and_then(|c| c.get(kind.full_name()).cloned()) {
        return rules;
    }
    let rules = Arc::new(MessageRules::of(kind));
    if let Ok(mut cache) = cache.write() {
        cache.insert(kind.full_name().to_owned(), rules.clone());
    }
    rules
}

#[cfg(test)]
mod tests;
