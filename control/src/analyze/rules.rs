//! DestinationRules for nobody, against each other, and with settings that do not do what they look like.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::scene::{Scene, few};
use super::{Code, Message};
use crate::model::destination_rule::{SimpleBalancer, TrafficPolicy};
use crate::model::service::ServiceOrigin;
use crate::model::{DestinationRule, Object, Service, host};

/// Share of a cluster's endpoints that may be ejected where nothing is said, in percent (Envoy, Istio).
const EJECTED_BY_DEFAULT: u32 = 10;
/// Requests on a connection below which its TLS handshake is a notable part of the work.
const FEW_REQUESTS: u32 = 10;

pub(super) fn find(scene: &Scene<'_>, found: &mut Vec<Message>) {
    let world = scene.world;
    let all = world.destination_rules();
    for (index, rule) in all.iter().enumerate() {
        let services: Vec<_> =
            world.services().iter().filter(|s| host::covers(&rule.spec.host, &s.hostname)).collect();
        if services.is_empty() && !world.services().is_empty() {
            let why = format!("no service is called {}: the rule holds for nothing", rule.spec.host);
            let help = "correct the host, or write a Service or a ServiceEntry; a short name is of the rule's namespace";
            found.push(Message::of(Code::RulesForNoService, &rule.meta, "spec.host", why, help));
        }
        conflict(rule, &all[..index], found);
        for (path, policy) in policies(&rule.spec) {
            settings(rule, &path, policy, &services, found);
        }
    }
}

/// Every policy with its path, the subsets' as well.
fn policies(rule: &DestinationRule) -> Vec<(String, &TrafficPolicy)> {
    let own = rule.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let subsets = rule.subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((format!("spec.subsets[{index}].trafficPolicy"), subset.traffic_policy.as_ref()?))
    });
    own.chain(subsets).collect()
}

/// Rules of one namespace for one host are merged: the first one's policy holds, and the first subset of a name.
fn conflict(
    rule: &Object<DestinationRule>,
    before: &[Arc<Object<DestinationRule>>],
    found: &mut Vec<Message>,
) {
    let same = before.iter().filter(|other| {
        other.meta.namespace == rule.meta.namespace
            && other.spec.host == rule.spec.host
            && other.spec.workload_selector == rule.spec.workload_selector
            && other.spec.export_to == rule.spec.export_to
    });
    for other in same {
        let policy = rule.spec.traffic_policy.is_some() && other.spec.traffic_policy.is_some();
        let names = |of: &DestinationRule| of.subsets.iter().map(|s| s.name.clone()).collect::<BTreeSet<_>>();
        let shared: BTreeSet<_> = names(&rule.spec).intersection(&names(&other.spec)).cloned().collect();
        let what = match (policy, shared.is_empty()) {
            (true, true) => "its trafficPolicy is".to_owned(),
            (false, false) => format!("its subsets {} are", few(shared)),
            (true, false) => format!("its trafficPolicy and its subsets {} are", few(shared)),
            (false, true) => continue,
        };
        let by = format!("{} ({})", other.meta.key(), other.meta.source);
        let why = format!("{by} is for the same host and comes first: {what} not heard");
        found.push(Message::of(
            Code::RulesConflict,
            &rule.meta,
            "spec.host",
            why,
            "make one rule of the two",
        ));
        return;
    }
}

fn settings(
    rule: &Object<DestinationRule>,
    path: &str,
    policy: &TrafficPolicy,
    services: &[&Arc<Service>],
    found: &mut Vec<Message>,
) {
    let several = services.iter().filter(|s| s.origin == ServiceOrigin::Kubernetes && s.endpoints.len() > 1);
    let several = few(several.map(|service| format!("{} ({})", service.hostname, service.endpoints.len())));
    let simple = policy.load_balancer.as_ref().and_then(|balancer| balancer.simple);
    if simple == Some(SimpleBalancer::Passthrough) && !several.is_empty() {
        let why = format!(
            "PASSTHROUGH sends each connection to the address that the caller dialled and balances nothing; there are several endpoints: {several}"
        );
        let help = "leave it out (least request), or set ROUND_ROBIN or RANDOM";
        let path = format!("{path}.loadBalancer.simple");
        found.push(Message::of(Code::BalancingOff, &rule.meta, path, why, help));
    }
    if policy.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify == Some(true)) {
        let why = "whoever answers at the address is believed to be the server: insecureSkipVerify is true";
        let help =
            "leave it out, and give caCertificates or credentialName if the server's authority is your own";
        let path = format!("{path}.tls.insecureSkipVerify");
        found.push(Message::of(Code::ServerNotVerified, &rule.meta, path, why, help));
    }
    let http = policy.connection_pool.as_ref().and_then(|pool| pool.http.as_ref());
    if let Some(few_requests) =
        http.and_then(|http| http.max_requests_per_connection).filter(|n| (1..=FEW_REQUESTS).contains(n))
    {
        let why = format!(
            "each connection ends after {few_requests} requests, and the next one begins with a TLS handshake, which costs more than many requests do"
        );
        let help = "leave it out, or set some thousands; for connections that are to end in time there is tcp.maxConnectionDuration";
        let path = format!("{path}.connectionPool.http.maxRequestsPerConnection");
        found.push(Message::of(Code::HandshakesRepeat, &rule.meta, path, why, help));
    }
    let Some(outlier) = &policy.outlier_detection else { return };
    let share = outlier.max_ejection_percent.unwrap_or(EJECTED_BY_DEFAULT);
    let small: Vec<_> = services
        .iter()
        .filter(|service| !service.endpoints.is_empty())
        .filter(|service| (service.endpoints.len() as u64) * u64::from(share) < 100)
        .map(|service| format!("{} ({})", service.hostname, service.endpoints.len()))
        .collect();
    if !small.is_empty() {
        let said = if outlier.max_ejection_percent.is_some() { "" } else { ", the default," };
        let why = format!(
            "maxEjectionPercent {share}{said} of so few endpoints is less than one, so none is ever ejected: {}",
            few(small)
        );
        let help =
            "set maxEjectionPercent so that it allows one endpoint at the least: 50 for two, 34 for three";
        let path = format!("{path}.outlierDetection.maxEjectionPercent");
        found.push(Message::of(Code::EjectionNeverHappens, &rule.meta, path, why, help));
    }
}
