//! Checks over loopback.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use xds_protos::envoy::config::cluster::v3 as pb;

use super::*;
use crate::cluster::{ClusterConfig, LoadAssignment, Outcome, PickContext, endpoint};
use crate::state::CompileContext;

const QUICK: &str = "timeout: 2s, interval: 0.01s, no_traffic_interval: 0.01s, unhealthy_threshold: 2, \
                     healthy_threshold: 2";

fn cluster(ports: &[u16], check: &str, options: &str) -> Arc<Cluster> {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|p| {
            format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {p}}}}}}}}}")
        })
        .collect();
    let yaml = format!(
        "name: c\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}\n\
         health_checks: [{{{QUICK}, {check}}}]\n{options}",
        endpoints.join(", ")
    );
    let proto: pb::Cluster = xds_protos::json::from_yaml_str(&yaml).unwrap();
    let cluster = Cluster::new(ClusterConfig::compile(&proto, &CompileContext::for_tests()).unwrap());
    tokio::task::spawn_local(run(cluster.clone()));
    cluster
}

fn local<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await })
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come to be");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn text(cluster: &Arc<Cluster>) -> Vec<String> {
    cluster.hosts().hosts().map(|h| h.health_text()).collect()
}

/// An HTTP/1 server that answers what it is told, and remembers what it was asked.
#[derive(Clone, Default)]
struct Server {
    answer: Rc<RefCell<String>>,
    asked: Rc<RefCell<String>>,
    connections: Rc<Cell<u32>>,
}

impl Server {
    fn says(&self, status: &str) {
        *self.answer.borrow_mut() = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
    }

    async fn start(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = self.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                server.connections.set(server.connections.get() + 1);
                let server = server.clone();
                tokio::task::spawn_local(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        *server.asked.borrow_mut() = String::from_utf8_lossy(&buffer[..n]).into_owned();
                        let answer = server.answer.borrow().clone();
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        port
    }
}

#[test]
fn a_host_is_out_until_it_passes_and_again_when_it_fails() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let check = "http_health_check: {path: /healthz, host: check.example, \
                     request_headers_to_add: [{header: {key: x-who, value: weft}}]}";
        let cluster = cluster(&[port], check, "");
        assert!(!cluster.is_checked(), "not before the first check");
        assert_eq!(text(&cluster), ["/failed_active_hc"]);
        until("the first check", || cluster.is_checked()).await;
        assert_eq!(text(&cluster), ["healthy"]);
        let asked = server.asked.borrow().to_lowercase();
        for line in [
            "get /healthz http/1.1\r\n",
            "host: check.example\r\n",
            "user-agent: envoy/hc\r\n",
            "x-who: weft\r\n",
        ] {
            assert!(asked.contains(line), "{line} is not in {asked}");
        }
        server.says("503 No");
        until("it is out", || text(&cluster) == ["/failed_active_hc"]).await;
        assert_eq!(cluster.stats().membership_healthy.value(), 0);
        let stats = cluster.health().unwrap().stats();
        assert_eq!((stats.healthy.value(), stats.network_failure.value()), (0, 0));
        assert!(stats.failure.value() >= 1 && stats.success.value() >= 1);
        server.says("200 OK");
        until("it is in again", || text(&cluster) == ["healthy"]).await;
        assert_eq!(stats.healthy.value(), 1);
        assert_eq!(server.connections.get(), 1, "one connection is used again");
    });
}

#[test]
fn expected_and_retriable_statuses_and_the_body_decide() {
    local(|| async {
        let server = Server::default();
        let port = server.start().await;
        *server.answer.borrow_mut() = "HTTP/1.1 202 Soon\r\ncontent-length: 2\r\n\r\nno".to_owned();
        let expected = "http_health_check: {path: /, expected_statuses: [{start: 200, end: 300}], \
                        retriable_statuses: [{start: 500, end: 600}], receive: [{text: '6f6b'}]}";
        let strict = cluster(&[port], expected, "");
        let lax = cluster(&[port], &expected.replace(", receive: [{text: '6f6b'}]", ""), "");
        until("both were checked", || strict.is_checked() && lax.is_checked()).await;
        assert_eq!((text(&strict), text(&lax)), (vec!["/failed_active_hc".into()], vec!["healthy".into()]));
        server.says("200 OK");
        until("the body is seen", || text(&strict) == ["healthy"]).await;
    });
}

#[test]
fn a_check_sends_its_body_whole_and_adds_headers_after_it_removed_some() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let check = "http_health_check: {path: /, method: POST, send: {text: '70696e67'}, request_headers_to_remove: \
                     [user-agent, x-kept], request_headers_to_add: [{header: {key: x-kept, value: me}}]}";
        let cluster = cluster(&[port], check, "");
        until("the check passed", || text(&cluster) == ["healthy"]).await;
        let asked = server.asked.borrow().to_lowercase();
        assert!(asked.contains("content-length: 4\r\n") && asked.contains("x-kept: me\r\n"), "{asked}");
        assert!(!asked.contains("user-agent"), "{asked}");
    });
}

