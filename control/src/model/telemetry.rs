//! Telemetry: who logs which requests, and which metrics are kept with which labels (telemetry.istio.io).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::gateway_api::TargetRef;
use super::meta::{Meta, Object};
use super::tracing::{Share, SpanTags};
use super::values::{Labels, Timespan, WorkloadSelector};
use super::world::World;

/// The provider of logs that is always there: the mesh's format, to the mesh's file or `/dev/stdout`.
pub const BUILT_IN_LOG: &str = "envoy";

/// How many of the requests that the filters of a Telemetry's logs do not take are logged as well, in per cent.
pub const SAMPLING_ANNOTATION: &str = "weft.dev/access-log-sampling";

/// The share that the annotation says; why not, where it says none.
pub fn sampling(meta: &Meta) -> Option<Result<Share, String>> {
    let text = meta.annotations.get(SAMPLING_ANNOTATION)?;
    let number: Result<f64, _> = text.trim_end_matches('%').trim().parse();
    let share = number.ok().map(Share::of).filter(|share| share.fits());
    Some(share.ok_or_else(|| format!("{text:?} is no percentage from 0 to 100")))
}

/// The specification of a Telemetry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Telemetry {
    /// Workloads for which it holds; absent for all of the namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// One Gateway, GatewayClass or Service for whose workloads it is. The old form of `target_refs`.
    pub target_ref: Option<TargetRef>,
    /// Gateways, GatewayClasses or Services for whose workloads it is, instead of a selector. Resolved when a state is read: empty in
    /// a World.
    pub target_refs: Vec<TargetRef>,
    /// Who logs requests, and which.
    pub access_logging: Vec<AccessLogging>,
    /// Which metrics are kept, and with which labels.
    pub metrics: Vec<Metrics>,
    /// Which requests are traced, and who gets the spans.
    pub tracing: Vec<Tracing>,
}

/// Traces of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// For which side it is; both by default.
    #[serde(rename = "match")]
    pub matching: Option<TracingSelector>,
    /// Who gets the spans; of several the first.
    pub providers: Vec<ProviderName>,
    /// The share of requests that are traced, in per cent.
    pub random_sampling_percentage: Option<Share>,
    /// Nobody gets spans.
    pub disable_span_reporting: Option<bool>,
    /// Further tags of spans, in place of those of a wider scope.
    pub custom_tags: SpanTags,
    /// Whether spans tell Istio's tags; they do by default.
    pub enable_istio_tags: Option<bool>,
    /// Whether ids of requests decide, and tell it; they do by default.
    pub use_request_id_for_trace_sampling: Option<bool>,
}

/// Which side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TracingSelector {
    /// The side.
    pub mode: WorkloadMode,
}

/// Logging of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AccessLogging {
    /// For which side it is; both by default.
    #[serde(rename = "match")]
    pub matching: Option<LogSelector>,
    /// Whom it is told; those that are told anyway by default.
    pub providers: Vec<ProviderName>,
    /// Nobody is told.
    pub disabled: bool,
    /// Which requests; all by default.
    pub filter: Option<LogFilter>,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogFilter {
    /// An expression in CEL; what it is true for is logged.
    pub expression: String,
}

/// Which side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogSelector {
    /// The side.
    pub mode: WorkloadMode,
}

/// A side of a request, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum WorkloadMode {
    /// Both.
    #[default]
    #[serde(rename = "CLIENT_AND_SERVER")]
    Both,
    /// Who sends it; gateways are clients.
    #[serde(rename = "CLIENT")]
    Client,
    /// Who is sent it.
    #[serde(rename = "SERVER")]
    Server,
}

/// A side of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sends it; gateways are clients.
    Client,
    /// Who is sent it.
    Server,
}

impl WorkloadMode {
    /// Whether this side is meant.
    pub fn is(self, side: Side) -> bool {
        match self {
            Self::Both => true,
            Self::Client => side == Side::Client,
            Self::Server => side == Side::Server,
        }
    }
}

/// A provider by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProviderName {
    /// Its name: one of MeshConfig's `extensionProviders`, or `envoy` (logs) and `prometheus` (metrics), which are always there.
    pub name: String,
}

