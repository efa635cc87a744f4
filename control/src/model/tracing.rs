//! Traces: shares, tags and collectors, as MeshConfig, ProxyConfig and Telemetry give them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::values::{Labels, Timespan};

/// The port at which collectors took Jaeger's format, which proxies do not speak, and those at which they take OTLP.
pub const JAEGER_PORT: u16 = 14268;
/// OTLP over gRPC.
pub const OTLP_GRPC_PORT: u16 = 4317;
/// OTLP over HTTP.
pub const OTLP_HTTP_PORT: u16 = 4318;

/// A percentage, kept in hundredths of a per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Share(pub i64);

impl Share {
    /// As a percentage.
    pub fn percent(self) -> f64 {
        self.0 as f64 / 100.0
    }

    /// Of a percentage.
    pub fn of(percent: f64) -> Self {
        Self((percent * 100.0).round() as i64)
    }

    /// Whether it is from 0 to 100 per cent.
    pub fn fits(self) -> bool {
        (0..=10_000).contains(&self.0)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::of)
    }
}

/// A tag that spans get beside the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SpanTag {
    /// Always the same.
    pub literal: Option<Literal>,
    /// A variable of the proxy's environment.
    pub environment: Option<Named>,
    /// A header field of the request.
    pub header: Option<Named>,
    /// A format with Envoy's operators.
    pub formatter: Option<Literal>,
}

/// A text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Literal {
    /// The text.
    pub value: String,
}

/// A value by its name, and what stands in its place where it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Named {
    /// The name.
    pub name: String,
    /// What stands in its place.
    pub default_value: String,
}

/// Tags by their names.
pub type SpanTags = BTreeMap<String, SpanTag>;

/// How proxies trace where no Telemetry says otherwise (ProxyConfig's `tracing`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyTracing {
    /// The share of requests that are traced, in per cent; 1 unless set.
    pub sampling: Option<Share>,
    /// Further tags.
    pub custom_tags: SpanTags,
    /// The most of a path that is told; 256 unless set.
    pub max_path_tag_length: Option<u32>,
    /// Whether spans tell Istio's tags; they do unless set.
    pub enable_istio_tags: Option<bool>,
    /// The collector where no provider is named.
    pub zipkin: Option<ZipkinAddress>,
}

/// A collector by its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZipkinAddress {
    /// `HOST:PORT`.
    pub address: String,
}

impl ZipkinAddress {
    /// Host, port and path.
    pub fn parts(&self) -> Option<(&str, u16, &str)> {
        let rest = self.address.strip_prefix("http://").unwrap_or(&self.address);
        let (place, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = place.rsplit_once(':')?;
        Some((host, port.parse().ok().filter(|port| *port > 0)?, path)).filter(|_| !host.is_empty())
    }
}

/// A collector of OTLP (`opentelemetry`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetry {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// The most of a path that is told; 256 unless set.
    pub max_tag_length: Option<u32>,
    /// It is spoken to by HTTP; by gRPC unless set.
    pub http: Option<OtlpHttp>,
    /// Settings of gRPC.
    pub grpc: Option<OtlpGrpc>,
    /// What else spans tell of their sender.
    pub resource_detectors: Option<ResourceDetectors>,
}

/// OTLP over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OtlpHttp {
    /// The path, such as `/v1/traces`.
    pub path: String,
    /// How long its answer is waited for.
    pub timeout: Option<Timespan>,
    /// Further header fields.
    pub headers: Vec<Field>,
}

/// OTLP over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OtlpGrpc {
    /// How long its answer is waited for.
    pub timeout: Option<Timespan>,
    /// Further header fields.
    pub initial_metadata: Vec<Field>,
}

/// A header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What else spans tell of their sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResourceDetectors {
    /// What the proxy's environment says (`OTEL_RESOURCE_ATTRIBUTES`).
    pub environment: Option<Nothing>,
}

/// There is nothing to say about it but that it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Nothing {}

/// A collector of Zipkin's JSON (`zipkin`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Zipkin {
    /// Its service: `HOST`, or `NAMESPACE/HOST`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// The most of a path that is told; 256 unless set.
    pub max_tag_length: Option<u32>,
    /// Ids of traces have 64 bits in place of 128.
    #[serde(rename = "enable64bitTraceId")]
    pub enable_64bit_trace_id: bool,
    /// The path; `/api/v2/spans` unless set.
    pub path: String,
    /// Which header fields carry the trace.
    pub trace_context_option: ZipkinContext,
}

/// Which header fields carry the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ZipkinContext {
    /// B3's.
    #[default]
    #[serde(rename = "USE_B3")]
    B3,
    /// B3's, and W3C's beside them.
    #[serde(rename = "USE_B3_WITH_W3C_PROPAGATION")]
    B3AndW3c,
}

/// The tags by which a workload is known in spans, by its labels: the canonical service.
pub fn canonical_service(labels: &Labels) -> Option<&str> {
    first(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
}

/// Its canonical revision.
pub fn canonical_revision(labels: &Labels) -> Option<&str> {
    first(labels, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
}

fn first<'a>(labels: &'a Labels, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str)
}
