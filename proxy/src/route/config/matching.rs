//! Match rules.

use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::runtime_chance;
use crate::route::matching::{
    CookieMatch, Field, HeaderMatch, HeaderRule, PathMatch, QueryMatch, RouteMatch,
};
use crate::route::template::Template;
use crate::route::text::{Pattern, StringMatch, full_regex};
use crate::route::values::{MetadataMatch, ValueMatch};
use crate::state::ConfigError;
use crate::state::error::collect;

/// A route's rules.
///
/// # Errors
/// Everything that is wrong in them.
pub fn route_match(m: &proto::RouteMatch) -> Result<RouteMatch, Vec<ConfigError>> {
    use proto::route_match::PathSpecifier;
    let mut errors = Vec::new();
    if !m.filter_state.is_empty() {
        errors.push(ConfigError::unsupported("filter_state", "matching by filter state"));
    }
    let text = |s: &str| s.as_bytes().into();
    let path = match &m.path_specifier {
        Some(PathSpecifier::Prefix(p)) => Some(PathMatch::Prefix(text(p))),
        Some(PathSpecifier::Path(p)) => Some(PathMatch::Exact(text(p))),
        Some(PathSpecifier::PathSeparatedPrefix(p)) => Some(PathMatch::SeparatedPrefix(text(p))),
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
        Some(PathSpecifier::SafeRegex(r)) => match full_regex(&r.regex) {
            Ok(regex) => Some(PathMatch::Regex(regex)),
            Err(e) => {
                errors.push(ConfigError::new("safe_regex.regex", e));
                None
            }
        },
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            collect(template(policy).map_err(Vec::from), "path_match_policy", &mut errors)
                .map(PathMatch::Template)
        }
        None => {
            errors.push(ConfigError::missing("path_specifier"));
            None
        }
    };
    let mut headers = Vec::with_capacity(m.headers.len());
    for (index, header) in m.headers.iter().enumerate() {
        headers.extend(collect(header_match(header), format!("headers[{index}]"), &mut errors));
    }
    let mut query = Vec::with_capacity(m.query_parameters.len());
    for (index, parameter) in m.query_parameters.iter().enumerate() {
        query.extend(collect(query_match(parameter), format!("query_parameters[{index}]"), &mut errors));
    }
    let mut cookies = Vec::with_capacity(m.cookies.len());
    for (index, cookie) in m.cookies.iter().enumerate() {
        cookies.extend(collect(cookie_match(cookie), format!("cookies[{index}]"), &mut errors));
    }
    let mut metadata = Vec::with_capacity(m.dynamic_metadata.len());
    for (index, matching) in m.dynamic_metadata.iter().enumerate() {
        let matching = metadata_match(matching).map_err(Vec::from);
        metadata.extend(collect(matching, format!("dynamic_metadata[{index}]"), &mut errors));
    }
    let fraction = m
        .runtime_fraction
        .as_ref()
        .and_then(|f| collect(runtime_chance(f).map_err(Vec::from), "runtime_fraction", &mut errors));
    match path {
        Some(path) if errors.is_empty() => Ok(RouteMatch {
            path,
            case_sensitive: m.case_sensitive.unwrap_or(true),
            headers,
            query,
            cookies,
            certificate_shown: m.tls_context.and_then(|t| t.presented),
            certificate_valid: m.tls_context.and_then(|t| t.validated),
            metadata,
            grpc: m.grpc.is_some(),
            fraction,
        }),
        _ => Err(errors),
    }
}

/// A header rule.
///
/// # Errors
/// What is wrong in it.
pub fn header_match(m: &proto::HeaderMatcher) -> Result<HeaderMatch, Vec<ConfigError>> {
    use proto::header_matcher::HeaderMatchSpecifier as Spec;
    let field = Field::parse(&m.name)
        .ok_or_else(|| ConfigError::new("name", format!("{:?} is not a header name", m.name)))?;
    let text = |pattern| HeaderRule::Text(StringMatch::new(pattern, false));
    let bytes = |s: &str| s.as_bytes().into();
    let rule = match &m.header_match_specifier {
        None => HeaderRule::Present(true),
        Some(Spec::PresentMatch(present)) => HeaderRule::Present(*present),
        Some(Spec::StringMatch(s)) => HeaderRule::Text(string_match(s).map_err(|e| e.at("string_match"))?),
        Some(Spec::ExactMatch(s)) => text(Pattern::Exact(bytes(s))),
        Some(Spec::PrefixMatch(s)) => text(Pattern::Prefix(bytes(s))),
        Some(Spec::SuffixMatch(s)) => text(Pattern::Suffix(bytes(s))),
        Some(Spec::ContainsMatch(s)) => text(Pattern::Contains(bytes(s))),
        Some(Spec::SafeRegexMatch(r)) => text(Pattern::Regex(
            full_regex(&r.regex).map_err(|e| ConfigError::new("safe_regex_match.regex", e))?,
        )),
        Some(Spec::RangeMatch(range)) => HeaderRule::Range(range.start, range.end),
    };
    Ok(HeaderMatch { field, rule, invert: m.invert_match, missing_as_empty: m.treat_missing_header_as_empty })
}

