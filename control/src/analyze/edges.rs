//! ALLOW policies that make everything else denied: whom that cuts off.

use std::collections::BTreeSet;

use super::matching::{Fits, fits};
use super::scene::{Edge, Scene, few};
use super::{Code, Message};
use crate::model::authorization_policy::{AuthorizationAction, AuthorizationRule};
use crate::model::{AuthorizationPolicy, Object};

/// As many edges as a message names.
const NAMED: usize = 12;

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for policy in scene.policies().filter(|p| p.spec.action == AuthorizationAction::Allow) {
        let selector = policy.spec.selector.as_ref().map(|selector| &selector.labels);
        let selected = scene.selected(&policy.meta.namespace, selector);
        // A policy without rules says so: it is there to deny everything.
        if selected.is_empty() || policy.spec.rules.is_empty() {
            continue;
        }
        let (mut broken, mut with_token, mut in_part) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for edge in &scene.edges {
            if !selected.iter().any(|workload| workload.meta.key() == edge.to.meta.key()) {
                continue;
            }
            match admitted(scene, edge) {
                Fits::No => drop(broken.insert(edge.words())),
                Fits::WithToken => drop(with_token.insert(edge.words())),
                Fits::InPart => drop(in_part.insert(edge.words())),
                Fits::Maybe => {}
            }
        }
        let wide = selector.is_none_or(|selector| selector.is_empty());
        let narrow_rules = policy.spec.rules.iter().all(is_narrow);
        if broken.is_empty() && !(wide && narrow_rules && selected.len() > 1) {
            continue;
        }
        found.push(message(policy, selected.len(), wide, &broken, &with_token, &in_part));
    }
}

fn message(
    policy: &Object<AuthorizationPolicy>,
    workloads: usize,
    wide: bool,
    broken: &BTreeSet<String>,
    with_token: &BTreeSet<String>,
    in_part: &BTreeSet<String>,
) -> Message {
    let of = match workloads {
        1 => "one workload".to_owned(),
        n => format!("{n} workloads"),
    };
    let wide = if wide { ", because it has no selector," } else { "" };
    let mut why = format!(
        "this ALLOW policy{wide} turns default-allow into default-deny for {of}: what no rule allows is denied"
    );
    if !broken.is_empty() {
        let mut named: Vec<_> = broken.iter().take(NAMED).cloned().collect();
        if broken.len() > NAMED {
            named.push(format!("and {} more", broken.len() - NAMED));
        }
        why += &format!("; it breaks {}", named.join(", "));
    }
    if !with_token.is_empty() {
        why += &format!("; only with a token passes {}", few(with_token.iter().cloned()));
    }
    if !in_part.is_empty() {
        why += &format!(
            "; but for the methods and paths that rules name, it breaks {}",
            few(in_part.iter().cloned())
        );
    }
    let help = "select the workloads that are meant, or allow what else is called; weft authz check says what becomes of one request";
    Message::of(Code::DefaultDeny, &policy.meta, "", why, help)
}

/// Whether some ALLOW policy of the callee could let an edge's requests pass.
fn admitted(scene: &Scene<'_>, edge: &Edge<'_>) -> Fits {
    let policies = scene.holding(edge.to, AuthorizationAction::Allow);
    let fit = policies.iter().flat_map(|policy| {
        policy.spec.rules.iter().map(|rule| fits(scene.world, &policy.meta.namespace, rule, edge))
    });
    fit.max().unwrap_or(Fits::No)
}

/// Whether a rule is about few things: one that allows whole namespaces to do anything is meant for many workloads.
fn is_narrow(rule: &AuthorizationRule) -> bool {
    let operations = rule.to.iter().filter_map(|to| to.operation.as_ref());
    let mut specific =
        operations.map(|o| !o.paths.is_empty() || !o.methods.is_empty() || !o.ports.is_empty());
    specific.any(|specific| specific)
}
