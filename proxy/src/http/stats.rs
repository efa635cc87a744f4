//! The connection manager's numbers, under Envoy's names (`http.<stat_prefix>.`).

use std::sync::Arc;

use http::StatusCode;

use crate::telemetry::registry::{Counter, Gauge, Group, Histogram};

macro_rules! stats {
    ($($kind:ident $make:ident { $($name:ident),* $(,)? })*) => {
        /// Handles; the group lives as long as they do. The fields are named as in Envoy.
        #[allow(missing_docs, reason = "the names are Envoy's")]
        pub struct HttpStats {
            _group: Arc<Group>,
            $($(pub $name: $kind,)*)*
        }

        impl HttpStats {
            /// The numbers of one connection manager.
            pub fn new(stat_prefix: &str) -> Self {
                let group = Group::new(format!("http.{stat_prefix}"), Vec::new());
                Self { $($($name: group.$make(stringify!($name)),)*)* _group: group }
            }
        }
    };
}

stats! {
    Counter counter {
        downstream_cx_total, downstream_cx_ssl_total, downstream_cx_http1_total, downstream_cx_http2_total,
        downstream_rq_total, downstream_rq_http1_total, downstream_rq_http2_total, downstream_rq_completed,
        downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx, downstream_rq_5xx,
        downstream_rq_timeout, downstream_rq_idle_timeout, downstream_rq_max_duration_reached,
        downstream_rq_non_relative_path, downstream_rq_rx_reset, downstream_rq_tx_reset,
        downstream_rq_response_before_rq_complete, downstream_rq_failed_path_normalization,
        downstream_rq_redirected_with_normalized_path, downstream_rq_ws_on_non_ws_route,
        downstream_rq_too_large, downstream_rq_overload_close,
        downstream_cx_protocol_error, downstream_cx_idle_timeout, downstream_cx_max_duration_reached, downstream_rq_too_many_premature_resets, no_route, no_cluster, rq_total, rq_redirect, rq_direct_response,
        rq_reset_after_downstream_response_started,
    }
    Gauge gauge {
        downstream_cx_active, downstream_cx_ssl_active, downstream_cx_http1_active, downstream_cx_http2_active,
        downstream_rq_active, downstream_cx_upgrades_active,
    }
    Histogram histogram { downstream_rq_time, downstream_cx_length_ms }
}

impl HttpStats {
    /// Counts a status in its class.
    pub fn status(&self, status: StatusCode) {
        match status.as_u16() / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            _ => self.downstream_rq_5xx.inc(),
        }
    }
}
