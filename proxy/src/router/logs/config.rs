//! The loggers that send what they log to collectors: `envoy.access_loggers.open_telemetry`, `.http_grpc` and `.tcp_grpc`.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::access_loggers::grpc::v3 as grpc;
use xds_protos::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use xds_protos::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use xds_protos::envoy::r#type::tracing::v3::CustomTag;
use xds_protos::opentelemetry::proto::resource::v1::Resource as ProtoResource;
use xds_protos::prost_types::{self, value::Kind};
use xds_protos::{Any, value};

use super::stream::Service;
use super::{Otlp, Target, Work, stats};
use crate::io::Rare;
use crate::route::config::{duration, words};
use crate::router::collector::{HttpCollector, Resource, TIMEOUT};
use crate::router::grpc::{GrpcService, only_v3};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError, NodeInfo};
use crate::telemetry::access_log::Destination;
use crate::telemetry::access_log::entry::Extras;
use crate::telemetry::access_log::otlp::{Node, Record, pair, pairs};
use crate::telemetry::trace::{Source, Tag};

type Errors = Vec<ConfigError>;

/// How long entries wait, and how many bytes of them, where the configuration does not say.
const EVERY: Duration = Duration::from_secs(1);
const ENOUGH: u32 = 16 * 1024;

/// The destination of a logger of these kinds; none if it is of another.
///
/// # Errors
/// Everything that is wrong in it, below `typed_config`.
pub fn destination(any: &Any, context: &CompileContext) -> Option<Result<Destination, Errors>> {
    let bad = |e: xds_protos::UnpackError| Errors::from(ConfigError::new("", e.to_string()));
    if any.is::<OpenTelemetryAccessLogConfig>() {
        Some(any.unpack().map_err(bad).and_then(|config| otlp(&config, &any.value, context)))
    } else if any.is::<grpc::HttpGrpcAccessLogConfig>() {
        Rare::DownstreamSession.want();
        Some(any.unpack().map_err(bad).and_then(|config| http(&config, &any.value, context)))
    } else if any.is::<grpc::TcpGrpcAccessLogConfig>() {
        Rare::DownstreamSession.want();
        Some(any.unpack().map_err(bad).and_then(|config| tcp(&config, &any.value, context)))
    } else {
        None
    }
}

