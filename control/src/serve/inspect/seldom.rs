//! What may happen so often that the log would be full of it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// It is told again after that.
const AGAIN: Duration = Duration::from_secs(60);

/// Something that is told at once, and then once a minute with how often it was.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Option<(Instant, u64)>>);

impl Seldom {
    /// It was once more: how often since it was told last, if it is to be told now.
    pub(super) fn due(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock();
        match &mut *told {
            Some((at, times)) if now.saturating_duration_since(*at) < AGAIN => {
                *times += 1;
                None
            }
            other => {
                let before = other.map_or(0, |(_, times)| times);
                *other = Some((now, 0));
                Some(before + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_a_minute_with_how_often() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let told: Vec<_> = (0..180)
            .filter_map(|second| Some((second, seldom.due(start + Duration::from_secs(second))?)))
            .collect();
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
        assert_eq!(seldom.due(start + AGAIN * 60), Some(60), "and those after which nothing was told");
    }
}
