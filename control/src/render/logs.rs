//! The loggers of a provider: a file, a collector of OTLP, Envoy's access log services; and which requests they take.

use serde_json::{Map, Value, json};
use xds_protos::format;

use super::authorization::custom::service;
use crate::model::World;
use crate::model::extension_provider::{FileAccessLog, HttpAls, OtelAls, TcpAls};
use crate::model::mesh_config::AccessLogEncoding;
use crate::model::telemetry::BUILT_IN_LOG;
use crate::model::tracing::Share;

/// The objects that Istio has told unless a provider says otherwise.
const PEERS: [&str; 2] = ["upstream_peer", "downstream_peer"];

/// Which requests a provider is told.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    /// An expression in CEL.
    pub expression: String,
    /// Of all others this share.
    pub others: Option<Share>,
}

/// A provider as a logger of Envoy's; none for one that takes no logs, or none of these, or whose service is not there.
pub(super) fn logger(world: &World, name: &str, taken: Option<&Taken>, http: bool) -> Option<Value> {
    let mesh = world.mesh();
    let mut log = if name == BUILT_IN_LOG {
        to_file(&mesh.access_log_file, mesh_format(world))
    } else {
        let provider = mesh.extension_providers.iter().find(|provider| provider.name == name)?;
        match (&provider.envoy_file_access_log, &provider.envoy_otel_als) {
            (Some(file), _) => to_file(&file.path, file_format(file)),
            (None, Some(given)) => otel(world, given)?,
            (None, None) => match (&provider.envoy_http_als, &provider.envoy_tcp_als) {
                (Some(given), _) if http => http_als(world, given)?,
                (None, Some(given)) if !http => tcp_als(world, given)?,
                _ => return None,
            },
        }
    };
    if let Some(taken) = taken {
        log["filter"] = filter(taken);
    }
    Some(log)
}

fn filter(taken: &Taken) -> Value {
    let expression = json!({"extension_filter": {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": taken.expression,
        },
    }});
    let Some(share) = taken.others else { return expression };
    // By the request's id: what one proxy logs of a request, the others do.
    let others = json!({"runtime_filter": {
        "runtime_key": "weft.access_log_sampling",
        "percent_sampled": {"numerator": share.0, "denominator": "TEN_THOUSAND"},
    }});
    json!({"or_filter": {"filters": [expression, others]}})
}

fn to_file(path: &str, format: Value) -> Value {
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": if path.is_empty() { "/dev/stdout" } else { path },
            "log_format": format,
        },
    })
}

fn file_format(file: &FileAccessLog) -> Value {
    let mut format = match &file.log_format {
        Some(format) if !format.labels.is_empty() => json!({"json_format": format.labels}),
        Some(format) => text_format(&format.text),
        None => text_format(format::ISTIO_TEXT),
    };
    if file.omit_empty_values {
        format["omit_empty_values"] = true.into();
    }
    format
}

/// What all loggers of collectors have in common.
fn common(world: &World, place: &str, port: u16, name: &str, objects: &[String]) -> Option<Value> {
    let (host, cluster) = service(world, place, port)?;
    let objects = if objects.is_empty() { json!(PEERS) } else { json!(objects) };
    Some(json!({
        "log_name": name,
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster, "authority": host}},
        "transport_api_version": "V3",
        "filter_state_objects_to_log": objects,
    }))
}

fn named<'a>(given: &'a str, otherwise: &'a str) -> &'a str {
    if given.is_empty() { otherwise } else { given }
}

fn otel(world: &World, given: &OtelAls) -> Option<Value> {
    let name = named(&given.log_name, "otel_envoy_accesslog");
    let format = given.log_format.as_ref();
    let text = format.map(|f| f.text.as_str()).filter(|text| !text.is_empty()).unwrap_or(format::ISTIO_TEXT);
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
        "common_config": common(world, &given.service, given.port, name, &[])?,
        "disable_builtin_labels": true,
        "body": {"string_value": text},
    });
    let labels = format.map(|f| &f.labels).filter(|labels| !labels.is_empty());
    if let Some(labels) = labels {
        let values = labels.iter().map(|(key, text)| json!({"key": key, "value": {"string_value": text}}));
        config["attributes"] = json!({"values": values.collect::<Vec<_>>()});
    }
    Some(json!({"name": "envoy.access_loggers.open_telemetry", "typed_config": config}))
}

fn http_als(world: &World, given: &HttpAls) -> Option<Value> {
    let name = named(&given.log_name, "http_envoy_accesslog");
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": common(world, &given.service, given.port, name, &given.filter_state_objects_to_log)?,
    });
    for (field, list) in [
        ("additional_request_headers_to_log", &given.additional_request_headers_to_log),
        ("additional_response_headers_to_log", &given.additional_response_headers_to_log),
        ("additional_response_trailers_to_log", &given.additional_response_trailers_to_log),
    ] {
        if !list.is_empty() {
            config[field] = json!(list);
        }
    }
    Some(json!({"name": "envoy.access_loggers.http_grpc", "typed_config": config}))
}

fn tcp_als(world: &World, given: &TcpAls) -> Option<Value> {
    let name = named(&given.log_name, "tcp_envoy_accesslog");
    let config = json!({
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
        "common_config": common(world, &given.service, given.port, name, &given.filter_state_objects_to_log)?,
    });
    Some(json!({"name": "envoy.access_loggers.tcp_grpc", "typed_config": config}))
}

/// The mesh's format.
fn mesh_format(world: &World) -> Value {
    let mesh = world.mesh();
    match (mesh.access_log_encoding, mesh.access_log_format.as_str()) {
        (AccessLogEncoding::Json, given) => {
            let given = serde_json::from_str(given).unwrap_or_else(|_| {
                format::ISTIO_JSON.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect::<Map<_, _>>()
            });
            json!({"json_format": given})
        }
        (AccessLogEncoding::Text, "") => text_format(format::ISTIO_TEXT),
        (AccessLogEncoding::Text, given) => text_format(given),
    }
}

/// A text, and the end of its line, which Istio adds where it is missing.
fn text_format(text: &str) -> Value {
    let text = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    json!({"text_format_source": {"inline_string": text}})
}
