//! TrafficManagement: a new version of a service gets a share of its requests, and more or none by how it does (weft.dev).
//!
//! The share in force is laid over the routes when they are rendered; nobody's files or objects are changed for it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::meta::Object;
use super::service::Service;
use super::values::{Labels, Timespan};
use super::world::World;

/// The label that tells versions of a service apart.
pub const VERSION: &str = "version";

/// The specification of a TrafficManagement. Fields may be written with underscores as well.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficManagement {
    /// A new version on trial.
    #[serde(alias = "canary_deployment")]
    pub canary_deployment: Option<CanaryDeployment>,
    /// A service whose circuits are told.
    #[serde(alias = "circuit_breaker_status")]
    pub circuit_breaker_status: Option<CircuitBreakerStatus>,
}

/// A service whose circuits are told. What is told of them is no part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CircuitBreakerStatus {
    /// The service, full (short names are resolved by the reader).
    pub service: String,
}

/// A new version on trial.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CanaryDeployment {
    /// The service, full (short names are resolved by the reader).
    pub service: String,
    /// The label `version` of the workloads that serve now.
    #[serde(alias = "stable_version")]
    pub stable_version: String,
    /// The same of those on trial.
    #[serde(alias = "canary_version")]
    pub canary_version: String,
    /// Who gets how much at first, in percent.
    #[serde(alias = "traffic_split")]
    pub traffic_split: TrafficSplit,
    /// The trial's later shares, in percent, each more than the one before; after the last comes all.
    pub steps: Vec<u32>,
    /// What it takes to get more.
    #[serde(alias = "success_criteria")]
    pub success_criteria: SuccessCriteria,
    /// What takes everything away from it.
    #[serde(alias = "rollback_criteria")]
    pub rollback_criteria: RollbackCriteria,
    /// What a client is known by that stays with its version; without it chance decides for each request.
    #[serde(alias = "sticky_by")]
    pub sticky_by: Option<StickyBy>,
    /// Who is asked what was counted; the proxies themselves unless it is given.
    pub prometheus: Option<Prometheus>,
}

/// What a client is known by: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StickyBy {
    /// The value of a header.
    #[serde(alias = "http_header_name")]
    pub http_header_name: String,
    /// The value of a cookie that somebody else gives it.
    #[serde(alias = "http_cookie_name")]
    pub http_cookie_name: String,
    /// Its address.
    #[serde(alias = "use_source_ip")]
    pub use_source_ip: bool,
}

/// A Prometheus that scrapes the proxies of the service's callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Prometheus {
    /// The URL below which its API is.
    pub address: String,
    /// A credential kept outside the configuration that has its `token`, or `username` and `password`.
    #[serde(alias = "credential_name")]
    pub credential_name: String,
}

/// Who gets how much, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficSplit {
    /// The version that serves now.
    pub stable: u32,
    /// The version on trial.
    pub canary: u32,
}

/// What it takes to get more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SuccessCriteria {
    /// Answers 5xx, in percent, at most.
    #[serde(alias = "error_rate_threshold")]
    pub error_rate_threshold: Option<f64>,
    /// The time that 95 % of the answers take, in milliseconds, at most.
    #[serde(alias = "response_time_p95_threshold")]
    pub response_time_p95_threshold: Option<f64>,
    /// With fewer requests nothing is decided; 100 by default.
    #[serde(alias = "minimum_request_count")]
    pub minimum_request_count: Option<u64>,
    /// How long each share is watched.
    #[serde(alias = "evaluation_period")]
    pub evaluation_period: Option<Timespan>,
}

/// What takes everything away from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RollbackCriteria {
    /// Answers 5xx, in percent: more than this.
    #[serde(alias = "error_rate_threshold")]
    pub error_rate_threshold: Option<f64>,
    /// The time that 95 % of the answers take, in milliseconds: more than this.
    #[serde(alias = "response_time_p95_threshold")]
    pub response_time_p95_threshold: Option<f64>,
    /// At once, and not at the end of the period; true by default.
    #[serde(alias = "immediate_rollback")]
    pub immediate_rollback: Option<bool>,
}

impl CanaryDeployment {
    /// What tells one trial from the next: with another service or other versions it begins anew.
    pub fn identity(&self) -> String {
        format!("{} {} {}", self.service, self.stable_version, self.canary_version)
    }
}

/// A version's share as it has come to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Share {
    /// Of which trial.
    pub identity: String,
    /// What the version on trial gets, in percent.
    pub canary: u32,
}

/// The shares in force, by namespace and name of the TrafficManagement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shares(pub BTreeMap<(String, String), Share>);

impl Shares {
    /// Two of the same version say the same.
    pub fn version(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// How a service's requests are split: subsets, and their shares in percent; none of them is 0.
pub type Split = Vec<(String, u32)>;

impl World {
    /// The trial of a service, if there is one: the oldest, in the service's namespace.
    pub fn trial_of(
        &self,
        service: &Service,
    ) -> Option<(&Arc<Object<TrafficManagement>>, &CanaryDeployment)> {
        self.traffic_managements().iter().find_map(|object| {
            let trial = object.spec.canary_deployment.as_ref()?;
            let its = object.meta.namespace == service.namespace()
                && trial.service.eq_ignore_ascii_case(&service.hostname);
            its.then_some((object, trial))
        })
    }

    /// What a client of a service is known by that stays with its version, where one is on trial.
    pub fn sticky(&self, service: &Service) -> Option<&StickyBy> {
        self.trial_of(service)?.1.sticky_by.as_ref()
    }

    /// How a client's requests to a service are split, where one of its versions is on trial. A version that no endpoint has gets
    /// nothing, whatever its share.
    pub fn split(&self, namespace: &str, labels: &Labels, service: &Service) -> Option<Split> {
        let (object, trial) = self.trial_of(service)?;
        let rule = self.destination_rule(namespace, labels, service)?;
        let subset = |version: &str| {
            let mut subsets = rule.spec.subsets.iter();
            let found = subsets.find(|s| s.labels.get(VERSION).is_some_and(|v| v == version))?;
            Some(found.name.clone())
        };
        let (stable, canary) = (subset(&trial.stable_version)?, subset(&trial.canary_version)?);
        let key = (object.meta.namespace.clone(), object.meta.name.clone());
        let share = self.shares().0.get(&key).filter(|share| share.identity == trial.identity());
        let mut percent = share.map_or(trial.traffic_split.canary, |share| share.canary).min(100);
        match (serves(service, &trial.stable_version), serves(service, &trial.canary_version)) {
            (_, false) => percent = 0,
            (false, true) => percent = 100,
            (true, true) => {}
        }
        let both = [(stable, 100 - percent), (canary, percent)];
        Some(both.into_iter().filter(|(_, share)| *share > 0).collect())
    }
}

/// Whether a version of a service has endpoints.
pub fn serves(service: &Service, version: &str) -> bool {
    service.endpoints.iter().any(|endpoint| endpoint.labels.get(VERSION).is_some_and(|v| v == version))
}

/// The name of the subset that is made for a version where no DestinationRule has one.
pub fn subset_name(version: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("version-{}", version.chars().map(fits).collect::<String>())
}
