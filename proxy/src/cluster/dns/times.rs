//! When a name is looked up again.

use std::time::Duration;

use crate::cluster::config::DnsTimes;

/// Asking more often than this helps nobody.
const SHORTEST: Duration = Duration::from_secs(1);
/// Where no jitter is set, a time is longer by up to this part of it, so that proxies that have started together do not go on
/// asking together.
const SPREAD: u32 = 10;

impl DnsTimes {
    /// The time to the next look-up after an answer that holds so long.
    pub(super) fn after(&self, ttl: Duration) -> Duration {
        let tells = self.respect_ttl && !ttl.is_zero();
        self.spread(if tells { ttl.max(self.least).max(SHORTEST) } else { self.refresh })
    }

    /// The time to the next look-up after so many failures in a row.
    pub(super) fn after_failures(&self, failures: u32) -> Duration {
        match self.failure {
            None => self.spread(self.refresh),
            Some((base, most)) => {
                let bound = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most);
                // Between the base and the bound, so that a fleet does not ask in step.
                base + random(bound.saturating_sub(base) + Duration::from_millis(1))
            }
        }
    }

    fn spread(&self, time: Duration) -> Duration {
        let jitter = if self.jitter.is_zero() { time / SPREAD } else { self.jitter };
        time.saturating_add(random(jitter))
    }
}

/// A random time below this, in milliseconds.
fn random(below: Duration) -> Duration {
    match below.as_millis() as u64 {
        0 => Duration::ZERO,
        millis => Duration::from_millis(fastrand::u64(..millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_up_follows_the_answers_time_or_the_rate_or_grows_with_failures() {
        let seconds = Duration::from_secs;
        let times = DnsTimes {
            refresh: seconds(5),
            respect_ttl: true,
            least: seconds(3),
            jitter: Duration::from_millis(2),
            failure: Some((seconds(2), seconds(10))),
        };
        let after = |times: DnsTimes| [0, 2, 60].map(|ttl| times.after(seconds(ttl)).as_secs());
        assert_eq!(after(times), [5, 3, 60]);
        assert_eq!(after(DnsTimes { respect_ttl: false, ..times }), [5, 5, 5]);
        for failures in 1..100 {
            let most = [2, 4, 8, 10][(failures as usize - 1).min(3)];
            let next = times.after_failures(failures);
            assert!(
                next >= seconds(2) && next <= seconds(most) + Duration::from_millis(1),
                "{failures} {next:?}"
            );
            // Nobody says how they are spread: over a tenth.
            let usual = DnsTimes { jitter: Duration::ZERO, failure: None, ..times }.after_failures(failures);
            assert!(usual >= seconds(5) && usual < Duration::from_millis(5500), "{usual:?}");
        }
        assert_eq!(DnsTimes { failure: None, ..times }.after_failures(9).as_secs(), 5);
    }
}
