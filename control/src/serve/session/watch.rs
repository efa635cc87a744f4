//! What one client wants and holds of one type.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xds_protos::ResourceType;

use super::names::Names;
use crate::render::{Resource, answered_empty, empty};
use crate::serve::set::Set;

/// A response that is not answered for so long no longer holds up the next.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the client was sent, or said that it holds: what it wants of a set that others share, and what differs from that.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// None before anything was sent.
    base: Option<Set>,
    /// What it holds of these names in place of what the base says; none if it does not hold them.
    except: BTreeMap<Arc<str>, Option<Resource>>,
}

/// One type's subscription on one stream.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Gets everything there is.
    pub(super) wildcard: bool,
    /// Asked for by name.
    pub(super) names: Names,
    /// What the client was sent, or said that it holds.
    held: Held,
    /// How many that are.
    count: usize,
    /// Must be sent again whether or not it changed: names just subscribed, endpoints of clusters just replaced.
    pub(super) forced: BTreeSet<Arc<str>>,
    /// The client is known to hold what it should: nothing need be compared until something changes.
    pub(super) current: bool,
    /// An answer is owed even if it is empty.
    pub(super) owed: bool,
    /// The last response's nonce.
    pub(super) nonce: Option<Arc<str>>,
    /// When the last response went out, until it is answered.
    pub(super) unanswered: Option<Instant>,
    /// The nonce of the last response that was taken.
    pub(super) acked: Option<Arc<str>>,
    /// Why the last response was not taken.
    pub(super) refused: Option<String>,
}

/// What differs between what a client should hold and what it does.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) upserts: Vec<(Arc<str>, Resource)>,
    pub(super) removed: Vec<Arc<str>>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }
}

