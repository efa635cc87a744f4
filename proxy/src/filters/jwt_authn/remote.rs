//! Key sets that are fetched from a server: once for all workers, kept for a while, and kept longer when the server is down.
//!
//! The control thread fetches. A worker whose request needs keys that are not there, or too old, says so and waits for the
//! round that is under way then; there is never more than one. What a listener has fetched outlives its replacement, as both
//! name the same source.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::keys::KeySet;
use crate::cluster::Cluster;
use crate::router::call;
use crate::state::Slot;
use crate::telemetry::registry::{Counter, Group};

/// What a round has beyond its time. A try that may take all of it runs out first then, on a busy machine too, and is counted as one that
/// ran out and not as one that was given up.
const GRACE: Duration = Duration::from_millis(100);

/// The most that a key set may have, in bytes.
const LONGEST: usize = 1 << 20;
/// A key that is not in the set is worth a new look at most so often: whoever makes up names of keys must not make us ask the
/// server each time.
const UNKNOWN_KEY: Duration = Duration::from_secs(10);
/// A set that is fetched ahead is fetched so long before it gets too old.
const AHEAD: Duration = Duration::from_secs(5);

/// Where a key set is and how it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The server's cluster.
    pub cluster: Box<str>,
    /// Its name there.
    pub authority: Bytes,
    /// The path.
    pub path: Bytes,
    /// For all tries together.
    pub timeout: Duration,
    /// For one of them.
    pub try_timeout: Duration,
    /// How long a set is good.
    pub keep: Duration,
    /// Fetched before anybody asks; after a failure again after so long.
    pub ahead: Option<Duration>,
    /// How often a try that failed is made again.
    pub retries: u32,
    /// The first pause before that, and the longest.
    pub back_off: (Duration, Duration),
}

/// What a filter counts of its providers' fetches.
pub struct FetchStats {
    _group: Arc<Group>,
    success: Counter,
    failed: Counter,
}

impl FetchStats {
    /// Counters in this group; `prefix` stands before their names.
    pub fn new(group: &Arc<Group>, prefix: &str) -> Self {
        let counter = |name| group.counter(format!("{prefix}{name}"));
        Self {
            success: counter("jwks_fetch_success"),
            failed: counter("jwks_fetch_failed"),
            _group: group.clone(),
        }
    }
}

/// A set and how long it is good.
struct Kept {
    keys: Arc<KeySet>,
    since: Instant,
}

/// A key set of a server.
pub struct Remote {
    source: Source,
    cluster: Arc<Slot<Cluster>>,
    kept: ArcSwapOption<Kept>,
    failed: Mutex<Option<Instant>>,
    /// Woken when somebody wants it, and when nobody refers to it any more.
    wish: Arc<Notify>,
    wished: AtomicBool,
    rounds: watch::Sender<u64>,
    stats: Mutex<Vec<Weak<FetchStats>>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({:?})", self.source)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.wish.notify_one();
    }
}

impl Remote {
    /// The last good set.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.kept.load().as_ref().map(|k| k.keys.clone())
    }

    /// Whether the set should be fetched before it is used. After a failure the last good one serves for a while.
    pub fn is_due(&self) -> bool {
        let kept = self.kept.load();
        let Some(kept) = &*kept else { return true };
        let pause = self.source.back_off.0;
        self.source.ahead.is_none()
            && kept.since.elapsed() >= self.source.keep
            && self.failed.lock().is_none_or(|at| at.elapsed() >= pause)
    }

    /// Whether a key that is not in the set may be in a newer one.
    pub fn may_be_newer(&self) -> bool {
        let old = self.kept.load().as_ref().is_none_or(|k| k.since.elapsed() >= UNKNOWN_KEY);
        old && self.failed.lock().is_none_or(|at| at.elapsed() >= UNKNOWN_KEY)
    }

    /// Counts its fetches there, too.
    pub fn count_for(&self, stats: &Arc<FetchStats>) {
        let mut all = self.stats.lock();
        all.retain(|s| s.strong_count() > 0);
        all.push(Arc::downgrade(stats));
    }

    /// Has the set fetched, and waits until that succeeded or failed.
    pub async fn fetched(&self) {
        let mut rounds = self.rounds.subscribe();
        rounds.mark_unchanged();
        if !self.wished.swap(true, Ordering::AcqRel) {
            self.wish.notify_one();
        }
        // The sender is ours, so it is there.
        let _ = rounds.changed().await;
    }

    async fn round(&self) -> bool {
        let result = match tokio::time::timeout(self.source.timeout + GRACE, self.tries()).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer in {:?}", self.source.timeout)),
        };
        let good = result.is_ok();
        match result {
            Ok(keys) => {
                self.kept.store(Some(Arc::new(Kept { keys: Arc::new(keys), since: Instant::now() })));
                *self.failed.lock() = None;
            }
            Err(why) => {
                let kept = if self.kept.load().is_some() { "; the last good one is kept" } else { "" };
                tracing::warn!(
                    cluster = &*self.source.cluster,
                    path = %String::from_utf8_lossy(&self.source.path),
                    "a key set cannot be fetched: {why}{kept}"
                );
                *self.failed.lock() = Some(Instant::now());
            }
        }
        for stats in self.stats.lock().iter().filter_map(Weak::upgrade) {
            if good { stats.success.inc() } else { stats.failed.inc() }
        }
        self.wished.store(false, Ordering::Release);
        self.rounds.send_modify(|round| *round += 1);
        good
    }

    async fn tries(&self) -> Result<KeySet, String> {
        let (mut pause, longest) = self.source.back_off;
        let mut left = self.source.retries;
        loop {
            match self.fetch().await {
                Err(_) if left > 0 => left -= 1,
                result => return result,
            }
            tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let source = &self.source;
        let mut head = call::head(Method::GET, source.authority.clone(), source.path.clone());
        head.headers.append(header::USER_AGENT, HeaderValue::from_static("Go-browser"));
        let body = crate::codec::Body::Empty;
        let mut reply = call::call(&self.cluster, head, body, source.try_timeout, call::nobody())
            .await
            .map_err(|failure| format!("{failure:?}"))?;
        if reply.head.status != StatusCode::OK {
            return Err(format!("the server answers {}", reply.head.status));
        }
        let (text, _) = call::read(&mut reply.body, LONGEST)
            .await
            .map_err(|e| format!("the answer breaks off: {e:?}"))?;
        KeySet::read(&text)
    }
}

