//! Asking a rate limit service (`envoy.service.ratelimit.v3.RateLimitService`), and what its answer says to the client.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use xds_protos::envoy::extensions::common::ratelimit::v3 as common;
use xds_protos::envoy::service::ratelimit::v3 as rls;
use xds_protos::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use xds_protos::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use xds_protos::prost_types;

use super::super::question::Question;
use crate::codec::Headers;
use crate::io::ConnectionInfo;
use crate::route::config::duration;
use crate::route::rate_limit::Descriptor;
use crate::router::Flow;
use crate::router::grpc::{GrpcService, only_v3};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};

/// The most that a client is told it may do.
pub const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
/// What is left of it.
pub const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
/// Seconds until there is more.
pub const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);

/// The service.
#[derive(Debug)]
pub struct Service(GrpcService);

impl Service {
    /// Compiles `rate_limit_service` and `timeout`.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(
        config: Option<&RateLimitServiceConfig>,
        timeout: Option<&prost_types::Duration>,
        context: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        let config = config.ok_or_else(|| ConfigError::missing("rate_limit_service"))?;
        let mut errors = Vec::new();
        only_v3(config.transport_api_version, &mut errors);
        let service = match &config.grpc_service {
            None => Err(ConfigError::missing("grpc_service").into()),
            Some(service) => GrpcService::compile(service, TIMEOUT, context).map_err(at("grpc_service")),
        };
        let service = collect(service, "", &mut errors);
        let mut errors: Vec<_> = errors.into_iter().map(|e| e.at("rate_limit_service")).collect();
        let timeout = duration(timeout, "timeout").map_err(|e| errors.push(e)).ok().flatten();
        match service {
            // The filter's timeout counts, not the one that a gRPC service may name.
            Some(service) if errors.is_empty() => {
                Ok(Self(GrpcService { timeout: timeout.unwrap_or(TIMEOUT), ..service }))
            }
            _ => Err(errors),
        }
    }

    /// Asks; none if there is no answer.
    pub async fn ask(
        &self,
        request: &rls::RateLimitRequest,
        connection: &Arc<ConnectionInfo>,
    ) -> Option<rls::RateLimitResponse> {
        self.0.ask(METHOD, request, connection).await.ok()
    }

    /// Asks about a request, with a span below the request's where it has one; none if there is no answer.
    pub async fn ask_of(
        &self,
        request: &rls::RateLimitRequest,
        connection: &Arc<ConnectionInfo>,
        flow: &Flow,
    ) -> Option<rls::RateLimitResponse> {
        let Some(question) = Question::begin(flow) else { return self.ask(request, connection).await };
        let tell = |headers: &mut Headers| question.tell(headers);
        let answer = self.0.ask_with(METHOD, request, connection, tell).await;
        question.of_grpc(METHOD, self.0.cluster.name(), &answer, |answer| {
            ("ratelimit_status", if is_over(answer) { "over_limit" } else { "ok" })
        });
        answer.ok()
    }
}

/// The question about these descriptors.
pub fn request(domain: &str, descriptors: &[Descriptor]) -> rls::RateLimitRequest {
    let descriptors = descriptors.iter().map(|d| common::RateLimitDescriptor {
        entries: d.entries.iter().map(|(key, value)| entry(key, value)).collect(),
        limit: d.limit.map(|quota| common::rate_limit_descriptor::RateLimitOverride {
            requests_per_unit: quota.requests,
            unit: quota.unit,
        }),
        hits_addend: d.hits,
        ..common::RateLimitDescriptor::default()
    });
    rls::RateLimitRequest { domain: domain.to_owned(), descriptors: descriptors.collect(), hits_addend: 0 }
}

fn entry(key: &str, value: &str) -> common::rate_limit_descriptor::Entry {
    common::rate_limit_descriptor::Entry { key: key.to_owned(), value: value.to_owned() }
}

/// Whether the service says that a limit is reached.
pub fn is_over(response: &rls::RateLimitResponse) -> bool {
    response.overall_code() == Code::OverLimit
}

