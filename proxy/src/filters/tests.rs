use serde_json::json;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;

use super::*;
use crate::codec::Protocol;
use crate::io::Direction;
use crate::state::CompileContext;

fn compile(filters: serde_json::Value) -> Result<FilterList, String> {
    let filters: Vec<HttpFilter> = filters
        .as_array()
        .unwrap()
        .iter()
        .map(|f| xds_protos::json::from_value(f.clone()).unwrap())
        .collect();
    FilterList::compile(&filters, "t", Direction::Outbound, &CompileContext::for_tests())
        .map_err(|e| crate::state::error::join(&e))
}

fn typed_struct(name: &str, type_url: &str, value: serde_json::Value) -> serde_json::Value {
    json!({"name": name, "typed_config": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": type_url, "value": value}})
}

fn router() -> serde_json::Value {
    json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}})
}

#[test]
fn istios_chain_compiles_from_its_typed_structs() {
    let list = compile(json!([
        typed_struct("istio.metadata_exchange", "type.googleapis.com/io.istio.http.peer_metadata.Config", json!({
            "upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
            "upstream_propagation": [{"istio_headers": {}}]})),
        {"name": "envoy.filters.http.grpc_stats", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
            "emit_filter_state": true, "stats_for_all_methods": false}},
        typed_struct("istio.alpn", "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", json!({
            "alpn_override": [{"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]}]})),
        typed_struct("istio.stats", "type.googleapis.com/stats.PluginConfig", json!({})),
        router(),
    ]))
    .unwrap();
    let kinds: Vec<_> = list
        .filters
        .iter()
        .map(|f| match &f.filter {
            Filter::PeerMetadata(_) => "peer",
            Filter::GrpcStats(_) => "grpc",
            Filter::Alpn(_) => "alpn",
            Filter::IstioStats(_) => "stats",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["peer", "grpc", "alpn", "stats"]);
    let Filter::Alpn(alpn) = &list.filters[2].filter else { panic!("alpn") };
    assert_eq!(alpn.names(Protocol::Http11).unwrap()[0], b"istio-http/1.1");
    assert!(alpn.names(Protocol::Http2).is_none());
}

#[test]
fn the_router_is_the_last_filter_and_unknown_ones_are_refused_unless_optional() {
    assert!(compile(json!([])).is_err_and(|e| e.contains("the last filter must be")));
    assert!(
        compile(json!([router(), router()]))
            .is_err_and(|e| e.contains("http_filters[0]: the router must be"))
    );
    let unknown = |optional: bool| {
        json!([{"name": "x", "is_optional": optional, "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"}}, router()])
    };
    assert!(
        compile(unknown(false))
            .is_err_and(|e| e.starts_with("http_filters[0].typed_config: the HTTP filter \"x\""))
    );
    assert!(compile(unknown(true)).is_ok_and(|l| l.filters.is_empty()));
}
