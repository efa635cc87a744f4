//! What one worker has kept: a queue for each class, each with its share of the memory, so that a flood of one kind does not
//! push out the others.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Class, Entry, numbers};

/// Entries by class, within a number of bytes.
#[derive(Debug)]
pub struct Store {
    /// For each class.
    room: usize,
    queues: [Queue; Class::ALL.len()],
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
}

impl Store {
    /// A store of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { room: bytes / Class::ALL.len(), queues: Default::default() }
    }

    /// Keeps an entry, in the place of the oldest of its class if there is no room.
    pub fn push(&mut self, entry: Arc<Entry>) {
        let size = entry.size();
        let (room, numbers) = (self.room, numbers());
        let queue = &mut self.queues[entry.class as usize];
        while queue.bytes + size > room
            && let Some((_, gone)) = queue.entries.pop_front()
        {
            queue.bytes -= gone;
            numbers.pushed_out.inc();
            numbers.bytes.add(-(gone as i64));
        }
        if size > room {
            numbers.pushed_out.inc();
            return;
        }
        queue.bytes += size;
        queue.entries.push_back((entry, size));
        numbers.kept.inc();
        numbers.bytes.add(size as i64);
    }

    /// All entries.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.queues.iter().flat_map(|queue| queue.entries.iter().map(|(entry, _)| entry.clone())).collect()
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.bytes).sum()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        numbers().bytes.add(-(self.bytes() as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    fn ids(store: &Store, class: Class) -> Vec<String> {
        let of = store.entries().into_iter().filter(|entry| entry.class == class);
        of.filter_map(|entry| entry.id.as_deref().map(str::to_owned)).collect()
    }

    #[test]
    fn the_oldest_of_a_class_goes_first_and_the_others_stay() {
        let one = entry(Class::Failed, "0").size();
        let mut store = Store::new((3 * one + one / 2) * Class::ALL.len());
        store.push(entry(Class::Refused, "r").into());
        for number in 0..100 {
            store.push(entry(Class::Failed, &(number % 10).to_string()).into());
        }
        assert_eq!(ids(&store, Class::Failed), ["7", "8", "9"]);
        assert_eq!(ids(&store, Class::Refused), ["r"]);
        assert_eq!(store.bytes(), 4 * one);
    }

    #[test]
    fn what_is_larger_than_the_room_is_not_kept() {
        let mut store = Store::new(64);
        store.push(entry(Class::Failed, "0").into());
        assert!(store.entries().is_empty() && store.bytes() == 0);
    }
}
