//! A worker's side of the sockets: accept, look, choose a chain, shake hands, hand over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use xds_protos::envoy::config::core::v3 as core;

use super::chain::{self, FilterChain, Seen};
use super::config::ListenerConfig;
use super::filters::{self, Accepted, ListenerFilter, Refusal};
use super::inspect::Findings;
use super::listener::Listener;
use super::sockets::{Directory, WorkerCommand};
use crate::codec::Drain;
use crate::io::{ConnectionInfo, Io, PassedOn, Rare};
use crate::network::NetworkChain;
use crate::network::recheck::Successor;
use crate::network::record::{self, End};
use crate::telemetry::access_log::{LogContext, LogType};
use crate::telemetry::{Flag, StreamInfo, events, pressure};

/// How often it is said that no connection can be accepted.
const SAY: Duration = Duration::from_secs(5);

/// Does what the control thread says until it goes away. Runs on the worker's local runtime.
pub async fn run(mut commands: mpsc::UnboundedReceiver<WorkerCommand>) {
    let mut sockets: HashMap<u64, oneshot::Sender<()>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            WorkerCommand::Listen { id, held, socket, listener, directory } => {
                match TcpListener::from_std(socket) {
                    Ok(socket) => {
                        let (stop, stopped) = oneshot::channel();
                        sockets.insert(id, stop);
                        tokio::task::spawn_local(accept(held, socket, listener, directory, stopped));
                    }
                    Err(error) => {
                        tracing::error!(listener = %listener.name(), %error, "a socket cannot be used")
                    }
                }
            }
            WorkerCommand::Close(id) => {
                sockets.remove(&id);
            }
        }
    }
}

