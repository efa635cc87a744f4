//! Active health checks: the control thread asks each host of a cluster at intervals whether it is well.
//!
//! [`run`] follows the cluster's hosts and keeps a session for each; a session makes a check ([`probe`]), takes the verdict
//! into account ([`state`]), waits, and makes the next one. Workers see nothing of it but the host's flags and the host set
//! that is made anew when one of them changes. A new cluster serves once each of its hosts was checked.

mod events;
mod probe;
mod settings;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub use self::settings::{AddHeader, GrpcCheck, HealthCheck, HttpCheck, Intervals, Kind, TcpCheck};
pub use self::state::Reason;

use self::events::Event;
use self::probe::Probe;
use self::settings::random;
use self::state::{State, Transition, Verdict};
use super::Cluster;
use super::host::{HealthFlag, Host, HostId};
use crate::telemetry::access_log::Sink;
use crate::telemetry::registry::{Counter, Gauge, Group};

/// The checks of one version of a cluster.
#[derive(Debug)]
pub struct Health {
    check: HealthCheck,
    /// Told when there are other hosts.
    members: Notify,
    /// Hosts of the beginning whose first check has not come to an end; all ones before the beginning.
    unchecked: AtomicUsize,
    stats: HealthStats,
}

/// `cluster.<name>.health_check.*`
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are Envoy's")]
pub struct HealthStats {
    _group: Arc<Group>,
    pub attempt: Counter,
    pub success: Counter,
    pub failure: Counter,
    pub passive_failure: Counter,
    pub network_failure: Counter,
    pub verify_cluster: Counter,
    pub healthy: Gauge,
    pub degraded: Gauge,
}

impl HealthStats {
    fn new(stat_name: &str) -> Self {
        let name = stat_name.strip_suffix(';').unwrap_or(stat_name);
        // The prefix ends with the cluster's name, which may have dots in it.
        let group = Group::new(format!("cluster.{name}"), Vec::new());
        Self {
            attempt: group.counter("health_check.attempt"),
            success: group.counter("health_check.success"),
            failure: group.counter("health_check.failure"),
            passive_failure: group.counter("health_check.passive_failure"),
            network_failure: group.counter("health_check.network_failure"),
            verify_cluster: group.counter("health_check.verify_cluster"),
            healthy: group.gauge("health_check.healthy"),
            degraded: group.gauge("health_check.degraded"),
            _group: group,
        }
    }
}

impl Health {
    pub(super) fn new(check: HealthCheck, stat_name: &str) -> Self {
        Self {
            check,
            members: Notify::new(),
            unchecked: AtomicUsize::new(usize::MAX),
            stats: HealthStats::new(stat_name),
        }
    }

    /// Its statistics.
    pub fn stats(&self) -> &HealthStats {
        &self.stats
    }

    /// Whether each of the first hosts was checked.
    pub(super) fn is_settled(&self) -> bool {
        self.unchecked.load(Relaxed) == 0
    }

    /// There are other hosts now.
    pub(super) fn members_changed(&self) {
        self.members.notify_one();
    }

    /// Counts who is healthy now.
    pub(super) fn count(&self, hosts: &super::HostSet) {
        let with = |flag, on| hosts.hosts().filter(|h| h.has_flag(flag) == on).count() as i64;
        self.stats.healthy.set(with(HealthFlag::FailedActiveHc, false));
        self.stats.degraded.set(with(HealthFlag::DegradedActiveHc, true));
    }
}

