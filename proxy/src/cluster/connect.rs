//! Making a connection to a host: TCP with the cluster's options, then TLS if its transport is that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::endpoint::HostAddress;
use super::host::{Host, OpenConnection};
use super::limits::Permit;
use super::{Cluster, config::Keepalive};
use crate::identity::tls::ConnectOptions;
use crate::io::{Io, TlsInfo};

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectFailure {
    /// It took longer than the connect timeout.
    pub timeout: bool,
    /// In Envoy's words (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub reason: Arc<str>,
}

/// An established connection and what is held for it.
#[derive(Debug)]
pub struct Connected {
    /// The stream.
    pub io: Io,
    /// What TLS established, if it is TLS.
    pub tls: Option<Arc<TlsInfo>>,
    /// Our address.
    pub local: Option<SocketAddr>,
    /// Counts the connection while it lives.
    pub guard: ConnectionGuard,
}

/// Keeps a connection's place in the circuit breaker and in the statistics.
#[derive(Debug)]
pub struct ConnectionGuard {
    _permit: Permit,
    _open: OpenConnection,
    cluster: Arc<Cluster>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.cluster.stats().upstream_cx_active.add(-1);
        self.cluster.stats().upstream_cx_destroy.inc();
    }
}

/// Connects to a host within the cluster's timeout, TLS included. `permit` is the connection's place in the breaker.
pub async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    permit: Permit,
    options: ConnectOptions<'_>,
) -> Result<Connected, ConnectFailure> {
    let stats = cluster.stats();
    stats.upstream_cx_total.inc();
    stats.upstream_cx_active.add(1);
    let guard = ConnectionGuard { _permit: permit, _open: host.start_connection(), cluster: cluster.clone() };
    let began = Instant::now();
    let made =
        tokio::time::timeout(cluster.config().connect_timeout, establish(cluster, host, options)).await;
    let failure = match made {
        Ok(Ok((io, tls))) => {
            stats.upstream_cx_connect_ms.record(began.elapsed().as_secs_f64() * 1000.0);
            let local = io.tcp_stream().and_then(|s| s.local_addr().ok());
            return Ok(Connected { io, tls: tls.map(Arc::new), local, guard });
        }
        Ok(Err(reason)) => ConnectFailure { timeout: false, reason: reason.into() },
        Err(_) => {
            stats.upstream_cx_connect_timeout.inc();
            ConnectFailure { timeout: true, reason: "".into() }
        }
    };
    stats.upstream_cx_connect_fail.inc();
    host.count_connect_failure();
    Err(failure)
}

async fn establish(
    cluster: &Cluster,
    host: &Host,
    options: ConnectOptions<'_>,
) -> Result<(Io, Option<TlsInfo>), String> {
    let HostAddress::Ip(address) = host.address() else {
        return Err("UNIX sockets are not supported".to_owned());
    };
    let stream =
        dial(cluster, *address).await.map_err(|e| format!("delayed connect error: {}", words(&e)))?;
    let io = Io::tcp(stream);
    let transport = host.facts().transport;
    let Some(tls) = cluster.config().transports.get(transport).and_then(|t| t.tls.as_ref()) else {
        return Ok((io, None));
    };
    let (io, info) =
        tls.connect(io, options, &cluster.stats().tls).await.map_err(|e| e.transport_failure())?;
    Ok((io, Some(info)))
}

async fn dial(cluster: &Cluster, address: SocketAddr) -> std::io::Result<TcpStream> {
    let config = cluster.config();
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(ip) = config.bind
        && ip.is_ipv4() == address.is_ipv4()
    {
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    if let Some(keepalive) = &config.keepalive {
        set_keepalive(&stream, keepalive)?;
    }
    Ok(stream)
}

fn set_keepalive(stream: &TcpStream, wanted: &Keepalive) -> std::io::Result<()> {
    let mut options = TcpKeepalive::new();
    let at_least = |d: Duration| d.max(Duration::from_secs(1));
    if let Some(time) = wanted.time {
        options = options.with_time(at_least(time));
    }
    if let Some(interval) = wanted.interval {
        options = options.with_interval(at_least(interval));
    }
    if let Some(probes) = wanted.probes {
        options = options.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&options)
}

/// An error without the number that Rust adds.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