/// Accepts until told to stop. `held` comes first because it has to outlive the socket: parameters go in reverse.
async fn accept(
    _held: Arc<()>,
    socket: TcpListener,
    listener: Arc<Listener>,
    directory: Arc<Directory>,
    mut stopped: oneshot::Receiver<()>,
) {
    // Since when none could be accepted that was told of.
    let mut told: Option<Instant> = None;
    loop {
        tokio::select! {
            // Dropping the sender is the signal.
            _ = &mut stopped => return,
            accepted = socket.accept() => match accepted {
                Ok(_) if pressure::sheds_connections() => listener.stats.overloaded.inc(),
                Ok((stream, remote)) => {
                    tokio::task::spawn_local(connection(stream, remote, listener.clone(), directory.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: it passes as connections end, and until then it is tried often.
                    if told.is_none_or(|at| at.elapsed() > SAY) {
                        told = Some(Instant::now());
                        tracing::warn!(
                            listener = %listener.name(), %error,
                            "cannot accept connections; if there are too many, raise the limit of open files (ulimit -n)"
                        );
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
}

/// Counts a connection while it lives.
struct Counted {
    listener: Arc<Listener>,
    began: Instant,
}

impl Counted {
    fn new(listener: Arc<Listener>) -> Self {
        listener.stats.connections.inc();
        listener.stats.active.add(1);
        Self { listener, began: Instant::now() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.listener.stats;
        stats.active.add(-1);
        stats.destroyed.inc();
        stats.length_ms.record(self.began.elapsed().as_secs_f64() * 1000.0);
    }
}

/// Counts a connection that has no filter chain yet.
struct Early(Arc<Listener>);

impl Early {
    fn new(listener: &Arc<Listener>) -> Self {
        listener.stats.before_chain.add(1);
        Self(listener.clone())
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.0.stats.before_chain.add(-1);
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    mut listener: Arc<Listener>,
    directory: Arc<Directory>,
) {
    // Before the policy is taken, so that none is missed.
    let mut changes = listener.changes();
    let Some(mut policy) = listener.policy() else { return };
    let mut early = Early::new(&listener);
    let Ok(local) = stream.local_addr() else { return };
    let began = std::time::Instant::now();
    // Fails only on a connection that is gone, which the next read will tell.
    let _ = stream.set_nodelay(true);
    let mut accepted = Accepted {
        io: Io::tcp(stream),
        remote,
        direct_remote: remote,
        direct_local: local,
        local,
        restored: false,
        findings: Findings::default(),
        passed_on: PassedOn::default(),
    };
    if !filter(&mut accepted, &policy, &listener).await {
        return log_early(&policy, &early_info(&accepted, &listener, &policy), None);
    }
    // Once, and to another listener's own filters, which see what these found.
    if policy.use_original_dst
        && accepted.restored
        && let Some(other) = directory.find(accepted.local)
    {
        let its_changes = other.changes();
        let Some(its_policy) = other.policy() else { return };
        if !Arc::ptr_eq(&other, &listener) {
            early = Early::new(&other);
            (listener, policy, changes) = (other, its_policy, its_changes);
            if !filter(&mut accepted, &policy, &listener).await {
                return log_early(&policy, &early_info(&accepted, &listener, &policy), None);
            }
        }
    }
    let seen = Seen {
        destination: accepted.local,
        source: accepted.remote,
        direct_source: accepted.direct_remote.ip(),
        transport: accepted.findings.transport,
        server_name: accepted.findings.server_name.as_deref(),
        application_protocols: &accepted.findings.application_protocols,
    };
    let chosen = chain::choose(&policy.chains, &seen).or(policy.default_chain.as_ref()).cloned();
    let mut info = early_info(&accepted, &listener, &policy);
    if Rare::RoundTrip.is_wanted() {
        info.round_trip = accepted.io.round_trip();
    }
    let Some(chosen) = chosen else {
        listener.stats.no_chain.inc();
        let (flag, details) = (Flag::NoRouteFound, "filter_chain_not_found");
        log_early(&policy, &info, Some((flag, details)));
        let end = End::by("this proxy, which has no filter chain for it");
        record::early(&info, Instant::now().into_std(), Some(flag), details.into(), end);
        return discard(&accepted.io);
    };
    info.filter_chain = chosen.name.clone();
    info.chain_metadata = chosen.metadata.clone();
    let Accepted { io, passed_on, findings, .. } = accepted;
    if passed_on != PassedOn::default() {
        info.passed_on = Some(Arc::new(passed_on));
    }
    drop(early);
    let counted = Counted::new(listener.clone());
    if let Some(keepalive) = &policy.keepalive {
        keep_alive(&io, keepalive);
    }
    // From here on the connection belongs to its chain: a newer policy of the listener is not its concern. Only its logs hear of a
    // handshake that fails.
    let policy = Some(policy).filter(|policy| chosen.tls.is_some() && !policy.logs.is_empty());
    if !chosen.network.admissions.is_empty()
        && !Box::pin(crate::network::admits(&mut info, &chosen.network)).await
    {
        return discard(&io);
    }
    // Boxed: a connection carries the room for its handshake only as long as that takes.
    let Some(io) = Box::pin(secure(io, &chosen, &listener, &mut info)).await else {
        return policy.iter().for_each(|policy| log_early(policy, &info, None));
    };
    drop(policy);
    info.handshake = info.tls.is_some().then(|| began.elapsed());
    let drain = Drain::of(&chosen.drain);
    let newer = Newer { listener, chosen: chosen.clone(), findings, changes };
    crate::network::serve(io, Rc::new(info), &chosen.network, drain, Rc::new(newer)).await;
    drop(counted);
}

/// What takes the place of a connection's chain when its listener changes.
struct Newer {
    listener: Arc<Listener>,
    chosen: Arc<FilterChain>,
    findings: Findings,
    changes: watch::Receiver<u64>,
}

impl Successor for Newer {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    fn chain(&self, info: &ConnectionInfo) -> Option<Arc<NetworkChain>> {
        let policy = self.listener.policy()?;
        let seen = Seen {
            destination: info.local,
            source: info.remote,
            direct_source: info.direct_remote.ip(),
            transport: self.findings.transport,
            server_name: self.findings.server_name.as_deref(),
            application_protocols: &self.findings.application_protocols,
        };
        let chain = chain::choose(&policy.chains, &seen).or(policy.default_chain.as_ref())?;
        (!Arc::ptr_eq(chain, &self.chosen)).then(|| chain.network.clone())
    }
}

/// Takes what has come of a connection that nobody will read, so that closing it does not reset it.
fn discard(io: &Io) {
    let mut scratch = [0; 4096];
    if let Some(stream) = io.tcp_stream() {
        while stream.try_read(&mut scratch).is_ok_and(|n| n > 0) {}
    }
}

fn keep_alive(io: &Io, wanted: &core::TcpKeepalive) {
    let mut options = TcpKeepalive::new();
    let seconds = |n: u32| Duration::from_secs(u64::from(n.max(1)));
    if let Some(time) = wanted.keepalive_time {
        options = options.with_time(seconds(time));
    }
    if let Some(interval) = wanted.keepalive_interval {
        options = options.with_interval(seconds(interval));
    }
    if let Some(probes) = wanted.keepalive_probes {
        options = options.with_retries(probes);
    }
    if let Some(stream) = io.tcp_stream() {
        let _ = SockRef::from(stream).set_tcp_keepalive(&options);
    }
}

/// What is known of a connection before it has a chain.
fn early_info(accepted: &Accepted, listener: &Listener, policy: &ListenerConfig) -> ConnectionInfo {
    ConnectionInfo {
        id: crate::io::connection::number(),
        direct_remote: accepted.direct_remote,
        direct_local: accepted.direct_local,
        listener_metadata: policy.metadata.clone(),
        local_restored: accepted.restored,
        listener: listener.name().clone(),
        direction: policy.direction,
        sni: accepted.findings.server_name.clone(),
        fingerprints: accepted.findings.fingerprints.clone(),
        ..ConnectionInfo::between(accepted.remote, accepted.local)
    }
}

/// Runs the listener filters; false if the connection is to be closed.
async fn filter(accepted: &mut Accepted, policy: &ListenerConfig, listener: &Listener) -> bool {
    if policy.filters.is_empty() {
        return true;
    }
    let running = filters::run(&policy.filters, accepted);
    let ran = match policy.filters_timeout.filter(|_| policy.filters.iter().any(ListenerFilter::waits)) {
        None => running.await,
        Some(limit) => match tokio::time::timeout(limit, running).await {
            Ok(ran) => ran,
            Err(_) => {
                listener.stats.filters_timeout.inc();
                return policy.continue_on_timeout;
            }
        },
    };
    match ran {
        Ok(()) => return true,
        Err(Refusal::RemoteClose) => listener.stats.filter_remote_close.inc(),
        Err(Refusal::Broken) => listener.stats.filter_error.inc(),
        Err(Refusal::Filter) => {}
    }
    false
}

async fn secure(io: Io, chain: &FilterChain, listener: &Listener, info: &mut ConnectionInfo) -> Option<Io> {
    let Some(context) = &chain.tls else { return Some(io) };
    let began = Instant::now().into_std();
    let failed = |info: &ConnectionInfo, words: &str| {
        let end =
            End { words: Some(words.into()), ..End::by("this proxy, because the TLS handshake failed") };
        record::early(info, began, None, "tls_handshake_failed".into(), end);
    };
    let handshake = context.accept(io, &listener.stats.tls);
    let accepted = match chain.handshake_timeout {
        None => handshake.await,
        Some(limit) => match tokio::time::timeout(limit, handshake).await {
            Ok(accepted) => accepted,
            Err(_) => {
                listener.stats.handshake_timeout.inc();
                events::downstream_handshake(info, "timeout", "the TLS handshake took too long");
                failed(info, "it took too long");
                return None;
            }
        },
    };
    match accepted {
        Ok((io, tls)) => {
            info.sni = tls.sni.clone().or(info.sni.take());
            info.tls = Some(Arc::new(tls));
            Some(io)
        }
        Err(error) => {
            tracing::debug!(listener = %listener.name(), remote = %info.remote, %error, "TLS handshake failed");
            info.failure = Some(error.transport_failure().into());
            if let Some(reason) = error.reason() {
                events::downstream_handshake(info, reason, &error.to_string());
                failed(info, &error.to_string());
            }
            None
        }
    }
}

/// Logs a connection that ended without a chain.
fn log_early(policy: &ListenerConfig, info: &ConnectionInfo, why: Option<(Flag, &'static str)>) {
    let mut stream = StreamInfo::new(None);
    if let Some((flag, details)) = why {
        stream.flags.set(flag);
        stream.details = Some(details.into());
    }
    let context = LogContext { occasion: LogType::NotSet, ..LogContext::new(&stream, info) };
    policy.logs.iter().for_each(|log| log.log(&context));
}
