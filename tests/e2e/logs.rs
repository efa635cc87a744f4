//! Where access logs go beside files: collectors of OTLP, Envoy's access log service; and files that are rotated.

use std::time::Duration;

use serde_json::{Value, json};
use weft::up::{Mesh, Options, Part};
use xds_protos::envoy::data::accesslog::v3::AccessLogType;
use xds_protos::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use xds_protos::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;

use crate::collectors::{Collector, bootstrap};
use crate::support::eventually;
use crate::support::http::{backend, exchange, get};
use crate::support::logged::Logged;
use crate::support::mesh::{alone, runtime};
use crate::support::pair::Pair;

/// A proxy that tells a collector of everything.
struct World {
    ip: &'static str,
    proxy: Logged,
    collector: Collector,
    directory: tempfile::TempDir,
}

impl World {
    fn new(ip: &'static str) -> Self {
        Self::at_intervals(ip, |text| text)
    }

    /// With other intervals than those of the configuration.
    fn at_intervals(ip: &'static str, change: fn(String) -> String) -> Self {
        let (directory, collector) = (tempfile::tempdir().unwrap(), Collector::start());
        let (file, config) = (directory.path().join("access.log"), directory.path().join("bootstrap.json"));
        let text = bootstrap(ip, backend("hello").port(), collector.port, file.to_str().unwrap());
        std::fs::write(&config, change(text.to_string())).unwrap();
        let arguments = ["proxy", "-c", config.to_str().unwrap(), "--concurrency", "2", "--drain-time", "1s"];
        let proxy = Logged::weft(&arguments);
        let world = Self { ip, proxy, collector, directory };
        eventually("ready", || get(world.at(15000), "/ready").is_ok_and(|a| a.0 == 200));
        world
    }

    fn at(&self, port: u16) -> std::net::SocketAddr {
        format!("{}:{port}", self.ip).parse().unwrap()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    fn ask(&self, path: &str) -> String {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: shop\r\nx-who: me\r\nuser-agent: test\r\nconnection: close\r\n\r\n"
        );
        exchange(self.at(8080), &request).unwrap().0
    }

    fn stat(&self, name: &str) -> u64 {
        let text = get(self.at(15000), "/stats").unwrap().1;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
    }
}

fn texts(list: &Value) -> Value {
    let each = list.as_array().into_iter().flatten();
    each.map(|pair| json!([pair["key"], pair["value"]["string_value"]])).collect()
}

