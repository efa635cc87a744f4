//! Collectors of logs, metrics and spans as the tests play them (OTLP over gRPC and HTTP/2, Envoy's access log service), and a proxy that
//! tells all of them of the same requests. Ours and an Envoy can run it.

#![allow(dead_code, reason = "each of the two trees of tests uses a part of it")]

use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use xds_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
use xds_protos::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use xds_protos::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};
use xds_protos::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;
use xds_protos::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest;
use xds_protos::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use xds_protos::prost::Message;

/// What came, in order.
#[derive(Debug, Default)]
pub struct Came {
    /// Requests with records of OTLP, each with the path that it came by.
    pub records: Vec<(String, ExportLogsServiceRequest)>,
    /// Requests with metrics.
    pub metrics: Vec<(String, ExportMetricsServiceRequest)>,
    /// Requests with spans.
    pub spans: Vec<ExportTraceServiceRequest>,
    /// Entries of requests.
    pub http: Vec<HttpAccessLogEntry>,
    /// Entries of connections.
    pub tcp: Vec<TcpAccessLogEntry>,
    /// Who said that it logs: once for each stream.
    pub streams: Vec<Identifier>,
}

/// A server that takes everything.
#[derive(Clone)]
pub struct Collector {
    /// Where it is, on 127.0.0.1.
    pub port: u16,
    came: Arc<Mutex<Came>>,
    /// It takes nothing, and answers calls of gRPC with this status and these words.
    refuses: Arc<Mutex<Option<(u32, &'static str)>>>,
}

impl Collector {
    /// Starts one, until the process ends.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            port: listener.local_addr().unwrap().port(),
            came: Arc::default(),
            refuses: Arc::default(),
        };
        let own = collector.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(own.serve(listener));
        });
        collector
    }

    /// What came so far.
    pub fn came(&self) -> MutexGuard<'_, Came> {
        self.came.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on it takes nothing, and answers calls of gRPC with this status; or takes all again.
    pub fn refuse(&self, status: Option<(u32, &'static str)>) {
        *self.refuses.lock().unwrap() = status;
    }

    async fn serve(self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let own = self.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(own.clone().answer(request, respond));
                }
            });
        }
    }

    async fn answer(
        self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) {
        let path = request.uri().path().to_owned();
        let is_grpc = request.headers().get("content-type").is_some_and(|t| t == "application/grpc");
        let mut stream = request.into_body();
        let mut data = BytesMut::new();
        while let Some(Ok(piece)) = stream.data().await {
            let _ = stream.flow_control().release_capacity(piece.len());
            data.extend_from_slice(&piece);
            while is_grpc && let Some(message) = message(&mut data) {
                if self.refuses.lock().unwrap().is_none() {
                    self.take(&path, &message);
                }
            }
        }
        let head = http::Response::builder();
        let refused = *self.refuses.lock().unwrap();
        if let Some((status, words)) = refused.filter(|_| is_grpc) {
            let head = head.header("content-type", "application/grpc");
            let head = head.header("grpc-status", status).header("grpc-message", words);
            let _ = respond.send_response(head.body(()).unwrap(), true);
            return;
        }
        if !is_grpc {
            self.take(&path, &data);
            let _ = respond.send_response(head.body(()).unwrap(), true);
            return;
        }
        let head = head.header("content-type", "application/grpc").body(()).unwrap();
        let Ok(mut stream) = respond.send_response(head, false) else { return };
        // An answer that says nothing, of whatever kind.
        let mut frame = BytesMut::new();
        frame.put_bytes(0, 5);
        let _ = stream.send_data(frame.freeze(), false);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let _ = stream.send_trailers(trailers);
    }

    fn take(&self, path: &str, message: &[u8]) {
        let mut came = self.came();
        if path.contains("AccessLogService") {
            let message = StreamAccessLogsMessage::decode(message).unwrap();
            came.streams.extend(message.identifier);
            match message.log_entries {
                Some(LogEntries::HttpLogs(all)) => came.http.extend(all.log_entry),
                Some(LogEntries::TcpLogs(all)) => came.tcp.extend(all.log_entry),
                None => panic!("a message without entries"),
            }
        } else if path.contains("TraceService") {
            came.spans.push(ExportTraceServiceRequest::decode(message).unwrap());
        } else if path.contains("etrics") {
            came.metrics.push((path.to_owned(), ExportMetricsServiceRequest::decode(message).unwrap()));
        } else {
            came.records.push((path.to_owned(), ExportLogsServiceRequest::decode(message).unwrap()));
        }
    }
}

