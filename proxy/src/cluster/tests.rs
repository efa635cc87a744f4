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

#[test]
fn who_is_ejected_while_a_new_version_gets_ready_returns_in_it() {
    let plain = "lb_policy: ROUND_ROBIN\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}";
    let outlier =
        "outlier_detection: {consecutive_5xx: 3, base_ejection_time: 1s, max_ejection_percent: 100}";
    let both = format!("{plain}\n{outlier}");
    let fail = |cluster: &Arc<Cluster>, host: &Arc<Host>| {
        (0..3).for_each(|_| cluster.report(host, Outcome::Answered(http::StatusCode::BAD_GATEWAY)));
        assert!(host.has_flag(HealthFlag::FailedOutlier));
    };
    let next = |before: &Arc<Cluster>, options: &str| {
        let cluster = one(&[], options);
        cluster.adopt(before);
        cluster.assign(&assignment(&[1, 2]));
        cluster
    };
    let later = Instant::now() + std::time::Duration::from_secs(100);

    // Nobody has called the version before when the next one comes.
    let before = one(&[1, 2], &both);
    let sick = before.hosts().hosts().next().unwrap().clone();
    let after = next(&before, &both);
    fail(&before, &sick);
    after.take_over();
    assert_eq!((picks_of_first(&after, 100), after.stats().ejections_active.value()), (0, 1));
    after.sweep(later);
    assert_eq!((picks_of_first(&after, 100), after.stats().ejections_active.value()), (50, 0));
    // Nor has anybody called the next one before it lets hosts return.
    let before = one(&[1, 2], &both);
    let sick = before.hosts().hosts().next().unwrap().clone();
    let after = next(&before, &both);
    fail(&before, &sick);
    after.sweep(later);
    assert_eq!(picks_of_first(&after, 100), 50);

    // A next one that ejects nobody, then and as long as the one before has calls; and so the one after that.
    let before = one(&[1, 2], &both);
    let sick = before.hosts().hosts().next().unwrap().clone();
    let after = next(&before, plain);
    fail(&before, &sick);
    after.take_over();
    assert_eq!(picks_of_first(&after, 100), 50);
    let last = next(&after, plain);
    for cluster in [after, last] {
        before.sweep(later);
        fail(&before, &sick);
        cluster.refresh();
        assert_eq!(picks_of_first(&cluster, 100), 0);
        cluster.sweep(later);
        assert_eq!(picks_of_first(&cluster, 100), 50);
    }
}

#[test]
fn a_version_that_was_replaced_tells_of_no_hosts_though_it_has_requests_yet() {
    let options = "outlier_detection: {consecutive_5xx: 3, max_ejection_percent: 100}";
    let before = one(&[1, 2], options);
    let hosts: Vec<_> = before.hosts().hosts().cloned().collect();
    let after = one(&[], options);
    after.adopt(&before);
    after.assign(&assignment(&[1, 2]));
    let fail = |host| {
        (0..3).for_each(|_| before.report(host, Outcome::Answered(http::StatusCode::BAD_GATEWAY)));
    };
    let told = |cluster: &Arc<Cluster>| {
        let stats = cluster.stats();
        (stats.membership_total.value(), stats.membership_healthy.value(), stats.ejections_active.value())
    };
    fail(&hosts[0]);
    assert_eq!(told(&before), (2, 1, 1));
    after.take_over();
    before.retire();
    assert_eq!((told(&before), told(&after)), ((0, 0, 0), (2, 1, 1)));
    fail(&hosts[1]);
    assert!(hosts[1].has_flag(HealthFlag::FailedOutlier));
    after.sweep(Instant::now());
    assert_eq!((told(&before), told(&after).2), ((0, 0, 0), 2));
}

#[test]
fn a_cluster_that_nobody_calls_has_no_statistics_for_being_swept_and_replaced() {
    let options = "outlier_detection: {consecutive_5xx: 3}";
    let before = one(&[1, 2], options);
    let after = one(&[], options);
    after.adopt(&before);
    after.assign(&assignment(&[1, 2]));
    after.take_over();
    after.sweep(Instant::now());
    assert!(before.kept_stats().made().is_none() && after.kept_stats().made().is_none());
}

