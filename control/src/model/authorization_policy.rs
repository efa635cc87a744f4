//! AuthorizationPolicy: who may do what to a workload (security.istio.io).

use serde::Deserialize;

use super::gateway_api::TargetRef;
use super::meta::Object;
use super::values::{Labels, WorkloadSelector};

/// Istio's annotation of a policy that is only tried: its verdict is counted and logged, not enforced.
pub const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";

/// The specification of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Workloads to which it applies; absent for the whole namespace, or the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// One Gateway or Service for whose workloads it is. The old form of `target_refs`.
    pub target_ref: Option<TargetRef>,
    /// Gateways or Services for whose workloads it is, instead of a selector. Resolved when a state is read: empty in a World.
    pub target_refs: Vec<TargetRef>,
    /// The one namespace of its workloads, where a target said so.
    #[serde(skip)]
    pub place: Option<String>,
    /// What becomes of requests that a rule matches.
    pub action: AuthorizationAction,
    /// Who is asked (CUSTOM).
    pub provider: Option<AuthorizationProvider>,
    /// Each matches by itself; none match nothing.
    pub rules: Vec<AuthorizationRule>,
}

/// What becomes of requests that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum AuthorizationAction {
    /// They pass; where a workload has such a policy, others do not.
    #[default]
    #[serde(rename = "ALLOW")]
    Allow,
    /// They do not pass, whatever allows them.
    #[serde(rename = "DENY")]
    Deny,
    /// They are noted, and pass as others do.
    #[serde(rename = "AUDIT")]
    Audit,
    /// Somebody else is asked.
    #[serde(rename = "CUSTOM")]
    Custom,
}

impl AuthorizationAction {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// Who is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationProvider {
    /// One of MeshConfig's `extensionProviders`.
    pub name: String,
}

/// A rule: one of the sources, one of the operations, and all conditions. What is empty does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// Who asks.
    pub from: Vec<AuthorizationFrom>,
    /// What is asked for.
    pub to: Vec<AuthorizationTo>,
    /// What else must hold.
    pub when: Vec<Condition>,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationFrom {
    /// Its properties.
    pub source: Option<Source>,
}

/// Properties of who asks: all of them must hold, each by one of its values and none of its negative ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each not_ field excludes what the field before it names")]
pub struct Source {
    /// Identities of mutual TLS, as `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    /// Identities of tokens, as `ISSUER/SUBJECT`.
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    /// Namespaces of identities of mutual TLS.
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    /// Service accounts of identities of mutual TLS, as `ACCOUNT` (of the policy's namespace) or `NAMESPACE/ACCOUNT`.
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    /// Trust domains of identities of mutual TLS.
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    /// Addresses of the connection's other end, single ones or CIDR.
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the client, as trusted proxies in between tell it.
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationTo {
    /// Its properties.
    pub operation: Option<Operation>,
}

/// Properties of what is asked for: all of them must hold, each by one of its values and none of its negative ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "each not_ field excludes what the field before it names")]
pub struct Operation {
    /// Authorities, whatever their case.
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    /// Ports of the workload.
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    /// HTTP methods.
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    /// Paths after normalisation, without query; `{*}` stands for one segment, `{**}` for any number.
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// What else must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// An attribute, such as `request.headers[x-version]`.
    pub key: String,
    /// It has one of these values.
    pub values: Vec<String>,
    /// It has none of these.
    pub not_values: Vec<String>,
}

/// True and false as Go reads them, and so Istio's annotations.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Object<AuthorizationPolicy> {
    /// Whether the policy is only tried ([`DRY_RUN_ANNOTATION`]); the reader has checked what the annotation says.
    pub fn is_tried(&self) -> bool {
        self.meta.annotations.get(DRY_RUN_ANNOTATION).is_some_and(|text| parse_bool(text) == Some(true))
    }
}

impl AuthorizationPolicy {
    /// Whether it applies to a workload with these labels, as far as its selector says.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.selects(labels))
    }

    /// Whether it applies to a workload of this namespace, which its own or the root namespace's policies are for.
    pub fn applies(&self, namespace: &str, labels: &Labels) -> bool {
        // One with targets that nobody has resolved is for nobody.
        let resolved = self.target_ref.is_none() && self.target_refs.is_empty();
        resolved && self.place.as_deref().is_none_or(|only| only == namespace) && self.selects(labels)
    }
}

