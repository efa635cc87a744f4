//! Access logs and Istio's metrics of a listener, by MeshConfig and by the Telemetries that hold for the workload.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::ProxyNode;
use super::filters::Way;
use crate::model::World;
use crate::model::mesh_config::AccessLogEncoding;
use crate::model::telemetry::{BUILT_IN_LOG, Metric, Side, TagOperation};

/// Istio's default text format.
const LOG_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The keys of Istio's default JSON log, and what they show.
const LOG_JSON: [(&str, &str); 23] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

pub(super) fn side(way: Way) -> Side {
    if way == Way::Inbound { Side::Server } else { Side::Client }
}

/// Whom requests are told, and which of them.
pub(super) fn access_log(world: &World, node: &ProxyNode, way: Way) -> Value {
    let by_default = !world.mesh().access_log_file.is_empty();
    let mut told: Vec<(String, Option<String>)> =
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
            let filter = logging.filter.as_ref().map(|filter| filter.expression.clone());
            for name in names {
                told.retain(|(other, _)| *other != name);
                told.push((name, filter.clone()));
            }
        }
    }
    told.iter().filter_map(|(name, filter)| logger(world, name, filter.as_deref())).collect()
}

/// A provider as a logger of Envoy's; none for one that takes no logs.
fn logger(world: &World, name: &str, filter: Option<&str>) -> Option<Value> {
    let mesh = world.mesh();
    let (path, format) = if name == BUILT_IN_LOG {
        (mesh.access_log_file.as_str(), mesh_format(world))
    } else {
        let provider = mesh.extension_providers.iter().find(|provider| provider.name == name)?;
        let file = provider.envoy_file_access_log.as_ref()?;
        let format = match &file.log_format {
            Some(format) if !format.labels.is_empty() => json!({"json_format": format.labels}),
            Some(format) => text_format(&format.text),
            None => text_format(LOG_FORMAT),
        };
        (file.path.as_str(), format)
    };
    let mut log = json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": if path.is_empty() { "/dev/stdout" } else { path },
            "log_format": format,
        },
    });
    if let Some(expression) = filter {
        log["filter"] = json!({"extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": expression,
            },
        }});
    }
    Some(log)
}

/// The mesh's format.
fn mesh_format(world: &World) -> Value {
    let mesh = world.mesh();
    match (mesh.access_log_encoding, mesh.access_log_format.as_str()) {
        (AccessLogEncoding::Json, given) => {
            let given = serde_json::from_str(given).unwrap_or_else(|_| {
                LOG_JSON.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect::<Map<_, _>>()
            });
            json!({"json_format": given})
        }
        (AccessLogEncoding::Text, "") => text_format(LOG_FORMAT),
        (AccessLogEncoding::Text, given) => text_format(given),
    }
}

fn text_format(text: &str) -> Value {
    json!({"text_format_source": {"inline_string": text}})
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
