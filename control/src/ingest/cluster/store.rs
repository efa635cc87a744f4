//! Every object as it was last good, and what there is to say about it as it is now.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;

use super::super::diagnostic::Diagnostic;
use super::super::discovery;
use super::super::document::{Collector, Skipped};
use super::super::gateway_api::{self, Plan, Refused, Standing, Standings};
use super::super::support;
use super::super::tree::Node;
use super::super::validate;
use super::kinds::Kind;
use super::places::{Name, Places};
use super::shapes::{NodeShape, PodShape, SliceShape};
use crate::model::gateway_api::CONTROLLER;
use crate::model::networks::NETWORK_LABEL;
use crate::model::workload_group::{GROUP_ANNOTATION, HEALTH_ANNOTATION, HEALTHY};
use crate::model::{Objects, World};

/// An object as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) kind: &'static Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The whole object; none if it is gone.
    pub(super) json: Option<Value>,
}

/// What is to be said of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its `metadata.generation`, to which this holds.
    pub generation: Option<i64>,
    /// The version in which it was read.
    pub api_version: String,
    /// Errors and warnings.
    pub findings: Vec<Diagnostic>,
    /// It has errors, and an earlier version of it is in force.
    pub earlier: bool,
    /// Its status, as it was seen last.
    pub status: Value,
    /// The `metadata.resourceVersion` with which it was seen last.
    pub resource_version: String,
    /// How it stands, for kinds of the Gateway API; its findings are in there.
    pub standing: Option<Standing>,
}

