//! Outlier ejection: a host that fails in a row is left out for a while (Envoy's outlier_detection.proto).
//!
//! Answers are reported where they come in, on any worker, and count exactly: the fifth consecutive failure of five ejects.
//! Time is an argument; a driver on the control thread calls [`Detector::sweep`] at each interval.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::host::{HealthFlag, Host, HostId};
use super::stats::ClusterStats;

/// The settings, with Envoy's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierConfig {
    /// Consecutive 5xx answers that eject.
    pub consecutive_5xx: u32,
    /// The chance in percent that they do.
    pub enforcing_5xx: u32,
    /// Consecutive 502, 503, 504 that eject.
    pub consecutive_gateway: u32,
    /// The chance in percent that they do; Envoy's default is 0.
    pub enforcing_gateway: u32,
    /// Consecutive failures of our own (no connection, timeout, reset) that eject, when split.
    pub consecutive_local: u32,
    /// The chance in percent that they do.
    pub enforcing_local: u32,
    /// Count failures of our own apart from the upstream's answers.
    pub split: bool,
    /// Time between sweeps.
    pub interval: Duration,
    /// How long the first ejection lasts; the nth lasts n times as long.
    pub base_ejection: Duration,
    /// The longest ejection.
    pub max_ejection: Duration,
    /// The most of the hosts that may be out at once, in percent.
    pub max_percent: u32,
    /// Eject one host even if that is more than the percentage.
    pub always_one: bool,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            enforcing_5xx: 100,
            consecutive_gateway: 5,
            enforcing_gateway: 0,
            consecutive_local: 5,
            enforcing_local: 100,
            split: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_percent: 10,
            always_one: false,
        }
    }
}

/// How an attempt at a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Answered(http::StatusCode),
    /// No connection could be made.
    ConnectFailed,
    /// It took too long.
    TimedOut,
    /// The stream was reset before its answer.
    Reset,
}

#[derive(Debug)]
struct Ejected {
    host: Arc<Host>,
    at: Instant,
}

#[derive(Debug, Default)]
struct State {
    out: HashMap<HostId, Ejected>,
    /// How many times the base time the next ejection lasts; goes down again with each quiet interval.
    multipliers: HashMap<HostId, u32>,
}

/// A cluster's detector.
#[derive(Debug)]
pub struct Detector {
    config: OutlierConfig,
    /// Shared between the versions of a cluster: a change of configuration pardons nobody, and forgets nobody.
    state: ArcSwap<Mutex<State>>,
}

impl Detector {
    /// A detector.
    pub fn new(config: OutlierConfig) -> Self {
        Self { config, state: ArcSwap::default() }
    }

    /// Goes on where the detector of the cluster's version before stands, with that version's hosts.
    pub fn adopt(&self, before: &Self, stats: &ClusterStats) {
        let state = before.state.load_full();
        stats.ejections_active.set(state.lock().out.len() as i64);
        self.state.store(state);
    }

    /// Lets everybody return: the cluster's next version ejects nobody.
    pub fn pardon(&self) {
        for ejected in self.state.load().lock().out.values() {
            ejected.host.set_flag(HealthFlag::FailedOutlier, false);
        }
    }

    /// Its settings.
    pub fn config(&self) -> &OutlierConfig {
        &self.config
    }

