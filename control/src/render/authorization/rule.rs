//! One rule of an AuthorizationPolicy as a policy of Envoy's RBAC.

use serde_json::{Value, json};

use super::matchers;
use crate::model::authorization_policy::{
    Attribute, AuthorizationAction, AuthorizationRule, Operation, Source,
};

/// Where a rule stands, as far as its meaning depends on it.
pub(super) struct Scope<'a> {
    /// The policy's namespace.
    pub(super) namespace: &'a str,
    /// The mesh's trust domain, then its aliases.
    pub(super) trust_domains: &'a [&'a str],
    /// A TCP chain has no requests.
    pub(super) tcp: bool,
    pub(super) action: AuthorizationAction,
}

/// What a part of a rule looks at.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Host,
    Method,
    Path,
    Of(Attribute<'a>),
}

/// A part of a rule: one of the values, and none of the others.
struct Part<'a> {
    subject: Subject<'a>,
    values: &'a [String],
    not_values: &'a [String],
}

/// The names by which RBAC's messages put matchers together; permissions and principals differ by them.
struct Words {
    and: &'static str,
    or: &'static str,
    not: &'static str,
    list: &'static str,
}

const PERMISSION: Words = Words { and: "and_rules", or: "or_rules", not: "not_rule", list: "rules" };
const PRINCIPAL: Words = Words { and: "and_ids", or: "or_ids", not: "not_id", list: "ids" };

impl Words {
    fn all(&self, parts: Vec<Value>) -> Value {
        let parts = if parts.is_empty() { vec![json!({"any": true})] } else { parts };
        json!({self.and: {self.list: parts}})
    }

    fn one(&self, of: Vec<Value>) -> Value {
        json!({self.or: {self.list: of}})
    }

    fn none(&self, of: Vec<Value>) -> Value {
        json!({self.not: self.one(of)})
    }
}

/// A policy that matches nothing: of an AuthorizationPolicy without rules.
pub(super) fn never() -> Value {
    json!({
        "permissions": [{"not_rule": {"any": true}}],
        "principals": [{"not_id": {"any": true}}],
    })
}

/// A rule as a policy. None if it has parts that a TCP chain cannot look at, and allows: to leave such a part out of what
/// is allowed would allow more. To leave it out of what is denied, noted or asked about denies, notes and asks more.
pub(super) fn policy(rule: &AuthorizationRule, scope: &Scope<'_>) -> Option<Value> {
    let (mut permissions, mut principals) = (Vec::new(), Vec::new());
    for condition in &rule.when {
        let attribute = Attribute::parse(&condition.key).ok()?;
        let part = Part {
            subject: Subject::Of(attribute),
            values: &condition.values,
            not_values: &condition.not_values,
        };
        let of_operation = matches!(
            attribute,
            Attribute::DestinationIp
                | Attribute::DestinationPort
                | Attribute::ServerName
                | Attribute::FilterMetadata(..)
        );
        if of_operation { &mut permissions } else { &mut principals }.extend(part.render(scope)?);
    }
    let with = |own: Vec<Part<'_>>, conditions: &[Value], words: &Words| {
        let mut parts = Vec::new();
        for part in own {
            parts.extend(part.render(scope)?);
        }
        parts.extend(conditions.iter().cloned());
        Some(words.all(parts))
    };
    let mut asked = Vec::new();
    for to in &rule.to {
        let own = to.operation.as_ref().map(operation).unwrap_or_default();
        asked.push(with(own, &permissions, &PERMISSION)?);
    }
    if rule.to.is_empty() {
        asked.push(PERMISSION.all(permissions));
    }
    let mut asking = Vec::new();
    for from in &rule.from {
        let own = from.source.as_ref().map(source).unwrap_or_default();
        asking.push(with(own, &principals, &PRINCIPAL)?);
    }
    if rule.from.is_empty() {
        asking.push(PRINCIPAL.all(principals));
    }
    Some(json!({"permissions": asked, "principals": asking}))
}

fn operation(operation: &Operation) -> Vec<Part<'_>> {
    let part = |subject, values, not_values| Part { subject, values, not_values };
    vec![
        part(Subject::Host, &operation.hosts, &operation.not_hosts),
        part(Subject::Method, &operation.methods, &operation.not_methods),
        part(Subject::Path, &operation.paths, &operation.not_paths),
        part(Subject::Of(Attribute::DestinationPort), &operation.ports, &operation.not_ports),
    ]
}