/// Verdicts on all objects of kinds that a CustomResourceDefinition brings: by kind, namespace and name.
pub type Verdicts = BTreeMap<(&'static str, String, String), Verdict>;

#[derive(Debug, Default)]
struct Fragment {
    /// What it says, or said when it was last right.
    good: Option<Objects>,
    /// What is wrong with it now.
    findings: Vec<Diagnostic>,
    skipped: Vec<Skipped>,
    generation: Option<i64>,
    api_version: String,
    status: Value,
    resource_version: String,
    /// Its `metadata.uid`, by which others name it as their owner.
    uid: String,
    /// Of all of it but the status.
    hash: u64,
    /// A workload has entered itself so.
    registered: bool,
    /// What it refers to, where it is of the Gateway API and refused: who is ours to tell.
    refused: Option<Refused>,
}

impl Fragment {
    fn has_errors(&self) -> bool {
        self.findings.iter().any(Diagnostic::is_error)
    }
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Store {
    fragments: BTreeMap<(&'static str, Name), Fragment>,
    places: Places,
    /// What has been said of an object since it changed last: nothing is reported twice.
    reported: BTreeSet<Diagnostic>,
    /// The last state, of which the next one keeps what did not change.
    world: World,
}

/// A state of the mesh.
pub(super) struct Built {
    pub(super) world: World,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Those that are new since the last time.
    pub(super) news: Vec<Diagnostic>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) verdicts: Verdicts,
    pub(super) gateways: Plan,
}

impl Store {
    /// Whether an object was there already.
    pub(super) fn knows(&self, raw: &Raw) -> bool {
        let name = (raw.namespace.clone(), raw.name.clone());
        match raw.kind.kind {
            "Pod" | "Node" | "EndpointSlice" => self.places.knows(raw.kind.kind, &name),
            _ => self.fragments.contains_key(&(raw.kind.id(), name)),
        }
    }

    /// Takes an object as it is now. Whether that may change anything.
    pub(super) fn take(&mut self, raw: Raw) -> bool {
        let name = (raw.namespace, raw.name);
        match raw.kind.kind {
            "Pod" => self.places.pod(name, raw.json.and_then(shape::<PodShape>)),
            "Node" => self.places.node(&name.1, raw.json.and_then(shape::<NodeShape>)),
            "EndpointSlice" => self.places.slice(name, raw.json.and_then(shape::<SliceShape>)),
            _ => {
                let kind = raw.kind;
                if kind.kind == "Service" {
                    self.places.service(name.clone());
                }
                match raw.json {
                    None => self.fragments.remove(&(kind.id(), name)).is_some(),
                    Some(json) => self.object(kind, name, json),
                }
            }
        }
    }

    fn object(&mut self, kind: &'static Kind, name: Name, mut json: Value) -> bool {
        let status = json.as_object_mut().and_then(|object| object.remove("status")).unwrap_or_default();
        // It changes with each status, and says nothing else.
        let version =
            json["metadata"].as_object_mut().and_then(|metadata| metadata.remove("resourceVersion"));
        let version = version.and_then(|version| version.as_str().map(str::to_owned)).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        let unhealthy = is_unhealthy(kind, &json, &status);
        // Where load balancers take connections for a Service is part of what it says.
        if kind.kind == "Service" && !status["loadBalancer"]["ingress"].is_null() {
            json["status"] =
                serde_json::json!({"loadBalancer": {"ingress": status["loadBalancer"]["ingress"]}});
        }
        // And where others have found room for a network's gateway.
        let gateway = kind.kind == "Gateway" && kind.is_gateway_api();
        if gateway && json["metadata"]["labels"][NETWORK_LABEL].is_string() && !status["addresses"].is_null()
        {
            json["status"] = serde_json::json!({"addresses": status["addresses"]});
        }
        // What another controller's class says beside whose it is, is not for us to judge.
        let controller = json["spec"]["controllerName"].as_str();
        if kind.kind == "GatewayClass"
            && let Some(other) = controller.filter(|controller| *controller != CONTROLLER)
        {
            json["spec"] = serde_json::json!({"controllerName": other});
        }
        (json.to_string(), unhealthy).hash(&mut hasher);
        let hash = hasher.finish();
        let generation = json["metadata"]["generation"].as_i64();
        let uid = json["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let registered = !json["metadata"]["annotations"][GROUP_ANNOTATION].is_null();
        let api_version = json["apiVersion"].as_str().unwrap_or_default().to_owned();
        if let Some(known) = self.fragments.get_mut(&(kind.id(), name.clone()))
            && known.hash == hash
        {
            // Statuses of routes are several controllers': what others have written must not be overwritten.
            let told = kind.is_gateway_api() && known.status != status;
            // Other control planes follow what the leader has decided.
            let decided = kind.kind == "TrafficManagement" && known.status["canary"] != status["canary"];
            (known.status, known.resource_version) = (status, version);
            return told || decided;
        }
        let refused = kind.is_gateway_api().then(|| Refused::read(&json["spec"]));
        let Collector { mut objects, diagnostics, skipped, .. } = read(json);
        for entry in objects.workload_entries.iter_mut().filter(|_| unhealthy) {
            let entry = Arc::make_mut(entry);
            entry.spec.unhealthy = true;
            entry.meta.version = entry.meta.version.rotate_left(7);
        }
        let wrong = diagnostics.iter().any(Diagnostic::is_error);
        let fragment = self.fragments.entry((kind.id(), name)).or_default();
        if !wrong {
            fragment.good = Some(objects);
        }
        fragment.refused = refused.filter(|_| wrong);
        if let (Some(refused), Some(good)) = (&fragment.refused, &mut fragment.good) {
            refused.claim(good);
        }
        // Anew only: an object is seen again whenever anything of it changes.
        let known = &fragment.findings;
        diagnostics
            .iter()
            .filter(|d| d.is_error() && !known.contains(d))
            .for_each(crate::ingest::watch::tell);
        fragment.findings = diagnostics;
        fragment.skipped = skipped;
        fragment.registered = registered;
        (fragment.generation, fragment.api_version) = (generation, api_version);
        (fragment.status, fragment.hash, fragment.resource_version) = (status, hash, version);
        fragment.uid = uid;
        true
    }

    /// Forgets everything of a kind that is not among `names`: it went while nobody watched.
    pub(super) fn keep(&mut self, kind: &'static Kind, names: &HashSet<Name>) -> bool {
        let known: Vec<Name> = match kind.kind {
            "Pod" | "Node" | "EndpointSlice" => self.places.names(kind.kind),
            _ => {
                let of = kind.id();
                self.fragments.keys().filter(|(kind, _)| *kind == of).map(|(_, name)| name.clone()).collect()
            }
        };
        let gone: Vec<_> = known.into_iter().filter(|name| !names.contains(name)).collect();
        let mut changed = false;
        for (namespace, name) in gone {
            changed |= self.take(Raw { kind, namespace, name, json: None });
        }
        changed
    }

    /// Whether somebody takes requests no more, since this was asked last.
    pub(super) fn lost(&mut self) -> bool {
        self.places.lost()
    }

    /// Why the mesh's own settings cannot be taken, where they never could be.
    pub(super) fn mesh_refused(&self) -> Option<String> {
        let wrong = self.fragments.iter().find(|((kind, _), fragment)| {
            *kind == "ConfigMap" && fragment.good.is_none() && fragment.has_errors()
        });
        let errors = wrong?.1.findings.iter().filter(|finding| finding.is_error());
        Some(errors.map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// All objects that are good, and what is to be said of them together.
    pub(super) fn objects(&mut self) -> (Objects, Standings, Vec<Diagnostic>) {
        let mut objects = self.gathered(None);
        let (standings, across) = settle(&mut objects);
        (objects, standings, across)
    }

    /// The state that was made last.
    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// All objects that are good, as they are written; one of them may be given otherwise than it is.
    pub(super) fn gathered(&mut self, instead: Option<(&'static Kind, &Name, &Objects)>) -> Objects {
        let mut objects = Objects::default();
        let replaced = |(kind, name): &(&'static str, Name)| {
            instead.is_some_and(|(its, called, _)| its.id() == *kind && called == name)
        };
        for (_, fragment) in self.fragments.iter().filter(|(key, _)| !replaced(key)) {
            if let Some(good) = &fragment.good {
                objects.absorb(good);
            }
        }
        if let Some((.., new)) = instead {
            objects.absorb(new);
        }
        let v6: HashSet<Name> = objects
            .services
            .iter()
            .filter(|service| service.spec.cluster_ip.contains(':'))
            .map(|service| (service.meta.namespace.clone(), service.meta.name.clone()))
            .collect();
        objects.pods = self.places.pods();
        objects.nodes = self.places.nodes();
        objects.backends = Some(self.places.backends(|service| v6.contains(service)));
        objects
    }

    /// The state of the mesh that follows.
    pub(super) fn build(&mut self) -> Built {
        let (objects, standings, mut across) = self.objects();
        let secrets = named_secrets(&objects);
        let gateways = self.gateways(&objects);
        let world = self.world.next(objects);
        self.world = world.clone();
        across.append(&mut validate::whole(&world));
        across.append(&mut validate::secrets_of_gateways(&world));
        let mut verdicts = Verdicts::new();
        let mut diagnostics = Vec::new();
        for ((kind, name), fragment) in &self.fragments {
            // Most Secrets are nobody's business here, whatever they hold.
            if *kind == "Secret" && !secrets.contains(&name.1) {
                continue;
            }
            let label = label(kind, name);
            let more = across.iter().filter(|finding| finding.object.as_deref() == Some(label.as_str()));
            let findings: Vec<_> = fragment.findings.iter().chain(more).cloned().collect();
            diagnostics.extend(findings.iter().cloned());
            let Some(defined) = super::kinds::DEFINED.iter().find(|defined| defined.id() == *kind) else {
                continue;
            };
            let mut standing = None;
            if defined.is_gateway_api() {
                standing = gateway_standing(defined, name, fragment, &standings);
            }
            // The status of an entry that the control plane wrote says how the workload is.
            if standing.is_some() || !(defined.is_gateway_api() || fragment.registered) {
                let verdict = Verdict {
                    generation: fragment.generation,
                    api_version: fragment.api_version.clone(),
                    findings,
                    earlier: fragment.has_errors() && fragment.good.is_some(),
                    status: fragment.status.clone(),
                    resource_version: fragment.resource_version.clone(),
                    standing,
                };
                verdicts.insert((*kind, name.0.clone(), name.1.clone()), verdict);
            }
        }
        diagnostics.sort();
        diagnostics.dedup();
        let now: BTreeSet<_> = diagnostics.iter().cloned().collect();
        let news = diagnostics.iter().filter(|finding| !self.reported.contains(finding)).cloned().collect();
        self.reported = now;
        let skipped = self.fragments.iter().filter(|((kind, _), _)| *kind != "Secret");
        let skipped = skipped.flat_map(|(_, fragment)| fragment.skipped.iter().cloned()).collect();
        Built { world, diagnostics, news, skipped, verdicts, gateways }
    }

    /// What is to be done for Gateways, each with its owner.
    fn gateways(&self, objects: &Objects) -> Plan {
        let mut plan = gateway_api::plan(objects);
        let owner = |namespace: &str, gateway: &str| {
            let name = (namespace.to_owned(), gateway.to_owned());
            let of =
                super::kinds::DEFINED.iter().filter(|kind| kind.is_gateway_api() && kind.kind == "Gateway");
            let fragment = of.filter_map(|kind| self.fragments.get(&(kind.id(), name.clone()))).next();
            fragment.map(|fragment| fragment.uid.clone()).unwrap_or_default()
        };
        plan.wanted.iter_mut().for_each(|one| one.owner = owner(&one.namespace, &one.gateway));
        plan.spare.iter_mut().for_each(|one| one.owner = owner(&one.namespace, &one.gateway));
        plan.wanted.retain(|one| !one.owner.is_empty());
        plan.spare.retain(|one| !one.owner.is_empty());
        plan
    }
}

/// What an object is called in findings.
pub(super) fn label(kind: &str, (namespace, name): &Name) -> String {
    let place = if namespace.is_empty() { "default" } else { namespace };
    format!("{kind} {place}/{name}")
}

/// What an object says, and what is wrong with it by itself.
pub(super) fn read(json: Value) -> Collector {
    let mut collector = Collector::default();
    collector.take(&super::SOURCE.into(), &Node::from(json));
    if let Some(certificate) = collector.objects.acme_certificates.pop() {
        // Each replica would order it for itself, and the server's questions reach the gateways of all.
        let reason = "certificates of ACME servers are for a control plane that reads a directory: several replicas would \
                      each order them";
        let help = "have cert-manager order it into a Secret, and name that in the Gateway's credentialName";
        collector.diagnostics.push(Diagnostic {
            object: Some(certificate.meta.key().to_string()),
            ..Diagnostic::file_error(super::SOURCE, reason, help)
        });
    }
    collector
}

/// Leaves out what is not to be known, brings what the Gateway API's kinds say into Istio's, and leaves out what contradicts other objects.
pub(super) fn settle(objects: &mut Objects) -> (Standings, Vec<Diagnostic>) {
    let mut across = Vec::new();
    discovery::narrow(objects, &mut across);
    let standings = gateway_api::convert(objects, &mut across);
    across.extend(leave_out(objects));
    (standings, across)
}

/// Whether a workload is to report that it is well, and does not.
fn is_unhealthy(kind: &Kind, json: &Value, status: &Value) -> bool {
    let reports = || json["metadata"]["annotations"][HEALTH_ANNOTATION] == "true";
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    kind.kind == "WorkloadEntry"
        && reports()
        && !conditions.any(|condition| condition["type"] == HEALTHY && condition["status"] == "True")
}

/// How an object of the Gateway API stands; none if it is for other controllers.
fn gateway_standing(
    kind: &Kind,
    name: &Name,
    fragment: &Fragment,
    standings: &Standings,
) -> Option<Standing> {
    let support::Class::Known(of) = support::classify(&fragment.api_version, kind.kind) else { return None };
    let found = standings.get(&gateway_api::key(of, &name.0, &name.1));
    if let Some(refused) = &fragment.refused {
        let errors = fragment.findings.iter().filter(|finding| finding.is_error());
        let message = errors.map(gateway_api::said).collect::<Vec<_>>().join("\n");
        return refused.standing(of, &name.0, found, standings, &message);
    }
    // A route that is nobody's any more may still say that it was ours.
    let told =
        || fragment.status["parents"].as_array().is_some_and(|all| all.iter().any(gateway_api::is_ours));
    found.filter(|found| !matches!(found, Standing::Route(parents) if parents.is_empty()) || told()).cloned()
}

/// What contradicts other objects is left out, until it does not any more; what is to be said of that, and warnings.
fn leave_out(objects: &mut Objects) -> Vec<Diagnostic> {
    let mut all: Vec<Diagnostic> = Vec::new();
    loop {
        let mut found = Vec::new();
        validate::across(objects, &mut found);
        let bad: BTreeSet<String> =
            found.iter().filter(|d| d.is_error()).filter_map(|d| d.object.clone()).collect();
        all.retain(Diagnostic::is_error);
        all.append(&mut found);
        if bad.is_empty() {
            return all;
        }
        let stays = |meta: &crate::model::Meta| !bad.contains(&meta.key().to_string());
        let count = |objects: &Objects| {
            objects.acme_certificates.len()
                + objects.external_credentials.len()
                + objects.service_mesh_configs.len()
        };
        let before = count(objects);
        objects.acme_certificates.retain(|object| stays(&object.meta));
        objects.external_credentials.retain(|object| stays(&object.meta));
        objects.service_mesh_configs.retain(|object| stays(&object.meta));
        if before == count(objects) {
            return all;
        }
    }
}

/// Names of Secrets that other objects mean.
fn named_secrets(objects: &Objects) -> HashSet<String> {
    let mut names = HashSet::new();
    for tls in objects.gateways.iter().flat_map(|g| &g.spec.servers).filter_map(|server| server.tls.as_ref())
    {
        names.extend(tls.credentials().chain([tls.ca_cert_credential_name.as_str()]).map(str::to_owned));
        names.extend(tls.certificates.iter().map(|(_, name)| name.clone()));
    }
    for rule in &objects.destination_rules {
        let subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
        for policy in rule.spec.traffic_policy.iter().chain(subsets) {
            let ports = policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref());
            names.extend(policy.tls.iter().chain(ports).map(|tls| tls.credential_name.clone()));
        }
    }
    names
}

/// What the API server sends of its own kinds fits; if it ever does not, the object is as good as absent.
fn shape<T: serde::de::DeserializeOwned>(json: Value) -> Option<T> {
    serde_json::from_value(json)
        .inspect_err(|error| tracing::error!(%error, "an object of Kubernetes cannot be read: report this"))
        .ok()
}

/// What is to be said of everything, and of which state.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// The generation of the state that follows from it.
    pub generation: u64,
    /// Of each object.
    pub verdicts: Verdicts,
    /// What is to be done for Gateways.
    pub gateways: Plan,
}
