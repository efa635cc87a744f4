//! Outlier ejection: a host that fails is left out for a while (Envoy's outlier_detection.proto).
//!
//! Answers are reported where they come in, on any worker, and count exactly: the fifth consecutive failure of five ejects.
//! Time is an argument; a driver on the control thread calls [`Detector::sweep`] at each interval, which lets hosts return and
//! compares their rates of success over the interval ([`rates`]).
//!
//! With a return window a host is half open when it returns: it ramps up ([`super::balance::ramp`]), and the first failure
//! within the window ejects it again.

pub mod events;
mod rates;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::events::Rates;
use super::balance::ramp::Moment;
use super::host::{HealthFlag, Host, HostId};
use super::stats::ClusterStats;

pub use self::settings::{Kind, OutlierConfig};

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

/// Whose doing a success or failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Origin {
    /// The upstream's answers; everything, unless failures of our own are split from them.
    External,
    /// Our own making of connections.
    Local,
}

/// What is counted per host.
#[derive(Debug)]
pub(super) struct Streaks {
    /// In a row: 5xx, gateway failures, failures of our own.
    consecutive: [AtomicU32; 3],
    /// All and successes since the last sweep, by origin.
    counts: [[AtomicU32; 2]; 2],
    /// The success rates of the last interval as bits, by origin; -1 for none.
    rates: [AtomicU64; 2],
}

impl Default for Streaks {
    fn default() -> Self {
        Self {
            consecutive: Default::default(),
            counts: Default::default(),
            rates: [(); 2].map(|()| AtomicU64::new((-1.0f64).to_bits())),
        }
    }
}

impl Streaks {
    /// The success rate of the last interval in percent; -1 where too little was asked of the host.
    pub(super) fn rate(&self, origin: Origin) -> f64 {
        f64::from_bits(self.rates[origin as usize].load(Relaxed))
    }

    fn set_rate(&self, origin: Origin, rate: f64) {
        self.rates[origin as usize].store(rate.to_bits(), Relaxed);
    }

    fn count(&self, origin: Origin, success: bool) {
        let [all, successes] = &self.counts[origin as usize];
        all.fetch_add(1, Relaxed);
        if success {
            successes.fetch_add(1, Relaxed);
        }
    }

    /// All and successes, which begin anew.
    fn take(&self, origin: Origin) -> (u32, u32) {
        let [all, successes] = &self.counts[origin as usize];
        (all.swap(0, Relaxed), successes.swap(0, Relaxed))
    }

    /// One more in a row; says how many that are.
    fn more(&self, kind: Kind) -> u32 {
        self.consecutive[kind as usize].fetch_add(1, Relaxed) + 1
    }

    fn end(&self, kind: Kind) {
        // Mostly it is 0 already, and then the workers can go on sharing the cache line.
        let streak = &self.consecutive[kind as usize];
        if streak.load(Relaxed) != 0 {
            streak.store(0, Relaxed);
        }
    }
}

/// What is remembered of a host that was ever detected.
#[derive(Debug)]
struct Record {
    host: Arc<Host>,
    out: bool,
    /// When it was ejected last.
    ejected: Option<Instant>,
    /// When it returned last.
    returned: Option<Instant>,
    /// By how much longer this ejection lasts.
    jitter: Duration,
    /// How many times the base time the next ejection lasts, less one; goes down again with each quiet interval.
    times: u32,
    ejections: u32,
}

impl Record {
    fn new(host: Arc<Host>) -> Self {
        let jitter = Duration::ZERO;
        Self { host, out: false, ejected: None, returned: None, jitter, times: 0, ejections: 0 }
    }
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<HostId, Record>,
    out: usize,
    /// Average and threshold of the last interval, by origin.
    compared: [Option<(f64, f64)>; 2],
}

impl State {
    /// Tells how many are out. As a number and not as a difference: another version of the cluster may have ejected them. It is only
    /// told while the state is locked.
    fn tell(&self, stats: &ClusterStats) {
        stats.ejections_active.set(self.out as i64);
    }
}

