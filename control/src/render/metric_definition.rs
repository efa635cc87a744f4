//! MetricDefinitions as definitions of the filter of statistics, with what Weft's proxies know beside Istio's.

use serde_json::{Value, json};

use super::ProxyNode;
use super::filters::Way;
use super::telemetry::side;
use crate::model::World;
use crate::model::metric_definition::{IDLE, MOST_SERIES, MetricDefinition};

/// Those that hold for the workload.
pub(super) fn definitions(world: &World, node: &ProxyNode, way: Way) -> Vec<Value> {
    if world.metric_definitions().is_empty() {
        return Vec::new();
    }
    let found = world.metric_definitions_of(&node.namespace, node.selected_by(world), side(way));
    found.into_iter().map(|object| definition(&MetricDefinition::name(object), &object.spec)).collect()
}

fn definition(name: &str, spec: &MetricDefinition) -> Value {
    let dimensions: Vec<_> = spec
        .dimensions
        .iter()
        .map(|(label, dimension)| {
            json!({
                "name": label, "value": dimension.expression(), "hash": dimension.hash,
                "otherwise": dimension.otherwise.as_deref().unwrap_or("unknown"),
            })
        })
        .collect();
    json!({
        "name": name,
        "value": if spec.value.is_empty() { "1" } else { &spec.value },
        "type": spec.kind.as_str(),
        "dimensions": dimensions,
        "max_series": spec.max_series.unwrap_or(MOST_SERIES),
        "idle_timeout": super::seconds(spec.idle_timeout.unwrap_or(IDLE).get()),
    })
}
