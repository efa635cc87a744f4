//! What is otherwise than Istio's metrics are by default (`stats.PluginConfig`'s `metrics`): metrics that are dropped, labels that
//! are taken away, labels that an expression says, and metrics of one's own.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use xds_protos::stats::PluginConfig;

use super::custom::Custom;
use super::{Far, Labels};
use crate::codec::RequestHead;
use crate::io::ConnectionInfo;
use crate::state::ConfigError;
use crate::telemetry::StreamInfo;
use crate::telemetry::cel::{Expression, Seen};
use crate::telemetry::registry::label_value;

/// Istio's metrics, in the order of [`Changes::of`].
const METRICS: [&str; 10] = [
    "istio_requests_total",
    "istio_request_duration_milliseconds",
    "istio_request_bytes",
    "istio_response_bytes",
    "istio_request_messages_total",
    "istio_response_messages_total",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
];

/// What is otherwise.
#[derive(Debug, Default)]
pub struct Changes {
    /// For each metric; empty where nothing is otherwise.
    of: Vec<Change>,
    /// Expressions that labels are made of.
    expressions: Vec<Expression>,
    /// Metrics of one's own.
    custom: Vec<Custom>,
}

#[derive(Clone, Debug, Default)]
struct Change {
    dropped: bool,
    removed: Vec<String>,
    /// Labels, each with the place of its expression.
    set: Vec<(&'static str, usize)>,
}

/// A label's name for good, as the registry wants it. Each name is kept once, however often configuration with it comes.
pub(super) fn interned(name: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(name);
    name
}

impl Changes {
    /// Compiles the messages; later ones go before earlier ones.
    ///
    /// # Errors
    /// A metric that is not there, an expression that is none, or what Weft does not do.
    pub fn compile(config: &PluginConfig) -> Result<Self, ConfigError> {
        let mut changes = Self::default();
        for (index, definition) in config.definitions.iter().enumerate() {
            let custom = Custom::compile(definition).map_err(|e| e.at(format!("definitions[{index}]")))?;
            changes.custom.push(custom);
        }
        for (index, metric) in config.metrics.iter().enumerate() {
            let at = |e: ConfigError| e.at(format!("metrics[{index}]"));
            let full = format!("istio_{}", metric.name);
            let found = METRICS.iter().position(|name| **name == full);
            let chosen = match (metric.name.as_str(), found) {
                ("", _) => 0..METRICS.len(),
                (_, Some(place)) => place..place + 1,
                (name, None) => {
                    let what = format!("{name:?} is none of Istio's metrics; {}", METRICS.join(", "));
                    return Err(at(ConfigError::new("name", what)));
                }
            };
            changes.of.resize(METRICS.len(), Change::default());
            let mut set = Vec::new();
            let mut dimensions: Vec<_> = metric.dimensions.iter().collect();
            dimensions.sort();
            for (label, text) in dimensions {
                let expression = Expression::compile(text)
                    .map_err(|reason| at(ConfigError::new(format!("dimensions[{label}]"), reason)))?;
                set.push((interned(label), changes.expressions.len()));
                changes.expressions.push(expression);
            }
            for change in &mut changes.of[chosen] {
                change.dropped = metric.drop;
                for label in &metric.tags_to_remove {
                    change.set.retain(|(set, _)| set != label);
                    change.removed.push(label.clone());
                }
                for (label, place) in &set {
                    change.removed.retain(|removed| removed != label);
                    change.set.retain(|(before, _)| before != label);
                    change.set.push((label, *place));
                }
            }
        }
        Ok(changes)
    }

    /// Whether an expression looks at what a request brought.
    pub(super) fn looks_at_requests(&self) -> bool {
        self.expressions.iter().any(Expression::looks_at_request)
            || self.custom.iter().any(Custom::looks_at_requests)
    }

    /// Counts a request that has ended in the metrics of one's own.
    pub(super) fn count(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        request: Option<&RequestHead>,
        far: Far<'_>,
    ) {
        let seen = Seen { stream, connection, request, response: None, trailers: None, far: Some(far) };
        self.custom.iter().for_each(|custom| custom.count(seen));
    }

    /// Whether labels are made by expressions.
    pub(super) fn has_expressions(&self) -> bool {
        !self.expressions.is_empty()
    }

    /// What the expressions say of a stream.
    pub(super) fn said(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        request: Option<&RequestHead>,
        far: Far<'_>,
    ) -> Option<Arc<[String]>> {
        if self.expressions.is_empty() {
            return None;
        }
        let seen = Seen { stream, connection, request, response: None, trailers: None, far: Some(far) };
        Some(self.expressions.iter().map(|expression| expression.label(seen)).collect())
    }

    /// The labels of a metric; none if it is dropped.
    pub(super) fn labels(
        &self,
        metric: &str,
        by_default: &Labels,
        said: Option<&[String]>,
    ) -> Option<Labels> {
        let place = METRICS.iter().position(|name| *name == metric);
        let Some(change) = place.and_then(|place| self.of.get(place)) else {
            return Some(by_default.clone());
        };
        if change.dropped {
            return None;
        }
        if change.removed.is_empty() && change.set.is_empty() {
            return Some(by_default.clone());
        }
        let mut labels: Vec<_> = by_default
            .iter()
            .filter(|(name, _)| !change.removed.iter().any(|r| r == name))
            .cloned()
            .collect();
        for (label, place) in &change.set {
            let value = label_value(said.and_then(|said| said.get(*place)).map_or("", String::as_str));
            match labels.iter_mut().find(|(name, _)| name == label) {
                Some((_, old)) => *old = value,
                None => labels.push((label, value)),
            }
        }
        Some(labels.into_iter().collect())
    }
}
