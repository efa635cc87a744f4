//! Whether a rule could let a caller in: what is not known of a request is taken to fit, so that a no is certain.

use super::scene::Edge;
use crate::model::World;
use crate::model::authorization_policy::{Attribute, AuthorizationRule, Source};

/// Whether a rule could let an edge's requests pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fits {
    /// Whatever the request is.
    No,
    /// If it shows a token.
    WithToken,
    /// As far as the rule names methods or paths, and nothing is known of the request's.
    InPart,
    /// It may.
    Maybe,
}

/// A text that a pattern of Istio's matches: whole, open at one end, or `*` for any.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match (pattern, pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        ("*", _, _) => !text.is_empty(),
        (_, Some(end), _) => text.ends_with(end),
        (_, _, Some(beginning)) => text.starts_with(beginning),
        _ => pattern == text,
    }
}

/// Whether a rule of a policy of this namespace could let an edge's requests pass.
pub(super) fn fits(world: &World, namespace: &str, rule: &AuthorizationRule, edge: &Edge<'_>) -> Fits {
    let operations = operations(rule, edge);
    let identity = Identity::of(world, edge);
    let conditions = rule.when.iter().map(|condition| {
        let of = |texts: &dyn Fn(&str) -> bool| {
            let wanted = condition.values.is_empty() || condition.values.iter().any(|v| texts(v));
            if wanted && !condition.not_values.iter().any(|v| texts(v)) { Fits::Maybe } else { Fits::No }
        };
        match Attribute::parse(&condition.key) {
            Ok(Attribute::SourcePrincipal) => of(&|v| identity.is(v)),
            Ok(Attribute::SourceServiceAccount) => of(&|v| identity.is_account(v, namespace)),
            Ok(Attribute::SourceTrustDomain) => of(&|v| identity.is_in_domain(v)),
            Ok(Attribute::SourceNamespace) => of(&|v| matches(v, identity.namespace)),
            Ok(Attribute::DestinationPort) => of(&|v| v == edge.port.to_string()),
            Ok(
                Attribute::RequestPrincipal
                | Attribute::Audiences
                | Attribute::Presenter
                | Attribute::Claims(_),
            ) if !condition.values.is_empty() => Fits::WithToken,
            _ => Fits::Maybe,
        }
    });
    let conditions = conditions.min().unwrap_or(Fits::Maybe);
    let sources = rule
        .from
        .iter()
        .map(|from| from.source.as_ref().map_or(Fits::Maybe, |source| identity.fits(source, namespace)));
    sources.max().unwrap_or(Fits::Maybe).min(conditions).min(operations)
}

/// Whether what is asked for could be what the rule is about.
fn operations(rule: &AuthorizationRule, edge: &Edge<'_>) -> Fits {
    let fits = |to: &crate::model::authorization_policy::AuthorizationTo| {
        let Some(operation) = &to.operation else { return Fits::Maybe };
        let port = edge.port.to_string();
        let ports = operation.ports.is_empty() || operation.ports.contains(&port);
        let paths = match &edge.path {
            Some(path) => operation.paths.is_empty() || operation.paths.iter().any(|p| overlap(p, path)),
            None => true,
        };
        if !ports || !paths || operation.not_ports.contains(&port) {
            return Fits::No;
        }
        let named = !operation.paths.is_empty() || !operation.methods.is_empty();
        if edge.path.is_none() && named { Fits::InPart } else { Fits::Maybe }
    };
    if rule.to.is_empty() { Fits::Maybe } else { rule.to.iter().map(fits).max().unwrap_or(Fits::No) }
}

/// Whether some path that begins like this is matched by a pattern.
fn overlap(pattern: &str, beginning: &str) -> bool {
    let fixed = match pattern.find(['*', '{']) {
        Some(0) => return true,
        Some(at) => &pattern[..at],
        None => return pattern.starts_with(beginning),
    };
    fixed.starts_with(beginning) || beginning.starts_with(fixed)
}

