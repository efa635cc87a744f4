//! A connection manager without a codec: requests in, replies out.

mod trace;
mod upstream;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::{ConnectionManager, HcmConfig};
use crate::codec::{
    Body, Downstream, Frame, Headers, HttpService, InformationalSink, Protocol, Reply, Request, RequestHead,
    ResponseHead,
};
use crate::io::{ConnectionInfo, Direction};
use crate::state::CompileContext;

#[derive(Default)]
struct Sink(RefCell<Vec<u16>>);

impl InformationalSink for Sink {
    fn send(&self, head: ResponseHead) {
        self.0.borrow_mut().push(head.status.as_u16());
    }
}

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        listener: "l".into(),
        direction: Direction::Inbound,
        ..ConnectionInfo::between("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
    }
}

fn compile(settings: Value, routes: Value, filters: Value) -> Result<HcmConfig, String> {
    compile_with(&CompileContext::for_tests(), settings, routes, filters)
}

fn compile_with(
    context: &CompileContext,
    settings: Value,
    routes: Value,
    filters: Value,
) -> Result<HcmConfig, String> {
    let mut filters = filters.as_array().unwrap().clone();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}));
    let mut config = json!({"stat_prefix": "t", "http_filters": filters, "route_config": {"name": "r", "validate_clusters": false,
        "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}]}});
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let config: xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager =
        xds_protos::json::from_value(config).unwrap();
    HcmConfig::compile(&config, Direction::Inbound, context).map_err(|e| crate::state::error::join(&e))
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request {
    let headers: Headers = fields
        .iter()
        .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
        .collect();
    Request {
        head: RequestHead {
            method: Method::from_bytes(method.as_bytes()).unwrap(),
            scheme: "http".into(),
            authority: "a.com".into(),
            path: path.to_owned().into(),
            protocol: Protocol::Http11,
            upgrade: None,
            headers,
        },
        body: Body::Empty,
    }
}

async fn call(config: HcmConfig, request: Request) -> (Reply, Vec<u16>, Arc<HcmConfig>) {
    let config = Arc::new(config);
    let manager = ConnectionManager::new(config.clone(), Arc::new(connection()), None);
    let sink = Rc::new(Sink::default());
    let reply =
        manager.call(request, Downstream { informational: sink.clone(), stream: 0, meter: None }).await;
    let seen = sink.0.borrow().clone();
    (reply, seen, config)
}

async fn text(mut body: Body) -> String {
    let mut all = Vec::new();
    while let Some(Ok(Frame::Data(data))) = body.frame().await {
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}

fn hello() -> Value {
    json!([{"match": {"prefix": "/hello"}, "direct_response": {"status": 200, "body": {"inline_string": "hi"}},
        "response_headers_to_add": [{"header": {"key": "x-added", "value": "1"}}]}])
}

#[tokio::test]
async fn a_direct_response_is_ours_and_counted() {
    let (reply, _, config) =
        call(compile(json!({}), hello(), json!([])).unwrap(), request("GET", "/hello", &[])).await;
    assert_eq!(reply.head.status, 200);
    let field =
        |name: &'static str| reply.head.headers.get_str(&HeaderName::from_static(name)).unwrap_or("-");
    assert_eq!(
        (field("server"), field("content-length"), field("content-type")),
        ("envoy", "2", "text/plain")
    );
    assert_eq!((field("x-added"), field("date").len()), ("1", 29));
    assert_eq!(text(reply.body).await, "hi");
    assert_eq!((config.stats.downstream_rq_2xx.value(), config.stats.downstream_rq_active.value()), (1, 0));
    assert_eq!(config.stats.rq_direct_response.value(), 1);
}

#[tokio::test]
async fn requests_that_cannot_be_routed_get_envoys_answers() {
    let cases = [
        ("GET", "/none", 404),
        ("GET", "*", 404),
        ("GET", "", 404),
        ("GET", "/hello#x", 400),
        ("HEAD", "/hello", 200),
    ];
    for (method, path, status) in cases {
        let (reply, ..) =
            call(compile(json!({}), hello(), json!([])).unwrap(), request(method, path, &[])).await;
        assert_eq!(reply.head.status, status, "{method} {path}");
        let body = text(reply.body).await;
        assert!(body.is_empty(), "{method} {path}");
    }
    let mut nameless = request("GET", "/hello", &[]);
    nameless.head.authority = Bytes::new();
    nameless.head.protocol = Protocol::Http2;
    let (reply, ..) = call(compile(json!({}), hello(), json!([])).unwrap(), nameless).await;
    assert_eq!(reply.head.status, 400);
}

#[tokio::test]
async fn a_missing_cluster_is_503_and_a_refused_upgrade_403() {
    let routes = || json!([{"match": {"prefix": "/"}, "route": {"cluster": "gone"}}]);
    let (reply, _, config) =
        call(compile(json!({}), routes(), json!([])).unwrap(), request("GET", "/", &[])).await;
    assert_eq!((reply.head.status.as_u16(), config.stats.no_cluster.value()), (503, 1));
    let mut upgrade = request("GET", "/", &[]);
    upgrade.head.upgrade = Some(Bytes::from_static(b"websocket"));
    let (reply, ..) = call(compile(json!({}), routes(), json!([])).unwrap(), upgrade).await;
    assert_eq!(reply.head.status, 403);
    let mut upgrade = request("GET", "/", &[]);
    upgrade.head.upgrade = Some(Bytes::from_static(b"websocket"));
    let on = json!({"upgrade_configs": [{"upgrade_type": "websocket"}]});
    let (reply, ..) = call(compile(on, routes(), json!([])).unwrap(), upgrade).await;
    assert_eq!(reply.head.status, 503, "the upgrade is allowed; only the cluster is missing");
}

#[tokio::test]
async fn expect_is_answered_here_unless_it_is_the_upstreams() {
    let expecting = || request("POST", "/hello", &[("expect", "100-continue")]);
    let (_, seen, _) = call(compile(json!({}), hello(), json!([])).unwrap(), expecting()).await;
    assert_eq!(seen, [100]);
    let (_, seen, _) =
        call(compile(json!({"proxy_100_continue": true}), hello(), json!([])).unwrap(), expecting()).await;
    assert!(seen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn faults_delay_and_abort_and_a_route_may_turn_them_off() {
    let always = json!({"numerator": 100, "denominator": "HUNDRED"});
    let fault = json!([{"name": "envoy.filters.http.fault", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "delay": {"fixed_delay": "5s", "percentage": always},
        "abort": {"http_status": 418, "percentage": always}}}]);
    let start = tokio::time::Instant::now();
    let (reply, ..) =
        call(compile(json!({}), hello(), fault.clone()).unwrap(), request("GET", "/hello", &[])).await;
    assert_eq!((reply.head.status.as_u16(), start.elapsed().as_secs()), (418, 5));
    assert_eq!(text(reply.body).await, "fault filter abort");
    let mut off = hello();
    off[0]["typed_per_filter_config"] = json!({"envoy.filters.http.fault": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}});
    let (reply, ..) = call(compile(json!({}), off, fault).unwrap(), request("GET", "/hello", &[])).await;
    assert_eq!(reply.head.status, 200);
}

#[tokio::test]
async fn cors_answers_preflights_and_marks_responses() {
    let cors = json!([{"name": "envoy.filters.http.cors", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}]);
    let mut routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "gone"}}]);
    routes[0]["typed_per_filter_config"] = json!({"envoy.filters.http.cors": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": "https://a.com"}], "allow_methods": "GET", "max_age": "60",
        "allow_credentials": true}});
    let config = || compile(json!({}), routes.clone(), cors.clone()).unwrap();
    let allowed = HeaderName::from_static("access-control-allow-origin");
    let preflight = [("origin", "https://a.com"), ("access-control-request-method", "GET")];
    let (reply, ..) = call(config(), request("OPTIONS", "/hello", &preflight)).await;
    assert_eq!(reply.head.headers.get(&allowed).unwrap(), "https://a.com");
    assert_eq!(text(reply.body).await, "");
    let (reply, ..) = call(config(), request("GET", "/hello", &preflight[..1])).await;
    assert_eq!(reply.head.headers.get(&allowed).unwrap(), "https://a.com");
    assert_eq!(reply.head.status, 503, "it went to the router");
    let (reply, ..) = call(config(), request("GET", "/hello", &[("origin", "https://b.com")])).await;
    assert!(!reply.head.headers.contains(&allowed));
}