#[test]
fn a_closed_port_is_a_network_failure_and_silence_a_timeout() {
    local(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = listener.local_addr().unwrap().port();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let check = "http_health_check: {path: /}";
        let away = cluster(&[port], check, "");
        until("the check failed", || away.is_checked()).await;
        assert_eq!(text(&away), ["/failed_active_hc"]);
        assert!(away.health().unwrap().stats().network_failure.value() >= 1);
        let yaml_timeout = cluster_with_timeout(silent);
        until("the check timed out", || yaml_timeout.is_checked()).await;
        assert_eq!(text(&yaml_timeout), ["/failed_active_hc/active_hc_timeout"]);
    });
}

fn cluster_with_timeout(port: u16) -> Arc<Cluster> {
    let yaml = format!(
        "name: c\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\nhealth_checks: [{{timeout: 0.05s, \
         interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {{receive: [{{text: '6f6b'}}]}}}}]"
    );
    let proto: pb::Cluster = xds_protos::json::from_yaml_str(&yaml).unwrap();
    let cluster = Cluster::new(ClusterConfig::compile(&proto, &CompileContext::for_tests()).unwrap());
    tokio::task::spawn_local(run(cluster.clone()));
    cluster
}

#[test]
fn a_tcp_check_says_its_words_and_waits_for_the_answer() {
    local(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Rc::new(Cell::new("+PONG\r\n"));
        let said = answer.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let said = said.clone();
                tokio::task::spawn_local(async move {
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        assert_eq!(&buffer[..n], b"PING");
                        if said.get().is_empty() || stream.write_all(said.get().as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let check = "tcp_health_check: {send: {text: '50494e47'}, receive: [{text: '504f4e47'}]}";
        let cluster = cluster(&[port], check, "");
        until("the check passed", || text(&cluster) == ["healthy"]).await;
        answer.set("");
        until("it failed twice", || text(&cluster) == ["/failed_active_hc"]).await;
    });
}

#[test]
fn a_grpc_check_asks_for_its_service() {
    local(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let status = Rc::new(Cell::new(1u8));
        let now = status.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let now = now.clone();
                tokio::task::spawn_local(async move {
                    let mut connection = ::h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        assert_eq!(request.uri().authority().unwrap(), "c");
                        let head = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .body(())
                            .unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, now.get()]), false).unwrap();
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        stream.send_trailers(trailers).unwrap();
                    }
                });
            }
        });
        let h2 = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \
                  '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
                  explicit_http_config: {http2_protocol_options: {}}";
        let cluster = cluster(&[port], "grpc_health_check: {service_name: echo}", h2);
        until("it serves", || text(&cluster) == ["healthy"]).await;
        status.set(2);
        until("it serves no more", || text(&cluster) == ["/failed_active_hc"]).await;
    });
}

#[test]
fn a_host_that_passes_stays_though_it_is_no_longer_assigned() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        for (options, stays) in [("", true), ("ignore_health_on_host_removal: true", false)] {
            server.says("200 OK");
            let cluster = cluster(&[], "http_health_check: {path: /}", &format!("type: EDS\n{options}"));
            let at = endpoint::Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
            cluster.assign(&LoadAssignment::flat(vec![at]));
            until("the check passed", || text(&cluster) == ["healthy"]).await;
            cluster.assign(&LoadAssignment::default());
            let kept = if stays { vec!["/pending_dynamic_removal".to_owned()] } else { vec![] };
            assert_eq!(text(&cluster), kept);
            assert_eq!(cluster.pick(&PickContext::default()).is_ok(), stays);
            server.says("500 No");
            until("it went", || cluster.hosts().is_empty()).await;
        }
    });
}

#[test]
fn an_endpoint_says_where_and_how_it_is_checked() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let cluster = cluster(&[], "http_health_check: {path: /, host: not.this}", "");
        let at = |port| endpoint::Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        let mut elsewhere = at(1);
        elsewhere.check.address = Some(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        elsewhere.check.hostname = "own.example".to_owned();
        let mut unasked = at(2);
        unasked.check.disabled = true;
        cluster.assign(&LoadAssignment::flat(vec![elsewhere, unasked, at(port)]));
        assert_eq!(text(&cluster), ["/failed_active_hc", "healthy", "/failed_active_hc"]);
        until("all are healthy", || text(&cluster) == ["healthy", "healthy", "healthy"]).await;
        until("it is asked by its own name", || server.asked.borrow().contains("own.example")).await;
    });
}