/// Picks so often, and says how often the first host came up.
fn picks_of_first(cluster: &Arc<Cluster>, n: usize) -> usize {
    let first = cluster.hosts().hosts().next().unwrap().id();
    (0..n).filter(|_| cluster.pick(&PickContext::default()).unwrap().host().id() == first).count()
}

/// Makes the first host new since this long, and the others old.
fn age_first(cluster: &Arc<Cluster>, age: std::time::Duration) {
    for (i, host) in cluster.hosts().hosts().enumerate() {
        let age = if i == 0 { age } else { std::time::Duration::from_secs(10_000) };
        host.start_at(Moment::now().minus(age));
    }
    cluster.refresh();
}

#[test]
fn a_new_host_gets_a_growing_share_of_its_weight() {
    let seconds = std::time::Duration::from_secs;
    let slow =
        "slow_start_config: {slow_start_window: 1000s, aggression: {runtime_key: k, default_value: 1.0}";
    for (policy, field) in [
        ("lb_policy: ROUND_ROBIN", "round_robin_lb_config"),
        ("lb_policy: LEAST_REQUEST", "least_request_lb_config"),
    ] {
        let cluster = one(&[1, 2], &format!("{policy}\n{field}: {{{slow}}}}}"));
        // All are new: nobody is ahead.
        assert!((400..=600).contains(&picks_of_first(&cluster, 1000)), "{policy}");
        // A host of share s gets s / (1 + s) of the requests.
        for (age, least, most) in [(0, 85, 97), (100, 85, 97), (500, 325, 342), (1000, 495, 505)] {
            age_first(&cluster, seconds(age));
            let picks = picks_of_first(&cluster, 1000);
            // Least request at even weights is chance: five standard deviations.
            let (least, most) =
                if age == 1000 && field.starts_with("least") { (420, 580) } else { (least, most) };
            assert!((least..=most).contains(&picks), "{policy} {age}: {picks}");
        }
    }
}

#[test]
fn the_least_share_and_the_aggression_are_as_configured() {
    let cluster = one(
        &[1, 2],
        "round_robin_lb_config: {slow_start_config: {slow_start_window: 1000s, min_weight_percent: {value: 50}}}",
    );
    age_first(&cluster, std::time::Duration::ZERO);
    assert!((328..=339).contains(&picks_of_first(&cluster, 1000)));
    let cluster = one(
        &[1, 2],
        "round_robin_lb_config: {slow_start_config: {slow_start_window: 1000s, aggression: {default_value: 2, runtime_key: k}}}",
    );
    // A quarter of the window to the power of a half.
    age_first(&cluster, std::time::Duration::from_secs(250));
    assert!((328..=339).contains(&picks_of_first(&cluster, 1000)));
}

#[test]
fn when_the_window_is_over_balancing_looks_at_no_clock() {
    let cluster = one(&[1, 2], "round_robin_lb_config: {slow_start_config: {slow_start_window: 1000s}}");
    let ramps = |c: &Arc<Cluster>| c.hosts().priorities()[0].healthy.is_weighted();
    assert!(ramps(&cluster));
    cluster.settle(Instant::now() + std::time::Duration::from_secs(999));
    assert!(ramps(&cluster));
    age_first(&cluster, std::time::Duration::from_secs(1000));
    assert!(!ramps(&cluster));
    assert!(!ramps(&one(&[1, 2], "")), "without slow start there is no ramp at all");
}

#[test]
fn an_assignment_gives_only_its_new_hosts_a_slow_start() {
    let cluster = one(&[1, 2], "round_robin_lb_config: {slow_start_config: {slow_start_window: 1000s}}");
    age_first(&cluster, std::time::Duration::from_secs(1000));
    cluster.assign(&assignment(&[3, 1, 2]));
    // A tenth of a weight among two and a tenth.
    assert!((40..=55).contains(&picks_of_first(&cluster, 1000)));
}

