//! `outlier_detection`.

use xds_protos::envoy::config::cluster::v3 as pb;

use super::{duration, timeout};
use crate::cluster::outlier::OutlierConfig;
use crate::state::ConfigError;

pub(super) fn outlier(proto: &pb::OutlierDetection) -> Result<OutlierConfig, ConfigError> {
    let default = OutlierConfig::default();
    let time = |d: Option<&prost_types::Duration>, default| timeout(d, Some(default)).unwrap_or(default);
    let base_ejection = time(proto.base_ejection_time.as_ref(), default.base_ejection);
    let max_ejection = time(proto.max_ejection_time.as_ref(), default.max_ejection.max(base_ejection));
    if max_ejection < base_ejection {
        return Err(ConfigError::new("max_ejection_time", "must not be less than base_ejection_time"));
    }
    let or = |value: Option<u32>, default: u32| value.unwrap_or(default);
    let [five, gateway, local] = default.consecutive;
    let enforcing = [
        proto.enforcing_consecutive_5xx,
        proto.enforcing_consecutive_gateway_failure,
        proto.enforcing_consecutive_local_origin_failure,
        proto.enforcing_success_rate,
        proto.enforcing_local_origin_success_rate,
        proto.enforcing_failure_percentage,
        proto.enforcing_failure_percentage_local_origin,
    ];
    Ok(OutlierConfig {
        consecutive: [
            or(proto.consecutive_5xx, five),
            or(proto.consecutive_gateway_failure, gateway),
            or(proto.consecutive_local_origin_failure, local),
        ],
        enforcing: std::array::from_fn(|kind| or(enforcing[kind], default.enforcing[kind])),
        split: proto.split_external_local_origin_errors,
        interval: time(proto.interval.as_ref(), default.interval),
        base_ejection,
        max_ejection,
        max_jitter: duration(proto.max_ejection_time_jitter.as_ref(), "max_ejection_time_jitter")?
            .unwrap_or_default(),
        max_percent: or(proto.max_ejection_percent, default.max_percent),
        always_one: proto.always_eject_one_host.unwrap_or(default.always_one),
        health_check_ends: proto
            .successful_active_health_check_uneject_host
            .unwrap_or(default.health_check_ends),
        success_rate_hosts: or(proto.success_rate_minimum_hosts, default.success_rate_hosts),
        success_rate_requests: or(proto.success_rate_request_volume, default.success_rate_requests),
        success_rate_factor: or(proto.success_rate_stdev_factor, default.success_rate_factor),
        failure_threshold: or(proto.failure_percentage_threshold, default.failure_threshold),
        failure_hosts: or(proto.failure_percentage_minimum_hosts, default.failure_hosts),
        failure_requests: or(proto.failure_percentage_request_volume, default.failure_requests),
    })
}
