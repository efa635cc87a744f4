//! What istiod sends to a sidecar and to a gateway that are not captured (INTERCEPTION_MODE NONE): its names, its filters and
//! their order, its matches, and the fields that it sets although they are the defaults.

use serde_json::{Value, json};

/// Resources as one push.
pub fn push(resources: &[Value]) -> String {
    resources.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

const ADS: &str = "type.googleapis.com/";

fn typed(url: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("{ADS}{url}").into();
    fields
}

/// Istio's own filters, which come as structs with the name of their type.
fn typed_struct(name: &str, url: &str, value: Value) -> Value {
    let config = json!({"type_url": format!("{ADS}{url}"), "value": value});
    json!({"name": name, "typed_config": typed("udpa.type.v1.TypedStruct", config)})
}

fn ads() -> Value {
    json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"})
}

fn http_filters(inbound: bool) -> Vec<Value> {
    let headers = json!([{"istio_headers": {}}]);
    let exchange = match inbound {
        true => {
            json!({"downstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}], "downstream_propagation": headers})
        }
        false => json!({"upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
            "upstream_propagation": [{"istio_headers": {"skip_external_clusters": true}}]}),
    };
    let plain = |name: &str, kind: &str, fields: Value| {
        let url = format!("envoy.extensions.filters.http.{kind}");
        json!({"name": format!("envoy.filters.http.{name}"), "typed_config": typed(&url, fields)})
    };
    let mut filters = vec![
        typed_struct("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", exchange),
        plain(
            "grpc_stats",
            "grpc_stats.v3.FilterConfig",
            json!({"emit_filter_state": true, "stats_for_all_methods": false}),
        ),
    ];
    if !inbound {
        let config = json!({"alpn_override": [
            {"alpn_override": ["istio-http/1.0", "istio", "http/1.0"]},
            {"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]},
            {"upstream_protocol": "HTTP2", "alpn_override": ["istio-h2", "istio", "h2"]},
        ]});
        filters.push(typed_struct(
            "istio.alpn",
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
            config,
        ));
    }
    filters.push(plain("fault", "fault.v3.HTTPFault", json!({})));
    filters.push(plain("cors", "cors.v3.Cors", json!({})));
    let config = if inbound { json!({"disable_host_header_fallback": true}) } else { json!({}) };
    filters.push(typed_struct("istio.stats", "stats.PluginConfig", config));
    filters.push(plain("router", "router.v3.Router", json!({})));
    filters
}

/// The connection manager of a sidecar's way, or a gateway's.
fn manager(prefix: &str, way: &str, routes: (&str, Value)) -> Value {
    let mut fields = json!({
        "stat_prefix": prefix, "codec_type": "AUTO", "normalize_path": true, "use_remote_address": way == "gateway",
        "upgrade_configs": [{"upgrade_type": "websocket"}], "stream_idle_timeout": "0s", "proxy_100_continue": true,
        "http_filters": http_filters(way == "inbound"),
        "request_id_extension": {"typed_config":
            typed("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", json!({"use_request_id_for_trace_sampling": true}))},
    });
    match way {
        "inbound" => {
            fields["server_name"] = "istio-envoy".into();
            fields["forward_client_cert_details"] = "APPEND_FORWARD".into();
            fields["set_current_client_cert_details"] = json!({"subject": true, "dns": true, "uri": true});
        }
        "gateway" => {
            fields["server_name"] = "istio-envoy".into();
            fields["forward_client_cert_details"] = "SANITIZE_SET".into();
            fields["set_current_client_cert_details"] =
                json!({"subject": true, "cert": true, "dns": true, "uri": true});
        }
        _ => {}
    }
    fields[routes.0] = routes.1;
    let url = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(url, fields)})
}

fn rds(name: &str) -> (&'static str, Value) {
    ("rds", json!({"route_config_name": name, "config_source": ads()}))
}

fn metadata_exchange() -> Value {
    let config = json!({"protocol": "istio-peer-exchange", "enable_discovery": true});
    typed_struct("istio.metadata_exchange", "envoy.tcp.metadataexchange.config.MetadataExchange", config)
}

fn tcp(cluster: &str, inbound: bool) -> Vec<Value> {
    let proxy = json!({"name": "envoy.filters.network.tcp_proxy", "typed_config":
        typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", json!({"stat_prefix": cluster, "cluster": cluster}))});
    let stats = typed_struct("istio.stats", "stats.PluginConfig", json!({}));
    if inbound { vec![metadata_exchange(), stats, proxy] } else { vec![stats, proxy] }
}

fn socket(url: &str, fields: Value) -> Value {
    let url = format!("envoy.extensions.transport_sockets.{url}");
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(&url, fields)})
}

fn workload_secrets(names: Value) -> Value {
    json!({
        "default_validation_context": {"match_subject_alt_names": names},
        "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ads()},
    })
}

/// Mutual TLS as a server.
fn mutual(http: bool) -> Value {
    let alpn =
        if http { json!(["h2", "http/1.1"]) } else { json!(["istio-peer-exchange", "h2", "http/1.1"]) };
    socket(
        "tls.v3.DownstreamTlsContext",
        json!({"require_client_certificate": true, "common_tls_context": {
            "alpn_protocols": alpn,
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3", "cipher_suites": [
                "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
                "ECDHE-RSA-AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-GCM-SHA256"]},
            "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ads()}],
            "combined_validation_context": workload_secrets(json!([{"prefix": "spiffe://cluster.local/"}])),
        }}),
    )
}

