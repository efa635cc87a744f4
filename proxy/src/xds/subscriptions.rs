//! What the proxy wants to know, by type and name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;
use xds_protos::ResourceType;

/// The names wanted of each type: set by the state engine at any time, also from within [`apply`](super::ResourceSink::apply),
/// read by the client, which asks for what is new and gives up what is gone. Clones share.
///
/// Clusters and listeners are always wanted, all of them, and the table of names once [`Self::want_table`] says so; names set
/// for these are not used.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The one type that is asked for, where it is one.
    only: Option<ResourceType>,
    /// The table of names is wanted.
    table: AtomicBool,
    types: Mutex<[Wanted; ResourceType::ALL.len()]>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Wanted {
    names: Arc<BTreeSet<String>>,
    /// Names that were given up since the client last looked, also those that are wanted again: whoever gave a name up
    /// has dropped the resource.
    given_up: BTreeSet<String>,
}

impl Subscriptions {
    /// Nothing wanted by name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing wanted by name, and nothing of any type but this one ever: for servers of one type.
    pub fn only(kind: ResourceType) -> Self {
        Self { shared: Arc::new(Shared { only: Some(kind), ..Shared::default() }) }
    }

    /// The types that are asked for.
    pub(super) fn kinds(&self) -> impl Iterator<Item = ResourceType> + use<> {
        let only = self.shared.only;
        let table = only.is_some() || self.shared.table.load(Relaxed);
        ResourceType::ALL
            .into_iter()
            .filter(move |kind| only.is_none_or(|only| only == *kind))
            .filter(move |kind| *kind != ResourceType::Names || table)
    }

    /// Wants the table of the mesh's names from now on.
    pub fn want_table(&self) {
        self.shared.table.store(true, Relaxed);
        self.shared.changed.notify_one();
    }

    /// Wants exactly these names of a type from now on.
    pub fn set(&self, kind: ResourceType, names: impl IntoIterator<Item = String>) {
        let wanted: BTreeSet<String> = names.into_iter().collect();
        let mut types = self.shared.types.lock();
        let Wanted { names, given_up } = &mut types[index(kind)];
        if **names != wanted {
            given_up.extend(names.difference(&wanted).cloned());
            *names = Arc::new(wanted);
            drop(types);
            self.shared.changed.notify_one();
        }
    }

    /// The names wanted of a type.
    pub fn names(&self, kind: ResourceType) -> Arc<BTreeSet<String>> {
        self.shared.types.lock()[index(kind)].names.clone()
    }

    /// The names that were given up since the last call, though they may be wanted again by now.
    pub(super) fn take_given_up(&self, kind: ResourceType) -> BTreeSet<String> {
        std::mem::take(&mut self.shared.types.lock()[index(kind)].given_up)
    }

    /// Completes when something changed since the last completion.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

pub(super) fn index(kind: ResourceType) -> usize {
    kind as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_once_and_setting_the_same_names_is_none() {
        let s = Subscriptions::new();
        s.clone().set(ResourceType::Endpoint, ["a".to_owned(), "b".to_owned()]);
        s.changed().await;
        s.set(ResourceType::Endpoint, ["b".to_owned(), "a".to_owned()]);
        let again = tokio::time::timeout(std::time::Duration::from_millis(5), s.changed()).await;
        assert!(again.is_err(), "the same names in another order are no change");
        assert_eq!(s.names(ResourceType::Endpoint).len(), 2);
        assert!(s.names(ResourceType::Route).is_empty());
    }

    #[test]
    fn the_table_of_names_is_asked_for_only_where_it_is_wanted() {
        let s = Subscriptions::new();
        assert!(!s.kinds().any(|kind| kind == ResourceType::Names));
        s.want_table();
        assert!(s.kinds().any(|kind| kind == ResourceType::Names));
        let kinds = |kind| Subscriptions::only(kind).kinds().collect::<Vec<_>>();
        assert_eq!(kinds(ResourceType::Names), [ResourceType::Names]);
        assert_eq!(kinds(ResourceType::Secret), [ResourceType::Secret]);
    }

    #[test]
    fn every_type_has_a_place() {
        for (i, kind) in ResourceType::ALL.into_iter().enumerate() {
            assert_eq!(index(kind), i);
        }
    }
}
