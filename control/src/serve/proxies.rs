//! The connected proxies, for syncz and the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::session::{TypeStatus, Variant};
use crate::render::ProxyNode;

/// One connection, as it was last seen.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Its node.
    pub node: ProxyNode,
    /// What it says it is: `user_agent_name` and version of the node.
    pub agent: String,
    /// Delta or state of the world.
    pub variant: Variant,
    /// Where it connects from.
    pub address: String,
    /// Its verified identity; none on the plaintext port.
    pub identity: Option<String>,
    /// Since when.
    pub connected: time::OffsetDateTime,
    /// The revision that it was brought to.
    pub revision: u64,
    /// Its types.
    pub types: Vec<TypeStatus>,
}

/// The list. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    next: Arc<AtomicU64>,
    all: Arc<Mutex<BTreeMap<u64, Arc<Mutex<Proxy>>>>>,
}

/// A place in the list; dropping it takes the proxy out.
#[derive(Debug)]
pub struct Entry {
    number: u64,
    proxy: Arc<Mutex<Proxy>>,
    proxies: Proxies,
}

impl Proxies {
    /// Puts a proxy on the list.
    pub fn enter(&self, proxy: Proxy) -> Entry {
        // Under the lock, so that a number that is given is seen with its proxy.
        let mut all = self.all.lock();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let proxy = Arc::new(Mutex::new(proxy));
        all.insert(number, proxy.clone());
        drop(all);
        metrics::gauge!("pilot_xds", "version" => env!("CARGO_PKG_VERSION")).increment(1.0);
        Entry { number, proxy, proxies: self.clone() }
    }

    /// Looks at everyone who is connected now.
    pub fn each(&self, mut look: impl FnMut(&Proxy)) {
        self.all.lock().values().for_each(|proxy| look(&proxy.lock()));
    }

    /// Who is connected: the same again means the same proxies. Numbers are given once, so with none given since, as many are the
    /// same ones.
    pub fn state(&self) -> (u64, usize) {
        let all = self.all.lock();
        (self.next.load(Ordering::Relaxed), all.len())
    }

    /// How many have been brought to a revision and have taken all of it, and how many are connected.
    pub fn following(&self, revision: u64) -> (usize, usize) {
        let (mut taken, mut all) = (0, 0);
        self.each(|proxy| {
            all += 1;
            taken += usize::from(proxy.revision >= revision && proxy.types.iter().all(|t| t.synced));
        });
        (taken, all)
    }

    /// Everyone who is connected now, in the order in which they came.
    pub fn list(&self) -> Vec<Proxy> {
        self.all.lock().values().map(|proxy| proxy.lock().clone()).collect()
    }
}

impl Entry {
    /// Changes what is known. What connections do many times a second each has to itself.
    pub fn update(&self, change: impl FnOnce(&mut Proxy)) {
        change(&mut self.proxy.lock());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.proxies.all.lock().remove(&self.number);
        metrics::gauge!("pilot_xds", "version" => env!("CARGO_PKG_VERSION")).decrement(1.0);
    }
}
