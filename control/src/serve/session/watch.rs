//! What one client wants and holds of one type.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xds_protos::ResourceType;

use crate::render::{Resource, Resources, answered_empty, empty};

/// A response that is not answered for so long no longer holds up the next.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// One type's subscription on one stream.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Gets everything there is.
    pub(super) wildcard: bool,
    /// Asked for by name.
    pub(super) names: BTreeSet<Arc<str>>,
    /// What the client was sent, or said that it holds.
    pub(super) held: BTreeMap<Arc<str>, Resource>,
    /// Must be sent again whether or not it changed: names just subscribed, endpoints of clusters just replaced.
    pub(super) forced: BTreeSet<Arc<str>>,
    /// The client is known to hold what it should: nothing need be compared until something changes.
    pub(super) current: bool,
    /// An answer is owed even if it is empty.
    pub(super) owed: bool,
    /// The last response's nonce.
    pub(super) nonce: Option<String>,
    /// When the last response went out, until it is answered.
    pub(super) unanswered: Option<Instant>,
    /// The nonce of the last response that was taken.
    pub(super) acked: Option<String>,
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

    /// Whether something new or changed is to be sent.
    pub(super) fn behind(&self, kind: ResourceType, all: &Resources) -> bool {
        !self.current && self.upserts(kind, all).next().is_some()
    }

    /// What is to be sent so that the client holds what it should.
    pub(super) fn difference(&self, kind: ResourceType, all: &Resources) -> Difference {
        if self.current {
            return Difference::default();
        }
        let upserts = self.upserts(kind, all).collect();
        let there = |name: &Arc<str>| all.get(&kind).is_some_and(|all| all.contains_key(name));
        // A name that is asked for and answered empty stays, too.
        let kept = |name: &Arc<str>| {
            (self.wildcard && there(name))
                || (self.names.contains(name) && (answered_empty(kind) || there(name)))
        };
        let removed = self.held.keys().filter(|name| !kept(name)).cloned().collect();
        Difference { upserts, removed }
    }

    fn upserts<'a>(
        &'a self,
        kind: ResourceType,
        all: &'a Resources,
    ) -> impl Iterator<Item = (Arc<str>, Resource)> + 'a {
        let all = all.get(&kind);
        // Compared before they are cloned: most are what the client holds.
        let differs = |name: &Arc<str>, resource: &Resource| {
            let same = self.held.get(name).is_some_and(|held| held.version == resource.version);
            !same || self.forced.contains(name)
        };
        let everything = all.filter(|_| self.wildcard).into_iter().flatten();
        let by_name = self.names.iter().filter_map(move |name| match all.and_then(|all| all.get(name)) {
            Some(_) if self.wildcard => None,
            Some(resource) => differs(name, resource).then(|| (name, resource.clone())),
            // So that the client stops waiting for it. One that holds it keeps it: what refers to it goes first.
            None if self.held.contains_key(name) => None,
            None => Some((name, empty(kind, name)?)),
        });
        everything
            .filter(move |(name, resource)| differs(name, resource))
            .map(|(name, resource)| (name, resource.clone()))
            .chain(by_name)
            .map(|(name, resource)| (name.clone(), resource))
    }
}