/// A cluster's detector.
#[derive(Debug)]
pub struct Detector {
    cluster: Arc<str>,
    config: OutlierConfig,
    /// How long a host that returned is half open.
    window: Option<Duration>,
    /// Shared between the versions of a cluster: a change of configuration pardons nobody, and forgets nobody.
    state: ArcSwap<Mutex<State>>,
}

impl Detector {
    /// A detector; `window` is how long a host that returned is half open.
    pub fn new(cluster: Arc<str>, config: OutlierConfig, window: Option<Duration>) -> Self {
        Self { cluster, config, window, state: ArcSwap::default() }
    }

    /// Goes on where the detector of the cluster's version before stands, with that version's hosts, and from now on together with it.
    pub fn adopt(&self, before: &Self) {
        self.state.store(before.state.load_full());
    }

    /// Tells how many are out.
    pub fn tell(&self, stats: &ClusterStats) {
        self.state.load().lock().tell(stats);
    }

    /// Whether no host was ever detected.
    pub fn remembers_nobody(&self) -> bool {
        self.state.load().lock().records.is_empty()
    }

    /// Its settings.
    pub fn config(&self) -> &OutlierConfig {
        &self.config
    }

    /// Average and threshold of the success rates in the last interval; -1 where there was nothing to compare.
    pub fn compared(&self, origin: Origin) -> (f64, f64) {
        self.state.load().lock().compared[origin as usize].unwrap_or((-1.0, -1.0))
    }

