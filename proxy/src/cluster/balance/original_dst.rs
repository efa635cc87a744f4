//! Original destination: hosts come into being when somebody wants to go there, and go when nobody did for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::RwLock;

use crate::cluster::endpoint::Endpoint;
use crate::cluster::host::{Facts, HealthFlag, Host};

#[derive(Debug)]
struct Entry {
    host: Arc<Host>,
    used: AtomicBool,
}

/// The hosts of an ORIGINAL_DST cluster.
#[derive(Debug, Default)]
pub struct OriginalDst {
    hosts: RwLock<HashMap<SocketAddr, Entry>>,
    /// Replaces the port (`upstream_port_override`).
    port: Option<u16>,
}

impl OriginalDst {
    /// No hosts yet; `port` replaces the port of every destination.
    pub fn new(port: Option<u16>) -> Self {
        Self { hosts: RwLock::default(), port }
    }

    /// The host at this destination, made by `facts` if it is new; says whether it is.
    pub fn host(&self, mut to: SocketAddr, facts: impl FnOnce() -> Facts) -> (Arc<Host>, bool) {
        if let Some(port) = self.port {
            to.set_port(port);
        }
        if let Some(entry) = self.hosts.read().get(&to) {
            entry.used.store(true, Relaxed);
            return (entry.host.clone(), false);
        }
        let mut hosts = self.hosts.write();
        let mut new = false;
        let entry = hosts.entry(to).or_insert_with(|| {
            new = true;
            Entry { host: Host::new(&Endpoint::new(to), 0, facts()), used: AtomicBool::new(true) }
        });
        entry.used.store(true, Relaxed);
        (entry.host.clone(), new)
    }

    /// Forgets the hosts that nobody asked for since the last sweep and that nothing is connected to; says how many.
    pub fn sweep(&self) -> usize {
        let mut hosts = self.hosts.write();
        let before = hosts.len();
        hosts.retain(|_, entry| {
            let totals = entry.host.totals();
            let keep = entry.used.swap(false, Relaxed) || totals.rq_active > 0 || totals.cx_active > 0;
            if !keep {
                entry.host.set_flag(HealthFlag::Removed, true);
            }
            keep
        });
        before - hosts.len()
    }

    /// The hosts there are now.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.hosts.read().values().map(|e| e.host.clone()).collect()
    }
}
