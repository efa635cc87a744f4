//! Whether a version on trial gets more, stays, or gets nothing: a pure function over what was counted, second by second.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::traffic_management::{CanaryDeployment, RollbackCriteria};

/// What is watched where the period is not given.
const PERIOD: Duration = Duration::from_secs(300);
/// Requests without which nothing is decided, where it is not given.
const MINIMUM: u64 = 100;

/// Requests and how they ended, in some time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// All of them.
    pub requests: u64,
    /// Answered 5xx.
    pub errors: u64,
    /// How long they took: how many took at most so many milliseconds, and more than the bound before.
    pub times: Vec<(f64, u64)>,
}

impl Counts {
    /// Adds what was counted elsewhere, or at another time.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        for (bound, count) in &other.times {
            match self.times.iter_mut().find(|(known, _)| known == bound) {
                Some((_, total)) => *total += count,
                None => self.times.push((*bound, *count)),
            }
        }
        self.times.sort_by(|a, b| a.0.total_cmp(&b.0));
    }

    /// Answers 5xx, in percent.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 * 100.0 / self.requests as f64 }
    }

    /// The time that 95 % took at most, in milliseconds, as near as the buckets tell; none if no times are known.
    pub fn p95(&self) -> Option<f64> {
        let all: u64 = self.times.iter().map(|(_, count)| count).sum();
        if all == 0 {
            return None;
        }
        let wanted = all as f64 * 0.95;
        let (mut below, mut from) = (0.0, 0.0);
        for (bound, count) in &self.times {
            let count = *count as f64;
            if below + count >= wanted && count > 0.0 {
                // Nothing is known of where they are in the last bucket, which has no end.
                let share = (wanted - below) / count;
                return Some(if bound.is_finite() { from + (bound - from) * share } else { from });
            }
            below += count;
            from = *bound;
        }
        Some(from)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {:.2} % errors", self.requests, self.error_rate())?;
        match self.p95() {
            Some(p95) => write!(f, ", p95 {p95:.0} ms"),
            None => Ok(()),
        }
    }
}

/// How far a trial is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It gets a share, and is watched.
    #[default]
    Progressing,
    /// It gets everything.
    Promoted,
    /// It gets nothing.
    RolledBack,
}

/// What becomes of a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets more.
    Advanced,
    /// It gets everything.
    Promoted,
    /// It is neither good enough nor bad enough.
    Held,
    /// It gets nothing any more.
    RolledBack,
}

/// What is kept of a trial, through restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Of which trial.
    pub identity: String,
    /// How far it is.
    pub phase: Phase,
    /// What the version on trial gets, in percent.
    pub canary_percent: u32,
    /// What was decided last, and why.
    pub message: String,
    /// Why nothing can be decided now, if so. Written though it is nothing: what is merged into a status would stay otherwise.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A trial.
#[derive(Clone, Debug)]
pub struct Trial {
    /// How it stands.
    pub standing: Standing,
    /// What was counted since the period began.
    pub period: Counts,
    began: Duration,
    /// When it was looked last.
    looked: Duration,
    /// The latest counts, as many as it takes to decide.
    recent: VecDeque<(Duration, Counts)>,
}

impl Trial {
    /// A trial that begins `now`, or goes on as it stood.
    pub fn new(spec: &CanaryDeployment, stood: Option<Standing>, now: Duration) -> Self {
        let begins = || Standing {
            identity: spec.identity(),
            phase: Phase::Progressing,
            canary_percent: spec.traffic_split.canary,
            message: format!("{} gets {} %", spec.canary_version, spec.traffic_split.canary),
            problem: None,
        };
        let standing = stood.filter(|s| s.identity == spec.identity()).unwrap_or_else(begins);
        Self { standing, period: Counts::default(), began: now, looked: now, recent: VecDeque::new() }
    }

    /// Too few proxies say what they have counted: the time since the last look is no part of the period.
    pub fn unseen(&mut self, now: Duration) {
        self.began += now.saturating_sub(self.looked);
        self.looked = now;
    }

