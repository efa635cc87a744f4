//! Circuit breakers, as their state follows from what proxies count: a pure function, for each proxy and for all of them together.
//!
//! A proxy has ejections of single endpoints and limits of whole services, and no one state. OPEN is here: an endpoint is ejected, or
//! a limit is reached. HALF_OPEN: nothing is any more, and it is not known yet whether that is well. CLOSED: it is.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

/// Where the DestinationRule does not say: Envoy's time of the first ejection, and between its sweeps.
pub const DEFAULT_TIMES: Times = Times { base: Duration::from_secs(30), interval: Duration::from_secs(10) };

/// What a proxy says of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers 5xx.
    pub failures: u64,
    /// Other answers.
    pub successes: u64,
    /// Endpoints that are ejected now.
    pub ejected: u64,
    /// Ejections so far.
    pub ejections: u64,
    /// Limits that are reached now.
    pub reached: u64,
}

/// What the DestinationRule says of ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long the first one lasts; each that follows lasts as much longer.
    pub base: Duration,
    /// Time between sweeps.
    pub interval: Duration,
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Circuit {
    /// Requests pass.
    #[default]
    Closed,
    /// They pass again; it is being seen whether that is well.
    HalfOpen,
    /// Some do not.
    Open,
}

/// A circuit, at one proxy or at all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Breaker {
    /// Its state.
    pub state: Circuit,
    /// Answers 5xx, since the proxy began.
    pub failures: u64,
    /// Other answers.
    pub successes: u64,
    /// When failures were seen last.
    pub last_failure: Option<OffsetDateTime>,
    /// When an ejected endpoint is tried again, as far as it is known.
    pub next_retry: Option<OffsetDateTime>,
    seen: Option<Seen>,
    /// Ejections since it was closed last.
    in_a_row: u32,
    /// Since when nothing has failed.
    quiet_since: Option<OffsetDateTime>,
    /// Successes when it became half open.
    at_half: u64,
}

impl Breaker {
    /// Takes what a proxy says now.
    pub fn tick(&mut self, now: OffsetDateTime, seen: Seen, times: Times) {
        let first = self.seen.is_none();
        let before = self.seen.replace(seen).unwrap_or(seen);
        // A proxy that counts less than before has begun anew.
        let anew = seen.failures < before.failures || seen.successes < before.successes;
        let failed = seen.failures > if anew { 0 } else { before.failures };
        (self.failures, self.successes) = (seen.failures, seen.successes);
        if failed {
            self.last_failure = Some(now);
            self.quiet_since = None;
        }
        let quiet_since = *self.quiet_since.get_or_insert(now);
        let ejected = seen.ejections.saturating_sub(if anew { 0 } else { before.ejections });
        if ejected > 0 || (first && seen.ejected > 0) {
            self.in_a_row = self.in_a_row.saturating_add(1);
            // As long as anybody may write: a time that no calendar has is none.
            let pause = times.base.checked_mul(self.in_a_row).and_then(|pause| pause.try_into().ok());
            self.next_retry = pause.and_then(|pause| now.checked_add(pause));
        }
        if seen.ejected > 0 || seen.reached > 0 {
            self.state = Circuit::Open;
            if seen.ejected == 0 {
                // A limit is tried by each request.
                self.next_retry = None;
            }
            return;
        }
        self.next_retry = None;
        match self.state {
            Circuit::Open => {
                (self.state, self.at_half, self.quiet_since) = (Circuit::HalfOpen, seen.successes, Some(now));
            }
            Circuit::HalfOpen if now - quiet_since >= times.interval && seen.successes > self.at_half => {
                (self.state, self.in_a_row) = (Circuit::Closed, 0);
            }
            _ => {}
        }
    }

    /// All of them as one: the worst state, the sums, the latest failure, the next trial.
    pub fn together<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut together = Self::default();
        for one in all {
            together.state = together.state.max(one.state);
            together.failures += one.failures;
            together.successes += one.successes;
            together.last_failure = together.last_failure.max(one.last_failure);
            together.next_retry = match (together.next_retry, one.next_retry) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        together
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { base: Duration::from_secs(30), interval: Duration::from_secs(5) };

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds)
    }

    fn seen(failures: u64, successes: u64, ejected: u64, ejections: u64) -> Seen {
        Seen { failures, successes, ejected, ejections, reached: 0 }
    }

    #[test]
    fn a_circuit_opens_is_tried_and_closes() {
        let mut breaker = Breaker::default();
        breaker.tick(at(0), seen(0, 100, 0, 0), TIMES);
        assert_eq!((breaker.state, breaker.last_failure, breaker.next_retry), (Circuit::Closed, None, None));
        breaker.tick(at(1), seen(5, 100, 1, 1), TIMES);
        assert_eq!((breaker.state, breaker.failures, breaker.successes), (Circuit::Open, 5, 100));
        assert_eq!((breaker.last_failure, breaker.next_retry), (Some(at(1)), Some(at(31))));
        breaker.tick(at(31), seen(5, 120, 0, 1), TIMES);
        assert_eq!((breaker.state, breaker.next_retry), (Circuit::HalfOpen, None));
        // It fails again, and is ejected for twice as long.
        breaker.tick(at(32), seen(10, 120, 1, 2), TIMES);
        assert_eq!((breaker.state, breaker.next_retry), (Circuit::Open, Some(at(92))));
        breaker.tick(at(92), seen(10, 130, 0, 2), TIMES);
        breaker.tick(at(96), seen(10, 140, 0, 2), TIMES);
        assert_eq!(breaker.state, Circuit::HalfOpen);
        breaker.tick(at(97), seen(10, 141, 0, 2), TIMES);
        assert_eq!((breaker.state, breaker.last_failure), (Circuit::Closed, Some(at(32))));
        // The count begins anew with the next.
        breaker.tick(at(100), seen(15, 141, 1, 3), TIMES);
        assert_eq!(breaker.next_retry, Some(at(130)));
    }

    #[test]
    fn without_a_request_nothing_is_known_to_be_well() {
        let mut breaker = Breaker::default();
        breaker.tick(at(0), seen(5, 0, 1, 1), TIMES);
        breaker.tick(at(30), seen(5, 0, 0, 1), TIMES);
        breaker.tick(at(300), seen(5, 0, 0, 1), TIMES);
        assert_eq!(breaker.state, Circuit::HalfOpen);
        breaker.tick(at(301), seen(5, 1, 0, 1), TIMES);
        assert_eq!(breaker.state, Circuit::Closed);
    }

    #[test]
    fn a_limit_that_is_reached_opens_it_too() {
        let mut breaker = Breaker::default();
        breaker.tick(at(0), Seen { reached: 1, ..Seen::default() }, TIMES);
        assert_eq!((breaker.state, breaker.next_retry), (Circuit::Open, None));
    }

    #[test]
    fn all_together_are_as_the_worst_of_them() {
        let (mut good, mut bad) = (Breaker::default(), Breaker::default());
        good.tick(at(0), seen(1, 10, 0, 0), TIMES);
        bad.tick(at(0), seen(5, 20, 1, 1), TIMES);
        let all = Breaker::together([&good, &bad]);
        assert_eq!((all.state, all.failures, all.successes), (Circuit::Open, 6, 30));
        assert_eq!(all.next_retry, bad.next_retry);
        assert_eq!(serde_json::to_value(Circuit::HalfOpen).unwrap(), "HALF_OPEN");
    }
}
