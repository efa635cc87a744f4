//! Ejection by comparison: at the end of an interval, hosts whose success rate is far under the others' (by their standard
//! deviation), or whose percentage of failures is over a threshold.

use std::sync::Arc;
use std::time::Instant;

use super::events::Rates;
use super::{Detector, Kind, Origin, State};
use crate::cluster::host::{HealthFlag, Host};
use crate::cluster::stats::ClusterStats;

impl Detector {
    /// Ejects by the interval's counts of this origin, which begin anew. True if a host was ejected.
    pub(super) fn compare(
        &self,
        state: &mut State,
        origin: Origin,
        present: &[Arc<Host>],
        now: Instant,
        stats: &ClusterStats,
    ) -> bool {
        let config = &self.config;
        state.compared[origin as usize] = None;
        let (by_rate, by_failures) = match origin {
            Origin::External => (Kind::SuccessRate, Kind::FailurePercentage),
            Origin::Local => (Kind::SuccessRateLocal, Kind::FailurePercentageLocal),
        };
        let enough_hosts = |n: usize, needed: u32| n > 0 && n >= needed as usize;
        let mut judged = Vec::new();
        for host in present {
            let (all, successes) = host.streaks.take(origin);
            let out = host.has_flag(HealthFlag::FailedOutlier);
            let rate = f64::from(successes) * 100.0 / f64::from(all);
            let counts = !out && all > 0 && all >= config.success_rate_requests.min(config.failure_requests);
            host.streaks.set_rate(origin, if counts { rate } else { -1.0 });
            if counts {
                judged.push((host, rate, all));
            }
        }
        let mut ejected = false;
        let rates: Vec<_> = judged.iter().filter(|(.., all)| *all >= config.success_rate_requests).collect();
        if enough_hosts(rates.len(), config.success_rate_hosts) {
            let (average, threshold) =
                threshold(rates.iter().map(|(_, rate, _)| *rate), config.success_rate_factor);
            state.compared[origin as usize] = Some((average, threshold));
            for (host, rate, _) in rates.into_iter().filter(|(_, rate, _)| *rate < threshold) {
                stats.ejections_success_rate.inc();
                stats.ejections_detected[by_rate as usize].inc();
                let rates = Rates { host: *rate, average, threshold };
                ejected |= self.eject(state, host, by_rate, rates, present.len(), now, stats);
            }
        }
        let failures: Vec<_> = judged.iter().filter(|(.., all)| *all >= config.failure_requests).collect();
        if enough_hosts(failures.len(), config.failure_hosts) {
            let too_many = |rate: f64| 100.0 - rate >= f64::from(config.failure_threshold);
            for (host, rate, _) in failures.into_iter().filter(|(_, rate, _)| too_many(*rate)) {
                // Its rate may have ejected it just now.
                if host.has_flag(HealthFlag::FailedOutlier) {
                    continue;
                }
                stats.ejections_detected[by_failures as usize].inc();
                let rates = Rates { host: *rate, ..Rates::default() };
                ejected |= self.eject(state, host, by_failures, rates, present.len(), now, stats);
            }
        }
        ejected
    }
}

