//! A case as its YAML says it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// A case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name, unique in the suite.
    pub name: String,
    /// The file it stands in.
    #[serde(skip)]
    pub file: &'static str,
    /// Fields of the listener.
    #[serde(default)]
    pub listener: Value,
    /// Fields of the (only) filter chain: match, transport socket.
    #[serde(default)]
    pub chain: Value,
    /// Filter chains in place of the one; each `filters` that is absent is the HTTP connection manager, with the chain's
    /// `hcm` fields.
    #[serde(default)]
    pub chains: Vec<Value>,
    /// Network filters in front of the connection manager.
    #[serde(default)]
    pub network: Vec<Value>,
    /// A TCP proxy with these fields in place of the connection manager.
    #[serde(default)]
    pub tcp: Option<Value>,
    /// Fields of the connection manager.
    #[serde(default)]
    pub hcm: Value,
    /// HTTP filters in front of the router.
    #[serde(default)]
    pub filters: Vec<Value>,
    /// Fields of the router filter.
    #[serde(default)]
    pub router: Value,
    /// Fields of the route configuration.
    #[serde(default)]
    pub route_config: Value,
    /// Fields of the one virtual host.
    #[serde(default)]
    pub vhost: Value,
    /// Virtual hosts in its place.
    #[serde(default)]
    pub vhosts: Option<Value>,
    /// Routes in place of the one for everything.
    #[serde(default)]
    pub routes: Option<Value>,
    /// Fields of the one route's action.
    #[serde(default)]
    pub route: Value,
    /// Fields of the one route itself.
    #[serde(default)]
    pub route_fields: Value,
    /// Clusters by name; `@NAME` in any string stands for the cluster. One named `up` exists always.
    #[serde(default)]
    pub clusters: BTreeMap<String, Cluster>,
    /// What the client does, in order.
    pub send: Vec<Send>,
    /// Which endpoint of a cluster was chosen is up to chance.
    #[serde(default)]
    pub any_endpoint: bool,
    /// Counters to compare beside the usual ones: ends of their names.
    #[serde(default)]
    pub counters: Vec<String>,
    /// Usual counters that do not count here: ends of their names.
    #[serde(default)]
    pub without: Vec<String>,
    /// The filter of the access log.
    #[serde(default)]
    pub log_filter: Value,
    /// How many lines the access log gets; as many as there are requests by default.
    #[serde(default)]
    pub logs: Option<usize>,
    /// Further fields of the access log's lines, in format strings.
    #[serde(default)]
    pub formats: BTreeMap<String, String>,
    /// Do not compare the access log.
    #[serde(default)]
    pub no_log: bool,
    /// A difference that we want.
    #[serde(default)]
    pub deliberate: Option<Deliberate>,
}

/// A difference that we want.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deliberate {
    /// Which one, by its name in `differences.yaml`.
    pub difference: String,
    /// What must be in what our side shows.
    pub ours: String,
}

/// A cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its fields.
    #[serde(default)]
    pub fields: Value,
    /// It speaks HTTP/2.
    #[serde(default)]
    pub h2: bool,
    /// It speaks TLS: `server`, `mutual` where it demands a certificate, `tickets` where it gives those and keeps no sessions.
    #[serde(default)]
    pub tls: Option<String>,
    /// Its endpoints; one that answers 200 by default.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint and the server behind it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its answers in order; the last one repeats.
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// Nothing listens there.
    #[serde(default)]
    pub refuses: bool,
    /// Its connections end by a reset.
    #[serde(default)]
    pub resets: bool,
    /// Something listens there, and has no room for another connection.
    #[serde(default)]
    pub silent: bool,
    /// Bytes back as they come, after the given greeting, in place of HTTP.
    #[serde(default)]
    pub echo: Option<String>,
    /// Fields of the endpoint's `LbEndpoint`.
    #[serde(default)]
    pub fields: Value,
    /// Fields of its `LocalityLbEndpoints`; endpoints with equal ones share it.
    #[serde(default)]
    pub locality: Value,
}

/// What a server answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// This status, with a short body.
    Status(u16),
    /// More than that.
    Full(Box<FullAnswer>),
}

