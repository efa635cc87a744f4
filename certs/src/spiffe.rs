//! SPIFFE ids as types (the SPIFFE-ID standard, section 2; Istio's form `spiffe://<domain>/ns/<namespace>/sa/<account>`).

use std::fmt;
use std::str::FromStr;

/// Text that is not a SPIFFE id or trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The scheme is another one.
    #[error("{0:?} does not start with spiffe://")]
    Scheme(String),
    /// The trust domain has characters that it may not have, or none, or too many.
    #[error(
        "{0:?} is not a trust domain: lower-case letters, digits, dots, dashes and underscores, at most 255"
    )]
    TrustDomain(String),
    /// The path is empty, has an empty or relative segment, or characters that it may not have.
    #[error("{0:?} is not a SPIFFE path: /segments of letters, digits, dots, dashes and underscores")]
    Path(String),
    /// The whole id is over 2048 bytes.
    #[error("the id has {0} bytes; a SPIFFE id has at most 2048")]
    Length(usize),
}

/// A trust domain's name, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Istio's identity of a service account in this domain.
    pub fn workload(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, SpiffeError> {
        format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.0).parse()
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;
    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    domain_end: usize,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of its trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.domain_end]
    }

    /// Its path, starting with a slash; empty for a trust domain's own id.
    pub fn path(&self) -> &str {
        &self.text[self.domain_end..]
    }

    /// Namespace and service account, if it has Istio's form.
    pub fn workload(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > 2048 {
            return Err(SpiffeError::Length(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        domain.parse::<TrustDomain>()?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
        if !path.is_empty() && !path[1..].split('/').all(segment) {
            return Err(SpiffeError::Path(path.to_owned()));
        }
        Ok(Self { domain_end: SCHEME.len() + domain.len(), text: text.to_owned() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_form_is_taken_apart() {
        let id: SpiffeId = "spiffe://cluster.local/ns/ecotrack/sa/user-service".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.workload(), Some(("ecotrack", "user-service")));
        let made =
            "cluster.local".parse::<TrustDomain>().unwrap().workload("ecotrack", "user-service").unwrap();
        assert_eq!(made, id);
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        for bad in [
            "http://a/b",
            "spiffe://",
            "spiffe:///a",
            "spiffe://Upper/a",
            "spiffe://a:80/b",
            "spiffe://u@a/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/%62",
            "spiffe://a/b/",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        assert!("td".parse::<TrustDomain>().unwrap().workload("a/b", "c").unwrap().workload().is_none());
        assert!(format!("spiffe://a/{}", "b".repeat(2048)).parse::<SpiffeId>().is_err());
    }
}