/// What a service wants in the fields of a message.
pub fn fields(wanted: Vec<core::HeaderValue>) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    wanted.into_iter().filter_map(|field| {
        let name = HeaderName::from_bytes(field.key.as_bytes()).ok()?;
        Some((name, HeaderValue::try_from(field.value).ok()?))
    })
}

/// Adds the fields of draft-polli-ratelimit-headers-03: the descriptor of which the least is left, and all quotas. `told` says
/// which descriptors are spoken of, by their number.
pub fn tell(statuses: &[DescriptorStatus], told: impl Fn(usize) -> bool, headers: &mut Headers) {
    let limits = statuses.iter().enumerate().filter_map(|(i, s)| Some((i, s, s.current_limit.as_ref()?)));
    let Some((index, status, limit)) = limits.clone().min_by_key(|(_, s, _)| s.limit_remaining) else {
        return;
    };
    if !told(index) {
        return;
    }
    let mut all = limit.requests_per_unit.to_string();
    for (_, _, limit) in limits.filter(|(index, _, _)| told(*index)) {
        let window = seconds(limit.unit());
        if window == 0 {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = write!(all, ", {};w={window}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(all, ";name=\"{}\"", limit.name);
        }
    }
    if let Ok(all) = HeaderValue::try_from(all) {
        headers.append(LIMIT, all);
    }
    headers.append(REMAINING, HeaderValue::from(status.limit_remaining));
    let reset = status.duration_until_reset.as_ref().map_or(0, |d| d.seconds);
    headers.append(RESET, HeaderValue::from(reset));
}

/// Seconds until the last of the limits that are reached is no more; one at least.
pub fn retry_after(statuses: &[DescriptorStatus]) -> i64 {
    let over = statuses.iter().filter(|s| s.code() == Code::OverLimit);
    let resets = over.filter_map(|s| s.duration_until_reset.as_ref());
    resets.map(|d| d.seconds + i64::from(d.nanos > 0)).max().unwrap_or(1).max(1)
}

fn seconds(unit: Unit) -> u32 {
    const DAY: u32 = 24 * 60 * 60;
    match unit {
        Unit::Unknown => 0,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 60 * 60,
        Unit::Day => DAY,
        Unit::Week => 7 * DAY,
        Unit::Month => 30 * DAY,
        Unit::Year => 365 * DAY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rls::rate_limit_response::RateLimit;

    #[test]
    fn a_client_is_told_of_the_limit_of_which_the_least_is_left_and_of_all_quotas() {
        let status = |remaining, requests_per_unit, unit: Unit, name: &str| DescriptorStatus {
            limit_remaining: remaining,
            current_limit: Some(RateLimit { requests_per_unit, unit: unit.into(), name: name.to_owned() }),
            duration_until_reset: Some(prost_types::Duration { seconds: 7, nanos: 1 }),
            ..DescriptorStatus::default()
        };
        let statuses = [
            DescriptorStatus::default(),
            status(5, 100, Unit::Hour, ""),
            status(2, 10, Unit::Minute, "per-ip"),
            status(9, 9, Unit::Unknown, "none"),
        ];
        let mut headers = Headers::new();
        tell(&statuses, |_| true, &mut headers);
        assert_eq!(headers.get_str(&LIMIT), Some("10, 100;w=3600, 10;w=60;name=\"per-ip\""));
        assert_eq!((headers.get_str(&REMAINING), headers.get_str(&RESET)), (Some("2"), Some("7")));
        let mut headers = Headers::new();
        tell(&statuses, |index| index != 2, &mut headers);
        assert!(headers.get_str(&LIMIT).is_none(), "of the one that counts nothing may be said");
        assert_eq!(retry_after(&statuses), 1, "none is reached");
        let over = DescriptorStatus { code: Code::OverLimit.into(), ..status(0, 1, Unit::Day, "") };
        assert_eq!(retry_after(&[over]), 8);
    }
}
