//! Named slots: how one resource refers to another that may come later, change, or go.
//!
//! A route names a cluster, a listener names a route configuration, a TLS context names a secret. Each reference is a
//! [`Slot`] that both sides share: whoever compiles the reference takes the slot by name (and thereby makes it, Missing),
//! the engine publishes versions into it. A request loads the slot once and works on what it got.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release,
};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::RwLock;

/// Where a slot's resource is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Named by somebody, never received, or removed.
    Missing = 0,
    /// Received, waiting for what it depends on. An earlier version may still be serving.
    Warming = 1,
    /// Serving.
    Ready = 2,
    /// Removed by the server; serving what already started.
    Removing = 3,
}

/// A named place for the serving version of a resource.
#[derive(Debug)]
pub struct Slot<T> {
    name: Arc<str>,
    current: ArcSwapOption<T>,
    state: AtomicU8,
    /// Whether there is a version: asked more often than the version itself.
    serves: AtomicBool,
    generation: AtomicU64,
    waiters: tokio::sync::Notify,
}

impl<T> Slot<T> {
    /// An empty slot.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            current: ArcSwapOption::empty(),
            state: AtomicU8::new(SlotState::Missing as u8),
            serves: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            waiters: tokio::sync::Notify::new(),
        }
    }

    /// A slot that already serves `value`: inline configuration, tests.
    pub fn ready(name: impl Into<Arc<str>>, value: Arc<T>) -> Arc<Self> {
        let slot = Self::new(name);
        slot.publish(value);
        Arc::new(slot)
    }

    /// The resource's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The serving version, kept alive by the caller.
    #[inline]
    pub fn get(&self) -> Option<Arc<T>> {
        self.current.load_full()
    }

    /// The serving version for a moment: cheaper than [`get`](Self::get), not to be held over an await.
    #[inline]
    pub fn load(&self) -> Guard<Option<Arc<T>>> {
        self.current.load()
    }

    /// Whether there is a version that serves. It may come or go at any time: whoever needs one loads it.
    #[inline]
    pub fn serves(&self) -> bool {
        self.serves.load(Acquire)
    }

    /// Where the resource is in its life.
    pub fn state(&self) -> SlotState {
        match self.state.load(Acquire) {
            1 => SlotState::Warming,
            2 => SlotState::Ready,
            3 => SlotState::Removing,
            _ => SlotState::Missing,
        }
    }

    /// How often the slot changed what it serves. A cached derivation is stale when this moved.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Says that a version is on its way. The one that serves goes on serving.
    pub fn warming(&self) {
        self.state.store(SlotState::Warming as u8, Release);
    }

    /// Serves `value` from now on; returns what served before.
    pub fn publish(&self, value: Arc<T>) -> Option<Arc<T>> {
        let old = self.current.swap(Some(value));
        self.serves.store(true, Release);
        self.state.store(SlotState::Ready as u8, Release);
        self.generation.fetch_add(1, AcqRel);
        self.waiters.notify_waiters();
        old
    }

    /// Says that the resource was removed while `get` still answers, until [`clear`](Self::clear).
    pub fn removing(&self) {
        self.state.store(SlotState::Removing as u8, Release);
    }

    /// Serves nothing from now on; returns what served before.
    pub fn clear(&self) -> Option<Arc<T>> {
        let old = self.current.swap(None);
        self.serves.store(false, Release);
        self.state.store(SlotState::Missing as u8, Release);
        self.generation.fetch_add(1, AcqRel);
        self.waiters.notify_waiters();
        old
    }

    /// Resolves when the slot serves something; at once if it does. The caller adds the deadline.
    pub async fn wait(&self) -> Arc<T> {
        loop {
            let notified = self.waiters.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if let Some(value) = self.get() {
                return value;
            }
            notified.await;
        }
    }
}

/// All slots of one kind, by name.
#[derive(Debug)]
pub struct SlotTable<T> {
    slots: RwLock<HashMap<Arc<str>, Arc<Slot<T>>>>,
}

impl<T> Default for SlotTable<T> {
    fn default() -> Self {
        Self { slots: RwLock::default() }
    }
}

impl<T> SlotTable<T> {
    /// The slot of this name, made (Missing) if nobody named it before.
    pub fn slot(&self, name: &str) -> Arc<Slot<T>> {
        if let Some(slot) = self.slots.read().get(name) {
            return slot.clone();
        }
        let mut slots = self.slots.write();
        if let Some(slot) = slots.get(name) {
            return slot.clone();
        }
        let slot = Arc::new(Slot::new(name));
        slots.insert(slot.name.clone(), slot.clone());
        slot
    }

    /// The slot of this name if anybody named it. For names that come with a request (`cluster_header`): they must not
    /// make slots.
    pub fn find(&self, name: &str) -> Option<Arc<Slot<T>>> {
        self.slots.read().get(name).cloned()
    }

    /// What serves under this name.
    pub fn get(&self, name: &str) -> Option<Arc<T>> {
        self.slots.read().get(name).and_then(|s| s.get())
    }

    /// All slots, sorted by name.
    pub fn all(&self) -> Vec<Arc<Slot<T>>> {
        let mut all: Vec<_> = self.slots.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Forgets slots that serve nothing and that nobody refers to any more.
    pub fn sweep(&self) {
        self.slots
            .write()
            .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.state() != SlotState::Missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_made_before_the_resource_sees_it_come_and_go() {
        let table = SlotTable::<u32>::default();
        let reference = table.slot("a");
        assert_eq!((reference.state(), reference.get()), (SlotState::Missing, None));
        table.slot("a").publish(Arc::new(7));
        assert_eq!((reference.state(), reference.get().as_deref()), (SlotState::Ready, Some(&7)));
        reference.warming();
        assert_eq!(table.get("a").as_deref(), Some(&7));
        reference.clear();
        assert_eq!(table.get("a"), None);
        table.sweep();
        assert!(table.find("a").is_some());
        drop(reference);
        table.sweep();
        assert!(table.find("a").is_none());
    }

    #[tokio::test]
    async fn wait_resolves_on_publish() {
        let slot = Arc::new(Slot::<u32>::new("x"));
        let (value, _) = tokio::join!(slot.wait(), async { slot.publish(Arc::new(3)) });
        assert_eq!(*value, 3);
    }
}
