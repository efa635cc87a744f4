//! A cluster of a test's own: objects come and go, and the state follows, step by step or all over again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::kinds::{BUILT_IN, DEFINED, Kind};
use super::outlook::Beside;
use super::store::{Raw, Store};
use crate::model::World;

fn kind(name: &str) -> &'static Kind {
    BUILT_IN.iter().chain(&DEFINED).find(|kind| kind.id() == name).expect("a kind that is watched")
}

/// Kind, namespace and name.
pub(crate) type Key = (String, String, String);

/// The cluster.
#[derive(Default)]
pub(crate) struct Cluster {
    store: Store,
    objects: BTreeMap<Key, Value>,
}

fn take(store: &mut Store, (of, namespace, name): &Key, json: Option<Value>) {
    store.take(Raw { kind: kind(of), namespace: namespace.clone(), name: name.clone(), json });
}

impl Cluster {
    /// Puts an object, or changes it.
    pub(crate) fn put(&mut self, object: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        let of = match (object["apiVersion"].as_str(), &object["kind"]) {
            (Some("gateway.networking.k8s.io/v1"), kind) if kind == "Gateway" => {
                "Gateway.gateway.networking.k8s.io".to_owned()
            }
            (_, kind) => text(kind),
        };
        let key = (of, text(&meta["namespace"]), text(&meta["name"]));
        take(&mut self.store, &key, Some(object.clone()));
        self.objects.insert(key, object);
    }

    /// Takes one of a kind away, if there is any.
    pub(crate) fn delete(&mut self, of: &str, random: &mut fastrand::Rng) {
        let all: Vec<_> = self.objects.keys().filter(|key| key.0 == of).cloned().collect();
        let Some(key) = random.choice(all) else { return };
        take(&mut self.store, &key, None);
        self.objects.remove(&key);
    }

    /// The state, made from the one before; and the same objects made into a state with nothing to start from.
    pub(crate) fn next_and_whole(&mut self) -> (World, World) {
        let (objects, ..) = self.store.objects();
        (self.next(), World::new(objects))
    }

    /// The state, made from the one before.
    pub(crate) fn next(&mut self) -> World {
        let built = self.store.build();
        let wrong: Vec<_> = built.diagnostics.iter().filter(|d| d.is_error()).collect();
        assert!(wrong.is_empty(), "an object of the test is wrong: {wrong:?}");
        built.world
    }

    /// What looks at objects beside those of this cluster.
    pub(crate) fn beside(self) -> Beside {
        Beside::new(Arc::new(Mutex::new(self.store)))
    }

    /// The state, from the objects as they are, by somebody who has seen none of it before.
    pub(crate) fn anew(&self) -> World {
        let mut store = Store::default();
        self.objects.iter().for_each(|(key, object)| take(&mut store, key, Some(object.clone())));
        store.build().world
    }
}
