//! Choices from a seed.

use serde_json::Value;

/// A source of choices.
pub struct Random(fastrand::Rng);

impl Random {
    /// The same choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number less than this.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.u64(..n)
    }

    /// True so many times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())].clone()
    }

    /// Some of what is made, at least and at most so many.
    pub fn list(&mut self, least: u64, most: u64, make: impl Fn(&mut Self) -> Value) -> Value {
        let count = least + self.below(most - least + 1);
        Value::Array((0..count).map(|_| make(self)).collect())
    }
}
