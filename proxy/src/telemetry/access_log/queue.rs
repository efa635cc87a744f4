//! Entries on their way to a collector: workers hand them over, one task of the control thread takes them.
//!
//! What waits is bounded by what it takes of memory. An entry that finds no room is dropped and counted: a collector that is slow
//! or away costs entries, never a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc};
use xds_protos::prost::Message;

use crate::telemetry::registry::Counter;

/// The most that waits, in bytes of memory, roughly.
pub const LIMIT: usize = 4 * 1024 * 1024;
/// The most entries of one message.
const MOST: usize = 2048;
/// A message of so many bytes is long enough: servers of gRPC take 4 MiB at once, and one entry may be long.
const FULL: usize = 1024 * 1024;

/// Where workers leave entries.
pub struct Queue<T> {
    sender: mpsc::UnboundedSender<(T, Size)>,
    waiting: Arc<Waiting>,
    written: Counter,
    /// After the sender: fields go in order, and who is woken must find it gone.
    _last: WakeAtEnd,
}

/// The other end.
pub struct Taker<T> {
    receiver: mpsc::UnboundedReceiver<(T, Size)>,
    waiting: Arc<Waiting>,
}

/// What an entry takes.
#[derive(Clone, Copy, Default)]
struct Size {
    /// On the wire.
    encoded: usize,
    /// In memory.
    held: usize,
}

/// What waits in a queue, or was taken and is on its way.
pub struct Waiting {
    /// What all of it takes of memory.
    held: AtomicUsize,
    /// What was not taken takes on the wire.
    queued: AtomicUsize,
    entries: AtomicU64,
    /// So many bytes on the wire go out at once.
    enough: usize,
    /// All goes out at once.
    hurry: AtomicBool,
    wake: Notify,
    dropped: Counter,
}

struct WakeAtEnd(Arc<Waiting>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake.notify_one();
    }
}

/// Entries that were taken. They count as waiting until this is dropped.
pub struct Batch<T> {
    /// The entries, the oldest first.
    pub entries: Vec<T>,
    count: u64,
    size: Size,
    waiting: Arc<Waiting>,
}

/// Both ends of a queue whose taker is woken by so many bytes.
pub fn queue<T>(enough: usize, written: Counter, dropped: Counter) -> (Queue<T>, Taker<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting {
        held: AtomicUsize::new(0),
        queued: AtomicUsize::new(0),
        entries: AtomicU64::new(0),
        enough: enough.clamp(1, FULL),
        hurry: AtomicBool::new(false),
        wake: Notify::new(),
        dropped,
    });
    let last = WakeAtEnd(waiting.clone());
    (Queue { sender, waiting: waiting.clone(), written, _last: last }, Taker { receiver, waiting })
}

impl Size {
    fn of<T: Message>(entry: &T) -> Self {
        // Of an entry of no bytes one is due as well. Decoded, its texts and lists take about as much again as on the wire.
        let encoded = entry.encoded_len().max(1);
        Self { encoded, held: size_of::<T>() + 2 * encoded }
    }
}

impl Waiting {
    /// Whether what was not taken is to go out at once.
    fn is_due(&self) -> bool {
        let queued = self.queued.load(Relaxed);
        let pressing = self.hurry.load(Relaxed) || self.held.load(Relaxed) >= LIMIT / 2;
        queued >= self.enough || queued > 0 && pressing
    }

    /// From now on nothing waits for its time.
    pub fn hurry(&self) {
        self.hurry.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// How many entries wait, or are on their way.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Counts what waits as dropped: whoever should take it will not come any more. Gives how many that are.
    pub fn give_up(&self) -> u64 {
        let left = self.entries();
        self.dropped.add(left);
        left
    }
}

impl<T: Message> Queue<T> {
    /// Hands an entry over. Never waits.
    pub fn push(&self, entry: T) {
        let (size, waiting) = (Size::of(&entry), &*self.waiting);
        if waiting.held.load(Relaxed) + size.held > LIMIT {
            return waiting.dropped.inc();
        }
        let was_due = waiting.is_due();
        waiting.held.fetch_add(size.held, Relaxed);
        waiting.queued.fetch_add(size.encoded, Relaxed);
        waiting.entries.fetch_add(1, Relaxed);
        if self.sender.send((entry, size)).is_err() {
            waiting.queued.fetch_sub(size.encoded, Relaxed);
            waiting.gone(1, size);
            return waiting.dropped.inc();
        }
        self.written.inc();
        if !was_due && waiting.is_due() {
            waiting.wake.notify_one();
        }
    }
}

impl Waiting {
    fn gone(&self, count: u64, size: Size) {
        self.held.fetch_sub(size.held, Relaxed);
        self.entries.fetch_sub(count, Relaxed);
    }
}

impl<T> Taker<T> {
    /// What there is to know of the queue for others.
    pub fn waiting(&self) -> Arc<Waiting> {
        self.waiting.clone()
    }