    /// Takes what was counted since the last time.
    pub fn tick(&mut self, spec: &CanaryDeployment, now: Duration, counts: &Counts) -> Option<Outcome> {
        self.looked = now;
        if self.standing.phase != Phase::Progressing {
            return None;
        }
        let success = &spec.success_criteria;
        let minimum = success.minimum_request_count.unwrap_or(MINIMUM).max(1);
        let length = success.evaluation_period.map_or(PERIOD, |period| period.get());
        self.period.add(counts);
        if spec.rollback_criteria.immediate_rollback.unwrap_or(true) {
            let latest = self.latest(now, length, minimum, counts);
            if latest.requests >= minimum
                && let Some(why) = bad(&spec.rollback_criteria, &latest)
            {
                return Some(self.roll_back(spec, &why, &latest));
            }
        }
        if now.saturating_sub(self.began) < length || self.period.requests < minimum {
            return None;
        }
        let seen = std::mem::take(&mut self.period);
        self.began = now;
        if let Some(why) = bad(&spec.rollback_criteria, &seen) {
            return Some(self.roll_back(spec, &why, &seen));
        }
        let standing = &mut self.standing;
        if let Some(why) = short_of(spec, &seen) {
            standing.message =
                format!("{} stays at {} %: {why} ({seen})", spec.canary_version, standing.canary_percent);
            return Some(Outcome::Held);
        }
        self.recent.clear();
        let next = spec.steps.iter().copied().find(|step| *step > standing.canary_percent && *step < 100);
        let (percent, outcome) = match next {
            Some(step) => (step, Outcome::Advanced),
            None => (100, Outcome::Promoted),
        };
        standing.canary_percent = percent;
        standing.message = format!("{} gets {percent} % ({seen})", spec.canary_version);
        if outcome == Outcome::Promoted {
            standing.phase = Phase::Promoted;
        }
        Some(outcome)
    }

    fn roll_back(&mut self, spec: &CanaryDeployment, why: &str, seen: &Counts) -> Outcome {
        self.standing.phase = Phase::RolledBack;
        self.standing.canary_percent = 0;
        self.standing.message = format!("{} gets nothing any more: {why} ({seen})", spec.canary_version);
        self.recent.clear();
        Outcome::RolledBack
    }

    /// The latest requests, as few as it takes to decide: what was good long before does not hide what is bad now.
    fn latest(&mut self, now: Duration, length: Duration, minimum: u64, counts: &Counts) -> Counts {
        self.recent.push_back((now, counts.clone()));
        let mut total: u64 = self.recent.iter().map(|(_, counts)| counts.requests).sum();
        while let Some((at, first)) = self.recent.front() {
            let old = now.saturating_sub(*at) > length;
            if !old && total.saturating_sub(first.requests) < minimum {
                break;
            }
            total -= first.requests;
            self.recent.pop_front();
        }
        let mut all = Counts::default();
        self.recent.iter().for_each(|(_, counts)| all.add(counts));
        all
    }
}

/// Why it is to get nothing any more.
fn bad(criteria: &RollbackCriteria, seen: &Counts) -> Option<String> {
    if let Some(most) = criteria.error_rate_threshold.filter(|most| seen.error_rate() > *most) {
        return Some(format!("more than {most} % errors"));
    }
    let most = criteria.response_time_p95_threshold?;
    seen.p95().filter(|p95| *p95 > most).map(|_| format!("p95 over {most} ms"))
}

