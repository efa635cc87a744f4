//! Listeners: compiled policy, warmed until its route configurations and secrets are there, put under sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use xds_protos::envoy::config::listener::v3::Listener as ListenerProto;

use super::Stored;
use crate::codec::DrainPhase;
use crate::io::Direction;
use crate::listen::listener::drain;
use crate::listen::{BindError, Listener, ListenerConfig, SocketTable};
use crate::route::RouteConfig;
use crate::state::{CompileContext, ConfigError, Role, Slot};

/// Which listeners drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainScope {
    /// Those whose traffic comes to the workload (`traffic_direction: INBOUND`).
    Inbound,
    /// All.
    All,
}

impl DrainScope {
    /// Which ones a proxy drains: a sidecar's outbound listeners serve the application until it ends.
    pub fn of(role: Role) -> Self {
        match role {
            Role::Gateway => Self::All,
            Role::Sidecar => Self::Inbound,
        }
    }

    fn has(self, direction: Direction) -> bool {
        self == Self::All || direction == Direction::Inbound
    }
}

struct Warming {
    config: ListenerConfig,
    routes: Vec<Arc<Slot<RouteConfig>>>,
    /// The resource of the version that serves meanwhile.
    before: Option<Stored>,
}

struct Entry {
    stored: Stored,
    listener: Arc<Listener>,
    warming: Option<Warming>,
    /// Route configurations of the version that serves.
    routes: Vec<Arc<Slot<RouteConfig>>>,
    addresses: Vec<SocketAddr>,
}

impl Entry {
    /// The addresses that it has, or will have when it is warm.
    fn newest_addresses(&self) -> &[SocketAddr] {
        self.warming.as_ref().map_or(&self.addresses, |w| &w.config.addresses)
    }
}

pub(super) struct Listeners {
    sockets: SocketTable,
    entries: BTreeMap<String, Entry>,
    /// Those that drain, or are closed, are not changed any more.
    frozen: Option<DrainScope>,
    /// Connections of a chain that was dropped get this long to end.
    drain_time: Duration,
}

impl Listeners {
    pub(super) fn new(sockets: SocketTable) -> Self {
        Self { sockets, entries: BTreeMap::new(), frozen: None, drain_time: Duration::from_secs(45) }
    }

    pub(super) fn set_drain_time(&mut self, time: Duration) {
        self.drain_time = time;
    }

    pub(super) fn upsert(
        &mut self,
        name: &str,
        message: &ListenerProto,
        stored: Stored,
        context: &CompileContext,
    ) -> Result<(), Vec<ConfigError>> {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.stored.bytes == stored.bytes
        {
            entry.stored = stored;
            return Ok(());
        }
        let config = ListenerConfig::compile(message, context)?;
        self.can_have(name, &config)?;
        let routes = context.routes.used();
        match self.entries.get_mut(name) {
            Some(entry) => {
                let serving = std::mem::replace(&mut entry.stored, stored);
                let before = match entry.warming.take() {
                    Some(warming) => warming.before,
                    None => Some(serving),
                };
                entry.warming = Some(Warming { config, routes, before });
            }
            None => {
                let listener = Listener::new(name.into(), &config);
                let warming = Some(Warming { config, routes, before: None });
                let entry = Entry { stored, listener, warming, routes: Vec::new(), addresses: Vec::new() };
                self.entries.insert(name.to_owned(), entry);
            }
        }
        Ok(())
    }

