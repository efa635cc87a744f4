//! Spans as OTLP carries them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use xds_protos::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use xds_protos::opentelemetry::proto::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use xds_protos::opentelemetry::proto::resource::v1::Resource;
use xds_protos::opentelemetry::proto::trace::v1::span::{Event, SpanKind};
use xds_protos::opentelemetry::proto::trace::v1::status::StatusCode;
use xds_protos::opentelemetry::proto::trace::v1::{ResourceSpans, ScopeSpans, Span as Proto, Status};

use super::span::{Kind, Span};

/// Says that the next flag is meant.
const KNOWS_REMOTE: u32 = 0x100;
/// The span above is another program's.
const IS_REMOTE: u32 = 0x200;

/// Who sends spans.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    /// What is said of it.
    pub resource: Vec<(String, String)>,
    /// Whether the spans' library is named.
    pub scope: bool,
}

/// The message that carries these spans.
pub fn request(sender: &Sender, spans: &[Box<Span>]) -> ExportTraceServiceRequest {
    let attributes = sender.resource.iter().map(|(key, value)| pair(key.clone(), value.clone())).collect();
    let scope = sender.scope.then(|| InstrumentationScope {
        name: "weft".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    });
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, dropped_attributes_count: 0 }),
            scope_spans: vec![ScopeSpans {
                scope,
                spans: spans.iter().map(|s| message(s)).collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

fn message(span: &Span) -> Proto {
    let ids = &span.ids;
    let name = span.name.clone().unwrap_or_else(|| match span.egress {
        true => format!("egress {}", span.authority),
        false => "ingress".to_owned(),
    });
    let kind = match span.kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    Proto {
        trace_id: Bytes::copy_from_slice(&ids.trace.to_be_bytes()),
        span_id: id(ids.span),
        trace_state: span.state.as_ref().and_then(|s| s.to_str().ok()).unwrap_or_default().to_owned(),
        parent_span_id: ids.parent.map(id).unwrap_or_default(),
        flags: KNOWS_REMOTE | if span.remote { IS_REMOTE } else { 0 } | u32::from(ids.sampled),
        name,
        kind: kind.into(),
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes: span.tags.iter().map(|(key, value)| pair(key.to_string(), value.clone())).collect(),
        events: span
            .moments
            .iter()
            .map(|(name, at)| Event {
                time_unix_nano: nanos(*at),
                name: (*name).to_owned(),
                ..Event::default()
            })
            .collect(),
        status: failed(span).then(|| Status { message: String::new(), code: StatusCode::Error.into() }),
        ..Proto::default()
    }
}

/// Whether the span's status is an error, by the conventions for HTTP and gRPC: a server is not to blame for what clients do.
fn failed(span: &Span) -> bool {
    match span.kind {
        Kind::Server => span.status >= 500 || matches!(span.grpc, Some(2 | 4 | 12 | 13 | 14 | 15)),
        Kind::Client => span.status >= 400 || span.grpc.is_some_and(|code| code != 0),
    }
}

fn id(id: u64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn pair(key: String, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key, value: Some(value), ..KeyValue::default() }
}
