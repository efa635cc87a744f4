//! MetricDefinition: a metric of one's own, counted by the proxies from what requests bring (weft.dev).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::meta::Object;
use super::telemetry::{Side, WorkloadMode};
use super::values::{Labels, Timespan, WorkloadSelector};
use super::world::World;

/// As many series as a metric has where it does not say.
pub const MOST_SERIES: u32 = 1000;
/// As many as it may have.
pub const LARGEST_BOUND: u32 = 20_000;
/// How long a series stays that nobody counts.
pub const IDLE: Timespan = Timespan::secs(3600);

/// The specification of a MetricDefinition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricDefinition {
    /// Workloads whose proxies count it; absent for all of the namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// Its name for Prometheus; the object's name by default, with `_` for `-` and `.`.
    pub metric: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: MetricKind,
    /// Who counts a request: the one who is sent it, by default.
    pub mode: Option<WorkloadMode>,
    /// What a request adds, an expression in CEL; 1 by default.
    pub value: String,
    /// Its labels.
    pub dimensions: BTreeMap<String, Dimension>,
    /// As many series as it may have in one proxy; what comes then is counted together.
    pub max_series: Option<u32>,
    /// How long a series stays that nobody counts; 0s: for ever.
    pub idle_timeout: Option<Timespan>,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MetricKind {
    /// It grows.
    #[default]
    #[serde(rename = "COUNTER")]
    Counter,
    /// It is what the last request said.
    #[serde(rename = "GAUGE")]
    Gauge,
    /// How many requests said how much.
    #[serde(rename = "HISTOGRAM")]
    Histogram,
}

/// Where a label comes from: one of a header and an expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Dimension {
    /// A header field of the request.
    pub header: String,
    /// An expression in CEL.
    pub expression: String,
    /// What it is where a request does not say; `unknown` by default.
    #[serde(rename = "default")]
    pub otherwise: Option<String>,
    /// A digest stands in the place of the value.
    pub hash: bool,
    /// It may say who somebody is, and that is meant.
    pub personal: bool,
}

impl MetricKind {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "COUNTER",
            Self::Gauge => "GAUGE",
            Self::Histogram => "HISTOGRAM",
        }
    }
}

impl MetricDefinition {
    /// The metric's name.
    pub fn name(object: &Object<Self>) -> String {
        match object.spec.metric.as_str() {
            "" => object.meta.name.replace(['-', '.'], "_"),
            given => given.to_owned(),
        }
    }

    fn is_for(&self, side: Side) -> bool {
        self.mode.unwrap_or(WorkloadMode::Server).is(side)
    }
}

impl Dimension {
    /// What it is, as an expression.
    pub fn expression(&self) -> String {
        match self.header.as_str() {
            "" => self.expression.clone(),
            header => format!("request.headers['{}']", header.to_ascii_lowercase()),
        }
    }
}

impl World {
    /// Those that a workload's proxy counts on this side: those of the root namespace, then those of its own, each oldest first; of
    /// one name the first.
    pub fn metric_definitions_of(
        &self,
        namespace: &str,
        labels: &Labels,
        side: Side,
    ) -> Vec<&Arc<Object<MetricDefinition>>> {
        let root = self.mesh().root_namespace.as_str();
        let mut found: Vec<&Arc<Object<MetricDefinition>>> = Vec::new();
        let places = if namespace == root { vec![root] } else { vec![root, namespace] };
        for place in places {
            let here = self.metric_definitions().iter().filter(|one| {
                one.meta.namespace == place
                    && one.spec.is_for(side)
                    && one.spec.selector.as_ref().is_none_or(|selector| selector.selects(labels))
            });
            for one in here {
                let name = MetricDefinition::name(one);
                if found.iter().all(|other| MetricDefinition::name(other) != name) {
                    found.push(one);
                }
            }
        }
        found
    }
}