#[test]
fn what_is_not_honoured_is_refused_with_its_path() {
    let bad = |settings, filters| compile(settings, hello(), filters).unwrap_err();
    let unknown = json!([{"name": "lua", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"}}]);
    assert!(bad(json!({}), unknown).starts_with("http_filters[0].typed_config: the HTTP filter \"lua\""));
    let upgrade = json!({"upgrade_configs": [{"upgrade_type": "x", "filters": [{"name": "f"}]}]});
    assert!(bad(upgrade, json!([])).starts_with("upgrade_configs[0].filters: "));
    let pings = json!({"http2_protocol_options": {"connection_keepalive": {"interval": "1s"}}});
    assert!(bad(pings, json!([])).starts_with("http2_protocol_options.connection_keepalive.timeout: "));
}

mod shape {
    //! A request on its way in.
    use super::*;
    use crate::http::request::shape;

    fn shaped(settings: Value, mut request: Request) -> Request {
        let config = compile(settings, hello(), json!([])).unwrap();
        shape(&mut request.head, &config, &connection()).unwrap();
        request
    }

    fn get(request: &Request, name: &'static str) -> String {
        request.head.headers.get_str(&HeaderName::from_static(name)).unwrap_or("-").to_owned()
    }

    #[test]
    fn an_edge_proxy_believes_its_peer_and_a_sidecar_the_fields() {
        let fields =
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x-request-id", "theirs")];
        let edge = shaped(json!({"use_remote_address": true}), request("GET", "/", &fields));
        assert_eq!(get(&edge, "x-forwarded-for"), "1.1.1.1,10.0.0.1");
        assert_eq!(get(&edge, "x-forwarded-proto"), "http");
        assert_eq!(get(&edge, "x-envoy-external-address"), "10.0.0.1");
        assert_ne!(get(&edge, "x-request-id"), "theirs");
        let sidecar = shaped(json!({}), request("GET", "/", &fields));
        assert_eq!(get(&sidecar, "x-forwarded-for"), "1.1.1.1");
        assert_eq!(get(&sidecar, "x-forwarded-proto"), "https");
        assert_eq!(sidecar.head.scheme, "https");
        assert_eq!(get(&sidecar, "x-request-id"), "theirs");
    }

    #[test]
    fn fields_of_the_connection_and_fields_that_steer_do_not_pass() {
        let fields = [
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("keep-alive", "1"),
            ("te", "trailers, gzip"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-internal", "true"),
            ("x-envoy-attempt-count", "2"),
        ];
        let request = shaped(json!({}), request("GET", "/", &fields));
        for gone in ["connection", "x-private", "keep-alive", "x-envoy-retry-on", "x-envoy-internal"] {
            assert_eq!(get(&request, gone), "-", "{gone}");
        }
        assert_eq!(
            (get(&request, "te"), get(&request, "x-envoy-attempt-count")),
            ("trailers".into(), "2".into())
        );
    }

    #[test]
    fn internal_requests_may_steer() {
        let settings = json!({"internal_address_config": {"cidr_ranges": [
            {"address_prefix": "10.0.0.0", "prefix_len": 8}]}, "use_remote_address": true});
        let request = shaped(settings, request("GET", "/", &[("x-envoy-retry-on", "5xx")]));
        assert_eq!(
            (get(&request, "x-envoy-internal"), get(&request, "x-envoy-retry-on")),
            ("true".into(), "5xx".into())
        );
    }

    #[test]
    fn ports_and_dots_of_the_authority_go_where_configured() {
        let with = |settings: Value, authority: &'static str| {
            let mut request = request("GET", "/", &[]);
            request.head.authority = Bytes::from_static(authority.as_bytes());
            shaped(settings, request).head.authority
        };
        assert_eq!(with(json!({"strip_matching_host_port": true}), "a.com:80"), "a.com");
        assert_eq!(with(json!({"strip_matching_host_port": true}), "a.com:81"), "a.com:81");
        assert_eq!(with(json!({"strip_any_host_port": true}), "a.com:81"), "a.com");
        assert_eq!(with(json!({"strip_trailing_host_dot": true}), "a.com.:81"), "a.com:81");
    }
}

#[test]
fn a_request_under_way_is_small() {
    let config = Arc::new(compile(json!({}), hello(), json!([])).unwrap());
    let manager = ConnectionManager::new(config, Arc::new(connection()), None);
    let downstream = || Downstream { informational: Rc::new(Sink::default()), stream: 0, meter: None };
    // What every connection carries, and what a request does.
    let idle = size_of_val(&manager.clone().call(request("GET", "/hello", &[]), downstream()));
    assert!(idle <= 1024, "{idle} bytes");
    let busy = size_of_val(&manager.handling(request("GET", "/hello", &[]), downstream()));
    assert!(busy <= 9 * 1024, "{busy} bytes");
}
