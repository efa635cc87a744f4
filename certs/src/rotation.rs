//! When a workload renews its certificate: a pure state machine.
//!
//! It renews at half of the certificate's life (with a little jitter, so that a fleet that started together does not renew
//! together), and on failure tries again with growing pauses until the certificate expires. The old certificate serves until
//! the new one is installed, and an expired one never does.

use std::time::Duration;

use time::OffsetDateTime;

/// Share of the life after which to renew (Istio's SECRET_GRACE_PERIOD_RATIO).
pub const RENEW_AT: f64 = 0.5;
/// How much that share may vary, up or down (Istio's SECRET_GRACE_PERIOD_RATIO_JITTER).
pub const JITTER: f64 = 0.01;
/// The first pause after a failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after failures.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a peer's refusal of the certificate counts, at first; each further one counts for twice as long.
pub const FIRST_DOUBT: Duration = Duration::from_secs(10);
/// And at the most. Twice as long without a refusal, and all is forgotten.
pub const LONGEST_DOUBT: Duration = Duration::from_secs(600);

/// A certificate's validity as the machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it was issued. Not its not-before, which is back-dated for clocks that are behind.
    pub issued: OffsetDateTime,
    /// Its not-after.
    pub expires: OffsetDateTime,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a certificate now.
    Request,
    /// Nothing until this moment.
    WaitUntil(OffsetDateTime),
}

/// Whether the current certificate may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none yet.
    None,
    /// It is valid, and the last request for its successor, if any, was answered.
    Valid,
    /// It is valid, but renewing it has failed so far.
    Renewing {
        /// Failures in a row.
        failures: u32,
    },
    /// Its time is over; it must not be used.
    Expired,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Rotation {
    current: Option<Validity>,
    renew_at: OffsetDateTime,
    failures: u32,
    retry_at: Option<OffsetDateTime>,
    rotations: u64,
    /// Whether a certificate is replaced before its end.
    automatic: bool,
    /// When a refusal was last acted on, and how many were in a row.
    doubted: Option<(OffsetDateTime, u32)>,
}

impl Rotation {
    /// A workload without a certificate: it asks at once.
    pub fn new() -> Self {
        Self {
            current: None,
            renew_at: OffsetDateTime::UNIX_EPOCH,
            failures: 0,
            retry_at: None,
            rotations: 0,
            automatic: true,
            doubted: None,
        }
    }

    /// One that replaces no certificate before its end: there is one at the start, and the next when that is over. Only a peer's
    /// refusal has it asked for earlier.
    pub fn by_hand() -> Self {
        Self { automatic: false, ..Self::new() }
    }

    /// What to do at `now`.
    pub fn next(&self, now: OffsetDateTime) -> Action {
        let due = match (self.current, self.retry_at) {
            (_, Some(retry)) => retry,
            (None, None) => return Action::Request,
            (Some(_), None) => self.renew_at,
        };
        if now >= due { Action::Request } else { Action::WaitUntil(due) }
    }

    /// A certificate was issued and installed. `jitter` is a random number in -1..=1.
    pub fn installed(&mut self, validity: Validity, jitter: f64) {
        if self.current.is_some() {
            self.rotations += 1;
        }
        let life = validity.expires - validity.issued;
        let share = RENEW_AT + JITTER * jitter.clamp(-1.0, 1.0);
        self.renew_at = if self.automatic { validity.issued + life * share } else { validity.expires };
        self.current = Some(validity);
        self.failures = 0;
        self.retry_at = None;
    }

    /// A certificate of an earlier life of this workload serves again. Its successor is asked for at once: only the
    /// authority knows whether it still counts.
    pub fn restored(&mut self, validity: Validity) {
        self.current = Some(validity);
        self.renew_at = if self.automatic { OffsetDateTime::UNIX_EPOCH } else { validity.expires };
    }

    /// A peer refused the current certificate at `now`. Its successor is asked for at once, but not again and again: what
    /// peers say is no proof, and the authority is not theirs to wear out. Says whether anything changed.
    pub fn doubted(&mut self, now: OffsetDateTime) -> bool {
        let count = match self.doubted {
            Some((at, count)) if now < at + LONGEST_DOUBT * 2 => {
                let pause = FIRST_DOUBT.saturating_mul(1 << (count - 1).min(16)).min(LONGEST_DOUBT);
                if now < at + pause {
                    return false;
                }
                count + 1
            }
            _ => 1,
        };
        if self.current.is_none() || self.retry_at.is_some() {
            return false;
        }
        self.doubted = Some((now, count));
        self.renew_at = now;
        true
    }

    /// When it is to be renewed; none without a certificate.
    pub fn renews(&self) -> Option<OffsetDateTime> {
        self.current.map(|_| self.retry_at.unwrap_or(self.renew_at))
    }

    /// When the current certificate expires, if there is one.
    pub fn expires(&self) -> Option<OffsetDateTime> {
        self.current.map(|c| c.expires)
    }

    /// A request failed at `now`. `jitter` is a random number in 0..=1. The pause doubles each time, is never longer than
    /// a tenth of what is left of the certificate's life, and never shorter than a tenth of the first pause.
    pub fn failed(&mut self, now: OffsetDateTime, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let doubled = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_PAUSE);
        let left =
            self.current.map_or(Duration::MAX, |c| (c.expires - now).try_into().unwrap_or(Duration::ZERO));
        let pause = if left.is_zero() { doubled } else { doubled.min(left / 10) };
        // Half of the pause is random, so that a fleet that failed together does not come back together.
        let pause = pause.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0)).max(FIRST_PAUSE / 10);
        self.retry_at = Some(now + pause);
    }

    /// Whether the current certificate may be used at `now`.
    pub fn standing(&self, now: OffsetDateTime) -> Standing {
        match self.current {
            None => Standing::None,
            Some(c) if now >= c.expires => Standing::Expired,
            Some(_) if self.failures > 0 => Standing::Renewing { failures: self.failures },
            Some(_) => Standing::Valid,
        }
    }

    /// How often a certificate was replaced.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }
}

