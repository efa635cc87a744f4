//! A connection manager of the proxy with its own filters, as a listener would have it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use weft_proxy::codec::{
    Body, Downstream, Headers, HttpService, InformationalSink, Protocol, Reply, Request, RequestHead,
    ResponseHead,
};
use weft_proxy::http::{ConnectionManager, HcmConfig};
use weft_proxy::io::{ConnectionInfo, Direction};
use weft_proxy::state::{CompileContext, NodeInfo, Tables};
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

/// Compiles a connection manager with these filters and routes and settings.
pub fn compile(
    tables: &Tables,
    filters: &[Value],
    routes: Value,
    settings: Value,
) -> Result<HcmConfig, String> {
    let mut filters = filters.to_vec();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
    let mut config = json!({"stat_prefix": "t", "http_filters": filters, "normalize_path": true,
        "route_config": {"name": "r", "validate_clusters": false,
            "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}]}});
    if let (Some(config), Value::Object(settings)) = (config.as_object_mut(), settings) {
        config.extend(settings);
    }
    let config: HttpConnectionManager = xds_protos::json::from_value(config).map_err(|e| e.to_string())?;
    let context = CompileContext::new(tables, Arc::new(NodeInfo::default()), SystemTime::now());
    HcmConfig::compile(&config, Direction::Inbound, &context)
        .map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// A connection of somebody without a certificate.
pub fn connection() -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Inbound,
        ..ConnectionInfo::between(([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 80).into())
    }
}

/// A request without a body.
pub fn get(path: &[u8]) -> Request {
    let head = RequestHead {
        method: http::Method::GET,
        scheme: "http".into(),
        authority: "shop.example".into(),
        path: path.to_vec().into(),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: Headers::new(),
    };
    Request { head, body: Body::Empty }
}

/// Asks a connection manager; nothing behind it may need a network.
pub fn ask(config: &Arc<HcmConfig>, request: Request) -> Reply {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    struct Nowhere;
    impl InformationalSink for Nowhere {
        fn send(&self, _: ResponseHead) {}
    }
    let manager = ConnectionManager::new(config.clone(), Arc::new(connection()), None);
    let downstream = Downstream { informational: Rc::new(Nowhere), stream: 0, meter: None };
    RUNTIME.with(|runtime| runtime.block_on(manager.call(request, downstream)))
}
