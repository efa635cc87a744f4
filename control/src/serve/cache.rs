//! Renders for all connections: proxies that are alike share one result, and of a state that differs from the one before in a few
//! endpoints only those are rendered, for the proxies that see them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use xds_protos::ResourceType;

use super::set::{Patch, Served, Sets};
use crate::model::{Change, Moved};
use crate::queue::Revision;
use crate::render::{Memo, ProxyNode, ROOTS, cluster_names, render, render_service, roots};

/// What rendering depends on, beside the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Class {
    node: ProxyNode,
    secrets: bool,
}

/// How many steps are remembered: a proxy that is further behind is rendered whole.
const STEPS: usize = 256;
/// How often what nobody holds is looked for: every so many revisions.
const SWEEP: u64 = 16;

/// What has moved since some revision. Most are one step behind, and share it.
enum Since {
    Nothing,
    Step(Arc<Change>),
    Steps(Box<Moved>),
}

impl Since {
    fn moved(&self) -> &Moved {
        static NOTHING: LazyLock<Moved> = LazyLock::new(Moved::default);
        match self {
            Self::Step(step) => match &**step {
                Change::Endpoints(moved) => moved,
                // None is made of such a step.
                Change::Anything => &NOTHING,
            },
            Self::Steps(moved) => moved,
            Self::Nothing => &NOTHING,
        }
    }
}

/// Which of the services that moved proxies see, by what clusters they have: thousands have the same.
#[derive(Debug, Default)]
struct Seen {
    /// Up to which revision.
    to: u64,
    /// By clusters, and the revision from which on.
    by: HashMap<(u64, u64), Arc<[usize]>>,
}

/// What proxies of one sort get.
#[derive(Debug, Default)]
struct Of {
    /// At which revision, and what.
    result: Mutex<Option<(u64, Arc<Served>)>>,
    /// At which revision that last became something else. Several connections may be of one sort, and one of them be there first.
    changed: AtomicU64,
}

/// The place of a proxy's sort among all; whoever holds it keeps it there.
#[derive(Clone, Debug)]
pub struct Place {
    class: Arc<Class>,
    of: Arc<Of>,
}

impl Place {
    /// Tells it from others.
    pub(super) fn number(&self) -> usize {
        Arc::as_ptr(&self.of).addr()
    }
}

#[derive(Debug, Default)]
struct State {
    latest: Option<Arc<Revision>>,
    /// From one revision to the next, oldest first; the last one leads to the latest.
    steps: VecDeque<Arc<Change>>,
    by_class: HashMap<Arc<Class>, Arc<Of>>,
    /// How many sorts there may be before those are dropped that no connection is of.
    room: usize,
}

/// Sorts of proxies that are never too many.
const ROOM: usize = 64;

impl State {
    /// What has moved since a revision; none if more than that has changed, or nobody knows any more.
    fn moved_since(&self, revision: u64) -> Option<Since> {
        let back = usize::try_from(self.latest.as_ref()?.number.checked_sub(revision)?).ok()?;
        let first = self.steps.len().checked_sub(back)?;
        let mut steps = self.steps.iter().skip(first);
        if steps.clone().any(|step| matches!(**step, Change::Anything)) {
            return None;
        }
        Some(match (steps.next(), back) {
            (None, _) => Since::Nothing,
            (Some(step), 1) => Since::Step(step.clone()),
            (Some(step), _) => {
                let mut moved = Moved::default();
                for step in std::iter::once(step).chain(steps) {
                    if let Change::Endpoints(more) = &**step {
                        moved.absorb(more);
                    }
                }
                Since::Steps(Box::new(moved))
            }
        })
    }
}

/// What all proxies get.
#[derive(Debug, Default)]
pub struct RenderCache {
    state: Mutex<State>,
    sets: Sets,
    memo: Memo,
    seen: Mutex<Seen>,
}

impl RenderCache {
    /// An empty cache.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The place of a node. `secrets`: its connection may carry them.
    pub fn place(&self, node: &ProxyNode, secrets: bool) -> Place {
        // The id names one proxy, and nothing is rendered from it.
        let class = Arc::new(Class { node: ProxyNode { id: String::new(), ..node.clone() }, secrets });
        let mut state = self.state.lock();
        if let Some((class, of)) = state.by_class.get_key_value(&class) {
            return Place { class: class.clone(), of: of.clone() };
        }
        // Proxies say themselves what they are, and may be another with each connection.
        if state.by_class.len() >= state.room {
            state.by_class.retain(|_, of| Arc::strong_count(of) > 1);
            state.room = (2 * state.by_class.len()).max(ROOM);
        }
        let of = Arc::new(Of::default());
        state.by_class.insert(class.clone(), of.clone());
        Place { class, of }
    }

    /// Takes a new revision, unless it is an old one.
    fn advance(&self, revision: &Arc<Revision>) {
        let mut state = self.state.lock();
        let Some(before) = state.latest.clone() else {
            state.latest = Some(revision.clone());
            return;
        };
        if revision.number <= before.number {
            return;
        }
        let step = match revision.trust == before.trust {
            true => revision.world.since(&before.world),
            false => Change::Anything,
        };
        // States that nobody saw are part of the step.
        let unseen = usize::try_from(revision.number - before.number - 1).unwrap_or(STEPS);
        let step = Arc::new(step);
        state.steps.extend(std::iter::repeat_n(step, unseen.min(STEPS) + 1));
        while state.steps.len() > STEPS {
            state.steps.pop_front();
        }
        state.latest = Some(revision.clone());
        self.memo.advance();
        if revision.number.is_multiple_of(SWEEP) {
            state.by_class.retain(|_, of| Arc::strong_count(of) > 1);
            drop(state);
            self.sets.tidy();
        }
    }