#[test]
fn a_returning_host_ramps_up_and_its_first_failure_ejects_it_again() {
    let options = "lb_policy: ROUND_ROBIN\nmetadata: {filter_metadata: {weft.dev: {return_window: 100s}}}\n\
                   outlier_detection: {consecutive_5xx: 3, base_ejection_time: 1s, max_ejection_percent: 100}\n\
                   common_lb_config: {healthy_panic_threshold: {value: 0}}";
    let cluster = one(&[1, 2], options);
    let sick = cluster.hosts().hosts().next().unwrap().clone();
    let fail = || cluster.report(&sick, Outcome::Answered(http::StatusCode::BAD_GATEWAY));
    let share = || picks_of_first(&cluster, 1000);
    assert_eq!((cluster.circuit(&sick), share()), (Some("closed"), 500));
    (0..3).for_each(|_| fail());
    assert_eq!((cluster.circuit(&sick), share()), (Some("open"), 0));
    cluster.sweep(Instant::now() + std::time::Duration::from_secs(1));
    assert_eq!(cluster.circuit(&sick), Some("half-open"));
    assert!((85..=97).contains(&share()));
    sick.return_at(Some(Moment::now().minus(std::time::Duration::from_secs(50))));
    assert!((325..=342).contains(&share()));
    fail();
    assert_eq!((cluster.circuit(&sick), share()), (Some("open"), 0));
    // Without the metadata there is no such state.
    assert_eq!(one(&[1], "").circuit(&sick), None);
}

#[test]
fn a_typed_policy_is_the_same_as_the_old_fields() {
    let policy = |options: &str| one(&[1, 2], options).config().balancing.clone();
    let typed = |name: &str, fields: &str| {
        policy(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
        ))
    };
    let slow = "slow_start_config: {slow_start_window: 5s, aggression: {default_value: 1.5, runtime_key: k}}";
    assert_eq!(
        typed("round_robin.v3.RoundRobin", slow),
        policy(&format!("round_robin_lb_config: {{{slow}}}"))
    );
    assert_eq!(
        typed(
            "least_request.v3.LeastRequest",
            "choice_count: 3, active_request_bias: {default_value: 0.5, runtime_key: k}"
        ),
        policy(
            "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 3, active_request_bias: \
             {default_value: 0.5, runtime_key: k}}"
        )
    );
    assert_eq!(
        typed(
            "ring_hash.v3.RingHash",
            "minimum_ring_size: 10, hash_function: MURMUR_HASH_2, consistent_hashing_lb_config: \
             {use_hostname_for_hashing: true, hash_balance_factor: 120}"
        ),
        policy(
            "lb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 10, hash_function: MURMUR_HASH_2}\n\
             common_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_balance_factor: 120}}"
        )
    );
    assert_eq!(
        typed("maglev.v3.Maglev", "table_size: 7, locality_weighted_lb_config: {}"),
        policy(
            "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 7}\ncommon_lb_config: {locality_weighted_lb_config: {}}"
        )
    );
    assert_eq!(
        typed(
            "wrr_locality.v3.WrrLocality",
            "endpoint_picking_policy: {policies: [{typed_extension_config: {name: p, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}"
        ),
        policy("lb_policy: RANDOM\ncommon_lb_config: {locality_weighted_lb_config: {}}")
    );
    // It replaces the old field.
    assert_eq!(
        policy(
            "lb_policy: MAGLEV\nload_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: \
             {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}"
        )
        .policy,
        Policy::Random
    );
}

#[test]
fn with_bounded_loads_a_busy_host_gives_to_another_one_and_always_the_same() {
    for kind in ["RING_HASH", "MAGLEV"] {
        let cluster = one(
            &[1, 2, 3],
            &format!(
                "lb_policy: {kind}\ncommon_lb_config: {{consistent_hashing_lb_config: {{hash_balance_factor: 100}}}}"
            ),
        );
        let context = PickContext { hash: Some(42), ..PickContext::default() };
        let pick = || cluster.pick(&context).unwrap();
        let at_home = pick().host().clone();
        assert_eq!(pick().host().id(), at_home.id());
        let _busy: Vec<_> = (0..4).map(|_| at_home.start_request()).collect();
        let second = pick().host().clone();
        assert_ne!(second.id(), at_home.id());
        assert!((0..20).all(|_| pick().host().id() == second.id()), "{kind}");
        let _busy: Vec<_> = (0..3).map(|_| second.start_request()).collect();
        let third = pick().host().id();
        assert!(third != at_home.id() && third != second.id());
    }
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
        origin: None,
        protocol: Protocol::Http11,
        alpn: None,
        authority: None,
        priority: RoutingPriority::Default,
    }
}

