//! How many sets of labels there are, and for how long.
//!
//! A set is made when it is first met, within a budget of the whole proxy; what exceeds the budget is counted together, and how
//! often is counted too. A set that nothing was counted under for long goes. Workers remember sets, so each of them looks by
//! itself, once a second, whether some have gone. Only when the last of them has let go of a set is it no longer read, and if it
//! was met again in between, both are added up: no count is lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::Key;
use crate::telemetry::registry::{Counter, Gauge, Group, Labels, Reading};

/// Sets of labels that a proxy has at most, unless it is told otherwise.
pub const BUDGET: usize = 10_000;

static ALLOWED: AtomicUsize = AtomicUsize::new(BUDGET);
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Counts the times that sets went.
static EPOCH: AtomicU64 = AtomicU64::new(0);

struct Numbers {
    folded: Counter,
    expired: Counter,
    sets: Gauge,
    budget: Gauge,
    _group: Arc<Group>,
}

static NUMBERS: LazyLock<Numbers> = LazyLock::new(|| {
    let group = Group::new("", Labels::default());
    Numbers {
        folded: group.counter("weft_metric_series_folded_total"),
        expired: group.counter("weft_metric_series_expired_total"),
        sets: group.gauge("weft_metric_series"),
        budget: group.gauge("weft_metric_series_budget"),
        _group: group,
    }
});

/// Sets the budget, from the start or later. What is there already stays until it is idle.
pub fn set_budget(sets: usize) {
    ALLOWED.store(sets, Relaxed);
    NUMBERS.budget.set(i64::try_from(sets).unwrap_or(i64::MAX));
}

#[cfg(test)]
thread_local! {
    /// A budget for a test's own thread.
    pub(super) static TEST_BUDGET: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

fn allowed() -> usize {
    #[cfg(test)]
    if let Some(budget) = TEST_BUDGET.get() {
        return budget;
    }
    ALLOWED.load(Relaxed)
}

/// The metrics of one set of labels.
pub(super) struct Series<H> {
    pub(super) handles: H,
    /// Its end frees the cells.
    pub(super) group: Arc<Group>,
    gone: AtomicBool,
    /// Connections that count under it while they live.
    users: AtomicUsize,
    /// What was last seen of its cells, and since when they are so.
    seen: Mutex<(u64, Instant)>,
}

impl<H> Series<H> {
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    pub(super) fn enter(&self) {
        self.users.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.users.fetch_sub(1, Relaxed);
    }
}

/// Sets of one reporter and one kind.
pub(super) type Sets<H> = HashMap<Key, Arc<Series<H>>, RandomState>;

/// All sets of a reporter.
pub(super) struct Known<H, T> {
    pub(super) http: Sets<H>,
    pub(super) tcp: Sets<T>,
}

impl<H, T> Default for Known<H, T> {
    fn default() -> Self {
        Self { http: HashMap::default(), tcp: HashMap::default() }
    }
}

impl<H, T> Drop for Known<H, T> {
    fn drop(&mut self) {
        give_back(self.http.len() + self.tcp.len());
    }
}

fn give_back(sets: usize) {
    TAKEN.fetch_sub(sets, Relaxed);
    NUMBERS.sets.add(-i64::try_from(sets).unwrap_or_default());
}

/// The set of `key`, or of what `fold` makes of it where the budget is used up, and whether it was folded.
pub(super) fn find<H>(
    sets: &mut Sets<H>,
    key: &Key,
    fold: impl Fn(&Key) -> Key,
    make: impl Fn(&Key) -> (H, Arc<Group>),
) -> (Arc<Series<H>>, bool) {
    let living = |sets: &Sets<H>, key: &Key| sets.get(key).filter(|set| !set.is_gone()).cloned();
    if let Some(known) = living(sets, key) {
        return (known, false);
    }
    let folded = TAKEN.load(Relaxed) >= allowed() && !sets.contains_key(key);
    let key = if folded { fold(key) } else { key.clone() };
    if folded {
        NUMBERS.folded.inc();
        if let Some(known) = living(sets, &key) {
            return (known, true);
        }
    }
    let (handles, group) = make(&key);
    let seen = Mutex::new((Reading::begin().trace(&group), Instant::now()));
    let set =
        Arc::new(Series { handles, group, gone: AtomicBool::new(false), users: AtomicUsize::new(0), seen });
    if sets.insert(key, set.clone()).is_none() {
        TAKEN.fetch_add(1, Relaxed);
        NUMBERS.sets.add(1);
    }
    (set, folded)
}

/// Lets sets go that nothing was counted under for so long.
pub(super) fn expire<H, T>(
    known: &Mutex<Known<H, T>>,
    reading: &Reading,
    idle: Duration,
    now: Instant,
) -> usize {
    // Looked at without the lock: a worker that meets a new set waits for nothing.
    let sets = {
        let known = known.lock();
        (known.http.values().cloned().collect::<Vec<_>>(), known.tcp.values().cloned().collect::<Vec<_>>())
    };
    let marked = sets.0.iter().filter(|set| marks(set, reading, idle, now)).count()
        + sets.1.iter().filter(|set| marks(set, reading, idle, now)).count();
    if marked == 0 {
        return 0;
    }
    let mut known = known.lock();
    let before = known.http.len() + known.tcp.len();
    known.http.retain(|_, set| !set.is_gone());
    known.tcp.retain(|_, set| !set.is_gone());
    let went = before - known.http.len() - known.tcp.len();
    drop(known);
    give_back(went);
    NUMBERS.expired.add(went as u64);
    EPOCH.fetch_add(1, Relaxed);
    went
}

/// Marks a set as gone if it is idle.
fn marks<H>(set: &Series<H>, reading: &Reading, idle: Duration, now: Instant) -> bool {
    let trace = reading.trace(&set.group);
    let mut seen = set.seen.lock();
    if seen.0 != trace || set.users.load(Relaxed) > 0 {
        *seen = (trace, now);
        return false;
    }
    let is_idle = now.saturating_duration_since(seen.1) >= idle;
    if is_idle {
        set.gone.store(true, Relaxed);
    }
    is_idle
}

/// Sets of a reporter have gone, with the reporter.
pub(super) fn went() {
    EPOCH.fetch_add(1, Relaxed);
}

/// Whether sets went since `epoch`, which is brought up to date.
pub(super) fn some_went(epoch: &mut u64) -> bool {
    let now = EPOCH.load(Relaxed);
    std::mem::replace(epoch, now) != now
}

/// All reporters' sets, by the reporters' numbers.
pub(super) type Alive<H, T> = Mutex<HashMap<u64, Weak<Mutex<Known<H, T>>>>>;
