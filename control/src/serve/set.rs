//! The resources of one kind that a proxy gets: most of them the same as what thousands of others get, and kept once.
//!
//! Sets that are equal are one ([`Sets`]), and what differs between one and the next is found once for all proxies that go
//! from the one to the other: a change costs a proxy what changed, and not what it holds.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use xds_protos::ResourceType;

use crate::render::{Resource, Resources};

/// Everything that a proxy gets.
pub type Served = BTreeMap<ResourceType, Set>;

type Map = BTreeMap<Arc<str>, Resource>;
type Names = Arc<[Arc<str>]>;

/// How many earlier sets one remembers its differences from: those that proxies come from which were too slow for some.
const DIFFERENCES: usize = 8;

/// The resources of one kind.
#[derive(Clone, Debug, Default)]
pub struct Set {
    common: Arc<Common>,
    own: Arc<Map>,
}

/// What many proxies get.
#[derive(Debug, Default)]
struct Common {
    all: Map,
    /// Sum of the hashes of all entries: it follows from the one before and what changed.
    hash: u64,
    /// Names of what differs, by the hash of the set that it differs from.
    differences: Mutex<Vec<(u64, Names)>>,
}

fn entry_hash(name: &str, resource: &Resource) -> u64 {
    // Sets are told apart by sums of these, so nobody outside may know how they come about.
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one((name, &resource.version))
}

impl Set {
    /// The resource with this name.
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.own.get(name).or_else(|| self.common.all.get(name))
    }

    /// The name as it is kept here, with its resource.
    pub(super) fn entry(&self, name: &str) -> Option<(&Arc<str>, &Resource)> {
        self.own.get_key_value(name).or_else(|| self.common.all.get_key_value(name))
    }

    /// All names with their resources; the proxy's own first.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        let common = self.common.all.iter().filter(|(name, _)| !self.own.contains_key(*name));
        self.own.iter().chain(common)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let both = self.own.keys().filter(|name| self.common.all.contains_key(*name)).count();
        self.own.len() + self.common.all.len() - both
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.common.all.is_empty()
    }

    /// Whether this is certainly the same as another one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.common, &other.common)
            && (Arc::ptr_eq(&self.own, &other.own) || (self.own.is_empty() && other.own.is_empty()))
    }

    /// Tells what is common to many proxies from other such parts.
    pub(super) fn common_hash(&self) -> u64 {
        self.common.hash
    }

    /// Names of everything that is not the same in `before`, and of what is in one of them alone.
    pub(super) fn differing(&self, before: &Self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        if !Arc::ptr_eq(&self.common, &before.common) {
            names.extend(self.common.differing(&before.common).iter().cloned());
        }
        if !Arc::ptr_eq(&self.own, &before.own) {
            names.extend(differing(&self.own, &before.own));
        }
        names
    }
}

#[cfg(test)]
impl std::ops::Index<&str> for Set {
    type Output = Resource;

    fn index(&self, name: &str) -> &Resource {
        self.get(name).expect("a resource of that name")
    }
}

#[cfg(test)]
impl From<Map> for Set {
    fn from(all: Map) -> Self {
        Self { common: Arc::new(Common::new(all)), own: Arc::default() }
    }
}

fn differing(now: &Map, before: &Map) -> Vec<Arc<str>> {
    let mut names = Vec::new();
    let (mut now, mut before) = (now.iter().peekable(), before.iter().peekable());
    loop {
        let order = match (now.peek(), before.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return names,
        };
        match order {
            std::cmp::Ordering::Less => names.extend(now.next().map(|(name, _)| name.clone())),
            std::cmp::Ordering::Greater => names.extend(before.next().map(|(name, _)| name.clone())),
            std::cmp::Ordering::Equal => {
                if let (Some((name, a)), Some((_, b))) = (now.next(), before.next())
                    && !Arc::ptr_eq(&a.version, &b.version)
                    && a.version != b.version
                {
                    names.push(name.clone());
                }
            }
        }
    }
}

impl Common {
    fn new(all: Map) -> Self {
        let hash = all.iter().fold(0_u64, |sum, (name, r)| sum.wrapping_add(entry_hash(name, r)));
        Self { all, hash, differences: Mutex::default() }
    }

    fn differing(&self, before: &Self) -> Names {
        let mut known = self.differences.lock();
        if let Some((_, names)) = known.iter().find(|(hash, _)| *hash == before.hash) {
            return names.clone();
        }
        // Held meanwhile: whoever comes from the same set waits for it rather than looking for it again.
        let names: Names = differing(&self.all, &before.all).into();
        if known.len() >= DIFFERENCES {
            known.remove(0);
        }
        known.push((before.hash, names.clone()));
        names
    }
}

/// All sets that somebody holds.
#[derive(Debug, Default)]
pub(super) struct Sets {
    known: Mutex<HashMap<(ResourceType, u64), Weak<Common>>>,
}