#[test]
fn a_host_that_says_so_itself_is_out_at_once_and_counts_nowhere() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let cluster = cluster(&[port], "http_health_check: {path: /}", "");
        until("the check passed", || text(&cluster) == ["healthy"]).await;
        let host = cluster.hosts().hosts().next().unwrap().clone();
        server.says("503 No");
        cluster.told_unhealthy(&host);
        assert_eq!(text(&cluster), ["/failed_active_hc/excluded_via_immediate_hc_fail"]);
        assert_eq!(cluster.health().unwrap().stats().passive_failure.value(), 1);
        server.says("200 OK");
        until("it is in again", || text(&cluster) == ["healthy"]).await;
    });
}

#[test]
fn a_passed_check_ends_an_ejection() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let outlier = |ends| {
            format!(
                "outlier_detection: {{consecutive_5xx: 1, base_ejection_time: 300s, max_ejection_percent: 100, \
                 successful_active_health_check_uneject_host: {ends}}}"
            )
        };
        for ends in [true, false] {
            let cluster = cluster(&[port], "http_health_check: {path: /}", &outlier(ends));
            until("the check passed", || text(&cluster) == ["healthy"]).await;
            let host = cluster.hosts().hosts().next().unwrap().clone();
            cluster.report(&host, Outcome::Answered(http::StatusCode::BAD_GATEWAY));
            let successes = || cluster.health().unwrap().stats().success.value();
            let before = successes();
            until("more checks passed", || successes() > before + 2).await;
            assert_eq!(text(&cluster), [if ends { "healthy" } else { "/failed_outlier_check" }]);
        }
    });
}

#[test]
fn a_host_that_fails_while_it_is_half_open_is_out_by_its_checks() {
    local(|| async {
        let server = Server::default();
        server.says("200 OK");
        let port = server.start().await;
        let window = "metadata: {filter_metadata: {weft.dev: {return_window: 300s}}}";
        let cluster = cluster(&[port], "http_health_check: {path: /}", window);
        until("the check passed", || text(&cluster) == ["healthy"]).await;
        let host = cluster.hosts().hosts().next().unwrap().clone();
        assert_eq!(cluster.circuit(&host), Some("closed"), "a new host does not return");
        server.says("503 No");
        until("it is out", || cluster.circuit(&host) == Some("open")).await;
        server.says("200 OK");
        until("it returns", || cluster.circuit(&host) == Some("half-open")).await;
        server.says("503 No");
        cluster.report(&host, Outcome::ConnectFailed);
        assert_eq!(cluster.circuit(&host), Some("open"));
    });
}

#[test]
fn the_next_check_comes_sooner_or_later_by_what_is_known() {
    let millis = Duration::from_millis;
    let intervals = Intervals {
        healthy: millis(1),
        healthy_edge: millis(2),
        unhealthy: millis(3),
        unhealthy_edge: millis(4),
        no_traffic: millis(5),
        no_traffic_healthy: millis(6),
    };
    let up = Verdict::Healthy { degraded: false };
    let down = Verdict::failed(Reason::Active);
    let after = |verdict, used| {
        [Transition::Unchanged, Transition::Pending, Transition::Changed]
            .map(|t| intervals.after(verdict, t, used).as_millis())
    };
    assert_eq!((after(up, true), after(down, true)), ([1, 2, 1], [3, 4, 3]));
    assert_eq!((after(up, false), after(down, false)), ([6, 5, 6], [5, 5, 5]));
}

#[test]
fn what_is_wrong_is_refused_at_its_path() {
    let base = "timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1";
    for (check, path) in [
        (format!("{base}, grpc_health_check: {{}}"), "health_checks[0].grpc_health_check"),
        (base.to_owned(), "health_checks[0].http_health_check, tcp_health_check or grpc_health_check"),
        (
            format!("{base}, http_health_check: {{path: /, expected_statuses: [{{start: 300, end: 200}}]}}"),
            "health_checks[0].http_health_check.expected_statuses[0]",
        ),
        (
            format!("{base}, http_health_check: {{path: /, send: {{text: '00'}}}}"),
            "health_checks[0].http_health_check.send",
        ),
        (
            format!("{base}, tcp_health_check: {{receive: [{{text: xy}}]}}"),
            "health_checks[0].tcp_health_check.receive[0].text",
        ),
        (format!("{base}, tcp_health_check: {{}}}}, {{{base}, tcp_health_check: {{}}"), "health_checks[1]"),
    ] {
        let yaml = format!("name: c\nhealth_checks: [{{{check}}}]");
        let proto: pb::Cluster = xds_protos::json::from_yaml_str(&yaml).unwrap();
        let errors = ClusterConfig::compile(&proto, &CompileContext::for_tests()).unwrap_err();
        assert_eq!(errors[0].path, path, "{errors:?}");
    }
}
