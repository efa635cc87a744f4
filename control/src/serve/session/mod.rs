//! One client's stream, free of IO: what it asked for, what it holds, what is to be sent next. Both variants of xDS share
//! it; [`delta`](mod@delta) and [`sotw`](mod@sotw) read their requests and write their responses.
//!
//! The order of what is sent makes before it breaks: clusters and their endpoints first; listeners and routes once the
//! client has taken those; clusters that went away last. One response of a type is on its way at a time, so a slow client
//! skips states instead of queueing them.

mod delta;
mod names;
mod sotw;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xds_protos::ResourceType;

use super::set::{Served, Set};
use crate::render::{ROOTS, Resource};
use watch::Watch;

/// Listeners and routes wait this long at most for a client to take the clusters and endpoints that they refer to.
const ORDER_LIMIT: Duration = Duration::from_secs(2);

/// Delta, or state of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Only what changed.
    Delta,
    /// For clusters and listeners always the whole set.
    StateOfTheWorld,
}

/// What is to be sent.
#[derive(Debug)]
pub struct Push {
    /// Its type.
    pub kind: ResourceType,
    /// New and changed resources; in the state of the world's full sets, all.
    pub upserts: Vec<(Arc<str>, Resource)>,
    /// Names of those that are no more (delta only).
    pub removed: Vec<Arc<str>>,
    /// The response's nonce.
    pub nonce: Arc<str>,
    /// The version of the whole state.
    pub version: Arc<str>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, new or changed.
    Subscribed(ResourceType),
    /// The last response was taken.
    Acknowledged(ResourceType),
    /// It was not, and why.
    Refused(ResourceType, String),
    /// An answer to an older response.
    Expired(ResourceType),
    /// It says nothing new: no more is wanted of a type, or it is not served.
    Nothing,
}

/// A stream's state.
#[derive(Debug)]
pub struct Session {
    variant: Variant,
    watches: BTreeMap<ResourceType, Watch>,
    resources: Arc<Served>,
    version: Arc<str>,
    /// Of kinds that there are none of.
    nothing: Set,
    /// Tells this stream's nonces from those of another.
    stream: u64,
    sent: u64,
    /// Since when the present state is being sent.
    began: Instant,
    /// Types whose status may be another than was last told.
    touched: Touched,
}

/// Some of the types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Touched(u16);

impl Touched {
    fn add(&mut self, kind: ResourceType) {
        self.0 |= 1 << kind as u16;
    }

    fn has(self, kind: ResourceType) -> bool {
        self.0 & (1 << kind as u16) != 0
    }
}

impl Session {
    /// A stream that has asked for nothing yet. `stream` is a number of its own.
    pub fn new(
        variant: Variant,
        stream: u64,
        resources: Arc<Served>,
        version: Arc<str>,
        now: Instant,
    ) -> Self {
        Self {
            variant,
            watches: BTreeMap::new(),
            resources,
            version,
            nothing: Set::default(),
            stream,
            sent: 0,
            began: now,
            touched: Touched::default(),
        }
    }

    /// A new state of the mesh.
    pub fn set(&mut self, resources: Arc<Served>, version: Arc<str>, now: Instant) {
        self.resources = resources;
        self.version = version;
        self.began = now;
        for (kind, watch) in &mut self.watches {
            // Most changes are of one kind.
            watch.current = watch.is_at(self.resources.get(kind).unwrap_or(&self.nothing));
            if !watch.current {
                self.touched.add(*kind);
            }
        }
    }

    fn all(&self, kind: ResourceType) -> &Set {
        self.resources.get(&kind).unwrap_or(&self.nothing)
    }

    /// The next response, if there is one to send now. Ask until there is none.
    pub fn next(&mut self, now: Instant) -> Option<Push> {
        // A client that refused listeners or routes goes on with its old ones, and needs what those refer to.
        let removals_later = [ResourceType::Listener, ResourceType::Route].into_iter().any(|kind| {
            self.unsettled(kind, now) || self.watches.get(&kind).is_some_and(|w| w.refused.is_some())
        });
        for kind in ResourceType::ALL {
            let refers = matches!(kind, ResourceType::Listener | ResourceType::Route);
            if refers && (!self.doubtful(kind) || self.must_wait(now)) {
                continue;
            }
            let keep = removals_later && matches!(kind, ResourceType::Cluster | ResourceType::Endpoint);
            if let Some(push) = self.push(kind, keep, now) {
                return Some(push);
            }
        }
        None
    }

