//! The pod's DNS: names of the mesh are answered here, all others by the servers that the pod would ask without us.
//!
//! `weft init --redirect-dns` has the kernel send an application's DNS to this port. The control plane sends the addresses of
//! the names that the proxy may reach ([`source`], [`table`]); what is not among them goes to the servers of resolv.conf
//! ([`resolver`], [`upstream`]), is remembered for as long as its answers say, and longer while nobody answers ([`cache`]).
//! [`serve`] has the sockets. All of it runs on a thread of its own, so that an answer never waits for a configuration that is
//! being compiled. The same serves beside our own proxy (`weft proxy`) and beside Envoy (`weft agent`).

mod cache;
mod message;
mod page;
mod resolver;
mod serve;
mod settings;
mod source;
mod stats;
mod table;
#[cfg(test)]
mod testing;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::watch;
use xds_protos::envoy::config::core::v3::Node;

pub use source::{Nothing, WithNames};

use self::resolver::Resolver;
use self::settings::Settings;
use self::stats::Stats;
use self::table::Table;
use self::upstream::{Times, Upstream};
use crate::admin::Dns as AdminDns;
use crate::bootstrap::{DnsArgs, node_info};

/// A control plane that sends no table of names within this time has none to send: names are asked for upstream then, and the
/// proxy is ready. Before, a name of the mesh would be denied by servers that do not know it.
const TABLE_PATIENCE: Duration = Duration::from_secs(30);

/// The pod's DNS, answering; clones share it.
#[derive(Clone, Debug)]
pub struct Dns(Arc<Shared>);

/// What the DNS thread, the stream to the control plane and the admin pages share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// The names of the mesh; none until the first have come.
    table: ArcSwapOption<Table>,
    /// The same as they came, for whoever keeps them for the next start.
    taken: watch::Sender<Option<Bytes>>,
    resolver: Resolver,
    stats: Stats,
    started: Instant,
}

/// Answers DNS where the node says so (metadata `DNS_CAPTURE`), from here on and until the process ends.
///
/// # Errors
/// An address cannot be had, or resolv.conf names no server.
pub fn start(args: &DnsArgs, node: &Node) -> anyhow::Result<Option<Dns>> {
    let node = node_info(node);
    // The second is for the control plane, which would take a slip for a no.
    let (capture, _) = (settings::is_on(&node, "DNS_CAPTURE")?, settings::is_on(&node, "DNS_AUTO_ALLOCATE")?);
    if !capture {
        return Ok(None);
    }
    let settings = Settings::new(args, &node)?;
    let sockets = serve::bind(&settings)?;
    let stats = Stats::new();
    let upstream = Upstream::new(&settings.servers, Times::default(), stats.clone());
    let resolver = Resolver::new(upstream, stats.clone());
    tracing::info!(addresses = ?sockets.addresses(), servers = ?settings.servers, search = ?settings.search, "answering DNS");
    let started = Instant::now();
    let taken = watch::Sender::new(None);
    let shared = Shared { settings, table: ArcSwapOption::empty(), taken, resolver, stats, started };
    let dns = Dns(Arc::new(shared));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answering = dns.clone();
    std::thread::Builder::new()
        .name("dns".to_owned())
        .spawn(move || runtime.block_on(serve::run(sockets, answering)))
        .context("the thread for DNS cannot start")?;
    Ok(Some(dns))
}

impl Dns {
    /// A sink that keeps the tables of names for us, and hands everything else on.
    pub fn before<S>(&self, sink: S) -> WithNames<S> {
        WithNames::new(sink, self.clone())
    }

    /// The last good table of names as it came, to be followed.
    pub fn taken(&self) -> watch::Receiver<Option<Bytes>> {
        self.0.taken.subscribe()
    }

    /// Takes up the table of names that an earlier life kept.
    pub fn restore(&self, bytes: &[u8]) {
        if let Err(reason) = self.take(bytes) {
            tracing::warn!(reason, "the kept table of names is not taken up");
        }
    }

    /// The table of names; outer none as long as it is still to come.
    fn table(&self) -> Option<Option<Arc<Table>>> {
        match self.0.table.load_full() {
            None if self.0.started.elapsed() < TABLE_PATIENCE => None,
            table => Some(table),
        }
    }

    /// What was counted, in Prometheus' text form.
    pub(super) fn prometheus(&self) -> String {
        self.0.stats.prometheus()
    }
}

impl AdminDns for Dns {
    fn page(&self) -> serde_json::Value {
        page::page(self)
    }

    fn ready(&self) -> bool {
        self.table().is_some()
    }
}
