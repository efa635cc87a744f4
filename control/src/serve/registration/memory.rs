//! Entries of a mesh in a directory: they live here, and become part of each state.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::Health;
use crate::ingest::Snapshot;
use crate::model::service_entry::WorkloadEntry;
use crate::model::workload_group::{CONNECTED_ANNOTATION, PROXY_ANNOTATION};
use crate::model::{Object, ObjectKey};

/// What is entered.
pub type Entered = Vec<Arc<Object<WorkloadEntry>>>;

/// The entries. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    all: Arc<Mutex<All>>,
    told: Arc<watch::Sender<Arc<Entered>>>,
}

#[derive(Debug, Default)]
struct All {
    next: u64,
    /// By whose stream each is held: the latest one's.
    entries: BTreeMap<ObjectKey, (u64, Arc<Object<WorkloadEntry>>)>,
}

/// An entry, as somebody holds it.
#[derive(Debug)]
pub(super) struct Held {
    key: ObjectKey,
    number: u64,
}

impl Memory {
    pub(super) fn entered(&self) -> watch::Receiver<Arc<Entered>> {
        self.told.subscribe()
    }

    /// Enters it, in the place of an earlier stream's.
    pub(super) fn put(&self, mut entry: Object<WorkloadEntry>) -> Held {
        let key = entry.meta.key();
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        entry.meta.annotations.insert(CONNECTED_ANNOTATION.to_owned(), now);
        // Whatever is written down was there before.
        entry.meta.created = None;
        entry.meta.source.position = u32::MAX;
        entry.meta.version = version(&entry);
        let number = {
            let mut all = self.all.lock();
            all.next += 1;
            let number = all.next;
            if let Some((_, there)) = all.entries.get(&key) {
                // It is as well as it was, until it says something else.
                entry.spec.unhealthy &= there.spec.unhealthy;
                entry.meta.version = version(&entry);
            }
            // One that was there stays as it was: a proxy that comes back is nobody else's news.
            let entry = match all.entries.get(&key) {
                Some((_, there)) if there.meta.version == entry.meta.version => there.clone(),
                _ => Arc::new(entry),
            };
            all.entries.insert(key.clone(), (number, entry));
            number
        };
        self.tell();
        Held { key, number }
    }

    /// Enters what was there before a restart.
    pub(super) fn put_back(&self, entries: Vec<Object<WorkloadEntry>>) -> Vec<Held> {
        let held = {
            let mut all = self.all.lock();
            let put = |mut entry: Object<WorkloadEntry>| {
                let key = entry.meta.key();
                entry.meta.version = version(&entry);
                all.next += 1;
                let number = all.next;
                all.entries.insert(key.clone(), (number, Arc::new(entry)));
                Held { key, number }
            };
            entries.into_iter().map(put).collect()
        };
        self.tell();
        held
    }

    fn tell(&self) {
        let entries: Entered = self.all.lock().entries.values().map(|(_, entry)| entry.clone()).collect();
        self.told.send_if_modified(|told| {
            let same =
                told.len() == entries.len() && told.iter().zip(&entries).all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                *told = Arc::new(entries);
            }
            !same
        });
    }

    /// Changes the entry if it is still held so; whether it is.
    fn change(&self, held: &Held, change: impl FnOnce(&mut Object<WorkloadEntry>)) -> bool {
        {
            let mut all = self.all.lock();
            let Some((number, entry)) = all.entries.get_mut(&held.key) else { return false };
            if *number != held.number {
                return false;
            }
            let mut changed = Object::clone(entry);
            change(&mut changed);
            changed.meta.version = version(&changed);
            *entry = Arc::new(changed);
        }
        self.tell();
        true
    }

    /// Looks after an entry until its stream has ended, and the moment after.
    pub(super) async fn keep(self, held: Held, mut health: watch::Receiver<Health>, grace: Duration) {
        while health.changed().await.is_ok() {
            let now = health.borrow_and_update().clone();
            if let Some(now) = now {
                if let Err(reason) = &now {
                    tracing::warn!(workload = %held.key, reason, "a workload is not well, and gets no requests");
                }
                self.change(&held, |entry| entry.spec.unhealthy = now.is_err());
            }
        }
        tokio::time::sleep(grace).await;
        let gone = {
            let mut all = self.all.lock();
            let is_held = all.entries.get(&held.key).is_some_and(|(number, _)| *number == held.number);
            is_held.then(|| all.entries.remove(&held.key)).is_some()
        };
        if gone {
            tracing::info!(workload = %held.key, "a workload that entered itself is gone");
            self.tell();
        }
    }
}

/// Of what it says; since when it is connected does not count.
fn version(entry: &Object<WorkloadEntry>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Object { meta, spec } = entry;
    let proxy = meta.annotations.get(PROXY_ANNOTATION);
    (&meta.namespace, &meta.name, &meta.labels, proxy).hash(&mut hasher);
    format!("{spec:?}").hash(&mut hasher);
    hasher.finish()
}

/// What `snapshots` say, with what is entered; again whenever either changes.
pub fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut entered: watch::Receiver<Arc<Entered>>,
) -> watch::Receiver<Arc<Snapshot>> {
    let with = |snapshot: &Arc<Snapshot>, entered: &Entered, before: Option<&Snapshot>| {
        let world = snapshot.world.with_entries(entered, before.map(|before| &before.world));
        Arc::new(Snapshot { world, ..Snapshot::clone(snapshot) })
    };
    let mut last = with(&snapshots.borrow_and_update(), &entered.borrow_and_update(), None);
    let (sender, receiver) = watch::channel(last.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                Ok(()) = entered.changed() => {}
            }
            last = with(&snapshots.borrow_and_update(), &entered.borrow_and_update(), Some(&last));
            sender.send_replace(last.clone());
        }
    });
    receiver
}
