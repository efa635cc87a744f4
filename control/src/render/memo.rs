//! What was rendered and encoded already: a resource whose inputs did not change is neither rendered nor encoded again,
//! whatever else changed and however many proxies get it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use xds_protos::ResourceType;

use super::{Resource, encode};

/// One form of a resource, as some proxies get it.
#[derive(Debug)]
struct Form {
    /// Hash of everything that it was rendered from.
    inputs: u64,
    resource: Resource,
    /// The revision that last used it.
    used: u64,
}

/// The forms of one name: its one copy, and what was rendered under it.
#[derive(Debug)]
struct Known {
    name: Arc<str>,
    forms: Vec<Form>,
}

impl Known {
    /// Forgets forms that nobody will ask for: those that the last revisions did without, unless some proxy has what they are and
    /// none that is the same was used later.
    fn forget(&mut self, now: u64) {
        let place = |form: &Form| Arc::as_ptr(&form.resource.version).cast::<u8>();
        let mut same: HashMap<*const u8, (usize, u64)> = HashMap::new();
        for form in &self.forms {
            let (forms, used) = same.entry(place(form)).or_default();
            *forms += 1;
            *used = form.used.max(*used);
        }
        // Told before any goes: those that go hold it, too.
        let held: HashMap<*const u8, u64> = self
            .forms
            .iter()
            .filter_map(|form| {
                let (forms, used) = same.get(&place(form)).copied()?;
                (Arc::strong_count(&form.resource.version) > forms).then_some((place(form), used))
            })
            .collect();
        self.forms.retain(|form| form.used + 1 >= now || held.get(&place(form)) == Some(&form.used));
    }
}

/// The memory, shared by all connections.
#[derive(Debug, Default)]
pub struct Memo {
    known: Mutex<HashMap<ResourceType, HashMap<Arc<str>, Known>>>,
    revision: AtomicU64,
    rendered: [AtomicU64; ResourceType::ALL.len()],
    encoded: AtomicU64,
    found: AtomicU64,
}

/// How often what is not needed any more is looked for: every so many revisions.
const SWEEP: u64 = 16;

impl Memo {
    /// A new revision. Now and then, what neither it nor the one before it used, and no proxy has, is forgotten.
    pub fn advance(&self) {
        let now = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        if !now.is_multiple_of(SWEEP) {
            return;
        }
        for names in self.known.lock().values_mut() {
            names.retain(|_, known| {
                known.forget(now);
                !known.forms.is_empty()
            });
        }
    }

    /// How many times a resource was there already.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// How many times one had to be rendered and encoded, of whatever kind.
    pub fn made(&self) -> u64 {
        self.rendered.iter().map(|made| made.load(Ordering::Relaxed)).sum()
    }