/// What a port speaks, as its service declares it.
#[derive(Clone, Copy, PartialEq)]
pub enum Speaks {
    Anything,
    Http,
    Tcp,
}

/// The chains of an inbound port.
fn chains(mode: &str, speaks: Speaks, port: u16) -> Vec<Value> {
    let cluster = format!("inbound|{port}||");
    let filters = |http: bool| -> Vec<Value> {
        if !http {
            return tcp(&cluster, true);
        }
        let action = json!({"cluster": cluster, "timeout": "0s",
            "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
            "retry_policy": {"retry_on": "reset-before-request", "num_retries": 2}});
        let routes = json!({"name": cluster, "validate_clusters": false, "virtual_hosts": [{
            "name": format!("inbound|http|{port}"), "domains": ["*"], "routes": [{"name": "default", "match": {"prefix": "/"},
                "decorator": {"operation": format!("web.n.svc.cluster.local:{port}/*")}, "route": action}]}]});
        vec![manager(&format!("inbound_0.0.0.0_{port};"), "inbound", ("route_config", routes))]
    };
    let chain = |transport: &str, alpn: &[&str], http: bool, secured: bool| {
        let mut wanted = json!({"transport_protocol": transport});
        if !alpn.is_empty() {
            wanted["application_protocols"] = json!(alpn);
        }
        let mut chain = json!({"name": format!("0.0.0.0_{port}"), "filter_chain_match": wanted, "filters": filters(http)});
        if secured {
            chain["transport_socket"] = mutual(http);
        }
        chain
    };
    const HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
    const ALL: &[&str] = &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
    const PLAIN: &[&str] = &["http/1.1", "h2c"];
    let http = speaks == Speaks::Http;
    match (mode, speaks) {
        ("PERMISSIVE", Speaks::Anything) => vec![
            chain("tls", HTTP, true, true),
            chain("raw_buffer", PLAIN, true, false),
            chain("tls", &["istio-peer-exchange", "istio"], false, true),
            chain("raw_buffer", &[], false, false),
            chain("tls", &[], false, false),
        ],
        ("PERMISSIVE", Speaks::Http) => {
            vec![chain("tls", ALL, true, true), chain("raw_buffer", &[], true, false)]
        }
        ("PERMISSIVE", Speaks::Tcp) => vec![
            chain("tls", ALL, false, true),
            chain("tls", &[], false, false),
            chain("raw_buffer", &[], false, false),
        ],
        ("STRICT", Speaks::Anything) => vec![chain("tls", HTTP, true, true), chain("tls", &[], false, true)],
        ("STRICT", _) => vec![chain("tls", &[], http, true)],
        (_, Speaks::Anything) => {
            vec![chain("raw_buffer", PLAIN, true, false), chain("raw_buffer", &[], false, false)]
        }
        (_, _) => vec![chain("raw_buffer", &[], http, false)],
    }
}

fn listener_filter(name: &str, fields: Value) -> Value {
    let message = match name {
        "original_dst" => "OriginalDst",
        "tls_inspector" => "TlsInspector",
        _ => "HttpInspector",
    };
    let url = format!("envoy.extensions.filters.listener.{name}.v3.{message}");
    json!({"name": format!("envoy.filters.listener.{name}"), "typed_config": typed(&url, fields)})
}