    /// Takes note of how an attempt ended. True if the host was ejected for it, and the host set must be made anew.
    pub fn report(
        &self,
        host: &Arc<Host>,
        outcome: Outcome,
        hosts: usize,
        now: Instant,
        stats: &ClusterStats,
    ) -> bool {
        let streaks = &host.streaks;
        let code = match outcome {
            Outcome::Answered(status) => {
                streaks.local_failures.store(0, Relaxed);
                status.as_u16()
            }
            local if self.config.split => {
                let _ = local;
                let failures = streaks.local_failures.fetch_add(1, Relaxed) + 1;
                if failures != self.config.consecutive_local {
                    return false;
                }
                streaks.local_failures.store(0, Relaxed);
                stats.ejections_detected_local.inc();
                let ejected = self.eject(host, self.config.enforcing_local, hosts, now, stats);
                if ejected {
                    stats.ejections_enforced_local.inc();
                }
                return ejected;
            }
            // Not split, a failure of our own counts as the answer that the downstream gets for it.
            Outcome::TimedOut => 504,
            Outcome::ConnectFailed | Outcome::Reset => 503,
        };
        if code < 500 {
            streaks.consecutive_5xx.store(0, Relaxed);
            streaks.gateway_failures.store(0, Relaxed);
            return false;
        }
        let mut ejected = false;
        if (502..=504).contains(&code) {
            let failures = streaks.gateway_failures.fetch_add(1, Relaxed) + 1;
            if failures == self.config.consecutive_gateway {
                streaks.gateway_failures.store(0, Relaxed);
                stats.ejections_detected_gateway.inc();
                if self.eject(host, self.config.enforcing_gateway, hosts, now, stats) {
                    stats.ejections_enforced_gateway.inc();
                    ejected = true;
                }
            }
        } else {
            streaks.gateway_failures.store(0, Relaxed);
        }
        let failures = streaks.consecutive_5xx.fetch_add(1, Relaxed) + 1;
        if failures == self.config.consecutive_5xx {
            streaks.consecutive_5xx.store(0, Relaxed);
            stats.ejections_detected_5xx.inc();
            if self.eject(host, self.config.enforcing_5xx, hosts, now, stats) {
                stats.ejections_enforced_5xx.inc();
                ejected = true;
            }
        }
        ejected
    }

    fn eject(&self, host: &Arc<Host>, chance: u32, hosts: usize, now: Instant, stats: &ClusterStats) -> bool {
        if chance == 0 || (chance < 100 && fastrand::u32(..100) >= chance) {
            return false;
        }
        let state = self.state.load();
        let mut state = state.lock();
        if state.out.contains_key(&host.id()) {
            return false;
        }
        let out = state.out.len();
        let percent = 100.0 * (out + 1) as f64 / hosts.max(1) as f64;
        let allowed =
            percent <= f64::from(self.config.max_percent.min(100)) || (self.config.always_one && out == 0);
        if !allowed {
            stats.ejections_overflow.inc();
            return false;
        }
        *state.multipliers.entry(host.id()).or_default() += 1;
        state.out.insert(host.id(), Ejected { host: host.clone(), at: now });
        host.set_flag(HealthFlag::FailedOutlier, true);
        stats.ejections_active.add(1);
        stats.ejections_enforced_total.inc();
        tracing::info!(host = %host.address(), "host ejected");
        true
    }

