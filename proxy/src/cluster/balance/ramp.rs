//! Ramps: a host that is new, or that comes back, gets a growing share of its weight (Envoy's `slow_start_config`).
//!
//! A list whose hosts are all past their ramps carries none, so that balancing costs what it costs without. While a list
//! has one, round robin and least request schedule by weight, and read each host's share anew at every turn.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::cluster::host::Host;

/// How a share grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// From the least share to all of it.
    pub window: Duration,
    /// 1 grows evenly; more grows sooner, less grows later (Envoy's `aggression`).
    pub aggression: f64,
    /// The least share, of 1.
    pub least: f64,
}

impl Ramp {
    /// The share of 1 at this age.
    pub fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.max(Duration::from_millis(1)).as_secs_f64() / self.window.as_secs_f64();
        let grown = if self.aggression == 1.0 { time } else { time.powf(1.0 / self.aggression) };
        grown.max(self.least).min(1.0)
    }
}

/// The ramps of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ramps {
    /// For hosts that are new, or passed their health checks again.
    pub start: Option<Ramp>,
    /// For hosts that return from ejection or failed health checks (`return_window`).
    pub back: Option<Ramp>,
}

impl Ramps {
    /// What a host's weight is multiplied by.
    pub(in crate::cluster) fn share(&self, host: &Host, now: Moment) -> f64 {
        let part = |ramp: Option<Ramp>, since: Option<Moment>| match (ramp, since) {
            (Some(ramp), Some(since)) => ramp.share(now.since(since)),
            _ => 1.0,
        };
        part(self.start, host.started()).min(part(self.back, host.returned()))
    }

    /// When the last of a host's ramps is over, if that is still to come.
    pub(in crate::cluster) fn end(&self, host: &Host, now: Moment) -> Option<Moment> {
        let end = |ramp: Option<Ramp>, since: Option<Moment>| Some(since?.plus(ramp?.window));
        end(self.start, host.started()).max(end(self.back, host.returned())).filter(|end| *end > now)
    }
}

/// A point in time that fits into an atomic: milliseconds since about when the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// Some time before the first moment, so that tests can go back from now.
const BEFORE: u64 = 1_000_000_000;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Moment {
    /// This point in time.
    pub fn of(instant: Instant) -> Self {
        match instant.checked_duration_since(*EPOCH) {
            Some(after) => Self(BEFORE + after.as_millis() as u64),
            None => Self(BEFORE.saturating_sub(EPOCH.saturating_duration_since(instant).as_millis() as u64)),
        }
    }

    /// Now.
    pub fn now() -> Self {
        Self::of(Instant::now())
    }

    /// The time from an earlier moment to this one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Later by so much.
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Earlier by so much.
    #[cfg(test)]
    pub fn minus(self, time: Duration) -> Self {
        Self(self.0 - time.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_from_the_least_to_all_as_aggression_says() {
        let ramp = |aggression, least| Ramp { window: Duration::from_secs(100), aggression, least };
        let at = |r: Ramp, seconds| (r.share(Duration::from_secs(seconds)) * 1000.0).round() / 1000.0;
        assert_eq!(
            [0, 5, 10, 50, 99, 100, 500].map(|s| at(ramp(1.0, 0.1), s)),
            [0.1, 0.1, 0.1, 0.5, 0.99, 1.0, 1.0]
        );
        // 0.25 to the power of 1/2 and of 2.
        assert_eq!((at(ramp(2.0, 0.1), 25), at(ramp(0.5, 0.0), 25)), (0.5, 0.063));
        // Without a least share, the first millisecond counts.
        assert_eq!(ramp(1.0, 0.0).share(Duration::ZERO), 1e-5);
    }
}