    /// What is there after this time, or sooner if it is enough; none when nobody is left to hand over anything.
    pub async fn batch(&mut self, every: Duration) -> Option<Batch<T>> {
        loop {
            if !self.waiting.is_due() && !self.receiver.is_closed() {
                // Woken or not: what is there is taken.
                let _ = tokio::time::timeout(every, self.waiting.wake.notified()).await;
            }
            let mut batch =
                Batch { entries: Vec::new(), count: 0, size: Size::default(), waiting: self.waiting.clone() };
            let over = loop {
                if batch.entries.len() == MOST || batch.size.encoded >= FULL {
                    break false;
                }
                match self.receiver.try_recv() {
                    Ok((entry, size)) => {
                        self.waiting.queued.fetch_sub(size.encoded, Relaxed);
                        batch.entries.push(entry);
                        batch.count += 1;
                        batch.size.encoded += size.encoded;
                        batch.size.held += size.held;
                    }
                    Err(error) => break error == TryRecvError::Disconnected,
                }
            };
            if !batch.entries.is_empty() {
                return Some(batch);
            }
            if over {
                return None;
            }
            // An entry that is counted is about to be there.
            tokio::task::yield_now().await;
        }
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        self.waiting.gone(self.count, self.size);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::telemetry::registry::Group;

    fn counters(group: &Group) -> (Counter, Counter) {
        (group.counter("written"), group.counter("dropped"))
    }

    #[tokio::test(start_paused = true)]
    async fn entries_wait_for_their_time_or_for_enough_and_what_is_too_much_is_counted() {
        let group = Group::new("test_queue", Vec::new());
        let (written, dropped) = counters(&group);
        let (queue, mut taker) = queue::<String>(10, written, dropped);
        queue.push("a".to_owned());
        let began = Instant::now();
        let batch = taker.batch(Duration::from_secs(1)).await.unwrap();
        assert_eq!((batch.entries.len(), began.elapsed()), (1, Duration::from_secs(1)));
        drop(batch);
        queue.push("longer than ten".to_owned());
        let began = Instant::now();
        let batch = taker.batch(Duration::from_secs(1)).await.unwrap();
        assert_eq!((batch.entries.len(), began.elapsed()), (1, Duration::ZERO));
        // While that is on its way it still counts, and in memory all is larger.
        let piece = "x".repeat(LIMIT / 8);
        (0..5).for_each(|_| queue.push(piece.clone()));
        assert_eq!((written.value(), dropped.value()), (5, 2));
        drop(batch);
        queue.push("y".to_owned());
        let mut all = Vec::new();
        while all.iter().sum::<usize>() < 4 {
            all.push(taker.batch(Duration::from_secs(1)).await.unwrap().entries.len());
        }
        // None is much longer than it may be.
        assert_eq!(all, [2, 2]);
        drop(queue);
        assert!(taker.batch(Duration::from_secs(1)).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_its_time_in_a_hurry_or_when_nobody_is_left() {
        let group = Group::new("test_queue_end", Vec::new());
        let (written, dropped) = counters(&group);
        let (queue, mut taker) = queue::<String>(1000, written, dropped);
        let hour = Duration::from_secs(3600);
        let (waiting, began) = (taker.waiting(), Instant::now());
        queue.push("a".to_owned());
        let (batch, ()) = tokio::join!(taker.batch(hour), async { waiting.hurry() });
        assert_eq!(waiting.entries(), 1, "on its way");
        drop(batch);
        assert_eq!(waiting.entries(), 0);
        queue.push("b".to_owned());
        assert_eq!(waiting.give_up(), 1);
        assert_eq!(dropped.value(), 1);
        assert_eq!(taker.batch(hour).await.unwrap().entries, ["b"]);
        let (none, ()) = tokio::join!(taker.batch(hour), async { drop(queue) });
        assert!(none.is_none());
        assert!(began.elapsed() < hour, "{:?}", began.elapsed());
    }
}
