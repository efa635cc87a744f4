//! The router filter's settings (`envoy.extensions.filters.http.router.v3.Router`).

use xds_protos::envoy::extensions::filters::http::router::v3 as proto;

use crate::state::ConfigError;

/// Compiled settings.
#[derive(Clone, Debug, Default)]
pub struct RouterConfig {
    /// Add none of Envoy's `x-envoy-` fields.
    pub suppress_envoy_headers: bool,
    /// Use the timeout that an Envoy before us announced.
    pub respect_expected_timeout: bool,
    /// Each try has a span of its own.
    pub start_child_span: bool,
}

impl RouterConfig {
    /// Compiles the settings.
    ///
    /// # Errors
    /// Everything that is not honoured.
    pub fn compile(config: &proto::Router) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        for (there, path, what) in [
            (!config.upstream_log.is_empty(), "upstream_log", "logging per try"),
            (!config.strict_check_headers.is_empty(), "strict_check_headers", "strict checking of headers"),
            (!config.upstream_http_filters.is_empty(), "upstream_http_filters", "filters per try"),
        ] {
            if there {
                errors.push(ConfigError::unsupported(path, what));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            suppress_envoy_headers: config.suppress_envoy_headers,
            respect_expected_timeout: config.respect_expected_rq_timeout,
            start_child_span: config.start_child_span,
        })
    }
}
