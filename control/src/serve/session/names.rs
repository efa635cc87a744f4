//! The names that a client asks for of one type. Clients of one mesh ask for the same thousands of names: lists that are equal are
//! kept once.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

type List = BTreeSet<Arc<str>>;

/// Names, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    all: Arc<List>,
    /// Sum of the hashes of all of them: it follows from the one before and what changed.
    hash: u64,
}

/// Lists that somebody has.
#[derive(Default)]
struct Known {
    lists: HashMap<u64, Weak<List>>,
    /// As many as this are taken without a look for those that are gone.
    room: usize,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

fn hash(name: &str) -> u64 {
    // Lists are told apart by sums of these, so nobody outside may know how they come about.
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one(name)
}

impl Names {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.all.contains(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.all.iter()
    }

    /// These names, too.
    pub(super) fn add(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        let new: List = names.into_iter().filter(|name| !self.contains(name)).collect();
        let sum = new.iter().fold(self.hash, |sum, name| sum.wrapping_add(hash(name)));
        self.change(sum, self.all.len() + new.len(), |all| all.extend(new));
    }

    /// Not this one.
    pub(super) fn remove(&mut self, name: &str) {
        if self.contains(name) {
            let sum = self.hash.wrapping_sub(hash(name));
            self.change(sum, self.all.len() - 1, |all| {
                all.remove(name);
            });
        }
    }

    /// Takes the list that somebody else has, if there is one, or else changes this one.
    fn change(&mut self, sum: u64, len: usize, change: impl FnOnce(&mut List)) {
        if self.hash == sum && self.all.len() == len {
            return;
        }
        self.hash = sum;
        let mut known = KNOWN.lock();
        if let Some(there) = known.lists.get(&sum).and_then(Weak::upgrade).filter(|there| there.len() == len)
        {
            self.all = there;
            return;
        }
        change(Arc::make_mut(&mut self.all));
        if known.lists.len() >= known.room {
            known.lists.retain(|_, list| list.strong_count() > 0);
            known.room = 64.max(known.lists.len() * 2);
        }
        known.lists.insert(sum, Arc::downgrade(&self.all));
    }
}

impl FromIterator<Arc<str>> for Names {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(names: I) -> Self {
        let mut all = Self::default();
        all.add(names);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Names {
        text.split_whitespace().map(Arc::from).collect()
    }

    fn text(names: &Names) -> String {
        names.iter().map(|name| &**name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn lists_that_are_equal_are_one_however_they_came_about() {
        let (mut one, mut other) = (names("a b c names-test"), names("names-test a"));
        let before = other.clone();
        other.add(["c".into(), "b".into(), "b".into(), "a".into()]);
        assert!(Arc::ptr_eq(&one.all, &other.all));
        // What one of them does is not the other's.
        one.remove("b");
        one.remove("x");
        assert_eq!(
            (text(&one), text(&other), text(&before)),
            ("a c names-test".into(), "a b c names-test".into(), "a names-test".into())
        );
        other.remove("b");
        assert!(Arc::ptr_eq(&one.all, &other.all) && !other.contains("b"));
        one.add(["b".into()]);
        assert_eq!(text(&one), "a b c names-test");
    }
}
