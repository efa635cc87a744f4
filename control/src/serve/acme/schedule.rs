//! When a certificate is asked for: pure functions of times.

use std::time::Duration;

use time::OffsetDateTime;

/// Share of the life after which a certificate is renewed.
pub(super) const RENEW_AT: f64 = 2.0 / 3.0;
/// How much that share may vary, up or down, so that what was issued together is not renewed together.
pub(super) const JITTER: f64 = 0.02;
/// How long the first failure is waited after, at most. Authorities give few tries an hour: each pause is three times the
/// last one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause, and the one after an authority said that it was asked too often.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// When a certificate that is valid between these moments is renewed. `jitter` is a random number in -1..=1.
pub(super) fn renewal(from: OffsetDateTime, until: OffsetDateTime, jitter: f64) -> OffsetDateTime {
    from + (until - from) * (RENEW_AT + JITTER * jitter.clamp(-1.0, 1.0))
}

/// How long to wait after so many failures in a row (at least one). `left` is what is left of the certificate's life, if
/// there is one: while it lasts there are some tries yet. `jitter` is a random number in 0..=1; half of the pause is random.
pub(super) fn pause(failures: u32, left: Option<Duration>, jitter: f64) -> Duration {
    let grown = FIRST_PAUSE.saturating_mul(3_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    let left =
        left.filter(|left| !left.is_zero()).map_or(Duration::MAX, |left| (left / 10).max(FIRST_PAUSE / 5));
    grown.min(LONGEST_PAUSE).min(left).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_renewed_at_two_thirds_of_its_life_give_or_take_a_fiftieth() {
        let from = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let until = from + Duration::from_secs(90 * 86_400);
        for (jitter, days) in [(-1.0, 58.2), (0.0, 60.0), (1.0, 61.8), (9.0, 61.8)] {
            let after = (renewal(from, until, jitter) - from).as_seconds_f64() / 86_400.0;
            assert!((after - days).abs() < 0.001, "{after} days");
        }
    }

    #[test]
    fn pauses_grow_to_an_hour_and_leave_tries_to_what_is_left() {
        let seconds = |failures, left| pause(failures, left, 1.0).as_secs_f64();
        let grown: Vec<f64> = (1..9).map(|failures| seconds(failures, None)).collect();
        assert_eq!(grown, [10.0, 30.0, 90.0, 270.0, 810.0, 2430.0, 3600.0, 3600.0]);
        assert_eq!(pause(3, None, 0.0), Duration::from_secs(45), "half of it is random");
        assert_eq!(pause(u32::MAX, None, 1.0), LONGEST_PAUSE);
        let day = Some(Duration::from_secs(86_400));
        assert_eq!((seconds(1, day), seconds(9, day)), (10.0, 3600.0));
        assert_eq!(seconds(9, Some(Duration::from_secs(600))), 60.0);
        // But it is not asked without end in the last moments, and not more often when it is over.
        assert_eq!(seconds(9, Some(Duration::from_secs(1))), 2.0);
        assert_eq!(seconds(9, Some(Duration::ZERO)), 3600.0);
    }
}
