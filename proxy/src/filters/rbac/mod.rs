//! `envoy.filters.http.rbac`, and the engine that the network filter of the same name shares: who may do what.
//!
//! Rules that are enforced answer 403; shadow rules only count and say what they would have done, in dynamic metadata that
//! later filters and access logs read.

mod addresses;
mod config;
mod engine;
mod index;
#[cfg(test)]
mod tests;
mod trie;

use std::sync::Arc;

use http::StatusCode;
use xds_protos::envoy::config::rbac::v3 as rules;
use xds_protos::envoy::extensions::filters::http::rbac::v3 as proto;

pub use config::details;
pub use engine::{Action, Decision, Engine, Finding, OneOf, Policy, Rule, Subject};

use super::Verdict;
use crate::io::DynamicMetadata;
use crate::io::metadata::Datum;
use crate::router::{Exchange, LocalReply};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::StreamInfo;
use crate::telemetry::record::{self, By};
use crate::telemetry::registry::{Counter, Group};

const NAMESPACE: &str = "envoy.filters.http.rbac";

/// What is enforced, and what is only tried.
#[derive(Debug)]
pub struct Rules {
    enforced: Option<Engine>,
    shadow: Option<Engine>,
    enforced_keys: Keys,
    shadow_keys: Keys,
}

/// The filter of a connection manager.
pub struct Rbac {
    rules: Arc<Rules>,
    stats: RbacStats,
    by_policy: Option<ByPolicy>,
    words: Words,
}

/// Texts that every decision may end in.
#[derive(Debug)]
struct Words {
    allowed: Arc<str>,
    denied: Arc<str>,
    hint: Arc<str>,
    nobody: Arc<str>,
}

/// The keys of a mode's results in dynamic metadata.
#[derive(Debug)]
pub struct Keys {
    policy: Arc<str>,
    result: Arc<str>,
}

impl Keys {
    /// `mode` is `enforced` or `shadow`.
    pub fn new(prefix: &str, mode: &str) -> Self {
        Self {
            policy: format!("{prefix}{mode}_effective_policy_id").into(),
            result: format!("{prefix}{mode}_engine_result").into(),
        }
    }

    /// Writes a decision.
    pub fn write(
        &self,
        metadata: &mut DynamicMetadata,
        namespace: &'static str,
        decision: &Decision<'_>,
        result: &Arc<str>,
    ) {
        if let Some((_, policy)) = decision.policy {
            metadata.set(namespace, &self.policy, Datum::Text(policy.name.clone()));
        }
        metadata.set(namespace, &self.result, Datum::Text(result.clone()));
    }
}

/// The four numbers of a filter.
pub struct RbacStats {
    _group: Arc<Group>,
    allowed: Counter,
    denied: Counter,
    shadow_allowed: Counter,
    shadow_denied: Counter,
}

impl RbacStats {
    /// `scope` is what stands before `rbac.` in their names.
    pub fn new(scope: &str, prefix: &str, shadow_prefix: &str) -> Self {
        let group = Group::new(scope.trim_end_matches('.'), Vec::new());
        let name = |prefix: &str, name: &str| format!("{}{name}", dotted(prefix));
        Self {
            allowed: group.counter(name(prefix, "allowed")),
            denied: group.counter(name(prefix, "denied")),
            shadow_allowed: group.counter(name(shadow_prefix, "shadow_allowed")),
            shadow_denied: group.counter(name(shadow_prefix, "shadow_denied")),
            _group: group,
        }
    }

    /// Counts an enforced decision.
    pub fn enforced(&self, allowed: bool) {
        if allowed { self.allowed.inc() } else { self.denied.inc() }
    }

    /// Counts one that is only tried.
    pub fn shadow(&self, allowed: bool) {
        if allowed { self.shadow_allowed.inc() } else { self.shadow_denied.inc() }
    }
}

/// `rbac.`, and a prefix of its own with a dot at its end.
fn dotted(prefix: &str) -> String {
    match prefix {
        "" => "rbac.".to_owned(),
        prefix if prefix.ends_with('.') => format!("rbac.{prefix}"),
        prefix => format!("rbac.{prefix}."),
    }
}

/// The numbers of each policy: allowed and denied.
struct ByPolicy {
    _group: Arc<Group>,
    enforced: Box<[(Counter, Counter)]>,
    shadow: Box<[(Counter, Counter)]>,
}

impl ByPolicy {
    fn new(scope: &str, config: &proto::Rbac, rules: &Rules) -> Self {
        let group = Group::new(scope, Vec::new());
        let of = |engine: &Option<Engine>, prefix: &str, mode: &str| {
            let policies = engine.as_ref().map(|e| &*e.policies).unwrap_or_default();
            let counter = |policy: &Policy, what: &str| {
                group.counter(format!("{}policy.{}.{mode}{what}", dotted(prefix), policy.name))
            };
            policies.iter().map(|p| (counter(p, "allowed"), counter(p, "denied"))).collect()
        };
        let enforced = of(&rules.enforced, &config.rules_stat_prefix, "");
        let shadow = of(&rules.shadow, &config.shadow_rules_stat_prefix, "shadow_");
        Self { enforced, shadow, _group: group }
    }

    fn count(counters: &[(Counter, Counter)], decision: &Decision<'_>) {
        let Some((allowed, denied)) = decision.policy.and_then(|(index, _)| counters.get(index)) else {
            return;
        };
        if decision.allowed { allowed.inc() } else { denied.inc() }
    }
}

