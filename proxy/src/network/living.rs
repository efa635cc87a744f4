//! Connections of bytes count what they have carried every few seconds, not only at their end: one that lives for days is seen
//! while it does.
//!
//! A worker walks over all of its connections of one interval at once. A connection has no timer of its own, and the copy of its
//! bytes knows nothing of it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::io::Copied;
use crate::telemetry::istio::TcpSeries;
use crate::telemetry::registry::Counter;

/// How often, unless the configuration says otherwise: as Istio's.
pub const EVERY: Duration = Duration::from_secs(5);

thread_local! {
    static WALKS: RefCell<HashMap<Duration, HashMap<u64, Rc<Living>>>> = RefCell::default();
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// A connection, and what it has counted so far. Its counters' group outlives it.
pub struct Living {
    /// What it has carried.
    pub copied: Copied,
    received: Counted,
    sent: Counted,
    series: OnceCell<TcpSeries>,
}

/// A direction's counter of the proxy.
struct Counted {
    so_far: Cell<u64>,
    all: Counter,
}

impl Counted {
    /// Counts what has come since; gives that.
    fn until(&self, now: u64) -> u64 {
        let more = now - self.so_far.replace(now);
        self.all.add(more);
        more
    }
}

impl Living {
    /// A connection that has carried nothing, with the counters of its proxy.
    pub fn new(received: Counter, sent: Counter) -> Self {
        let counted = |all| Counted { so_far: Cell::new(0), all };
        Self {
            copied: Copied::default(),
            received: counted(received),
            sent: counted(sent),
            series: OnceCell::new(),
        }
    }

    /// Its bytes count for this series, too, from here on.
    pub fn counts_for(&self, series: TcpSeries) {
        // There is one for a connection.
        let _ = self.series.set(series);
    }

    fn count(&self) {
        let (received, sent) = self.last(self.copied.received.get(), self.copied.sent.get());
        if let Some(series) = self.series.get() {
            series.carried(received, sent);
        }
    }

    /// Counts to the end, of which these are the numbers; gives what no series has counted yet.
    pub fn last(&self, received: u64, sent: u64) -> (u64, u64) {
        (self.received.until(received), self.sent.until(sent))
    }
}

/// Takes the connection out of the walk when it ends.
pub struct Membership {
    every: Duration,
    id: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let left = |walks: &RefCell<HashMap<_, HashMap<_, _>>>| {
            walks.borrow_mut().get_mut(&self.every).and_then(|walk| walk.remove(&self.id))
        };
        // Not there any more when a worker ends with its connections.
        let _ = WALKS.try_with(left);
    }
}

/// Has the connection count its bytes at such intervals, on this worker.
pub fn walk(living: &Rc<Living>, every: Duration) -> Membership {
    let id = NEXT.replace(NEXT.get() + 1);
    WALKS.with_borrow_mut(|walks| {
        let walk = walks.entry(every).or_insert_with(|| {
            tokio::task::spawn_local(go(every));
            HashMap::new()
        });
        walk.insert(id, living.clone());
    });
    Membership { every, id }
}

/// Walks until there is nobody left.
async fn go(every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let goes_on = WALKS.with_borrow_mut(|walks| {
            let Some(walk) = walks.get(&every).filter(|walk| !walk.is_empty()) else {
                walks.remove(&every);
                return false;
            };
            walk.values().for_each(|living| living.count());
            true
        });
        if !goes_on {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Group;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_counted_while_the_connection_lives_and_each_of_them_once() {
        let group = Group::new("t", Vec::new());
        let (received, sent) = (group.counter("rx"), group.counter("tx"));
        let counted = || (received.value(), sent.value());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let living = Rc::new(Living::new(received, sent));
                let other = Rc::new(Living::new(received, sent));
                let member = walk(&living, Duration::from_secs(2));
                let slower = walk(&other, Duration::from_secs(3));
                living.copied.received.set(100);
                other.copied.sent.set(1);
                tokio::time::sleep(Duration::from_millis(1900)).await;
                assert_eq!(counted(), (0, 0));
                tokio::time::sleep(Duration::from_millis(200)).await;
                assert_eq!(counted(), (100, 0), "the other one's time has not come");
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(counted(), (100, 1));
                living.copied.received.set(150);
                living.copied.sent.set(7);
                assert_eq!(living.last(151, 7), (51, 7), "what no walk has seen");
                drop((member, slower));
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert_eq!(counted(), (151, 8));
                assert!(WALKS.with_borrow(HashMap::is_empty), "nobody walks for nobody");
                // And the next one begins anew.
                let _member = walk(&other, Duration::from_secs(2));
                other.copied.sent.set(3);
                tokio::time::sleep(Duration::from_secs(3)).await;
                assert_eq!(counted(), (151, 10));
            })
            .await;
    }
}
