//! Rate limit actions of routes and filters.

use std::sync::Arc;

use xds_protos::envoy::config::route::v3::RateLimit as Proto;
use xds_protos::envoy::config::route::v3::rate_limit as proto;
use xds_protos::envoy::config::route::v3::rate_limit::action::ActionSpecifier as Spec;
use xds_protos::envoy::r#type::metadata::v3::MetadataKey as ProtoKey;
use xds_protos::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;

use super::matching::{header_match, query_match};
use crate::route::matching::Field;
use crate::route::rate_limit::{Action, Hits, MetadataFrom, MetadataKey, Quota, QuotaFrom, RateLimit};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::access_log::Format;

/// Compiles a list of rate limits of a route or a virtual host.
///
/// # Errors
/// Everything that is wrong in it; among it what Envoy looks at in filters' own limits alone.
pub fn rate_limits(limits: &[Proto]) -> Result<Vec<RateLimit>, Vec<ConfigError>> {
    let costs = |limit: &Proto| limit.hits_addend.is_some();
    let wrong = limits.iter().enumerate().filter(|(_, limit)| costs(limit)).map(|(index, _)| {
        let path = format!("rate_limits[{index}].hits_addend");
        ConfigError::new(path, "counts in the rate_limits of a filter alone; move the limit there")
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() { own_rate_limits(limits) } else { Err(wrong) }
}

/// Compiles a list of rate limits of a filter.
///
/// # Errors
/// Everything that is wrong in it.
pub fn own_rate_limits(limits: &[Proto]) -> Result<Vec<RateLimit>, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut compiled = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let mut actions = Vec::with_capacity(limit.actions.len());
        for (at, action) in limit.actions.iter().enumerate() {
            let path = format!("rate_limits[{index}].actions[{at}]");
            actions.extend(collect(self::action(action), path, &mut errors));
        }
        let of = |path: &str| format!("rate_limits[{index}].{path}");
        let quota = limit.limit.as_ref().and_then(|l| collect(quota(l), of("limit"), &mut errors));
        let hits = limit.hits_addend.as_ref().and_then(|h| collect(hits(h), of("hits_addend"), &mut errors));
        compiled.push(RateLimit {
            stage: limit.stage.unwrap_or(0),
            disabled: !limit.disable_key.is_empty(),
            actions,
            limit: quota,
            hits: hits.flatten(),
            told: match limit.x_ratelimit_option() {
                proto::XRateLimitOption::Unspecified => None,
                proto::XRateLimitOption::Off => Some(false),
                proto::XRateLimitOption::DraftVersion03 => Some(true),
            },
        });
    }
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

fn or<'a>(given: &'a str, default: &'a str) -> &'a str {
    if given.is_empty() { default } else { given }
}

/// A limit that a descriptor brings along.
fn quota(limit: &proto::Override) -> Result<QuotaFrom, Vec<ConfigError>> {
    use proto::r#override::OverrideSpecifier;
    match &limit.override_specifier {
        None => Err(ConfigError::missing("override_specifier").into()),
        Some(OverrideSpecifier::DynamicMetadata(from)) => {
            key(from.metadata_key.as_ref(), "dynamic_metadata.metadata_key").map(QuotaFrom::Dynamic)
        }
        Some(OverrideSpecifier::RateLimit(fixed)) => {
            Ok(QuotaFrom::Fixed(Quota { requests: fixed.requests_per_unit, unit: fixed.unit }))
        }
    }
}

/// How many requests a descriptor counts for.
fn hits(hits: &proto::HitsAddend) -> Result<Option<Hits>, Vec<ConfigError>> {
    if hits.is_negative_hits {
        return Err(ConfigError::unsupported("is_negative_hits", "giving back").into());
    }
    match (hits.number, hits.format.as_str()) {
        (Some(_), format) if !format.is_empty() => {
            Err(ConfigError::new("format", "cannot be with number").into())
        }
        (Some(number), _) => Ok(Some(Hits::Fixed(number))),
        (None, "") => Ok(None),
        (None, format) => Ok(Some(Hits::Format(self::format(format, "format")?))),
    }
}

fn format(source: &str, path: &str) -> Result<Arc<Format>, Vec<ConfigError>> {
    let format = Format::text(source).and_then(Format::known_early);
    format.map(Arc::new).map_err(|e| ConfigError::new(path, e.to_string()).into())
}

fn key(proto: Option<&ProtoKey>, path: &str) -> Result<MetadataKey, Vec<ConfigError>> {
    let proto = proto.ok_or_else(|| ConfigError::missing(path))?;
    let segments = proto.path.iter().map(|s| match &s.segment {
        Some(Segment::Key(key)) => Ok(key.as_str().into()),
        Some(Segment::Index(_)) => {
            Err(ConfigError::unsupported(format!("{path}.path.index"), "an element of a list"))
        }
        None => Err(ConfigError::missing(format!("{path}.path.key"))),
    });
    Ok(MetadataKey { namespace: proto.key.as_str().into(), path: segments.collect::<Result<_, _>>()? })
}

/// A descriptor's value. Envoy makes nothing of commands in it, so there is nothing that its default could stand for.
fn text(value: &str, default: &str, path: &str) -> Result<Box<str>, ConfigError> {
    if !default.is_empty() {
        let what = "a value for what is missing: the value is always there, and";
        return Err(ConfigError::unsupported(format!("{path}.default_value"), what));
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
            let value = text(&a.descriptor_value, &a.default_value, "generic_key")?;
            Action::Generic(or(&a.descriptor_key, "generic_key").into(), value)
        }
        Some(Spec::HeaderValueMatch(a)) => {
            let value = text(&a.descriptor_value, &a.default_value, "header_value_match")?;
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
            let value = text(&a.descriptor_value, &a.default_value, "query_parameter_value_match")?;
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
        Some(Spec::Metadata(a)) => {
            use proto::action::meta_data::Source;
            let from = match a.source() {
                Source::Dynamic => MetadataFrom::Filters,
                Source::RouteEntry => MetadataFrom::Route,
                Source::ClusterEntry | Source::ClusterLocalityEntry => {
                    return Err(ConfigError::unsupported("metadata.source", "metadata of clusters").into());
                }
            };
            Action::Metadata(
                from,
                key(a.metadata_key.as_ref(), "metadata.metadata_key")?,
                a.descriptor_key.as_str().into(),
                a.default_value.as_str().into(),
                a.skip_if_absent,
            )
        }
        Some(Spec::Extension(_)) => return Err(ConfigError::unsupported("extension", "this action").into()),
        Some(Spec::RemoteAddressMatch(_)) => {
            return Err(ConfigError::unsupported("remote_address_match", "this action").into());
        }
    })
}