/// An answer with everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FullAnswer {
    /// The status; 200 where it is 0.
    pub status: u16,
    /// Fields, `name: value`.
    pub headers: Vec<String>,
    /// The body.
    pub body: Option<String>,
    /// The body is encoded so: `gzip`, `br`; with `-cut` behind it, its end is missing.
    pub coded: String,
    /// Trailers; the body is chunked then.
    pub trailers: Vec<String>,
    /// Over HTTP/2: send the body although such an answer has none.
    pub force_body: bool,
    /// Milliseconds before the answer.
    pub delay: u64,
    /// Milliseconds between head and body, or before the end of the connection after `raw`.
    pub body_delay: u64,
    /// No answer: the connection is reset after the request.
    pub reset: bool,
    /// No answer: the connection is closed after the request.
    pub close: bool,
    /// These bytes in place of an answer, then the connection is closed.
    pub raw: Option<String>,
    /// By HTTP/2: this `envoy.service.auth.v3.CheckResponse` in a gRPC frame as the body, and `grpc-status: 0` behind it
    /// where no trailers are given.
    pub check: Option<Value>,
    /// Likewise this `envoy.service.ratelimit.v3.RateLimitResponse`.
    pub limit: Option<Value>,
}

/// What the client does.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Send {
    /// `METHOD /path`.
    Line(String),
    /// More than that.
    Full(Box<Ask>),
}

/// A request with everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ask {
    /// `METHOD /path`; GET / where it is absent.
    pub line: String,
    /// The authority.
    pub host: Option<String>,
    /// Fields, `name: value`.
    pub headers: Vec<String>,
    /// The body.
    pub body: Option<String>,
    /// The body is encoded so, over HTTP/1: `gzip`, `br`; with `-cut` behind it, its end is missing.
    pub coded: String,
    /// Trailers; the body is chunked then.
    pub trailers: Vec<String>,
    /// By HTTP/2.
    pub h2: bool,
    /// These bytes in place of a request; read until the connection ends, or as much as `until` says.
    pub raw: Option<String>,
    /// For `raw`: read until this came.
    pub until: Option<String>,
    /// These bytes before anything else.
    pub first: Option<String>,
    /// To the listener's second address.
    pub other: bool,
    /// On the connection of the one before.
    pub same: bool,
    /// By TLS.
    pub tls: Option<Tls>,
    /// Milliseconds before it.
    pub after: u64,
    /// So many times; the answers are only counted.
    pub times: u32,
    /// So many at once, of `times`.
    pub at_once: u32,
    /// How far the shares of two sides may be apart, of all requests.
    pub within: f64,
    /// From this address.
    pub from: Option<String>,
    /// The connection ends by a reset, where the proxy does not end it.
    pub resets: bool,
    /// Close without waiting for an answer, after so many milliseconds.
    pub give_up: Option<u64>,
}

/// A body as it goes over the wire.
pub fn coded(text: &str, how: &str) -> Vec<u8> {
    use std::io::Write;
    let mut bytes = match how.trim_end_matches("-cut") {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.into_inner()
        }
        "" => text.as_bytes().to_vec(),
        other => panic!("no encoding is called {other:?}"),
    };
    if how.ends_with("-cut") {
        bytes.truncate(bytes.len() / 2);
    }
    bytes
}

/// The client's side of TLS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The server's name; none is sent where it is absent.
    pub sni: Option<String>,
    /// Protocols offered.
    pub alpn: Vec<String>,
    /// The client's certificate, by its name in the suite.
    pub certificate: Option<String>,
    /// The newest version, `1.2` or `1.3`.
    pub version: Option<String>,
    /// Twice, the second time with the session of the first; only that is shown.
    pub again: bool,
}

impl Case {
    /// Whether the default lines of the access log are written and compared: of each case that was thought of, and not of
    /// thousands of requests that are only counted or were made up.
    pub fn has_default_lines(&self) -> bool {
        !self.no_log && self.file != "generated" && self.send.iter().all(|s| s.ask().times <= 1)
    }
}

impl Ask {
    /// Method and target.
    pub fn method_and_target(&self) -> (&str, &str) {
        match self.line.split_once(' ') {
            Some(pair) => pair,
            None if self.line.is_empty() => ("GET", "/"),
            None => ("GET", &self.line),
        }
    }