    /// Everything for a place at a revision, or at a later one if somebody has asked for that; and which it is.
    ///
    /// It takes as long as rendering does, for the first of its sort; call it where a moment's work is no harm.
    pub fn resources(&self, revision: &Arc<Revision>, place: &Place) -> (Arc<Revision>, Arc<Served>) {
        self.advance(revision);
        let mut result = place.of.result.lock();
        let (revision, moved) = {
            let state = self.state.lock();
            let latest = state.latest.clone().unwrap_or_else(|| revision.clone());
            let moved = result.as_ref().and_then(|(number, _)| state.moved_since(*number));
            (latest, moved)
        };
        let now = match (&*result, moved) {
            (Some((number, last)), _) if *number == revision.number => last.clone(),
            (Some((number, last)), Some(since)) => {
                match self.moved(&revision, place, (*number, last), since.moved()) {
                    Some(now) => now,
                    None => self.whole(&revision, place),
                }
            }
            _ => self.whole(&revision, place),
        };
        if result.as_ref().is_none_or(|(_, last)| !Arc::ptr_eq(last, &now)) {
            place.of.changed.store(revision.number, Ordering::Release);
        }
        *result = Some((revision.number, now.clone()));
        (revision, now)
    }

    /// Whether a revision may bring something to those in this place; if it surely does not, they are at it.
    pub fn concerns(&self, revision: &Arc<Revision>, place: &Place) -> bool {
        self.advance(revision);
        // Somebody of this sort is being brought to some state just now.
        let Some(mut result) = place.of.result.try_lock() else { return true };
        let Some((number, last)) = &mut *result else { return true };
        let (latest, moved) = {
            let state = self.state.lock();
            (state.latest.as_ref().map_or(0, |latest| latest.number), state.moved_since(*number))
        };
        let Some(since) = moved else { return true };
        let moved = since.moved();
        if latest != revision.number
            || touches(moved, place)
            || !self.seen(revision, (*number, &**last), moved).is_empty()
        {
            return true;
        }
        *number = revision.number;
        false
    }

    /// At which revision what those in this place get last became something else, as far as somebody has asked.
    pub fn changed(&self, place: &Place) -> u64 {
        place.of.changed.load(Ordering::Acquire)
    }

    fn whole(&self, revision: &Revision, place: &Place) -> Arc<Served> {
        let began = std::time::Instant::now();
        let Class { node, secrets } = &*place.class;
        let mut rendered = render(&revision.world, node, *secrets, &self.memo);
        if *secrets && let Some(roots) = roots(&revision.trust) {
            rendered.entry(ResourceType::Secret).or_default().insert(ROOTS.into(), roots);
        }
        metrics::histogram!("weft_proxy_render_seconds").record(began.elapsed().as_secs_f64());
        metrics::counter!("weft_proxies_rendered", "how" => "whole").increment(1);
        Arc::new(self.sets.keep(rendered, node.address()))
    }

    /// The same as before but for what has moved; none if that cannot be told apart.
    fn moved(
        &self,
        revision: &Revision,
        place: &Place,
        last: (u64, &Arc<Served>),
        moved: &Moved,
    ) -> Option<Arc<Served>> {
        if touches(moved, place) {
            return None;
        }
        let world = &revision.world;
        let mut patches: HashMap<ResourceType, Patch> = HashMap::new();
        let (from, last) = last;
        let seen = self.seen(revision, (from, &**last), moved);
        if seen.is_empty() {
            return Some(last.clone());
        }
        for index in seen.iter().copied() {
            let service = world.services().get(index)?;
            // Of several of one name each proxy sees one, which only all rules together tell.
            if world.services_with_host(&service.hostname).nth(1).is_some() {
                return None;
            }
            for (kind, resources) in render_service(world, &place.class.node, service, &self.memo)? {
                patches.entry(kind).or_default().extend(resources);
            }
        }
        let mut now = Served::clone(last);
        for (kind, patch) in patches {
            if let Some(set) = now.get_mut(&kind) {
                *set = self.sets.patch(kind, set, patch);
            }
        }
        metrics::counter!("weft_proxies_rendered", "how" => "changed endpoints").increment(1);
        Some(Arc::new(now))
    }

    /// Those of the services that moved since what was served at a revision, of which who got that has clusters.
    fn seen(&self, revision: &Revision, last: (u64, &Served), moved: &Moved) -> Arc<[usize]> {
        let (from, last) = last;
        let Some(clusters) = last.get(&ResourceType::Cluster) else {
            return moved.services.iter().copied().collect();
        };
        // Clusters of services are of the common part: a proxy's own are those of its inbound half.
        let key = (clusters.common_hash(), from);
        {
            let mut seen = self.seen.lock();
            if seen.to != revision.number {
                seen.by.clear();
                seen.to = revision.number;
            }
            if let Some(found) = seen.by.get(&key) {
                return found.clone();
            }
        }
        let sees = |index: &usize| {
            let service = revision.world.services().get(*index);
            service.is_none_or(|service| cluster_names(service).any(|name| clusters.get(&name).is_some()))
        };
        let found: Arc<[usize]> = moved.services.iter().copied().filter(sees).collect();
        let mut seen = self.seen.lock();
        if seen.to == revision.number {
            seen.by.insert(key, found.clone());
        }
        found
    }

    /// How many resources were rendered and encoded so far, by what they are. For tests and the metrics port.
    pub fn memo(&self) -> &Memo {
        &self.memo
    }
}

/// Whether those in this place serve something else, or are others themselves.
fn touches(moved: &Moved, place: &Place) -> bool {
    place.class.node.addresses.iter().any(|address| moved.addresses.contains(address.as_str()))
}
