//! Tracing of a connection manager, by MeshConfig, the proxy's own settings and the Telemetries that hold for the workload.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::authorization::custom::service;
use super::filters::Way;
use super::node::ProxyKind;
use super::telemetry::side;
use super::{ProxyNode, seconds};
use crate::model::World;
use crate::model::extension_provider::ExtensionProvider;
use crate::model::tracing::{
    JAEGER_PORT, OTLP_GRPC_PORT, OTLP_HTTP_PORT, OpenTelemetry, ProxyTracing, Share, SpanTag, SpanTags,
    Zipkin, ZipkinAddress, ZipkinContext, canonical_revision, canonical_service,
};

/// The share that is traced where nobody says.
const SAMPLING: Share = Share(100);
/// The most of a path that is told where nobody says.
const LONGEST_PATH: u32 = 256;
/// Where Zipkin takes spans.
const ZIPKIN_PATH: &str = "/api/v2/spans";

/// What holds for a workload and a side.
struct Spec<'a> {
    provider: Option<&'a str>,
    disabled: bool,
    sampling: Option<Share>,
    tags: Option<&'a SpanTags>,
    istio_tags: Option<bool>,
    by_request_id: bool,
}

/// The connection manager's `tracing`, and whether ids of requests decide.
pub(super) fn tracing(world: &World, node: &ProxyNode, way: Way) -> Option<(Value, bool)> {
    let mesh = world.mesh();
    let own = node.own_tracing.as_ref().unwrap_or(&mesh.default_config.tracing);
    let spec = spec(world, node, way);
    if spec.disabled {
        return None;
    }
    let (provider, longest) = match spec.provider {
        Some(name) => named(world, node, mesh.extension_providers.iter().find(|p| p.name == name)?)?,
        None if mesh.enable_tracing == Some(false) => return None,
        None => (by_address(world, node, own.zipkin.as_ref()?)?, None),
    };
    let longest = longest.or(own.max_path_tag_length);
    let sampling = spec.sampling.or(own.sampling).or(mesh.default_config.tracing.sampling);
    let mut tracing = json!({
        "client_sampling": {"value": 100},
        "overall_sampling": {"value": 100},
        "random_sampling": {"value": sampling.unwrap_or(SAMPLING).percent()},
        "custom_tags": tags(node, own, &spec, longest.unwrap_or(LONGEST_PATH)),
        "provider": provider,
    });
    if let Some(longest) = longest {
        tracing["max_path_tag_length"] = longest.into();
    }
    // A gateway is a hop of its own; a sidecar and its application are one.
    if node.kind == ProxyKind::Router {
        tracing["spawn_upstream_span"] = true.into();
    }
    Some((tracing, spec.by_request_id))
}

/// What it comes to, as a key for what is made of it: a proxy's own settings and labels play a part in it. Nothing where nothing is
/// traced.
pub(super) fn key(world: &World, node: &ProxyNode, way: Way) -> Option<String> {
    tracing(world, node, way).map(|(tracing, by_request_id)| format!("{tracing}{by_request_id}"))
}

fn spec<'a>(world: &'a World, node: &ProxyNode, way: Way) -> Spec<'a> {
    let mut spec = Spec {
        provider: world.mesh().default_providers.tracing.first().map(String::as_str),
        disabled: false,
        sampling: None,
        tags: None,
        istio_tags: None,
        by_request_id: true,
    };
    for telemetry in world.telemetries_of(&node.namespace, node.selected_by(world)) {
        let here =
            telemetry.spec.tracing.iter().filter(|t| t.matching.unwrap_or_default().mode.is(side(way)));
        for tracing in here {
            // Of several the first, as in Istio.
            spec.provider = tracing.providers.first().map(|p| p.name.as_str()).or(spec.provider);
            spec.disabled = tracing.disable_span_reporting.unwrap_or(spec.disabled);
            spec.sampling = tracing.random_sampling_percentage.or(spec.sampling);
            // All of them, or none: the wider scope's do not shine through.
            spec.tags = Some(&tracing.custom_tags).filter(|tags| !tags.is_empty()).or(spec.tags);
            spec.istio_tags = tracing.enable_istio_tags.or(spec.istio_tags);
            spec.by_request_id = tracing.use_request_id_for_trace_sampling.unwrap_or(spec.by_request_id);
        }
    }
    spec
}

/// A provider of MeshConfig, and the most of a path that it wants; none for one that takes no spans, or whose service is not there.
fn named(world: &World, node: &ProxyNode, provider: &ExtensionProvider) -> Option<(Value, Option<u32>)> {
    if let Some(given) = &provider.opentelemetry {
        return Some((opentelemetry(world, node, given)?, given.max_tag_length));
    }
    let given = provider.zipkin.as_ref()?;
    let provider = match given.port {
        JAEGER_PORT => otlp(world, node, &given.service, None)?,
        _ => zipkin(world, given)?,
    };
    Some((provider, given.max_tag_length))
}

fn by_address(world: &World, node: &ProxyNode, address: &ZipkinAddress) -> Option<Value> {
    let (host, port, path) = address.parts()?;
    if port == JAEGER_PORT {
        return otlp(world, node, host, None);
    }
    zipkin(world, &Zipkin { service: host.to_owned(), port, path: path.to_owned(), ..Zipkin::default() })
}

fn opentelemetry(world: &World, node: &ProxyNode, given: &OpenTelemetry) -> Option<Value> {
    otlp(world, node, &given.service, Some(given))
}

