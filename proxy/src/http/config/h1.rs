//! `envoy.config.core.v3.Http1ProtocolOptions` to the codec's options, for both sides of the proxy.

use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::http::header_formatters::preserve_case::v3::{
    PreserveCaseFormatterConfig, preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders,
};

use crate::codec::KeyFormat;
use crate::codec::h1::H1Options;
use crate::state::ConfigError;

/// `base` as the message changes it; limits, which stand elsewhere, stay.
///
/// # Errors
/// What is not honoured.
pub fn h1(base: H1Options, options: Option<&core::Http1ProtocolOptions>) -> Result<H1Options, ConfigError> {
    let Some(options) = options else { return Ok(base) };
    Ok(H1Options {
        accept_http_10: options.accept_http_10,
        enable_trailers: options.enable_trailers,
        any_method: options.allow_custom_methods,
        allow_chunked_length: options.allow_chunked_length,
        absolute_targets: options.allow_absolute_url.unwrap_or(true),
        full_url: options.send_fully_qualified_url,
        keys: match &options.header_key_format {
            Some(format) => key_format(format).map_err(|e| e.at("header_key_format"))?,
            None => KeyFormat::Lower,
        },
        ..base
    })
}

fn key_format(format: &core::http1_protocol_options::HeaderKeyFormat) -> Result<KeyFormat, ConfigError> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let extension = match &format.header_format {
        None => return Err(ConfigError::missing("header_format")),
        Some(HeaderFormat::ProperCaseWords(_)) => return Ok(KeyFormat::ProperCase),
        Some(HeaderFormat::StatefulFormatter(extension)) => extension,
    };
    let Some(any) = &extension.typed_config else {
        return Err(ConfigError::missing("stateful_formatter.typed_config"));
    };
    if !any.is::<PreserveCaseFormatterConfig>() {
        let what = format!("the formatter {}", any.type_name());
        return Err(ConfigError::unsupported("stateful_formatter.typed_config", what));
    }
    let config: PreserveCaseFormatterConfig =
        any.unpack().map_err(|e| ConfigError::new("stateful_formatter.typed_config", e.to_string()))?;
    Ok(KeyFormat::Preserve {
        proper_case_others: config.formatter_type_on_envoy_headers()
            == FormatterTypeOnEnvoyHeaders::ProperCase,
        reason: config.forward_reason_phrase,
    })
}
