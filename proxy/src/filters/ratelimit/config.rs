//! `envoy.extensions.filters.http.ratelimit.v3` to a [`GlobalRateLimit`].

use http::StatusCode;
use xds_protos::envoy::extensions::common::ratelimit::v3::VhRateLimitsOptions;
use xds_protos::envoy::extensions::filters::http::ratelimit::v3 as proto;
use xds_protos::envoy::r#type::v3::HttpStatus;

use super::service::Service;
use super::{EXHAUSTED, GlobalRateLimit, OfRoute, Stats, details};
use crate::route::config::{header_ops, own_rate_limits, runtime_chance};
use crate::route::matching::Chance;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError};

type Errors = Vec<ConfigError>;

impl GlobalRateLimit {
    /// Compiles the filter of a connection manager; `name` is what it is called there.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &proto::RateLimit, name: &str, context: &CompileContext) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let service = Service::compile(config.rate_limit_service.as_ref(), config.timeout.as_ref(), context);
        let service = collect(service, "", &mut errors);
        let mut chance = |value: &Option<_>, path: &str| {
            value.as_ref().and_then(|f| runtime_chance(f).map_err(|e| errors.push(e.at(path))).ok())
        };
        let enabled = chance(&config.filter_enabled, "filter_enabled");
        let enforced = chance(&config.filter_enforced, "filter_enforced");
        let deny = chance(&config.failure_mode_deny_percent, "failure_mode_deny_percent");
        let response_headers = header_ops(&config.response_headers_to_add, &[], "response", &mut errors);
        let own = collect(own_rate_limits(&config.rate_limits), "", &mut errors);
        let only = match config.request_type.as_str() {
            "" | "both" => None,
            "internal" => Some(true),
            "external" => Some(false),
            _ => {
                errors.push(ConfigError::new("request_type", "is internal, external or both"));
                None
            }
        };
        if config.domain.is_empty() {
            errors.push(ConfigError::missing("domain"));
        }
        let (Some(service), true) = (service, errors.is_empty()) else { return Err(errors) };
        let always = if config.failure_mode_deny { Chance::ALWAYS } else { Chance::NEVER };
        let dot = if config.stat_prefix.is_empty() || config.stat_prefix.ends_with('.') { "" } else { "." };
        Ok(Self {
            service,
            domain: config.domain.as_str().into(),
            stage: config.stage,
            only,
            own: own.unwrap_or_default(),
            enabled,
            enforced,
            deny: deny.unwrap_or(always),
            status: error_status(config.rate_limited_status.as_ref(), StatusCode::TOO_MANY_REQUESTS),
            status_on_error: error_status(config.status_on_error.as_ref(), StatusCode::INTERNAL_SERVER_ERROR),
            grpc_status: config.rate_limited_as_resource_exhausted.then_some(EXHAUSTED),
            tell_client: config.enable_x_ratelimit_headers()
                == proto::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03,
            mark: !config.disable_x_envoy_ratelimited_header,
            retry_after: config.enable_retry_after_header,
            response_headers,
            service_cluster: context.node.cluster.as_str().into(),
            limited: details("request_rate_limited", name),
            stats: Stats {
                prefix: format!("ratelimit.{}{dot}", config.stat_prefix),
                by_cluster: Default::default(),
            },
        })
    }
}

/// A status; Envoy as well puts its default in the place of what is no error.
fn error_status(given: Option<&HttpStatus>, default: StatusCode) -> StatusCode {
    let code = given.and_then(|s| u16::try_from(s.code).ok()).filter(|code| *code >= 400);
    code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(default)
}

impl OfRoute {
    /// Compiles `RateLimitPerRoute`.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(config: &proto::RateLimitPerRoute) -> Result<Self, Errors> {
        use proto::rate_limit_per_route::VhRateLimitsOptions as Vh;
        Ok(Self {
            virtual_host: match config.vh_rate_limits() {
                Vh::Override => VhRateLimitsOptions::Override,
                Vh::Include => VhRateLimitsOptions::Include,
                Vh::Ignore => VhRateLimitsOptions::Ignore,
            },
            limits: own_rate_limits(&config.rate_limits)?,
            domain: (!config.domain.is_empty()).then(|| config.domain.as_str().into()),
        })
    }
}
