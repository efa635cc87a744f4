//! The data path's own metrics registry.
//!
//! A handle is an index into a slab of `u64` cells that every thread has for itself: adding is a load and a store to
//! memory nobody else writes, never a locked instruction. Handles are made when configuration is compiled; a scrape adds
//! the threads' cells up. Metrics live in a [`Group`] (a cluster's, a listener's); dropping the group frees its cells.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;

const CHUNK: usize = 2048;
const CHUNKS: usize = 4096;

/// Upper bounds of histogram buckets, the ones Envoy and Istio use for milliseconds and bytes.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0,
    300000.0, 600000.0, 1800000.0, 3600000.0,
];
/// The same in one place: a constant would be made anew wherever it is looked through.
static BOUNDS: [f64; BUCKETS.len()] = BUCKETS;

/// The bucket of a value: most are in one of the first. Not inlined, for then it becomes a comparison with all of them.
#[inline(never)]
fn bucket(value: f64) -> u32 {
    BOUNDS.iter().take_while(|bound| value > **bound).count() as u32
}

/// A histogram's cells: one per bucket, one for what exceeds them all, and the sum (in thousandths).
const HISTOGRAM_CELLS: usize = BUCKETS.len() + 2;

struct Slab {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Slab {
    fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    #[inline]
    fn cell(&self, index: u32) -> &AtomicU64 {
        let chunk = self.chunks[index as usize / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        &chunk[index as usize % CHUNK]
    }

    fn read(&self, index: u32) -> u64 {
        self.chunks[index as usize / CHUNK].get().map_or(0, |c| c[index as usize % CHUNK].load(Relaxed))
    }

    fn clear(&self, index: u32) {
        if let Some(c) = self.chunks[index as usize / CHUNK].get() {
            c[index as usize % CHUNK].store(0, Relaxed);
        }
    }
}

#[derive(Default)]
struct Cells {
    /// None ever goes: they are as many as there were threads at once.
    slabs: Vec<&'static Slab>,
    /// Those of threads that have ended. Their counts stay; the next thread counts on in them.
    spare: Vec<&'static Slab>,
    next: u32,
    /// Freed runs of cells, by their length.
    free: HashMap<u32, Vec<u32>>,
    groups: Vec<std::sync::Weak<Group>>,
    /// As many groups as this are taken without a look for those that are gone.
    room: usize,
}

static CELLS: LazyLock<Mutex<Cells>> = LazyLock::new(Mutex::default);

/// A thread's slab, which it hands on when it ends: threads that come and go must not leave one behind each.
struct Own(&'static Slab);

impl Drop for Own {
    fn drop(&mut self) {
        MINE.set(None);
        CELLS.lock().spare.push(self.0);
    }
}

thread_local! {
    static SLAB: OnceCell<Own> = const { OnceCell::new() };
    /// The same as long as the thread does not end: a request counts dozens of things, and this is one look.
    static MINE: Cell<Option<&'static Slab>> = const { Cell::new(None) };
}

/// Counts of threads that are ending: what their connections still count when they are dropped with the thread.
static LAST: LazyLock<Mutex<&'static Slab>> = LazyLock::new(|| Mutex::new(register()));

fn register() -> &'static Slab {
    let mut cells = CELLS.lock();
    if let Some(slab) = cells.spare.pop() {
        return slab;
    }
    let slab = Box::leak(Box::new(Slab::new()));
    cells.slabs.push(slab);
    slab
}

/// Runs `f` on this thread's slab. A thread that ends leaves its slab, and so its counts, in the registry.
#[inline]
fn with_slab(f: impl Fn(&Slab)) {
    match MINE.get() {
        Some(slab) => f(slab),
        None => with_first(f),
    }
}

/// The first time of a thread, or when it is ending.
#[cold]
fn with_first(f: impl Fn(&Slab)) {
    let first = SLAB.try_with(|slab| {
        let slab = slab.get_or_init(|| Own(register())).0;
        MINE.set(Some(slab));
        f(slab);
    });
    if first.is_err() {
        f(&LAST.lock());
    }
}

#[inline]
fn bump(slab: &Slab, index: u32, n: u64) {
    // Only this thread writes its slab, so a plain load and store lose nothing.
    let cell = slab.cell(index);
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// A number that only grows.
#[derive(Clone, Copy, Debug)]
pub struct Counter(u32);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(self, n: u64) {
        with_slab(|s| bump(s, self.0, n));
    }

    /// The sum over all threads; for scrapes and tests, not for decisions on the request path.
    pub fn value(self) -> u64 {
        total(self.0)
    }
}

/// A number that goes up and down. Threads keep signed differences, so one may add what another takes away.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(u32);

impl Gauge {
    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(self, n: i64) {
        with_slab(|s| bump(s, self.0, n as u64));
    }