#[test]
fn collectors_get_an_entry_of_each_request_and_connection_and_none_when_they_are_away() {
    let world = World::new("127.0.75.1");
    assert!(world.ask("/a?b=c").starts_with("HTTP/1.1 200"));
    assert!(world.ask("/gone").starts_with("HTTP/1.1 410"));
    assert_eq!(get(world.at(8081), "/bytes").unwrap().1, "hello");
    let came = || world.collector.came();
    let records = |name: &str| -> Vec<ExportLogsServiceRequest> {
        let of = |request: &ExportLogsServiceRequest| {
            let resource = request.resource_logs[0].resource.as_ref().unwrap();
            texts(&xds_protos::json::to_value(resource)["attributes"])[0][1] == name
        };
        came().records.iter().map(|(_, request)| request).filter(|r| of(r)).cloned().collect()
    };
    let count = |name: &str| {
        records(name).iter().map(|r| r.resource_logs[0].scope_logs[0].log_records.len()).sum::<usize>()
    };
    eventually("all entries", || {
        let whole = came().http.len() == 2 && came().tcp.len() == 1;
        whole && count("by-grpc") == 2 && count("by-http") == 2
    });

    let http = came().http.clone();
    let (first, common) = (&http[0], http[0].common_properties.as_ref().unwrap());
    let (request, response) = (first.request.as_ref().unwrap(), first.response.as_ref().unwrap());
    assert_eq!(first.protocol_version(), HttpVersion::Http11);
    assert_eq!((&*request.authority, &*request.path, &*request.user_agent), ("shop", "/a?b=c", "test"));
    assert_eq!(request.request_headers["x-who"], "me");
    assert_eq!((response.response_code, response.response_body_bytes), (Some(200), 5));
    assert_eq!(response.response_code_details, "via_upstream");
    assert_eq!((&*common.upstream_cluster, &*common.route_name), ("backend", "all"));
    assert_eq!(common.access_log_type(), AccessLogType::DownstreamEnd);
    assert!(common.response_flags.is_none() && common.duration.is_some() && !common.stream_id.is_empty());
    assert_eq!(common.custom_tags["who"], "me");
    let gone = http[1].response.as_ref().unwrap();
    assert_eq!((gone.response_code, &*gone.response_code_details), (Some(410), "direct_response"));
    let tcp = came().tcp[0].clone();
    let bytes = tcp.connection_properties.unwrap();
    assert!(bytes.received_bytes > 20 && bytes.sent_bytes > 40, "{bytes:?}");
    assert_eq!(tcp.common_properties.unwrap().custom_tags["who"], "nobody");
    let streams = came().streams.clone();
    assert_eq!(streams.len(), 2, "one of each kind");
    assert_eq!(streams[0].node.as_ref().unwrap().cluster, "a.b");
    assert_eq!(streams[0].log_name, "entries");

    for name in ["by-grpc", "by-http"] {
        let all = records(name);
        let value = xds_protos::json::to_value(&all[0].resource_logs[0]);
        let who = [
            json!(["log_name", name]),
            json!(["zone_name", "z"]),
            json!(["cluster_name", "a.b"]),
            json!(["node_name", "sidecar~127.0.0.1~a.b~b.svc.cluster.local"]),
            json!(["service.name", "shop"]),
        ];
        assert_eq!(texts(&value["resource"]["attributes"]), json!(who));
        let record = &value["scope_logs"][0]["log_records"][0];
        let body = &record["body"]["kvlist_value"]["values"];
        assert_eq!(body[0]["value"]["string_value"], "GET /a?b=c");
        assert_eq!(
            body[1]["value"]["array_value"]["values"],
            json!([{"string_value": "200"}, {"string_value": "-"}])
        );
        assert_eq!(texts(&record["attributes"]), json!([["bytes", "5 sent"], ["who", "me"]]));
    }
    let by_http = came().records.iter().filter(|(path, _)| path == "/v1/logs").count();
    assert_eq!(by_http, records("by-http").len());
    assert_eq!(world.stat("access_logs.grpc_access_log.logs_written"), 3);
    assert_eq!(world.stat("access_logs.open_telemetry_access_log.logs_written"), 4);
    assert_eq!(world.stat("access_logs.open_telemetry_access_log.logs_dropped"), 0);
    let line = "\"GET /a?b=c HTTP/1.1\" 200 - 0 5 ";
    eventually("the line", || world.file("access.log").contains(line));
}

#[test]
fn files_are_opened_anew_when_they_were_rotated() {
    let world = World::new("127.0.75.2");
    let rename = |to: &str| {
        let directory = world.directory.path();
        std::fs::rename(directory.join("access.log"), directory.join(to)).unwrap();
    };
    let anew = || eventually("the new file", || world.directory.path().join("access.log").exists());
    world.ask("/1");
    rename("first");
    world.ask("/2");
    world.proxy.signal(rustix::process::Signal::USR1);
    anew();
    world.ask("/3");
    rename("second");
    let post = "POST /reopen_logs HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(exchange(world.at(15000), post).unwrap().0.starts_with("HTTP/1.1 200"));
    anew();
    assert_eq!(get(world.at(15000), "/reopen_logs").unwrap().0, 405);
    world.ask("/4");
    eventually("the last line", || world.file("access.log").contains("/4"));
    let paths = |name: &str| -> Vec<String> {
        world.file(name).lines().filter_map(|l| l.split(' ').nth(2).map(str::to_owned)).collect()
    };
    assert_eq!(
        (paths("first"), paths("second"), paths("access.log")),
        (vec!["/1".to_owned(), "/2".to_owned()], vec!["/3".to_owned()], vec!["/4".to_owned()])
    );
}

