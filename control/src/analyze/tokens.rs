//! Tokens that are checked and not demanded, and demanded and not checked.

use super::matching::{demands_token, looks_at_token};
use super::scene::{Scene, names};
use super::{Code, Message};
use crate::model::authorization_policy::AuthorizationAction;

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    never_required(scene, found);
    never_verified(scene, found);
    issuers(scene, found);
}

/// How keys are fetched, and for whom tokens must have been issued.
fn issuers(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for authentication in scene.world.request_authentications() {
        for (index, rule) in authentication.spec.jwt_rules.iter().enumerate() {
            let path = format!("spec.jwtRules[{index}]");
            let meta = &authentication.meta;
            if rule.jwks_uri.starts_with("http://") {
                let why = format!(
                    "whoever stands between can put keys of their own into {}, and sign what they like",
                    rule.jwks_uri
                );
                let help = "use https, or write the keys down (jwks)";
                found.push(Message::of(Code::KeysInPlainText, meta, format!("{path}.jwksUri"), why, help));
            }
            if rule.audiences.is_empty() {
                let why = format!(
                    "every token of {:?} is taken, also one that was issued for another service",
                    rule.issuer
                );
                let help = "name whom tokens must be for (audiences)";
                found.push(Message::of(Code::TokenForAnyAudience, meta, path, why, help));
            }
        }
    }
}

fn never_required(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for authentication in scene.world.request_authentications() {
        let selector = authentication.spec.selector.as_ref().map(|selector| &selector.labels);
        let optional: Vec<_> = scene
            .selected(&authentication.meta.namespace, selector)
            .into_iter()
            .filter(|workload| {
                let looks = |action| {
                    let policies = scene.holding(workload, action);
                    policies.iter().any(|policy| policy.spec.rules.iter().any(looks_at_token))
                };
                !looks(AuthorizationAction::Allow)
                    && !looks(AuthorizationAction::Deny)
                    && !looks(AuthorizationAction::Custom)
            })
            .collect();
        if !optional.is_empty() {
            let why = format!(
                "a bad token is refused, and a request without one passes: no AuthorizationPolicy demands a token at {}",
                names(optional)
            );
            let help = "add a DENY policy with notRequestPrincipals: [\"*\"], or an ALLOW policy with requestPrincipals";
            found.push(Message::of(Code::TokenNeverRequired, &authentication.meta, "", why, help));
        }
    }
}

fn never_verified(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for policy in scene.policies() {
        let selector = policy.spec.selector.as_ref().map(|selector| &selector.labels);
        for (index, _) in policy.spec.rules.iter().enumerate().filter(|(_, rule)| demands_token(rule)) {
            let unverified: Vec<_> = scene
                .selected(&policy.meta.namespace, selector)
                .into_iter()
                .filter(|w| scene.world.jwt_rules(&w.meta.namespace, w.labels()).is_empty())
                .collect();
            if !unverified.is_empty() {
                let why = format!(
                    "no RequestAuthentication holds for {}, so no token is verified there: the rule never matches",
                    names(unverified)
                );
                let help = "add a RequestAuthentication with the token's issuer and the same selector";
                let path = format!("spec.rules[{index}]");
                found.push(Message::of(Code::TokenNeverVerified, &policy.meta, path, why, help));
            }
        }
    }
}
