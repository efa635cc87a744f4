//! Choosing an endpoint among a hundred, by each balancer.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::Criterion;
use weft_proxy::cluster::{Cluster, ClusterConfig, PickContext};
use weft_proxy::state::{CompileContext, NodeInfo, Tables};
use xds_protos::envoy::config::cluster::v3::Cluster as Proto;

/// A static cluster of a hundred endpoints; `weighted` gives them different weights.
fn cluster(policy: &str, weighted: bool) -> Arc<Cluster> {
    let mut endpoints = String::new();
    for i in 0..100 {
        let weight = if weighted { 1 + i % 7 } else { 1 };
        endpoints += &format!(
            "    - load_balancing_weight: {weight}\n      endpoint: {{ address: {{ socket_address: {{ address: 10.0.0.{i}, port_value: 80 }} }} }}\n"
        );
    }
    let text = format!(
        "name: c\ntype: STATIC\nlb_policy: {policy}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  - lb_endpoints:\n{endpoints}"
    );
    let proto: Proto = xds_protos::json::from_yaml_str(&text).unwrap();
    let context =
        CompileContext::new(&Tables::default(), Arc::new(NodeInfo::default()), SystemTime::UNIX_EPOCH);
    Cluster::new(ClusterConfig::compile(&proto, &context).unwrap())
}

pub fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick of 100");
    for (name, policy, weighted) in [
        ("least request", "LEAST_REQUEST", false),
        ("least request, weighted", "LEAST_REQUEST", true),
        ("round robin", "ROUND_ROBIN", false),
        ("round robin, weighted", "ROUND_ROBIN", true),
        ("random", "RANDOM", false),
        ("ring hash", "RING_HASH", false),
        ("maglev", "MAGLEV", false),
    ] {
        let cluster = cluster(policy, weighted);
        let mut hash = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let context = PickContext { hash: Some(hash), ..PickContext::default() };
                // The pick counts as an active request until it is dropped.
                cluster.pick(black_box(&context)).is_ok()
            });
        });
    }
}
