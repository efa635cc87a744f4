//! Numbers of the process as a whole, under Envoy's names: what readiness probes and dashboards of a mesh ask every proxy for.

use xds_protos::ResourceType;

use super::AdminState;
use super::snapshot::{Sample, Value};

/// Reads them now; `others` are all other samples.
pub(super) fn samples(state: &AdminState, others: &[Sample]) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut with = |prefix: &str, name: &'static str, labels: Vec<(&'static str, String)>, value| {
        samples.push(Sample { prefix: prefix.into(), name: name.into(), labels: labels.into(), value });
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    with("", "istio_build", vec![("component", "proxy".to_owned()), ("tag", version)], Value::Gauge(1));
    if let Some(renewal) = &state.renewal {
        // The secret's other numbers are where secrets are.
        let failures = Value::Counter(renewal.borrow().failures);
        with("", "certificate_rotation_failures", vec![("secret", "default".to_owned())], failures);
        let automatic = Value::Gauge(i64::from(!renewal.borrow().by_hand));
        with("", "certificate_rotation_automatic", vec![("secret", "default".to_owned())], automatic);
    }
    let events = weft_events::numbers();
    for (name, counts) in
        [("weft_events_total", &events.told), ("weft_events_suppressed_total", &events.suppressed)]
    {
        for (kind, count) in counts.iter().filter(|(_, count)| *count > 0) {
            with("", name, vec![("event", kind.name().to_owned())], Value::Counter(*count));
        }
    }
    with("", "weft_events_dropped_total", Vec::new(), Value::Counter(events.dropped));
    let mut put = |prefix: &str, name: &'static str, value| with(prefix, name, Vec::new(), value);
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
    put("server", "version", gauge(number(env!("CARGO_PKG_VERSION"))));
    let connections = others
        .iter()
        .filter(|s| s.prefix.starts_with("listener.") && s.name == "downstream_cx_active")
        .map(|s| if let Value::Gauge(n) = s.value { n } else { 0 });
    put("server", "total_connections", Value::Gauge(connections.sum()));
    for (name, line) in [("memory_physical_size", "VmRSS:"), ("memory_heap_size", "VmData:")] {
        if let Some(bytes) = super::pages::memory_of(line) {
            put("server", name, gauge(bytes));
        }
    }
    if let Some(own) = state.identity.as_ref().and_then(|i| i.borrow().clone()) {
        let left = own.validity().expires - time::OffsetDateTime::now_utc();
        put("server", "days_until_first_cert_expiring", Value::Gauge(left.whole_days().max(0)));
    }
    put("listener_manager", "workers_started", gauge(1));
    put("listener_manager", "total_listeners_active", gauge(state.engine.listeners().len() as u64));
    put("listener_manager", "total_listeners_warming", gauge(state.engine.warming().len() as u64));
    let clusters = others.iter().filter(|s| s.prefix.starts_with("cluster.") && s.name == "membership_total");
    put("cluster_manager", "active_clusters", gauge(clusters.count() as u64));
    let Some(ads) = &state.ads else { return samples };
    let connected = u64::from(ads.connected());
    put("control_plane", "connected_state", gauge(connected));
    // The cluster by which an Envoy of Istio's reaches the control plane: dashboards count proxies by it.
    if !others.iter().any(|s| &*s.prefix == "cluster.xds-grpc") {
        put("cluster.xds-grpc", "upstream_cx_active", gauge(connected));
    }
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

/// A version as a number that grows with it.
fn number(version: &str) -> u64 {
    let parts = version.split(['.', '-', '+']).take(3);
    parts.fold(0, |sum, part| sum * 1000 + part.parse::<u64>().unwrap_or(0))
}

/// With the names that a design of ours once gave them, beside Istio's own.
pub(super) fn aliases(samples: &mut Vec<Sample>) {
    let alias = |sample: &Sample| {
        let name = match &*sample.name {
            "istio_tcp_connections_opened_total" => "istio_tcp_opened_total",
            "istio_tcp_connections_closed_total" => "istio_tcp_closed_total",
            _ => return None,
        };
        Some(Sample { name: name.into(), ..sample.clone() })
    };
    let more: Vec<_> = samples.iter().filter_map(alias).collect();
    samples.extend(more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Labels;

    #[test]
    fn a_version_is_a_number_that_grows() {
        assert_eq!(number("1.2.3"), 1_002_003);
        assert!(number("0.10.0") > number("0.9.9"));
        assert_eq!(number("1.2.0-rc.1"), 1_002_000);
    }

    #[test]
    fn aliases_stand_beside_what_they_are_of() {
        let sample = |name: &'static str| Sample {
            prefix: "".into(),
            name: name.into(),
            labels: Labels::default(),
            value: Value::Counter(3),
        };
        let mut samples = vec![sample("istio_tcp_connections_closed_total"), sample("istio_requests_total")];
        aliases(&mut samples);
        let names: Vec<_> = samples.iter().map(|s| &*s.name).collect();
        assert_eq!(
            names,
            ["istio_tcp_connections_closed_total", "istio_requests_total", "istio_tcp_closed_total"]
        );
        assert_eq!(samples[2].value, Value::Counter(3));
    }
}