    /// The authority.
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("a.example")
    }
}

impl Send {
    /// With everything.
    pub fn ask(&self) -> Ask {
        match self {
            Self::Line(line) => Ask { line: line.clone(), ..Ask::default() },
            Self::Full(ask) => (**ask).clone(),
        }
    }
}

impl Answer {
    /// With everything.
    pub fn full(&self) -> FullAnswer {
        match self {
            Self::Status(status) => FullAnswer { status: *status, ..FullAnswer::default() },
            Self::Full(answer) => (**answer).clone(),
        }
    }
}

/// The cases of `data/FILE.yaml`.
pub fn file(file: &'static str) -> Vec<Case> {
    let path = format!("{}/tests/peers/differential/data/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    read(file, &std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

/// The cases of a file's text.
pub fn read(file: &'static str, text: &str) -> Vec<Case> {
    let documents: Vec<Value> =
        serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("data/{file}.yaml: {e}"));
    documents.into_iter().map(|document| case(file, document)).collect()
}

/// The case of a document.
pub fn case(file: &'static str, mut document: Value) -> Case {
    let name = document["name"].as_str().unwrap_or_else(|| panic!("data/{file}.yaml: a case has no name"));
    let name = name.to_owned();
    let mut clusters: Vec<_> =
        document["clusters"].as_object().map(|c| c.keys().cloned().collect()).unwrap_or_default();
    clusters.push("up".to_owned());
    // Longer names first: one may begin with another.
    clusters.sort_by_key(|c| std::cmp::Reverse(c.len()));
    substitute(&mut document, &|text| {
        clusters
            .iter()
            .fold(text.to_owned(), |text, c| text.replace(&format!("@{c}"), &cluster_name(&name, c)))
    });
    super::tokens::fill(&mut document);
    many(&mut document);
    let mut case: Case =
        serde_json::from_value(document).unwrap_or_else(|e| panic!("data/{file}.yaml: {name}: {e}"));
    case.file = file;
    case.clusters.entry("up".to_owned()).or_default();
    for cluster in case.clusters.values_mut() {
        if cluster.endpoints.is_empty() {
            cluster.endpoints.push(Endpoint::default());
        }
    }
    case
}

/// An element `{many: {FIELD: N}}` of a list stands for N elements `FIELD: {address_prefix, prefix_len: 24}`: from 11.0.0.0 on,
/// every other network, so that none can be joined.
fn many(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(many),
        Value::Array(items) => {
            let expand = |mut item: Value| -> Vec<Value> {
                let Some((field, count)) = item["many"].as_object().and_then(|m| m.iter().next()) else {
                    many(&mut item);
                    return vec![item];
                };
                let network = |n: u32| json!({field: {"address_prefix": format!("11.{}.{}.0", n >> 7, n * 2 % 256), "prefix_len": 24}});
                (0..count.as_u64().unwrap_or_default() as u32).map(network).collect()
            };
            *items = std::mem::take(items).into_iter().flat_map(expand).collect();
        }
        _ => {}
    }
}

/// What a case's cluster is called in the configuration.
pub fn cluster_name(case: &str, cluster: &str) -> String {
    format!("{case}-{cluster}")
}

/// Replaces every string in a document.
pub fn substitute(value: &mut Value, replace: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = replace(text),
        Value::Array(items) => items.iter_mut().for_each(|v| substitute(v, replace)),
        Value::Object(fields) => fields.values_mut().for_each(|v| substitute(v, replace)),
        _ => {}
    }
}

/// Fields into a message; what is a message on both sides is merged.
pub fn merge(into: &mut Value, fields: &Value) {
    match (into, fields) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(fields)) => {
            for (key, value) in fields {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value.clone(),
    }
}

/// An extension's `name` and `typed_config`, where a case gives only the latter's fields with their type.
pub fn extension(filter: &Value) -> Value {
    if filter.get("typed_config").is_some() || filter.get("config_discovery").is_some() {
        return filter.clone();
    }
    let kind = filter["@type"].as_str().unwrap_or_default();
    json!({ "name": kind.rsplit('/').next(), "typed_config": filter })
}