    /// Whether a listener can have these addresses. Found out when it comes, so that its control plane hears of it, though it
    /// takes them only when it is warm.
    fn can_have(&self, name: &str, config: &ListenerConfig) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        for address in &config.addresses {
            let has = |e: &Entry| e.newest_addresses().contains(address);
            let other = self.entries.iter().find(|(other, entry)| *other != name && has(entry));
            if let Some((other, _)) = other {
                let text = format!("the listener {other} has {address}; an address may have one listener");
                errors.push(ConfigError::new("address", text));
            } else if let Err(error) = self.sockets.probe(*address, &config.sockets) {
                errors.push(ConfigError::new("address", error.to_string()));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Puts listeners that have become warm to work; gives those that cannot listen.
    pub(super) fn publish_warm(&mut self) -> Vec<(String, BindError)> {
        let mut failed = Vec::new();
        for (name, entry) in &mut self.entries {
            let ready = |w: &Warming| w.routes.iter().all(|r| r.get().is_some());
            // One that is to have an address which another listener is about to leave waits for it.
            let free = |w: &Warming| {
                !w.config.addresses.iter().any(|a| self.sockets.is_anothers(*a, &entry.listener))
            };
            let Some(warming) = entry.warming.take_if(|w| ready(w) && free(w)) else { continue };
            if self.frozen.is_some_and(|scope| scope.has(warming.config.direction)) {
                continue;
            }
            let addresses = warming.config.addresses.clone();
            // Sockets first: a listener that cannot have them all changes nothing.
            let settings = &warming.config.sockets;
            let bound = addresses.iter().try_for_each(|a| self.sockets.bind(*a, settings, &entry.listener));
            if let Err(error) = bound {
                self.sockets.release(&entry.listener, &entry.addresses);
                if let Some(before) = warming.before {
                    entry.stored = before;
                }
                failed.push((name.clone(), error));
                continue;
            }
            let dropped = entry.listener.update(warming.config);
            self.sockets.release(&entry.listener, &addresses);
            entry.addresses = addresses;
            entry.routes = warming.routes;
            end(dropped, self.drain_time);
        }
        // A new listener without sockets is not there; the next version of it gets another chance.
        for (name, _) in &failed {
            if self.entries.get(name).is_some_and(|e| e.addresses.is_empty()) {
                self.entries.remove(name);
            }
        }
        failed
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.sockets.release(&entry.listener, &[]);
            end(entry.listener.remove(), self.drain_time);
        }
    }

    /// The route configurations to ask for.
    pub(super) fn routes_wanted(&self) -> Vec<String> {
        let routes = self
            .entries
            .values()
            .flat_map(|e| e.routes.iter().chain(e.warming.iter().flat_map(|w| &w.routes)));
        routes.map(|r| r.name().to_string()).collect()
    }

    pub(super) fn drain(&mut self, scope: DrainScope, phase: DrainPhase) {
        self.freeze(scope);
        for entry in self.entries.values() {
            if let Some(policy) = entry.listener.policy().filter(|p| scope.has(p.direction)) {
                policy.drain(phase);
            }
        }
    }

    pub(super) fn close(&mut self, scope: DrainScope) {
        self.freeze(scope);
        for entry in self.entries.values() {
            if entry.listener.policy().is_some_and(|p| scope.has(p.direction)) {
                self.sockets.release(&entry.listener, &[]);
            }
        }
    }

    fn freeze(&mut self, scope: DrainScope) {
        if self.frozen != Some(DrainScope::All) {
            self.frozen = Some(scope);
        }
    }

    pub(super) fn active_connections(&self) -> i64 {
        self.entries.values().map(|e| e.listener.stats.active.value()).sum()
    }

    pub(super) fn stored(&mut self, name: &str) -> Option<&mut Stored> {
        self.entries.get_mut(name).map(|e| &mut e.stored)
    }

    pub(super) fn addresses(&self) -> Vec<(String, Vec<SocketAddr>)> {
        self.entries.iter().map(|(n, e)| (n.clone(), e.addresses.clone())).collect()
    }

    /// What serves, or will where nothing does yet.
    pub(super) fn good(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.entries.iter().map(|(name, entry)| {
            let before = entry.warming.as_ref().and_then(|w| w.before.as_ref());
            (name.as_str(), before.unwrap_or(&entry.stored))
        })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Stored, bool)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), &e.stored, e.warming.is_some()))
    }
}

/// Ends the connections of chains that are no more: with their next answer, and after a while anyhow.
fn end(chains: Vec<Arc<crate::listen::FilterChain>>, drain_time: Duration) {
    if chains.is_empty() {
        return;
    }
    chains.iter().for_each(|c| drain(c, DrainPhase::Draining));
    tokio::task::spawn_local(async move {
        tokio::time::sleep(drain_time).await;
        chains.iter().for_each(|c| drain(c, DrainPhase::Closing));
    });
}
