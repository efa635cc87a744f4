//! Clusters over loopback: picks, identity of hosts, pools, breakers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use xds_protos::envoy::config::cluster::v3 as pb;

use super::*;
use crate::codec::{Body, Frame, Headers, Protocol, Request, RequestHead};
use crate::state::CompileContext;

fn compile(yaml: &str) -> Arc<Cluster> {
    let proto: pb::Cluster = xds_protos::json::from_yaml_str(yaml).unwrap();
    Cluster::new(ClusterConfig::compile(&proto, &CompileContext::for_tests()).unwrap())
}

fn one(ports: &[u16], options: &str) -> Arc<Cluster> {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|p| {
            format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {p}}}}}}}}}")
        })
        .collect();
    compile(&format!(
        "name: c\nconnect_timeout: 1s\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}\n{options}",
        endpoints.join(", ")
    ))
}

fn assignment(ports: &[u16]) -> LoadAssignment {
    let endpoint = |p: &u16| endpoint::Endpoint::new(SocketAddr::from(([127, 0, 0, 1], *p)));
    LoadAssignment::flat(ports.iter().map(endpoint).collect())
}

#[test]
fn a_host_keeps_its_identity_over_assignments_and_a_gone_one_is_marked() {
    let cluster = one(&[1, 2], "");
    let before: Vec<_> = cluster.hosts().hosts().cloned().collect();
    cluster.assign(&assignment(&[2, 3]));
    let after: Vec<_> = cluster.hosts().hosts().cloned().collect();
    assert!(Arc::ptr_eq(&before[1], &after[0]));
    assert!(before[0].has_flag(HealthFlag::Removed) && !after[0].has_flag(HealthFlag::Removed));
    let successor = one(&[9], "");
    successor.adopt(&cluster);
    successor.assign(&assignment(&[3]));
    assert!(Arc::ptr_eq(&after[1], successor.hosts().hosts().next().unwrap()));
}

#[test]
fn least_request_sends_a_busy_host_less() {
    let cluster = one(&[1, 2, 3], "lb_policy: LEAST_REQUEST");
    let hosts: Vec<_> = cluster.hosts().hosts().cloned().collect();
    let _busy: Vec<_> = (0..10).map(|_| hosts[0].start_request()).collect();
    let mut to_busy = 0;
    for _ in 0..3000 {
        let picked = cluster.pick(&PickContext::default()).unwrap();
        to_busy += u32::from(Arc::ptr_eq(picked.host(), &hosts[0]));
    }
    // It wins only when both choices fall on it: one time in nine at most; 333 plus five standard deviations.
    assert!(to_busy < 333 + 5 * 18, "{to_busy}");
}

#[test]
fn tried_hosts_are_avoided_and_an_empty_cluster_says_so() {
    let cluster = one(&[1, 2, 3], "lb_policy: ROUND_ROBIN");
    let ids: Vec<_> = cluster.hosts().hosts().map(|h| h.id()).collect();
    for _ in 0..100 {
        let context = PickContext { tried: &ids[..2], repicks: 5, ..PickContext::default() };
        assert_eq!(cluster.pick(&context).unwrap().host().id(), ids[2]);
    }
    cluster.assign(&LoadAssignment::default());
    assert_eq!(cluster.pick(&PickContext::default()).unwrap_err(), NoHost::NoHealthyUpstream);
}

#[test]
fn an_ejected_host_is_left_out_until_its_time_is_over() {
    let options = "lb_policy: ROUND_ROBIN\noutlier_detection: {consecutive_5xx: 3, base_ejection_time: 1s, \
                   max_ejection_percent: 100}\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}";
    let cluster = one(&[1, 2], options);
    let sick = cluster.hosts().hosts().next().unwrap().clone();
    for _ in 0..3 {
        cluster.report(&sick, Outcome::Answered(http::StatusCode::BAD_GATEWAY));
    }
    let picks = |n| {
        (0..n).filter(|_| cluster.pick(&PickContext::default()).unwrap().host().id() == sick.id()).count()
    };
    assert_eq!(picks(100), 0);
    cluster.sweep(Instant::now() + std::time::Duration::from_secs(1));
    assert_eq!(picks(100), 50);
}

