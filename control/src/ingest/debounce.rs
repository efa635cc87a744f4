//! How long to wait for more before a state is made of what changed: a lone change hardly waits, and the more states there
//! have been lately, the more changes go together.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

/// How changes are gathered.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebounceArgs {
    /// The longest that it must be quiet before changes of Kubernetes objects go out; a lone change waits for 2 ms at most, and
    /// this is what it grows to while much changes
    #[arg(long, value_name = "DURATION", env = "PILOT_DEBOUNCE_AFTER", default_value = "100ms", value_parser = xds_protos::duration::parse)]
    pub debounce_after: Duration,
    /// The longest that a change waits for others, however much changes
    #[arg(long, value_name = "DURATION", env = "PILOT_DEBOUNCE_MAX", default_value = "1s", value_parser = xds_protos::duration::parse)]
    pub debounce_max: Duration,
}

impl Default for DebounceArgs {
    fn default() -> Self {
        Self { debounce_after: Duration::from_millis(100), debounce_max: Duration::from_secs(1) }
    }
}

/// What counts as lately.
const LATELY: Duration = Duration::from_secs(1);
/// What each state of lately adds to the wait.
const STEP: Duration = Duration::from_millis(1);
/// Where it is never quiet, a state is made after so many times the quiet that is waited for.
const PATIENCE: u32 = 4;
/// An endpoint that goes away waits no longer than this.
const URGENT: Duration = Duration::from_millis(2);

/// When states were made, and so how long the next one waits.
#[derive(Debug)]
pub(super) struct Debounce {
    settings: DebounceArgs,
    made: VecDeque<Instant>,
}

impl Debounce {
    pub(super) fn new(settings: DebounceArgs) -> Self {
        Self { settings, made: VecDeque::new() }
    }

    /// A state is made now.
    pub(super) fn made(&mut self, now: Instant) {
        self.made.push_back(now);
    }

    /// How long it must be quiet.
    pub(super) fn quiet(&mut self, now: Instant) -> Duration {
        while self.made.front().is_some_and(|made| now.saturating_duration_since(*made) > LATELY) {
            self.made.pop_front();
        }
        let lately = u32::try_from(self.made.len()).unwrap_or(u32::MAX);
        STEP.saturating_mul(lately).min(self.settings.debounce_after)
    }

    /// How long a change waits at most where it must be `quiet` for so long.
    pub(super) fn longest(&self, quiet: Duration) -> Duration {
        quiet.saturating_mul(PATIENCE).min(self.settings.debounce_max)
    }

    /// The longest quiet, for what must not go out in part.
    pub(super) fn whole(&self) -> Duration {
        self.settings.debounce_after
    }

    /// The same for an endpoint that goes away.
    pub(super) fn urgent(quiet: Duration) -> Duration {
        quiet.min(URGENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lone_change_hardly_waits_and_churn_gathers_ever_more() {
        let start = Instant::now();
        let mut debounce = Debounce::new(DebounceArgs::default());
        assert_eq!(debounce.quiet(start), Duration::ZERO);
        debounce.made(start);
        assert_eq!(debounce.quiet(start + 500 * MS), MS);
        assert_eq!(debounce.quiet(start + 1500 * MS), Duration::ZERO, "that is long ago");
        // Something changes every 10 ms, without an end: a state is made when the patience is over.
        let (mut now, mut waits) = (start + 2000 * MS, Vec::new());
        while now < start + 6000 * MS {
            let quiet = debounce.quiet(now);
            let wait = if quiet < 10 * MS { quiet } else { debounce.longest(quiet) };
            waits.push(wait);
            now += wait.max(10 * MS);
            debounce.made(now);
        }
        assert!(waits[0] <= 2 * MS && waits[1] <= 2 * MS, "{waits:?}");
        let last = &waits[waits.len() - 10..];
        assert!(last.iter().all(|wait| (30 * MS..=100 * MS).contains(wait)), "it settles: {last:?}");
    }

    #[test]
    fn its_limits_are_those_that_were_set() {
        let now = Instant::now();
        let settings = DebounceArgs { debounce_after: 20 * MS, debounce_max: 50 * MS };
        let mut debounce = Debounce::new(settings);
        (0..1000).for_each(|_| debounce.made(now));
        assert_eq!(debounce.quiet(now), 20 * MS);
        assert_eq!(debounce.longest(20 * MS), 50 * MS);
        assert_eq!(Debounce::urgent(20 * MS), URGENT);
        // None at all: each change is a state.
        let mut none = Debounce::new(DebounceArgs { debounce_after: Duration::ZERO, ..settings });
        (0..1000).for_each(|_| none.made(now));
        assert_eq!((none.quiet(now), none.longest(Duration::ZERO)), (Duration::ZERO, Duration::ZERO));
    }
}
