//! Earliest deadline first: a weighted schedule in which a host of weight w comes up w times as often as one of weight 1,
//! evenly spread. Weights may be read anew each time a host is put back.

use std::cell::RefCell;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: f64,
    /// Order of insertion: equal deadlines leave in the order they came.
    order: u64,
    index: u32,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.deadline.total_cmp(&other.deadline).then(self.order.cmp(&other.order))
    }
}

/// A schedule of indices.
#[derive(Debug, Default)]
pub(super) struct Edf {
    heap: BinaryHeap<Reverse<Entry>>,
    now: f64,
    order: u64,
}

impl Edf {
    /// Schedules `0..n`, each at a random point of its first period, so that workers don't move in step.
    pub(super) fn new(n: usize, weight: impl Fn(usize) -> f64) -> Self {
        let mut edf = Self::default();
        for index in 0..n {
            let deadline = fastrand::f64() / weight(index).max(f64::MIN_POSITIVE);
            edf.push(index, deadline);
        }
        edf
    }

    fn push(&mut self, index: usize, deadline: f64) {
        self.order += 1;
        self.heap.push(Reverse(Entry { deadline, order: self.order, index: index as u32 }));
    }

    /// The next index, put back with what `weight` says now.
    pub(super) fn next(&mut self, weight: impl Fn(usize) -> f64) -> Option<usize> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.deadline;
        let index = entry.index as usize;
        self.push(index, self.now + 1.0 / weight(index).max(f64::MIN_POSITIVE));
        Some(index)
    }
}

/// What one worker keeps for one host list.
#[derive(Debug)]
pub(super) enum Schedule {
    /// Equal weights: the next position.
    Rotation(usize),
    /// Weights.
    Weighted(Edf),
}

const KEPT: usize = 64;

#[derive(Default)]
struct Schedules {
    by_list: HashMap<u64, (u64, Schedule)>,
    clock: u64,
}

thread_local! {
    static SCHEDULES: RefCell<Schedules> = RefCell::default();
}

/// Runs `f` on this worker's schedule for the list, made by `make` on first use. Lists are replaced whole, so schedules
/// of lists not used for long are dropped when there are too many.
pub(super) fn with_schedule<R>(
    list: u64,
    make: impl FnOnce() -> Schedule,
    f: impl FnOnce(&mut Schedule) -> R,
) -> R {
    SCHEDULES.with_borrow_mut(|schedules| {
        schedules.clock += 1;
        let clock = schedules.clock;
        let limit = KEPT.max(2 * schedules.live_estimate(clock));
        if schedules.by_list.len() > limit && !schedules.by_list.contains_key(&list) {
            let mut uses: Vec<u64> = schedules.by_list.values().map(|(used, _)| *used).collect();
            let middle = uses.len() / 2;
            let (_, oldest_kept, _) = uses.select_nth_unstable(middle);
            let oldest_kept = *oldest_kept;
            schedules.by_list.retain(|_, (used, _)| *used >= oldest_kept);
        }
        let (used, schedule) = schedules.by_list.entry(list).or_insert_with(|| (clock, make()));
        *used = clock;
        f(schedule)
    })
}

impl Schedules {
    /// Roughly how many lists are in use: those used within the last 4096 picks, bounded below by none.
    fn live_estimate(&self, clock: u64) -> usize {
        if self.by_list.len() <= KEPT {
            return 0;
        }
        self.by_list.values().filter(|(used, _)| clock - used < 4096).count()
    }
}