/// An attribute of a [`Condition`], as far as it is told by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// `request.headers[NAME]`.
    Header(&'a str),
    /// `source.ip`.
    SourceIp,
    /// `remote.ip`.
    RemoteIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `source.serviceAccount`: `ACCOUNT` of the policy's own namespace, or `NAMESPACE/ACCOUNT`.
    SourceServiceAccount,
    /// `source.trustDomain`.
    SourceTrustDomain,
    /// `request.auth.principal`.
    RequestPrincipal,
    /// `request.auth.audiences`.
    Audiences,
    /// `request.auth.presenter`.
    Presenter,
    /// `request.auth.claims[NAME]`, or deeper: `[NAME][NAME]`, here between the outer brackets.
    Claims(&'a str),
    /// `destination.ip`.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
    /// `connection.sni`.
    ServerName,
    /// `experimental.envoy.filters.X[KEY]`: the filter `envoy.filters.X`, and the key.
    FilterMetadata(&'a str, &'a str),
}

impl<'a> Attribute<'a> {
    /// Reads a key; the error says why it names no attribute.
    pub fn parse(key: &'a str) -> Result<Self, String> {
        let inside = |prefix: &str| key.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']');
        let form = |example: &str| Err(format!("{key:?} is not of the form {example}"));
        Ok(match key {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "source.trustDomain" => Self::SourceTrustDomain,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audiences,
            "request.auth.presenter" => Self::Presenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ServerName,
            _ if key.starts_with("request.headers") => match inside("request.headers") {
                Some(name) if !name.is_empty() => Self::Header(name),
                _ => return form("request.headers[NAME]"),
            },
            _ if key.starts_with("request.auth.claims") => match inside("request.auth.claims") {
                Some(names) if names.split("][").all(|n| !n.is_empty() && !n.contains(['[', ']'])) => {
                    Self::Claims(names)
                }
                _ => return form("request.auth.claims[NAME] or request.auth.claims[NAME][NAME]"),
            },
            _ if key.starts_with("experimental.envoy.filters.") => {
                let found = key
                    .strip_prefix("experimental.")
                    .and_then(|rest| rest.strip_suffix(']')?.split_once('['))
                    .filter(|(filter, name)| filter.len() > "envoy.filters.".len() && !name.is_empty());
                match found {
                    Some((filter, name)) => Self::FilterMetadata(filter, name),
                    None => return form("experimental.envoy.filters.FILTER[KEY]"),
                }
            }
            "destination.namespace" => {
                return Err(
                    "destination.namespace is no condition: a policy holds in its own namespace".into()
                );
            }
            "destination.name" | "destination.user" => {
                return Err(format!("{key} was an attribute of v1alpha1 only: use the policy's selector"));
            }
            _ if key.starts_with("destination.labels") => {
                return Err("destination.labels is no condition: use the policy's selector".into());
            }
            _ => return Err(format!("unknown attribute: {key}")),
        })
    }

    /// Whether only requests have it, and a connection's bytes do not.
    pub fn is_http_only(self) -> bool {
        matches!(
            self,
            Self::Header(_) | Self::RequestPrincipal | Self::Audiences | Self::Presenter | Self::Claims(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_istios() {
        assert_eq!(Attribute::parse("request.headers[X-A]"), Ok(Attribute::Header("X-A")));
        assert_eq!(Attribute::parse("request.auth.claims[a][b]"), Ok(Attribute::Claims("a][b")));
        assert_eq!(
            Attribute::parse("experimental.envoy.filters.http.x[k]"),
            Ok(Attribute::FilterMetadata("envoy.filters.http.x", "k"))
        );
        for wrong in [
            "request.headers",
            "request.headers[]",
            "request.auth.claims[]",
            "request.auth.claims[a][]",
            "experimental.envoy.filters.[k]",
            "source.labels[app]",
            "destination.labels[app]",
            "destination.name",
            "",
        ] {
            assert!(Attribute::parse(wrong).is_err(), "{wrong}");
        }
    }
}