impl Default for Rotation {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
    }

    fn day(from: i64) -> Validity {
        Validity { issued: at(from), expires: at(from + 86_400) }
    }

    #[test]
    fn the_old_certificate_is_valid_for_ten_minutes_and_more_beside_its_successor() {
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for minutes in [21, 60, 24 * 60, 90 * 24 * 60] {
            for jitter in [-1.0, 0.0, 1.0] {
                let mut machine = Rotation::new();
                let expires = start + Duration::from_secs(60 * minutes);
                machine.installed(Validity { issued: start, expires }, jitter);
                let Action::WaitUntil(renews) = machine.next(start) else { panic!("at once") };
                assert!(expires - renews >= Duration::from_secs(600), "{minutes} min, {jitter}");
            }
        }
    }

    #[test]
    fn a_refused_certificate_is_renewed_at_once_and_not_again_and_again() {
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut machine = Rotation::new();
        assert!(!machine.doubted(start), "there is none to be refused");
        let validity = |at| Validity { issued: at, expires: at + Duration::from_secs(86_400) };
        machine.installed(validity(start), 0.0);
        let mut renewed = Vec::new();
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            // A peer that refuses every second.
            if machine.doubted(now) {
                assert_eq!(machine.next(now), Action::Request);
                machine.installed(validity(now), 0.0);
                renewed.push(second);
            }
        }
        assert_eq!(renewed, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]);
        // After a quiet time the next one counts at once, and then as the first did.
        let later = start + Duration::from_secs(10_000);
        assert!(machine.doubted(later) && !machine.doubted(later + Duration::from_secs(9)));
        assert!(machine.doubted(later + Duration::from_secs(10)));
    }

    #[test]
    fn without_automatic_rotation_the_next_one_is_asked_for_at_the_end_or_when_a_peer_refuses() {
        let mut rotation = Rotation::by_hand();
        assert_eq!(rotation.next(at(0)), Action::Request);
        rotation.installed(day(0), 1.0);
        assert_eq!(rotation.next(at(50_000)), Action::WaitUntil(at(86_400)));
        assert_eq!(rotation.next(at(86_400)), Action::Request);
        rotation.restored(day(0));
        assert_eq!(rotation.next(at(10)), Action::WaitUntil(at(86_400)));
        assert!(rotation.doubted(at(20)));
        assert_eq!(rotation.next(at(20)), Action::Request);
    }

    #[test]
    fn it_asks_at_once_then_at_half_the_life_give_or_take_a_hundredth() {
        let mut rotation = Rotation::new();
        assert_eq!(rotation.next(at(0)), Action::Request);
        rotation.installed(day(0), 0.0);
        assert_eq!(rotation.next(at(0)), Action::WaitUntil(at(43_200)));
        assert_eq!(rotation.next(at(43_200)), Action::Request);
        for (jitter, expected) in [(-1.0, 42_336), (1.0, 44_064)] {
            rotation.installed(day(0), jitter);
            assert_eq!(rotation.next(at(0)), Action::WaitUntil(at(expected)));
        }
    }

    #[test]
    fn failures_back_off_until_expiry_and_beyond_and_the_old_one_serves_meanwhile() {
        let mut rotation = Rotation::new();
        rotation.installed(day(0), 0.0);
        let mut now = at(43_200);
        let mut attempts = 0;
        while now < at(86_400) {
            match rotation.next(now) {
                Action::Request => {
                    assert!(matches!(rotation.standing(now), Standing::Valid | Standing::Renewing { .. }));
                    rotation.failed(now, 1.0);
                    attempts += 1;
                }
                Action::WaitUntil(then) => {
                    assert!(then - now <= LONGEST_PAUSE);
                    now = then;
                }
            }
        }
        assert!(attempts > 700, "{attempts}");
        assert_eq!(rotation.standing(at(86_400)), Standing::Expired);
        // It goes on asking, and is well again with the first answer.
        rotation.failed(at(86_400), 0.0);
        assert!(matches!(rotation.next(at(86_500)), Action::Request));
        rotation.installed(day(86_500), 0.0);
        assert_eq!(rotation.standing(at(86_501)), Standing::Valid);
        assert_eq!(rotation.rotations(), 1);
    }

    #[test]
    fn a_restored_certificate_serves_while_its_successor_is_asked_for() {
        let mut rotation = Rotation::new();
        rotation.restored(day(-1000));
        assert_eq!(rotation.next(at(0)), Action::Request);
        rotation.failed(at(0), 1.0);
        assert_eq!(rotation.standing(at(0)), Standing::Renewing { failures: 1 });
        assert_eq!(rotation.standing(at(86_400 - 1000)), Standing::Expired);
    }

    #[test]
    fn a_life_of_seconds_leaves_time_for_several_attempts() {
        let mut rotation = Rotation::new();
        rotation.installed(Validity { issued: at(0), expires: at(8) }, 0.0);
        assert_eq!(rotation.next(at(0)), Action::WaitUntil(at(4)));
        let (mut now, mut attempts) = (at(4), 0);
        while now < at(8) {
            rotation.failed(now, 1.0);
            attempts += 1;
            let Action::WaitUntil(then) = rotation.next(now) else { panic!("no pause") };
            now = then;
        }
        assert!(attempts >= 5, "{attempts}");
    }
}