#[test]
fn a_new_version_of_a_cluster_knows_who_is_ejected() {
    let plain = "lb_policy: ROUND_ROBIN\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}";
    let outlier =
        "outlier_detection: {consecutive_5xx: 3, base_ejection_time: 1s, max_ejection_percent: 100}";
    let both = format!("{plain}\n{outlier}");
    let before = one(&[1, 2], &both);
    let sick = before.hosts().hosts().next().unwrap().clone();
    for _ in 0..3 {
        before.report(&sick, Outcome::Answered(http::StatusCode::BAD_GATEWAY));
    }
    let next = |options: &str| {
        let cluster = one(&[], options);
        cluster.adopt(&before);
        cluster.assign(&assignment(&[1, 2]));
        cluster
    };
    let picks = |cluster: &Arc<Cluster>| {
        (0..100).filter(|_| cluster.pick(&PickContext::default()).unwrap().host().id() == sick.id()).count()
    };
    let after = next(&both);
    assert_eq!(picks(&after), 0);
    after.sweep(Instant::now() + std::time::Duration::from_secs(1));
    assert_eq!(picks(&after), 50);

    for _ in 0..3 {
        before.report(&sick, Outcome::Answered(http::StatusCode::BAD_GATEWAY));
    }
    let without = next(plain);
    assert_eq!(picks(&without), 50);
}

fn get() -> Request {
    let head = RequestHead {
        method: Method::GET,
        scheme: Bytes::from_static(b"http"),
        authority: Bytes::from_static(b"a"),
        path: Bytes::from_static(b"/"),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: Headers::new(),
    };
    Request { head, body: Body::Empty }
}

fn want() -> Want {
    Want {
        protocol: Protocol::Http11,
        alpn: None,
        authority: None,
        priority: RoutingPriority::Default,
        tunnel: false,
    }
}

async fn request(cluster: &Arc<Cluster>) -> Result<String, AcquireError> {
    let picked = cluster.pick(&PickContext::default()).unwrap();
    let upstream = acquire(cluster, picked, &want()).await?;
    let mut reply = upstream.send(get(), None).await.unwrap();
    let mut text = Vec::new();
    while let Some(Ok(Frame::Data(data))) = reply.body.frame().await {
        text.extend_from_slice(&data);
    }
    Ok(String::from_utf8(text).unwrap())
}

/// Answers each request with its connection's number, after `wait`.
async fn server(wait: std::time::Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        let mut number = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            number += 1;
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 1024];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    tokio::time::sleep(wait).await;
                    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await })
}

const NOW: std::time::Duration = std::time::Duration::ZERO;

#[test]
fn connections_are_used_again_until_they_have_served_their_number() {
    run(|| async {
        let port = server(NOW).await;
        let options = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \
                       '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
                       common_http_protocol_options: {max_requests_per_connection: 3}\n    \
                       explicit_http_config: {http_protocol_options: {}}";
        let cluster = one(&[port], options);
        let mut seen = String::new();
        for _ in 0..7 {
            seen += &request(&cluster).await.unwrap();
        }
        assert_eq!(seen, "1112223");
        assert_eq!(cluster.stats().upstream_rq_total.value(), 7);
        assert_eq!(cluster.stats().upstream_rq_active.value(), 0);
        assert_eq!(cluster.hosts().hosts().next().unwrap().active_requests(), 0);
    });
}

#[test]
fn over_the_connection_limit_requests_wait_and_over_the_pending_limit_they_are_refused() {
    run(|| async {
        let port = server(std::time::Duration::from_millis(50)).await;
        let options = "circuit_breakers: {thresholds: [{max_connections: 2, max_pending_requests: 3}]}";
        let cluster = one(&[port], options);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::task::spawn_local(async move { request(&cluster).await })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        let refused = answers.iter().filter(|a| **a == Err(AcquireError::Overflow)).count();
        // All eight ask at once: three may wait (for a connection to be made or to come free), five are refused.
        assert_eq!((answers.len() - refused, refused), (3, 5), "{answers:?}");
        assert_eq!(cluster.stats().upstream_cx_total.value(), 2);
        assert_eq!(cluster.stats().upstream_rq_pending_overflow.value(), 5);
        assert_eq!(cluster.limits(RoutingPriority::Default).pending.held(), 0);
    });
}

#[test]
fn a_closed_port_is_a_connect_failure_in_envoys_words() {
    run(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = request(&one(&[port], "")).await.unwrap_err();
        let AcquireError::Connect(failure) = error else { panic!("{error:?}") };
        assert_eq!((&*failure.reason, failure.timeout), ("delayed connect error: Connection refused", false));
    });
}

#[test]
fn what_is_wrong_is_refused_at_its_path() {
    for (yaml, path) in [
        ("name: c\ntype: EDS\nlb_policy: CLUSTER_PROVIDED", "lb_policy"),
        ("name: ''", "name"),
        ("name: c\ntype: STRICT_DNS", "load_assignment"),
        (
            "name: c\nload_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: \
             {address: host, port_value: 1}}}}]}]}",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
    ] {
        let proto: pb::Cluster = xds_protos::json::from_yaml_str(yaml).unwrap();
        let errors = ClusterConfig::compile(&proto, &CompileContext::for_tests()).unwrap_err();
        assert_eq!(errors[0].path, path, "{errors:?}");
    }
}
