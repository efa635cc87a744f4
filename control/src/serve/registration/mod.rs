//! Workloads that enter themselves: a proxy that names a WorkloadGroup gets a WorkloadEntry while it is connected, and for a
//! moment longer.
//!
//! Whoever has the stream keeps the entry; it says so on it, and who has the next stream takes it over. `memory` holds entries
//! of a mesh in a directory, which become part of the state between reading and queue, and `kept` has them over a restart; `cluster` writes them into Kubernetes,
//! from where they come back as all other objects do.

mod cluster;
mod kept;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;
use weft_certs::spiffe::SpiffeId;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::prost_types::value::Kind;
use xds_protos::value::to_json;

pub use cluster::Cluster;
pub use memory::{Entered, follow};

use crate::model::labels::is_label;
use crate::model::service_entry::WorkloadEntry;
use crate::model::workload_group::{Entering, WorkloadGroup};
use crate::model::{Object, Workload, World};
use crate::render::ProxyNode;
use memory::Memory;

/// What an entry is looked after by.
#[derive(Clone)]
enum Keep {
    Memory(Memory),
    Cluster(Cluster),
}

/// The flags.
#[derive(Args, Clone, Debug)]
pub struct RegistrationArgs {
    /// Whether proxies may enter their workloads by a WorkloadGroup (metadata AUTO_REGISTER_GROUP)
    #[arg(
        long,
        value_name = "BOOL",
        env = "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub auto_registration: bool,
    /// How long an entry stays when the stream of its proxy has ended
    #[arg(
        long,
        value_name = "DURATION",
        env = "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD",
        default_value = "10s",
        value_parser = xds_protos::duration::parse
    )]
    pub workload_entry_grace: Duration,
    /// As many workloads as one identity may have entered at a time; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub max_entries_per_identity: usize,
}

/// How long an entry stays after a restart of the control plane if its proxy does not come back: proxies try at least every 30 s.
const RETURN: Duration = Duration::from_secs(60);
/// The longest name of a proxy that its workload is known by.
const LONGEST_NAME: usize = 253;

/// Makes entries, and takes them away. Cloning it shares it.
#[derive(Clone)]
pub struct Registrar {
    keep: Keep,
    grace: Duration,
    /// The most entries that one identity may have; 0 is no limit.
    most: usize,
    /// Who is connected here: states follow a moment later.
    connected: Connected,
}

/// Namespace and service account.
type Of = (String, String);

/// Of each identity the entries whose proxies are connected, each with the number of its streams.
type Connected = Arc<Mutex<BTreeMap<Of, BTreeMap<String, usize>>>>;

/// One stream of an entry's proxy.
#[derive(Debug)]
struct Stream {
    connected: Connected,
    of: Of,
    name: String,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut connected = self.connected.lock();
        let Some(entries) = connected.get_mut(&self.of) else { return };
        if let Some(streams) = entries.get_mut(&self.name) {
            *streams -= 1;
            if *streams == 0 {
                entries.remove(&self.name);
            }
        }
        if entries.is_empty() {
            connected.remove(&self.of);
        }
    }
}

/// How a workload is, as its proxy says; none until it has said anything.
type Health = Option<Result<(), String>>;

/// A workload that is entered, as long as this is held.
#[derive(Debug)]
pub(super) struct Registration {
    health: watch::Sender<Health>,
    _stream: Stream,
}

impl Registration {
    /// The proxy says how its workload is: an error is why it is not well.
    pub(super) fn report(&self, error: Option<String>) {
        let now = error.map_or(Ok(()), Err);
        self.health.send_if_modified(|health| {
            // Only a change is news; the words may differ each time.
            let changed = health.as_ref().map(Result::is_ok) != Some(now.is_ok());
            if changed {
                *health = Some(now);
            }
            changed
        });
    }
}

/// What a proxy asks for in its first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    group: String,
    network: String,
    reports: bool,
}

impl Asked {
    /// None if it asks for nothing.
    pub(super) fn read(node: &Node) -> Option<Self> {
        let field = |key: &str| node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
        let text = |key: &str| match field(key).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text.clone(),
            _ => String::new(),
        };
        let group = text("AUTO_REGISTER_GROUP");
        let config = field("PROXY_CONFIG").map(to_json).unwrap_or_default();
        let reports = !config["readinessProbe"].is_null();
        (!group.is_empty()).then(|| Self { group, network: text("NETWORK"), reports })
    }
}

impl Registrar {
    /// For a mesh in a directory; and what is entered. With a state directory what was entered before a restart is there again, for
    /// as long as its proxies may take to come back. It must be called within a runtime.
    pub fn in_memory(grace: Duration, state: Option<&Path>) -> (Self, watch::Receiver<Arc<Entered>>) {
        let memory = Memory::default();
        let entered = memory.entered();
        if let Some(path) = state.map(kept::file) {
            for held in memory.put_back(kept::read(&path)) {
                let (_, nobody) = watch::channel(None);
                tokio::spawn(memory.clone().keep(held, nobody, grace.max(RETURN)));
            }
            tokio::spawn(kept::write(path, memory.entered()));
        }
        (Self { keep: Keep::Memory(memory), grace, most: 0, connected: Connected::default() }, entered)
    }

    /// For a cluster.
    pub fn in_cluster(cluster: Cluster, grace: Duration) -> Self {
        Self { keep: Keep::Cluster(cluster), grace, most: 0, connected: Connected::default() }
    }

