//! Connections to the application that no redirection captures.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use tokio::net::{TcpSocket, TcpStream};

/// Connections from here are the proxy's own to the application: the rules of `weft init`, and Istio's, let them pass.
const FROM_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const FROM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Where a connection goes.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Target {
    /// As a URL names it: what a redirect is compared with.
    pub(in crate::agent) host: String,
    /// The address.
    pub(in crate::agent) address: SocketAddr,
    /// Whether it is in this pod.
    own: bool,
}

impl Target {
    /// A port of the pod, or of the host that a probe names.
    pub(in crate::agent) async fn new(host: Option<&str>, port: u16, pod: IpAddr) -> anyhow::Result<Self> {
        let Some(host) = host else { return Ok(Self::of(pod, port, pod)) };
        if let Ok(ip) = host.parse() {
            return Ok(Self::of(ip, port, pod));
        }
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.with_context(|| format!("the host {host:?} is not found"))?.collect::<Vec<_>>();
        // A name's address of the pod's own family first.
        let address = found.iter().find(|a| a.is_ipv4() == pod.is_ipv4()).or(found.first());
        let address = *address.with_context(|| format!("the host {host:?} has no address"))?;
        Ok(Self { host: host.to_owned(), ..Self::of(address.ip(), port, pod) })
    }

    fn of(ip: IpAddr, port: u16, pod: IpAddr) -> Self {
        let host = match ip {
            IpAddr::V4(_) => ip.to_string(),
            IpAddr::V6(_) => format!("[{ip}]"),
        };
        Self { host, address: SocketAddr::new(ip, port), own: ip == pod || ip.is_loopback() }
    }

    /// The same host at another port.
    pub(in crate::agent) fn at(&self, port: u16) -> Self {
        Self { address: SocketAddr::new(self.address.ip(), port), ..self.clone() }
    }

    /// Connects.
    pub(in crate::agent) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connected = match self.own {
            true => match self.connect_from(true).await {
                // ::6 is there only where the redirection was installed; elsewhere nothing captures.
                Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => self.connect_from(false).await,
                connected => connected,
            },
            false => self.connect_from(false).await,
        };
        connected.with_context(|| format!("no connection to {}", self.address))
    }

    async fn connect_from(&self, own: bool) -> io::Result<TcpStream> {
        let (socket, from) = match self.address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, FROM_V4),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, FROM_V6),
        };
        if own {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(self.address).await
    }
}
