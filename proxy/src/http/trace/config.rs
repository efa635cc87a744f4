//! `HttpConnectionManager.tracing` and the providers that Weft has to a [`Tracing`].

use std::sync::Arc;

use bytes::Bytes;
use xds_protos::envoy::config::trace::v3 as trace;
use xds_protos::envoy::config::trace::v3::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use xds_protos::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use xds_protos::envoy::r#type::v3::Percent;
use xds_protos::typed_struct;

use super::export::{Provider, Target};
use super::{Sampling, Stats, Tracing};
use crate::io::Direction;
use crate::route::config::words;
use crate::route::matching::Chance;
use crate::router::collector::{HttpCollector, Resource, TIMEOUT};
use crate::router::grpc::GrpcService;
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::trace::{Flavor, Settings, otlp, zipkin};

type Errors = Vec<ConfigError>;

/// The longest path that is told where the configuration does not say.
const LONGEST_PATH: u32 = 256;
/// The most spans that wait for a collector, where the configuration does not say.
const CAPACITY: usize = 1024;

impl Tracing {
    /// Compiles the tracing of a connection manager; `spawn` is the router's wish for spans of tries.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(
        config: &hcm::Tracing,
        request_ids: Option<UuidRequestIdConfig>,
        spawn: bool,
        stat_prefix: &str,
        direction: Direction,
        context: &CompileContext,
    ) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let words = collect(
            words(&config.custom_tags, &config.operation, &config.upstream_operation),
            "",
            &mut errors,
        );
        let mut share = |value: Option<&Percent>, path: &str| {
            let value = value.map_or(100.0, |p| p.value);
            if !(0.0..=100.0).contains(&value) {
                errors.push(ConfigError::new(path, format!("{value} is no percentage from 0 to 100")));
            }
            Chance { numerator: (value * 100.0).round() as u32, denominator: 10_000 }
        };
        let sampling = Sampling {
            client: share(config.client_sampling.as_ref(), "client_sampling"),
            random: share(config.random_sampling.as_ref(), "random_sampling"),
            overall: share(config.overall_sampling.as_ref(), "overall_sampling"),
        };
        let tracer = match &config.provider {
            None => None,
            Some(provider) => collect(provide(provider, context), "provider", &mut errors),
        };
        let (Some(words), true) = (words, errors.is_empty()) else { return Err(errors) };
        let settings = Settings {
            egress: direction == Direction::Outbound,
            spawn: config.spawn_upstream_span.unwrap_or(spawn),
            verbose: config.verbose,
            propagate: !config.no_context_propagation,
            longest_path: config.max_path_tag_length.unwrap_or(LONGEST_PATH) as usize,
            words,
        };
        let ids = request_ids.unwrap_or_default();
        Ok(Self {
            tracer,
            settings: Arc::new(settings),
            sampling,
            pack_reason: ids.pack_trace_reason.unwrap_or(true),
            by_request_id: ids.use_request_id_for_trace_sampling.unwrap_or(true),
            stats: Stats::new(stat_prefix),
        })
    }
}

/// The tracer of a provider.
fn provide(
    provider: &trace::tracing::Http,
    context: &CompileContext,
) -> Result<Arc<crate::telemetry::trace::Tracer>, Errors> {
    let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = &provider.config_type else {
        return Err(ConfigError::missing("typed_config").into());
    };
    let bad = |e: xds_protos::UnpackError| ConfigError::new("typed_config", e.to_string());
    let any = typed_struct::resolve(any).map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    let provider = if any.is::<trace::OpenTelemetryConfig>() {
        opentelemetry(&any.unpack().map_err(bad)?, context).map_err(at("typed_config"))?
    } else if any.is::<trace::ZipkinConfig>() {
        zipkin(&any.unpack().map_err(bad)?, context).map_err(at("typed_config"))?
    } else {
        let what = format!(
            "{} is no provider of traces that Weft has: use envoy.tracers.opentelemetry or envoy.tracers.zipkin",
            any.type_url
        );
        return Err(ConfigError::new("typed_config", what).into());
    };
    Ok(context.tracers.get(provider, &context.node))
}

fn opentelemetry(config: &trace::OpenTelemetryConfig, context: &CompileContext) -> Result<Provider, Errors> {
    let target = match (&config.grpc_service, &config.http_service) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::new(
                "http_service",
                "stands beside grpc_service; one collector is enough",
            )
            .into());
        }
        (Some(service), None) => {
            GrpcService::compile(service, TIMEOUT, context).map(Target::Grpc).map_err(at("grpc_service"))?
        }
        (None, Some(service)) => {
            HttpCollector::compile(service, context).map(Target::Otlp).map_err(at("http_service"))?
        }
        (None, None) => return Err(ConfigError::missing("grpc_service or http_service").into()),
    };
    let mut resource = Resource::default();
    if config.set_service_name_resource_attribute.unwrap_or(true) {
        let name = config.service_name.as_str();
        resource.say("service.name", if name.is_empty() { "unknown_service:weft" } else { name });
    }
    if config.set_telemetry_sdk_resource_attributes.unwrap_or(true) {
        resource.say("telemetry.sdk.language", "rust");
        resource.say("telemetry.sdk.name", "weft");
        resource.say("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
    }
    resource.detect(&config.resource_detectors)?;
    Ok(Provider {
        flavor: Flavor::OpenTelemetry,
        target,
        otlp: otlp::Sender { resource: resource.0, scope: config.set_instrumentation_scope.unwrap_or(true) },
        zipkin: zipkin::Sender::default(),
        capacity: config.max_cache_size.map_or(CAPACITY, |n| n as usize),
    })
}

fn zipkin(config: &trace::ZipkinConfig, context: &CompileContext) -> Result<Provider, Errors> {
    let collector = match &config.collector_service {
        Some(service) => HttpCollector::compile(service, context).map_err(at("collector_service"))?,
        None => {
            if config.collector_cluster.is_empty() {
                return Err(ConfigError::missing("collector_cluster").into());
            }
            if config.collector_endpoint.is_empty() {
                return Err(ConfigError::missing("collector_endpoint").into());
            }
            let host = match config.collector_hostname.as_str() {
                "" => &config.collector_cluster,
                name => name,
            };
            HttpCollector {
                cluster: context.clusters.slot(&config.collector_cluster),
                authority: Bytes::from(host.to_owned()),
                path: Bytes::from(config.collector_endpoint.clone()),
                timeout: TIMEOUT,
                headers: Vec::new(),
            }
        }
    };
    if config.collector_service.is_none()
        && config.collector_endpoint_version() != CollectorEndpointVersion::HttpJson
    {
        let what =
            "only HTTP_JSON is spoken, version 2 of Zipkin's format, which every Zipkin since 2.4 takes";
        return Err(ConfigError::new("collector_endpoint_version", what).into());
    }
    Ok(Provider {
        flavor: Flavor::Zipkin {
            wide: config.trace_id_128bit,
            shared: config.shared_span_context.unwrap_or(true),
            w3c: config.trace_context_option() == TraceContextOption::UseB3WithW3cPropagation,
        },
        target: Target::Zipkin(collector),
        otlp: otlp::Sender::default(),
        zipkin: zipkin::Sender {
            service: context.node.cluster.clone(),
            address: crate::io::local::own_address().to_string(),
        },
        capacity: CAPACITY,
    })
}
