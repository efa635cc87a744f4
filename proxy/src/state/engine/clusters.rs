//! Clusters and their load assignments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xds_protos::envoy::config::cluster::v3::Cluster as ClusterProto;
use xds_protos::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::{Stored, decode};
use crate::cluster::config::load_assignment;
use crate::cluster::{Cluster, ClusterConfig, Discovery, LoadAssignment, dns, health};
use crate::state::{ClusterTable, CompileContext, ConfigError};

/// Envoy's default for how long a cluster waits for its endpoints; then it serves without.
const FETCH: Duration = Duration::from_secs(15);

struct Entry {
    stored: Stored,
    serving: Option<Arc<Cluster>>,
    warming: Option<(Arc<Cluster>, Instant)>,
    swept: Instant,
}

pub(super) struct Clusters {
    table: Arc<ClusterTable>,
    entries: BTreeMap<String, Entry>,
    assignments: BTreeMap<String, (Stored, Arc<LoadAssignment>)>,
    /// Clusters by the load assignments that they ask for under another name than their own.
    renamed: BTreeMap<Arc<str>, BTreeSet<String>>,
    /// What is looked up in DNS, for all of them.
    names: dns::Names,
}

fn eds_name(cluster: &Cluster) -> Option<&Arc<str>> {
    match &cluster.config().discovery {
        Discovery::Eds(name) => Some(name),
        _ => None,
    }
}

/// Whether it cannot make connections for lack of a secret.
fn lacks_secret(cluster: &Cluster) -> bool {
    let mut contexts = cluster.config().transports.iter().filter_map(|t| t.tls.as_ref());
    contexts.any(|tls| tls.missing_secret().is_some())
}

impl Clusters {
    pub(super) fn new(table: Arc<ClusterTable>) -> Self {
        Self {
            table,
            entries: BTreeMap::new(),
            assignments: BTreeMap::new(),
            renamed: BTreeMap::new(),
            names: dns::Names::default(),
        }
    }

    pub(super) fn upsert(
        &mut self,
        name: &str,
        stored: Stored,
        context: &CompileContext,
    ) -> Result<(), Vec<ConfigError>> {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.stored.bytes == stored.bytes
        {
            // The same again (a control plane that restarted): nothing is rebuilt and no connection is lost for it.
            entry.stored = stored;
            return Ok(());
        }
        let message: ClusterProto = decode(&stored.bytes)?;
        let cluster = Cluster::new(ClusterConfig::compile(&message, context)?);
        let old = self.entries.remove(name);
        if let Some(before) = old.as_ref().and_then(|e| e.serving.as_ref()) {
            cluster.adopt(before);
            if let Discovery::Static(assignment) = &cluster.config().discovery {
                cluster.assign(assignment);
            }
        }
        if let Some(other) = eds_name(&cluster).filter(|other| ***other != *name) {
            self.renamed.entry(other.clone()).or_default().insert(name.to_owned());
        }
        if let Some((_, assignment)) = eds_name(&cluster).and_then(|n| self.assignments.get(&**n)) {
            cluster.assign(assignment);
        }
        let by_name = matches!(cluster.config().discovery, Discovery::Dns { .. });
        if by_name && !dns::assign_addresses(&cluster) {
            tokio::task::spawn_local(dns::run(cluster.clone(), self.names.clone()));
        }
        if cluster.health().is_some() {
            tokio::task::spawn_local(health::run(cluster.clone()));
        }
        self.table.slot(name).warming();
        let now = Instant::now();
        let serving = old.and_then(|e| e.serving);
        let entry = Entry { stored, serving, warming: Some((cluster, now)), swept: now };
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    pub(super) fn assign(&mut self, name: &str, stored: Stored) -> Result<(), Vec<ConfigError>> {
        let message: ClusterLoadAssignment = decode(&stored.bytes)?;
        let assignment = Arc::new(load_assignment(&message)?);
        self.spread(name, &assignment);
        self.assignments.insert(name.to_owned(), (stored, assignment));
        Ok(())
    }

    fn spread(&self, name: &str, assignment: &LoadAssignment) {
        let renamed = self.renamed.get(name).into_iter().flatten().map(String::as_str);
        for entry in renamed.chain([name]).filter_map(|cluster| self.entries.get(cluster)) {
            for cluster in entry.serving.iter().chain(entry.warming.as_ref().map(|(c, _)| c)) {
                if eds_name(cluster).is_some_and(|n| **n == *name) {
                    cluster.assign(assignment);
                }
            }
        }
    }

    pub(super) fn unassign(&mut self, name: &str) {
        if self.assignments.remove(name).is_some() {
            self.spread(name, &LoadAssignment::default());
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
        self.renamed.retain(|_, clusters| {
            clusters.remove(name);
            !clusters.is_empty()
        });
        if let Some(slot) = self.table.find(name) {
            slot.clear();
        }
    }

    /// Publishes clusters that have become warm.
    pub(super) fn publish_warm(&mut self) {
        for (name, entry) in &mut self.entries {
            let Some((cluster, since)) = &entry.warming else { continue };
            let late = since.elapsed() >= FETCH;
            let ready = cluster.is_assigned() && cluster.is_checked();
            if !ready && !late {
                continue;
            }
            // A cluster whose secrets are missing serves, and says so at each attempt; it would answer no better by not being
            // there. One that replaces a version that has its own waits for them.
            let whole = entry.serving.as_ref().is_some_and(|serving| !lacks_secret(serving));
            if whole && !late && lacks_secret(cluster) {
                continue;
            }
            cluster.take_over();
            self.table.slot(name).publish(cluster.clone());
            let next = entry.warming.take().map(|(c, _)| c);
            if let Some(before) = std::mem::replace(&mut entry.serving, next) {
                before.retire();
            }
        }
    }

    /// The load assignments to ask for.
    pub(super) fn assignments_wanted(&self) -> Vec<String> {
        let clusters =
            self.entries.values().flat_map(|e| e.serving.iter().chain(e.warming.as_ref().map(|(c, _)| c)));
        clusters.filter_map(|c| eds_name(c)).map(|n| n.to_string()).collect()
    }

    /// Lets ejected hosts return, each cluster at its own interval.
    pub(super) fn sweep(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            let Some(cluster) = &entry.serving else { continue };
            cluster.settle(now);
            let interval = cluster.sweep_interval().unwrap_or(Duration::from_secs(10));
            if now.saturating_duration_since(entry.swept) >= interval {
                entry.swept = now;
                cluster.sweep(now);
            }
        }
        self.publish_warm();
    }

    pub(super) fn stored(&mut self, name: &str) -> Option<&mut Stored> {
        self.entries.get_mut(name).map(|e| &mut e.stored)
    }

    pub(super) fn stored_assignment(&mut self, name: &str) -> Option<&mut Stored> {
        self.assignments.get_mut(name).map(|(s, _)| s)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Stored, bool)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), &e.stored, e.warming.is_some()))
    }

    pub(super) fn all_assignments(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.assignments.iter().map(|(n, (s, _))| (n.as_str(), s))
    }
}
