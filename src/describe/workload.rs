//! What holds for one workload.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weft_control::analyze::Message;
use weft_control::model::authorization_policy::AuthorizationAction;
use weft_control::model::{EffectivePeerMode, Workload, World};

use super::{Entry, Named, entries, findings};

/// A workload and what holds for it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView {
    /// `namespace/name`.
    pub workload: String,
    /// Where it was written.
    pub source: String,
    /// Its address.
    pub address: String,
    /// Its SPIFFE identity; none for one without a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It is a gateway's.
    pub gateway: bool,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// The Sidecar that says what it can reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Named>,
    /// AuthorizationPolicies, in the order in which they are asked.
    pub policies: Vec<PolicyView>,
    /// Issuers whose tokens are checked.
    pub issuers: Vec<String>,
    /// Rules for the services that it is part of.
    pub rules: Vec<Named>,
    /// How it is reached from outside the mesh.
    pub entries: Vec<Entry>,
    /// What is probably not meant so.
    pub findings: Vec<Message>,
}

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// The workload's port.
    pub port: u16,
    /// What is spoken.
    pub protocol: String,
    /// The service, and its port.
    pub service: String,
    /// Who may connect: `STRICT`, `PERMISSIVE` or `DISABLE`.
    pub mutual_tls: &'static str,
    /// The PeerAuthentication that says so; the default where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Named>,
}

/// A policy that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `CUSTOM`, `DENY`, `ALLOW` or `AUDIT`.
    pub action: &'static str,
    /// The policy.
    pub policy: Named,
    /// It is only tried: it decides nothing.
    pub dry_run: bool,
}

/// In the order in which they are asked.
const ACTIONS: [(AuthorizationAction, &str); 4] = [
    (AuthorizationAction::Custom, "CUSTOM"),
    (AuthorizationAction::Deny, "DENY"),
    (AuthorizationAction::Allow, "ALLOW"),
    (AuthorizationAction::Audit, "AUDIT"),
];

/// Says what holds for a workload.
pub fn workload(world: &World, workload: &Workload) -> WorkloadView {
    let (meta, labels) = (&workload.meta, workload.labels());
    let namespace = meta.namespace.as_str();
    let mut objects = vec![meta.key().to_string()];
    let mut ports = Vec::new();
    let (mut rules, mut ways) = (BTreeSet::new(), BTreeSet::new());
    for (service, endpoint) in world.served_at(workload.address()) {
        objects.push(service.meta.key().to_string());
        for port in &service.ports {
            let Some(target) = service.endpoint_port(port, endpoint) else { continue };
            let (mode, by) = world.peer_policy(namespace, labels, Some(target));
            ports.push(PortView {
                port: target,
                protocol: port.protocol.to_string(),
                service: format!("{}:{}", service.hostname, port.number),
                mutual_tls: match mode {
                    EffectivePeerMode::Disable => "DISABLE",
                    EffectivePeerMode::Permissive => "PERMISSIVE",
                    EffectivePeerMode::Strict => "STRICT",
                },
                by: by.map(|policy| Named::of(&policy.meta)),
            });
        }
        let routes = world.virtual_service_for_host(service.namespace(), "mesh", &service.hostname);
        rules.extend(routes.map(|object| Named::of(&object.meta)));
        for rule in world.destination_rules() {
            if weft_control::model::host::covers(&rule.spec.host, &service.hostname) {
                rules.insert(Named::of(&rule.meta));
            }
        }
        ways.extend(entries(world, &service.hostname));
    }
    ports.sort();
    let policies: Vec<_> = ACTIONS
        .iter()
        .flat_map(|(action, name)| {
            let all = world.authorization_policies(namespace, labels, Some(&workload.meta.name), *action);
            all.into_iter().map(|policy| PolicyView {
                action: name,
                policy: Named::of(&policy.meta),
                dry_run: policy.is_tried(),
            })
        })
        .collect();
    objects.extend(policies.iter().map(|policy| policy.policy.object.clone()));
    objects.extend(rules.iter().map(|rule: &Named| rule.object.clone()));
    let trust_domain = &world.mesh().trust_domain;
    WorkloadView {
        workload: format!("{namespace}/{}", meta.name),
        source: meta.source.to_string(),
        address: workload.address().to_owned(),
        identity: workload
            .shows_identity()
            .then(|| format!("spiffe://{trust_domain}/ns/{namespace}/sa/{}", workload.service_account())),
        labels: labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        gateway: workload.is_gateway(),
        ports,
        sidecar: world.sidecar_for(namespace, labels).map(|sidecar| Named::of(&sidecar.meta)),
        policies,
        issuers: world.jwt_rules(namespace, labels).iter().map(|rule| rule.issuer.clone()).collect(),
        rules: rules.into_iter().collect(),
        entries: ways.into_iter().collect(),
        findings: findings(world, &objects),
    }
}