/// A collector of OTLP. What is said of Jaeger's port is meant for those of OTLP.
fn otlp(world: &World, node: &ProxyNode, place: &str, given: Option<&OpenTelemetry>) -> Option<Value> {
    let http = given.and_then(|g| g.http.as_ref());
    let port = match (given.map_or(JAEGER_PORT, |g| g.port), http) {
        (JAEGER_PORT, Some(_)) => OTLP_HTTP_PORT,
        (JAEGER_PORT, None) => OTLP_GRPC_PORT,
        (port, _) => port,
    };
    let (host, cluster) = service(world, place, port)?;
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "service_name": name_of(node),
    });
    let timeout = |given: Option<crate::model::Timespan>| given.map(|given| seconds(given.get()));
    match http {
        Some(http) => {
            let path = match http.path.as_str() {
                "" | "/api/traces" => "/v1/traces",
                path => path,
            };
            config["http_service"] = json!({"http_uri": {
                "uri": format!("http://{host}:{port}{path}"),
                "cluster": cluster,
                "timeout": timeout(http.timeout).unwrap_or_else(|| "5s".into()),
            }});
            let fields = http.headers.iter().map(|field| {
                json!({"header": {"key": field.name, "value": field.value},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
            });
            let fields: Vec<_> = fields.collect();
            if !fields.is_empty() {
                config["http_service"]["request_headers_to_add"] = fields.into();
            }
        }
        None => {
            let grpc = given.and_then(|g| g.grpc.as_ref());
            config["grpc_service"] = json!({"envoy_grpc": {"cluster_name": cluster, "authority": host}});
            if let Some(timeout) = grpc.and_then(|g| timeout(g.timeout)) {
                config["grpc_service"]["timeout"] = timeout;
            }
            let fields = grpc.map(|g| &g.initial_metadata[..]).unwrap_or_default();
            if !fields.is_empty() {
                let fields = fields.iter().map(|f| json!({"key": f.name, "value": f.value}));
                config["grpc_service"]["initial_metadata"] = fields.collect();
            }
        }
    }
    if given.and_then(|g| g.resource_detectors).is_some_and(|d| d.environment.is_some()) {
        config["resource_detectors"] = json!([{
            "name": "envoy.tracers.opentelemetry.resource_detectors.environment",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig"},
        }]);
    }
    Some(json!({"name": "envoy.tracers.opentelemetry", "typed_config": config}))
}

fn zipkin(world: &World, given: &Zipkin) -> Option<Value> {
    let (host, cluster) = service(world, &given.service, given.port)?;
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": cluster,
        "collector_endpoint": if given.path.is_empty() { ZIPKIN_PATH } else { &given.path },
        "collector_endpoint_version": "HTTP_JSON",
        "collector_hostname": host,
        "trace_id_128bit": !given.enable_64bit_trace_id,
        "shared_span_context": false,
    });
    if given.trace_context_option == ZipkinContext::B3AndW3c {
        config["trace_context_option"] = "USE_B3_WITH_W3C_PROPAGATION".into();
    }
    Some(json!({"name": "envoy.tracers.zipkin", "typed_config": config}))
}

/// What a workload's proxy is called in spans: `APP.NAMESPACE`, as Istio names its proxies.
fn name_of(node: &ProxyNode) -> String {
    let app = node.labels.get("app").map(String::as_str).or_else(|| canonical_service(&node.labels));
    format!("{}.{}", app.unwrap_or("istio-proxy"), node.namespace)
}

fn tags(node: &ProxyNode, own: &ProxyTracing, spec: &Spec<'_>, longest: u32) -> Vec<Value> {
    let mut tags: BTreeMap<String, Value> = BTreeMap::new();
    let mut say = |name: &str, source: Value| {
        let mut tag = source;
        tag["tag"] = name.into();
        tags.insert(name.to_owned(), tag);
    };
    let literal = |value: &str| json!({"literal": {"value": value}});
    if node.extensions {
        // Queries have secrets in them. Envoy tells them unless it is told otherwise; older ones do not know these words.
        let url = format!("%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ:ORIG_OR_PATH):{longest}%");
        say("http.url", json!({"value": url}));
    }
    if spec.istio_tags.or(own.enable_istio_tags).unwrap_or(true) {
        let or = |text: &str, default: &'static str| literal(if text.is_empty() { default } else { text });
        say("istio.canonical_revision", literal(canonical_revision(&node.labels).unwrap_or("latest")));
        say("istio.canonical_service", literal(canonical_service(&node.labels).unwrap_or("unknown")));
        say("istio.mesh_id", or(&node.mesh_id, "unknown"));
        say("istio.namespace", or(&node.namespace, "default"));
        say("istio.cluster_id", or(&node.cluster_id, "unknown"));
        for (side, action) in [("allow", "allow"), ("deny", "deny")] {
            for (name, key) in [("name", "effective_policy_id"), ("result", "engine_result")] {
                let key = format!("istio_dry_run_{action}_shadow_{key}");
                let source = json!({"metadata": {
                    "kind": {"request": {}},
                    "metadata_key": {"key": "envoy.filters.http.rbac", "path": [{"key": key}]},
                }});
                say(&format!("istio.authorization.dry_run.{side}_policy.{name}"), source);
            }
        }
        if let Some(version) = node.labels.get("version").filter(|v| !v.is_empty()) {
            say("service.version", literal(version));
        }
    }
    for (name, tag) in spec.tags.unwrap_or(&own.custom_tags) {
        say(name, source(tag));
    }
    tags.into_values().collect()
}

fn source(tag: &SpanTag) -> Value {
    if let Some(literal) = &tag.literal {
        return json!({"literal": {"value": literal.value}});
    }
    if let Some(named) = &tag.environment {
        return json!({"environment": {"name": named.name, "default_value": named.default_value}});
    }
    if let Some(named) = &tag.header {
        return json!({"request_header": {"name": named.name, "default_value": named.default_value}});
    }
    json!({"value": tag.formatter.as_ref().map(|f| f.value.as_str()).unwrap_or_default()})
}
