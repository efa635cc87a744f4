//! Rules that never hold, or hold for more or less than they look like.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::matching::demands_token;
use super::scene::{Scene, few, names};
use super::{Code, Message};
use crate::model::authorization_policy::{
    Attribute, AuthorizationAction, AuthorizationRule, Operation, Source,
};
use crate::model::{AuthorizationPolicy, EffectivePeerMode, Object, Protocol, Workload};

type Policy = Object<AuthorizationPolicy>;

/// A rule, where it stands, and for whom it holds.
#[derive(Clone, Copy)]
struct Case<'a> {
    scene: &'a Scene<'a>,
    policy: &'a Policy,
    rule: &'a AuthorizationRule,
    /// Its path in the policy.
    at: &'a str,
    selected: &'a [&'a Arc<Workload>],
}

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for policy in scene.world.all_authorization_policies() {
        let selector = policy.spec.selector.as_ref().map(|selector| &selector.labels);
        let selected = scene.selected(&policy.meta.namespace, selector);
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let at = format!("spec.rules[{index}]");
            let case = Case { scene, policy, rule, at: &at, selected: &selected };
            for check in [bytes, identities, roots, ports, unseen, addresses] {
                check(case, found);
            }
        }
    }
    alternatives(scene, found);
}

fn operations(rule: &AuthorizationRule) -> impl Iterator<Item = (usize, &Operation)> {
    rule.to.iter().enumerate().filter_map(|(index, to)| Some((index, to.operation.as_ref()?)))
}

fn sources(rule: &AuthorizationRule) -> impl Iterator<Item = (usize, &Source)> {
    rule.from.iter().enumerate().filter_map(|(index, from)| Some((index, from.source.as_ref()?)))
}

/// The fields of a rule that only requests have.
fn of_requests(rule: &AuthorizationRule) -> Vec<String> {
    let mut fields = BTreeSet::new();
    for (_, operation) in operations(rule) {
        for (name, list) in [
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
        ] {
            if !list.is_empty() {
                fields.insert(name.to_owned());
            }
        }
    }
    for (_, source) in sources(rule) {
        for (name, list) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
        ] {
            if !list.is_empty() {
                fields.insert(name.to_owned());
            }
        }
    }
    for condition in &rule.when {
        if Attribute::parse(&condition.key).is_ok_and(Attribute::is_http_only) {
            fields.insert(condition.key.clone());
        }
    }
    fields.into_iter().collect()
}

/// The ports that a rule is about; none where it is about all.
fn ports_of(rule: &AuthorizationRule) -> Option<BTreeSet<u16>> {
    if rule.to.is_empty() || operations(rule).any(|(_, operation)| operation.ports.is_empty()) {
        return None;
    }
    Some(operations(rule).flat_map(|(_, o)| &o.ports).filter_map(|port| port.parse().ok()).collect())
}

const fn carries_bytes(protocol: Protocol) -> bool {
    protocol.is_tcp() || protocol.is_tls()
}

/// HTTP's fields where bytes go.
fn bytes(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { scene, policy, rule, at, selected } = case;
    let fields = of_requests(rule);
    if fields.is_empty() {
        return;
    }
    let allows = policy.spec.action == AuthorizationAction::Allow;
    let about = ports_of(rule);
    let mut places = BTreeSet::new();
    for workload in selected {
        let all = scene.ports(workload);
        let mixed = all.iter().any(|(_, protocol)| !carries_bytes(*protocol));
        for (port, _) in all.iter().filter(|(_, protocol)| carries_bytes(*protocol)) {
            let meant = match &about {
                Some(ports) => ports.contains(port),
                // What allows requests to one port of a workload says nothing of its others.
                None => !(mixed && allows),
            };
            if meant {
                places.insert(format!("port {port} of {}/{}", workload.meta.namespace, workload.meta.name));
            }
        }
    }
    if places.is_empty() {
        return;
    }
    let then = match policy.spec.action {
        AuthorizationAction::Allow => "the rule never matches there, and allows nobody",
        AuthorizationAction::Deny => "they are left out there, and the rule denies more than it says",
        AuthorizationAction::Audit => "they are left out there, and the rule notes more than it says",
        AuthorizationAction::Custom => "they are left out there, and the provider is asked about more",
    };
    let why = format!("{} carry bytes, which have no {}: {then}", few(places), fields.join(", "));
    let help = "give bytes a rule of their own by principals, namespaces, addresses and ports, and this one its ports (operation.ports)";
    found.push(Message::of(Code::HttpFieldsOnTcp, &policy.meta, at, why, help));
}

