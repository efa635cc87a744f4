//! Retry policies.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use prost_types::value::Kind;
use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::config::route::v3::retry_policy::{
    ResetHeaderFormat, retry_host_predicate, retry_priority,
};
use xds_protos::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use xds_protos::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::{duration, header_match};
use crate::cluster::balance::Omit;
use crate::cluster::endpoint::Metadata;
use crate::route::retry::{ResetHeader, RetryOn, RetryPolicy};
use crate::state::ConfigError;
use crate::state::error::collect;

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const OMIT_CANARY: &str = "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate";

/// What host predicates ask for.
#[derive(Default)]
struct Predicates {
    tried: bool,
    omit: Omit,
}

impl Predicates {
    fn add(&mut self, predicate: &proto::retry_policy::RetryHostPredicate) -> Result<(), ConfigError> {
        let unknown = || ConfigError::unsupported("", format!("the host predicate {:?}", predicate.name));
        match &predicate.config_type {
            None if predicate.name == "envoy.retry_host_predicates.previous_hosts" => self.tried = true,
            None if predicate.name == "envoy.retry_host_predicates.omit_canary_hosts" => {
                self.omit.canary = true;
            }
            None => return Err(unknown()),
            Some(retry_host_predicate::ConfigType::TypedConfig(any)) => match any.type_name() {
                PREVIOUS_HOSTS => self.tried = true,
                OMIT_CANARY => self.omit.canary = true,
                _ if any.is::<OmitHostMetadataConfig>() => {
                    let config: OmitHostMetadataConfig =
                        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
                    let metadata = config.metadata_match.unwrap_or_default();
                    let labels = metadata.filter_metadata.into_iter().find(|(name, _)| name == "envoy.lb");
                    self.omit
                        .labels
                        .push(labels.map(|(_, l)| l.fields.into_iter().collect()).unwrap_or_default());
                }
                _ => return Err(unknown()),
            },
        }
        Ok(())
    }
}

/// How often priorities that were tried are left out.
fn priority_update(priority: &proto::retry_policy::RetryPriority) -> Result<u32, ConfigError> {
    let Some(retry_priority::ConfigType::TypedConfig(any)) = &priority.config_type else {
        return Err(ConfigError::missing("typed_config"));
    };
    if !any.is::<PreviousPrioritiesConfig>() {
        return Err(ConfigError::unsupported("typed_config", format!("the type {}", any.type_name())));
    }
    let config: PreviousPrioritiesConfig =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    match u32::try_from(config.update_frequency) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(ConfigError::new("typed_config.update_frequency", "must be greater than zero")),
    }
}

fn reset_headers(
    list: &[proto::retry_policy::ResetHeader],
    errors: &mut Vec<ConfigError>,
) -> Vec<ResetHeader> {
    let compiled = list.iter().enumerate().filter_map(|(index, header)| {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        if name.is_err() {
            let path = format!("rate_limited_retry_back_off.reset_headers[{index}].name");
            errors.push(ConfigError::new(path, format!("{:?} is not a header name", header.name)));
        }
        Some(ResetHeader { name: name.ok()?, timestamp: header.format() == ResetHeaderFormat::UnixTimestamp })
    });
    compiled.collect()
}

/// `metadata.filter_metadata["weft.dev"].careful_retries`, which only a control plane of ours sets.
pub(super) fn careful(metadata: Option<&Metadata>) -> Result<bool, ConfigError> {
    match metadata.and_then(|m| m.namespace("weft.dev")?.fields.get("careful_retries")?.kind.as_ref()) {
        None => Ok(false),
        Some(Kind::BoolValue(careful)) => Ok(*careful),
        Some(_) => Err(ConfigError::new(
            "metadata.filter_metadata[weft.dev].careful_retries",
            "must be true or false",
        )),
    }
}

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
        let priority_update = policy
            .retry_priority
            .as_ref()
            .and_then(|p| collect(priority_update(p).map_err(Vec::from), "retry_priority", &mut errors));
        if !policy.retry_options_predicates.is_empty() {
            errors.push(ConfigError::unsupported("retry_options_predicates", "a retry options predicate"));
        }
        let mut predicates = Predicates::default();
        for (index, predicate) in policy.retry_host_predicate.iter().enumerate() {
            let added = predicates.add(predicate).map_err(Vec::from);
            collect(added, format!("retry_host_predicate[{index}]"), &mut errors);
        }
        let limited = policy.rate_limited_retry_back_off.as_ref();
        let reset_headers = limited.map(|l| reset_headers(&l.reset_headers, &mut errors)).unwrap_or_default();
        let mut time = |value: &Option<prost_types::Duration>, path| {
            duration(value.as_ref(), path).map_err(|e| errors.push(e)).ok().flatten()
        };
        let per_try_timeout = time(&policy.per_try_timeout, "per_try_timeout").unwrap_or_default();
        let per_try_idle_timeout =
            time(&policy.per_try_idle_timeout, "per_try_idle_timeout").unwrap_or_default();
        let reset_max =
            time(&limited.and_then(|l| l.max_interval), "rate_limited_retry_back_off.max_interval")
                .unwrap_or(Duration::from_secs(300));
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
            careful: false,
            retries: policy.num_retries.unwrap_or(1),
            per_try_timeout,
            per_try_idle_timeout,
            base_interval: base,
            max_interval: max.unwrap_or(base * 10),
            status_codes: policy.retriable_status_codes.iter().map(|c| *c as u16).collect(),
            headers,
            request_headers,
            avoid_tried_hosts: predicates.tried,
            omit: predicates.omit.is_some().then(|| Arc::new(predicates.omit)),
            priority_update,
            reset_headers,
            reset_max,
            host_attempts: match policy.host_selection_retry_max_attempts {
                0 => 1,
                n => u32::try_from(n).unwrap_or(1),
            },
        })
    }
}
