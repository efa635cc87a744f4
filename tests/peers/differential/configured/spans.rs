//! Spans as they come to a collector: OTLP over gRPC and HTTP, Zipkin's JSON. Each is shown in a form that both sides share:
//! without times, sizes of batches and ids that were made up.

use serde_json::{Map, Value, json};
use xds_protos::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use xds_protos::opentelemetry::proto::common::v1::KeyValue;
use xds_protos::opentelemetry::proto::common::v1::any_value::Value as Any;
use xds_protos::opentelemetry::proto::trace::v1::Span;
use xds_protos::prost::Message;

use crate::differential::normalize::known_id;

/// The method by which spans are handed over.
pub const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The spans of a request to a collector, by its path and its body; none if it is no such request.
pub fn texts(path: &str, body: &[u8]) -> Option<Vec<String>> {
    let otlp = |bytes: &[u8]| {
        let request = ExportTraceServiceRequest::decode(bytes).expect("spans");
        request.resource_spans.iter().flat_map(of_sender).collect()
    };
    match path {
        METHOD => Some(otlp(body.get(5..)?)),
        "/v1/traces" => Some(otlp(body)),
        "/api/v2/spans" => {
            let list: Vec<Value> = serde_json::from_slice(body).expect("a list of spans");
            Some(list.into_iter().map(zipkin).collect())
        }
        _ => None,
    }
}

fn of_sender(spans: &xds_protos::opentelemetry::proto::trace::v1::ResourceSpans) -> Vec<String> {
    let sender = spans.resource.as_ref().map(|r| &r.attributes[..]).unwrap_or_default();
    let mut sender = attributes(sender);
    // Which library it is differs, and that it is told does not.
    for key in ["telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"] {
        if let Some(value) = sender.get_mut(key) {
            *value = "<library>".into();
        }
    }
    let all = spans.scope_spans.iter().flat_map(|scope| {
        let named = scope.scope.as_ref().is_some_and(|s| !s.name.is_empty());
        scope.spans.iter().map(move |span| (named, span))
    });
    all.map(|(named, span)| text(&otlp(span, &sender, named))).collect()
}

fn otlp(span: &Span, sender: &Map<String, Value>, named: bool) -> Value {
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "a span ends after it began: {span:?}");
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    json!({
        "sender": sender,
        "library": named,
        "trace": known_id(&hex(&span.trace_id)),
        "span": known_id(&hex(&span.span_id)),
        "parent": known_id(&hex(&span.parent_span_id)),
        "state": span.trace_state,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "status": span.status.as_ref().map_or(0, |s| s.code),
        "attributes": attributes(&span.attributes),
    })
}

fn attributes(list: &[KeyValue]) -> Map<String, Value> {
    let of = |pair: &KeyValue| {
        let value = match pair.value.as_ref().and_then(|v| v.value.as_ref()) {
            Some(Any::StringValue(text)) => text.clone(),
            other => format!("{other:?}"),
        };
        (pair.key.clone(), value)
    };
    list.iter().map(of).map(|(key, value)| (key.clone(), tag(&key, &value).into())).collect()
}

fn zipkin(mut span: Value) -> String {
    for id in ["traceId", "id", "parentId"] {
        if let Some(text) = span[id].as_str() {
            span[id] = known_id(text).into();
        }
    }
    assert!(span["timestamp"].is_u64() && span["duration"].is_u64(), "{span}");
    let fields = span.as_object_mut().unwrap();
    fields.retain(|key, value| !value.is_null() && !["timestamp", "duration"].contains(&key.as_str()));
    for (key, value) in span["tags"].as_object_mut().unwrap() {
        *value = tag(key, value.as_str().unwrap()).into();
    }
    let moments = span["annotations"].as_array().unwrap().iter().map(|a| a["value"].clone()).collect();
    span["annotations"] = moments;
    text(&span)
}

/// A tag's value without what differs: made-up ids, but for the digit that tells whether the request is traced.
fn tag(key: &str, value: &str) -> String {
    match key {
        "guid:x-request-id" if value.len() == 36 => format!("<id {}>", &value[14..15]),
        _ => value.replace("127.30.3.2", "127.30.3.1"),
    }
}

fn text(span: &Value) -> String {
    format!("  span: {}\n", serde_json::to_string_pretty(span).unwrap())
}
