//! Access logs as records of OTLP (`envoy.access_loggers.open_telemetry`).

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use xds_protos::opentelemetry::proto::common::v1::{
    AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value,
};
use xds_protos::opentelemetry::proto::logs::v1::LogRecord;

use super::{Format, FormatError, LogContext, Wanted};
use crate::telemetry::trace::{Tag, Trace};

/// What a record says.
#[derive(Debug, Default)]
pub struct Record {
    /// The body.
    pub body: Option<Node>,
    /// The attributes.
    pub attributes: Vec<(String, Node)>,
    /// Objects of the filter state that become attributes.
    pub objects: Vec<String>,
    /// Further attributes, as spans have them.
    pub tags: Vec<Tag>,
}

/// A value: text with operators in it, or several.
#[derive(Debug)]
pub enum Node {
    /// Text.
    Text(Arc<Format>),
    /// Values by name.
    Map(Vec<(String, Node)>),
    /// Values in order.
    List(Vec<Node>),
}

/// Why a value is none of a record's: where it is inside, and the reason.
pub type Wrong = (String, String);

impl Node {
    /// Compiles a value; of its kinds those that Envoy takes.
    ///
    /// # Errors
    /// Where something is wrong, and what.
    pub fn compile(value: &AnyValue) -> Result<Self, Wrong> {
        match &value.value {
            Some(Value::StringValue(text)) => {
                let format = Format::text(text)
                    .map_err(|e: FormatError| ("string_value".to_owned(), e.to_string()))?;
                Ok(Self::Text(Arc::new(format)))
            }
            Some(Value::KvlistValue(list)) => {
                pairs(&list.values).map(Self::Map).map_err(|e| below("kvlist_value", e))
            }
            Some(Value::ArrayValue(list)) => {
                let each = list.values.iter().enumerate();
                let each = each.map(|(i, v)| {
                    Self::compile(v).map_err(|e| below(&format!("array_value.values[{i}]"), e))
                });
                each.collect::<Result<_, _>>().map(Self::List)
            }
            _ => Err((String::new(), "must be text, a list of values, or values by name".to_owned())),
        }
    }

    fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Text(format) => format.wants(wanted),
            Self::Map(pairs) => pairs.iter().for_each(|(_, node)| node.wants(wanted)),
            Self::List(nodes) => nodes.iter().for_each(|node| node.wants(wanted)),
        }
    }

    fn value(&self, context: &LogContext<'_>) -> AnyValue {
        let value = match self {
            Self::Text(format) => {
                let mut text = Vec::new();
                format.write(context, &mut text);
                Value::StringValue(String::from_utf8_lossy(&text).into_owned())
            }
            Self::Map(pairs) => Value::KvlistValue(KeyValueList { values: filled(pairs, context) }),
            Self::List(values) => {
                Value::ArrayValue(ArrayValue { values: values.iter().map(|v| v.value(context)).collect() })
            }
        };
        AnyValue { value: Some(value) }
    }
}

/// Compiles values by name.
///
/// # Errors
/// Where something is wrong, and what.
pub fn pairs(list: &[KeyValue]) -> Result<Vec<(String, Node)>, Wrong> {
    let each = list.iter().enumerate().map(|(index, pair)| {
        let path = format!("values[{index}]");
        let value = pair.value.as_ref().ok_or_else(|| (path.clone(), "has no value".to_owned()))?;
        let node = Node::compile(value).map_err(|e| below(&format!("{path}.value"), e))?;
        Ok((pair.key.clone(), node))
    });
    each.collect()
}

fn below(path: &str, (inner, reason): Wrong) -> Wrong {
    if inner.is_empty() { (path.to_owned(), reason) } else { (format!("{path}.{inner}"), reason) }
}

fn filled(pairs: &[(String, Node)], context: &LogContext<'_>) -> Vec<KeyValue> {
    let fill = |(key, node): &(String, Node)| KeyValue {
        key: key.clone(),
        value: Some(node.value(context)),
        ..KeyValue::default()
    };
    pairs.iter().map(fill).collect()
}

/// A value of text by its name.
pub fn pair(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

impl Record {
    /// Adds what its texts speak of.
    pub fn wants(&self, wanted: &mut Wanted) {
        self.body.iter().for_each(|body| body.wants(wanted));
        self.attributes.iter().for_each(|(_, node)| node.wants(wanted));
    }

    /// The record of a stream.
    pub fn of(&self, context: &LogContext<'_>) -> LogRecord {
        let stream = context.stream;
        let since = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut attributes = filled(&self.attributes, context);
        let object = |key: &String| {
            let text = super::object(context, key)?;
            // Envoy tells objects as JSON.
            Some(pair(key.clone(), serde_json::Value::from(text).to_string()))
        };
        attributes.extend(self.objects.iter().filter_map(object));
        let tag = |tag: &Tag| Some(pair(tag.name.to_string(), tag.source.value(context)?));
        attributes.extend(self.tags.iter().filter_map(tag));
        let (trace_id, span_id) = stream.trace.as_deref().map(ids).unwrap_or_default();
        LogRecord {
            time_unix_nano: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            body: self.body.as_ref().map(|body| body.value(context)),
            attributes,
            trace_id,
            span_id,
            ..LogRecord::default()
        }
    }
}

/// The ids of a trace and of its span, where logs know them.
fn ids(trace: &Trace) -> (Bytes, Bytes) {
    let trace_id = u128::from_str_radix(&trace.trace_id(), 16);
    let span_id = trace.span_id().and_then(|id| u64::from_str_radix(&id, 16).ok());
    let bytes = |id: &[u8]| Bytes::copy_from_slice(id);
    (
        trace_id.map(|id| bytes(&id.to_be_bytes())).unwrap_or_default(),
        span_id.map(|id| bytes(&id.to_be_bytes())).unwrap_or_default(),
    )
}
