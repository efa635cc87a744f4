//! `/weft/requests`: the record of requests, the newest first.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::AdminState;
use crate::telemetry::record::{self, Class, Entry};

/// As many are told unless more are asked for.
const LIMIT: usize = 100;

/// The requests that are asked for: `id` (of the request, or of its trace), `class`, `listener`, and at most `limit` of them.
///
/// # Errors
/// What is wrong with a parameter.
pub(super) fn page(state: &AdminState, parameters: &BTreeMap<String, String>) -> Result<Value, String> {
    for name in parameters.keys() {
        if !["id", "class", "listener", "limit"].contains(&name.as_str()) {
            return Err(format!("{name}: there are id, class, listener and limit"));
        }
    }
    let limit = match parameters.get("limit") {
        None => LIMIT,
        Some(text) => text.parse().map_err(|_| format!("limit: {text:?} is no number"))?,
    };
    let class = match parameters.get("class") {
        None => None,
        Some(text) => Some(Class::ALL.into_iter().find(|c| c.as_str() == text).ok_or_else(|| {
            format!("class: {text:?}: there are {}", Class::ALL.map(Class::as_str).join(", "))
        })?),
    };
    let id = parameters.get("id").map(String::as_str);
    let listener = parameters.get("listener").map(String::as_str);
    let wanted = |entry: &Entry| {
        let named = id.is_none_or(|id| {
            entry.id.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(id))
                || entry.trace.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(id))
        });
        named
            && class.is_none_or(|class| entry.class == class)
            && listener.is_none_or(|listener| *entry.listener.0 == *listener)
    };
    let all = record::read();
    let kept = |class: Class| all.iter().filter(|entry| entry.class == class).count();
    let oldest = |class: Class| {
        all.iter().rfind(|entry| entry.class == class).map(|entry| entry.json()["start"].clone())
    };
    let classes: serde_json::Map<_, _> = Class::ALL
        .into_iter()
        .map(|class| (class.as_str().to_owned(), json!({"kept": kept(class), "oldest": oldest(class)})))
        .collect();
    let settings = record::settings();
    let found: Vec<_> =
        all.iter().filter(|entry| wanted(entry)).take(limit).map(|entry| entry.json()).collect();
    Ok(json!({
        "node": state.node.id,
        "record": {
            "slowMs": settings.slow.as_millis() as u64,
            "sample": settings.sample,
            "maxBytes": settings.bytes,
            "bytes": record::numbers().bytes.value(),
            "pushedOut": record::numbers().pushed_out.value(),
            "classes": classes,
        },
        "requests": found,
    }))
}
