//! Making a connection to a host: TCP with the cluster's options, then TLS if its transport is that.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::Instant;

use super::endpoint::HostAddress;
use super::host::{Host, OpenConnection};
use super::limits::Permit;
use super::{Cluster, config::Keepalive};
use crate::identity::tls::ConnectOptions;
use crate::io::{Io, SocketOption, TlsInfo, UpstreamSource};
use crate::telemetry::events;
use crate::telemetry::record::UpstreamLine;

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
    /// Its number, and when it was made.
    pub facts: Rc<UpstreamLine>,
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
    let made = {
        let transport = host.facts().transport;
        let name = host.hostname();
        let options = ConnectOptions { host: (!name.is_empty()).then_some(name), ..options };
        let establishing = establish(cluster, host.address(), transport, options);
        tokio::time::timeout(cluster.config().connect_timeout, establishing).await
    };
    let failure = match made {
        Ok(Ok((io, tls, connected))) => {
            stats.upstream_cx_connect_ms.record(began.elapsed().as_secs_f64() * 1000.0);
            let local = io.tcp_stream().and_then(|s| s.local_addr().ok());
            let facts = Rc::new(UpstreamLine {
                id: crate::io::connection::number(),
                began: began.into_std(),
                connected: connected.into_std(),
                secured: tls.is_some().then(std::time::Instant::now),
            });
            return Ok(Connected { io, tls: tls.map(Arc::new), local, facts, guard });
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

/// Makes a connection to an address by one of the cluster's transports, and tells since when its socket is connected. Nothing is
/// counted but what TLS does.
pub(super) async fn establish(
    cluster: &Cluster,
    address: &HostAddress,
    transport: usize,
    options: ConnectOptions<'_>,
) -> Result<(Io, Option<TlsInfo>, Instant), String> {
    let source = options.origin.and_then(|o| o.passed_on.source);
    let failed = |e: std::io::Error| format!("delayed connect error: {}", words(&e));
    let mut io = match address {
        HostAddress::Ip(address) => Io::tcp(dial(cluster, *address, source).await.map_err(failed)?),
        HostAddress::Pipe(path) => Io::unix(UnixStream::connect(&**path).await.map_err(failed)?),
    };
    let connected = Instant::now();
    let transport = cluster.config().transports.get(transport);
    if let Some(proxy) = transport.and_then(|t| t.proxy.as_ref()) {
        io.write_all(&proxy.header(options.origin)).await.map_err(|e| words(&e))?;
    }
    let Some(tls) = transport.and_then(|t| t.tls.as_ref()) else {
        return Ok((io, None, connected));
    };
    let (io, info) = tls.connect(io, options, &cluster.stats().tls).await.map_err(|e| {
        if let Some(reason) = e.reason() {
            let host = address.to_string();
            events::upstream_handshake(&cluster.config().name, &host, reason, &e.to_string());
        }
        e.transport_failure()
    })?;
    Ok((io, Some(info), connected))
}

async fn dial(
    cluster: &Cluster,
    address: SocketAddr,
    source: Option<UpstreamSource>,
) -> std::io::Result<TcpStream> {
    let config = cluster.config();
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source.filter(|s| s.address.is_ipv4() == address.is_ipv4()) {
        from_source(&socket, source)?;
    } else if let Some(ip) = config.bind.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()) {
        socket.bind(SocketAddr::new(*ip, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    if let Some(keepalive) = &config.keepalive {
        set_keepalive(&stream, keepalive)?;
    }
    Ok(stream)
}

/// Gives a socket an address that is not ours, so that the upstream sees the downstream's. The port, where it is not wanted,
/// is left to the moment of connecting: bound earlier, two connections to different upstreams could not share it.
fn from_source(socket: &TcpSocket, source: UpstreamSource) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    match source.address.is_ipv4() {
        true => socket.set_ip_transparent_v4(true)?,
        false => socket.set_ip_transparent_v6(true)?,
    }
    if source.mark != 0 {
        socket.set_mark(source.mark)?;
    }
    if source.address.port() == 0 {
        SocketOption::bind_address_no_port().set(&*socket)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&source.address.into())
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