/// Identities that nobody has.
fn identities(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { scene, policy, rule, at, .. } = case;
    let world = scene.world;
    if world.workloads().is_empty() {
        return;
    }
    let mesh = world.mesh();
    let ours = |domain: &str| {
        domain == mesh.trust_domain
            || domain == "cluster.local"
            || mesh.trust_domain_aliases.iter().any(|d| d == domain)
    };
    let known = |namespace: &str, account: &str| {
        // Workloads of a group come and go.
        let may_enter = |namespace: &str, account: &str| {
            let mut groups = world.workload_groups().iter();
            groups.any(|g| g.meta.namespace == namespace && g.spec.template.service_account == account)
        };
        let is = |w: &&Arc<Workload>| w.meta.namespace == namespace && w.service_account() == account;
        world.workloads().iter().any(|w| is(&w)) || may_enter(namespace, account)
    };
    let near = |account: &str| {
        let all = world.workloads().iter().map(|w| format!("{}/{}", w.meta.namespace, w.service_account()));
        let all: Vec<String> = all.collect();
        let same: Vec<String> =
            all.iter().filter(|name| name.ends_with(&format!("/{account}"))).cloned().collect();
        few(if same.is_empty() { all } else { same })
    };
    let mut report = |path: String, written: &str, why: &str, account: &str| {
        let why = format!("{written:?} {why}");
        let help = format!("check the name; workloads have {}", near(account));
        found.push(Message::of(Code::UnknownIdentity, &policy.meta, path, why, help));
    };
    let principal = |value: &str| {
        let parts: Vec<_> = value.split('/').collect();
        match parts.as_slice() {
            _ if value.contains('*') => None,
            [domain, "ns", namespace, "sa", account] => {
                let unknown = ours(domain) && !known(namespace, account);
                unknown.then(|| ("is no workload's identity", (*account).to_owned()))
            }
            _ => Some((
                "is not of the form TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, and matches nobody",
                String::new(),
            )),
        }
    };
    for (index, source) in sources(rule) {
        let at = format!("{at}.from[{index}].source");
        for (name, list) in [("principals", &source.principals), ("notPrincipals", &source.not_principals)] {
            for value in list {
                if let Some((why, account)) = principal(value) {
                    report(format!("{at}.{name}"), value, why, &account);
                }
            }
        }
        for (name, list) in [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ] {
            for value in list {
                let (namespace, account) = value.split_once('/').unwrap_or((&policy.meta.namespace, value));
                if !known(namespace, account) {
                    report(format!("{at}.{name}"), value, "is no workload's service account", account);
                }
            }
        }
        for (name, list) in [("namespaces", &source.namespaces), ("notNamespaces", &source.not_namespaces)] {
            for value in list.iter().filter(|value| !value.contains('*')) {
                if world.workloads().iter().all(|w| w.meta.namespace != *value) {
                    report(format!("{at}.{name}"), value, "is a namespace without workloads", "");
                }
            }
        }
    }
    for (index, condition) in rule.when.iter().enumerate().filter(|(_, c)| c.key == "source.principal") {
        for value in condition.values.iter().chain(&condition.not_values) {
            if let Some((why, account)) = principal(value) {
                report(format!("{at}.when[{index}]"), value, why, &account);
            }
        }
    }
}

/// `/x/*` without `/x`.
fn roots(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { policy, rule, at, .. } = case;
    for (index, operation) in operations(rule) {
        for (name, list, then) in [
            ("paths", &operation.paths, "is not what the rule is about"),
            ("notPaths", &operation.not_paths, "is not left out"),
        ] {
            for path in list {
                let Some(root) =
                    path.strip_suffix("/*").filter(|root| !root.is_empty() && !root.contains(['*', '{']))
                else {
                    continue;
                };
                let covered = |other: &String| {
                    other == root || other.strip_suffix('*').is_some_and(|start| root.starts_with(start))
                };
                if !list.iter().any(covered) {
                    let why = format!("{path:?} begins below {root}: {root} itself {then}");
                    let help = format!("write {root:?} beside it if the collection is meant, too");
                    let path = format!("{at}.to[{index}].operation.{name}");
                    found.push(Message::of(Code::PathWithoutItsRoot, &policy.meta, path, why, help));
                }
            }
        }
    }
}

/// Ports that nobody serves.
fn ports(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { scene, policy, rule, at, selected } = case;
    let sidecars: Vec<_> = selected.iter().filter(|workload| !workload.is_gateway()).collect();
    if sidecars.is_empty() || sidecars.len() < selected.len() {
        return;
    }
    let served: BTreeSet<u16> = sidecars.iter().flat_map(|w| scene.ports(w)).map(|(port, _)| port).collect();
    if served.is_empty() {
        return;
    }
    for (index, operation) in operations(rule) {
        for port in operation.ports.iter().filter_map(|port| port.parse::<u16>().ok()) {
            if served.contains(&port) {
                continue;
            }
            let service = sidecars.iter().find_map(|workload| {
                scene.world.served_at(workload.address()).find_map(|(service, endpoint)| {
                    let target = service.endpoint_port(service.port(port)?, endpoint)?;
                    Some(format!("port {port} of {} is port {target} of its workloads", service.hostname))
                })
            });
            let why = format!("no workload that the policy holds for serves port {port}");
            let ports = few(served.iter().map(|port| format!("{port:>5}"))).replace("  ", " ");
            let help = service.unwrap_or_else(|| {
                format!("write a port of the workload, not of its service: {}", ports.trim())
            });
            let path = format!("{at}.to[{index}].operation.ports");
            found.push(Message::of(Code::PortNotServed, &policy.meta, path, why, help));
        }
    }
}

