//! Numbers of the process as a whole, under Envoy's names: what readiness probes and dashboards of a mesh ask every proxy for.

use xds_protos::ResourceType;

use super::AdminState;
use super::snapshot::{Sample, Value};

/// Reads them now.
pub(super) fn samples(state: &AdminState) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut put = |prefix: &str, name: &'static str, value| {
        samples.push(Sample { prefix: prefix.to_owned(), name: name.into(), labels: Vec::new(), value });
    };
    let gauge = |n: u64| Value::Gauge(i64::try_from(n).unwrap_or(i64::MAX));
    let unready = state.unready();
    // Envoy's numbers of the states.
    let server_state = match unready {
        None | Some("FAILED") => 0,
        Some("DRAINING") => 1,
        Some(_) => 2,
    };
    put("server", "state", gauge(server_state));
    put("server", "live", gauge(u64::from(unready.is_none())));
    put("server", "uptime", gauge(state.started.elapsed().as_secs()));
    put("server", "concurrency", gauge(state.concurrency as u64));
    if let Some(own) = state.identity.as_ref().and_then(|i| i.borrow().clone()) {
        let left = own.validity().expires - time::OffsetDateTime::now_utc();
        put("server", "days_until_first_cert_expiring", Value::Gauge(left.whole_days().max(0)));
    }
    put("listener_manager", "workers_started", gauge(1));
    put("listener_manager", "total_listeners_active", gauge(state.engine.listeners().len() as u64));
    let Some(ads) = &state.ads else { return samples };
    put("control_plane", "connected_state", gauge(u64::from(ads.connected())));
    for (prefix, kind) in
        [("cluster_manager.cds", ResourceType::Cluster), ("listener_manager.lds", ResourceType::Listener)]
    {
        let stats = ads.of(kind);
        put(prefix, "update_attempt", Value::Counter(stats.attempt()));
        put(prefix, "update_success", Value::Counter(stats.success()));
        put(prefix, "update_rejected", Value::Counter(stats.rejected()));
        put(prefix, "update_time", gauge(stats.updated_at_ms()));
    }
    samples
}
