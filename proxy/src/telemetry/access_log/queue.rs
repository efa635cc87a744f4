//! Entries on their way to a collector: workers hand them over, one task of the control thread takes them.
//!
//! What waits is bounded by its size. An entry that finds no room is dropped and counted: a collector that is slow or away costs
//! entries, never a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc};
use xds_protos::prost::Message;

use crate::telemetry::registry::Counter;

/// The most that waits, in bytes as they are on the wire.
pub const LIMIT: usize = 4 * 1024 * 1024;
/// The most entries of one message.
const MOST: usize = 2048;

/// Where workers leave entries.
pub struct Queue<T> {
    sender: mpsc::UnboundedSender<(T, usize)>,
    waiting: Arc<Waiting>,
    written: Counter,
    dropped: Counter,
}

/// The other end.
pub struct Taker<T> {
    receiver: mpsc::UnboundedReceiver<(T, usize)>,
    waiting: Arc<Waiting>,
}

struct Waiting {
    bytes: AtomicUsize,
    /// So many bytes go out at once.
    enough: usize,
    wake: Notify,
}

/// Entries that were taken. They count as waiting until this is dropped.
pub struct Batch<T> {
    /// The entries, the oldest first.
    pub entries: Vec<T>,
    bytes: usize,
    waiting: Arc<Waiting>,
}

/// Both ends of a queue whose taker is woken by so many bytes.
pub fn queue<T>(enough: usize, written: Counter, dropped: Counter) -> (Queue<T>, Taker<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting =
        Arc::new(Waiting { bytes: AtomicUsize::new(0), enough: enough.clamp(1, LIMIT), wake: Notify::new() });
    (Queue { sender, waiting: waiting.clone(), written, dropped }, Taker { receiver, waiting })
}

impl<T: Message> Queue<T> {
    /// Hands an entry over. Never waits.
    pub fn push(&self, entry: T) {
        let size = entry.encoded_len();
        let before = self.waiting.bytes.load(Relaxed);
        if before + size > LIMIT {
            return self.dropped.inc();
        }
        let before = self.waiting.bytes.fetch_add(size, Relaxed);
        if self.sender.send((entry, size)).is_err() {
            self.waiting.bytes.fetch_sub(size, Relaxed);
            return self.dropped.inc();
        }
        self.written.inc();
        if before < self.waiting.enough && before + size >= self.waiting.enough {
            self.waiting.wake.notify_one();
        }
    }
}

impl<T> Taker<T> {
    /// What is there after this time, or sooner if it is enough; none when nobody is left to hand over anything.
    pub async fn batch(&mut self, every: Duration) -> Option<Batch<T>> {
        loop {
            if self.waiting.bytes.load(Relaxed) < self.waiting.enough {
                // Woken or not: what is there is taken.
                let _ = tokio::time::timeout(every, self.waiting.wake.notified()).await;
            }
            let mut batch = Batch { entries: Vec::new(), bytes: 0, waiting: self.waiting.clone() };
            let over = loop {
                if batch.entries.len() == MOST {
                    break false;
                }
                match self.receiver.try_recv() {
                    Ok((entry, size)) => {
                        batch.entries.push(entry);
                        batch.bytes += size;
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
        }
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        self.waiting.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Group;

    #[tokio::test(start_paused = true)]
    async fn entries_wait_for_their_time_or_for_enough_and_what_is_too_much_is_counted() {
        let group = Group::new("test_queue", Vec::new());
        let (written, dropped) = (group.counter("written"), group.counter("dropped"));
        let (queue, mut taker) = queue::<String>(10, written, dropped);
        queue.push("a".to_owned());
        let began = tokio::time::Instant::now();
        let batch = taker.batch(Duration::from_secs(1)).await.unwrap();
        assert_eq!((batch.entries.len(), began.elapsed()), (1, Duration::from_secs(1)));
        drop(batch);
        queue.push("longer than ten".to_owned());
        let began = tokio::time::Instant::now();
        let batch = taker.batch(Duration::from_secs(1)).await.unwrap();
        assert_eq!((batch.entries.len(), began.elapsed()), (1, Duration::ZERO));
        // While that is on its way it still counts.
        let piece = "x".repeat(LIMIT / 4);
        (0..5).for_each(|_| queue.push(piece.clone()));
        assert_eq!((written.value(), dropped.value()), (5, 2));
        drop(batch);
        queue.push("y".to_owned());
        assert_eq!(taker.batch(Duration::from_secs(1)).await.unwrap().entries.len(), 4);
        drop(queue);
        assert!(taker.batch(Duration::from_secs(1)).await.is_none());
    }
}