impl Watch {
    /// Whether a response is on its way that the client has not answered yet.
    pub(super) fn waiting(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|since| now < since + ANSWER_LIMIT)
    }

    /// The answer to the last response. False: it is about an older one, and says nothing.
    pub(super) fn answered(&mut self, nonce: &str, refused: Option<String>) -> bool {
        if self.nonce.as_deref() != Some(nonce) {
            return false;
        }
        self.unanswered = None;
        if refused.is_none() {
            self.acked = self.nonce.clone();
        }
        self.refused = refused;
        true
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// What the client holds under this name.
    pub(super) fn held(&self, name: &str) -> Option<&Resource> {
        if let Some(instead) = self.held.except.get(name) {
            return instead.as_ref();
        }
        self.held.base.as_ref().filter(|_| self.wants(name))?.get(name)
    }

    /// How many the client holds.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The client says that it holds this, or (none) that it does not.
    pub(super) fn holds(&mut self, name: Arc<str>, resource: Option<Resource>) {
        self.held.except.insert(name, resource);
    }

    /// The client holds nothing.
    pub(super) fn holds_nothing(&mut self) {
        self.held = Held::default();
    }

    /// Asks for names too.
    pub(super) fn subscribe(&mut self, names: Vec<Arc<str>>) {
        for name in &names {
            if !self.wants(name) && !self.held.except.contains_key(name) {
                // The base may have it, and this client does not.
                self.holds(name.clone(), None);
            }
        }
        self.names.add(names);
    }

    /// Asks for it no more. A client that gets everything keeps it.
    pub(super) fn unsubscribe(&mut self, name: &str) {
        if !self.wildcard && self.held(name).is_some() {
            self.count = self.count.saturating_sub(1);
        }
        self.names.remove(name);
        self.forced.remove(name);
        if !self.wildcard {
            // It forgot the resource; there is nothing to tell it.
            self.held.except.remove(name);
        }
    }

    /// The same, of a client that goes on to hold it until it is told otherwise.
    pub(super) fn let_go(&mut self, name: &Arc<str>) {
        let held = self.held(name).cloned();
        self.names.remove(name);
        if held.is_some() {
            self.holds(name.clone(), held);
        }
    }

    /// Asks for everything.
    pub(super) fn subscribe_all(&mut self) {
        if !self.wildcard
            && let Some(base) = self.held.base.take()
        {
            // Of the base it holds what it asked for.
            for name in self.names.iter() {
                if let Some((name, resource)) = base.entry(name) {
                    self.held.except.entry(name.clone()).or_insert_with(|| Some(resource.clone()));
                }
            }
        }
        self.wildcard = true;
    }

    /// Asks for everything no more: what it was sent it holds until it is told otherwise.
    pub(super) fn unsubscribe_all(&mut self) {
        if let Some(base) = self.held.base.take() {
            for (name, resource) in base.iter() {
                self.held.except.entry(name.clone()).or_insert_with(|| Some(resource.clone()));
            }
        }
        self.wildcard = false;
    }

    /// Whether the client holds exactly what it wants of this set, as far as can be told by a glance.
    pub(super) fn is_at(&self, all: &Set) -> bool {
        self.current
            && self.forced.is_empty()
            && self.held.except.is_empty()
            && self.held.base.as_ref().is_some_and(|base| base.is(all))
    }

    /// Whether something new or changed is to be sent.
    pub(super) fn behind(&self, kind: ResourceType, all: &Set) -> bool {
        !self.current && !self.difference(kind, all).upserts.is_empty()
    }

    /// The names under which there may be something else than what the client holds.
    fn doubtful(&self, all: &Set) -> BTreeSet<Arc<str>> {
        let mut names: BTreeSet<Arc<str>> = self.held.except.keys().chain(&self.forced).cloned().collect();
        match &self.held.base {
            Some(base) => names.extend(all.differing(base)),
            None => {
                names.extend(self.names.iter().cloned());
                if self.wildcard {
                    names.extend(all.iter().map(|(name, _)| name.clone()));
                }
            }
        }
        names
    }

    /// What is to be sent so that the client holds what it should.
    pub(super) fn difference(&self, kind: ResourceType, all: &Set) -> Difference {
        if self.current {
            return Difference::default();
        }
        self.difference_in(kind, all, &self.doubtful(all))
    }

    fn difference_in(&self, kind: ResourceType, all: &Set, names: &BTreeSet<Arc<str>>) -> Difference {
        let mut difference = Difference::default();
        for name in names {
            let (there, held) = (all.entry(name), self.held(name));
            if self.wants(name) {
                match there {
                    Some((name, resource)) => {
                        let same = held.is_some_and(|held| held.version == resource.version);
                        if !same || self.forced.contains(name) {
                            difference.upserts.push((name.clone(), resource.clone()));
                        }
                    }
                    // So that the client stops waiting for it. One that holds it keeps it: what refers to it goes first.
                    None if held.is_none() && self.names.contains(name) => {
                        difference.upserts.extend(empty(kind, name).map(|nothing| (name.clone(), nothing)));
                    }
                    None => {}
                }
            }
            // A name that is asked for and answered empty stays, too.
            let kept = (self.wildcard && there.is_some())
                || (self.names.contains(name) && (answered_empty(kind) || there.is_some()));
            if held.is_some() && !kept {
                difference.removed.push(name.clone());
            }
        }
        difference
    }

    /// Takes it that the client gets what differs, and gives that. Removals that `keep` holds back are left for later; those
    /// that the variant has no word for (`silent`) are taken as known to the client.
    pub(super) fn catch_up(&mut self, kind: ResourceType, all: &Set, keep: bool, silent: bool) -> Difference {
        if self.current {
            return Difference::default();
        }
        let names = self.doubtful(all);
        let mut difference = self.difference_in(kind, all, &names);
        let complete = !keep || difference.removed.is_empty();
        if keep {
            difference.removed.clear();
        }
        let gained = difference.upserts.iter().any(|(name, _)| self.held(name).is_none());
        let recount = gained || !difference.removed.is_empty() || self.owed || self.held.base.is_none();
        for (name, resource) in &difference.upserts {
            self.held.except.insert(name.clone(), Some(resource.clone()));
        }
        for name in &difference.removed {
            self.held.except.insert(name.clone(), None);
        }
        // From here on it is compared with what all others are.
        for name in names {
            let expected = all.get(&name).filter(|_| self.wants(&name)).map(|r| &r.version);
            let held = self.held(&name);
            if held.map(|r| &r.version) == expected {
                self.held.except.remove(&name);
            } else {
                let held = held.cloned();
                self.held.except.insert(name, held);
            }
        }
        self.held.base = Some(all.clone());
        self.current = complete;
        if silent {
            difference.removed.clear();
        }
        if !difference.is_empty() {
            self.forced.clear();
        }
        if recount {
            self.recount();
        }
        difference
    }

    /// Everything that the client is to hold, for a variant that says all of it each time.
    pub(super) fn everything(&self) -> Vec<(Arc<str>, Resource)> {
        let base = self.held.base.iter().flat_map(Set::iter);
        let plain = base.filter(|(name, _)| self.wants(name) && !self.held.except.contains_key(*name));
        let instead = self.held.except.iter().filter_map(|(name, instead)| Some((name, instead.as_ref()?)));
        let mut all: Vec<_> =
            plain.chain(instead).map(|(name, resource)| (name.clone(), resource.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn recount(&mut self) {
        let base = self.held.base.as_ref();
        let plain = match (self.wildcard, base) {
            (_, None) => 0,
            (true, Some(base)) => {
                base.len() - self.held.except.keys().filter(|name| base.get(name).is_some()).count()
            }
            (false, Some(base)) => {
                let there =
                    |name: &&Arc<str>| !self.held.except.contains_key(*name) && base.get(name).is_some();
                self.names.iter().filter(there).count()
            }
        };
        self.count = plain + self.held.except.values().flatten().count();
    }
}
