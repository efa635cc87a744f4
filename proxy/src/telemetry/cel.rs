//! Expressions in CEL over what is known of a stream: which streams a log takes, and what labels of metrics say.
//!
//! The attributes are those of Envoy's and Istio's documentation that belong to a stream that has ended. They are put together
//! only where an expression is configured, and only those that it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use cel::objects::Key;
use cel::{Context, Env, Program, Value};
use chrono::SecondsFormat;

use crate::codec::{Headers, RequestHead};
use crate::io::ConnectionInfo;
use crate::telemetry::StreamInfo;
use crate::telemetry::istio::{Far, Workload};

static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Bytes of a label's value.
const LONGEST_LABEL: usize = 256;

/// A compiled expression.
pub struct Expression {
    program: Program,
    text: String,
    /// The attributes that it names.
    roots: Vec<&'static str>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What an expression is asked of.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// The stream's record.
    pub stream: &'a StreamInfo,
    /// Its connection.
    pub connection: &'a ConnectionInfo,
    /// The request's head; none for a connection of bytes.
    pub request: Option<&'a RequestHead>,
    /// The response's header fields.
    pub response: Option<&'a Headers>,
    /// The response's trailers.
    pub trailers: Option<&'a Headers>,
    /// The workload at the other end, where it is known.
    pub far: Option<Far<'a>>,
}

/// As much of a text as a label may have.
pub fn cut(mut said: String) -> String {
    said.truncate(said.floor_char_boundary(LONGEST_LABEL));
    said
}

impl Expression {
    /// Compiles one.
    ///
    /// # Errors
    /// It is no expression, or asks for what no stream has.
    pub fn compile(text: &str) -> Result<Self, String> {
        let (program, roots) = xds_protos::cel::compile(text)?;
        Ok(Self { program, text: text.to_owned(), roots })
    }

    /// Whether it asks for what a request brought.
    pub fn looks_at_request(&self) -> bool {
        self.roots.contains(&"request")
    }

    /// Its value; none where it asks for something that this stream does not have.
    fn value(&self, seen: Seen<'_>) -> Option<Value> {
        let mut context = Context::with_env(STANDARD.clone());
        for root in &self.roots {
            context.add_variable_from_value(*root, attributes(root, seen));
        }
        self.program.execute(&context).ok()
    }

    /// Whether it is true; it is not where it has no value.
    pub fn holds(&self, seen: Seen<'_>) -> bool {
        matches!(self.value(seen), Some(Value::Bool(true)))
    }

    /// Its value as a label has it: `unknown` where it has none. Clients may choose it, so a long one is cut.
    pub fn label(&self, seen: Seen<'_>) -> String {
        let mut label = self.whole_label(seen);
        if label.len() > LONGEST_LABEL {
            label.truncate(label.floor_char_boundary(LONGEST_LABEL));
        }
        label
    }

    /// All of it, however long; nothing where it has no value, or an empty one.
    pub fn whole(&self, seen: Seen<'_>) -> Option<String> {
        self.text(seen).filter(|said| !said.is_empty())
    }

    /// Its value in JSON, in its own type: bytes are in base64, durations are seconds with an `s`, moments are in RFC 3339's form.
    /// Nothing where it has no value.
    pub fn json(&self, seen: Seen<'_>) -> Option<serde_json::Value> {
        json(&self.value(seen)?)
    }

