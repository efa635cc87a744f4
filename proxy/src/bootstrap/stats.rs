//! What is settled about metrics when a proxy starts.

use std::time::Duration;

use clap::Args;

use crate::admin::prometheus::Tags;
use crate::telemetry::istio::BUDGET;

/// How metrics are kept and called.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// How the labels of Envoy's statistics are called: envoy (envoy_cluster_name), or istio (cluster_name, as in Istio's meshes).
    /// By default istio; envoy with -c
    #[arg(long, value_name = "WHOSE", value_enum, env = "WEFT_STAT_TAGS")]
    pub stat_tags: Option<Tags>,
    /// How many sets of labels Istio's metrics may have in this proxy; what exceeds them is counted together, as `overflow`
    #[arg(long, value_name = "N", default_value_t = BUDGET, env = "WEFT_METRIC_SERIES")]
    pub metric_series: usize,
    /// Sets of labels go under which nothing was counted for so long; 0s: they stay
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = xds_protos::duration::parse, env = "WEFT_METRIC_EXPIRY")]
    pub metric_expiry: Duration,
    /// Give istio_tcp_connections_opened_total and _closed_total as istio_tcp_opened_total and istio_tcp_closed_total as well
    #[arg(long, env = "WEFT_TCP_METRIC_ALIASES")]
    pub tcp_metric_aliases: bool,
    /// Push metrics by OTLP (gRPC) to this service of the mesh, such as otel-collector.observability.svc.cluster.local:4317. With -c
    /// the bootstrap's stats_sinks say where
    #[arg(long, value_name = "HOST:PORT", value_parser = place, env = "WEFT_OTLP_METRICS")]
    pub otlp_metrics: Option<(String, u16)>,
    /// How often
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = xds_protos::duration::parse, env = "WEFT_OTLP_METRICS_INTERVAL")]
    pub otlp_metrics_interval: Duration,
}

fn place(text: &str) -> Result<(String, u16), String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let parts = parts.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parts.ok_or_else(|| "write HOST:PORT, the host in full".to_owned())
}
