//! Retry policies.

use std::time::Duration;

use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;

use super::{duration, header_match};
use crate::route::retry::{RetryOn, RetryPolicy};
use crate::state::ConfigError;
use crate::state::error::collect;

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

impl RetryPolicy {
    /// Compiles a retry policy.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(policy: &proto::RetryPolicy) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let (on, unknown) = RetryOn::parse(&policy.retry_on);
        for token in unknown {
            errors.push(ConfigError::unsupported("retry_on", format!("the condition {token:?}")));
        }
        if policy.retry_priority.is_some() {
            errors.push(ConfigError::unsupported("retry_priority", "choosing another priority for a retry"));
        }
        if policy.rate_limited_retry_back_off.is_some() {
            errors.push(ConfigError::unsupported(
                "rate_limited_retry_back_off",
                "a pause that the upstream names",
            ));
        }
        if !policy.retry_options_predicates.is_empty() {
            errors.push(ConfigError::unsupported("retry_options_predicates", "a retry options predicate"));
        }
        let mut avoid_tried_hosts = false;
        for (index, predicate) in policy.retry_host_predicate.iter().enumerate() {
            let known = match &predicate.config_type {
                Some(ConfigType::TypedConfig(any)) => any.type_name() == PREVIOUS_HOSTS,
                None => predicate.name == "envoy.retry_host_predicates.previous_hosts",
            };
            if known {
                avoid_tried_hosts = true;
            } else {
                errors.push(ConfigError::unsupported(
                    format!("retry_host_predicate[{index}]"),
                    format!("the host predicate {:?}", predicate.name),
                ));
            }
        }
        let mut time = |value: &Option<prost_types::Duration>, path| {
            duration(value.as_ref(), path).map_err(|e| errors.push(e)).ok().flatten()
        };
        let per_try_timeout = time(&policy.per_try_timeout, "per_try_timeout").unwrap_or_default();
        let per_try_idle_timeout =
            time(&policy.per_try_idle_timeout, "per_try_idle_timeout").unwrap_or_default();
        let (mut base, mut max) = (Duration::from_millis(25), None);
        if let Some(back_off) = &policy.retry_back_off {
            match time(&back_off.base_interval, "retry_back_off.base_interval") {
                Some(interval) => base = interval.max(Duration::from_millis(1)),
                None => errors.push(ConfigError::missing("retry_back_off.base_interval")),
            }
            max = duration(back_off.max_interval.as_ref(), "retry_back_off.max_interval")
                .map_err(|e| errors.push(e))
                .ok()
                .flatten();
            if max.is_some_and(|m| m < base) {
                errors.push(ConfigError::new("retry_back_off.max_interval", "is less than base_interval"));
            }
        }
        let mut matches = |list: &[proto::HeaderMatcher], path: &str| {
            let mut compiled = Vec::with_capacity(list.len());
            for (index, header) in list.iter().enumerate() {
                compiled.extend(collect(header_match(header), format!("{path}[{index}]"), &mut errors));
            }
            compiled
        };
        let headers = matches(&policy.retriable_headers, "retriable_headers");
        let request_headers = matches(&policy.retriable_request_headers, "retriable_request_headers");
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            on,
            retries: policy.num_retries.unwrap_or(1),
            per_try_timeout,
            per_try_idle_timeout,
            base_interval: base,
            max_interval: max.unwrap_or(base * 10),
            status_codes: policy.retriable_status_codes.iter().map(|c| *c as u16).collect(),
            headers,
            request_headers,
            avoid_tried_hosts,
            host_attempts: match policy.host_selection_retry_max_attempts {
                0 => 1,
                n => u32::try_from(n).unwrap_or(1),
            },
        })
    }
}
