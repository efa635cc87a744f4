//! How many events of a kind and outcome are told in a second; the rest is counted. Whoever floods a proxy with what it denies fills no disk,
//! and drowns no event of another kind.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// The bound of one kind's successes or failures. Workers share it without a lock: at the turn of a second a few more may pass.
#[derive(Debug)]
pub(crate) struct Bound {
    since: Instant,
    each_second: u64,
    second: AtomicU64,
    passed: AtomicU64,
    suppressed: AtomicU64,
    told: AtomicU64,
}

impl Bound {
    pub(crate) fn new(each_second: u64) -> Self {
        let zero = AtomicU64::default;
        Self {
            since: Instant::now(),
            each_second,
            second: zero(),
            passed: zero(),
            suppressed: zero(),
            told: zero(),
        }
    }

    /// Whether one more may be told now.
    pub(crate) fn admits(&self) -> bool {
        self.admits_at(self.since.elapsed().as_secs())
    }

    fn admits_at(&self, now: u64) -> bool {
        let second = self.second.load(Relaxed);
        if second != now && self.second.compare_exchange(second, now, Relaxed, Relaxed).is_ok() {
            self.passed.store(0, Relaxed);
        }
        let admits = self.each_second == 0 || self.passed.fetch_add(1, Relaxed) < self.each_second;
        if !admits {
            self.suppressed.fetch_add(1, Relaxed);
        }
        admits
    }

    /// How many were not told so far, in all.
    pub(crate) fn suppressed(&self) -> u64 {
        self.suppressed.load(Relaxed)
    }

    /// How many were not told since this was asked last.
    pub(crate) fn take(&self) -> u64 {
        let all = self.suppressed();
        all - self.told.swap(all, Relaxed).min(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_second_is_counted_and_the_next_one_begins_anew() {
        let bound = Bound::new(2);
        let passed = |second| (0..5).filter(|_| bound.admits_at(second)).count();
        assert_eq!((passed(0), bound.take(), bound.take()), (2, 3, 0));
        assert_eq!((passed(1), bound.take(), bound.suppressed()), (2, 3, 6));
    }

    #[test]
    fn zero_is_no_bound() {
        let bound = Bound::new(0);
        assert!((0..1000).all(|_| bound.admits_at(0)) && bound.take() == 0);
    }
}
