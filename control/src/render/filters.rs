//! The HTTP connection manager, its filters, and the TCP proxy, as istiod writes them.

use serde_json::{Value, json};

use super::{
    ProxyNode, authentication, authorization, cluster, compression, external_credential, metric_definition,
    rate_limit, seconds, spans, telemetry,
};
use crate::model::World;
use crate::model::lookup::effective_policy;

/// Which way a listener's traffic goes, as far as filters differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Inbound,
    Outbound,
    Gateway,
}

fn typed_struct(url: &str, value: Value) -> Value {
    json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": url, "value": value})
}

fn http_filters(world: &World, node: &ProxyNode, way: Way) -> Vec<Value> {
    let mut filters = Vec::new();
    if node.extensions {
        let config = match way {
            Way::Inbound => json!({
                "downstream_discovery": [{"istio_headers": {}}],
                "downstream_propagation": [{"istio_headers": {}}],
            }),
            Way::Outbound | Way::Gateway => json!({
                "upstream_discovery": [{"istio_headers": {}}],
                "upstream_propagation": [{"istio_headers": {"skip_external_clusters": true}}],
            }),
        };
        let url = "type.googleapis.com/io.istio.http.peer_metadata.Config";
        filters.push(json!({"name": "istio.metadata_exchange", "typed_config": typed_struct(url, config)}));
    }
    if way != Way::Outbound {
        filters.extend(authorization::custom::http_filters(world, node));
        filters.extend(authentication::http_filter(world, node, way));
        filters.extend(authorization::http_filters(world, node));
        // Behind who may: what is denied takes no token.
        filters.extend(rate_limit::filters(world, node, way));
    }
    if way == Way::Gateway {
        filters.extend(compression::filters(world, node));
    }
    if node.extensions && way != Way::Inbound {
        let url = "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";
        let config = json!({"alpn_override": [
            {"upstream_protocol": "HTTP10", "alpn_override": ["istio-http/1.0", "istio", "http/1.0"]},
            {"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]},
            {"upstream_protocol": "HTTP2", "alpn_override": ["istio-h2", "istio", "h2"]},
        ]});
        filters.push(json!({"name": "istio.alpn", "typed_config": typed_struct(url, config)}));
    }
    for (name, kind) in [("fault", "fault.v3.HTTPFault"), ("cors", "cors.v3.Cors")] {
        filters.push(json!({"name": format!("envoy.filters.http.{name}"), "typed_config":
            {"@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}")}}));
    }
    if node.extensions {
        let mut config = telemetry::metrics(world, node, way);
        let own = metric_definition::definitions(world, node, way);
        if !own.is_empty() {
            config["definitions"] = own.into();
        }
        if way != Way::Outbound {
            config["disable_host_header_fallback"] = true.into();
        }
        let config = typed_struct("type.googleapis.com/stats.PluginConfig", config);
        filters.push(json!({"name": "istio.stats", "typed_config": config}));
    }
    if way != Way::Inbound {
        filters.extend(external_credential::filters(world, node));
    }
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
    filters
}

/// Routes in the message, or by RDS.
pub(super) enum Routes {
    Inline(Value),
    Rds(String),
}