/// Metrics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metrics {
    /// Who gets them; `prometheus` by default.
    pub providers: Vec<ProviderName>,
    /// What is otherwise than by default; later ones go before earlier ones.
    pub overrides: Vec<MetricsOverride>,
    /// How often connections of bytes report while they live; 5 s by default.
    pub reporting_interval: Option<Timespan>,
}

/// What is otherwise for some metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricsOverride {
    /// Which metrics, and whose; all of both sides by default.
    #[serde(rename = "match")]
    pub matching: Option<MetricSelector>,
    /// Whether they are dropped.
    pub disabled: Option<bool>,
    /// Labels that are taken away or set.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

impl MetricsOverride {
    /// Whether it is about this metric on this side.
    pub fn is_about(&self, metric: Metric, side: Side) -> bool {
        let Some(matching) = &self.matching else { return true };
        let named = matching.metric.is_none_or(|wanted| wanted == Metric::All || wanted == metric);
        named && matching.mode.is(side)
    }
}

/// Which metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricSelector {
    /// The metric; all by default.
    pub metric: Option<Metric>,
    /// The side; both by default.
    pub mode: WorkloadMode,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident = $istio:literal, $series:literal;)*) => {
        /// A metric as Telemetry names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        pub enum Metric {
            /// All of them.
            #[serde(rename = "ALL_METRICS")]
            All,
            $($(#[$doc])* #[serde(rename = $istio)] $name,)*
        }

        impl Metric {
            /// Each, with the name of its series without `istio_`.
            pub const EACH: &'static [(Self, &'static str)] = &[$((Self::$name, $series),)*];
        }
    };
}

metrics! {
    /// Requests.
    RequestCount = "REQUEST_COUNT", "requests_total";
    /// Their durations.
    RequestDuration = "REQUEST_DURATION", "request_duration_milliseconds";
    /// Their sizes.
    RequestSize = "REQUEST_SIZE", "request_bytes";
    /// The sizes of their answers.
    ResponseSize = "RESPONSE_SIZE", "response_bytes";
    /// Connections that were opened.
    TcpOpened = "TCP_OPENED_CONNECTIONS", "tcp_connections_opened_total";
    /// Connections that were closed.
    TcpClosed = "TCP_CLOSED_CONNECTIONS", "tcp_connections_closed_total";
    /// Bytes sent.
    TcpSent = "TCP_SENT_BYTES", "tcp_sent_bytes_total";
    /// Bytes received.
    TcpReceived = "TCP_RECEIVED_BYTES", "tcp_received_bytes_total";
    /// Messages of gRPC requests.
    GrpcRequests = "GRPC_REQUEST_MESSAGES", "request_messages_total";
    /// Messages of gRPC answers.
    GrpcResponses = "GRPC_RESPONSE_MESSAGES", "response_messages_total";
}

/// What becomes of a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TagOverride {
    /// Whether it is set or taken away.
    pub operation: TagOperation,
    /// What it is set to: an expression in CEL.
    pub value: String,
}

/// Whether a label is set or taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum TagOperation {
    /// It is set.
    #[default]
    #[serde(rename = "UPSERT")]
    Upsert,
    /// It is taken away.
    #[serde(rename = "REMOVE")]
    Remove,
}

impl World {
    /// Those that hold for a workload, the widest first: the oldest without a selector of the root namespace, the same of its own,
    /// and the oldest that selects it. What a later one says goes before what an earlier one says.
    pub fn telemetries_of(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Object<Telemetry>>> {
        let root = self.mesh().root_namespace.as_str();
        let all = || self.telemetries().iter();
        let for_all =
            |wanted: &str| all().find(|one| one.meta.namespace == wanted && one.spec.selector.is_none());
        let own = (namespace != root).then(|| for_all(namespace)).flatten();
        let selects = |one: &&Arc<Object<Telemetry>>| {
            one.meta.namespace == namespace && one.spec.selector.as_ref().is_some_and(|s| s.selects(labels))
        };
        [for_all(root), own, all().find(selects)].into_iter().flatten().collect()
    }
}