fn source(source: &Source) -> Vec<Part<'_>> {
    let part = |subject, values, not_values| Part { subject, values, not_values };
    let of = Subject::Of;
    vec![
        part(of(Attribute::SourcePrincipal), &source.principals, &source.not_principals),
        part(of(Attribute::RequestPrincipal), &source.request_principals, &source.not_request_principals),
        part(of(Attribute::SourceNamespace), &source.namespaces, &source.not_namespaces),
        part(of(Attribute::SourceServiceAccount), &source.service_accounts, &source.not_service_accounts),
        part(of(Attribute::SourceTrustDomain), &source.trust_domains, &source.not_trust_domains),
        part(of(Attribute::RemoteIp), &source.remote_ip_blocks, &source.not_remote_ip_blocks),
        part(of(Attribute::SourceIp), &source.ip_blocks, &source.not_ip_blocks),
    ]
}

impl Subject<'_> {
    fn is_http_only(self) -> bool {
        match self {
            Self::Host | Self::Method | Self::Path => true,
            Self::Of(attribute) => attribute.is_http_only(),
        }
    }

    fn words(self) -> &'static Words {
        match self {
            Self::Host | Self::Method | Self::Path => &PERMISSION,
            Self::Of(
                Attribute::DestinationIp
                | Attribute::DestinationPort
                | Attribute::ServerName
                | Attribute::FilterMetadata(..),
            ) => &PERMISSION,
            _ => &PRINCIPAL,
        }
    }
}

impl Part<'_> {
    /// The matchers that must all hold. None: see [`policy`].
    fn render(&self, scope: &Scope<'_>) -> Option<Vec<Value>> {
        if self.values.is_empty() && self.not_values.is_empty() {
            return Some(Vec::new());
        }
        if scope.tcp && self.subject.is_http_only() {
            return (scope.action != AuthorizationAction::Allow).then(Vec::new);
        }
        let words = self.subject.words();
        let mut matchers = Vec::new();
        if !self.values.is_empty() {
            matchers.push(words.one(self.each(self.values, scope)));
        }
        if !self.not_values.is_empty() {
            matchers.push(words.none(self.each(self.not_values, scope)));
        }
        Some(matchers)
    }

    /// Matchers of which one must hold.
    fn each(&self, values: &[String], scope: &Scope<'_>) -> Vec<Value> {
        let map = |make: &dyn Fn(&str) -> Value| values.iter().map(|value| make(value)).collect();
        match self.subject {
            Subject::Host => map(&|v| json!({"header": matchers::header(":authority", v, true)})),
            Subject::Method => map(&|v| json!({"header": matchers::header(":method", v, false)})),
            Subject::Path => map(&matchers::path),
            Subject::Of(attribute) => match attribute {
                Attribute::Header(name) => map(&|v| json!({"header": matchers::header(name, v, false)})),
                Attribute::SourceIp => map(&|v| json!({"direct_remote_ip": matchers::cidr(v)})),
                Attribute::RemoteIp => map(&|v| json!({"remote_ip": matchers::cidr(v)})),
                Attribute::SourceNamespace => map(&|v| {
                    let regex = format!(".*/ns/{}/.*", v.replace('*', ".*"));
                    matchers::authenticated(&matchers::regex(&regex))
                }),
                Attribute::SourcePrincipal => matchers::with_aliases(values, scope.trust_domains)
                    .iter()
                    .map(|v| matchers::authenticated(&matchers::text_after("spiffe://", v)))
                    .collect(),
                Attribute::SourceServiceAccount => map(&|v| {
                    let (namespace, account) = v.split_once('/').unwrap_or((scope.namespace, v));
                    let [namespace, account] = [namespace, account].map(matchers::escaped);
                    let regex = format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?");
                    matchers::authenticated(&matchers::regex(&regex))
                }),
                Attribute::SourceTrustDomain => {
                    let domains = matchers::expanded(values, scope.trust_domains);
                    domains.iter().map(|d| matchers::authenticated(&matchers::trust_domain(d))).collect()
                }
                Attribute::RequestPrincipal => map(&matchers::request_principal),
                Attribute::Audiences => vec![matchers::claim(&["aud"], values)],
                Attribute::Presenter => vec![matchers::claim(&["azp"], values)],
                Attribute::Claims(names) => {
                    vec![matchers::claim(&names.split("][").collect::<Vec<_>>(), values)]
                }
                Attribute::DestinationIp => map(&|v| json!({"destination_ip": matchers::cidr(v)})),
                Attribute::DestinationPort => {
                    map(&|v| json!({"destination_port": v.parse::<u16>().unwrap_or_default()}))
                }
                Attribute::ServerName => map(&|v| json!({"requested_server_name": matchers::text(v)})),
                Attribute::FilterMetadata(filter, key) => {
                    vec![json!({"metadata": matchers::filter_metadata(filter, key, values)})]
                }
            },
        }
    }
}
