//! A listener: named policy, swapped as a whole, and what it counts.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::config::ListenerConfig;
use crate::codec::DrainPhase;
use crate::identity::tls::TlsStats;
use crate::telemetry::registry::{Counter, Gauge, Group, Histogram};

/// A listener's slot: its sockets and connections refer to this, its policy comes and goes.
#[derive(Debug)]
pub struct Listener {
    name: Arc<str>,
    current: ArcSwapOption<ListenerConfig>,
    /// Counts policies.
    changes: watch::Sender<u64>,
    /// Connections whose filter chain is being found: not yet any chain's.
    pub stats: ListenerStats,
}

impl Listener {
    /// A listener without policy. What it counts is called after the prefix that `config` gives, or after its address, as in
    /// Envoy (`listener.127.0.0.1_80.`).
    pub fn new(name: Arc<str>, config: &ListenerConfig) -> Arc<Self> {
        let address = config.addresses.first().map(|a| a.to_string().replace(':', "_"));
        let label = config.stat_prefix.as_deref().or(address.as_deref()).unwrap_or(&name);
        let stats = ListenerStats::new(label);
        Arc::new(Self { name, current: ArcSwapOption::empty(), changes: watch::Sender::new(0), stats })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its policy of now.
    pub fn policy(&self) -> Option<Arc<ListenerConfig>> {
        self.current.load_full()
    }

    /// Tells when there is a new policy.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes up a new policy. Chains of the same content go on with their connections; the others, returned here, are to be
    /// drained.
    pub fn update(&self, mut config: ListenerConfig) -> Vec<Arc<super::FilterChain>> {
        let old = self.policy();
        let old_chains: Vec<_> =
            old.iter().flat_map(|o| o.all_chains().cloned().collect::<Vec<_>>()).collect();
        for chain in config.chains.iter_mut().chain(config.default_chain.as_mut()) {
            if let Some(same) = old_chains.iter().find(|o| o.content == chain.content && o.name == chain.name)
            {
                *chain = same.clone();
            }
        }
        let config = Arc::new(config);
        let dropped =
            old_chains.into_iter().filter(|o| !config.all_chains().any(|c| Arc::ptr_eq(c, o))).collect();
        self.current.store(Some(config));
        self.changes.send_modify(|n| *n += 1);
        dropped
    }

    /// Takes its policy away; new connections are refused. The chains returned are to be drained.
    pub fn remove(&self) -> Vec<Arc<super::FilterChain>> {
        let old = self.current.swap(None);
        old.map(|o| o.all_chains().cloned().collect()).unwrap_or_default()
    }
}

/// Tells a chain's connections how far draining has come.
pub fn drain(chain: &super::FilterChain, phase: DrainPhase) {
    chain.drain.send_modify(|p| *p = (*p).max(phase));
}

/// Envoy's listener statistics.
#[derive(Debug)]
pub struct ListenerStats {
    _group: Arc<Group>,
    /// `downstream_cx_total`.
    pub connections: Counter,
    /// `downstream_cx_active`.
    pub active: Gauge,
    /// `downstream_pre_cx_active`: those that have no filter chain yet.
    pub before_chain: Gauge,
    /// `downstream_cx_destroy`.
    pub destroyed: Counter,
    /// `downstream_cx_length_ms`.
    pub length_ms: Histogram,
    /// `downstream_cx_overload_reject`: closed as they came, for want of memory.
    pub overloaded: Counter,
    /// `no_filter_chain_match`.
    pub no_chain: Counter,
    /// `downstream_pre_cx_timeout`.
    pub filters_timeout: Counter,
    /// `downstream_listener_filter_remote_close`: the peer closed while a listener filter waited.
    pub filter_remote_close: Counter,
    /// `downstream_listener_filter_error`: the transport broke meanwhile.
    pub filter_error: Counter,
    /// `downstream_cx_transport_socket_connect_timeout`.
    pub handshake_timeout: Counter,
    /// `ssl.*`.
    pub tls: TlsStats,
}

impl ListenerStats {
    fn new(label: &str) -> Self {
        let group = Group::new(format!("listener.{label}"), Vec::new());
        Self {
            connections: group.counter("downstream_cx_total"),
            active: group.gauge("downstream_cx_active"),
            before_chain: group.gauge("downstream_pre_cx_active"),
            destroyed: group.counter("downstream_cx_destroy"),
            length_ms: group.histogram("downstream_cx_length_ms"),
            overloaded: group.counter("downstream_cx_overload_reject"),
            no_chain: group.counter("no_filter_chain_match"),
            filters_timeout: group.counter("downstream_pre_cx_timeout"),
            filter_remote_close: group.counter("downstream_listener_filter_remote_close"),
            filter_error: group.counter("downstream_listener_filter_error"),
            handshake_timeout: group.counter("downstream_cx_transport_socket_connect_timeout"),
            tls: TlsStats::new(&group),
            _group: group,
        }
    }
}