/// Why it does not get more.
fn short_of(spec: &CanaryDeployment, seen: &Counts) -> Option<String> {
    let criteria = &spec.success_criteria;
    if let Some(most) = criteria.error_rate_threshold.filter(|most| seen.error_rate() > *most) {
        return Some(format!("more than {most} % errors"));
    }
    let most = criteria.response_time_p95_threshold?;
    match seen.p95() {
        Some(p95) if p95 <= most => None,
        Some(_) => Some(format!("p95 over {most} ms")),
        None => Some("how long answers take is not known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::values::Timespan;

    /// The design's.
    fn spec() -> CanaryDeployment {
        use crate::model::traffic_management::{SuccessCriteria, TrafficSplit};
        CanaryDeployment {
            service: "user-service.ecotrack.svc.cluster.local".into(),
            stable_version: "v1.1.0".into(),
            canary_version: "v1.2.0".into(),
            traffic_split: TrafficSplit { stable: 90, canary: 10 },
            steps: vec![],
            success_criteria: SuccessCriteria {
                error_rate_threshold: Some(0.5),
                response_time_p95_threshold: Some(500.0),
                minimum_request_count: Some(100),
                evaluation_period: Some(Timespan::secs(300)),
            },
            rollback_criteria: RollbackCriteria {
                error_rate_threshold: Some(2.0),
                response_time_p95_threshold: Some(1000.0),
                immediate_rollback: Some(true),
            },
            sticky_by: None,
            prometheus: None,
        }
    }

    fn counts(requests: u64, errors: u64, time: f64) -> Counts {
        Counts { requests, errors, times: vec![(time, requests)] }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The outcome of `each` in every second, and when it comes.
    fn outcome(
        spec: &CanaryDeployment,
        seconds: u64,
        each: impl Fn(u64) -> Counts,
    ) -> (Option<(u64, Outcome)>, Trial) {
        let mut trial = Trial::new(spec, None, at(0));
        for second in 1..=seconds {
            if let Some(outcome) = trial.tick(spec, at(second), &each(second)) {
                return (Some((second, outcome)), trial);
            }
        }
        (None, trial)
    }

    #[test]
    fn what_is_good_is_promoted_when_the_period_is_over_and_not_before() {
        // 0.4 % errors and 450 ms.
        let good = |second| counts(10, u64::from(second % 25 == 0), 450.0);
        let (found, trial) = outcome(&spec(), 400, good);
        assert_eq!(found, Some((300, Outcome::Promoted)));
        assert_eq!((trial.standing.phase, trial.standing.canary_percent), (Phase::Promoted, 100));
        assert_eq!(trial.standing.message, "v1.2.0 gets 100 % (3000 requests, 0.40 % errors, p95 428 ms)");
    }

    #[test]
    fn with_too_few_requests_there_is_no_verdict() {
        let few = |second| counts(u64::from(second <= 99), u64::from(second <= 99), 10.0);
        assert_eq!(outcome(&spec(), 1000, few).0, None, "99 requests, all of them errors");
        let enough = |second| counts(u64::from(second <= 99 || second == 500), 0, 10.0);
        assert_eq!(outcome(&spec(), 1000, enough).0, Some((500, Outcome::Promoted)));
    }

    #[test]
    fn what_is_bad_is_rolled_back_at_once_however_good_it_was() {
        let (found, trial) =
            outcome(&spec(), 300, |second| counts(100, if second < 250 { 0 } else { 3 }, 10.0));
        assert_eq!(found, Some((250, Outcome::RolledBack)));
        assert_eq!((trial.standing.phase, trial.standing.canary_percent), (Phase::RolledBack, 0));
        assert!(trial.standing.message.contains("more than 2 % errors (100 requests, 3.00 % errors"));
        // Slow ones as well.
        let slow = |second| counts(100, 0, if second < 250 { 10.0 } else { 2500.0 });
        assert_eq!(outcome(&spec(), 300, slow).0, Some((250, Outcome::RolledBack)));
        // Unless it is to wait.
        let mut patient = spec();
        patient.rollback_criteria.immediate_rollback = Some(false);
        assert_eq!(outcome(&patient, 400, |_| counts(100, 3, 10.0)).0, Some((300, Outcome::RolledBack)));
    }

    #[test]
    fn between_the_thresholds_it_is_held_and_watched_again() {
        let mut trial = Trial::new(&spec(), None, at(0));
        let mut outcomes = Vec::new();
        for second in 1..=1200 {
            // 1 % at first, then none.
            let errors = u64::from(second <= 600);
            if let Some(outcome) = trial.tick(&spec(), at(second), &counts(100, errors, 10.0)) {
                outcomes.push((second, outcome, trial.standing.canary_percent));
            }
        }
        let held = Outcome::Held;
        assert_eq!(outcomes, [(300, held.clone(), 10), (600, held, 10), (900, Outcome::Promoted, 100)]);
    }

    /// Proxies stop saying what they count after 20 s, and say it again after 220.
    #[test]
    fn time_that_nobody_saw_is_no_part_of_the_period() {
        let mut trial = Trial::new(&spec(), None, at(0));
        let mut ended = None;
        for second in 1..=600 {
            let seen = !(20..220).contains(&second);
            if !seen {
                trial.unseen(at(second));
            }
            let counted = if seen { counts(100, 0, 10.0) } else { Counts::default() };
            if trial.tick(&spec(), at(second), &counted).is_some() {
                ended = Some(second);
                break;
            }
        }
        assert_eq!(ended, Some(500));
    }

    #[test]
    fn it_goes_by_steps_each_watched_for_itself() {
        let mut spec = spec();
        spec.steps = vec![25, 50];
        let mut trial = Trial::new(&spec, None, at(0));
        let mut percents = Vec::new();
        for second in 1..=1000 {
            if trial.tick(&spec, at(second), &counts(10, 0, 10.0)).is_some() {
                percents.push((second, trial.standing.canary_percent));
            }
        }
        assert_eq!(percents, [(300, 25), (600, 50), (900, 100)]);
    }

    #[test]
    fn what_was_decided_outlives_a_restart_and_another_version_begins_anew() {
        let (_, rolled_back) = outcome(&spec(), 300, |_| counts(100, 3, 10.0));
        let mut again = Trial::new(&spec(), Some(rolled_back.standing.clone()), at(0));
        assert_eq!(again.standing.phase, Phase::RolledBack);
        assert_eq!(again.tick(&spec(), at(1), &counts(1000, 0, 1.0)), None);
        let next = CanaryDeployment { canary_version: "v1.3.0".into(), ..spec() };
        let next = Trial::new(&next, Some(rolled_back.standing), at(0));
        assert_eq!((next.standing.phase, next.standing.canary_percent), (Phase::Progressing, 10));
    }

    #[test]
    fn a_percentile_lies_within_its_bucket() {
        let times = vec![(1.0, 50), (5.0, 40), (10.0, 10)];
        assert_eq!(Counts { requests: 100, errors: 0, times }.p95(), Some(7.5));
        assert_eq!(Counts::default().p95(), None);
        assert_eq!(counts(10, 0, f64::INFINITY).p95(), Some(0.0));
    }
}
