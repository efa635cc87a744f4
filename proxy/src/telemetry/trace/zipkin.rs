//! Spans as Zipkin's collectors take them: version 2, in JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::Flavor;
use super::ids::b3_trace;
use super::span::{Kind, Span};

/// Who sends spans.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    /// What the service is called.
    pub service: String,
    /// The proxy's address.
    pub address: String,
}

/// The list of these spans.
pub fn list(sender: &Sender, flavor: Flavor, spans: &[Box<Span>]) -> Vec<u8> {
    let all: Value = spans.iter().map(|span| object(sender, flavor, span)).collect();
    all.to_string().into_bytes()
}

fn object(sender: &Sender, flavor: Flavor, span: &Span) -> Value {
    let ids = &span.ids;
    let mut moments: Vec<Value> =
        span.moments.iter().map(|(name, at)| json!({"timestamp": micros(*at), "value": name})).collect();
    let last = if span.kind == Kind::Server { "ss" } else { "cr" };
    moments.push(json!({"timestamp": micros(span.end), "value": last}));
    let tags: Map<String, Value> =
        span.tags.iter().map(|(name, value)| (name.to_string(), value.as_str().into())).collect();
    let family = if sender.address.contains(':') { "ipv6" } else { "ipv4" };
    let mut object = json!({
        "traceId": b3_trace(ids.trace),
        "id": format!("{:016x}", ids.span),
        "name": span.name.as_ref().unwrap_or(&span.authority),
        "kind": if span.kind == Kind::Server { "SERVER" } else { "CLIENT" },
        "timestamp": micros(span.start),
        "duration": micros(span.end).saturating_sub(micros(span.start)).max(1),
        "localEndpoint": {"serviceName": sender.service, family: sender.address, "port": 0},
        "annotations": moments,
        "tags": tags,
    });
    if let Some(parent) = ids.parent {
        object["parentId"] = format!("{parent:016x}").into();
    }
    if matches!(flavor, Flavor::Zipkin { shared: true, .. }) && span.kind == Kind::Server {
        object["shared"] = true.into();
    }
    object
}

fn micros(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
