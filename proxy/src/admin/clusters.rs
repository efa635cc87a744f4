//! `/clusters`: every host with its counters and health, as Envoy prints it.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::cluster::host::Health;
use crate::cluster::outlier::Origin;
use crate::cluster::{Cluster, RoutingPriority};
use crate::state::Engine;

fn serving(engine: &Engine) -> Vec<std::sync::Arc<Cluster>> {
    let mut clusters: Vec<_> = engine.tables().clusters.all().iter().filter_map(|s| s.get()).collect();
    clusters.sort_by(|a, b| a.config().name.cmp(&b.config().name));
    clusters
}

pub(super) fn text(engine: &Engine) -> String {
    let mut out = String::new();
    for cluster in serving(engine) {
        let name = &cluster.config().name;
        if let Some(outlier) = cluster.outlier() {
            for (origin, label) in [(Origin::External, ""), (Origin::Local, "local_origin_")] {
                let (average, threshold) = outlier.compared(origin);
                let _ = writeln!(out, "{name}::outlier::{label}success_rate_average::{average}");
                let _ = writeln!(out, "{name}::outlier::{label}success_rate_ejection_threshold::{threshold}");
            }
        }
        for (priority, label) in [(RoutingPriority::Default, "default"), (RoutingPriority::High, "high")] {
            let limits = cluster.limits(priority);
            for (limit, resource) in [
                (&limits.connections, "connections"),
                (&limits.pending, "pending_requests"),
                (&limits.requests, "requests"),
                (&limits.retries, "retries"),
            ] {
                let _ = writeln!(out, "{name}::{label}_priority::max_{resource}::{}", limit.max());
            }
        }
        for host in cluster.hosts().hosts() {
            let at = format!("{name}::{}", host.address());
            let totals = host.totals();
            for (key, value) in [
                ("cx_active", u64::from(totals.cx_active)),
                ("cx_connect_fail", totals.cx_connect_fail),
                ("cx_total", totals.cx_total),
                ("rq_active", u64::from(totals.rq_active)),
                ("rq_error", totals.rq_error),
                ("rq_success", totals.rq_success),
                ("rq_timeout", totals.rq_timeout),
                ("rq_total", totals.rq_total),
            ] {
                let _ = writeln!(out, "{at}::{key}::{value}");
            }
            let facts = host.facts();
            let _ = writeln!(out, "{at}::hostname::{}", host.hostname());
            let _ = writeln!(out, "{at}::health_flags::{}", host.health_text());
            let _ = writeln!(out, "{at}::weight::{}", host.weight());
            let _ = writeln!(out, "{at}::region::{}", facts.locality.region);
            let _ = writeln!(out, "{at}::zone::{}", facts.locality.zone);
            let _ = writeln!(out, "{at}::sub_zone::{}", facts.locality.sub_zone);
            let _ = writeln!(out, "{at}::priority::{}", host.priority());
            let _ = writeln!(out, "{at}::success_rate::{}", host.success_rate(Origin::External));
            let _ = writeln!(out, "{at}::local_origin_success_rate::{}", host.success_rate(Origin::Local));
            if let Some(circuit) = cluster.circuit(host) {
                let _ = writeln!(out, "{at}::circuit_breaker_status::{circuit}");
            }
        }
    }
    out
}

pub(super) fn json(engine: &Engine) -> Value {
    let statuses: Vec<_> = serving(engine)
        .iter()
        .map(|cluster| {
            let hosts: Vec<_> = cluster
                .hosts()
                .hosts()
                .map(|host| {
                    let totals = host.totals();
                    let counter = |name: &str, value: u64| json!({"name": name, "value": value.to_string()});
                    let health = match host.health() {
                        Health::Healthy => "HEALTHY",
                        Health::Degraded => "DEGRADED",
                        Health::Unhealthy => "UNHEALTHY",
                    };
                    json!({
                        "address": {"socket_address": {
                            "address": host.address().ip().map(|a| a.ip().to_string()),
                            "port_value": host.address().ip().map(|a| a.port()),
                        }},
                        "stats": [
                            counter("cx_connect_fail", totals.cx_connect_fail),
                            counter("cx_total", totals.cx_total),
                            counter("rq_error", totals.rq_error),
                            counter("rq_success", totals.rq_success),
                            counter("rq_timeout", totals.rq_timeout),
                            counter("rq_total", totals.rq_total),
                            json!({"type": "GAUGE", "name": "cx_active", "value": totals.cx_active.to_string()}),
                            json!({"type": "GAUGE", "name": "rq_active", "value": totals.rq_active.to_string()}),
                        ],
                        "health_status": {
                            "eds_health_status": health,
                            "failed_outlier_check": host.has_flag(crate::cluster::host::HealthFlag::FailedOutlier),
                        },
                        "weight": host.weight(),
                        "priority": host.priority(),
                        "hostname": host.hostname().to_string(),
                    })
                })
                .collect();
            json!({"name": cluster.config().name.to_string(), "host_statuses": hosts})
        })
        .collect();
    json!({"cluster_statuses": statuses})
}
