//! AuthorizationPolicies as RBAC filters: one filter for each action, in the order in which they have a say: AUDIT, DENY,
//! ALLOW. A policy that is only tried (`istio.io/dry-run`) is among the filter's shadow rules. CUSTOM policies have filters of
//! their own ([`custom`]).

pub(super) mod custom;
mod matchers;
mod rule;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use self::rule::Scope;
use super::ProxyNode;
use crate::model::authorization_policy::{AuthorizationAction, AuthorizationPolicy};
use crate::model::{Object, World};

/// The actions that are decided here, in the order of their filters.
const DECIDED: [AuthorizationAction; 3] =
    [AuthorizationAction::Audit, AuthorizationAction::Deny, AuthorizationAction::Allow];

/// The filters of a connection manager.
pub(super) fn http_filters(world: &World, node: &ProxyNode) -> Vec<Value> {
    let filter = |rules: Rules| {
        let mut config = rules.config();
        config["@type"] = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC".into();
        json!({"name": "envoy.filters.http.rbac", "typed_config": config})
    };
    filters(world, node, false).map(filter).collect()
}

/// The filters of a TCP chain.
pub(super) fn network_filters(world: &World, node: &ProxyNode) -> Vec<Value> {
    let filter = |rules: Rules| {
        let mut config = rules.config();
        config["@type"] = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC".into();
        config["stat_prefix"] = "tcp.".into();
        json!({"name": "envoy.filters.network.rbac", "typed_config": config})
    };
    filters(world, node, true).map(filter).collect()
}

/// What a filter enforces, and what it only tries.
struct Rules {
    action: AuthorizationAction,
    enforced: Option<Map<String, Value>>,
    tried: Option<Map<String, Value>>,
}

impl Rules {
    fn config(self) -> Value {
        let (name, prefix) = match self.action {
            AuthorizationAction::Allow => ("ALLOW", "istio_dry_run_allow_"),
            AuthorizationAction::Deny | AuthorizationAction::Custom => ("DENY", "istio_dry_run_deny_"),
            AuthorizationAction::Audit => ("LOG", ""),
        };
        let mut config = json!({});
        if let Some(policies) = self.enforced {
            config["rules"] = json!({"action": name, "policies": policies});
        }
        if let Some(policies) = self.tried {
            config["shadow_rules"] = json!({"action": name, "policies": policies});
            config["shadow_rules_stat_prefix"] = prefix.into();
        }
        config
    }
}

fn filters<'a>(world: &'a World, node: &'a ProxyNode, tcp: bool) -> impl Iterator<Item = Rules> + 'a {
    let labels = node.selected_by(world);
    DECIDED.into_iter().filter_map(move |action| {
        let policies = world.authorization_policies(&node.namespace, labels, node.name(world), action);
        if policies.is_empty() {
            return None;
        }
        let trust_domains = trust_domains(world);
        let mut rules = Rules { action, enforced: None, tried: None };
        for policy in policies {
            let target = if policy.is_tried() { &mut rules.tried } else { &mut rules.enforced };
            // A filter with rules of which none is left allows nobody.
            let target = target.get_or_insert_default();
            let namespace = policy.meta.namespace.as_str();
            let scope = Scope { namespace, trust_domains: &trust_domains, tcp, action };
            collect(policy, &scope, "", target);
        }
        Some(rules)
    })
}

/// The mesh's trust domain, then its aliases.
fn trust_domains(world: &World) -> Vec<&str> {
    let mesh = world.mesh();
    let aliases = mesh.trust_domain_aliases.iter().map(String::as_str);
    std::iter::once(mesh.trust_domain.as_str()).chain(aliases).collect()
}

/// Puts a policy's rules among others, under names that begin with `prefix`.
fn collect(
    policy: &Arc<Object<AuthorizationPolicy>>,
    scope: &Scope<'_>,
    prefix: &str,
    into: &mut Map<String, Value>,
) {
    let meta = &policy.meta;
    let name = |index: usize| format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", meta.namespace, meta.name);
    if policy.spec.rules.is_empty() {
        into.insert(name(0), rule::never());
    }
    for (index, one) in policy.spec.rules.iter().enumerate() {
        if let Some(made) = rule::policy(one, scope) {
            into.insert(name(index), made);
        }
    }
}
