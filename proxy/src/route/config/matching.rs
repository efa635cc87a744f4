//! Match rules.

use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::runtime_chance;
use crate::route::matching::{Field, HeaderMatch, HeaderRule, PathMatch, QueryMatch, RouteMatch};
use crate::route::text::{Pattern, StringMatch, full_regex};
use crate::state::ConfigError;
use crate::state::error::collect;

pub(super) fn route_match(m: &proto::RouteMatch) -> Result<RouteMatch, Vec<ConfigError>> {
    use proto::route_match::PathSpecifier;
    let mut errors = Vec::new();
    for (there, path, what) in [
        (m.tls_context.is_some(), "tls_context", "matching by client certificate"),
        (!m.dynamic_metadata.is_empty(), "dynamic_metadata", "matching by dynamic metadata"),
        (!m.filter_state.is_empty(), "filter_state", "matching by filter state"),
        (!m.cookies.is_empty(), "cookies", "matching by cookies"),
    ] {
        if there {
            errors.push(ConfigError::unsupported(path, what));
        }
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
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            errors.push(ConfigError::unsupported("path_match_policy", "a path match extension"));
            None
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

fn query_match(m: &proto::QueryParameterMatcher) -> Result<QueryMatch, Vec<ConfigError>> {
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