/// The average, and the average less so many thousandths of the standard deviation.
fn threshold(rates: impl ExactSizeIterator<Item = f64> + Clone, factor: u32) -> (f64, f64) {
    let n = rates.len() as f64;
    let average = rates.clone().sum::<f64>() / n;
    let variance = rates.map(|rate| (rate - average).powi(2)).sum::<f64>() / n;
    (average, average - f64::from(factor) / 1000.0 * variance.sqrt())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::super::Outcome;
    use super::super::tests::{BAD, GOOD, detector, hosts};
    use super::*;

    #[test]
    fn the_threshold_is_under_the_average_by_the_deviation() {
        let rates = [50.0, 100.0, 100.0, 100.0, 100.0];
        assert_eq!(threshold(rates.into_iter(), 1900), (90.0, 52.0));
    }

    fn ask(detector: &Detector, host: &Arc<Host>, good: u32, bad: u32, stats: &ClusterStats) {
        // Alternating, so that no row of failures ejects.
        for i in 0..good.max(bad) {
            if i < bad {
                detector.report(host, BAD, 5, Instant::now(), stats);
            }
            if i < good {
                detector.report(host, GOOD, 5, Instant::now(), stats);
            }
        }
    }

    #[test]
    fn a_host_far_under_the_others_is_ejected_at_the_end_of_the_interval() {
        let (detector, stats) = detector(|c| c.consecutive = [1000; 3]);
        let stats = stats.get();
        let hosts = hosts(5);
        for host in &hosts[1..] {
            ask(&detector, host, 100, 0, stats);
        }
        ask(&detector, &hosts[0], 50, 50, stats);
        assert!(detector.sweep(&hosts, Instant::now(), stats));
        let out: Vec<_> = hosts.iter().map(|h| h.has_flag(HealthFlag::FailedOutlier)).collect();
        assert_eq!(out, [true, false, false, false, false]);
        assert_eq!(stats.ejections_enforced[Kind::SuccessRate as usize].value(), 1);
        assert_eq!(hosts[0].streaks.rate(Origin::External), 50.0);
        assert_eq!(detector.compared(Origin::External), (90.0, 52.0));
        // The counts began anew: nothing is compared in a quiet interval.
        assert!(!detector.sweep(&hosts, Instant::now(), stats));
        assert_eq!(detector.compared(Origin::External), (-1.0, -1.0));
    }

    #[test]
    fn too_few_hosts_or_requests_are_not_compared() {
        for (n, requests) in [(4, 100), (5, 99)] {
            let (detector, stats) = detector(|c| c.consecutive = [1000; 3]);
            let hosts = hosts(n);
            for host in &hosts[1..] {
                ask(&detector, host, requests, 0, stats.get());
            }
            ask(&detector, &hosts[0], requests / 2, requests - requests / 2, stats.get());
            assert!(!detector.sweep(&hosts, Instant::now(), stats.get()), "{n} {requests}");
        }
    }

    #[test]
    fn a_percentage_of_failures_ejects_when_it_is_enforced() {
        for (enforcing, failures, ejected) in [(100, 85, 1), (100, 84, 0), (0, 85, 0)] {
            let (detector, stats) = detector(|c| {
                c.consecutive = [1000; 3];
                c.enforcing[Kind::SuccessRate as usize] = 0;
                c.enforcing[Kind::FailurePercentage as usize] = enforcing;
                c.failure_hosts = 1;
            });
            let (stats, hosts) = (stats.get(), hosts(2));
            ask(&detector, &hosts[0], 100 - failures, failures, stats);
            assert_eq!(detector.sweep(&hosts, Instant::now(), stats), ejected == 1);
            let kind = Kind::FailurePercentage as usize;
            assert_eq!(stats.ejections_detected[kind].value(), u64::from(failures == 85));
            assert_eq!(stats.ejections_enforced[kind].value(), ejected);
        }
    }

    #[test]
    fn split_our_own_failures_have_rates_of_their_own() {
        let (detector, stats) = detector(|c| {
            (c.split, c.consecutive, c.failure_hosts) = (true, [1000; 3], 1);
            c.enforcing[Kind::FailurePercentageLocal as usize] = 100;
        });
        let (stats, hosts) = (stats.get(), hosts(2));
        for _ in 0..50 {
            detector.report(&hosts[0], Outcome::ConnectFailed, 2, Instant::now(), stats);
            detector.connected(&hosts[1]);
            detector.report(&hosts[1], Outcome::Answered(StatusCode::OK), 2, Instant::now(), stats);
        }
        let now = Instant::now() + Duration::from_secs(10);
        assert!(detector.sweep(&hosts, now, stats));
        assert!(hosts[0].has_flag(HealthFlag::FailedOutlier));
        assert_eq!(stats.ejections_enforced[Kind::FailurePercentageLocal as usize].value(), 1);
    }
}
