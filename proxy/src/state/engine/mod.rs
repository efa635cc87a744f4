//! The engine: takes resources, one by one, from files and from the control plane; checks, compiles, warms, publishes.
//!
//! It lives on the control thread. A resource is refused alone and keeps its last good version. A new version of a cluster or
//! a listener warms beside the serving one until what it refers to is there: endpoints, route configurations, secrets.

mod clusters;
mod dump;
mod keep;
mod listeners;
mod secrets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use xds_protos::ResourceType;
use xds_protos::envoy::config::listener::v3::Listener;
use xds_protos::envoy::config::route::v3::RouteConfiguration;
use xds_protos::prost::{Message, Name};

pub use dump::Dumped;
pub use keep::Kept;

use self::clusters::Clusters;
pub use self::listeners::DrainScope;
use self::listeners::Listeners;
use self::secrets::Secrets;
use super::error::join;
use super::node::NodeInfo;
use super::{CompileContext, ConfigError, Tables, fields};
use crate::listen::{BindError, SocketTable};
use crate::route::RouteConfig;
use crate::xds::{Rejection, ResourceSink, Subscriptions};

/// A resource as it came, for config_dump and for knowing that nothing changed.
#[derive(Clone, Debug)]
struct Stored {
    version: String,
    /// The message, in a buffer of exactly its size.
    bytes: Bytes,
    updated: SystemTime,
    /// Why the last version was refused.
    refused: Option<String>,
    /// Came from the bootstrap: no control plane may change it.
    is_static: bool,
}

impl Stored {
    fn new(version: &str, bytes: &[u8], is_static: bool) -> Self {
        Self {
            version: version.to_owned(),
            bytes: Bytes::copy_from_slice(bytes),
            updated: SystemTime::now(),
            refused: None,
            is_static,
        }
    }
}

/// The engine behind its handle.
struct Inner {
    tables: Tables,
    node: Arc<NodeInfo>,
    wanted: Subscriptions,
    clusters: Clusters,
    listeners: Listeners,
    routes: BTreeMap<String, Stored>,
    secrets: Secrets,
    /// Counts what the control plane changed.
    changes: watch::Sender<u64>,
}

/// The engine. Cloning gives another handle; calls come from the control thread only, the lock is for the type system.
#[derive(Clone)]
pub struct Engine(Arc<Mutex<Inner>>);

