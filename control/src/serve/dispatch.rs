//! Who is woken by a new revision: those whose resources it may change. All others are at it already.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::cache::{Place, RenderCache};
use super::proxies::Entry;
use crate::queue::Queue;

/// The connections that wait. Cloning it shares them.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    next: Arc<AtomicU64>,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    wake: Arc<Notify>,
    /// It was woken, and has not looked yet.
    behind: Arc<AtomicBool>,
    /// The revision whose resources it has.
    at: Arc<AtomicU64>,
    entry: Arc<Entry>,
}

impl Waiting {
    /// Whether it has to look at a revision; `of_place`: it brings something to those in its place. Another connection of the same
    /// sort may have been there before: then nothing is new for the place, and yet for this one.
    fn concerned(&self, of_place: bool, cache: &RenderCache) -> bool {
        of_place || self.at.load(Ordering::Acquire) < cache.changed(&self.place)
    }
}

/// A connection's place among those that wait; dropping it takes it out.
#[derive(Debug)]
pub struct Wake {
    number: u64,
    wake: Arc<Notify>,
    behind: Arc<AtomicBool>,
    at: Arc<AtomicU64>,
    dispatch: Dispatch,
}

impl Dispatch {
    /// One that wakes by what `queue` brings, until the process ends.
    pub fn start(mut queue: Queue, cache: Arc<RenderCache>) -> Self {
        let dispatch = Self::default();
        let waiting = dispatch.waiting.clone();
        tokio::spawn(async move {
            loop {
                queue.changed().await;
                let revision = queue.latest();
                // Many are of one sort, which is asked once.
                let mut asked: HashMap<usize, bool> = HashMap::new();
                let (mut woken, mut left) = (0_u64, 0_u64);
                for one in waiting.lock().values() {
                    let of_place = *asked
                        .entry(one.place.number())
                        .or_insert_with(|| cache.concerns(&revision, &one.place));
                    if one.concerned(of_place, &cache) {
                        woken += 1;
                        one.behind.store(true, Ordering::Release);
                        one.wake.notify_one();
                    } else if !one.behind.load(Ordering::Acquire) {
                        left += 1;
                        one.entry.update(|proxy| proxy.revision = proxy.revision.max(revision.number));
                    }
                }
                metrics::counter!("weft_proxies_woken").increment(woken);
                metrics::counter!("weft_proxies_not_concerned").increment(left);
            }
        });
        dispatch
    }

    /// Waits as of now. Whoever takes the latest revision after this misses none.
    pub fn wait(&self, place: Place, entry: Arc<Entry>) -> Wake {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (wake, behind) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let at = Arc::new(AtomicU64::new(0));
        let waiting = Waiting { place, wake: wake.clone(), behind: behind.clone(), at: at.clone(), entry };
        self.waiting.lock().insert(number, waiting);
        Wake { number, wake, behind, at, dispatch: self.clone() }
    }
}

impl Wake {
    /// The connection has the resources of this revision.
    pub fn has(&self, revision: u64) {
        self.at.store(revision, Ordering::Release);
    }

    /// Until there is something to look at; it is looked at then.
    pub async fn woken(&self) {
        self.wake.notified().await;
        self.behind.store(false, Ordering::Release);
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.dispatch.waiting.lock().remove(&self.number);
    }
}