/// A host's session; dropped, it ends.
struct Session(JoinHandle<()>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A place among the first checks; dropped when the check has ended, or will never be made.
struct First(Arc<Health>);

impl Drop for First {
    fn drop(&mut self) {
        self.0.unchecked.fetch_sub(1, Relaxed);
    }
}

/// What a cluster's sessions share.
struct Checker {
    cluster: Weak<Cluster>,
    name: Arc<str>,
    health: Arc<Health>,
    logs: Vec<Arc<Sink>>,
}

/// How often it is looked whether the cluster is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Checks a cluster's hosts for as long as the cluster lives; does nothing for a cluster without checks. For the control
/// thread's local runtime.
pub async fn run(cluster: Arc<Cluster>) {
    let Some(health) = cluster.health().cloned() else { return };
    let mut logs = Vec::new();
    for path in &health.check.logs {
        match Sink::open(path) {
            Ok(log) => logs.push(log),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the health check log cannot be opened")
            }
        }
    }
    let name = cluster.config().name.clone();
    let checker = Rc::new(Checker { cluster: Arc::downgrade(&cluster), name, health: health.clone(), logs });
    drop(cluster);
    let mut sessions: HashMap<HostId, Session> = HashMap::new();
    let mut begun = false;
    while let Some(cluster) = checker.cluster.upgrade() {
        if cluster.is_assigned() {
            let hosts = cluster.hosts();
            let wanted: HashMap<HostId, &Arc<Host>> =
                hosts.hosts().filter(|h| !h.facts().check.disabled).map(|h| (h.id(), h)).collect();
            sessions.retain(|id, _| wanted.contains_key(id));
            if !begun {
                health.unchecked.store(wanted.len(), Relaxed);
            }
            for (id, host) in wanted {
                sessions.entry(id).or_insert_with(|| {
                    let first = (!begun).then(|| First(health.clone()));
                    Session(tokio::task::spawn_local(session(checker.clone(), host.clone(), first)))
                });
            }
            begun = true;
            health.count(&hosts);
        }
        drop(cluster);
        tokio::select! {
            () = health.members.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn session(checker: Rc<Checker>, host: Arc<Host>, mut first: Option<First>) {
    let check = &checker.health.check;
    let mut probe = Probe::default();
    let mut state = State::default();
    tokio::time::sleep(random(check.initial_jitter)).await;
    loop {
        let Some(cluster) = checker.cluster.upgrade() else { return };
        checker.health.stats.attempt.inc();
        let checked = tokio::time::timeout(check.timeout, probe.check(&cluster, &host, check)).await;
        let verdict = checked.unwrap_or_else(|_| {
            // The connection went with the check.
            Verdict::failed(Reason::NetworkTimeout)
        });
        let transition = checker.take(&cluster, &host, &mut state, verdict);
        drop(first.take());
        let used = cluster.stats().upstream_cx_total.value() > 0;
        drop(cluster);
        tokio::time::sleep(check.wait(verdict, transition, used)).await;
    }
}

impl Checker {
    /// Takes a verdict into account: flags, statistics, events, and the host set if it changed.
    fn take(&self, cluster: &Cluster, host: &Arc<Host>, state: &mut State, verdict: Verdict) -> Transition {
        let check = &self.health.check;
        let stats = &self.health.stats;
        let first = state.first;
        let (was_out, was_degraded) =
            (host.has_flag(HealthFlag::FailedActiveHc), host.has_flag(HealthFlag::DegradedActiveHc));
        let transition = state.apply(host, verdict, check.healthy_threshold, check.unhealthy_threshold);
        let is_out = host.has_flag(HealthFlag::FailedActiveHc);
        match verdict {
            Verdict::Healthy { .. } => {
                stats.success.inc();
                if was_out && !is_out {
                    self.write(host, Event::Add { first });
                } else if check.log_successes {
                    self.write(host, Event::Success);
                }
                match (was_degraded, host.has_flag(HealthFlag::DegradedActiveHc)) {
                    (false, true) => self.write(host, Event::Degraded),
                    (true, false) => self.write(host, Event::NoLongerDegraded),
                    _ => {}
                }
            }
            Verdict::Unhealthy { reason, .. } => {
                stats.failure.inc();
                if reason.is_network() {
                    stats.network_failure.inc();
                }
                if is_out && !was_out {
                    self.write(host, Event::Eject(reason));
                }
                if first || check.log_failures {
                    self.write(host, Event::Failure { reason, first });
                }
            }
        }
        let healthy = matches!(verdict, Verdict::Healthy { .. });
        cluster.checked(host, healthy, was_out, first, transition == Transition::Changed);
        transition
    }

    fn write(&self, host: &Host, event: Event) {
        events::write(&self.logs, self.health.check.kind.name(), &self.name, host, event);
    }
}
