//! What a ServiceMeshConfig stands for: DestinationRules, PeerAuthentications, AuthorizationPolicies and Telemetries, as if they were written
//! beside it. What is written explicitly wins, and the mesh's defaults and the built-in ones come after both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::authorization_policy::{
    AuthorizationAction, AuthorizationFrom, AuthorizationPolicy, AuthorizationRule, AuthorizationTo,
    Operation, Source,
};
use super::destination_rule::{
    ConnectionPool, DestinationRule, HttpPool, LoadBalancer, OutlierDetection, Subset, TcpPool, TrafficPolicy,
};
use super::host::{DEFAULT_DOMAIN, covers, resolve_short, specificity};
use super::meta::{Kind, Meta, Object, ObjectKey};
use super::peer_authentication::{MutualTls, PeerAuthentication, PeerMode};
use super::service_mesh_config::{
    MeshObservability, MeshRule, MeshService, MeshTrafficPolicy, ServiceMeshConfig,
};
use super::severity::Severity;
use super::telemetry::{AccessLogging, Metrics, MetricsOverride, Telemetry, Tracing};
use super::tracing::Share;
use super::traffic_management::{CanaryDeployment, TrafficManagement, VERSION, subset_name};
use super::values::{Labels, WorkloadSelector};
use super::world::Objects;

/// The position of what nobody wrote: after all that somebody did.
pub(super) const MADE: u32 = u32::MAX;

/// Something to be said of a ServiceMeshConfig.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Of which.
    pub of: Arc<Meta>,
    /// The field.
    pub path: String,
    /// How bad it is; what it stands for is information.
    pub severity: Severity,
    /// What is said.
    pub reason: String,
    /// What to do.
    pub help: &'static str,
}

/// The objects with those that ServiceMeshConfigs stand for, and what there is to say about these.
pub fn expand(objects: &Objects) -> (Objects, Vec<Note>) {
    let mut work = Work {
        objects: objects.clone(),
        explicit: objects,
        notes: Vec::new(),
        taken: HashMap::new(),
        accounts: accounts(objects),
    };
    let mut configs = objects.service_mesh_configs.clone();
    configs.sort_by(|a, b| a.meta.precedence(&b.meta));
    for config in &configs {
        let of = Arc::new(config.meta.clone());
        for (index, service) in config.spec.services.iter().enumerate() {
            work.service(config, &of, index, service);
        }
    }
    let mut trials = objects.traffic_managements.clone();
    trials.sort_by(|a, b| a.meta.precedence(&b.meta));
    for object in &trials {
        if let Some(trial) = &object.spec.canary_deployment {
            work.versions(object, trial);
        }
    }
    (work.objects, work.notes)
}

/// Service accounts that workloads have, as `(namespace, account)`.
fn accounts(objects: &Objects) -> BTreeSet<(String, String)> {
    let entries =
        objects.workload_entries.iter().map(|w| (w.meta.namespace.clone(), w.spec.service_account.clone()));
    let pods = objects.pods.iter().map(|pod| {
        let workload = &pod.workload;
        (workload.meta.namespace.clone(), workload.service_account().to_owned())
    });
    let groups = objects.workload_groups.iter();
    let groups = groups.map(|g| (g.meta.namespace.clone(), g.spec.template.service_account.clone()));
    entries.chain(pods).chain(groups).filter(|(_, account)| !account.is_empty()).collect()
}

struct Work<'a> {
    objects: Objects,
    explicit: &'a Objects,
    notes: Vec<Note>,
    /// Which config has a host already.
    taken: HashMap<String, ObjectKey>,
    accounts: BTreeSet<(String, String)>,
}

/// One service of one config, on its way.
struct Item<'a> {
    config: &'a Object<ServiceMeshConfig>,
    of: &'a Arc<Meta>,
    path: String,
    host: String,
    /// What it came to, by kind and name.
    made: Vec<String>,
}