    /// Takes note that a connection was made, or found, for a request: what follows is not its failure.
    pub fn connected(&self, host: &Host) {
        if self.config.split {
            host.streaks.count(Origin::Local, true);
            host.streaks.end(Kind::ConsecutiveLocal);
        }
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
            Outcome::Answered(status) => status.as_u16(),
            _ if self.config.split => {
                streaks.count(Origin::Local, false);
                return self.failed(host, Kind::ConsecutiveLocal, hosts, now, stats);
            }
            // Not split, a failure of our own counts as the answer that the downstream gets for it.
            Outcome::TimedOut => 504,
            Outcome::ConnectFailed | Outcome::Reset => 503,
        };
        streaks.count(Origin::External, code < 500);
        if code < 500 {
            streaks.end(Kind::Consecutive5xx);
            streaks.end(Kind::ConsecutiveGateway);
            return false;
        }
        let mut ejected = false;
        if (502..=504).contains(&code) {
            ejected = self.failed(host, Kind::ConsecutiveGateway, hosts, now, stats);
        } else {
            streaks.end(Kind::ConsecutiveGateway);
        }
        self.failed(host, Kind::Consecutive5xx, hosts, now, stats) || ejected
    }

    /// One more failure in a row. True if the host was ejected for it.
    fn failed(&self, host: &Arc<Host>, kind: Kind, hosts: usize, now: Instant, stats: &ClusterStats) -> bool {
        let failures = host.streaks.more(kind);
        let limit = self.config.consecutive[kind as usize];
        if limit == 0 || (failures != limit && !self.is_half_open(host, now)) {
            return false;
        }
        let state = self.state.load();
        let mut state = state.lock();
        if state.records.get(&host.id()).is_some_and(|r| r.out) {
            return false;
        }
        stats.ejections_detected[kind as usize].inc();
        let ejected = self.eject(&mut state, host, kind, Rates::default(), hosts, now, stats);
        if kind == Kind::Consecutive5xx {
            stats.ejections_consecutive_5xx.inc();
        }
        host.streaks.end(kind);
        ejected
    }

    /// Whether the host returned so short a time ago that the next failure ejects it again.
    pub fn is_half_open(&self, host: &Host, now: Instant) -> bool {
        self.window.is_some_and(|w| host.returned().is_some_and(|at| Moment::of(now).since(at) < w))
    }

    #[allow(clippy::too_many_arguments, reason = "they are the decision's circumstances")]
    fn eject(
        &self,
        state: &mut State,
        host: &Arc<Host>,
        kind: Kind,
        rates: Rates,
        hosts: usize,
        now: Instant,
        stats: &ClusterStats,
    ) -> bool {
        let percent = 100.0 * (state.out + 1) as f64 / hosts.max(1) as f64;
        let allowed = percent <= f64::from(self.config.max_percent.min(100))
            || (self.config.always_one && state.out == 0);
        if !allowed {
            stats.ejections_overflow.inc();
            return false;
        }
        if matches!(kind, Kind::Consecutive5xx | Kind::SuccessRate) {
            stats.ejections_total.inc();
        }
        let record = state.records.entry(host.id()).or_insert_with(|| Record::new(host.clone()));
        let chance = self.config.enforcing[kind as usize];
        let enforced = chance >= 100 || (chance > 0 && fastrand::u32(..100) < chance);
        if enforced {
            record.out = true;
            record.ejections += 1;
            record.ejected = Some(now);
            record.jitter = random_part(self.config.max_jitter);
            if self.config.base_ejection * record.times < self.config.max_ejection + self.config.base_ejection
            {
                record.times += 1;
            }
            host.set_flag(HealthFlag::FailedOutlier, true);
            host.return_at(None);
            state.out += 1;
            stats.ejections_enforced_total.inc();
            stats.ejections_enforced[kind as usize].inc();
        }
        events::eject(&self.cluster, record, kind, rates, enforced, now);
        if enforced {
            state.tell(stats);
        }
        enforced
    }

    fn uneject(&self, record: &mut Record, now: Instant) {
        record.out = false;
        record.returned = Some(now);
        record.host.set_flag(HealthFlag::FailedOutlier, false);
        // Or a host would be out again for very little.
        for kind in [Kind::Consecutive5xx, Kind::ConsecutiveGateway, Kind::ConsecutiveLocal] {
            record.host.streaks.end(kind);
        }
        if self.window.is_some() {
            record.host.return_at(Some(Moment::of(now)));
        }
        events::uneject(&self.cluster, record, now);
    }

    /// An active health check of a host was passed, which ends its ejection unless that was configured off. True if the host
    /// set must be made anew.
    pub fn health_check_passed(&self, host: &Host, now: Instant, stats: &ClusterStats) -> bool {
        if !self.config.health_check_ends || !host.has_flag(HealthFlag::FailedOutlier) {
            return false;
        }
        let state = self.state.load();
        let mut state = state.lock();
        let Some(record) = state.records.get_mut(&host.id()).filter(|r| r.out) else { return false };
        self.uneject(record, now);
        state.out -= 1;
        state.tell(stats);
        true
    }

    /// Ends an interval: lets hosts return whose time is over, forgets those that are no more, ejects those that did worse
    /// than the others. True if the host set must be made anew.
    pub fn sweep(&self, present: &[Arc<Host>], now: Instant, stats: &ClusterStats) -> bool {
        let state = self.state.load();
        let mut state = state.lock();
        let mut changed = self.end_ejections(&mut state, present, now);
        for origin in [Origin::External, Origin::Local] {
            changed |= self.compare(&mut state, origin, present, now, stats);
        }
        for record in state.records.values_mut() {
            // A host that was in for a whole interval has that much less to its name.
            let quiet =
                record.returned.is_some_and(|at| now.saturating_duration_since(at) >= self.config.interval);
            if !record.out && quiet {
                record.times = record.times.saturating_sub(1);
            }
        }
        state.tell(stats);
        changed
    }

    fn end_ejections(&self, state: &mut State, present: &[Arc<Host>], now: Instant) -> bool {
        let mut changed = false;
        let State { records, out, .. } = state;
        records.retain(|id, record| {
            let stays = present.iter().any(|h| h.id() == *id);
            if record.out {
                let longest = self.config.max_ejection.max(self.config.base_ejection);
                let stay = self.config.base_ejection.saturating_mul(record.times).min(longest);
                let time = record.ejected.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
                if !stays || time >= stay + record.jitter {
                    self.uneject(record, now);
                    *out -= 1;
                    changed = true;
                }
            }
            stays
        });
        changed
    }
}