fn at(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

/// An inbound port by its peer mode and protocol.
pub fn inbound_listener(ip: &str, port: u16, mode: &str, speaks: Speaks) -> Value {
    let mut http = listener_filter("http_inspector", json!({}));
    // Not for ports that need no look: here, for any but this one.
    http["filter_disabled"] =
        json!({"not_match": {"destination_port_range": {"start": port, "end": u32::from(port) + 1}}});
    typed("envoy.config.listener.v3.Listener", json!({
        "name": format!("{ip}_{port}"), "address": at(ip, port), "traffic_direction": "INBOUND",
        "listener_filters": [listener_filter("tls_inspector", json!({"initial_read_buffer_size": 512})), http],
        "listener_filters_timeout": "0s", "continue_on_listener_filters_timeout": true,
        "filter_chains": chains(mode, speaks, port),
    }))
    .fixed()
}

/// `typed` is for what stands in an Any; a resource's own type has no host before it.
trait Fixed {
    fn fixed(self) -> Value;
}

impl Fixed for Value {
    fn fixed(mut self) -> Value {
        let url = self["@type"].as_str().unwrap_or_default().trim_start_matches(ADS).to_owned();
        self["@type"] = url.into();
        self
    }
}

fn cluster(mut fields: Value) -> Value {
    let name = fields["name"].as_str().unwrap().to_owned();
    fields["alt_stat_name"] = format!("{name};").into();
    fields["connect_timeout"] = "10s".into();
    fields["circuit_breakers"] = json!({"thresholds": [{"max_connections": u32::MAX, "max_pending_requests": u32::MAX,
        "max_requests": u32::MAX, "max_retries": u32::MAX, "track_remaining": true}]});
    typed("envoy.config.cluster.v3.Cluster", fields).fixed()
}

fn protocol_options(fields: Value) -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", fields)})
}

fn any_protocol() -> Value {
    json!({"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}})
}

/// The application behind an inbound port.
pub fn inbound_cluster(port: u16, application: u16) -> Value {
    let name = format!("inbound|{port}||");
    cluster(json!({
        "name": name, "type": "STATIC", "typed_extension_protocol_options": protocol_options(any_protocol()),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at("127.0.0.1", application)}}]}]},
        "metadata": {"filter_metadata": {"istio": {"services": [{"host": "web.n.svc.cluster.local", "name": "web", "namespace": "n"}]}}},
        "common_lb_config": {},
    }))
}