    /// Makes the sum over all threads `n`. Only for gauges that one thread writes.
    pub fn set(self, n: i64) {
        let now = self.value();
        self.add(n.wrapping_sub(now));
    }

    /// The sum over all threads.
    pub fn value(self) -> i64 {
        total(self.0) as i64
    }
}

/// A distribution over [`BUCKETS`].
#[derive(Clone, Copy, Debug)]
pub struct Histogram(u32);

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(self, value: f64) {
        let bucket = bucket(value);
        with_slab(|s| {
            bump(s, self.0 + bucket, 1);
            bump(s, self.0 + BUCKETS.len() as u32 + 1, (value * 1000.0) as u64);
        });
    }

    /// Counts per bucket (the last one: above all bounds), not cumulative, and the sum of all values.
    pub fn value(self) -> ([u64; BUCKETS.len() + 1], f64) {
        Reading::begin().histogram(self)
    }
}

/// One cell's sum: without a list of threads of its own, which is for those who read many.
fn total(index: u32) -> u64 {
    CELLS.lock().slabs.iter().fold(0u64, |sum, slab| sum.wrapping_add(slab.read(index)))
}

/// One look at all threads' cells: the list of threads is taken once, and then nothing is locked.
pub struct Reading {
    slabs: Vec<&'static Slab>,
}

impl Reading {
    /// Of the threads that there are now.
    pub fn begin() -> Self {
        Self { slabs: CELLS.lock().slabs.clone() }
    }

    fn total(&self, index: u32) -> u64 {
        self.slabs.iter().fold(0u64, |sum, s| sum.wrapping_add(s.read(index)))
    }

    /// A counter's sum.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.total(counter.0)
    }

    /// A gauge's sum.
    pub fn gauge(&self, gauge: Gauge) -> i64 {
        self.total(gauge.0) as i64
    }

    /// A histogram's counts and sum, as [`Histogram::value`] has them.
    pub fn histogram(&self, histogram: Histogram) -> ([u64; BUCKETS.len() + 1], f64) {
        let mut counts = [0; BUCKETS.len() + 1];
        for (i, count) in counts.iter_mut().enumerate() {
            *count = self.total(histogram.0 + i as u32);
        }
        (counts, self.total(histogram.0 + BUCKETS.len() as u32 + 1) as f64 / 1000.0)
    }

    /// A number that differs from an earlier one when something of the group has been counted in between.
    pub fn trace(&self, group: &Group) -> u64 {
        let of = |entry: &Entry| {
            let (start, len) = entry.metric.cells();
            (start..start + len).fold(0u64, |sum, index| sum.wrapping_add(self.total(index)))
        };
        group.each(|sum: u64, entry| sum.wrapping_add(of(&entry)))
    }
}

/// Names of labels with their values. Metrics that are alike share one set, and sets share their values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(&'static str, Arc<str>)]>);

static NONE: LazyLock<Labels> = LazyLock::new(|| Labels(Arc::new([])));

/// Values that labels have. What no set uses any more goes when the table would grow.
static VALUES: LazyLock<Mutex<(HashSet<Arc<str>>, usize)>> = LazyLock::new(Mutex::default);

/// A label's value, shared with all others that are the same.
pub fn label_value(text: &str) -> Arc<str> {
    let mut values = VALUES.lock();
    if let Some(known) = values.0.get(text) {
        return known.clone();
    }
    if values.0.len() >= values.1 {
        values.0.retain(|value| Arc::strong_count(value) > 1);
        values.1 = (2 * values.0.len()).max(1024);
    }
    let new: Arc<str> = text.into();
    values.0.insert(new.clone());
    new
}

impl Labels {
    /// Whether it is the very same set: a quick look that may miss equal ones.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Default for Labels {
    fn default() -> Self {
        NONE.clone()
    }
}