/// A connection manager as a network filter.
pub(super) fn http_connection_manager(
    world: &World,
    node: &ProxyNode,
    way: Way,
    prefix: &str,
    routes: Routes,
) -> Value {
    use crate::model::mesh_config::Normalization;
    let normalization = world.mesh().path_normalization.normalization;
    let mut hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": prefix,
        "normalize_path": !matches!(normalization, Normalization::None),
        "use_remote_address": way == Way::Gateway,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": "0s",
        "http_filters": http_filters(world, node, way),
        "access_log": telemetry::access_log(world, node, way, true),
    });
    if matches!(normalization, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes) {
        hcm["merge_slashes"] = true.into();
    }
    if matches!(normalization, Normalization::DecodeAndMergeSlashes) {
        hcm["path_with_escaped_slashes_action"] = "UNESCAPE_AND_FORWARD".into();
    }
    match way {
        Way::Inbound => {
            hcm["server_name"] = "istio-envoy".into();
            hcm["forward_client_cert_details"] = "APPEND_FORWARD".into();
            hcm["set_current_client_cert_details"] = json!({"subject": true, "uri": true, "dns": true});
        }
        Way::Gateway => {
            hcm["server_name"] = "istio-envoy".into();
            let topology = node.topology(world);
            hcm["forward_client_cert_details"] = topology.forward_client_cert_details.as_str().into();
            if topology.num_trusted_proxies > 0 {
                hcm["xff_num_trusted_hops"] = topology.num_trusted_proxies.into();
            }
            hcm["set_current_client_cert_details"] =
                json!({"subject": true, "cert": true, "uri": true, "dns": true});
        }
        Way::Outbound => {}
    }
    if let Some((tracing, by_request_id)) = spans::tracing(world, node, way) {
        hcm["tracing"] = tracing;
        hcm["request_id_extension"] = json!({"typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
            "use_request_id_for_trace_sampling": by_request_id,
        }});
    }
    match routes {
        Routes::Inline(config) => hcm["route_config"] = config,
        Routes::Rds(name) => {
            hcm["rds"] = json!({"route_config_name": name, "config_source": {
                "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}});
        }
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm})
}

/// The filters of a TCP chain.
pub(super) fn tcp_chain(world: &World, node: &ProxyNode, way: Way, cluster: &Value) -> Vec<Value> {
    let mut filters = Vec::new();
    if node.extensions && way == Way::Inbound {
        let url = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange";
        let config = typed_struct(url, json!({"protocol": "istio-peer-exchange", "enable_discovery": true}));
        filters.push(json!({"name": "istio.metadata_exchange", "typed_config": config}));
    }
    if way != Way::Outbound {
        filters.extend(authorization::custom::network_filters(world, node));
        filters.extend(authorization::network_filters(world, node));
    }
    filters.extend(bytes(world, node, way, cluster));
    filters
}

/// The filters of a chain whose bytes go on without anybody being asked, at the end of one: metrics and the TCP proxy.
pub(super) fn bytes(world: &World, node: &ProxyNode, way: Way, cluster: &Value) -> Vec<Value> {
    let mut filters = Vec::new();
    if node.extensions {
        let config =
            typed_struct("type.googleapis.com/stats.PluginConfig", telemetry::metrics(world, node, way));
        filters.push(json!({"name": "istio.stats", "typed_config": config}));
    }
    let mut proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "access_log": telemetry::access_log(world, node, way, false),
    });
    match cluster {
        Value::String(name) => {
            proxy["stat_prefix"] = name.as_str().into();
            proxy["cluster"] = name.as_str().into();
        }
        weighted => {
            proxy["stat_prefix"] = "weighted".into();
            proxy["weighted_clusters"] = weighted.clone();
        }
    }
    if way != Way::Inbound {
        as_ruled(world, node, cluster, &mut proxy);
    }
    filters.push(json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}));
    filters
}

/// What the DestinationRule of a destination, of several the first, says of its connections: how long they may be silent and
/// live, and that a client comes to the same endpoint again.
fn as_ruled(world: &World, node: &ProxyNode, to: &Value, proxy: &mut Value) {
    let first = to.as_str().or_else(|| to["clusters"][0]["name"].as_str()).unwrap_or_default();
    let Some((port, subset, host)) = cluster::outbound_parts(first) else { return };
    let Some(service) = world.services_with_host(host).next() else { return };
    let Some(rule) = world.destination_rule(&node.namespace, node.selected_by(world), service) else {
        return;
    };
    let policy = effective_policy(&rule.spec, subset, port);
    if let Some(tcp) = policy.connection_pool.and_then(|pool| pool.tcp) {
        if let Some(idle) = tcp.idle_timeout {
            proxy["idle_timeout"] = seconds(idle.get());
        }
        if let Some(longest) = tcp.max_connection_duration {
            proxy["max_downstream_connection_duration"] = seconds(longest.get());
        }
    }
    if policy.load_balancer.and_then(|b| b.consistent_hash).and_then(|h| h.use_source_ip) == Some(true) {
        proxy["hash_policy"] = json!([{"source_ip": {}}]);
    }
}
