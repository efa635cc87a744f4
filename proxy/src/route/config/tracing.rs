//! What routes and connection managers say of spans: shares, names, tags.

use std::sync::Arc;

use http::HeaderName;
use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::r#type::metadata::v3 as metadata;
use xds_protos::envoy::r#type::tracing::v3 as tag;
use xds_protos::envoy::r#type::v3::FractionalPercent;

use super::chance;
use crate::route::RouteTracing;
use crate::route::matching::Chance;
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::access_log::Format;
use crate::telemetry::trace::{Source, Tag, Words};

type Errors = Vec<ConfigError>;

/// A route's tracing.
///
/// # Errors
/// Everything that is wrong in it.
pub(super) fn route(config: &proto::Tracing) -> Result<Arc<RouteTracing>, Errors> {
    let mut errors = Vec::new();
    let mut share = |value: Option<&FractionalPercent>, path: &str| {
        value.map_or(Some(Chance::ALWAYS), |v| collect(chance(v).map_err(Errors::from), path, &mut errors))
    };
    let client = share(config.client_sampling.as_ref(), "client_sampling");
    let random = share(config.random_sampling.as_ref(), "random_sampling");
    let overall = share(config.overall_sampling.as_ref(), "overall_sampling");
    let words = words(&config.custom_tags, &config.operation, &config.upstream_operation);
    let words = collect(words, "", &mut errors);
    match (client, random, overall, words) {
        (Some(client), Some(random), Some(overall), Some(words)) => {
            Ok(Arc::new(RouteTracing { client, random, overall, words: Arc::new(words) }))
        }
        _ => Err(errors),
    }
}

/// Names and tags of spans.
///
/// # Errors
/// Everything that is wrong in them.
pub fn words(tags: &[tag::CustomTag], operation: &str, upstream_operation: &str) -> Result<Words, Errors> {
    let mut errors = Vec::new();
    let mut format = |text: &str, path: &str| match text {
        "" => None,
        text => collect(self::format(text).map_err(Errors::from), path, &mut errors),
    };
    let operation = format(operation, "operation");
    let upstream_operation = format(upstream_operation, "upstream_operation");
    let mut all: Vec<Tag> = Vec::with_capacity(tags.len());
    for (index, tag) in tags.iter().enumerate() {
        let compiled =
            collect(source(tag).map_err(Errors::from), format!("custom_tags[{index}]"), &mut errors);
        let Some(Some(source)) = compiled else { continue };
        // Of several of a name the last counts.
        all.retain(|other| *other.name != *tag.tag);
        all.push(Tag { name: tag.tag.as_str().into(), source });
    }
    if errors.is_empty() { Ok(Words { operation, upstream_operation, tags: all }) } else { Err(errors) }
}

/// Where a tag's value comes from; none where it never has one.
fn source(tag: &tag::CustomTag) -> Result<Option<Source>, ConfigError> {
    use tag::custom_tag::Type;
    if tag.tag.is_empty() {
        return Err(ConfigError::missing("tag"));
    }
    let or = |default: &str| (!default.is_empty()).then(|| default.to_owned());
    Ok(Some(match &tag.r#type {
        Some(Type::Literal(literal)) => Source::Fixed(literal.value.clone()),
        Some(Type::Environment(variable)) => {
            let found = std::env::var(&variable.name).ok().or_else(|| or(&variable.default_value));
            let Some(found) = found else { return Ok(None) };
            Source::Fixed(found)
        }
        Some(Type::RequestHeader(header)) => {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| {
                ConfigError::new("request_header.name", format!("{:?} is no header name", header.name))
            })?;
            Source::Header(name, or(&header.default_value))
        }
        Some(Type::Metadata(value)) => {
            use metadata::metadata_kind::Kind;
            let path = path(value.metadata_key.as_ref()).map_err(|e| e.at("metadata.metadata_key"))?;
            let default = or(&value.default_value);
            match value.kind.as_ref().and_then(|k| k.kind.as_ref()) {
                Some(Kind::Request(_)) => Source::Request(path, default),
                Some(Kind::Route(_)) => Source::Route(path, default),
                Some(Kind::Cluster(_) | Kind::Host(_)) => {
                    return Err(ConfigError::unsupported("metadata.kind", "metadata of a cluster or host"));
                }
                None => return Err(ConfigError::missing("metadata.kind")),
            }
        }
        Some(Type::Value(text)) => Source::Format(format(text).map_err(|e| e.at("value"))?),
        None => return Err(ConfigError::missing("literal, environment, request_header, metadata or value")),
    }))
}

/// A namespace, and keys below it.
fn path(key: Option<&metadata::MetadataKey>) -> Result<Vec<String>, ConfigError> {
    use metadata::metadata_key::path_segment::Segment;
    let key = key.ok_or_else(|| ConfigError::missing(""))?;
    let mut path = vec![key.key.clone()];
    for (index, segment) in key.path.iter().enumerate() {
        match &segment.segment {
            Some(Segment::Key(key)) => path.push(key.clone()),
            _ => return Err(ConfigError::missing(format!("path[{index}].key"))),
        }
    }
    if path.len() < 2 {
        return Err(ConfigError::missing("path"));
    }
    Ok(path)
}

fn format(text: &str) -> Result<Format, ConfigError> {
    Format::text(text).and_then(Format::known_early).map_err(|e| ConfigError::new("", e.to_string()))
}