    /// Lets hosts return whose time is over, and forgets those that are no more. True if the host set must be made anew.
    pub fn sweep(&self, present: &[Arc<Host>], now: Instant, stats: &ClusterStats) -> bool {
        let state = self.state.load();
        let mut state = state.lock();
        let is_present = |id: &HostId| present.iter().any(|h| h.id() == *id);
        let State { out, multipliers } = &mut *state;
        let mut returned = Vec::new();
        out.retain(|id, ejected| {
            let times = multipliers.get(id).copied().unwrap_or(1);
            let longest = self.config.max_ejection.max(self.config.base_ejection);
            let stay = self.config.base_ejection.saturating_mul(times).min(longest);
            let back = !is_present(id) || now.saturating_duration_since(ejected.at) >= stay;
            if back {
                ejected.host.set_flag(HealthFlag::FailedOutlier, false);
                for streak in [
                    &ejected.host.streaks.consecutive_5xx,
                    &ejected.host.streaks.gateway_failures,
                    &ejected.host.streaks.local_failures,
                ] {
                    streak.store(0, Relaxed);
                }
                stats.ejections_active.add(-1);
                tracing::info!(host = %ejected.host.address(), "ejected host returns");
                returned.push(*id);
            }
            !back
        });
        // A host that was in for a whole interval has that much less to its name.
        multipliers.retain(|id, times| {
            if !out.contains_key(id) && !returned.contains(id) {
                *times -= 1;
            }
            *times > 0 && is_present(id)
        });
        !returned.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::endpoint::Endpoint;
    use super::super::host::Facts;
    use super::super::limits::Thresholds;
    use super::super::stats::LazyStats;
    use super::*;

    fn hosts(n: u16) -> Vec<Arc<Host>> {
        let facts = Facts { locality: Arc::default(), metadata: None, transport: 0 };
        let endpoint = |i| Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], i + 1)));
        (0..n).map(|i| Host::new(&endpoint(i), 0, facts.clone())).collect()
    }

    fn detector(change: impl FnOnce(&mut OutlierConfig)) -> (Detector, Arc<LazyStats>) {
        let mut config = OutlierConfig { max_percent: 100, ..OutlierConfig::default() };
        change(&mut config);
        (Detector::new(config), LazyStats::new("t", [Thresholds::default(), Thresholds::default()]))
    }

    const BAD: Outcome = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
    const GOOD: Outcome = Outcome::Answered(StatusCode::OK);

    #[test]
    fn the_fifth_failure_in_a_row_ejects_and_a_success_starts_the_row_anew() {
        let (detector, stats) = detector(|_| {});
        let hosts = hosts(3);
        let now = Instant::now();
        let report = |outcome| detector.report(&hosts[0], outcome, 3, now, stats.get());
        assert!((0..4).all(|_| !report(BAD)));
        assert!(!report(GOOD));
        assert!((0..4).all(|_| !report(BAD)));
        assert!(report(BAD));
        assert!(hosts[0].has_flag(HealthFlag::FailedOutlier));
        assert_eq!(stats.get().ejections_active.value(), 1);
    }

    #[test]
    fn the_nth_ejection_lasts_n_times_the_base_time() {
        let (detector, stats) = detector(|c| c.base_ejection = Duration::from_secs(30));
        let hosts = hosts(2);
        let mut now = Instant::now();
        for times in [1, 2, 3] {
            let out = (0..5).any(|_| detector.report(&hosts[0], BAD, 2, now, stats.get()));
            assert!(out, "{times}");
            now += Duration::from_secs(30 * times) - Duration::from_millis(1);
            assert!(!detector.sweep(&hosts, now, stats.get()), "{times}");
            now += Duration::from_millis(1);
            assert!(detector.sweep(&hosts, now, stats.get()), "{times}");
            assert!(!hosts[0].has_flag(HealthFlag::FailedOutlier));
        }
    }

    #[test]
    fn a_quiet_interval_forgives_one_ejection_whoever_returns_meanwhile() {
        let (detector, stats) = detector(|c| c.base_ejection = Duration::from_secs(1));
        let hosts = hosts(2);
        let now = Instant::now();
        let fail = |host: &Arc<Host>, now| {
            assert!((0..5).any(|_| detector.report(host, BAD, 2, now, stats.get())));
        };
        let at = |seconds| now + Duration::from_secs(seconds);
        fail(&hosts[0], now);
        assert!(detector.sweep(&hosts, at(1), stats.get()));
        fail(&hosts[1], at(1));
        // The second returns in the interval in which the first is quiet.
        assert!(detector.sweep(&hosts, at(2), stats.get()));
        fail(&hosts[0], at(2));
        assert!(detector.sweep(&hosts, at(3), stats.get()), "its next ejection is a first one again");
    }

    #[test]
    fn no_more_than_the_percentage_is_ejected() {
        let (detector, stats) = detector(|c| c.max_percent = 50);
        let hosts = hosts(4);
        let now = Instant::now();
        let ejected = hosts
            .iter()
            .filter(|h| (0..5).any(|_| detector.report(h, BAD, hosts.len(), now, stats.get())))
            .count();
        assert_eq!(ejected, 2);
        assert_eq!(stats.get().ejections_overflow.value(), 2);
    }

    #[test]
    fn our_own_failures_count_as_the_answers_they_cause_unless_they_are_split() {
        let now = Instant::now();
        let (joined, stats) = detector(|_| {});
        let first = hosts(1);
        assert!((0..5).any(|_| joined.report(&first[0], Outcome::ConnectFailed, 1, now, stats.get())));
        let (split, stats) = detector(|c| (c.split, c.consecutive_local) = (true, 3));
        let first = hosts(1);
        let report = |outcome| split.report(&first[0], outcome, 1, now, stats.get());
        assert!(!report(Outcome::ConnectFailed) && !report(Outcome::TimedOut));
        // Four answers of 500 do not add to two failures to connect.
        assert!((0..4).all(|_| !report(BAD)));
        assert!(!report(Outcome::ConnectFailed) && !report(Outcome::Reset));
        assert!(report(Outcome::ConnectFailed));
    }
}