impl Deref for Labels {
    type Target = [(&'static str, Arc<str>)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<Vec<(&'static str, String)>> for Labels {
    fn from(labels: Vec<(&'static str, String)>) -> Self {
        if labels.is_empty() {
            return Self::default();
        }
        Self(labels.into_iter().map(|(name, text)| (name, label_value(&text))).collect())
    }
}

impl FromIterator<(&'static str, Arc<str>)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'static str, Arc<str>)>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

/// A metric of a group.
#[derive(Clone, Copy, Debug)]
pub enum Metric {
    /// Only grows.
    Counter(Counter),
    /// Goes up and down.
    Gauge(Gauge),
    /// Distribution.
    Histogram(Histogram),
}

impl Metric {
    /// Its first cell, and how many they are.
    fn cells(self) -> (u32, u32) {
        match self {
            Self::Counter(Counter(i)) | Self::Gauge(Gauge(i)) => (i, 1),
            Self::Histogram(Histogram(i)) => (i, HISTOGRAM_CELLS as u32),
        }
    }

    /// The same with its first cell so much further.
    fn beyond(self, base: u32) -> Self {
        match self {
            Self::Counter(Counter(i)) => Self::Counter(Counter(base + i)),
            Self::Gauge(Gauge(i)) => Self::Gauge(Gauge(base + i)),
            Self::Histogram(Histogram(i)) => Self::Histogram(Histogram(base + i)),
        }
    }
}

/// One named metric in a group.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name within the group: for Envoy's vocabulary the part after the prefix (`upstream_rq_total`), for Istio's the
    /// whole name (`istio_requests_total`).
    pub name: Cow<'static, str>,
    /// Labels of this entry alone, rendered after the group's.
    pub labels: Labels,
    /// The cells.
    pub metric: Metric,
}

/// Metrics that live and die together, such as one cluster's. Handles taken from it must not be used after it is dropped
/// (they would count for whoever has the cells next), so whoever holds handles holds the group as well.
#[derive(Debug)]
pub struct Group {
    /// Envoy's dotted prefix, such as `cluster.outbound|80||a.b` or `listener.0.0.0.0_80`; empty for Istio's metrics.
    pub prefix: Arc<str>,
    /// Labels of every entry.
    pub labels: Labels,
    /// What it has in common with others.
    common: Common,
    entries: Mutex<Entries>,
}

/// The first metrics of a group, where they are those of many: a cluster has a hundred, and there may be ten thousand clusters.
#[derive(Debug)]
enum Common {
    None,
    /// These, from this cell on.
    Of(&'static Template, u32),
    /// It is about to become a template.
    Learnt,
}

#[derive(Debug, Default)]
struct Entries {
    /// So many of those in common have been handed out.
    taken: usize,
    own: Vec<Entry>,
}

/// Metrics that groups have in common: names, labels and the places of their cells are written down once.
#[derive(Debug)]
pub struct Template {
    /// Their cells are counted from the group's first.
    entries: Box<[Entry]>,
    cells: u32,
}

impl Template {
    /// Learns what `make` adds to a group. It must add the same each time.
    pub fn of<T>(make: impl FnOnce(&Arc<Group>) -> T) -> Self {
        let group = Arc::new(Group {
            prefix: "".into(),
            labels: Labels::default(),
            common: Common::Learnt,
            entries: Mutex::default(),
        });
        drop(make(&group));
        let entries = std::mem::take(&mut group.entries.lock().own).into_boxed_slice();
        let cells = entries.iter().map(|entry| entry.metric.cells().1).sum();
        Self { entries, cells }
    }

    /// What groups of it have in common. The handles are none that could count.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Group {
    /// Registers an empty group.
    pub fn new(prefix: impl Into<Arc<str>>, labels: impl Into<Labels>) -> Arc<Self> {
        Self::register(prefix.into(), labels.into(), Common::None)
    }

    /// Registers a group whose first metrics are those of a template, in its order. Whoever makes it adds them as ever.
    pub fn alike(template: &'static Template, prefix: impl Into<Arc<str>>) -> Arc<Self> {
        Self::register(prefix.into(), Labels::default(), Common::Of(template, allocate(template.cells)))
    }

    fn register(prefix: Arc<str>, labels: Labels, common: Common) -> Arc<Self> {
        let group = Arc::new(Self { prefix, labels, common, entries: Mutex::default() });
        let mut cells = CELLS.lock();
        if cells.groups.len() >= cells.room {
            cells.groups.retain(|g| g.strong_count() > 0);
            cells.room = (2 * cells.groups.len()).max(64);
        }
        cells.groups.push(Arc::downgrade(&group));
        group
    }

    /// The first cell of a metric of so many.
    fn add(&self, name: Cow<'static, str>, labels: Labels, cells: u32, metric: fn(u32) -> Metric) -> u32 {
        let mut entries = self.entries.lock();
        let start = match &self.common {
            Common::Of(template, base) if entries.taken < template.entries.len() => {
                let known = &template.entries[entries.taken];
                debug_assert_eq!(
                    (&known.name, known.metric.cells().1),
                    (&name, cells),
                    "not the template's order"
                );
                entries.taken += 1;
                return base + known.metric.cells().0;
            }
            Common::Learnt => {
                let last = entries.own.last().map(|entry| entry.metric.cells());
                last.map_or(0, |(start, len)| start + len)
            }
            _ => allocate(cells),
        };
        entries.own.push(Entry { name, labels, metric: metric(start) });
        start
    }

    /// Adds a counter.
    pub fn counter(&self, name: impl Into<Cow<'static, str>>) -> Counter {
        self.counter_with(name, Labels::default())
    }

    /// Adds a counter with labels of its own.
    pub fn counter_with(&self, name: impl Into<Cow<'static, str>>, labels: impl Into<Labels>) -> Counter {
        Counter(self.add(name.into(), labels.into(), 1, |start| Metric::Counter(Counter(start))))
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &'static str) -> Gauge {
        self.gauge_with(name, Labels::default())
    }

    /// Adds a gauge with labels of its own.
    pub fn gauge_with(&self, name: &'static str, labels: impl Into<Labels>) -> Gauge {
        Gauge(self.add(name.into(), labels.into(), 1, |start| Metric::Gauge(Gauge(start))))
    }

    /// Adds a histogram.
    pub fn histogram(&self, name: &'static str) -> Histogram {
        self.histogram_with(name, Labels::default())
    }

    /// Adds a histogram with labels of its own.
    pub fn histogram_with(&self, name: &'static str, labels: impl Into<Labels>) -> Histogram {
        let cells = HISTOGRAM_CELLS as u32;
        Histogram(self.add(name.into(), labels.into(), cells, |start| Metric::Histogram(Histogram(start))))
    }

    /// The entries as they are now.
    pub fn entries(&self) -> Vec<Entry> {
        self.each(|mut all: Vec<Entry>, entry| {
            all.push(entry);
            all
        })
    }

    fn each<T: Default>(&self, add: impl Fn(T, Entry) -> T) -> T {
        let entries = self.entries.lock();
        let common = match &self.common {
            Common::Of(template, base) => Some(template.entries[..entries.taken].iter().map(|entry| Entry {
                name: entry.name.clone(),
                labels: entry.labels.clone(),
                metric: entry.metric.beyond(*base),
            })),
            _ => None,
        };
        common.into_iter().flatten().chain(entries.own.iter().cloned()).fold(T::default(), add)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let common = match self.common {
            Common::Learnt => return,
            Common::Of(template, base) => Some((base, template.cells)),
            Common::None => None,
        };
        let mut cells = CELLS.lock();
        let own = self.entries.get_mut().own.iter().map(|entry| entry.metric.cells());
        for (start, len) in common.into_iter().chain(own) {
            for slab in &cells.slabs {
                (start..start + len).for_each(|i| slab.clear(i));
            }
            cells.free.entry(len).or_default().push(start);
        }
    }
}

fn allocate(len: u32) -> u32 {
    let mut cells = CELLS.lock();
    if let Some(start) = cells.free.get_mut(&len).and_then(Vec::pop) {
        return start;
    }
    // A run never crosses the end of the slab; beyond it (8 million cells) metrics share the last run, so that a runaway
    // number of series costs its own accuracy and not the proxy.
    let end = (CHUNK * CHUNKS) as u32;
    let start = cells.next.min(end - len);
    cells.next = start + len;
    start
}

/// All live groups, oldest first: what a scrape walks.
pub fn groups() -> Vec<Arc<Group>> {
    CELLS.lock().groups.iter().filter_map(std::sync::Weak::upgrade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sums_what_every_thread_added_even_after_it_ended() {
        let group = Group::new("t1", Labels::default());
        let counter = group.counter("c");
        let gauge = group.gauge("g");
        counter.inc();
        gauge.add(5);
        std::thread::spawn(move || {
            counter.add(41);
            gauge.add(-3);
        })
        .join()
        .unwrap();
        assert_eq!(counter.value(), 42);
        assert_eq!(gauge.value(), 2);
    }

    #[test]
    fn threads_that_come_and_go_leave_one_anothers_cells_and_no_more_each_time() {
        let group = Group::new("t6", Labels::default());
        let counter = group.counter("c");
        let count = || CELLS.lock().slabs.len();
        let mut most = Vec::new();
        for _ in 0..50 {
            std::thread::spawn(move || counter.inc()).join().unwrap();
            most.push(count());
        }
        assert_eq!(counter.value(), 50);
        // Other tests have threads of their own, but not fifty at a time.
        assert!(most[49] - most[0] < 40, "{most:?}");
    }

    #[test]
    fn what_is_dropped_with_its_thread_may_still_count() {
        struct Late(Counter);
        impl Drop for Late {
            fn drop(&mut self) {
                self.0.inc();
            }
        }
        thread_local! {
            static BEFORE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
            static AFTER: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
        }
        let group = Group::new("t5", Labels::default());
        let counter = group.counter("c");
        std::thread::spawn(move || {
            BEFORE.set(Some(Late(counter)));
            counter.inc();
            AFTER.set(Some(Late(counter)));
        })
        .join()
        .unwrap();
        assert_eq!(counter.value(), 3);
    }

    #[test]
    fn cells_of_a_dropped_group_come_back_empty() {
        let group = Group::new("t2", Labels::default());
        let counter = group.counter("c");
        counter.add(7);
        drop(group);
        let group = Group::new("t3", Labels::default());
        let counters: Vec<_> = (0..64).map(|_| group.counter("c")).collect();
        assert!(counters.iter().all(|c| c.value() == 0));
    }

    #[test]
    fn groups_of_a_template_count_each_for_itself_under_its_names() {
        static TEMPLATE: LazyLock<Template> = LazyLock::new(|| Template::of(make));
        fn make(group: &Arc<Group>) -> (Counter, Histogram, Gauge) {
            let labelled = group.counter_with("c", vec![("k", "v".to_owned())]);
            (labelled, group.histogram("h"), group.gauge("g"))
        }
        let groups = ["t8", "t9"].map(|prefix| Group::alike(&TEMPLATE, prefix));
        let [one, other] = groups.each_ref().map(make);
        one.0.inc();
        other.1.record(3.0);
        other.2.add(-2);
        // What comes later is a group's own.
        let late = groups[0].counter("late");
        late.add(7);
        let told = |group: &Arc<Group>| -> Vec<String> {
            let value = |metric: Metric| match metric {
                Metric::Counter(counter) => counter.value().to_string(),
                Metric::Gauge(gauge) => gauge.value().to_string(),
                Metric::Histogram(histogram) => histogram.value().1.to_string(),
            };
            let labels =
                |entry: &Entry| entry.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<String>();
            group.entries().iter().map(|e| format!("{} {} {}", e.name, labels(e), value(e.metric))).collect()
        };
        assert_eq!(told(&groups[0]), ["c k=v 1", "h  0", "g  0", "late  7"]);
        assert_eq!(told(&groups[1]), ["c k=v 0", "h  3", "g  -2"]);
        let [first, second] = groups;
        drop(first);
        // Its cells come back empty, to the next of the kind.
        let next = Group::alike(&TEMPLATE, "t10");
        make(&next);
        assert_eq!(told(&next), ["c k=v 0", "h  0", "g  0"]);
        assert_eq!(told(&second), ["c k=v 0", "h  3", "g  -2"]);
    }

    #[test]
    fn labels_share_their_values_and_let_go_of_those_that_nobody_has() {
        let one = Labels::from(vec![("a", "registry-test-1".to_owned()), ("b", "x".to_owned())]);
        let other = Labels::from(vec![("a", "registry-test-1".to_owned())]);
        assert!(Arc::ptr_eq(&one[0].1, &other[0].1));
        let known = |text: &str| VALUES.lock().0.contains(text);
        assert!(known("registry-test-1"));
        drop((one, other));
        let mut more = 0;
        while known("registry-test-1") {
            assert!(more < 1_000_000, "it is kept for ever");
            drop(Labels::from(vec![("a", format!("registry-test-more-{more}"))]));
            more += 1;
        }
    }

    #[test]
    fn a_trace_changes_with_whatever_is_counted() {
        let group = Group::new("t6", Labels::default());
        let (counter, histogram) = (group.counter("c"), group.histogram("h"));
        let trace = || Reading::begin().trace(&group);
        let first = trace();
        assert_eq!(trace(), first);
        histogram.record(0.0);
        let second = trace();
        assert_ne!(second, first);
        counter.inc();
        assert_ne!(trace(), second);
    }

    #[test]
    fn a_histogram_counts_a_bound_in_its_own_bucket() {
        let group = Group::new("t4", Labels::default());
        let h = group.histogram("h");
        h.record(0.5);
        h.record(0.6);
        h.record(1e9);
        let (counts, sum) = h.value();
        assert_eq!((counts[0], counts[1], counts[BUCKETS.len()]), (1, 1, 1));
        assert!((sum - 1_000_000_001.1).abs() < 0.01);
    }
}