/// Identities where nobody can show one.
fn unseen(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { scene, policy, rule, at, selected } = case;
    let by_identity = |source: &Source| {
        !source.principals.is_empty()
            || !source.namespaces.is_empty()
            || !source.service_accounts.is_empty()
            || !source.trust_domains.is_empty()
    };
    let asks = sources(rule).any(|(_, source)| by_identity(source))
        || rule.when.iter().any(|c| {
            matches!(c.key.as_str(), "source.principal" | "source.namespace") && !c.values.is_empty()
        });
    if !asks {
        return;
    }
    let about = ports_of(rule);
    let plain = |workload: &&&Arc<Workload>| {
        let ports = scene.ports(workload);
        let mut meant =
            ports.iter().filter(|(port, _)| about.as_ref().is_none_or(|ports| ports.contains(port)));
        let mode = |port: u16| scene.world.peer_mode(&workload.meta.namespace, workload.labels(), Some(port));
        meant.clone().next().is_some() && meant.all(|(port, _)| mode(*port) == EffectivePeerMode::Disable)
    };
    let places: Vec<_> = selected.iter().filter(plain).copied().collect();
    if !places.is_empty() {
        let why = format!(
            "{} take plain text alone (PeerAuthentication DISABLE), in which nobody shows an identity: the rule never matches there",
            names(places)
        );
        let help = "set the mode to STRICT or PERMISSIVE, or go by addresses";
        found.push(Message::of(Code::IdentityNeverSeen, &policy.meta, at, why, help));
    }
}

/// The connection's other end, where that is a load balancer.
fn addresses(case: Case<'_>, found: &mut Vec<Message>) {
    let Case { policy, rule, at, selected, .. } = case;
    let gateways: Vec<_> = selected.iter().filter(|workload| workload.is_gateway()).copied().collect();
    // A policy for everybody means the mesh's own addresses.
    if gateways.is_empty() || gateways.len() < selected.len() {
        return;
    }
    let help = |other: &str| {
        format!(
            "use {other}, and say how many proxies are trusted before the gateway (numTrustedProxies), or let the load balancer speak the PROXY protocol"
        )
    };
    let why = |field: &str| {
        format!(
            "{field} is the other end of the connection to {}: behind a load balancer that is the load balancer, and not the client",
            names(gateways.clone())
        )
    };
    for (index, source) in sources(rule) {
        if !source.ip_blocks.is_empty() || !source.not_ip_blocks.is_empty() {
            let path = format!("{at}.from[{index}].source");
            let message = Message::of(
                Code::DirectAddressAtGateway,
                &policy.meta,
                path,
                why("ipBlocks"),
                help("remoteIpBlocks"),
            );
            found.push(message);
        }
    }
    for (index, _) in rule.when.iter().enumerate().filter(|(_, condition)| condition.key == "source.ip") {
        let path = format!("{at}.when[{index}]");
        found.push(Message::of(
            Code::DirectAddressAtGateway,
            &policy.meta,
            path,
            why("source.ip"),
            help("remote.ip"),
        ));
    }
}

/// ALLOW policies of which one demands a token and another does not.
fn alternatives(scene: &Scene<'_>, found: &mut Vec<Message>) {
    for demanding in scene.policies() {
        let spec = &demanding.spec;
        let demands = spec.action == AuthorizationAction::Allow
            && !spec.rules.is_empty()
            && spec.rules.iter().all(demands_token);
        if !demands {
            continue;
        }
        let selector = spec.selector.as_ref().map(|selector| &selector.labels);
        let (mut others, mut places) = (BTreeSet::new(), Vec::new());
        for workload in scene.selected(&demanding.meta.namespace, selector) {
            let looser = scene.holding(workload, AuthorizationAction::Allow).into_iter().filter(|other| {
                other.meta.key() != demanding.meta.key()
                    && other.spec.rules.iter().any(|rule| !demands_token(rule))
            });
            let looser: Vec<_> =
                looser.map(|other| format!("{} ({})", other.meta.key(), other.meta.source)).collect();
            // A denial for everybody without a token makes both necessary.
            let enforced = scene.holding(workload, AuthorizationAction::Deny).iter().any(|deny| {
                let mut sources = deny.spec.rules.iter().flat_map(sources);
                sources.any(|(_, source)| !source.not_request_principals.is_empty())
            });
            if !looser.is_empty() && !enforced {
                others.extend(looser);
                places.push(workload);
            }
        }
        if !others.is_empty() {
            let why = format!(
                "ALLOW policies are alternatives: at {} whoever {} lets in needs no token, and whoever has one passes this policy alone",
                names(places),
                few(others)
            );
            let help = "to demand both, write one rule with both, or a DENY policy with notRequestPrincipals: [\"*\"]";
            found.push(Message::of(Code::AllowsAreAlternatives, &demanding.meta, "", why, help));
        }
    }
}