    /// When [`Self::next`] may give something without a request or a new state; none if it will not.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let answers = self.watches.iter().filter_map(|(kind, watch)| {
            let since = watch.unanswered?;
            let behind = watch.owed || !watch.difference(*kind, self.all(*kind)).is_empty();
            behind.then_some(since + watch::ANSWER_LIMIT)
        });
        let refers = [ResourceType::Listener, ResourceType::Route].iter().any(|kind| self.doubtful(*kind));
        let order = (refers && self.must_wait(now)).then_some(self.began + ORDER_LIMIT);
        answers.chain(order).filter(|at| *at > now).min()
    }

    /// What there is to see of each type: sent, acknowledged and refused.
    #[cfg(test)]
    pub fn status(&self) -> Vec<TypeStatus> {
        self.watches.iter().map(|(kind, watch)| self.status_of(*kind, watch)).collect()
    }

    /// Whether [`Self::tell`] has anything to tell.
    pub fn is_touched(&self) -> bool {
        self.touched != Touched::default()
    }

    /// Brings what was told of each type to what there is to see now: most requests and responses are of one.
    pub fn tell(&mut self, all: &mut Vec<TypeStatus>) {
        let touched = std::mem::take(&mut self.touched);
        for kind in ResourceType::ALL.into_iter().filter(|kind| touched.has(*kind)) {
            let place = all.binary_search_by_key(&kind, |status| status.kind);
            match (place, self.watches.get(&kind).map(|watch| self.status_of(kind, watch))) {
                (Ok(at), Some(status)) => all[at] = status,
                (Err(at), Some(status)) => all.insert(at, status),
                (Ok(at), None) => drop(all.remove(at)),
                (Err(_), None) => {}
            }
        }
    }

    fn status_of(&self, kind: ResourceType, watch: &Watch) -> TypeStatus {
        let roots = kind == ResourceType::Secret && watch.names.contains(ROOTS);
        TypeStatus {
            kind,
            sent: watch.nonce.clone(),
            acknowledged: watch.acked.clone(),
            refused: watch.refused.clone(),
            resources: watch.count(),
            synced: watch.unanswered.is_none() && watch.difference(kind, self.all(kind)).is_empty(),
            roots: roots.then(|| {
                let taken = watch.unanswered.is_none() && watch.refused.is_none();
                watch.held(ROOTS).filter(|_| taken).map(|r| r.version.clone())
            }),
        }
    }

    /// Whether every subscribed type is as it should be, and acknowledged.
    pub fn settled(&self, now: Instant) -> bool {
        self.watches.keys().all(|kind| !self.unsettled(*kind, now))
    }

    /// Whether a type has something on its way, or yet to be sent.
    fn unsettled(&self, kind: ResourceType, now: Instant) -> bool {
        self.watches.get(&kind).is_some_and(|w| w.waiting(now) || w.owed || w.behind(kind, self.all(kind)))
    }

    /// Whether there may be something to send of a type.
    fn doubtful(&self, kind: ResourceType) -> bool {
        self.watches.get(&kind).is_some_and(|watch| !watch.current || watch.owed)
    }

    /// Whether listeners and routes would refer to clusters that the client does not have yet.
    fn must_wait(&self, now: Instant) -> bool {
        if now >= self.began + ORDER_LIMIT {
            return false;
        }
        let Some(clusters) = self.watches.get(&ResourceType::Cluster) else { return false };
        if self.unsettled(ResourceType::Cluster, now) || self.unsettled(ResourceType::Endpoint, now) {
            return true;
        }
        // Those whose endpoints come by EDS, and have not been asked for: the client asks once it took the clusters.
        let (Some(assignments), None) = (self.resources.get(&ResourceType::Endpoint), &clusters.refused)
        else {
            return false;
        };
        let endpoints = self.watches.get(&ResourceType::Endpoint);
        assignments.iter().any(|(name, _)| {
            endpoints.is_none_or(|w| !w.names.contains(name)) && clusters.held(name).is_some()
        })
    }

    fn push(&mut self, kind: ResourceType, keep_removed: bool, now: Instant) -> Option<Push> {
        let watch = self.watches.get_mut(&kind)?;
        if watch.waiting(now) {
            return None;
        }
        // The state of the world has no word for a removal of what is not sent as a full set.
        let full_set = self.variant == Variant::StateOfTheWorld && kind.wildcard();
        let silent = self.variant == Variant::StateOfTheWorld && !full_set;
        let all = self.resources.get(&kind).unwrap_or(&self.nothing);
        let difference = watch.catch_up(kind, all, keep_removed, silent);
        if difference.is_empty() && !watch.owed {
            return None;
        }
        let changed: Vec<Arc<str>> = difference.upserts.iter().map(|(name, _)| name.clone()).collect();
        watch.forced.clear();
        watch.owed = false;
        let (upserts, removed) = match full_set {
            true => (watch.everything(), Vec::new()),
            false => (difference.upserts, difference.removed),
        };
        self.sent += 1;
        let nonce: Arc<str> = format!("{}/{:x}-{}", self.version, self.stream, self.sent).into();
        watch.nonce = Some(nonce.clone());
        watch.unanswered = Some(now);
        self.touched.add(kind);
        if kind == ResourceType::Cluster {
            self.touched.add(ResourceType::Endpoint);
            // A replaced cluster waits for its endpoints anew; a client that has them already would not ask.
            if let Some(endpoints) = self.watches.get_mut(&ResourceType::Endpoint) {
                let again = changed.into_iter().filter(|name| endpoints.names.contains(name));
                endpoints.forced.extend(again);
                endpoints.current = false;
            }
        }
        Some(Push { kind, upserts, removed, nonce, version: self.version.clone() })
    }
}

/// One type of one client, for syncz.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// The type.
    pub kind: ResourceType,
    /// The nonce of the last response.
    pub sent: Option<Arc<str>>,
    /// Of the last that was taken.
    pub acknowledged: Option<Arc<str>>,
    /// Why the last was not.
    pub refused: Option<String>,
    /// How many the client holds.
    pub resources: usize,
    /// Nothing is on its way or yet to be sent.
    pub synced: bool,
    /// Of a client that asks for the roots to trust: the version of them that it has acknowledged, if it has.
    pub roots: Option<Option<Arc<str>>>,
}

fn named(names: &[String]) -> impl Iterator<Item = Arc<str>> {
    names.iter().map(|name| Arc::from(name.as_str()))
}

fn unknown() -> Resource {
    Resource { bytes: bytes::Bytes::new(), version: "".into() }
}