/// The first message in these bytes, if it is there whole.
fn message(data: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(data.get(1..5)?.try_into().ok()?) as usize;
    if data.len() < 5 + length {
        return None;
    }
    Some(data.split_to(5 + length).freeze().slice(5..))
}

fn socket(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn cluster(name: &str, port: u16, h2: bool) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket("127.0.0.1", port)}}]}]},
    });
    if h2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        });
    }
    cluster
}

/// The configuration of a proxy at this address: HTTP at port 8080 and bytes at 8081, both to the backend, and loggers of every kind.
pub fn bootstrap(ip: &str, backend: u16, collector: u16, file: &str) -> Value {
    let service = json!({"envoy_grpc": {"cluster_name": "collector"}});
    let interval = "0.1s";
    let common = json!({
        "log_name": "entries", "grpc_service": service, "transport_api_version": "V3", "buffer_flush_interval": interval,
        "custom_tags": [{"tag": "who", "request_header": {"name": "x-who", "default_value": "nobody"}}],
    });
    let grpc = "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3";
    let entries = json!({"name": "envoy.access_loggers.http_grpc", "typed_config": {
        "@type": format!("{grpc}.HttpGrpcAccessLogConfig"), "common_config": common,
        "additional_request_headers_to_log": ["x-who"],
        "additional_response_headers_to_log": ["content-type"],
    }});
    let connections = json!({"name": "envoy.access_loggers.tcp_grpc", "typed_config": {
        "@type": format!("{grpc}.TcpGrpcAccessLogConfig"), "common_config": common,
    }});
    let otlp = |target: Value, name: &str| {
        let mut config = json!({
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
            "log_name": name, "buffer_flush_interval": interval,
            "resource_attributes": {"values": [{"key": "service.name", "value": {"string_value": "shop"}}]},
            "body": {"kvlist_value": {"values": [
                {"key": "request", "value": {"string_value": "%REQ(:METHOD)% %REQ(:PATH)%"}},
                {"key": "list", "value": {"array_value": {"values": [
                    {"string_value": "%RESPONSE_CODE%"}, {"string_value": "%REQ(X-NONE)%"}]}}},
            ]}},
            "attributes": {"values": [{"key": "bytes", "value": {"string_value": "%BYTES_SENT% sent"}}]},
            "custom_tags": [{"tag": "who", "request_header": {"name": "x-who"}}],
        });
        config.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        json!({"name": "envoy.access_loggers.open_telemetry", "typed_config": config})
    };
    let by_grpc = otlp(json!({"grpc_service": service}), "by-grpc");
    let by_http = otlp(
        json!({"http_service": {"http_uri": {
            "uri": "http://collector/v1/logs", "cluster": "collector", "timeout": "5s"}}}),
        "by-http",
    );
    let lines = json!({"name": "envoy.access_loggers.file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": file}});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http", "access_log": [entries, by_grpc, by_http, lines],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"name": "gone", "match": {"path": "/gone"}, "direct_response": {"status": 410, "body": {"inline_string": "gone"}}},
            {"name": "all", "match": {"prefix": "/"}, "route": {"cluster": "backend"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp", "cluster": "backend", "access_log": [connections],
    });
    let listener = |name: &str, port: u16, filter: Value| {
        json!({"name": name, "address": socket(ip, port),
            "filter_chains": [{"filters": [{"name": "only", "typed_config": filter}]}]})
    };
    json!({
        "node": {"id": "sidecar~127.0.0.1~a.b~b.svc.cluster.local", "cluster": "a.b", "locality": {"zone": "z"}},
        "admin": {"address": socket(ip, 15000)},
        "stats_flush_interval": "0.3s",
        "stats_sinks": [{"name": "envoy.stat_sinks.open_telemetry", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig",
            "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}}, "prefix": "pushed",
        }}],
        "static_resources": {
            "listeners": [listener("http", 8080, manager), listener("tcp", 8081, proxy)],
            "clusters": [cluster("backend", backend, false), cluster("collector", collector, true)],
        },
    })
}
