//! What a compile function sees beside its message: the slots it may refer to, who we are, and the time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use super::node::NodeInfo;
use super::slot::{Slot, SlotTable};
use crate::cluster::Cluster;
use crate::filters::jwt_authn::remote::KeySets;
use crate::http::trace::export::Tracers;
use crate::identity::Secret;
use crate::route::RouteConfig;
use crate::router::logs::Loggers;

/// All clusters.
pub type ClusterTable = SlotTable<Cluster>;
/// All route configurations that came by RDS.
pub type RouteTable = SlotTable<RouteConfig>;
/// All secrets.
pub type SecretTable = SlotTable<Secret>;

/// The slots of one kind during one compilation: taking one records that the resource depends on it.
#[derive(Debug)]
pub struct Refs<T> {
    table: Arc<SlotTable<T>>,
    used: RefCell<Vec<Arc<Slot<T>>>>,
}

impl<T> Refs<T> {
    fn new(table: Arc<SlotTable<T>>) -> Self {
        Self { table, used: RefCell::default() }
    }

    /// The slot of this name, made Missing if it is new; the resource being compiled depends on it from now on.
    pub fn slot(&self, name: &str) -> Arc<Slot<T>> {
        let slot = self.table.slot(name);
        let mut used = self.used.borrow_mut();
        if !used.iter().any(|u| Arc::ptr_eq(u, &slot)) {
            used.push(slot.clone());
        }
        slot
    }

    /// The table itself, for references whose name is known only at request time; records nothing.
    pub fn table(&self) -> &Arc<SlotTable<T>> {
        &self.table
    }

    /// What was taken so far.
    pub fn used(&self) -> Vec<Arc<Slot<T>>> {
        self.used.borrow().clone()
    }
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// The bootstrap's `static_resources.secrets`.
    Static,
    /// The control plane's ADS stream (a gateway's `kubernetes://...`).
    Ads,
    /// The workload's own SDS server: the one of the bootstrap's cluster `sds-grpc`, or what the proxy holds inside.
    Identity,
    /// The SDS server of this cluster of the bootstrap.
    Server(String),
    /// A file that holds a discovery response, watched.
    File(String),
}

/// The tables of a proxy; made once, shared by everything that resolves names.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Clusters.
    pub clusters: Arc<ClusterTable>,
    /// Route configurations by RDS name.
    pub routes: Arc<RouteTable>,
    /// Secrets by SDS name.
    pub secrets: Arc<SecretTable>,
    /// The clusters of the bootstrap that can be asked for secrets.
    pub sds_servers: Arc<RwLock<BTreeSet<String>>>,
    /// Key sets of servers, for verifying tokens.
    pub jwks: Arc<KeySets>,
    /// Who takes the spans of traces.
    pub tracers: Arc<Tracers>,
    /// Who takes the entries of access logs.
    pub loggers: Arc<Loggers>,
}

/// The surroundings of one resource's compilation. One context serves one resource: what was taken from it are that
/// resource's dependencies.
#[derive(Debug)]
pub struct CompileContext {
    /// Clusters; routes and `tcp_proxy` take them.
    pub clusters: Refs<Cluster>,
    /// Route configurations by RDS name; the HTTP connection manager takes them.
    pub routes: Refs<RouteConfig>,
    /// Secrets by SDS name; TLS contexts take them.
    pub secrets: Refs<Secret>,
    secret_sources: RefCell<Vec<(Arc<str>, SecretSource)>>,
    sds_servers: Arc<RwLock<BTreeSet<String>>>,
    /// Key sets of servers, for verifying tokens.
    pub jwks: Arc<KeySets>,
    /// Who takes the spans of traces.
    pub tracers: Arc<Tracers>,
    /// Who takes the entries of access logs.
    pub loggers: Arc<Loggers>,
    /// Who we are.
    pub node: Arc<NodeInfo>,
    /// The wall clock, an argument so that compilation is a pure function.
    pub now: SystemTime,
}

impl CompileContext {
    /// A context for one resource.
    pub fn new(tables: &Tables, node: Arc<NodeInfo>, now: SystemTime) -> Self {
        Self {
            clusters: Refs::new(tables.clusters.clone()),
            routes: Refs::new(tables.routes.clone()),
            secrets: Refs::new(tables.secrets.clone()),
            secret_sources: RefCell::default(),
            sds_servers: tables.sds_servers.clone(),
            jwks: tables.jwks.clone(),
            tracers: tables.tracers.clone(),
            loggers: tables.loggers.clone(),
            node,
            now,
        }
    }

    /// The slot of a secret, and a note to the engine where to get it.
    pub fn secret(&self, name: &str, source: SecretSource) -> Arc<Slot<Secret>> {
        let slot = self.secrets.slot(name);
        self.secret_sources.borrow_mut().push((slot.name().clone(), source));
        slot
    }

    /// Whether a cluster of the bootstrap can be asked for secrets.
    pub fn is_sds_server(&self, cluster: &str) -> bool {
        self.sds_servers.read().contains(cluster)
    }

    /// The secrets taken so far and where they come from.
    pub fn secret_sources(&self) -> Vec<(Arc<str>, SecretSource)> {
        self.secret_sources.borrow().clone()
    }

    /// A context over empty tables, for tests of compile functions.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        Self::new(&Tables::default(), Arc::new(NodeInfo::default()), SystemTime::now())
    }
}
