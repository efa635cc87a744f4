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

/// The memory, shared by all connections.
#[derive(Debug, Default)]
pub struct Memo {
    known: Mutex<HashMap<ResourceType, HashMap<Arc<str>, Known>>>,
    revision: AtomicU64,
    rendered: [AtomicU64; ResourceType::ALL.len()],
}

impl Memo {
    /// A new revision: what neither it nor the one before it used is forgotten.
    pub fn advance(&self) {
        let now = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        for names in self.known.lock().values_mut() {
            names.retain(|_, known| {
                known.forms.retain(|form| form.used + 1 >= now);
                !known.forms.is_empty()
            });
        }
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
            return Some((known.name.clone(), form.resource.clone()));
        }
        // Rendered outside the lock; two connections that need the same at once may both do it.
        let resource = encode(kind, &make(), amend)?;
        self.rendered[kind as usize].fetch_add(1, Ordering::Relaxed);
        metrics::counter!("weft_resources_rendered", "type" => kind.short()).increment(1);
        let mut all = self.known.lock();
        let names = all.entry(kind).or_default();
        let known = match names.get_mut(name) {
            Some(known) => known,
            None => {
                let name: Arc<str> = name.into();
                names.entry(name.clone()).or_insert(Known { name, forms: Vec::new() })
            }
        };
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
