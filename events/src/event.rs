//! An event, and its line of JSON.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::kind::Kind;

/// A text that somebody outside has chosen is cut to this many bytes.
const LONGEST: usize = 1024;

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it was meant.
    Ok,
    /// It was tried, and failed.
    Failed,
    /// It was not allowed.
    Denied,
}

impl Outcome {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Denied => "denied",
        }
    }
}

/// How soon somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// When there is time.
    Low,
    /// Today.
    Medium,
    /// Now.
    High,
}

impl Severity {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// How it came out.
    pub outcome: Outcome,
    /// How soon somebody should look.
    pub severity: Severity,
    /// What part of Weft decided or saw it, such as `rbac`, `tls`, `xds`: one of a few words.
    pub by: &'static str,
    /// What happened, in words.
    pub message: String,
    /// When.
    pub time: OffsetDateTime,
    fields: Map<String, Value>,
}

impl Event {
    /// An event of now.
    pub fn new(
        kind: Kind,
        outcome: Outcome,
        severity: Severity,
        by: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let (time, message) = (OffsetDateTime::now_utc(), cut(message.into()));
        Self { kind, outcome, severity, by, message, time, fields: Map::new() }
    }

    /// Says more of it; what is empty is left out. The names are those of docs/security-events.md.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => Value::String(cut(text)),
            other => other,
        };
        let empty = value.is_null() || value.as_str().is_some_and(str::is_empty);
        if !empty {
            self.fields.insert(name.to_owned(), value);
        }
        self
    }

    /// The same where there is something to say.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// What was said of it under this name.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// All that was said of it.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// A text that was said of it.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.field(name).and_then(Value::as_str)
    }

    /// As a flat object; `origin` is who tells it.
    pub fn to_json(&self, origin: &crate::Origin) -> Value {
        let mut line = Map::new();
        let mut put = |name: &str, value: &str| {
            line.insert(name.to_owned(), value.into());
        };
        put("time", &self.time.format(&Rfc3339).unwrap_or_default());
        put("event", self.kind.name());
        put("outcome", self.outcome.name());
        put("severity", self.severity.name());
        put("by", self.by);
        put("component", origin.component);
        put("namespace", &origin.namespace);
        put("workload", &origin.workload);
        put("message", &self.message);
        for (name, value) in &self.fields {
            line.entry(name.as_str()).or_insert_with(|| value.clone());
        }
        Value::Object(line)
    }
}

/// Cut at a character's border.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_flat_and_what_is_said_of_an_event_cannot_change_what_it_is() {
        let event = Event::new(Kind::Denied, Outcome::Denied, Severity::Medium, "rbac", "no")
            .with("path", "/a")
            .with("status", 403)
            .with("event", "ok")
            .with("sni", "")
            .with_some("trace_id", None::<&str>);
        let origin = crate::Origin { component: "proxy", namespace: "n".into(), workload: "w-1".into() };
        let mut line = event.to_json(&origin);
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
        line["time"] = Value::Null;
        let expected = serde_json::json!({
            "time": null, "event": "denied", "outcome": "denied", "severity": "medium", "by": "rbac",
            "component": "proxy", "namespace": "n", "workload": "w-1", "message": "no", "path": "/a", "status": 403,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_long_text_is_cut_at_a_characters_border() {
        let event = Event::new(Kind::Denied, Outcome::Denied, Severity::Low, "rbac", "")
            .with("path", format!("{}ä", "x".repeat(LONGEST - 1)));
        assert_eq!(event.text("path"), Some(format!("{}…", "x".repeat(LONGEST - 1)).as_str()));
    }
}