/// Clusters and listeners that every sidecar has.
pub fn fixed(ip: &str) -> Vec<Value> {
    let mut idle = any_protocol();
    idle["common_http_protocol_options"] = json!({"idle_timeout": "300s"});
    let listener = |name: &str, port: u16, way: &str, chains: Vec<Value>, filters: Vec<Value>| {
        typed("envoy.config.listener.v3.Listener", json!({
            "name": name, "address": at(ip, port), "traffic_direction": way, "use_original_dst": way == "OUTBOUND",
            "max_connections_to_accept_per_socket_event": 1, "filter_chains": chains, "listener_filters": filters,
            "listener_filters_timeout": "0s", "continue_on_listener_filters_timeout": true,
        }))
        .fixed()
    };
    let blackhole = |name: &str, port: u16, inbound: bool| {
        json!({"name": name, "filter_chain_match": {"destination_port": port},
        "filters": tcp("BlackHoleCluster", inbound)})
    };
    vec![
        cluster(json!({"name": "BlackHoleCluster", "type": "STATIC"})),
        cluster(
            json!({"name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "typed_extension_protocol_options": protocol_options(idle), "filters": [metadata_exchange()]}),
        ),
        cluster(
            json!({"name": "InboundPassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "upstream_bind_config": {"source_address": {"address": "127.0.0.6", "port_value": 0}}}),
        ),
        listener(
            "virtualOutbound",
            15001,
            "OUTBOUND",
            vec![
                blackhole("virtualOutbound-blackhole", 15001, false),
                json!({"name": "virtualOutbound-catchall-tcp", "filters": tcp("PassthroughCluster", false)}),
            ],
            vec![],
        ),
        listener(
            "virtualInbound",
            15006,
            "INBOUND",
            vec![
                blackhole("virtualInbound-blackhole", 15006, true),
                json!({"name": "virtualInbound", "filter_chain_match": {"transport_protocol": "tls"},
                "filters": tcp("InboundPassthroughCluster", true), "transport_socket": mutual(false)}),
            ],
            vec![
                listener_filter("original_dst", json!({})),
                listener_filter("tls_inspector", json!({"initial_read_buffer_size": 512})),
            ],
        ),
    ]
}

/// `outbound|80|SUBSET|HOST` with automatic mutual TLS.
pub fn outbound_cluster(subset: &str, host: &str) -> Value {
    let name = format!("outbound|80|{subset}|{host}");
    let tls = socket(
        "tls.v3.UpstreamTlsContext",
        json!({"sni": format!("outbound_.80_.{subset}_.{host}"), "common_tls_context": {
            "alpn_protocols": ["istio-peer-exchange", "istio"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ads()}],
            "combined_validation_context": workload_secrets(json!([{"exact": "spiffe://cluster.local/ns/n/sa/app"}])),
        }}),
    );
    let plain = json!({"name": "envoy.transport_sockets.raw_buffer",
        "typed_config": typed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", json!({}))});
    cluster(json!({
        "name": name, "type": "EDS", "lb_policy": "LEAST_REQUEST", "filters": [metadata_exchange()],
        "eds_cluster_config": {"service_name": name, "eds_config": ads()},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "outlier_detection": {"enforcing_success_rate": 0, "consecutive_5xx": 50, "enforcing_consecutive_5xx": 100},
        "transport_socket_matches": [
            {"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": tls},
            {"name": "tlsMode-disabled", "match": {}, "transport_socket": plain}],
        "metadata": {"filter_metadata": {"istio": {"services": [{"host": host, "name": "web", "namespace": "n"}]}}},
    }))
}

/// An endpoint: address, port, and whether it takes Istio's mutual TLS.
pub type Place<'a> = (&'a str, u16, bool);

/// The endpoints of a cluster.
pub fn assignment(subset: &str, host: &str, endpoints: &[Place<'_>]) -> Value {
    let entries: Vec<Value> = endpoints
        .iter()
        .map(|(ip, port, mutual)| {
            let mut metadata = json!({"istio": {"workload": "web-1;n;web;v1;Kubernetes"}});
            if *mutual {
                metadata["envoy.transport_socket_match"] = json!({"tlsMode": "istio"});
            }
            json!({"endpoint": {"address": at(ip, *port)}, "metadata": {"filter_metadata": metadata},
                "health_status": "HEALTHY", "load_balancing_weight": 1})
        })
        .collect();
    typed("envoy.config.endpoint.v3.ClusterLoadAssignment", json!({
        "cluster_name": format!("outbound|80|{subset}|{host}"),
        "endpoints": [{"locality": {"region": "r", "zone": "z"}, "load_balancing_weight": endpoints.len(), "lb_endpoints": entries}],
    }))
    .fixed()
}

/// An outbound HTTP port, whose routes come by RDS.
pub fn outbound_listener(ip: &str, port: u16, routes: &str) -> Value {
    typed("envoy.config.listener.v3.Listener", json!({
        "name": format!("{ip}_{port}"), "address": at(ip, port), "traffic_direction": "OUTBOUND", "bind_to_port": true,
        "listener_filters_timeout": "0s", "continue_on_listener_filters_timeout": true,
        "filter_chains": [{"filters": [manager(&format!("outbound_{ip}_{port};"), "outbound", rds(routes))],
            "transport_socket_connect_timeout": "15s"}],
    }))
    .fixed()
}

/// A route as istiod writes one, to a cluster, with its defaults.
pub fn route(prefix: &str, cluster: &str, more: Value) -> Value {
    let mut route = json!({"name": "default", "match": {"prefix": prefix}, "decorator": {"operation": "web:80/*"},
        "metadata": {"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/n/virtual-service/web"}}},
        "route": {"cluster": cluster, "timeout": "0s", "max_grpc_timeout": "0s", "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
            "host_selection_retry_max_attempts": 5, "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", json!({}))}]}}});
    for (key, value) in more.as_object().unwrap() {
        if key == "route" {
            for (key, value) in value.as_object().unwrap() {
                route["route"][key] = value.clone();
            }
        } else {
            route[key] = value.clone();
        }
    }
    route
}

