//! What the metrics port says: istiod's names, with buckets that its dashboards know, and what the process and the mesh are when
//! they are asked for.

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Pages;
use crate::queue::Revision;
use crate::serve::proxies::Proxy;

/// Of times that Istio says nothing else of.
const TIMES: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Of what proxies wait for.
const WAITS: [f64; 8] = [0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Of what is made and sent.
const STEPS: [f64; 8] = [0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Of bytes.
const SIZES: [f64; 6] = [1.0, 10_000.0, 1_000_000.0, 4_000_000.0, 10_000_000.0, 40_000_000.0];

/// Takes the process's numbers from here on.
///
/// # Errors
/// Buckets that are none.
pub fn record() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new().set_buckets(&TIMES)?;
    for (name, buckets) in [
        ("pilot_proxy_convergence_time", &WAITS[..]),
        ("pilot_proxy_queue_time", &WAITS),
        ("pilot_xds_push_time", &STEPS),
        ("pilot_xds_send_time", &STEPS),
        ("pilot_debounce_time", &STEPS),
        ("pilot_xds_config_size_bytes", &SIZES),
    ] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    // Another has been there before where a test runs several control planes in its process.
    let _ = metrics::set_global_recorder(recorder);
    begin();
    Ok(handle)
}

/// What has not happened yet counts nothing; were it not there, an alert would not see the first time.
fn begin() {
    for name in [
        "citadel_server_authentication_failure_count",
        "citadel_server_csr_count",
        "citadel_server_csr_parsing_err_count",
        "citadel_server_csr_rate_limited_count",
        "citadel_server_csr_sign_err_count",
        "citadel_server_success_cert_issuance_count",
        "endpoint_no_pod",
        "pilot_jwks_resolver_network_fetch_fail_total",
        "pilot_jwks_resolver_network_fetch_success_total",
        "pilot_sds_certificate_errors_total",
        "pilot_total_xds_internal_errors",
        "pilot_xds_auth_failures",
        "pilot_xds_stream_refusals",
        "sidecar_injection_failure_total",
        "sidecar_injection_requests_total",
        "sidecar_injection_skip_total",
        "sidecar_injection_success_total",
    ] {
        metrics::counter!(name).increment(0);
    }
    for kind in ["cds", "eds", "lds", "rds", "sds"] {
        metrics::counter!("pilot_xds_pushes", "type" => kind).increment(0);
        metrics::counter!("pilot_total_xds_rejects", "type" => kind).increment(0);
        metrics::counter!("pilot_xds_expired_nonce", "type" => kind).increment(0);
    }
    for kind in ["config", "eds", "svc", "svcdelete"] {
        metrics::counter!("pilot_inbound_updates", "type" => kind).increment(0);
    }
    for why in ["config", "endpoint", "proxy", "secret"] {
        metrics::counter!("pilot_push_triggers", "type" => why).increment(0);
    }
}

impl Pages {
    /// What is looked at when the numbers are asked for.
    pub(super) fn gauges(&self) {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        let snapshot = self.snapshots.borrow().clone();
        let world = &snapshot.world;
        let gauge = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
        gauge("pilot_services", world.services().len() as f64);
        gauge("pilot_virt_services", world.virtual_services().len() as f64);
        let empty = world.services().iter().filter(|service| service.endpoints.is_empty()).count();
        gauge("pilot_eds_no_instances", empty as f64);
        gauge("weft_config_refused", f64::from(u8::from(snapshot.refused)));
        gauge("weft_config_generation", snapshot.generation as f64);
        metrics::gauge!("pilot_info", "version" => VERSION).set(1.0);
        metrics::gauge!("istio_build", "component" => "pilot", "tag" => VERSION).set(1.0);
        gauge("istiod_uptime_seconds", self.began.elapsed().as_secs_f64());
        self.conflicts(world);
        let latest = self.queue.clone().latest();
        let (mut refusing, mut behind) = (0, 0);
        self.proxies.each(|proxy| {
            refusing += u32::from(proxy.types.iter().any(|kind| kind.refused.is_some()));
            behind += u32::from(is_behind(proxy, &latest));
        });
        gauge("weft_proxies_refusing", f64::from(refusing));
        gauge("weft_proxies_behind", f64::from(behind));
        let events = weft_events::numbers();
        for (kind, count) in events.told.into_iter().filter(|(_, count)| *count > 0) {
            metrics::counter!("weft_events_total", "event" => kind.name()).absolute(count);
        }
        for (kind, count) in events.suppressed.into_iter().filter(|(_, count)| *count > 0) {
            metrics::counter!("weft_events_suppressed_total", "event" => kind.name()).absolute(count);
        }
        metrics::counter!("weft_events_dropped_total").absolute(events.dropped);
        let memo = self.cache.memo();
        metrics::counter!("xds_cache_reads", "type" => "hit").absolute(memo.found());
        metrics::counter!("xds_cache_reads", "type" => "miss").absolute(memo.made());
        gauge("xds_cache_size", memo.len() as f64);
        process();
    }
}

/// How long a proxy may take for a state before it counts as behind.
const SOON: Duration = Duration::from_secs(10);

fn is_behind(proxy: &Proxy, latest: &Revision) -> bool {
    let current = proxy.revision >= latest.number && proxy.types.iter().all(|kind| kind.synced);
    !current && Instant::now().saturating_duration_since(latest.read) > SOON
}

/// The process, by the names that Prometheus' clients give these numbers.
fn process() {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let stat = read("stat");
    // The command's name stands in brackets, and may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    let (ticks, page) = (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
    // Counted from the third, which is the first behind the brackets.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
    let gauge = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
    gauge("process_cpu_seconds_total", (field(14) + field(15)) / ticks);
    gauge("process_threads", field(20));
    gauge("process_virtual_memory_bytes", field(23));
    gauge("process_resident_memory_bytes", field(24) * page);
    let booted = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    if let Some(booted) = booted {
        gauge("process_start_time_seconds", booted + field(22) / ticks);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        gauge("process_open_fds", open.count() as f64);
    }
}
