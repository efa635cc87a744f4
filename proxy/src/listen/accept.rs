//! A worker's side of the sockets: accept, look, choose a chain, shake hands, hand over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::chain::{self, FilterChain, Seen};
use super::config::ListenerConfig;
use super::inspect::{Findings, inspect};
use super::listener::Listener;
use super::sockets::WorkerCommand;
use crate::codec::Drain;
use crate::io::{ConnectionInfo, Io};
use crate::telemetry::access_log::LogContext;
use crate::telemetry::{Flag, StreamInfo};

/// Does what the control thread says until it goes away. Runs on the worker's local runtime.
pub async fn run(mut commands: mpsc::UnboundedReceiver<WorkerCommand>) {
    let mut sockets: HashMap<u64, oneshot::Sender<()>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            WorkerCommand::Listen { id, socket, listener } => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let (stop, stopped) = oneshot::channel();
                    sockets.insert(id, stop);
                    tokio::task::spawn_local(accept(socket, listener, stopped));
                }
                Err(error) => tracing::error!(listener = %listener.name(), %error, "a socket cannot be used"),
            },
            WorkerCommand::Close(id) => {
                sockets.remove(&id);
            }
        }
    }
}

async fn accept(socket: TcpListener, listener: Arc<Listener>, mut stopped: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            // Dropping the sender is the signal.
            _ = &mut stopped => return,
            accepted = socket.accept() => match accepted {
                Ok((stream, remote)) => {
                    tokio::task::spawn_local(connection(stream, remote, listener.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: it passes as connections end.
                    tracing::warn!(listener = %listener.name(), %error, "cannot accept a connection");
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

async fn connection(stream: TcpStream, remote: SocketAddr, listener: Arc<Listener>) {
    let Some(policy) = listener.policy() else { return };
    let counted = Counted::new(listener.clone());
    let Ok(local) = stream.local_addr() else { return };
    // Fails only on a connection that is gone, which the next read will tell.
    let _ = stream.set_nodelay(true);
    if let Some(keepalive) = &policy.keepalive {
        let mut options = TcpKeepalive::new();
        let seconds = |n: u32| Duration::from_secs(u64::from(n.max(1)));
        if let Some(time) = keepalive.keepalive_time {
            options = options.with_time(seconds(time));
        }
        if let Some(interval) = keepalive.keepalive_interval {
            options = options.with_interval(seconds(interval));
        }
        if let Some(probes) = keepalive.keepalive_probes {
            options = options.with_retries(probes);
        }
        let _ = SockRef::from(&stream).set_tcp_keepalive(&options);
    }
    let mut io = Io::tcp(stream);
    let mut findings = Findings::default();
    if !look(&mut io, &policy, local, &mut findings, &listener).await {
        return;
    }
    let seen = Seen {
        destination: local,
        source: remote,
        direct_source: remote.ip(),
        transport: findings.transport,
        server_name: findings.server_name.as_deref(),
        application_protocols: &findings.application_protocols,
    };
    let chosen = chain::choose(&policy.chains, &seen).or(policy.default_chain.as_ref()).cloned();
    let mut info = ConnectionInfo {
        id: Listener::number(),
        remote,
        direct_remote: remote,
        local,
        local_restored: false,
        listener: listener.name().clone(),
        direction: policy.direction,
        filter_chain: chosen.as_ref().map_or_else(|| "".into(), |c| c.name.clone()),
        sni: findings.server_name.clone(),
        tls: None,
    };
    let Some(chosen) = chosen else {
        listener.stats.no_chain.inc();
        return log_no_chain(&policy, &info);
    };
    // From here on the connection belongs to its chain: a newer policy of the listener is not its concern.
    drop(policy);
    let Some(io) = secure(io, &chosen, &listener, &mut info).await else { return };
    let drain = Drain::of(&chosen.drain);
    crate::network::serve(io, Rc::new(info), &chosen.network, drain).await;
    drop(counted);
}

/// Runs the inspectors; false if the connection is to be closed.
async fn look(
    io: &mut Io,
    policy: &ListenerConfig,
    local: SocketAddr,
    findings: &mut Findings,
    listener: &Listener,
) -> bool {
    let wanted =
        |rule: &Option<super::config::PortRule>| rule.as_ref().is_some_and(|r| !r.is_off(local.port()));
    let (tls, http) = (wanted(&policy.tls_inspector), wanted(&policy.http_inspector));
    if !tls && !http {
        return true;
    }
    let looking = inspect(io, tls, http, findings);
    let looked = match policy.inspect_timeout {
        None => looking.await,
        Some(limit) => match tokio::time::timeout(limit, looking).await {
            Ok(looked) => looked,
            Err(_) => {
                listener.stats.inspect_timeout.inc();
                return policy.continue_on_timeout;
            }
        },
    };
    looked.is_ok()
}

async fn secure(io: Io, chain: &FilterChain, listener: &Listener, info: &mut ConnectionInfo) -> Option<Io> {
    let Some(context) = &chain.tls else { return Some(io) };
    let handshake = context.accept(io, &listener.stats.tls);
    let accepted = match chain.handshake_timeout {
        None => handshake.await,
        Some(limit) => match tokio::time::timeout(limit, handshake).await {
            Ok(accepted) => accepted,
            Err(_) => {
                listener.stats.handshake_timeout.inc();
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
            None
        }
    }
}

fn log_no_chain(policy: &ListenerConfig, info: &ConnectionInfo) {
    let mut stream = StreamInfo::new(None);
    stream.flags.set(Flag::NoRouteFound);
    stream.details = Some("filter_chain_not_found");
    let context =
        LogContext { stream: &stream, connection: info, request: None, response: None, trailers: None };
    policy.logs.iter().for_each(|log| log.log(&context));
}