#[allow(deprecated, reason = "istiod still says it the old way")]
fn otlp(
    config: &OpenTelemetryAccessLogConfig,
    key: &[u8],
    context: &CompileContext,
) -> Result<Destination, Errors> {
    let mut errors = Vec::new();
    let common = config.common_config.as_ref();
    if let Some(common) = common {
        let mut wrong = Vec::new();
        only_v3(common.transport_api_version, &mut wrong);
        if common.grpc_stream_retry_policy.is_some() {
            wrong.push(ConfigError::unsupported("grpc_stream_retry_policy", "a second try of a message"));
        }
        errors.extend(at("common_config")(wrong));
    }
    let old = common.and_then(|c| c.grpc_service.as_ref());
    let target = match (&config.grpc_service, &config.http_service, old) {
        (Some(service), None, None) => {
            let compiled = GrpcService::compile(service, TIMEOUT, context).map(Target::Grpc);
            collect(compiled, "grpc_service", &mut errors)
        }
        (None, None, Some(service)) => {
            let compiled = GrpcService::compile(service, TIMEOUT, context).map(Target::Grpc);
            collect(compiled, "common_config.grpc_service", &mut errors)
        }
        (None, Some(service), None) => {
            let compiled = HttpCollector::compile(service, context).map(Target::Http);
            collect(compiled, "http_service", &mut errors)
        }
        (None, None, None) => {
            errors.push(ConfigError::missing("grpc_service or http_service"));
            None
        }
        _ => {
            let what = "several collectors stand beside each other; one is enough";
            errors.push(ConfigError::new("grpc_service", what));
            None
        }
    };
    let wrong = |prefix: &str, (path, reason): (String, String)| {
        Errors::from(ConfigError::new(path, reason).at(prefix))
    };
    let body = config
        .body
        .as_ref()
        .filter(|b| b.value.is_some())
        .and_then(|body| collect(Node::compile(body).map_err(|e| wrong("body", e)), "", &mut errors));
    let list = config.attributes.as_ref().map_or(&[][..], |list| &list.values);
    let attributes = collect(pairs(list).map_err(|e| wrong("attributes", e)), "", &mut errors);
    let mut tags = collect(tags(&config.custom_tags), "", &mut errors).unwrap_or_default();
    let mut objects = config.filter_state_objects_to_log.clone();
    let (mut name, mut every, mut enough) =
        (config.log_name.as_str(), config.buffer_flush_interval, config.buffer_size_bytes);
    if let Some(common) = common {
        if name.is_empty() {
            name = &common.log_name;
        }
        every = every.or(common.buffer_flush_interval);
        enough = enough.or(common.buffer_size_bytes);
        objects.extend(common.filter_state_objects_to_log.iter().cloned());
        tags.extend(
            collect(self::tags(&common.custom_tags), "common_config", &mut errors).unwrap_or_default(),
        );
    }
    let every = collect(interval(every), "buffer_flush_interval", &mut errors);
    let mut resource = Resource::default();
    if !config.disable_builtin_labels {
        resource.say("log_name", name);
        resource.say("zone_name", &context.node.zone);
        resource.say("cluster_name", &context.node.cluster);
        resource.say("node_name", &context.node.id);
    }
    collect(resource.detect(&config.resource_detectors), "", &mut errors);
    let (Some(target), Some(attributes), Some(every), true) = (target, attributes, every, errors.is_empty())
    else {
        return Err(errors);
    };
    let mut attributes_of_sender: Vec<_> = resource.0.into_iter().map(|(k, v)| pair(k, v)).collect();
    for said in config.resource_attributes.iter().flat_map(|list| &list.values) {
        attributes_of_sender.retain(|other| other.key != said.key);
        attributes_of_sender.push(said.clone());
    }
    let sender = ProtoResource { attributes: attributes_of_sender, dropped_attributes_count: 0 };
    let otlp = Otlp { target, resource: sender, every };
    let stats = match config.stat_prefix.as_str() {
        "" => stats("open_telemetry_access_log"),
        prefix => stats(&format!("open_telemetry_access_log.{}", prefix.trim_end_matches('.'))),
    };
    let loggers = &context.loggers;
    let queue = loggers.get(&loggers.otlp, key, size(enough), stats, |taker| Work::Otlp(otlp, taker, stats));
    Ok(Destination::Otlp(Arc::new(Record { body, attributes, objects, tags }), queue))
}

fn http(
    config: &grpc::HttpGrpcAccessLogConfig,
    key: &[u8],
    context: &CompileContext,
) -> Result<Destination, Errors> {
    let mut errors = Vec::new();
    let mut names = |list: &[String], field: &str| {
        let name = |(index, name): (usize, &String)| {
            HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| {
                let path = format!("{field}[{index}]");
                Errors::from(ConfigError::new(path, format!("{name:?} is no header name")))
            })
        };
        let all = list.iter().enumerate().map(name).collect::<Result<Vec<_>, _>>();
        collect(all, "", &mut errors).unwrap_or_default()
    };
    let request = names(&config.additional_request_headers_to_log, "additional_request_headers_to_log");
    let response = names(&config.additional_response_headers_to_log, "additional_response_headers_to_log");
    let trailers = names(&config.additional_response_trailers_to_log, "additional_response_trailers_to_log");
    let common = collect(common(config.common_config.as_ref(), context), "common_config", &mut errors);
    let Some((service, extras, enough)) = common.filter(|_| errors.is_empty()) else { return Err(errors) };
    let (stats, loggers) = (stats("grpc_access_log"), &context.loggers);
    let queue = loggers.get(&loggers.http, key, enough, stats, |taker| Work::Http(service, taker, stats));
    Ok(Destination::Http(Arc::new(Extras { request, response, trailers, ..extras }), queue))
}