/// Whose certificate the caller shows.
struct Identity<'a> {
    world: &'a World,
    namespace: &'a str,
    account: &'a str,
    /// It has a proxy that shows one.
    shown: bool,
}

impl<'a> Identity<'a> {
    fn of(world: &'a World, edge: &'a Edge<'_>) -> Self {
        let from = edge.from;
        Self {
            world,
            namespace: &from.meta.namespace,
            account: from.service_account(),
            shown: from.shows_identity(),
        }
    }

    /// Whether a principal as policies write it means this identity, in any of the mesh's trust domains.
    fn is(&self, pattern: &str) -> bool {
        let mesh = self.world.mesh();
        let path = format!("ns/{}/sa/{}", self.namespace, self.account);
        let mut domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
        // `cluster.local` is every mesh's own, by Istio's custom.
        pattern == format!("cluster.local/{path}")
            || domains.any(|domain| matches(pattern, &format!("{domain}/{path}")))
    }

    /// Whether `ACCOUNT`, in the policy's namespace, or `NAMESPACE/ACCOUNT` means this identity.
    fn is_account(&self, value: &str, namespace: &str) -> bool {
        match value.split_once('/') {
            Some((of, account)) => of == self.namespace && account == self.account,
            None => namespace == self.namespace && value == self.account,
        }
    }

    /// Whether a pattern of trust domains takes the mesh's own.
    fn is_in_domain(&self, value: &str) -> bool {
        let mesh = self.world.mesh();
        matches(value, &mesh.trust_domain) || mesh.trust_domain_aliases.iter().any(|d| matches(value, d))
    }

    fn fits(&self, source: &Source, namespace: &str) -> Fits {
        let account = |value: &String| self.is_account(value, namespace);
        let domain = |value: &String| self.is_in_domain(value);
        let wanted = |list: &[String], is: &dyn Fn(&String) -> bool| {
            list.is_empty() || (self.shown && list.iter().any(is))
        };
        let unwanted = |list: &[String], is: &dyn Fn(&String) -> bool| self.shown && list.iter().any(is);
        let fits = wanted(&source.principals, &|p| self.is(p))
            && wanted(&source.namespaces, &|n| matches(n, self.namespace))
            && wanted(&source.service_accounts, &account)
            && wanted(&source.trust_domains, &domain)
            && !unwanted(&source.not_principals, &|p| self.is(p))
            && !unwanted(&source.not_namespaces, &|n| matches(n, self.namespace))
            && !unwanted(&source.not_service_accounts, &account)
            && !unwanted(&source.not_trust_domains, &domain);
        match (fits, source.request_principals.is_empty()) {
            (false, _) => Fits::No,
            (true, false) => Fits::WithToken,
            (true, true) => Fits::Maybe,
        }
    }
}

/// Whether a rule demands a token.
pub(super) fn demands_token(rule: &AuthorizationRule) -> bool {
    let sources: Vec<_> = rule.from.iter().map(|from| from.source.as_ref()).collect();
    let by_source = !sources.is_empty()
        && sources.iter().all(|source| source.is_some_and(|source| !source.request_principals.is_empty()));
    by_source || rule.when.iter().any(|condition| !condition.values.is_empty() && is_of_token(&condition.key))
}

/// Whether a rule looks at a token at all.
pub(super) fn looks_at_token(rule: &AuthorizationRule) -> bool {
    let sources = rule.from.iter().filter_map(|from| from.source.as_ref());
    let mut by_source =
        sources.map(|s| !s.request_principals.is_empty() || !s.not_request_principals.is_empty());
    by_source.any(|looks| looks) || rule.when.iter().any(|condition| is_of_token(&condition.key))
}

/// Whether an attribute is a token's.
pub(super) fn is_of_token(key: &str) -> bool {
    key.starts_with("request.auth.")
}