impl Item<'_> {
    /// The metadata of an object that it stands for, and that selects workloads with these labels.
    fn meta(&self, kind: Kind, labels: &Labels) -> Meta {
        let group = match kind {
            Kind::DestinationRule => "networking.istio.io/v1",
            Kind::Telemetry => "telemetry.istio.io/v1",
            _ => "security.istio.io/v1",
        };
        let short = self.host.split('.').next().unwrap_or_default();
        let own = &self.config.meta;
        let mut hasher = DefaultHasher::new();
        (own.version, kind, &self.host, labels).hash(&mut hasher);
        let mut meta = Meta {
            kind,
            api_version: group.to_owned(),
            name: format!("{}-{short}", own.name),
            labels: Labels::new(),
            annotations: Labels::new(),
            // Whatever is written explicitly is older.
            created: None,
            version: hasher.finish(),
            ..own.clone()
        };
        meta.source.position = MADE;
        meta
    }
}

impl Work<'_> {
    fn note(&mut self, item: &Item<'_>, field: &str, severity: Severity, reason: String, help: &'static str) {
        let path = format!("{}{field}", item.path);
        self.notes.push(Note { of: item.of.clone(), path, severity, reason, help });
    }

    fn service(
        &mut self,
        config: &Object<ServiceMeshConfig>,
        of: &Arc<Meta>,
        index: usize,
        service: &MeshService,
    ) {
        let namespace = &config.meta.namespace;
        let host = resolve_short(&service.name, namespace, DEFAULT_DOMAIN);
        let mut item = Item { config, of, path: format!("spec.services[{index}]"), host, made: Vec::new() };
        if let Some(other) = self.taken.get(&item.host).cloned() {
            let reason = format!("{} has {} already, and is older: this has no effect", other, item.host);
            self.note(&item, ".name", Severity::Warning, reason, "keep one of the two");
            return;
        }
        self.taken.insert(item.host.clone(), config.meta.key());
        let selector = self.selector(&item);
        if selector.is_none() {
            let reason = format!("namespace {namespace} has no service {}", item.host);
            self.note(&item, ".name", Severity::Warning, reason, "correct the name, or add the service");
        }
        if let Some(policy) = &service.traffic_policy {
            self.rule(&mut item, policy);
        }
        let selector = selector.flatten().filter(|labels| !labels.is_empty());
        if let Some(policy) = &service.security_policy {
            let mode = policy.mtls_mode.filter(|mode| *mode != PeerMode::Unset);
            let wanted = mode.is_some() || !policy.authorization_rules.is_empty();
            match &selector {
                Some(labels) => {
                    if let Some(mode) = mode {
                        self.mutual(&mut item, labels, mode);
                    }
                    if !policy.authorization_rules.is_empty() {
                        self.authorization(&mut item, labels, &policy.authorization_rules);
                    }
                }
                None if wanted => {
                    let reason =
                        format!("{} selects no workloads by labels: there is nobody to protect", item.host);
                    let help = "name a service with a selector, or write policies for its workloads";
                    self.note(&item, ".securityPolicy", self.strictness(), reason, help);
                }
                None => {}
            }
        }
        if let Some(told) = service.observability.filter(|told| *told != MeshObservability::default()) {
            // Metrics are on wherever nothing else is said.
            let wanted = told.metrics_enabled == Some(false)
                || told.access_logging.is_some()
                || told.tracing_enabled.is_some()
                || told.sampling_rate.is_some();
            match &selector {
                Some(labels) => self.observability(&mut item, labels, &told),
                None if wanted => {
                    let reason =
                        format!("{} selects no workloads by labels: nobody tells anything", item.host);
                    let help = "name a service with a selector, or write a Telemetry for its workloads";
                    self.note(&item, ".observability", self.strictness(), reason, help);
                }
                None => {}
            }
        }
        if !item.made.is_empty() {
            let reason = format!("stands for {}", item.made.join(", "));
            self.note(&item, "", Severity::Info, reason, "");
        }
    }

    /// What is missing refuses a directory as a whole. In a cluster, objects come in any order and pods come and go: what stands
    /// there is kept, and allows nobody more than it says.
    fn strictness(&self) -> Severity {
        if self.explicit.backends.is_some() { Severity::Warning } else { Severity::Error }
    }

    /// The labels of a service's workloads; none if there is no such service, and none within if it has no selector.
    fn selector(&self, item: &Item<'_>) -> Option<Option<Labels>> {
        let namespace = &item.config.meta.namespace;
        let mut services = self.explicit.services.iter().filter(|s| s.meta.namespace == *namespace);
        let full = |name: &str| resolve_short(name, namespace, DEFAULT_DOMAIN);
        if let Some(service) = services.find(|s| full(&s.meta.name) == item.host) {
            return Some(Some(service.spec.selector.clone()));
        }
        let mut entries = self.explicit.service_entries.iter().filter(|e| e.meta.namespace == *namespace);
        let entry = entries.find(|e| e.spec.hosts.iter().any(|h| h.eq_ignore_ascii_case(&item.host)))?;
        Some(entry.spec.workload_selector.as_ref().map(|s| s.labels.clone()))
    }

    /// The traffic policy. Where a DestinationRule is there already, it gets the blocks that it does not have itself.
    fn rule(&mut self, item: &mut Item<'_>, given: &MeshTrafficPolicy) {
        let namespace = &item.config.meta.namespace;
        let own = |rule: &&Arc<Object<DestinationRule>>| {
            rule.meta.namespace == *namespace && rule.spec.workload_selector.is_none()
        };
        let mut explicit: Vec<_> = self
            .explicit
            .destination_rules
            .iter()
            .filter(own)
            .filter(|r| covers(&r.spec.host, &item.host))
            .collect();
        explicit.sort_by(|a, b| a.meta.precedence(&b.meta));
        let exact = |rule: &&&Arc<Object<DestinationRule>>| rule.spec.host.eq_ignore_ascii_case(&item.host);
        let with_policy = explicit.iter().filter(exact).find(|r| r.spec.traffic_policy.is_some());
        let policy = policy_of(given);
        let Some(first) = with_policy.or_else(|| explicit.iter().find(exact)).or(explicit.first()) else {
            let meta = item.meta(Kind::DestinationRule, &Labels::new());
            item.made.push(meta.key().to_string());
            let spec = DestinationRule {
                host: item.host.clone(),
                traffic_policy: Some(policy),
                ..Default::default()
            };
            self.objects.destination_rules.push(Arc::new(Object { meta, spec }));
            return;
        };
        let (key, source) = (first.meta.key(), first.meta.source.clone());
        let help = "what is written explicitly wins; take it out of one of the two";
        if !exact(&first) {
            let reason =
                format!("{key} ({source}) holds for {}: the traffic policy has no effect", item.host);
            self.note(item, ".trafficPolicy", Severity::Warning, reason, help);
            return;
        }
        let mut filled = Object { meta: first.meta.clone(), spec: first.spec.clone() };
        let theirs = filled.spec.traffic_policy.get_or_insert_default();
        let mut added = Vec::new();
        let mut overruled = Vec::new();
        macro_rules! fill {
            ($($block:ident $theirs:literal $ours:literal),*) => { $(
                if let Some(block) = policy.$block {
                    match &theirs.$block {
                        None => {
                            theirs.$block = Some(block);
                            added.push($theirs);
                        }
                        Some(held) if *held != block => overruled.push(($ours, $theirs)),
                        Some(_) => {}
                    }
                }
            )* };
        }
        fill!(
            load_balancer "loadBalancer" "loadBalancer",
            connection_pool "connectionPool" "connectionPool",
            outlier_detection "outlierDetection" "circuitBreaker"
        );
        for (ours, theirs) in overruled {
            let reason = format!("{key} ({source}) has its own {theirs} for {}", item.host);
            self.note(item, &format!(".trafficPolicy.{ours}"), Severity::Warning, reason, help);
        }
        if !added.is_empty() {
            item.made.push(format!("{} of {key}", added.join(" and ")));
            filled.meta.version = filled.meta.version.rotate_left(11) ^ item.config.meta.version;
            let place = self.objects.destination_rules.iter().position(|rule| rule.meta.key() == key);
            if let Some(held) = place.and_then(|place| self.objects.destination_rules.get_mut(place)) {
                *held = Arc::new(filled);
            }
        }
    }

    /// The subsets of a trial's versions, where DestinationRules lack them: those of the service's namespace, and those that clients
    /// have for themselves, of which each goes before the service's.
    fn versions(&mut self, object: &Object<TrafficManagement>, trial: &CanaryDeployment) {
        let rules = &self.objects.destination_rules;
        let mut groups: BTreeMap<(String, Option<Labels>), Vec<usize>> = BTreeMap::new();
        groups.insert((object.meta.namespace.clone(), None), Vec::new());
        for (index, rule) in
            rules.iter().enumerate().filter(|(_, rule)| covers(&rule.spec.host, &trial.service))
        {
            let who =
                (rule.meta.namespace.clone(), rule.spec.workload_selector.as_ref().map(|s| s.labels.clone()));
            groups.entry(who).or_default().push(index);
        }
        for ((namespace, _), mut group) in groups {
            group.sort_by(|a, b| {
                let rules = &self.objects.destination_rules;
                rules[*a].meta.precedence(&rules[*b].meta)
            });
            self.versions_of(object, trial, &namespace, &group);
        }
    }

    /// The same for the rules of one namespace and one selector, in their order of precedence.
    fn versions_of(
        &mut self,
        object: &Object<TrafficManagement>,
        trial: &CanaryDeployment,
        namespace: &str,
        group: &[usize],
    ) {
        let rules = &mut self.objects.destination_rules;
        let exact: Vec<usize> = group
            .iter()
            .copied()
            .filter(|i| rules[*i].spec.host.eq_ignore_ascii_case(&trial.service))
            .collect();
        let missing: Vec<Subset> = [&trial.stable_version, &trial.canary_version]
            .into_iter()
            .filter(|version| {
                let mut subsets = exact.iter().flat_map(|index| &rules[*index].spec.subsets);
                !subsets.any(|subset| subset.labels.get(VERSION) == Some(*version))
            })
            .map(|version| Subset {
                name: subset_name(version),
                labels: [(VERSION.to_owned(), version.clone())].into(),
                traffic_policy: None,
            })
            .collect();
        if missing.is_empty() {
            return;
        }
        if let Some(held) = exact.first().and_then(|index| rules.get_mut(*index)) {
            let mut rule = Object { meta: held.meta.clone(), spec: held.spec.clone() };
            rule.spec.subsets.extend(missing);
            rule.meta.version = rule.meta.version.rotate_left(13) ^ object.meta.version;
            *held = Arc::new(rule);
            return;
        }
        // A rule for this host goes before one for a wildcard, and must say what that says.
        let wide = group
            .iter()
            .max_by_key(|index| specificity(&rules[**index].spec.host))
            .map(|i| rules[*i].clone());
        let mut hasher = DefaultHasher::new();
        (object.meta.version, wide.as_ref().map(|rule| rule.meta.version)).hash(&mut hasher);
        let mut meta = Meta {
            kind: Kind::DestinationRule,
            api_version: "networking.istio.io/v1".to_owned(),
            version: hasher.finish(),
            namespace: namespace.to_owned(),
            annotations: wide.as_ref().map(|rule| rule.meta.annotations.clone()).unwrap_or_default(),
            created: None,
            ..object.meta.clone()
        };
        meta.source.position = MADE;
        let base = wide.map(|rule| rule.spec.clone()).unwrap_or_default();
        let spec = DestinationRule { host: trial.service.clone(), subsets: missing, ..base };
        rules.push(Arc::new(Object { meta, spec }));
    }

    /// What its workloads' proxies tell of the requests that come and go there.
    fn observability(&mut self, item: &mut Item<'_>, labels: &Labels, told: &MeshObservability) {
        let namespace = &item.config.meta.namespace;
        let covering = self.explicit.telemetries.iter().find(|telemetry| {
            telemetry.meta.namespace == *namespace
                && telemetry.spec.selector.as_ref().is_some_and(|s| s.selects(labels))
        });
        if let Some(telemetry) = covering {
            let reason =
                format!("{} ({}) holds for these workloads", telemetry.meta.key(), telemetry.meta.source);
            let help = "what is written explicitly wins; take it out of one of the two";
            self.note(item, ".observability", Severity::Warning, reason, help);
            return;
        }
        let meta = item.meta(Kind::Telemetry, labels);
        item.made.push(meta.key().to_string());
        let metrics = told.metrics_enabled.map(|enabled| Metrics {
            overrides: vec![MetricsOverride { disabled: Some(!enabled), ..Default::default() }],
            ..Default::default()
        });
        let logging =
            told.access_logging.map(|enabled| AccessLogging { disabled: !enabled, ..Default::default() });
        let tracing = (told.tracing_enabled.is_some() || told.sampling_rate.is_some()).then(|| Tracing {
            disable_span_reporting: told.tracing_enabled.map(|enabled| !enabled),
            random_sampling_percentage: told.sampling_rate.map(|rate| Share::of(rate * 100.0)),
            ..Default::default()
        });
        if let Some(rate) = told.sampling_rate {
            item.made
                .push(format!("a samplingRate of {rate}, which is {} %", Share::of(rate * 100.0).percent()));
        }
        let spec = Telemetry {
            selector: Some(WorkloadSelector { labels: labels.clone() }),
            tracing: tracing.into_iter().collect(),
            metrics: metrics.into_iter().collect(),
            access_logging: logging.into_iter().collect(),
            ..Default::default()
        };
        self.objects.telemetries.push(Arc::new(Object { meta, spec }));
    }

    fn mutual(&mut self, item: &mut Item<'_>, labels: &Labels, mode: PeerMode) {
        let namespace = &item.config.meta.namespace;
        let covering = self.explicit.peer_authentications.iter().find(|policy| {
            policy.meta.namespace == *namespace
                && policy.spec.selector.as_ref().is_some_and(|s| s.selects(labels))
        });
        if let Some(policy) = covering {
            if policy.spec.mtls.unwrap_or_default().mode != mode {
                let reason =
                    format!("{} ({}) holds for these workloads", policy.meta.key(), policy.meta.source);
                let help = "what is written explicitly wins; take it out of one of the two";
                self.note(item, ".securityPolicy.mtlsMode", Severity::Warning, reason, help);
            }
            return;
        }
        let meta = item.meta(Kind::PeerAuthentication, labels);
        item.made.push(meta.key().to_string());
        let spec = PeerAuthentication {
            selector: Some(WorkloadSelector { labels: labels.clone() }),
            mtls: Some(MutualTls { mode }),
            ..Default::default()
        };
        self.objects.peer_authentications.push(Arc::new(Object { meta, spec }));
    }

    fn authorization(&mut self, item: &mut Item<'_>, labels: &Labels, rules: &[MeshRule]) {
        let namespace = &item.config.meta.namespace;
        let allowing = |policy: &&Arc<Object<AuthorizationPolicy>>| {
            policy.meta.namespace == *namespace
                && policy.spec.action == AuthorizationAction::Allow
                && !policy.is_tried()
        };
        let mut explicit = self.explicit.authorization_policies.iter().filter(allowing);
        let selects = |policy: &Arc<Object<AuthorizationPolicy>>| {
            policy.spec.selector.as_ref().is_some_and(|selector| selector.selects(labels))
        };
        if let Some(policy) = explicit.clone().find(|policy| selects(policy)) {
            let reason = format!(
                "{} ({}) says who may: policies that allow add up, and these rules would allow more",
                policy.meta.key(),
                policy.meta.source
            );
            let help = "what is written explicitly wins; take it out of one of the two";
            self.note(item, ".securityPolicy.authorizationRules", Severity::Warning, reason, help);
            return;
        }
        if let Some(policy) = explicit.find(|policy| policy.spec.selector.is_none()) {
            let (key, source) = (policy.meta.key(), &policy.meta.source);
            let reason =
                format!("{key} ({source}) holds for the whole namespace: who may by either of the two may");
            self.note(
                item,
                ".securityPolicy.authorizationRules",
                Severity::Warning,
                reason,
                "see that this is meant",
            );
        }
        let trust =
            self.explicit.mesh.as_ref().map_or_else(Default::default, |mesh| mesh.spec.clone()).trust_domain;
        let mut made = Vec::new();
        for (number, rule) in rules.iter().enumerate() {
            let mut principals = Vec::new();
            for (place, name) in rule.from.iter().enumerate() {
                let (space, account) = name.split_once('/').unwrap_or((namespace, name));
                principals.push(format!("{trust}/ns/{space}/sa/{account}"));
                if !self.accounts.contains(&(space.to_owned(), account.to_owned())) {
                    let elsewhere = self.accounts.iter().find(|(_, known)| known == account);
                    let reason = match elsewhere {
                        Some((other, _)) => format!(
                            "no workload of {space} has the service account {account:?}; did you mean {other}/{account}?"
                        ),
                        None => format!("no workload of {space} has the service account {account:?}"),
                    };
                    let field = format!(".securityPolicy.authorizationRules[{number}].from[{place}]");
                    let help = "it would let nobody in; name the service account of the workloads that call";
                    self.note(item, &field, self.strictness(), reason, help);
                }
            }
            let to =
                rule.operations.iter().filter_map(|text| MeshRule::operation(text)).map(|(verb, path)| {
                    let methods = if verb == "*" { Vec::new() } else { vec![verb.to_owned()] };
                    let operation = Operation { methods, paths: vec![path.to_owned()], ..Default::default() };
                    AuthorizationTo { operation: Some(operation) }
                });
            made.push(AuthorizationRule {
                from: vec![AuthorizationFrom { source: Some(Source { principals, ..Default::default() }) }],
                to: to.collect(),
                when: Vec::new(),
            });
        }
        let meta = item.meta(Kind::AuthorizationPolicy, labels);
        item.made.push(meta.key().to_string());
        let spec = AuthorizationPolicy {
            selector: Some(WorkloadSelector { labels: labels.clone() }),
            rules: made,
            ..Default::default()
        };
        self.objects.authorization_policies.push(Arc::new(Object { meta, spec }));
    }
}

/// The same in a DestinationRule's words.
fn policy_of(given: &MeshTrafficPolicy) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: given
            .load_balancer
            .map(|simple| LoadBalancer { simple: Some(simple), ..Default::default() }),
        connection_pool: given.connection_pool.map(|pool| ConnectionPool {
            tcp: pool
                .max_connections
                .map(|most| TcpPool { max_connections: Some(most), ..Default::default() }),
            http: Some(HttpPool {
                http1_max_pending_requests: pool.max_pending_requests,
                http2_max_requests: pool.max_requests,
                max_requests_per_connection: pool.max_requests_per_connection,
                max_retries: pool.max_retries,
                ..Default::default()
            })
            .filter(|http| *http != HttpPool::default()),
        }),
        outlier_detection: given.circuit_breaker.map(|breaker| OutlierDetection {
            consecutive_5xx_errors: breaker.consecutive_errors,
            consecutive_gateway_errors: breaker.consecutive_gateway_errors,
            interval: breaker.interval,
            base_ejection_time: breaker.base_ejection_time,
            max_ejection_percent: breaker.max_ejection_percent,
            min_health_percent: breaker.min_health_percent,
            ..Default::default()
        }),
        ..Default::default()
    }
}