/// All key sets of servers that configuration names.
#[derive(Debug, Default)]
pub struct KeySets {
    known: Mutex<HashMap<Source, Weak<Remote>>>,
    new: Mutex<Vec<Weak<Remote>>>,
    added: Notify,
}

impl KeySets {
    /// The set of this source; the one that is there already, with what it has fetched, if something refers to it.
    pub fn get(&self, source: Source, cluster: Arc<Slot<Cluster>>) -> Arc<Remote> {
        let mut known = self.known.lock();
        if let Some(remote) = known.get(&source).and_then(Weak::upgrade) {
            return remote;
        }
        known.retain(|_, remote| remote.strong_count() > 0);
        let remote = Arc::new(Remote {
            source: source.clone(),
            cluster,
            kept: ArcSwapOption::empty(),
            failed: Mutex::default(),
            wish: Arc::default(),
            wished: AtomicBool::new(false),
            rounds: watch::Sender::new(0),
            stats: Mutex::default(),
        });
        known.insert(source, Arc::downgrade(&remote));
        self.new.lock().push(Arc::downgrade(&remote));
        self.added.notify_one();
        remote
    }

    /// Fetches what is wanted; runs on the control thread for the life of the process.
    pub async fn run(self: Arc<Self>) {
        loop {
            let new = std::mem::take(&mut *self.new.lock());
            for remote in new {
                tokio::task::spawn_local(follow(remote));
            }
            self.added.notified().await;
        }
    }
}

/// Fetches one set whenever it is wanted, for as long as something refers to it.
async fn follow(remote: Weak<Remote>) {
    let Some((wish, source)) = remote.upgrade().map(|r| (r.wish.clone(), r.source.clone())) else { return };
    let mut next = source.ahead.map(|_| Instant::now());
    loop {
        match next {
            None => wish.notified().await,
            Some(at) => tokio::select! {
                () = wish.notified() => {}
                () = tokio::time::sleep_until(at) => {}
            },
        }
        let Some(remote) = remote.upgrade() else { return };
        let good = remote.round().await;
        next = source.ahead.map(|again| {
            let early = source.keep.checked_sub(AHEAD).unwrap_or(source.keep);
            Instant::now() + if good { early } else { again }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            cluster: "keys".into(),
            authority: "keys.example".into(),
            path: "/jwks".into(),
            timeout: Duration::from_secs(5),
            try_timeout: Duration::from_secs(5),
            keep: Duration::from_secs(600),
            ahead: None,
            retries: 0,
            back_off: (Duration::from_secs(1), Duration::from_secs(10)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_round_serves_all_who_wait_and_unknown_keys_are_asked_for_seldom() {
        let sets = Arc::new(KeySets::default());
        let stats = Arc::new(FetchStats::new(&Group::new("jwks-test", Vec::new()), ""));
        let remote = sets.get(source(), Arc::new(Slot::new("keys")));
        assert!(Arc::ptr_eq(&remote, &sets.get(source(), Arc::new(Slot::new("keys")))));
        remote.count_for(&stats);
        let work = tokio::task::LocalSet::new();
        work.spawn_local(sets.run());
        work.run_until(async {
            // There is no such cluster, so every round fails.
            assert!(remote.is_due() && remote.may_be_newer());
            tokio::join!(remote.fetched(), remote.fetched(), remote.fetched());
            assert_eq!(stats.failed.value(), 1);
            assert!(remote.keys().is_none() && remote.is_due());
            assert!(!remote.may_be_newer(), "whoever makes up names of keys gets no fetch for each");
            tokio::time::advance(UNKNOWN_KEY).await;
            assert!(remote.may_be_newer());
            remote.fetched().await;
            assert_eq!(stats.failed.value(), 2);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_set_serves_on_when_it_is_old_and_the_server_is_down() {
        let sets = Arc::new(KeySets::default());
        let remote = sets.get(source(), Arc::new(Slot::new("keys")));
        let kept = Kept { keys: Arc::default(), since: Instant::now() };
        remote.kept.store(Some(Arc::new(kept)));
        assert!(!remote.is_due());
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(remote.is_due());
        let work = tokio::task::LocalSet::new();
        work.spawn_local(sets.run());
        work.run_until(remote.fetched()).await;
        assert!(remote.keys().is_some());
        assert!(!remote.is_due(), "not every request waits for a server that is down");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(remote.is_due());
    }
}
