//! How long to wait before the next attempt to reach the control plane.

use std::time::Duration;

const BASE: Duration = Duration::from_millis(500);
const MAX: Duration = Duration::from_secs(30);

/// Exponential back-off with full jitter, so that the proxies of a mesh do not come back to a restarted control plane all
/// at once. Base and limit are Envoy's.
#[derive(Debug)]
pub(super) struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling: BASE }
    }
}

impl Backoff {
    /// The next wait: anything up to a ceiling that doubles each time.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.ceiling.mul_f64(fastrand::f64());
        self.ceiling = (self.ceiling * 2).min(MAX);
        wait
    }

    /// The control plane answered: begin anew.
    pub(super) fn reset(&mut self) {
        self.ceiling = BASE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_anew_after_success() {
        let mut b = Backoff::default();
        for ceiling in [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
            assert!(b.next() <= Duration::from_millis(ceiling));
        }
        b.reset();
        assert!(b.next() <= BASE);
    }
}
