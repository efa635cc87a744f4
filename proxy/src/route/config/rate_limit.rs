//! Rate limit actions of routes and filters.

use xds_protos::envoy::config::route::v3::RateLimit as Proto;
use xds_protos::envoy::config::route::v3::rate_limit as proto;
use xds_protos::envoy::config::route::v3::rate_limit::action::ActionSpecifier as Spec;

use super::matching::{header_match, query_match};
use crate::route::matching::Field;
use crate::route::rate_limit::{Action, RateLimit};
use crate::state::ConfigError;
use crate::state::error::collect;

/// Compiles a list of rate limits.
///
/// # Errors
/// Everything that is wrong in it.
pub fn rate_limits(limits: &[Proto]) -> Result<Vec<RateLimit>, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut compiled = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let mut actions = Vec::with_capacity(limit.actions.len());
        for (at, action) in limit.actions.iter().enumerate() {
            let path = format!("rate_limits[{index}].actions[{at}]");
            actions.extend(collect(self::action(action), path, &mut errors));
        }
        compiled.push(RateLimit {
            stage: limit.stage.unwrap_or(0),
            disabled: !limit.disable_key.is_empty(),
            actions,
        });
    }
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

fn or<'a>(given: &'a str, default: &'a str) -> &'a str {
    if given.is_empty() { default } else { given }
}

/// A descriptor's value, which Envoy takes for a format where it has a percent sign.
fn constant(value: &str, default: &str, path: &str) -> Result<Box<str>, ConfigError> {
    if !default.is_empty() {
        return Err(ConfigError::unsupported(format!("{path}.default_value"), "a value for what is missing"));
    }
    if value.contains('%') {
        return Err(ConfigError::unsupported(format!("{path}.descriptor_value"), "a value with commands"));
    }
    Ok(value.into())
}

fn action(action: &proto::Action) -> Result<Action, Vec<ConfigError>> {
    Ok(match &action.action_specifier {
        None => return Err(ConfigError::missing("action_specifier").into()),
        Some(Spec::SourceCluster(_)) => Action::SourceCluster,
        Some(Spec::DestinationCluster(_)) => Action::DestinationCluster,
        Some(Spec::RequestHeaders(a)) => {
            let bad = || ConfigError::new("request_headers.header_name", "is no header name");
            let field = Field::parse(&a.header_name).ok_or_else(bad)?;
            Action::Header(field, a.descriptor_key.as_str().into(), a.skip_if_absent)
        }
        Some(Spec::QueryParameters(a)) => Action::Query(
            a.query_parameter_name.as_bytes().into(),
            a.descriptor_key.as_str().into(),
            a.skip_if_absent,
        ),
        Some(Spec::RemoteAddress(_)) => Action::RemoteAddress,
        Some(Spec::MaskedRemoteAddress(a)) => {
            let length = |given: Option<u32>, most: u8, path: &str| match given {
                None => Ok(most),
                Some(n) => u8::try_from(n).ok().filter(|n| *n <= most).ok_or_else(|| {
                    ConfigError::new(format!("masked_remote_address.{path}"), format!("is {most} at most"))
                }),
            };
            Action::MaskedRemoteAddress(
                length(a.v4_prefix_mask_len, 32, "v4_prefix_mask_len")?,
                length(a.v6_prefix_mask_len, 128, "v6_prefix_mask_len")?,
            )
        }
        Some(Spec::GenericKey(a)) => {
            let value = constant(&a.descriptor_value, &a.default_value, "generic_key")?;
            Action::Generic(or(&a.descriptor_key, "generic_key").into(), value)
        }
        Some(Spec::HeaderValueMatch(a)) => {
            let value = constant(&a.descriptor_value, &a.default_value, "header_value_match")?;
            let mut errors = Vec::new();
            let mut headers = Vec::with_capacity(a.headers.len());
            for (index, header) in a.headers.iter().enumerate() {
                let path = format!("header_value_match.headers[{index}]");
                headers.extend(collect(header_match(header), path, &mut errors));
            }
            if !errors.is_empty() {
                return Err(errors);
            }
            let key = or(&a.descriptor_key, "header_match").into();
            Action::HeaderMatch(headers, a.expect_match.unwrap_or(true), key, value)
        }
        Some(Spec::QueryParameterValueMatch(a)) => {
            let value = constant(&a.descriptor_value, &a.default_value, "query_parameter_value_match")?;
            let mut errors = Vec::new();
            let mut parameters = Vec::with_capacity(a.query_parameters.len());
            for (index, parameter) in a.query_parameters.iter().enumerate() {
                let path = format!("query_parameter_value_match.query_parameters[{index}]");
                parameters.extend(collect(query_match(parameter), path, &mut errors));
            }
            if !errors.is_empty() {
                return Err(errors);
            }
            let key = or(&a.descriptor_key, "query_match").into();
            Action::QueryMatch(parameters, a.expect_match.unwrap_or(true), key, value)
        }
        Some(Spec::DynamicMetadata(_)) => {
            return Err(ConfigError::unsupported("dynamic_metadata", "this action").into());
        }
        Some(Spec::Metadata(_)) => return Err(ConfigError::unsupported("metadata", "this action").into()),
        Some(Spec::Extension(_)) => return Err(ConfigError::unsupported("extension", "this action").into()),
        Some(Spec::RemoteAddressMatch(_)) => {
            return Err(ConfigError::unsupported("remote_address_match", "this action").into());
        }
    })
}
