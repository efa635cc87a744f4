//! Access logs and Istio's metrics of a listener, by MeshConfig and by the Telemetries that hold for the workload.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ProxyNode;
use super::filters::Way;
use super::logs::{Taken, logger};
use crate::model::World;
use crate::model::telemetry::{BUILT_IN_LOG, Metric, Side, TagOperation, sampling};

pub(super) fn side(way: Way) -> Side {
    if way == Way::Inbound { Side::Server } else { Side::Client }
}

/// Whom requests are told (or connections, where it is not HTTP), and which of them.
pub(super) fn access_log(world: &World, node: &ProxyNode, way: Way, http: bool) -> Value {
    let by_default = !world.mesh().access_log_file.is_empty();
    let mut told: Vec<(String, Option<Taken>)> =
        by_default.then(|| (BUILT_IN_LOG.to_owned(), None)).into_iter().collect();
    for telemetry in world.telemetries_of(&node.namespace, node.selected_by(world)) {
        let here =
            telemetry.spec.access_logging.iter().filter(|logging| {
                logging.matching.as_ref().is_none_or(|matching| matching.mode.is(side(way)))
            });
        let here: Vec<_> = here.collect();
        let before: Vec<String> = told.iter().map(|(name, _)| name.clone()).collect();
        // Who names providers means them in the place of those of a wider scope.
        if here.iter().any(|logging| !logging.providers.is_empty() && !logging.disabled) {
            told.clear();
        }
        for logging in here {
            let named = logging.providers.iter().map(|provider| provider.name.clone());
            let mut names: Vec<String> = named.collect();
            if logging.disabled {
                told.retain(|(name, _)| !names.is_empty() && !names.contains(name));
                continue;
            }
            if names.is_empty() {
                names.clone_from(&before);
            }
            if names.is_empty() {
                names.push(BUILT_IN_LOG.to_owned());
            }
            let filter = logging.filter.as_ref().map(|filter| Taken {
                expression: filter.expression.clone(),
                others: sampling(&telemetry.meta).and_then(Result::ok),
            });
            for name in names {
                told.retain(|(other, _)| *other != name);
                told.push((name, filter.clone()));
            }
        }
    }
    told.iter().filter_map(|(name, taken)| logger(world, name, taken.as_ref(), http)).collect()
}

/// What is otherwise of a metric.
#[derive(Default)]
struct Change {
    dropped: bool,
    /// Labels: what each is set to; none for one that is taken away.
    labels: BTreeMap<String, Option<String>>,
}

/// The configuration of Istio's metrics.
pub(super) fn metrics(world: &World, node: &ProxyNode, way: Way) -> Value {
    let telemetries = world.telemetries_of(&node.namespace, node.selected_by(world));
    if telemetries.is_empty() {
        return json!({});
    }
    let mut every = None;
    let mut changes: Vec<Change> = Metric::EACH.iter().map(|_| Change::default()).collect();
    for telemetry in telemetries {
        for metrics in &telemetry.spec.metrics {
            every = metrics.reporting_interval.or(every);
            for over in &metrics.overrides {
                let all = Metric::EACH.iter().zip(&mut changes);
                for (_, change) in all.filter(|((metric, _), _)| over.is_about(*metric, side(way))) {
                    change.dropped = over.disabled.unwrap_or(change.dropped);
                    for (label, tag) in &over.tag_overrides {
                        let value = (tag.operation == TagOperation::Upsert).then(|| tag.value.clone());
                        change.labels.insert(label.clone(), value);
                    }
                }
            }
        }
    }
    let mut list = Vec::new();
    for ((_, name), change) in Metric::EACH.iter().zip(&changes) {
        if change.dropped {
            list.push(json!({"name": name, "drop": true}));
        } else if !change.labels.is_empty() {
            let set: BTreeMap<_, _> =
                change.labels.iter().filter_map(|(label, value)| Some((label, value.as_ref()?))).collect();
            let removed: Vec<_> =
                change.labels.iter().filter(|(_, value)| value.is_none()).map(|(label, _)| label).collect();
            list.push(json!({"name": name, "dimensions": set, "tags_to_remove": removed}));
        }
    }
    let mut config = json!({});
    if !list.is_empty() {
        config["metrics"] = list.into();
    }
    if let Some(every) = every {
        config["tcp_reporting_duration"] = super::seconds(every.get());
    }
    config
}