impl Rules {
    /// Compiles the filter's settings, or a route's.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(config: &proto::Rbac) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut engine = |rules: &Option<rules::Rbac>, path: &str| {
            rules.as_ref().and_then(|r| collect(Engine::compile(r, true), path, &mut errors))
        };
        let (enforced, shadow) =
            (engine(&config.rules, "rules"), engine(&config.shadow_rules, "shadow_rules"));
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            enforced,
            shadow,
            enforced_keys: Keys::new(&config.rules_stat_prefix, "enforced"),
            shadow_keys: Keys::new(&config.shadow_rules_stat_prefix, "shadow"),
        })
    }

    /// Compiles `RBACPerRoute`: other rules, or none at all.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile_for_route(config: &proto::RbacPerRoute) -> Result<Self, Vec<ConfigError>> {
        let none = proto::Rbac::default();
        let rbac = config.rbac.as_ref().unwrap_or(&none);
        if rbac.track_per_rule_stats {
            let what = "counting each policy of a route";
            return Err(ConfigError::unsupported("rbac.track_per_rule_stats", what).into());
        }
        Self::compile(rbac).map_err(crate::state::error::at("rbac"))
    }
}

impl Rbac {
    /// Compiles the filter of a connection manager.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &proto::Rbac, stat_prefix: &str) -> Result<Self, Vec<ConfigError>> {
        let rules = Arc::new(Rules::compile(config)?);
        let scope = format!("http.{stat_prefix}");
        Ok(Self {
            stats: RbacStats::new(&scope, &config.rules_stat_prefix, &config.shadow_rules_stat_prefix),
            by_policy: config.track_per_rule_stats.then(|| ByPolicy::new(&scope, config, &rules)),
            rules,
            words: Words {
                allowed: "allowed".into(),
                denied: "denied".into(),
                hint: "access_log_hint".into(),
                nobody: details("none").into(),
            },
        })
    }

    /// Lets a request pass, or answers 403.
    pub(super) fn request_head(&self, exchange: &Exchange, of_route: Option<&Arc<Rules>>) -> Verdict {
        let rules = of_route.unwrap_or(&self.rules);
        let by_policy = self.by_policy.as_ref().filter(|_| of_route.is_none());
        exchange.flow.info(|info| {
            let result = |allowed: bool| if allowed { &self.words.allowed } else { &self.words.denied };
            let mut metadata = std::mem::take(&mut info.metadata);
            if let Some(engine) = &rules.shadow {
                let decision = decide(engine, exchange, info, &metadata);
                self.stats.shadow(decision.allowed);
                by_policy.iter().for_each(|b| ByPolicy::count(&b.shadow, &decision));
                rules.shadow_keys.write(&mut metadata, NAMESPACE, &decision, result(decision.allowed));
                let would =
                    if decision.allowed { record::Verdict::WouldAllow } else { record::Verdict::WouldDeny };
                if let Some((_, policy)) = decision.policy {
                    info.trail.decided(By::Rbac, would, Some(policy.name.clone()));
                }
            }
            let verdict = rules.enforced.as_ref().map_or(Verdict::Continue, |engine| {
                let decision = decide(engine, exchange, info, &metadata);
                self.stats.enforced(decision.allowed);
                by_policy.iter().for_each(|b| ByPolicy::count(&b.enforced, &decision));
                rules.enforced_keys.write(&mut metadata, NAMESPACE, &decision, result(decision.allowed));
                let verdict =
                    if decision.allowed { record::Verdict::Allowed } else { record::Verdict::Denied };
                // That no rule denies it is no decision to be told.
                if decision.policy.is_some() || !decision.allowed {
                    let name = decision.policy.map(|(_, policy)| policy.name.clone());
                    info.trail.decided(By::Rbac, verdict, name);
                }
                if engine.action == Action::Log {
                    let matched = Datum::Bool(decision.policy.is_some());
                    metadata.set("envoy.common", &self.words.hint, matched);
                }
                if decision.allowed {
                    return Verdict::Continue;
                }
                let details = decision.policy.map_or(&self.words.nobody, |(_, policy)| &policy.details);
                Verdict::Reply(LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", details.clone()))
            });
            info.metadata = metadata;
            verdict
        })
    }
}

impl Rbac {
    /// Why a request that has been let in under another policy may not go on, if it may not. `of_route` are its route's rules.
    pub(super) fn denies(&self, subject: &Subject<'_>, of_route: Option<&Arc<Rules>>) -> Option<Arc<str>> {
        let decision = of_route.unwrap_or(&self.rules).enforced.as_ref()?.decide(subject);
        let why = decision.policy.map_or(&self.words.nobody, |(_, policy)| &policy.details);
        (!decision.allowed).then(|| why.clone())
    }
}

impl Rbac {
    /// What the enforced rules find of a request, and what those do that are only tried. Nothing is counted.
    pub(super) fn findings(
        &self,
        exchange: &Exchange,
        of_route: Option<&Arc<Rules>>,
    ) -> (Option<Finding>, Option<Finding>) {
        let rules = of_route.unwrap_or(&self.rules);
        exchange.flow.info(|info| {
            let find = |engine: &Engine| engine.find(&subject(exchange, info, &info.metadata));
            (rules.enforced.as_ref().map(find), rules.shadow.as_ref().map(find))
        })
    }
}

/// Asks an engine about a request.
fn decide<'e>(
    engine: &'e Engine,
    exchange: &Exchange,
    info: &StreamInfo,
    metadata: &DynamicMetadata,
) -> Decision<'e> {
    engine.decide(&subject(exchange, info, metadata))
}

fn subject<'a>(exchange: &'a Exchange, info: &'a StreamInfo, metadata: &'a DynamicMetadata) -> Subject<'a> {
    Subject {
        connection: &exchange.connection,
        head: Some(&exchange.head),
        client: info.client.unwrap_or(exchange.connection.remote).ip(),
        metadata,
        route: exchange.matched.as_ref().and_then(|m| m.route().metadata.as_deref()),
        state: Some(&info.filter_state),
    }
}
