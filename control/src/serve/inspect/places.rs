//! How many pages may be read at the same time: of all readers together, and of each, so that nobody holds all places for ever.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;

use super::access::Denied;

/// As many pages are read at the same time, by all together.
pub(super) const ALL: usize = 128;
/// And by one.
pub(super) const EACH: usize = 48;

/// The places. Cloning it shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<String, usize>,
}

/// One of them; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    who: String,
}

impl Places {
    /// A place for somebody.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn take(&self, who: &str) -> Result<Place, Denied> {
        let full = |why: String| Err(Denied { status: StatusCode::TOO_MANY_REQUESTS, why });
        let mut taken = self.taken.lock();
        if taken.by.get(who).is_some_and(|many| *many >= EACH) {
            return full(format!(
                "{who} reads {EACH} pages through this control plane already: end one of them (weft tap has one for each proxy), or try again"
            ));
        }
        if taken.all >= ALL {
            return full(format!("{ALL} pages are read through this control plane already: try again"));
        }
        taken.all += 1;
        *taken.by.entry(who.to_owned()).or_default() += 1;
        Ok(Place { places: self.clone(), who: who.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(many) = taken.by.get_mut(&self.who) {
            *many = many.saturating_sub(1);
            if *many == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all_places_and_they_come_back() {
        let places = Places::default();
        let take =
            |who: &str, many: usize| -> Vec<_> { (0..many).map(|_| places.take(who).unwrap()).collect() };
        let ann = take("ann", EACH);
        let denied = places.take("ann").unwrap_err();
        assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(denied.why.starts_with("ann reads 48"), "{}", denied.why);
        let _bob = take("bob", EACH);
        let _cid = take("cid", ALL - 2 * EACH);
        let denied = places.take("cid").unwrap_err();
        assert!(denied.why.starts_with("128 pages"), "{}", denied.why);
        drop(ann);
        assert_eq!(take("ann", EACH).len(), EACH);
        let taken = places.taken.lock();
        assert!(!taken.by.contains_key("ann"), "who reads nothing is forgotten");
    }
}