#[test]
fn what_is_counted_is_pushed_as_it_is_at_the_admin_interface() {
    let world = World::new("127.0.75.3");
    (0..3).for_each(|_| assert!(world.ask("/a").starts_with("HTTP/1.1 200")));
    // The value of the newest point of a counter of the connection manager.
    let pushed = |name: &str, manager: &str| -> Option<String> {
        let came = world.collector.came();
        let all = came.metrics.iter().rev().flat_map(|(path, request)| {
            assert_eq!(path, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export");
            &request.resource_metrics
        });
        let mut all = all.flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics).filter(|m| m.name == name);
        all.find_map(|metric| {
            let value = xds_protos::json::to_value(metric);
            let points = value["sum"]["data_points"].as_array()?.clone();
            let point = points.into_iter().find(|p| {
                let attributes = texts(&p["attributes"]);
                attributes
                    .as_array()
                    .is_some_and(|all| all.contains(&json!(["envoy.http_conn_manager_prefix", manager])))
            })?;
            Some(point["as_int"].to_string().trim_matches('"').to_owned())
        })
    };
    eventually("the count", || pushed("pushed.http.downstream_rq_total", "http").as_deref() == Some("3"));
    assert_eq!(world.stat("http.http.downstream_rq_total"), 3);
    eventually("points are counted", || world.stat("stats_sinks.open_telemetry.points_sent") > 0);
    assert_eq!(world.stat("stats_sinks.open_telemetry.points_dropped"), 0);
}

#[test]
fn a_collector_that_refuses_is_told_by_its_status_and_its_words() {
    let world = World::new("127.0.75.5");
    world.collector.refuse(Some((16, "no%20token")));
    assert!(world.ask("/a").starts_with("HTTP/1.1 200"));
    let (logs, metrics) = ("access_logs.open_telemetry_access_log", "stats_sinks.open_telemetry");
    eventually("what is lost is counted", || {
        [logs, metrics].iter().all(|group| world.stat(&format!("{group}.exports_refused")) > 0)
    });
    for what in ["log records", "metrics"] {
        world.proxy.says(&["a collector does not take", what, "gRPC status 16", "no token"]);
    }
    assert_eq!(world.stat(&format!("{logs}.exports_unanswered")), 0);
    world.collector.refuse(None);
    world.proxy.says(&["the collector takes metrics again"]);
}

#[test]
fn what_waits_for_collectors_goes_when_the_proxy_ends() {
    let mut world = World::at_intervals("127.0.75.4", |text| {
        text.replace("\"0.1s\"", "\"200s\"").replace("\"0.3s\"", "\"200s\"")
    });
    assert!(world.ask("/a").starts_with("HTTP/1.1 200"));
    assert_eq!(get(world.at(8081), "/bytes").unwrap().1, "hello");
    eventually("entries wait", || {
        world.stat("access_logs.grpc_access_log.logs_written") == 2
            && world.stat("access_logs.open_telemetry_access_log.logs_written") == 2
    });
    {
        let came = world.collector.came();
        assert_eq!((came.http.len(), came.tcp.len(), came.records.len(), came.metrics.len()), (0, 0, 0, 0));
    }
    world.proxy.terminate();
    assert!(world.proxy.wait().success());
    eventually("all of it", || {
        let came = world.collector.came();
        (came.http.len(), came.tcp.len(), came.records.len()) == (1, 1, 2) && !came.metrics.is_empty()
    });
}

#[test]
fn what_processes_say_of_themselves_is_json_where_that_is_asked_for() {
    let _alone = alone();
    runtime().block_on(async {
        let pair = Pair::new(103);
        let asked = "
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: front, namespace: pair}
spec: {selector: {matchLabels: {app: front}}, environmentVariables: {WEFT_LOG_FORMAT: json}}
";
        pair.write("format.yaml", asked);
        let control_flags = ["--log-format", "json"].map(str::to_owned).into();
        let mesh = Mesh::start(Options { control_flags, ..pair.options() }).await.unwrap();
        mesh.wait_ready(Duration::from_secs(60)).await.unwrap();
        let lines = |part: Part| -> Vec<Result<Value, _>> {
            let text = std::fs::read_to_string(mesh.log(&part)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))).collect()
        };
        for part in [Part::Control, Part::Proxy("front-1".to_owned())] {
            let lines: Vec<Value> = lines(part.clone()).into_iter().map(|line| line.unwrap()).collect();
            let told = |line: &Value| {
                line["level"] == "INFO"
                    && ["timestamp", "message", "target"].iter().all(|f| line[f].is_string())
            };
            assert!(lines.iter().any(told), "{part}: {lines:#?}");
        }
        // Who was not asked says it in words.
        assert!(lines(Part::Proxy("back-1".to_owned())).iter().any(Result::is_err));
        mesh.shutdown().await.unwrap();
    });
}