fn template(policy: &core::TypedExtensionConfig) -> Result<Template, ConfigError> {
    let any = policy.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    if !any.is::<UriTemplateMatchConfig>() {
        return Err(ConfigError::unsupported("typed_config", format!("the type {}", any.type_name())));
    }
    let config: UriTemplateMatchConfig =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    Template::new(&config.path_template).map_err(|e| ConfigError::new("typed_config.path_template", e))
}

fn cookie_match(m: &proto::CookieMatcher) -> Result<CookieMatch, Vec<ConfigError>> {
    let text = m.string_match.as_ref().ok_or_else(|| ConfigError::missing("string_match"))?;
    if m.name.is_empty() {
        return Err(ConfigError::missing("name").into());
    }
    let text = string_match(text).map_err(|e| e.at("string_match"))?;
    Ok(CookieMatch { name: m.name.clone(), text, invert: m.invert_match })
}

pub(super) fn query_match(m: &proto::QueryParameterMatcher) -> Result<QueryMatch, Vec<ConfigError>> {
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier as Spec;
    let (text, present) = match &m.query_parameter_match_specifier {
        None => (None, true),
        Some(Spec::PresentMatch(present)) => (None, *present),
        Some(Spec::StringMatch(s)) => (Some(string_match(s).map_err(|e| e.at("string_match"))?), true),
    };
    if m.name.is_empty() {
        return Err(ConfigError::missing("name").into());
    }
    Ok(QueryMatch { name: m.name.as_bytes().into(), text, present })
}

/// A text rule.
///
/// # Errors
/// A pattern that is missing, unknown or no regular expression.
pub fn string_match(m: &matcher::StringMatcher) -> Result<StringMatch, ConfigError> {
    use matcher::string_matcher::MatchPattern;
    let bytes = |s: &str| s.as_bytes().into();
    let pattern = match &m.match_pattern {
        Some(MatchPattern::Exact(s)) => Pattern::Exact(bytes(s)),
        Some(MatchPattern::Prefix(s)) => Pattern::Prefix(bytes(s)),
        Some(MatchPattern::Suffix(s)) => Pattern::Suffix(bytes(s)),
        Some(MatchPattern::Contains(s)) => Pattern::Contains(bytes(s)),
        Some(MatchPattern::SafeRegex(r)) => {
            Pattern::Regex(full_regex(&r.regex).map_err(|e| ConfigError::new("safe_regex.regex", e))?)
        }
        Some(MatchPattern::Custom(_)) => {
            return Err(ConfigError::unsupported("custom", "a custom string matcher"));
        }
        None => return Err(ConfigError::missing("match_pattern")),
    };
    Ok(StringMatch::new(pattern, m.ignore_case))
}

/// A rule over metadata.
///
/// # Errors
/// A value that is missing or malformed.
pub fn metadata_match(m: &matcher::MetadataMatcher) -> Result<MetadataMatch, ConfigError> {
    use matcher::metadata_matcher::path_segment::Segment;
    let mut path = Vec::with_capacity(m.path.len());
    for (index, segment) in m.path.iter().enumerate() {
        match &segment.segment {
            Some(Segment::Key(key)) => path.push(key.as_str().into()),
            None => return Err(ConfigError::missing(format!("path[{index}].key"))),
        }
    }
    let value = m.value.as_ref().ok_or_else(|| ConfigError::missing("value"))?;
    let value = value_match(value).map_err(|e| e.at("value"))?;
    Ok(MetadataMatch { namespace: m.filter.as_str().into(), path, value, invert: m.invert })
}

fn value_match(m: &matcher::ValueMatcher) -> Result<ValueMatch, ConfigError> {
    use matcher::value_matcher::MatchPattern;
    use matcher::{double_matcher, list_matcher};
    Ok(match &m.match_pattern {
        None => return Err(ConfigError::missing("match_pattern")),
        Some(MatchPattern::NullMatch(_)) => ValueMatch::Null,
        Some(MatchPattern::DoubleMatch(number)) => match &number.match_pattern {
            Some(double_matcher::MatchPattern::Exact(n)) => ValueMatch::Number(*n),
            Some(double_matcher::MatchPattern::Range(range)) => ValueMatch::Range(range.start, range.end),
            None => return Err(ConfigError::missing("double_match.match_pattern")),
        },
        Some(MatchPattern::StringMatch(text)) => {
            ValueMatch::Text(string_match(text).map_err(|e| e.at("string_match"))?)
        }
        Some(MatchPattern::BoolMatch(b)) => ValueMatch::Bool(*b),
        Some(MatchPattern::PresentMatch(present)) => ValueMatch::Present(*present),
        Some(MatchPattern::ListMatch(list)) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                ValueMatch::OneOf(Box::new(value_match(one).map_err(|e| e.at("list_match.one_of"))?))
            }
            None => return Err(ConfigError::missing("list_match.one_of")),
        },
        Some(MatchPattern::OrMatch(any)) => {
            let mut all = Vec::with_capacity(any.value_matchers.len());
            for (index, one) in any.value_matchers.iter().enumerate() {
                let path = format!("or_match.value_matchers[{index}]");
                all.push(value_match(one).map_err(|e| e.at(path))?);
            }
            ValueMatch::Any(all)
        }
    })
}
