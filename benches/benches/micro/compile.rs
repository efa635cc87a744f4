//! From xDS resources in bytes to what serves: the walk over every field, the check, the compiled tables.

use std::sync::Arc;

use criterion::{BatchSize, Criterion};
use weft_proxy::listen::SocketTable;
use weft_proxy::state::{Engine, NodeInfo, Tables};
use weft_proxy::xds::Subscriptions;
use xds_protos::ResourceType;
use xds_protos::envoy::config::cluster::v3::Cluster;
use xds_protos::prost::Message;

/// Clusters of ten endpoints each, as bytes.
fn clusters(count: usize) -> Vec<(String, Vec<u8>)> {
    let one = |i: usize| {
        let name = format!("outbound|8080||svc-{i}.ecotrack.svc.cluster.local");
        let mut endpoints = String::new();
        for e in 0..10 {
            endpoints += &format!(
                "    - endpoint: {{ address: {{ socket_address: {{ address: 10.{}.{}.{e}, port_value: 8080 }} }} }}\n",
                i / 256,
                i % 256
            );
        }
        let text = format!(
            "name: \"{name}\"\ntype: STATIC\nconnect_timeout: 10s\nlb_policy: LEAST_REQUEST\n\
             circuit_breakers: {{ thresholds: [{{ max_connections: 100, max_requests: 1000 }}] }}\n\
             outlier_detection: {{ consecutive_5xx: 5, interval: 10s, base_ejection_time: 30s }}\n\
             load_assignment:\n  cluster_name: \"{name}\"\n  endpoints:\n  - lb_endpoints:\n{endpoints}"
        );
        let proto: Cluster = xds_protos::json::from_yaml_str(&text).unwrap();
        (name, proto.encode_to_vec())
    };
    (0..count).map(one).collect()
}

fn engine() -> Engine {
    let sockets = SocketTable::new(Vec::new());
    Engine::new(Tables::default(), Arc::new(NodeInfo::default()), sockets, Subscriptions::new())
}

pub fn benches(c: &mut Criterion) {
    let all = clusters(1000);
    c.bench_function("compile 1000 clusters of 10 endpoints", |b| {
        b.iter_batched(
            engine,
            |engine| {
                for (name, bytes) in &all {
                    engine.add_static(ResourceType::Cluster, name, bytes).unwrap();
                }
                engine
            },
            BatchSize::PerIteration,
        );
    });
    let engine = engine();
    for (name, bytes) in &all {
        engine.add_static(ResourceType::Cluster, name, bytes).unwrap();
    }
    c.bench_function("replace 1 cluster of 1000", |b| {
        b.iter(|| engine.add_static(ResourceType::Cluster, &all[0].0, &all[0].1).unwrap());
    });
}
