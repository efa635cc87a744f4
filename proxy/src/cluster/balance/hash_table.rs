//! Consistent hashing: Envoy's ring and Maglev tables, entry for entry, so that a fleet of both proxies agrees on where a
//! key lives.

use std::sync::Arc;

use super::murmur::murmur64;
use super::xxhash::xxh64;
use super::{Maglev, RingHash};
use crate::cluster::host::Host;

/// A table from hashes to positions in a host list.
#[derive(Debug)]
pub struct HashTable {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Sorted by hash.
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

impl HashTable {
    /// A ring on which a host has entries in proportion to its weight, the lightest a whole number of them.
    pub fn ring(hosts: &[Arc<Host>], parameters: &RingHash) -> Self {
        let total: f64 = hosts.iter().map(|h| f64::from(h.weight())).sum();
        let weights: Vec<f64> = hosts.iter().map(|h| f64::from(h.weight()) / total).collect();
        let least = weights.iter().copied().fold(1.0, f64::min);
        let scale =
            ((least * parameters.minimum_size as f64).ceil() / least).min(parameters.maximum_size as f64);
        let mut ring = Vec::with_capacity(scale.ceil() as usize);
        let (mut have, mut want) = (0.0, 0.0);
        let mut key = String::new();
        for (index, host) in hosts.iter().enumerate() {
            want += scale * weights[index];
            let name = host_key(host, parameters.hashing.use_hostname);
            let mut copy = 0u32;
            while have < want {
                key.clear();
                key.push_str(&name);
                key.push('_');
                key.push_str(&copy.to_string());
                let hash =
                    if parameters.murmur { murmur64(key.as_bytes()) } else { xxh64(key.as_bytes(), 0) };
                ring.push((hash, index as u32));
                copy += 1;
                have += 1.0;
            }
        }
        ring.sort_unstable_by_key(|(hash, _)| *hash);
        Self { kind: Kind::Ring(ring.into_boxed_slice()) }
    }

    /// Maglev's table: every host walks its own permutation of the slots and takes free ones, as often as its weight says.
    pub fn maglev(hosts: &[Arc<Host>], parameters: &Maglev) -> Self {
        struct Walk {
            offset: u64,
            skip: u64,
            steps: u64,
            weight: f64,
            due: f64,
        }
        let size = parameters.table_size.max(1);
        let total: f64 = hosts.iter().map(|h| f64::from(h.weight())).sum();
        let mut walks: Vec<Walk> = hosts
            .iter()
            .map(|host| {
                let name = host_key(host, parameters.hashing.use_hostname);
                Walk {
                    offset: xxh64(name.as_bytes(), 0) % size,
                    skip: xxh64(name.as_bytes(), 1) % (size - 1).max(1) + 1,
                    steps: 0,
                    weight: f64::from(host.weight()) / total,
                    due: 0.0,
                }
            })
            .collect();
        let heaviest = walks.iter().map(|w| w.weight).fold(0.0, f64::max);
        let mut table = vec![u32::MAX; size as usize];
        let mut filled = 0;
        let mut round = 0.0;
        while filled < size {
            round += 1.0;
            for (index, walk) in walks.iter_mut().enumerate() {
                if filled == size {
                    break;
                }
                // The heaviest host takes a slot each round, one of a third of its weight every third round.
                if round * walk.weight < walk.due {
                    continue;
                }
                walk.due += heaviest;
                let slot = loop {
                    let slot = ((walk.offset + walk.skip * walk.steps) % size) as usize;
                    walk.steps += 1;
                    if table[slot] == u32::MAX {
                        break slot;
                    }
                };
                table[slot] = index as u32;
                filled += 1;
            }
        }
        Self { kind: Kind::Maglev(table.into_boxed_slice()) }
    }

    /// The host for a hash; later attempts move on to others.
    pub fn choose<'a>(&self, hosts: &'a [Arc<Host>], hash: u64, attempt: u32) -> Option<&'a Arc<Host>> {
        let index = match &self.kind {
            Kind::Ring(ring) => {
                let at = ring.partition_point(|(h, _)| *h < hash);
                ring.get((at + attempt as usize) % ring.len().max(1))?.1
            }
            Kind::Maglev(table) => {
                let hash = if attempt > 0 { hash ^ !u64::from(attempt) } else { hash };
                *table.get((hash % table.len() as u64) as usize)?
            }
        };
        hosts.get(index as usize)
    }

    /// How many entries the table has.
    pub fn size(&self) -> usize {
        match &self.kind {
            Kind::Ring(ring) => ring.len(),
            Kind::Maglev(table) => table.len(),
        }
    }
}

/// Keeps what a hash chose unless it has more than its share of the load (times `factor` percent): then one of the others
/// that has not, in an order that only the hash decides; if all have, the least loaded. `in_flight` is what the cluster has
/// of requests now.
pub(super) fn bounded<'a>(
    hosts: &'a [Arc<Host>],
    chosen: &'a Arc<Host>,
    hash: u64,
    factor: u32,
    in_flight: u64,
) -> &'a Arc<Host> {
    let total: f64 = hosts.iter().map(|h| f64::from(h.weight())).sum();
    let slots = (in_flight + 1).saturating_mul(u64::from(factor)).saturating_add(99) / 100;
    let load = |host: &Host| {
        let own = (slots as f64 * f64::from(host.weight()) / total).ceil().max(1.0);
        f64::from(host.active_requests()) / own
    };
    let mut least = load(chosen);
    if least <= 1.0 {
        return chosen;
    }
    let mut random = fastrand::Rng::with_seed(hash);
    let mut order: Vec<usize> = (0..hosts.len()).collect();
    let mut best = chosen;
    for at in 0..order.len() {
        order.swap(at, random.usize(at..hosts.len()));
        let other = &hosts[order[at]];
        if Arc::ptr_eq(other, chosen) {
            continue;
        }
        let load = load(other);
        if load <= 1.0 {
            return other;
        }
        if load < least {
            (best, least) = (other, load);
        }
    }
    best
}

/// What a host is hashed by: `hash_key` of its `envoy.lb` metadata, else its name or address.
fn host_key(host: &Host, use_hostname: bool) -> String {
    let facts = host.facts();
    if let Some(key) = facts.metadata.as_ref().and_then(|m| m.get_str("envoy.lb", "hash_key")) {
        return key.to_owned();
    }
    if use_hostname && !host.hostname().is_empty() {
        return host.hostname().to_string();
    }
    host.address().to_string()
}