impl Engine {
    /// An engine without resources, for these sockets.
    pub fn new(tables: Tables, node: Arc<NodeInfo>, sockets: SocketTable, wanted: Subscriptions) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            secrets: Secrets::new(tables.secrets.clone()),
            clusters: Clusters::new(tables.clusters.clone()),
            listeners: Listeners::new(sockets),
            routes: BTreeMap::new(),
            changes: watch::Sender::new(0),
            tables,
            node,
            wanted,
        })))
    }

    /// How long connections get to end whose filter chain was removed or changed. 45 s unless set.
    pub fn set_listener_drain_time(&self, time: std::time::Duration) {
        self.0.lock().listeners.set_drain_time(time);
    }

    /// Takes a resource of the bootstrap. An error is a reason not to start.
    pub fn add_static(&self, kind: ResourceType, name: &str, bytes: &[u8]) -> Result<(), Vec<ConfigError>> {
        let mut inner = self.0.lock();
        inner.upsert(kind, name, "", bytes, true)?;
        let failed = inner.settle();
        if failed.is_empty() {
            return Ok(());
        }
        Err(failed.into_iter().map(|(_, e)| ConfigError::new("address", e.to_string())).collect())
    }

    /// Lets resources name a cluster of the bootstrap as their SDS server; gives what to ask it for, as that becomes known.
    pub fn add_sds_server(&self, cluster: &str) -> Subscriptions {
        let mut inner = self.0.lock();
        inner.tables.sds_servers.write().insert(cluster.to_owned());
        inner.secrets.add_server(cluster)
    }

    /// Publishes the workload's own certificate as the secrets `default` and `ROOTCA`.
    pub fn set_identity(&self, certificate: &crate::identity::workload::WorkloadCertificate) {
        let mut inner = self.0.lock();
        inner.secrets.set_identity(certificate);
        inner.settle();
    }

    /// Asks the control plane for the roots that workloads trust, beside those that come with each certificate.
    pub fn follow_roots(&self) {
        let mut inner = self.0.lock();
        inner.secrets.follow_roots();
        inner.settle();
    }

    /// Whom the mesh trusts: what the control plane says of it, or else what came with the workload's certificate.
    pub fn mesh_roots(&self) -> Arc<super::Slot<crate::identity::Secret>> {
        self.0.lock().secrets.mesh_roots()
    }

    /// Periodic work: returns of ejected hosts, files of secrets.
    pub fn tick(&self, now: Instant) {
        let mut inner = self.0.lock();
        inner.clusters.sweep(now);
        if inner.secrets.reread_files() {
            inner.settle();
        }
    }

    /// Everything as it stands, for config_dump.
    pub fn dump(&self) -> Vec<Dumped> {
        dump::dump(&self.0.lock())
    }

    /// Listeners and the addresses they listen on.
    pub fn listeners(&self) -> Vec<(String, Vec<std::net::SocketAddr>)> {
        self.0.lock().listeners.addresses()
    }

    /// Tells the connections of these listeners, also those that are yet to come, how far draining has come. The listeners are
    /// not changed from now on.
    pub fn drain(&self, scope: DrainScope, phase: crate::codec::DrainPhase) {
        self.0.lock().listeners.drain(scope, phase);
    }

    /// Closes the listening sockets of these listeners, for good.
    pub fn close_listeners(&self, scope: DrainScope) {
        self.0.lock().listeners.close(scope);
    }

    /// Connections that are open.
    pub fn active_connections(&self) -> i64 {
        self.0.lock().listeners.active_connections()
    }

    /// Whether a listener waits for what it refers to.
    pub fn is_warming(&self) -> bool {
        self.0.lock().listeners.all().any(|(_, _, warming)| warming)
    }

    /// The listeners that do so.
    pub fn warming(&self) -> Vec<String> {
        let inner = self.0.lock();
        inner.listeners.all().filter(|(_, _, warming)| *warming).map(|(name, ..)| name.to_owned()).collect()
    }

    /// The tables of compiled resources.
    pub fn tables(&self) -> Tables {
        self.0.lock().tables.clone()
    }
}

