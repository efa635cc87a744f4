//! The events that were last, numbered, for those who ask.

use std::collections::VecDeque;

use serde_json::Value;

/// As many are kept.
const KEPT: usize = 1024;

/// The last events.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    events: VecDeque<(u64, Value)>,
    next: u64,
}

impl Ring {
    /// Keeps one more, and gives its number.
    pub(crate) fn push(&mut self, event: Value) -> u64 {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        let number = self.next;
        self.events.push_back((number, event));
        self.next += 1;
        number
    }

    /// Those from this number on, oldest first, and the number that comes next.
    pub(crate) fn since(&self, number: u64) -> (Vec<Value>, u64) {
        let wanted = self.events.iter().filter(|(n, _)| *n >= number);
        let numbered = wanted.map(|(n, event)| {
            let mut event = event.clone();
            event["number"] = (*n).into();
            event
        });
        (numbered.collect(), self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_numbers_stay() {
        let mut ring = Ring::default();
        for i in 0..KEPT as u64 + 10 {
            assert_eq!(ring.push(serde_json::json!({"i": i})), i);
        }
        let (all, next) = ring.since(0);
        assert_eq!((all.len(), &all[0]["number"], next), (KEPT, &10.into(), KEPT as u64 + 10));
        let (last, _) = ring.since(next - 2);
        assert_eq!(last.iter().map(|e| e["i"].as_u64().unwrap()).collect::<Vec<_>>(), [next - 2, next - 1]);
        assert!(ring.since(next).0.is_empty());
    }
}
