//! Which DestinationRule holds for a client and a service, and what it says for one subset and port.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::destination_rule::{
    ClientTls, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, ProxyProtocol, RetryBudget,
    TrafficPolicy,
};
use crate::model::host;
use crate::model::meta::{Meta, Object};
use crate::model::service::{ExportTo, Service};
use crate::model::values::{Labels, Timespan};
use crate::model::world::World;

/// DestinationRules of one namespace for one host, merged: the first traffic policy given, and the union of the subsets.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedRule {
    /// The oldest of the merged objects.
    pub meta: Arc<Meta>,
    /// What they say together.
    pub spec: DestinationRule,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Changes whenever one of the merged objects does.
    pub version: u64,
}

impl MergedRule {
    /// The time in which an endpoint that returns from ejection gets ever more requests: Weft's own annotation, which the
    /// reader has checked. Of merged objects the oldest's counts.
    pub fn return_window(&self) -> Option<Timespan> {
        Timespan::parse(self.meta.annotations.get(RETURN_WINDOW_ANNOTATION)?).ok()
    }
}

/// Annotation of a DestinationRule: how long an endpoint that returns from ejection is on probation, such as `30s`.
pub const RETURN_WINDOW_ANNOTATION: &str = "weft.dev/return-window";

/// Merges rules for the same host, selector and audience; `rules` come oldest first.
pub(in crate::model) fn merge(
    rules: &[Arc<Object<DestinationRule>>],
    default_export: &[String],
) -> Vec<Arc<MergedRule>> {
    let mut merged: Vec<MergedRule> = Vec::with_capacity(rules.len());
    let mut by_host: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
    for rule in rules {
        let export_to = ExportTo::parse(&rule.spec.export_to, default_export, &rule.meta.namespace);
        let held = by_host.entry((&rule.meta.namespace, &rule.spec.host)).or_default();
        let same = held.iter().copied().find(|index| {
            merged[*index].spec.workload_selector == rule.spec.workload_selector
                && merged[*index].export_to == export_to
        });
        let Some(other) = same.map(|index| &mut merged[index]) else {
            held.push(merged.len());
            merged.push(MergedRule {
                meta: Arc::new(rule.meta.clone()),
                spec: rule.spec.clone(),
                export_to,
                version: rule.meta.version,
            });
            continue;
        };
        if other.spec.traffic_policy.is_none() {
            other.spec.traffic_policy.clone_from(&rule.spec.traffic_policy);
        }
        for subset in &rule.spec.subsets {
            if !other.spec.subsets.iter().any(|held| held.name == subset.name) {
                other.spec.subsets.push(subset.clone());
            }
        }
        other.version = other.version.rotate_left(7) ^ rule.meta.version;
    }
    merged.into_iter().map(Arc::new).collect()
}

impl World {
    /// The rule that a workload of `client_namespace` with `client_labels` follows for `service`.
    ///
    /// Istio looks in the client's namespace (unless that is the root), then the service's, then the root's; in each the
    /// most specific host wins, and of several for it one that selects the workload goes before one that selects all.
    pub fn destination_rule(
        &self,
        client_namespace: &str,
        client_labels: &Labels,
        service: &Service,
    ) -> Option<&Arc<MergedRule>> {
        let root = self.mesh().root_namespace.as_str();
        let own = (client_namespace != root).then_some(client_namespace);
        let mut tried: Vec<&str> = Vec::with_capacity(3);
        for namespace in own.into_iter().chain([service.namespace(), root]) {
            if tried.contains(&namespace) {
                continue;
            }
            tried.push(namespace);
            let candidates: Vec<&Arc<MergedRule>> = self
                .rules_of(namespace)
                .filter(|rule| host::covers(&rule.spec.host, &service.hostname))
                .filter(|rule| rule.export_to.reaches(namespace, client_namespace))
                .filter(|rule| match &rule.spec.workload_selector {
                    // A rule with a selector is private to its namespace.
                    Some(selector) => namespace == client_namespace && selector.selects(client_labels),
                    None => true,
                })
                .collect();
            // Of those for one host the one that selects the workload counts, as the first of equals does.
            let of = |selecting: bool| {
                let those =
                    candidates.iter().filter(move |r| r.spec.workload_selector.is_some() == selecting);
                those.map(|rule| (rule.spec.host.as_str(), *rule))
            };
            let found = host::most_specific(&service.hostname, of(true).chain(of(false)));
            if let Some((_, rule)) = found {
                return Some(rule);
            }
        }
        None
    }
}

/// What a rule says for one subset and port, with inheritance resolved. Unset blocks mean the mesh's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortPolicy {
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// How connections are secured.
    pub tls: Option<ClientTls>,
    /// Retries allowed beside active requests.
    pub retry_budget: Option<RetryBudget>,
    /// What a connection says first of the client that it is for.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// What `rule` says for `subset` (`None` for the whole service) on the service's port `port`.
///
/// A subset replaces the rule's blocks one by one. A port's settings replace all four of its blocks, those that they leave
/// out included, as in Istio.
pub fn effective_policy(rule: &DestinationRule, subset: Option<&str>, port: u16) -> PortPolicy {
    let mut policy = PortPolicy::default();
    let of_subset = subset
        .and_then(|name| rule.subsets.iter().find(|subset| subset.name == name))
        .and_then(|subset| subset.traffic_policy.as_ref());
    for layer in [rule.traffic_policy.as_ref(), of_subset].into_iter().flatten() {
        policy.lay(layer, port);
    }
    policy
}

impl PortPolicy {
    fn lay(&mut self, layer: &TrafficPolicy, port: u16) {
        fn replace<T: Clone>(held: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                held.clone_from(new);
            }
        }
        replace(&mut self.load_balancer, &layer.load_balancer);
        replace(&mut self.connection_pool, &layer.connection_pool);
        replace(&mut self.outlier_detection, &layer.outlier_detection);
        replace(&mut self.tls, &layer.tls);
        replace(&mut self.retry_budget, &layer.retry_budget);
        replace(&mut self.proxy_protocol, &layer.proxy_protocol);
        if let Some(settings) = layer.port_level_settings.iter().find(|settings| settings.port.number == port)
        {
            self.load_balancer.clone_from(&settings.load_balancer);
            self.connection_pool.clone_from(&settings.connection_pool);
            self.outlier_detection.clone_from(&settings.outlier_detection);
            self.tls.clone_from(&settings.tls);
        }
    }
}
