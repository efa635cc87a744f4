//! HTTP/1 requests on their way through the proxy: what the upstream's parser sees, hyper's, is what was authorised, and nothing
//! else.
//!
//! The bytes go through the proxy's own codec, connection manager, filters, router and pool to a server on loopback. The proxy
//! writes beside each request what it decided about; the server compares.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use weft_proxy::cluster::{Cluster, ClusterConfig};
use weft_proxy::codec::Drain;
use weft_proxy::http::HcmConfig;
use weft_proxy::io::Io;
use weft_proxy::state::{CompileContext, NodeInfo, Tables};

use super::proxy::{compile, connection};

/// What a client sends on one connection.
pub fn check(data: &[u8]) {
    thread_local!(static PROXY: Proxy = Proxy::start());
    PROXY.with(|proxy| proxy.receive(data));
}

/// What the upstream saw.
#[derive(Default)]
struct Seen {
    requests: Cell<u64>,
    wrong: RefCell<Vec<String>>,
}

struct Proxy {
    runtime: Runtime,
    local: LocalSet,
    config: Arc<HcmConfig>,
    seen: Rc<Seen>,
    /// An upstream connection that broke off lives in it.
    _tables: Tables,
}

impl Proxy {
    fn start() -> Self {
        // The clock stands while anybody has something to do: a time limit is over when nobody has.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let (runtime, local) = (runtime.expect("a runtime"), LocalSet::new());
        let seen = Rc::new(Seen::default());
        let listener = local.block_on(&runtime, TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        local.spawn_local(upstream(listener, seen.clone()));
        let tables = Tables::default();
        let cluster = json!({"name": "c", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "c",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address":
                {"address": "127.0.0.1", "port_value": port}}}}]}]}});
        let context = CompileContext::new(&tables, Arc::new(NodeInfo::default()), SystemTime::now());
        let cluster = xds_protos::json::from_value(cluster).expect("a cluster");
        let cluster = ClusterConfig::compile(&cluster, &context).expect("a good cluster");
        tables.clusters.slot("c").publish(Cluster::new(cluster));
        let said = |name: &str, value: &str| json!({"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"});
        let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [
            said("x-authorised-method", "%REQ(:METHOD)%"), said("x-authorised-path", "%REQ(:PATH)%"),
            said("x-authorised-host", "%REQ(:AUTHORITY)%")]}]);
        let header =
            |name: &str, value: &str| json!({"header": {"name": name, "string_match": {"exact": value}}});
        let deny = json!({"permissions": [header(":method", "DELETE"), header(":authority", "secret"),
            {"url_path": {"path": {"prefix": "/admin"}}}, {"header": {"name": "x-denied", "present_match": true}}],
            "principals": [{"any": true}]});
        let filter = json!({"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "DENY", "policies": {"p": deny}}}});
        let settings = json!({"merge_slashes": true, "http_protocol_options": {"accept_http_10": true},
            "upgrade_configs": [{"upgrade_type": "websocket"}]});
        let config = Arc::new(compile(&tables, &[filter], routes, settings).expect("a good configuration"));
        Self { runtime, local, config, seen, _tables: tables }
    }

    fn receive(&self, data: &[u8]) {
        let before = (self.config.stats.rq_total.value(), self.seen.requests.get());
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (_signal, drain) = Drain::new();
        let serving = weft_proxy::http::serve(
            Io::memory(server),
            self.config.clone(),
            Arc::new(connection()),
            drain,
            None,
        );
        self.local.block_on(&self.runtime, async {
            let serving = tokio::task::spawn_local(serving);
            // The connection may be closed before everything is read.
            let _ = client.write_all(data).await;
            let mut answers = Vec::new();
            // Over when the proxy ends the connection, or when nobody has anything to do.
            let reading = client.read_to_end(&mut answers);
            let _ = tokio::time::timeout(Duration::from_millis(1), reading).await;
            drop(client);
            let _ = tokio::time::timeout(Duration::from_millis(1), serving).await;
            // What is on the way to the upstream arrives.
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
        let wrong = self.seen.wrong.take();
        assert!(wrong.is_empty(), "{:?} became {wrong:#?}", String::from_utf8_lossy(data));
        let admitted = self.config.stats.rq_total.value() - before.0;
        let arrived = self.seen.requests.get() - before.1;
        assert!(
            arrived <= admitted,
            "{admitted} admitted, {arrived} arrived: {:?}",
            String::from_utf8_lossy(data)
        );
    }
}

async fn upstream(listener: TcpListener, seen: Rc<Seen>) {
    while let Ok((socket, _)) = listener.accept().await {
        let seen = seen.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request: http::Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    seen.requests.set(seen.requests.get() + 1);
                    if let Some(wrong) = differs(&request) {
                        seen.wrong.borrow_mut().push(format!("{wrong}: {request:?}"));
                    }
                    // A body that breaks off has no answer.
                    request.into_body().collect().await?;
                    Ok::<_, hyper::Error>(http::Response::new(Empty::<bytes::Bytes>::new()))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

/// What the upstream sees that was not decided about.
fn differs(request: &http::Request<Incoming>) -> Option<String> {
    let one = |name: &str| {
        let mut all = request.headers().get_all(name).into_iter();
        match (all.next(), all.next()) {
            (Some(value), None) => Some(value.as_bytes()),
            _ => None,
        }
    };
    let host = one("host");
    let seen = [
        ("x-authorised-method", Some(request.method().as_str().as_bytes())),
        ("x-authorised-path", request.uri().path_and_query().map(|p| p.as_str().as_bytes())),
        ("x-authorised-host", host),
    ];
    for (name, seen) in seen {
        // An empty authority is written beside the request as nothing at all.
        let empty = seen == Some(b"") && !request.headers().contains_key(name);
        if seen.is_none() || (one(name) != seen && !empty) {
            return Some(format!("another {name}"));
        }
    }
    let headers = request.headers();
    if headers.contains_key("content-length") && headers.contains_key("transfer-encoding") {
        return Some("two framings".to_owned());
    }
    let denied = request.method() == http::Method::DELETE
        || host == Some(b"secret")
        || request.uri().path().starts_with("/admin")
        || headers.contains_key("x-denied");
    denied.then(|| "what is denied".to_owned())
}
