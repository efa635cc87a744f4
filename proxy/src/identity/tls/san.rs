//! Matching a certificate's subject alternative names, as `match_typed_subject_alt_names` says.

use regex::Regex;
use xds_protos::envoy::extensions::transport_sockets::tls::v3 as pb;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::peer::Peer;
use crate::state::ConfigError;

/// Which names of a certificate a matcher looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// URI, DNS and IP names alike: Envoy's older, untyped field.
    Any,
    Uri,
    Dns,
    Ip,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
}

/// One matcher; a certificate needs to satisfy only one of a context's.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    kind: Kind,
    pattern: Pattern,
    ignore_case: bool,
}

impl SanMatcher {
    /// A matcher for one DNS name (or address): `auto_san_validation`.
    pub fn host(name: &str) -> Self {
        let kind = if name.parse::<std::net::IpAddr>().is_ok() { Kind::Ip } else { Kind::Dns };
        Self { kind, pattern: Pattern::Exact(name.to_owned()), ignore_case: true }
    }

    /// A matcher for exactly this URI.
    pub fn uri(uri: &str) -> Self {
        Self { kind: Kind::Uri, pattern: Pattern::Exact(uri.to_owned()), ignore_case: false }
    }

    /// Compiles an untyped matcher.
    pub fn untyped(proto: &matcher::StringMatcher) -> Result<Self, ConfigError> {
        Ok(Self { kind: Kind::Any, pattern: pattern(proto)?, ignore_case: proto.ignore_case })
    }

    /// Compiles a typed matcher.
    pub fn typed(proto: &pb::SubjectAltNameMatcher) -> Result<Self, ConfigError> {
        use pb::subject_alt_name_matcher::SanType;
        let kind = match proto.san_type() {
            SanType::Uri => Kind::Uri,
            SanType::Dns => Kind::Dns,
            SanType::IpAddress => Kind::Ip,
            other => {
                return Err(ConfigError::unsupported(
                    "san_type",
                    format!("matching {}", other.as_str_name()),
                ));
            }
        };
        let inner = proto.matcher.as_ref().ok_or_else(|| ConfigError::missing("matcher"))?;
        let pattern = pattern(inner).map_err(|e| e.at("matcher"))?;
        Ok(Self { kind, pattern, ignore_case: inner.ignore_case })
    }

    /// Whether any of the peer's names satisfies this matcher.
    pub fn matches(&self, peer: &Peer) -> bool {
        let uri = matches!(self.kind, Kind::Any | Kind::Uri);
        let dns = matches!(self.kind, Kind::Any | Kind::Dns);
        let ip = matches!(self.kind, Kind::Any | Kind::Ip);
        (uri && peer.uri_sans.iter().any(|n| self.matches_text(n)))
            || (dns && peer.dns_sans.iter().any(|n| self.matches_text(n) || self.matches_wildcard(n)))
            || (ip && peer.ip_sans.iter().any(|n| self.matches_text(&n.to_string())))
    }

    fn matches_text(&self, name: &str) -> bool {
        let lower;
        let name = if self.ignore_case {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        let fold = |s: &str| if self.ignore_case { s.to_ascii_lowercase() } else { s.to_owned() };
        match &self.pattern {
            Pattern::Exact(p) => *name == fold(p),
            Pattern::Prefix(p) => name.starts_with(&fold(p)),
            Pattern::Suffix(p) => name.ends_with(&fold(p)),
            Pattern::Contains(p) => name.contains(&fold(p)),
            Pattern::Regex(r) => r.is_match(name),
        }
    }

    /// An exact DNS matcher accepts a certificate's wildcard for one label (RFC 6125, 6.4.3).
    fn matches_wildcard(&self, name: &str) -> bool {
        let (Pattern::Exact(wanted), Some(parent)) = (&self.pattern, name.strip_prefix("*.")) else {
            return false;
        };
        wanted.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && parent.contains('.') && rest.eq_ignore_ascii_case(parent)
        })
    }
}

fn pattern(proto: &matcher::StringMatcher) -> Result<Pattern, ConfigError> {
    use matcher::string_matcher::MatchPattern;
    match &proto.match_pattern {
        Some(MatchPattern::Exact(s)) => Ok(Pattern::Exact(s.clone())),
        Some(MatchPattern::Prefix(s)) => Ok(Pattern::Prefix(s.clone())),
        Some(MatchPattern::Suffix(s)) => Ok(Pattern::Suffix(s.clone())),
        Some(MatchPattern::Contains(s)) => Ok(Pattern::Contains(s.clone())),
        Some(MatchPattern::SafeRegex(r)) => Regex::new(&format!("^(?:{})$", r.regex))
            .map(Pattern::Regex)
            .map_err(|e| ConfigError::new("safe_regex.regex", e.to_string())),
        Some(_) => Err(ConfigError::unsupported("custom", "a custom string matcher")),
        None => Err(ConfigError::missing("match_pattern")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer {
            uri_sans: vec!["spiffe://cluster.local/ns/a/sa/b".into()],
            dns_sans: vec!["*.example.com".into()],
            ip_sans: vec!["10.0.0.1".parse().unwrap()],
            ..Peer::default()
        }
    }

    fn text(pattern: matcher::string_matcher::MatchPattern) -> SanMatcher {
        SanMatcher::untyped(&matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() })
            .unwrap()
    }

    #[test]
    fn istios_matchers() {
        use matcher::string_matcher::MatchPattern as P;
        assert!(text(P::Prefix("spiffe://cluster.local/".into())).matches(&peer()));
        assert!(!text(P::Prefix("spiffe://other/".into())).matches(&peer()));
        assert!(text(P::Exact("spiffe://cluster.local/ns/a/sa/b".into())).matches(&peer()));
        assert!(!text(P::Exact("spiffe://cluster.local/ns/a/sa/c".into())).matches(&peer()));
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        assert!(SanMatcher::host("API.example.com").matches(&peer()));
        assert!(!SanMatcher::host("a.b.example.com").matches(&peer()));
        assert!(!SanMatcher::host("example.com").matches(&peer()));
        assert!(SanMatcher::host("10.0.0.1").matches(&peer()));
    }
}
