//! Something that waits beside a connection's work, and costs the work nothing while it waits.
//!
//! Every read and write of a connection wakes its task. What only waits for rare news is not asked each time; it has a bell of its
//! own, and is polled when that has rung.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Context;

use crate::io::bell;

/// Does the work, and lets something wait beside it until the work is done. Both are pinned where they are: a connection would
/// carry the room for them twice.
pub async fn beside<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    mut waiting: Pin<&mut impl Future<Output = ()>>,
) -> T {
    let (bell, mut ear) = bell();
    let waker = bell.waker();
    let (mut first, mut over) = (true, false);
    poll_fn(|cx| {
        let done = work.as_mut().poll(cx);
        if done.is_pending() && !over && (ear.hears(cx.waker()) || first) {
            first = false;
            // Before it is asked: a ring from then on is another one.
            ear.answer();
            over = waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        }
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Poll, Wake, Waker};

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_waits_is_asked_when_its_own_bell_has_rung_and_only_then() {
        let (asked, bell) = (Cell::new(0), RefCell::new(None));
        let work = poll_fn(|_| Poll::<()>::Pending);
        let waiting = poll_fn(|cx| {
            asked.set(asked.get() + 1);
            *bell.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let (work, waiting) = (pin!(work), pin!(waiting));
        let mut both = pin!(beside(work, waiting));
        let mut poll = || assert!(both.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        poll();
        assert_eq!(asked.get(), 1, "asked at first");
        poll();
        poll();
        assert_eq!(asked.get(), 1, "asked though the work alone went on");
        for ring in 1..4 {
            let bell = bell.borrow().clone();
            bell.unwrap().wake();
            assert_eq!(woken.0.load(Ordering::SeqCst), ring, "the task is not woken");
            poll();
            poll();
            assert_eq!(asked.get(), 1 + ring, "asked once for each ring");
        }
    }

    /// A ring takes two steps, and the task may run between them: the second step then wakes it for nothing, and the next ring has
    /// to find it all the same.
    #[test]
    fn a_ring_that_was_answered_halfway_does_not_silence_the_next() {
        let (asked, bell) = (Cell::new(0), RefCell::new(None));
        let work = poll_fn(|_| Poll::<()>::Pending);
        let waiting = poll_fn(|cx| {
            asked.set(asked.get() + 1);
            // Rung again while it is being asked.
            if asked.get() == 2 {
                cx.waker().wake_by_ref();
            }
            *bell.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let (work, waiting) = (pin!(work), pin!(waiting));
        let mut both = pin!(beside(work, waiting));
        let mut poll = || assert!(both.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let ring = || bell.borrow().clone().unwrap().wake();
        poll();
        ring();
        poll();
        poll();
        assert_eq!(asked.get(), 3, "the ring while it was asked is answered");
        let before = woken.0.load(Ordering::SeqCst);
        ring();
        assert_eq!(woken.0.load(Ordering::SeqCst), before + 1, "the next ring wakes nobody");
        poll();
        assert_eq!(asked.get(), 4);
    }

    #[test]
    fn what_waited_to_its_end_is_left_alone() {
        let asked = Cell::new(0);
        let waiting = poll_fn(|_| {
            asked.set(asked.get() + 1);
            Poll::Ready(())
        });
        let mut left = 3;
        let work = poll_fn(|_| {
            left -= 1;
            if left == 0 { Poll::Ready("done") } else { Poll::Pending }
        });
        let (work, waiting) = (pin!(work), pin!(waiting));
        let mut both = pin!(beside(work, waiting));
        let mut poll = || both.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending() && poll().is_pending());
        assert_eq!(poll(), Poll::Ready("done"));
        assert_eq!(asked.get(), 1);
    }
}