    /// The same where one identity may have so many entries at most.
    #[must_use]
    pub fn with_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Enters a workload. It must be called within a runtime.
    ///
    /// # Errors
    /// It may not, or there is no such group.
    pub(super) fn enter(
        &self,
        world: &World,
        asked: &Asked,
        node: &ProxyNode,
        identity: Option<&SpiffeId>,
    ) -> Result<Registration, Status> {
        let entry = entry(world, asked, node, identity)?;
        let stream = self.room(world, &entry)?;
        let (sender, health) = watch::channel(None);
        let grace = self.grace;
        match self.keep.clone() {
            Keep::Memory(memory) => {
                // At once, so that the first state that it is sent has it.
                let number = memory.put(entry);
                tokio::spawn(memory.keep(number, health, grace));
            }
            Keep::Cluster(cluster) => {
                tokio::spawn(cluster.keep(entry, health, grace));
            }
        }
        Ok(Registration { health: sender, _stream: stream })
    }
}

impl Registrar {
    /// A token that got into wrong hands must not fill the mesh with workloads that are none. A proxy that comes back is none more,
    /// whatever the bound is by now.
    fn room(&self, world: &World, entry: &Object<WorkloadEntry>) -> Result<Stream, Status> {
        let (namespace, name, account) =
            (&entry.meta.namespace, &entry.meta.name, &entry.spec.service_account);
        let written = || {
            let all = world.workloads().iter().filter(|there| {
                there.entered_itself()
                    && there.meta.namespace == *namespace
                    && there.service_account() == account
            });
            all.map(|there| &there.meta.name)
        };
        let of = (namespace.clone(), account.clone());
        let mut all = self.connected.lock();
        let connected = || all.get(&of).into_iter().flat_map(BTreeMap::keys);
        let returns = connected().chain(written()).any(|there| there == name);
        if self.most > 0
            && !returns
            && connected().chain(written()).collect::<BTreeSet<_>>().len() >= self.most
        {
            return Err(Status::resource_exhausted(format!(
                "{namespace}/{account} has {} workloads entered, which is the most that one identity may have (--max-entries-per-identity)",
                self.most
            )));
        }
        *all.entry(of.clone()).or_default().entry(name.clone()).or_default() += 1;
        Ok(Stream { connected: self.connected.clone(), of, name: name.clone() })
    }
}

/// The entry that a proxy asks for.
fn entry(
    world: &World,
    asked: &Asked,
    node: &ProxyNode,
    identity: Option<&SpiffeId>,
) -> Result<Object<WorkloadEntry>, Status> {
    let (namespace, name) = (&node.namespace, &asked.group);
    let groups = world.workload_groups();
    let group = groups.iter().find(|group| group.meta.namespace == *namespace && group.meta.name == *name);
    let Some(group) = group else {
        return Err(Status::failed_precondition(format!(
            "there is no WorkloadGroup {namespace}/{name}, by which the proxy is to enter its workload (AUTO_REGISTER_GROUP): \
             create it, or correct the name"
        )));
    };
    let Some((of, account)) = identity.and_then(SpiffeId::workload) else {
        return Err(Status::failed_precondition(format!(
            "only a proxy with a verified identity may enter itself (WorkloadGroup {namespace}/{name}): connect to the secure port"
        )));
    };
    let wanted = &group.spec.template.service_account;
    if of != namespace || account != wanted {
        return Err(Status::permission_denied(format!(
            "{namespace}/{wanted} may enter workloads by the WorkloadGroup {namespace}/{name}, and {of}/{account} may not: its \
             template's serviceAccount must be the proxy's"
        )));
    }
    let address = node.address();
    if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(Status::failed_precondition(format!("{address} is no address of a workload")));
    }
    let other =
        |there: &&Arc<Workload>| there.meta.namespace != *namespace || there.service_account() != account;
    if let Some(there) = world.workload_at(address).into_iter().chain(world.pods_at(address)).find(other) {
        return Err(Status::permission_denied(format!(
            "the address {address} is that of {}: a proxy of {of}/{account} cannot enter it",
            there.meta.key()
        )));
    }
    // It becomes part of an object's name.
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let network = &asked.network;
    if !network.chars().all(fits) || network.starts_with('-') || network.ends_with('-') || network.len() > 63
    {
        return Err(Status::failed_precondition(format!(
            "the network {network:?} (NETWORK) cannot be entered: names of networks are small letters, digits and dashes, at most 63"
        )));
    }
    // They become labels of a workload, which others select it by.
    if let Some((key, value)) = node.labels.iter().find(|(key, value)| !is_label(key, value)) {
        return Err(Status::failed_precondition(format!(
            "the label {key:?}: {value:?} (LABELS) cannot be entered: names and values of labels have letters, digits, -, _ and ., with a letter \
             or digit at both ends, and at most 63 characters"
        )));
    }
    let place = &node.locality;
    let parts = [&place.region, &place.zone, &place.sub_zone].map(String::as_str);
    let locality = parts.join("/").trim_end_matches('/').to_owned();
    let proxy = node.own_name();
    let is_name = proxy.len() <= LONGEST_NAME && proxy.bytes().all(|byte| byte.is_ascii_graphic());
    let entering = Entering {
        address: address.to_owned(),
        proxy: if is_name { proxy.to_owned() } else { String::new() },
        network: asked.network.clone(),
        labels: node.labels.clone(),
        locality,
        reports: asked.reports,
    };
    Ok(WorkloadGroup::entry(group, &entering))
}