fn tcp(
    config: &grpc::TcpGrpcAccessLogConfig,
    key: &[u8],
    context: &CompileContext,
) -> Result<Destination, Errors> {
    let (service, extras, enough) =
        common(config.common_config.as_ref(), context).map_err(at("common_config"))?;
    let (stats, loggers) = (stats("grpc_access_log"), &context.loggers);
    let queue = loggers.get(&loggers.tcp, key, enough, stats, |taker| Work::Tcp(service, taker, stats));
    Ok(Destination::Tcp(Arc::new(extras), queue))
}

fn common(
    config: Option<&grpc::CommonGrpcAccessLogConfig>,
    context: &CompileContext,
) -> Result<(Service, Extras, usize), Errors> {
    let config = config.ok_or_else(|| ConfigError::missing(""))?;
    let mut errors = Vec::new();
    only_v3(config.transport_api_version, &mut errors);
    if config.log_name.is_empty() {
        errors.push(ConfigError::missing("log_name"));
    }
    if config.grpc_stream_retry_policy.is_some() {
        let what = "how a stream is tried again (it is whenever there is something to send)";
        errors.push(ConfigError::unsupported("grpc_stream_retry_policy", what));
    }
    let service = match &config.grpc_service {
        None => Err(ConfigError::missing("").into()),
        Some(service) => GrpcService::compile(service, TIMEOUT, context),
    };
    let service = collect(service, "grpc_service", &mut errors);
    let tags = collect(tags(&config.custom_tags), "", &mut errors);
    let every = collect(interval(config.buffer_flush_interval), "buffer_flush_interval", &mut errors);
    let (Some(service), Some(tags), Some(every), true) = (service, tags, every, errors.is_empty()) else {
        return Err(errors);
    };
    let identifier = Identifier { node: Some(node(&context.node)), log_name: config.log_name.clone() };
    let service = Service { service: Arc::new(service), identifier, every };
    let extras = Extras { objects: config.filter_state_objects_to_log.clone(), tags, ..Extras::default() };
    Ok((service, extras, size(config.buffer_size_bytes)))
}

fn interval(given: Option<prost_types::Duration>) -> Result<Duration, Errors> {
    let every = duration(given.as_ref(), "")?.unwrap_or(EVERY);
    if every.is_zero() {
        return Err(ConfigError::new("", "must be longer than nothing").into());
    }
    Ok(every)
}

fn size(given: Option<u32>) -> usize {
    given.unwrap_or(ENOUGH) as usize
}

/// Tags as spans have them; what a route says is not known to logs.
fn tags(list: &[CustomTag]) -> Result<Vec<Tag>, Errors> {
    let tags = words(list, "", "")?.tags;
    for (index, tag) in tags.iter().enumerate() {
        if matches!(tag.source, Source::Route(..)) {
            let path = format!("custom_tags[{index}].metadata.kind");
            return Err(ConfigError::unsupported(path, "metadata of a route").into());
        }
    }
    Ok(tags)
}

/// This proxy, as it is to the control plane.
fn node(node: &NodeInfo) -> core::Node {
    let metadata = match value::from_json(serde_json::Value::Object(node.metadata.clone())).kind {
        Some(Kind::StructValue(fields)) if !fields.fields.is_empty() => Some(fields),
        _ => None,
    };
    let placed = !(node.region.is_empty() && node.zone.is_empty() && node.sub_zone.is_empty());
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata,
        locality: placed.then(|| core::Locality {
            region: node.region.clone(),
            zone: node.zone.clone(),
            sub_zone: node.sub_zone.clone(),
        }),
        user_agent_name: "weft".to_owned(),
        ..core::Node::default()
    }
}