async fn request(cluster: &Arc<Cluster>) -> Result<String, AcquireError> {
    let picked = cluster.pick(&PickContext::default()).unwrap();
    let upstream = acquire(cluster, picked, &want()).await?;
    let mut reply = upstream.send(get(), None, drop).await.unwrap();
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
fn a_host_takes_no_more_connections_than_are_allowed_for_one() {
    run(|| async {
        let port = server(std::time::Duration::from_millis(20)).await;
        let cluster = one(&[port], "circuit_breakers: {per_host_thresholds: [{max_connections: 1}]}");
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::task::spawn_local(async move { request(&cluster).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap(), "1");
        }
        assert_eq!(cluster.stats().upstream_cx_total.value(), 1);
        assert!(cluster.stats().upstream_cx_overflow.value() > 0);
    });
}

#[test]
fn an_original_destination_keeps_its_address_and_may_get_another_port() {
    let cluster = |options: &str| {
        compile(&format!("name: c\ntype: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\n{options}"))
    };
    let go = |cluster: &Arc<Cluster>| {
        let context =
            PickContext { original_dst: Some("10.0.0.1:80".parse().unwrap()), ..PickContext::default() };
        cluster.pick(&context).unwrap().host().address().to_string()
    };
    assert_eq!(go(&cluster("")), "10.0.0.1:80");
    assert_eq!(go(&cluster("original_dst_lb_config: {upstream_port_override: 15008}")), "10.0.0.1:15008");
    let header = |options: &str| cluster(options).config().original_dst.header.clone();
    assert_eq!(header(""), None);
    assert_eq!(
        header("original_dst_lb_config: {use_http_header: true}").unwrap(),
        "x-envoy-original-dst-host"
    );
    let own = "original_dst_lb_config: {use_http_header: true, http_header_name: X-To}";
    assert_eq!(header(own).unwrap(), "x-to");
}

#[test]
fn the_typed_dns_cluster_is_the_same_as_the_old_fields() {
    let name = "load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: host, \
                port_value: 1}}}}]}]}";
    let discovery =
        |options: &str| compile(&format!("name: c\n{name}\n{options}")).config().discovery.clone();
    let typed = |fields: &str| {
        discovery(&format!(
            "cluster_type: {{name: dns, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, {fields}}}}}"
        ))
    };
    assert_eq!(
        typed(
            "dns_refresh_rate: 60s, dns_jitter: 0.1s, respect_dns_ttl: true, dns_lookup_family: V4_ONLY, \
               dns_failure_refresh_rate: {base_interval: 2s}"
        ),
        discovery(
            "type: STRICT_DNS\ndns_refresh_rate: 60s\ndns_jitter: 0.1s\nrespect_dns_ttl: true\n\
                   dns_lookup_family: V4_ONLY\ndns_failure_refresh_rate: {base_interval: 2s, max_interval: 20s}"
        )
    );
    assert_eq!(
        typed("all_addresses_in_single_endpoint: true, dns_lookup_family: ALL"),
        discovery("type: LOGICAL_DNS\ndns_lookup_family: ALL")
    );
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
        (
            "name: c\nload_balancing_policy: {policies: []}",
            "load_balancing_policy.policies[0].typed_extension_config.typed_config",
        ),
        ("name: c\nlb_policy: MAGLEV\nmaglev_lb_config: {table_size: 8}", "maglev_lb_config.table_size"),
        (
            "name: c\noutlier_detection: {base_ejection_time: 2s, max_ejection_time: 1s}",
            "outlier_detection.max_ejection_time",
        ),
        (
            "name: c\nmetadata: {filter_metadata: {weft.dev: {return_window: soon}}}",
            "metadata.filter_metadata[weft.dev].return_window",
        ),
        ("name: c\ntype: LOGICAL_DNS", "load_assignment"),
        (
            "name: c\ntype: STRICT_DNS\nload_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {port_value: 1}}}}]}]}",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
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