/// What changes in the sets of one proxy: names with what they stand for now.
pub(super) type Patch = Vec<(Arc<str>, Resource)>;

impl Sets {
    /// Keeps what was rendered for a node. `address` is the proxy's.
    pub(super) fn keep(&self, resources: Resources, address: &str) -> Served {
        resources.into_iter().map(|(kind, all)| (kind, self.set(kind, all, address))).collect()
    }

    fn set(&self, kind: ResourceType, all: Map, address: &str) -> Set {
        // What is for one proxy alone, or for few: its inbound half.
        let is_own = |name: &str| match kind {
            ResourceType::Cluster => !name.starts_with("outbound|"),
            ResourceType::Listener => name.starts_with("virtual") || name.starts_with(address),
            ResourceType::Secret => true,
            _ => false,
        };
        let (own, common): (Map, Map) = all.into_iter().partition(|(name, _)| is_own(name));
        let common = Common::new(common);
        let hash = common.hash;
        Set { common: self.one(kind, hash, || common), own: Arc::new(own) }
    }

    /// `set` with other resources in the place of some that it has.
    pub(super) fn patch(&self, kind: ResourceType, set: &Set, patch: Patch) -> Set {
        let before = &set.common;
        let mut hash = before.hash;
        let changed: Patch = patch
            .into_iter()
            .filter(|(name, now)| match before.all.get(name) {
                Some(was) if was.version == now.version => false,
                Some(was) => {
                    hash = hash.wrapping_sub(entry_hash(name, was)).wrapping_add(entry_hash(name, now));
                    true
                }
                None => {
                    hash = hash.wrapping_add(entry_hash(name, now));
                    true
                }
            })
            .collect();
        if changed.is_empty() {
            return set.clone();
        }
        let common = self.one(kind, hash, || {
            let names = changed.iter().map(|(name, _)| name.clone()).collect();
            let mut all = before.all.clone();
            all.extend(changed);
            Common { all, hash, differences: Mutex::new(vec![(before.hash, names)]) }
        });
        Set { common, own: set.own.clone() }
    }

    fn one(&self, kind: ResourceType, hash: u64, make: impl FnOnce() -> Common) -> Arc<Common> {
        let mut known = self.known.lock();
        if let Some(there) = known.get(&(kind, hash)).and_then(Weak::upgrade) {
            return there;
        }
        let made = Arc::new(make());
        known.insert((kind, hash), Arc::downgrade(&made));
        made
    }

    /// Forgets those that nobody holds any more.
    pub(super) fn tidy(&self) {
        self.known.lock().retain(|_, set| set.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Map {
        let entry = |word: &str| {
            let (name, version) = word.split_once('@').unwrap();
            let resource = Resource { bytes: bytes::Bytes::new(), version: version.into() };
            (Arc::from(name), resource)
        };
        text.split_whitespace().map(entry).collect()
    }

    fn served(sets: &Sets, text: &str) -> Set {
        let all = Resources::from([(ResourceType::Cluster, map(text))]);
        sets.keep(all, "10.0.0.1").remove(&ResourceType::Cluster).unwrap()
    }

    #[test]
    fn equal_sets_are_one_however_they_came_about() {
        let sets = Sets::default();
        let first = served(&sets, "outbound|a@1 outbound|b@1 inbound|x@1");
        let other = served(&sets, "outbound|a@1 outbound|b@1 inbound|x@2");
        assert!(Arc::ptr_eq(&first.common, &other.common) && !first.is(&other));
        assert_eq!(first.differing(&other), ["inbound|x".into()]);
        let patched = sets.patch(ResourceType::Cluster, &first, map("outbound|b@2").into_iter().collect());
        let rendered = served(&sets, "outbound|a@1 outbound|b@2 inbound|x@1");
        assert!(Arc::ptr_eq(&patched.common, &rendered.common));
        assert_eq!(patched.differing(&first), ["outbound|b".into()]);
        assert_eq!(first.differing(&patched), ["outbound|b".into()]);
        assert_eq!((patched.len(), &*patched["outbound|b"].version), (3, "2"));
        let same = sets.patch(ResourceType::Cluster, &first, map("outbound|b@1").into_iter().collect());
        assert!(same.is(&first));
        drop((patched, rendered));
        sets.tidy();
        assert_eq!(sets.known.lock().len(), 1);
    }

    #[test]
    fn what_differs_is_what_is_new_changed_or_gone() {
        let sets = Sets::default();
        let (before, now) =
            (served(&sets, "outbound|a@1 outbound|b@1"), served(&sets, "outbound|b@2 outbound|c@1"));
        assert_eq!(now.differing(&before), ["outbound|a".into(), "outbound|b".into(), "outbound|c".into()]);
    }
}
