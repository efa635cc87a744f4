//! `/weft/requests`: the record of requests and connections, the newest first.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::AdminState;
use crate::telemetry::record::entry::Kind;
use crate::telemetry::record::{self, Class, Entry};

/// As many are told unless more are asked for.
const LIMIT: usize = 100;

/// The requests and connections that are asked for: `id` (of the request, of its trace, or of the connection), `class`, `kind`,
/// `listener`, `end` (an address that is a connection's client, or this proxy's end of what it went on by), and at most `limit` of
/// them.
///
/// # Errors
/// What is wrong with a parameter.
pub(super) fn page(state: &AdminState, parameters: &BTreeMap<String, String>) -> Result<Value, String> {
    for name in parameters.keys() {
        if !["id", "class", "kind", "listener", "end", "limit"].contains(&name.as_str()) {
            return Err(format!("{name}: there are id, class, kind, listener, end and limit"));
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
    let kind = match parameters.get("kind") {
        None => None,
        Some(text) => {
            let known = [Kind::Request, Kind::Connection].into_iter().find(|k| k.as_str() == text);
            Some(known.ok_or_else(|| format!("kind: {text:?}: there are request and connection"))?)
        }
    };
    let end: Option<SocketAddr> = match parameters.get("end") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| format!("end: {text:?} is no address with a port"))?),
    };
    let is_end = |entry: &Entry, end: SocketAddr| {
        let onward = entry.onward.as_ref().is_some_and(|onward| onward.local == end);
        entry.kind == Kind::Connection && (entry.ends.0 == end || onward)
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
            && kind.is_none_or(|kind| entry.kind == kind)
            && end.is_none_or(|end| is_end(entry, end))
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
