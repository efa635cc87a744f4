//! What somebody else said lately, for as long as it holds.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Sayings that hold for a while. There is room for so many; the oldest make place, so nobody's questions drive out all that others know.
#[derive(Debug)]
pub(super) struct Lately<K, V> {
    holds: Duration,
    room: usize,
    all: HashMap<K, (Instant, V)>,
    /// In the order in which they were said.
    order: VecDeque<(Instant, K)>,
}

impl<K: Hash + Eq + Clone, V: Clone> Lately<K, V> {
    pub(super) fn new(holds: Duration, room: usize) -> Self {
        Self { holds, room, all: HashMap::new(), order: VecDeque::new() }
    }

    /// What holds still.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (at, value) = self.all.get(key)?;
        (now.saturating_duration_since(*at) < self.holds).then(|| value.clone())
    }

    pub(super) fn insert(&mut self, key: K, value: V, now: Instant) {
        self.all.insert(key.clone(), (now, value));
        self.order.push_back((now, key));
        while let Some((at, _)) = self.order.front()
            && (self.order.len() > self.room || now.saturating_duration_since(*at) >= self.holds)
        {
            let Some((at, key)) = self.order.pop_front() else { return };
            // What was said anew since stays.
            if self.all.get(&key).is_some_and(|(said, _)| *said == at) {
                self.all.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_place_and_what_is_old_holds_no_more() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut lately = Lately::new(10 * second, 3);
        for (n, key) in ["a", "b", "a", "c"].into_iter().enumerate() {
            lately.insert(key, n, began + second * u32::try_from(n).unwrap());
        }
        let now = began + 4 * second;
        assert_eq!(["a", "b", "c"].map(|key| lately.get(&key, now)), [Some(2), Some(1), Some(3)]);
        lately.insert("d", 4, now);
        assert_eq!(["a", "b", "c", "d"].map(|key| lately.get(&key, now)), [Some(2), None, Some(3), Some(4)]);
        assert_eq!(lately.get(&"a", began + 12 * second), None);
        lately.insert("e", 5, began + 60 * second);
        assert_eq!((lately.all.len(), lately.order.len()), (1, 1), "what is old is not kept");
    }
}
