//! What would be, were an object stored: the state with it beside the state without, and what is new to be said.
//!
//! A webhook asks before it lets an object in. The reading, the checks across objects and the making of the state are those of
//! everything else; only nothing of it is kept.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::super::diagnostic::Diagnostic;
use super::super::document::Collector;
use super::super::validate;
use super::kinds::DEFINED;
use super::store::{Store, label, read, settle};
use crate::model::{Objects, World};

/// Looks at objects beside everything that is stored.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    store: Arc<Mutex<Store>>,
}

/// What would be.
#[derive(Debug)]
pub struct Outlook {
    /// The object, as `Kind namespace/name`.
    pub object: String,
    /// What would be wrong of objects that are right now: the object itself, or others by it.
    pub breaks: Vec<Diagnostic>,
    /// What else there is to say: of the object all of it, of others what would be new.
    pub doubts: Vec<Diagnostic>,
    /// The state without it.
    pub before: World,
    /// The state with it.
    pub after: World,
}

impl Beside {
    pub(super) fn new(store: Arc<Mutex<Store>>) -> Self {
        Self { store }
    }

    /// Looks at an object; none if its kind is not of those that are looked at, or if it is wrong by itself.
    pub fn look(&self, object: &Value) -> Option<Outlook> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, of) = (text(&object["apiVersion"]), text(&object["kind"]));
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let kind = DEFINED.iter().find(|kind| kind.group == group && kind.kind == of)?;
        let metadata = &object["metadata"];
        let name = (text(&metadata["namespace"]), text(&metadata["name"]));
        let Collector { objects, diagnostics, .. } = read(object.clone());
        if diagnostics.iter().any(Diagnostic::is_error) {
            return None;
        }
        // Whoever follows the API server waits for no more than the copying of lists.
        let (old, new, last) = {
            let mut store = self.store.lock();
            (store.gathered(None), store.gathered(Some((kind, &name, &objects))), store.world().clone())
        };
        let (before, was) = state(old, &last);
        let (after, is) = state(new, &before);
        let object = label(kind.id(), &name);
        let wrong: HashSet<_> =
            was.iter().filter(|finding| finding.is_error()).map(|finding| &finding.object).collect();
        let said: HashSet<_> = was.iter().collect();
        let (breaks, rest): (Vec<_>, Vec<_>) =
            is.into_iter().partition(|finding| finding.is_error() && !wrong.contains(&finding.object));
        let own = |finding: &Diagnostic| finding.object.as_ref() == Some(&object);
        let doubts = rest.into_iter().filter(|finding| own(finding) || !said.contains(finding)).collect();
        Some(Outlook { breaks, doubts, before, after, object })
    }
}

/// The state that follows from objects, and what is to be said of them together.
fn state(mut objects: Objects, last: &World) -> (World, Vec<Diagnostic>) {
    let (_, mut found) = settle(&mut objects);
    let world = last.next(objects);
    found.append(&mut validate::whole(&world));
    let found: BTreeSet<_> = found.into_iter().collect();
    (world, found.into_iter().collect())
}
