//! `envoy.filters.network.rbac`: who may send bytes. It decides when the first ones come, as Envoy does; whoever follows in
//! the chain has begun by then, so a server that speaks first is heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use xds_protos::envoy::extensions::filters::network::rbac::v3 as pb;

use crate::filters::rbac::{Engine, Finding, Keys, RbacStats, Subject, details};
use crate::io::metadata::{Ruler, Ruling};
use crate::io::{ConnectionInfo, DynamicMetadata, Pass};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::events;

const NAMESPACE: &str = "envoy.filters.network.rbac";
/// A filter says at most so often that it denies, in milliseconds.
const TOLD_EVERY: u64 = 1000;

/// The compiled filter.
pub struct NetworkRbac {
    enforced: Option<Engine>,
    shadow: Option<Engine>,
    shadow_keys: Keys,
    stats: RbacStats,
    /// Ask for every piece, not only for the first.
    continuous: bool,
    /// A connection that is denied is closed so much later.
    delay: Option<Duration>,
    allowed: Arc<str>,
    denied: Arc<str>,
    nobody: Arc<str>,
    told: Told,
}

/// What of denials the proxy's own log is told: an HTTP chain has no access log of a connection whose bytes nobody read, and
/// whoever is denied may come often.
struct Told {
    since: Instant,
    /// When it was last told, in milliseconds from then; 0 for never.
    last: AtomicU64,
    /// Denials that it was not told of.
    untold: AtomicU64,
}

impl Told {
    fn tell(&self, info: &ConnectionInfo, details: &str) {
        let now = self.since.elapsed().as_millis() as u64 + 1;
        let last = self.last.load(Relaxed);
        let due = last == 0 || now >= last + TOLD_EVERY;
        if !due || self.last.compare_exchange(last, now, Relaxed, Relaxed).is_err() {
            self.untold.fetch_add(1, Relaxed);
            return;
        }
        let others = self.untold.swap(0, Relaxed);
        tracing::info!(remote = %info.remote, listener = %info.listener, details, others, "a policy denies a connection");
    }
}

impl NetworkRbac {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Everything that is wrong in its settings; rules over header fields are.
    pub fn compile(config: &pb::Rbac) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut engine = |rules: &Option<xds_protos::envoy::config::rbac::v3::Rbac>, path: &str| {
            rules.as_ref().and_then(|r| collect(Engine::compile(r, false), path, &mut errors))
        };
        let (enforced, shadow) =
            (engine(&config.rules, "rules"), engine(&config.shadow_rules, "shadow_rules"));
        if config.stat_prefix.is_empty() {
            errors.push(ConfigError::missing("stat_prefix"));
        }
        let delay = crate::route::config::duration(config.delay_deny.as_ref(), "delay_deny");
        let delay = delay.map_err(|e| errors.push(e)).ok().flatten();
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            enforced,
            shadow,
            shadow_keys: Keys::new(&config.shadow_rules_stat_prefix, "shadow"),
            stats: RbacStats::new(&config.stat_prefix, "", &config.shadow_rules_stat_prefix),
            continuous: config.enforcement_type() == pb::rbac::EnforcementType::Continuous,
            delay: delay.filter(|d| !d.is_zero()),
            allowed: "allowed".into(),
            denied: "denied".into(),
            nobody: details("none").into(),
            told: Told { since: Instant::now(), last: AtomicU64::new(0), untold: AtomicU64::new(0) },
        })
    }

    /// Whether bytes that came may go on.
    pub fn data(&self, info: &ConnectionInfo) -> Pass {
        let metadata = info.notes.as_ref().map(|n| n.metadata.lock().clone()).unwrap_or_default();
        if let Some(engine) = &self.shadow {
            let decision = engine.decide(&subject(info, &metadata));
            self.stats.shadow(decision.allowed);
            if let Some(notes) = &info.notes {
                let result = if decision.allowed { &self.allowed } else { &self.denied };
                self.shadow_keys.write(&mut notes.metadata.lock(), NAMESPACE, &decision, result);
                if let Some((_, policy)) = decision.policy {
                    notes.ruled(ruling(decision.allowed, true, Some(&policy.name)));
                }
            }
        }
        let Some(engine) = &self.enforced else { return self.pass() };
        let decision = engine.decide(&subject(info, &metadata));
        self.stats.enforced(decision.allowed);
        // That no rule denies it is no decision to be told.
        if let Some(notes) = &info.notes
            && (decision.policy.is_some() || !decision.allowed)
        {
            notes.ruled(ruling(decision.allowed, false, decision.policy.map(|(_, policy)| &policy.name)));
        }
        if decision.allowed {
            return self.pass();
        }
        let words = decision.policy.map_or(&self.nobody, |(_, policy)| &policy.details);
        self.told.tell(info, words);
        events::connection(info, words);
        if let Some(notes) = &info.notes {
            *notes.termination.lock() = Some(words.clone());
        }
        Pass::Never(self.delay)
    }

    /// Why this connection, which has begun under another policy, may not go on, if it may not.
    pub fn denies(&self, info: &ConnectionInfo) -> Option<Arc<str>> {
        let metadata = info.notes.as_ref().map(|n| n.metadata.lock().clone()).unwrap_or_default();
        let decision = self.enforced.as_ref()?.decide(&subject(info, &metadata));
        let why = decision.policy.map_or(&self.nobody, |(_, policy)| &policy.details);
        (!decision.allowed).then(|| why.clone())
    }

    /// What the enforced rules find of a connection, and what those do that are only tried. Nothing is counted.
    pub(super) fn findings(&self, info: &ConnectionInfo) -> (Option<Finding>, Option<Finding>) {
        let metadata = info.notes.as_ref().map(|n| n.metadata.lock().clone()).unwrap_or_default();
        let find = |engine: &Engine| engine.find(&subject(info, &metadata));
        (self.enforced.as_ref().map(find), self.shadow.as_ref().map(find))
    }

    fn pass(&self) -> Pass {
        if self.continuous { Pass::Once } else { Pass::Always }
    }
}

fn ruling(allowed: bool, tried: bool, name: Option<&Arc<str>>) -> Ruling {
    Ruling { by: Ruler::Policy, allowed, tried, name: name.cloned() }
}

/// A connection without a request: no header fields, and nothing that HTTP filters said.
fn subject<'a>(info: &'a ConnectionInfo, metadata: &'a DynamicMetadata) -> Subject<'a> {
    Subject { connection: info, head: None, client: info.remote.ip(), metadata, route: None, state: None }
}