/// The route's own settings of the fault filter.
pub fn abort(status: u16) -> Value {
    json!({"typed_per_filter_config": {"envoy.filters.http.fault": typed("envoy.extensions.filters.http.fault.v3.HTTPFault",
        json!({"abort": {"http_status": status, "percentage": {"numerator": 1_000_000, "denominator": "MILLION"}}}))}})
}

/// `name`: one virtual host, and the catch-all of a registry that is all there is.
pub fn routes(name: &str, host: &str, routes: &[Value]) -> Value {
    typed("envoy.config.route.v3.RouteConfiguration", json!({
        "name": name, "validate_clusters": false, "max_direct_response_body_size_bytes": 1_048_576,
        "ignore_port_in_host_matching": true,
        "virtual_hosts": [
            {"name": format!("{host}:80"), "domains": [host, format!("{host}."), "web", "web.n", "web.n.svc"],
             "routes": routes, "include_request_attempt_count": true},
            {"name": "block_all", "domains": ["*"], "routes": [{"name": "block_all", "match": {"prefix": "/"},
                "direct_response": {"status": 502}}]},
        ],
    }))
    .fixed()
}

/// A pair of key and chain.
pub fn certificate(name: &str, chain: &str, key: &str) -> Value {
    typed(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        json!({"name": name, "tls_certificate": {
        "certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}}),
    )
    .fixed()
}

/// Roots.
pub fn roots(name: &str, roots: &str) -> Value {
    typed(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        json!({"name": name, "validation_context": {"trusted_ca": {"inline_string": roots}}}),
    )
    .fixed()
}

/// A gateway's HTTPS servers by server name: SIMPLE, and MUTUAL.
pub fn gateway_https(ip: &str, port: u16) -> Value {
    let chain = |name: &str, mutual: bool| {
        let mut context = json!({"alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [{"name": "kubernetes://shop", "sds_config": {"ads": {}, "resource_api_version": "V3"}}]});
        if mutual {
            context["combined_validation_context"] = json!({"default_validation_context": {},
                "validation_context_sds_secret_config": {"name": "kubernetes://shop-cacert", "sds_config": {"ads": {}, "resource_api_version": "V3"}}});
        }
        json!({"filter_chain_match": {"server_names": [name]}, "transport_socket_connect_timeout": "15s",
            "filters": [manager(name, "gateway", rds(&format!("https.{port}.{name}")))],
            "transport_socket": socket("tls.v3.DownstreamTlsContext", json!({"require_client_certificate": mutual, "common_tls_context": context}))})
    };
    let through = json!({"filter_chain_match": {"server_names": ["through.test"]}, "filters": tcp("outbound|80||through.test", false)});
    typed("envoy.config.listener.v3.Listener", json!({
        "name": format!("0.0.0.0_{port}"), "address": at(ip, port), "traffic_direction": "OUTBOUND",
        "listener_filters": [listener_filter("tls_inspector", json!({}))], "continue_on_listener_filters_timeout": true,
        "filter_chains": [chain("simple.test", false), chain("mutual.test", true), through],
    }))
    .fixed()
}

/// A gateway's plain server.
pub fn gateway_http(ip: &str, port: u16) -> Value {
    typed("envoy.config.listener.v3.Listener", json!({
        "name": format!("0.0.0.0_{port}"), "address": at(ip, port), "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [manager(&format!("outbound_0.0.0.0_{port};"), "gateway", rds(&format!("http.{port}")))]}],
    }))
    .fixed()
}

/// One host of a gateway; `redirect`: it is served by https only.
pub fn gateway_routes(name: &str, host: &str, cluster: &str, redirect: bool) -> Value {
    let mut served = json!({"name": format!("{host}:80"), "domains": [host], "routes": [route("/", cluster, json!({}))],
        "include_request_attempt_count": true});
    if redirect {
        served["require_tls"] = "ALL".into();
        served["routes"] = json!([]);
    }
    typed(
        "envoy.config.route.v3.RouteConfiguration",
        json!({"name": name, "virtual_hosts": [served],
        "validate_clusters": false, "ignore_port_in_host_matching": true}),
    )
    .fixed()
}