/// A random time of at most this, in milliseconds.
fn random_part(most: Duration) -> Duration {
    Duration::from_millis(fastrand::u64(..=most.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::endpoint::Endpoint;
    use super::super::host::Facts;
    use super::super::limits::Thresholds;
    use super::super::stats::LazyStats;
    use super::*;

    pub(super) fn hosts(n: u16) -> Vec<Arc<Host>> {
        let facts =
            Facts { locality: Arc::default(), metadata: None, transport: 0, check: Default::default() };
        let endpoint = |i| Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], i + 1)));
        (0..n).map(|i| Host::new(&endpoint(i), 0, facts.clone())).collect()
    }

    pub(super) fn detector(change: impl FnOnce(&mut OutlierConfig)) -> (Detector, Arc<LazyStats>) {
        let mut config = OutlierConfig { max_percent: 100, ..OutlierConfig::default() };
        change(&mut config);
        (
            Detector::new("t".into(), config, None),
            LazyStats::new("t", [Thresholds::default(), Thresholds::default()]),
        )
    }

    pub(super) const BAD: Outcome = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
    pub(super) const GOOD: Outcome = Outcome::Answered(StatusCode::OK);

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
        let (detector, stats) =
            detector(|c| (c.base_ejection, c.interval) = (Duration::from_secs(1), Duration::from_secs(1)));
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

    /// Answers and sweeps at random, with what must hold after each of them whatever came before.
    #[test]
    fn whatever_happens_no_more_are_out_than_may_be_nobody_without_five_failures_and_nobody_for_ever() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..100 {
            let percent = random.u32(0..=100);
            let count = random.u16(1..8);
            let base = Duration::from_millis(random.u64(100..5000));
            let (detector, stats) = detector(|c| {
                (c.max_percent, c.base_ejection, c.max_ejection) = (percent, base, base * 3);
            });
            let (hosts, mut now) = (hosts(count), Instant::now());
            // Failures in a row of each, and since when it is out.
            let mut rows = vec![0_u32; hosts.len()];
            let mut out: Vec<Option<Instant>> = vec![None; hosts.len()];
            for step in 0..400 {
                let told = format!("round {round}, step {step}: {percent} % of {count}");
                now += Duration::from_millis(random.u64(0..200));
                let at = random.usize(0..hosts.len());
                let failed = random.f32() < 0.8;
                rows[at] = if failed { rows[at] + 1 } else { 0 };
                let outcome = if failed { BAD } else { GOOD };
                if detector.report(&hosts[at], outcome, hosts.len(), now, stats.get()) {
                    assert!(
                        rows[at] >= 5 && out[at].is_none(),
                        "{told}: ejected after {} failures",
                        rows[at]
                    );
                    out[at] = Some(now);
                    rows[at] = 0;
                }
                if random.u8(0..4) == 0 {
                    detector.sweep(&hosts, now, stats.get());
                }
                for (host, out) in hosts.iter().zip(&mut out) {
                    match (*out, host.has_flag(HealthFlag::FailedOutlier)) {
                        (Some(since), false) => {
                            assert!(
                                now - since >= base,
                                "{told}: it was out for {:?} of {base:?}",
                                now - since
                            );
                            *out = None;
                        }
                        (None, true) => panic!("{told}: it is out and nobody was told"),
                        _ => {}
                    }
                }
                let ejected = out.iter().flatten().count();
                let most = (u32::from(count) * percent).div_ceil(100).max(1);
                assert!(ejected as u32 <= most, "{told}: {ejected} are out");
                assert_eq!(stats.get().ejections_active.value(), ejected as i64, "{told}");
            }
            // Who fails no more comes back.
            now += base * 3;
            detector.sweep(&hosts, now, stats.get());
            assert!(hosts.iter().all(|h| !h.has_flag(HealthFlag::FailedOutlier)), "round {round}");
        }
    }

    #[test]
    fn our_own_failures_count_as_the_answers_they_cause_unless_they_are_split() {
        let now = Instant::now();
        let (joined, stats) = detector(|_| {});
        let first = hosts(1);
        assert!((0..5).any(|_| joined.report(&first[0], Outcome::ConnectFailed, 1, now, stats.get())));
        let (split, stats) = detector(|c| (c.split, c.consecutive) = (true, [5, 5, 3]));
        let first = hosts(1);
        let report = |outcome| split.report(&first[0], outcome, 1, now, stats.get());
        assert!(!report(Outcome::ConnectFailed) && !report(Outcome::TimedOut));
        // Four answers of 500 do not add to two failures to connect, and a connection that was made ends their row.
        split.connected(&first[0]);
        assert!((0..4).all(|_| !report(BAD)));
        assert!(!report(Outcome::ConnectFailed) && !report(Outcome::Reset));
        assert!(report(Outcome::ConnectFailed));
    }

    #[test]
    fn an_ejection_lasts_longer_by_its_jitter() {
        let (detector, stats) = detector(|c| c.max_jitter = Duration::from_secs(5));
        let hosts = hosts(2);
        let now = Instant::now();
        assert!((0..5).any(|_| detector.report(&hosts[0], BAD, 2, now, stats.get())));
        let jitter = detector.state.load().lock().records[&hosts[0].id()].jitter;
        assert!(jitter <= Duration::from_secs(5));
        let end = now + Duration::from_secs(30) + jitter;
        assert!(!detector.sweep(&hosts, end - Duration::from_millis(1), stats.get()));
        assert!(detector.sweep(&hosts, end, stats.get()));
    }

    #[test]
    fn what_is_not_enforced_is_detected_but_ejects_nobody() {
        let (detector, stats) = detector(|_| {});
        let hosts = hosts(1);
        let bad = Outcome::Answered(StatusCode::BAD_GATEWAY);
        let ejected: Vec<_> =
            (0..5).map(|_| detector.report(&hosts[0], bad, 1, Instant::now(), stats.get())).collect();
        assert_eq!(ejected, [false, false, false, false, true]);
        let detected = stats.get().ejections_detected.map(|c| c.value());
        assert_eq!(detected, [1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(stats.get().ejections_enforced.map(|c| c.value()), [1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_passed_health_check_ends_an_ejection_unless_that_is_off() {
        for on in [true, false] {
            let (detector, stats) = detector(|c| c.health_check_ends = on);
            let hosts = hosts(1);
            let now = Instant::now();
            assert!((0..5).any(|_| detector.report(&hosts[0], BAD, 1, now, stats.get())));
            assert_eq!(detector.health_check_passed(&hosts[0], now, stats.get()), on);
            assert_eq!(hosts[0].has_flag(HealthFlag::FailedOutlier), !on);
            assert_eq!(stats.get().ejections_active.value(), i64::from(!on));
        }
    }

    #[test]
    fn a_host_that_returned_is_half_open_for_the_window() {
        let config = OutlierConfig { max_percent: 100, ..OutlierConfig::default() };
        let window = Duration::from_secs(10);
        let detector = Detector::new("t".into(), config, Some(window));
        let stats = LazyStats::new("t", [Thresholds::default(), Thresholds::default()]);
        let (stats, hosts, now) = (stats.get(), hosts(2), Instant::now());
        let report = |outcome, at| detector.report(&hosts[0], outcome, 2, at, stats);
        assert!((0..5).any(|_| report(BAD, now)));
        let back = now + Duration::from_secs(30);
        assert!(detector.sweep(&hosts, back, stats));
        assert!(detector.is_half_open(&hosts[0], back));
        assert!(!report(GOOD, back + window / 2), "a success is no failure");
        assert!(report(BAD, back + window / 2), "the first failure ejects");
        assert!(!detector.is_half_open(&hosts[0], back + window / 2));
        // The second ejection lasts twice as long; a window without a failure closes the circuit.
        let back = back + window / 2 + Duration::from_secs(60);
        assert!(detector.sweep(&hosts, back, stats));
        assert!((0..4).all(|_| !report(BAD, back + window)));
        assert!(report(BAD, back + window));
    }
}