/// Checks a resource against the table of fields.
fn check<M: Name>(bytes: &[u8]) -> Result<(), Vec<ConfigError>> {
    let errors = fields::check(&M::full_name(), bytes);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The message of a resource, checked against the table of fields.
fn decode<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, Vec<ConfigError>> {
    check::<M>(bytes)?;
    M::decode(bytes).map_err(|e| ConfigError::new("", format!("not a {}: {e}", M::NAME)).into())
}

impl Inner {
    fn context(&self) -> CompileContext {
        CompileContext::new(&self.tables, self.node.clone(), SystemTime::now())
    }

    /// Takes one resource; on error its last good version stays.
    fn upsert(
        &mut self,
        kind: ResourceType,
        name: &str,
        version: &str,
        bytes: &[u8],
        is_static: bool,
    ) -> Result<(), Vec<ConfigError>> {
        let context = self.context();
        let stored = Stored::new(version, bytes, is_static);
        match kind {
            ResourceType::Cluster => self.clusters.upsert(name, stored, &context)?,
            ResourceType::Endpoint => self.clusters.assign(name, stored)?,
            ResourceType::Listener => {
                let message: Listener = decode(bytes)?;
                self.listeners.upsert(name, &message, stored, &context)?;
            }
            ResourceType::Route => {
                check::<RouteConfiguration>(bytes)?;
                let compiled = RouteConfig::compile_bytes(bytes, &context)?;
                self.tables.routes.slot(name).publish(Arc::new(compiled));
                self.routes.insert(name.to_owned(), stored);
            }
            ResourceType::Secret => self.secrets.upsert(name, stored)?,
            ResourceType::Extension => {
                return Err(ConfigError::unsupported("", "delivering filters by ECDS").into());
            }
            // Asked for only where DNS is answered, and then taken before it comes here.
            ResourceType::Names => {
                return Err(ConfigError::unsupported("", "a table of names where DNS is not captured").into());
            }
        }
        self.secrets.follow(&context);
        Ok(())
    }

    fn refused(&mut self, kind: ResourceType, name: &str, reason: &str) {
        let stored = match kind {
            ResourceType::Cluster => self.clusters.stored(name),
            ResourceType::Endpoint => self.clusters.stored_assignment(name),
            ResourceType::Listener => self.listeners.stored(name),
            ResourceType::Route => self.routes.get_mut(name),
            ResourceType::Secret => self.secrets.stored(name),
            ResourceType::Extension | ResourceType::Names => None,
        };
        if let Some(stored) = stored {
            stored.refused = Some(reason.to_owned());
        }
        tracing::warn!(kind = kind.type_url(), name, reason, "resource refused; its last good version stays");
    }

    fn is_static(&mut self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Cluster => self.clusters.stored(name).is_some_and(|s| s.is_static),
            ResourceType::Listener => self.listeners.stored(name).is_some_and(|s| s.is_static),
            ResourceType::Secret => self.secrets.stored(name).is_some_and(|s| s.is_static),
            _ => false,
        }
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Cluster => self.clusters.remove(name),
            ResourceType::Endpoint => self.clusters.unassign(name),
            ResourceType::Listener => self.listeners.remove(name),
            ResourceType::Route => {
                self.routes.remove(name);
                if let Some(slot) = self.tables.routes.find(name) {
                    slot.clear();
                }
            }
            ResourceType::Secret => self.secrets.remove(name),
            ResourceType::Extension | ResourceType::Names => {}
        }
    }

    /// Publishes what has become warm, and says to the control plane what is wanted now. Gives the listeners that were warm
    /// and cannot listen.
    fn settle(&mut self) -> Vec<(String, BindError)> {
        self.clusters.publish_warm();
        let failed = self.listeners.publish_warm();
        self.wanted.set(ResourceType::Endpoint, self.clusters.assignments_wanted());
        self.wanted.set(ResourceType::Route, self.listeners.routes_wanted());
        self.wanted.set(ResourceType::Secret, self.secrets.wanted());
        for (listener, error) in &failed {
            tracing::error!(listener, %error, "a listener cannot listen; what it was before stays");
        }
        failed
    }
}

impl ResourceSink for Engine {
    fn apply(
        &mut self,
        kind: ResourceType,
        upserts: Vec<(String, String, Bytes)>,
        removed: Vec<String>,
        _full_set: bool,
    ) -> Vec<Rejection> {
        let mut inner = self.0.lock();
        let mut rejections = Vec::new();
        for (name, version, bytes) in upserts {
            let result = if inner.is_static(kind, &name) {
                Err(ConfigError::new("name", "is the bootstrap's own and cannot be changed").into())
            } else {
                inner.upsert(kind, &name, &version, &bytes, false)
            };
            if let Err(errors) = result {
                let reason = join(&errors);
                inner.refused(kind, &name, &reason);
                rejections.push(Rejection { name, reason });
            }
        }
        for name in removed {
            if !inner.is_static(kind, &name) {
                inner.remove(kind, &name);
            }
        }
        for (name, error) in inner.settle() {
            // One that became warm by another kind of resource has no push of its own to be refused in.
            if kind == ResourceType::Listener {
                rejections.push(Rejection { name, reason: format!("address: {error}") });
            }
        }
        inner.changes.send_modify(|n| *n += 1);
        rejections
    }
}