    /// How many names are kept.
    pub fn len(&self) -> usize {
        self.known.lock().values().map(|names| names.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes were encoded since the start.
    pub fn encoded(&self) -> u64 {
        self.encoded.load(Ordering::Relaxed)
    }

    /// How many resources of a kind were rendered and encoded since the start.
    pub fn rendered(&self, kind: ResourceType) -> u64 {
        self.rendered[kind as usize].load(Ordering::Relaxed)
    }

    /// The resource `name` made from inputs of this hash; `make` renders it if nobody has. None if it does not fit its
    /// schema. `amend` has the last word on its bytes.
    pub(super) fn resource(
        &self,
        kind: ResourceType,
        name: &str,
        inputs: impl Hash,
        make: impl FnOnce() -> Value,
        amend: impl FnOnce(Bytes) -> Option<Bytes>,
    ) -> Option<(Arc<str>, Resource)> {
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        let inputs = hasher.finish();
        let now = self.revision.load(Ordering::Relaxed);
        if let Some(known) = self.known.lock().entry(kind).or_default().get_mut(name)
            && let Some(form) = known.forms.iter_mut().find(|form| form.inputs == inputs)
        {
            form.used = now;
            self.found.fetch_add(1, Ordering::Relaxed);
            return Some((known.name.clone(), form.resource.clone()));
        }
        // Rendered outside the lock; two connections that need the same at once may both do it.
        let resource = encode(kind, &make(), amend)?;
        self.rendered[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.encoded.fetch_add(resource.bytes.len() as u64, Ordering::Relaxed);
        metrics::counter!("weft_resources_rendered", "type" => kind.short()).increment(1);
        metrics::counter!("weft_bytes_encoded", "type" => kind.short())
            .increment(resource.bytes.len() as u64);
        let mut all = self.known.lock();
        let names = all.entry(kind).or_default();
        let known = match names.get_mut(name) {
            Some(known) => known,
            None => {
                let name: Arc<str> = name.into();
                names.entry(name.clone()).or_insert(Known { name, forms: Vec::new() })
            }
        };
        // What came out the same is kept once, whatever it was made from.
        // By the bytes: versions need not withstand somebody who looks for two forms of one version.
        let same =
            |form: &&Form| form.resource.version == resource.version && form.resource.bytes == resource.bytes;
        let equal = known.forms.iter().find(same);
        let resource = equal.map_or(resource, |form| form.resource.clone());
        known.forms.push(Form { inputs, resource: resource.clone(), used: now });
        Some((known.name.clone(), resource))
    }
}

/// Where the resources of one proxy and kind are put while they are rendered.
pub(super) struct Output<'m> {
    memo: &'m Memo,
    kind: ResourceType,
    all: std::collections::BTreeMap<Arc<str>, Resource>,
}

impl<'m> Output<'m> {
    pub(super) fn new(memo: &'m Memo, kind: ResourceType) -> Self {
        Self { memo, kind, all: std::collections::BTreeMap::new() }
    }

    /// Puts `name`, made from `inputs` by `make`.
    pub(super) fn put(&mut self, name: &str, inputs: impl Hash, make: impl FnOnce() -> Value) {
        self.put_amended(name, inputs, make, Some);
    }

    /// Puts `name`, made from `inputs` by `make` and, once it is encoded, `amend`.
    pub(super) fn put_amended(
        &mut self,
        name: &str,
        inputs: impl Hash,
        make: impl FnOnce() -> Value,
        amend: impl FnOnce(Bytes) -> Option<Bytes>,
    ) {
        self.all.extend(self.memo.resource(self.kind, name, inputs, make, amend));
    }

    pub(super) fn into_all(self) -> (ResourceType, std::collections::BTreeMap<Arc<str>, Resource>) {
        (self.kind, self.all)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_held_is_remembered_and_what_is_not_is_forgotten() {
        let memo = Memo::default();
        let made = std::cell::Cell::new(0);
        let ask = |inputs: u64, timeout: &str| {
            let make = || {
                made.set(made.get() + 1);
                json!({"name": "c", "connect_timeout": timeout})
            };
            memo.resource(ResourceType::Cluster, "c", inputs, make, Some).unwrap().1
        };
        let forms =
            || memo.known.lock()[&ResourceType::Cluster].get("c").map_or(0, |known| known.forms.len());
        let held = ask(1, "1s");
        drop(ask(2, "2s"));
        // Others that come out the same share it, and do not keep each other.
        for inputs in 3..10 {
            assert_eq!(ask(inputs, "1s").bytes.as_ptr(), held.bytes.as_ptr());
        }
        assert_eq!((made.get(), forms()), (9, 9));
        (0..SWEEP).for_each(|_| memo.advance());
        assert_eq!(forms(), 8, "all of one revision, and what is held");
        ask(10, "1s");
        (0..SWEEP).for_each(|_| memo.advance());
        assert_eq!(forms(), 1, "of those that are the same the last one used");
        ask(10, "1s");
        assert_eq!(made.get(), 10);
        drop(held);
        (0..2 * SWEEP).for_each(|_| memo.advance());
        assert!(memo.known.lock()[&ResourceType::Cluster].is_empty());
    }
}