    /// Its value as a number; texts that are numbers are.
    pub fn number(&self, seen: Seen<'_>) -> Option<f64> {
        match self.value(seen)? {
            Value::Int(number) => Some(number as f64),
            Value::UInt(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            Value::Bool(truth) => Some(f64::from(u8::from(truth))),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn whole_label(&self, seen: Seen<'_>) -> String {
        self.text(seen).unwrap_or_else(|| "unknown".to_owned())
    }

    fn text(&self, seen: Seen<'_>) -> Option<String> {
        Some(match self.value(seen)? {
            Value::String(text) => (*text).clone(),
            Value::Int(number) => number.to_string(),
            Value::UInt(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => return None,
        })
    }
}

fn json(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) => (**text).clone().into(),
        Value::Int(number) => (*number).into(),
        Value::UInt(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::Bytes(bytes) => BASE64.encode(&**bytes).into(),
        Value::Duration(length) => {
            let nanos = length.num_nanoseconds()?;
            let seconds = format!("{}.{:09}", (nanos / 1_000_000_000).abs(), (nanos % 1_000_000_000).abs());
            let sign = if nanos < 0 { "-" } else { "" };
            format!("{sign}{}s", seconds.trim_end_matches('0').trim_end_matches('.')).into()
        }
        Value::Timestamp(moment) => moment.to_utc().to_rfc3339_opts(SecondsFormat::AutoSi, true).into(),
        Value::List(values) => values.iter().map(json).collect::<Option<Vec<_>>>()?.into(),
        Value::Map(map) => {
            let field = |(key, value): (&Key, &Value)| Some((key.to_string(), json(value)?));
            map.map.iter().map(field).collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
        Value::Null => serde_json::Value::Null,
        _ => return None,
    })
}

#[derive(Default)]
struct Fields(HashMap<Key, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    fn maybe(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn number(&mut self, name: &str, number: u64) {
        self.put(name, Value::Int(i64::try_from(number).unwrap_or(i64::MAX)));
    }

    fn address(&mut self, address: SocketAddr) {
        self.put("address", address.to_string());
        self.number("port", u64::from(address.port()));
    }
}

fn attributes(root: &str, seen: Seen<'_>) -> Value {
    let (stream, connection) = (seen.stream, seen.connection);
    let mut fields = Fields::default();
    match root {
        "request" => request(&mut fields, seen),
        "response" => response(&mut fields, seen),
        "source" => {
            fields.address(stream.client.unwrap_or(connection.remote));
            fields.maybe("principal", connection.peer_id().map(|id| id.to_string()));
        }
        "destination" => {
            fields.address(connection.local);
            let local = connection.tls.as_ref().and_then(|tls| tls.local_id.as_ref());
            fields.maybe("principal", local.map(|id| id.to_string()));
        }
        "connection" => {
            fields.number("id", connection.id);
            fields
                .put("mtls", Value::Bool(connection.tls.as_ref().is_some_and(|t| !t.peer_chain.is_empty())));
            fields.maybe("requested_server_name", connection.sni.as_ref().map(|name| name.to_string()));
            fields.maybe("tls_version", connection.tls.as_ref().map(|tls| tls.version));
            let subject = connection.tls.as_ref().map(|tls| tls.peer_subject.as_str());
            fields.maybe("subject_peer_certificate", subject.filter(|subject| !subject.is_empty()));
            fields.maybe("uri_san_peer_certificate", connection.peer_id().map(|id| id.to_string()));
            fields.maybe("termination_details", stream.connection_termination_details.as_deref());
        }
        "upstream" => {
            if let Some(host) = stream.upstream_host {
                fields.address(host);
            }
            fields.maybe("local_address", stream.upstream_local.map(|local| local.to_string()));
            let peer = stream.upstream_tls.as_ref().and_then(|tls| tls.peer_id.as_ref());
            fields.maybe("uri_san_peer_certificate", peer.map(|id| id.to_string()));
            fields.maybe("tls_version", stream.upstream_tls.as_ref().map(|tls| tls.version));
            fields.maybe("transport_failure_reason", stream.upstream_failure.as_deref());
            fields.number("request_attempt_count", u64::from(stream.attempts));
        }
        "xds" => {
            fields.maybe("route_name", stream.route.as_deref());
            fields.maybe("cluster_name", stream.cluster.as_deref());
            fields.put("filter_chain_name", &*connection.filter_chain);
        }
        // Istio's names for the workload at the other end.
        _ => {
            if let Some(workload) = seen.far.and_then(|far| far.workload) {
                let name = match connection.direction {
                    crate::io::Direction::Inbound => "downstream_peer",
                    _ => "upstream_peer",
                };
                fields.put(name, peer(workload));
            }
        }
    }
    Value::from(fields.0)
}

fn peer(workload: &Workload) -> Value {
    let mut fields = Fields::default();
    for (name, value) in [
        ("workload", &workload.name),
        ("namespace", &workload.namespace),
        ("app", &workload.app),
        ("version", &workload.version),
        ("cluster", &workload.cluster),
        ("service", &workload.canonical_service),
        ("revision", &workload.canonical_revision),
    ] {
        if !value.is_empty() {
            fields.put(name, value.as_str());
        }
    }
    Value::from(fields.0)
}

fn request(fields: &mut Fields, seen: Seen<'_>) {
    let stream = seen.stream;
    fields.number("size", stream.bytes_received);
    fields.maybe("duration", chrono::Duration::from_std(stream.took()).ok().map(Value::Duration));
    let time: chrono::DateTime<chrono::Utc> = stream.start_time.into();
    fields.put("time", Value::Timestamp(time.fixed_offset()));
    fields.maybe("protocol", stream.protocol.map(|protocol| protocol.as_str()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.put("host", text(&stream.authority));
    let path = text(&stream.path);
    fields.put("url_path", path.split('?').next().unwrap_or_default());
    fields.put("query", path.split_once('?').map_or("", |(_, query)| query));
    fields.put("path", path);
    fields.maybe("method", stream.method.as_ref().map(|method| method.as_str()));
    let Some(head) = seen.request else { return };
    fields.put("scheme", text(&head.scheme));
    let all = headers(Some(&head.headers));
    for (name, header) in [("id", "x-request-id"), ("useragent", "user-agent"), ("referer", "referer")] {
        fields.maybe(name, all.get(&Key::from(header)).cloned());
    }
    fields.put("headers", all);
}

fn response(fields: &mut Fields, seen: Seen<'_>) {
    let stream = seen.stream;
    fields.maybe("code", stream.status.map(|status| Value::Int(i64::from(status.as_u16()))));
    fields.maybe("code_details", stream.code_details().map(|details| details.into_owned()));
    fields.number("flags", u64::from(stream.flags.bits()));
    fields.maybe("grpc_status", stream.grpc_status.map(|status| Value::Int(i64::from(status))));
    fields.number("size", stream.bytes_sent);
    fields.put("headers", headers(seen.response));
    fields.put("trailers", headers(seen.trailers));
}

/// Header fields by name; of several with one name their values in a list, as HTTP joins them.
fn headers(headers: Option<&Headers>) -> HashMap<Key, Value> {
    let mut all: HashMap<Key, Value> = HashMap::new();
    for (name, value) in headers.into_iter().flat_map(Headers::iter) {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let key = Key::from(name.as_str());
        let text = match all.get(&key) {
            Some(Value::String(before)) => format!("{before},{text}"),
            _ => text,
        };
        all.insert(key, text.into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Protocol;
    use crate::codec::headers::{HeaderName, HeaderValue};

    fn told(text: &str) -> (String, bool) {
        let mut stream = StreamInfo::new(Some(Protocol::Http11));
        stream.status = http::StatusCode::from_u16(503).ok();
        stream.authority = "shop.example".into();
        stream.path = "/cart?n=1".into();
        stream.method = Some(http::Method::GET);
        let mut head = RequestHead::empty(Protocol::Http11);
        for value in ["ann", "bob"] {
            head.headers.append(HeaderName::from_static("x-user"), HeaderValue::from_static(value));
        }
        let address = "127.0.0.1:80".parse().unwrap();
        let connection = ConnectionInfo::between(address, address);
        let workload = Arc::new(Workload { app: "web".to_owned(), ..Workload::default() });
        let far = Far { workload: Some(&workload), ..Far::default() };
        let seen = Seen {
            stream: &stream,
            connection: &connection,
            request: Some(&head),
            response: None,
            trailers: None,
            far: Some(far),
        };
        let expression = Expression::compile(text).unwrap();
        (expression.label(seen), expression.holds(seen))
    }

    #[test]
    fn attributes_have_envoys_names() {
        for (text, wanted) in [
            ("request.host", "shop.example"),
            ("request.path", "/cart?n=1"),
            ("request.url_path + '!' + request.query", "/cart!n=1"),
            ("request.method", "GET"),
            ("request.headers['x-user']", "ann,bob"),
            ("response.code", "503"),
            ("source.port", "80"),
            ("has(filter_state.upstream_peer.app) ? filter_state.upstream_peer.app : 'none'", "web"),
            ("'constant'", "constant"),
            ("request.headers['x-nobody']", "unknown"),
            ("has(request.headers.other) ? 'yes' : 'no'", "no"),
            ("'x-user' in request.headers ? request.headers['x-user'] : 'nobody'", "ann,bob"),
            ("connection.mtls", "false"),
        ] {
            assert_eq!(told(text).0, wanted, "{text}");
        }
    }

    #[test]
    fn a_filter_holds_where_it_is_true_and_not_where_it_has_no_value() {
        assert!(told("response.code >= 500 && request.method == 'GET'").1);
        assert!(
            told("request.duration < duration('1h') && request.time > timestamp('2020-01-01T00:00:00Z')").1
        );
        assert!(!told("request.duration > duration('1h')").1);
        assert!(!told("response.code < 500").1);
        assert!(!told("request.headers['x-nobody'] == 'x'").1);
        assert!(!told("'text'").1);
    }

    #[test]
    fn what_no_stream_has_is_refused() {
        let refused = |text: &str| Expression::compile(text).unwrap_err();
        assert!(refused("request.host ==").contains("no expression"));
        assert_eq!(told(&format!("'{}ä'", "x".repeat(255))).0, "x".repeat(255), "cut between characters");
        assert!(refused("node.id").contains("asks for node"));
    }
}
