//! A timer that is moved rather than made: setting and clearing one for every request would cost more than the request's
//! route.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::time::Sleep;

/// A timer for limits that come and mostly go unreached. It stays set for an earlier limit than the one that holds: ringing
/// early costs one look at the clock, moving it for every limit would cost more.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready when it is `at` or later.
    pub fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let at = tokio::time::Instant::from_std(at);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if tokio::time::Instant::now() >= at {
                // It may be polled again for a later limit.
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_limit_that_holds_however_often_that_moves() {
        let mut alarm = Alarm::default();
        let start = tokio::time::Instant::now();
        let at = |seconds| (start + Duration::from_secs(seconds)).into_std();
        let mut set = async |limit| {
            poll_fn(|cx| alarm.poll(limit, cx)).await;
            start.elapsed().as_secs()
        };
        assert_eq!(set(at(10)).await, 10);
        // Later than it was set for, and used anew after it rang.
        assert_eq!(set(at(30)).await, 30);
        let soon = tokio::time::timeout(Duration::from_secs(1), set(at(100))).await;
        assert!(soon.is_err());
        // Earlier than it was set for.
        assert_eq!(set(at(50)).await, 50);
    }
}
