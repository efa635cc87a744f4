//! The socket table: listening sockets belong to addresses, not to listeners.
//!
//! Every worker has a socket of its own for each address (SO_REUSEPORT), made here on the control thread and sent to it. A
//! listener update swaps the policy under the same sockets: no connection attempt is ever refused for it. A listener that is
//! only reached from another one (`bind_to_port: false`) has its address in the table all the same: workers look it up there
//! for connections with a restored destination.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::listener::Listener;
use crate::io::{Moment, SocketOption};

/// How a listener's sockets are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Listen at all; otherwise the listener is only reached from another one.
    pub bind: bool,
    /// How many connections may wait to be accepted, at each worker's socket.
    pub backlog: i32,
    /// Take connections to addresses that this machine does not have (IP_TRANSPARENT).
    pub transparent: bool,
    /// Listen on an address that this machine does not have (IP_FREEBIND).
    pub freebind: bool,
    /// Further options.
    pub options: Vec<SocketOption>,
}

/// Which listener has which address, for workers.
#[derive(Debug, Default)]
pub struct Directory(ArcSwap<HashMap<SocketAddr, Arc<Listener>>>);

impl Directory {
    /// The listener for connections to this address: the one that has it, else the one that has its port on all addresses.
    pub fn find(&self, address: SocketAddr) -> Option<Arc<Listener>> {
        let all = self.0.load();
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        all.get(&address).or_else(|| all.get(&SocketAddr::new(any, address.port()))).cloned()
    }
}

/// What the control thread tells a worker.
pub enum WorkerCommand {
    /// Accept on this socket for this listener until told otherwise.
    Listen {
        /// The socket's number in the table.
        id: u64,
        /// Kept as long as the socket is open, so that the table knows which are still to be closed.
        held: Arc<()>,
        /// The socket.
        socket: std::net::TcpListener,
        /// Whose it is; its policy is looked up at each connection.
        listener: Arc<Listener>,
        /// Where other listeners are found.
        directory: Arc<Directory>,
    },
    /// Close the socket of this number. Connections go on.
    Close(u64),
}

/// A socket that cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: std::io::Error,
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another program uses it (ss -ltnp shows which)",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)",
        std::io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        _ => "",
    }
}

struct Bound {
    /// The number of its sockets, where it has any.
    id: Option<u64>,
    /// Whether one of them is open.
    held: Weak<()>,
    listener: Arc<Listener>,
    settings: SocketSettings,
}

/// All listening sockets.
pub struct SocketTable {
    workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    bound: HashMap<SocketAddr, Bound>,
    /// Ports of sockets that workers were told to close, until they have.
    closing: Vec<(u16, Weak<()>)>,
    directory: Arc<Directory>,
    next: u64,
}

impl SocketTable {
    /// A table for these workers.
    pub fn new(workers: Vec<mpsc::UnboundedSender<WorkerCommand>>) -> Self {
        Self { workers, bound: HashMap::new(), closing: Vec::new(), directory: Arc::default(), next: 0 }
    }

    /// Whether an address could be listened on by a listener that does not have it yet.
    pub fn probe(&self, address: SocketAddr, settings: &SocketSettings) -> Result<(), BindError> {
        match !settings.bind || self.bound.contains_key(&address) || self.is_closing(address) {
            true => Ok(()),
            false => {
                socket(address, settings, false).map(drop).map_err(|source| BindError { address, source })
            }
        }
    }

    /// Whether a worker has yet to close a socket of ours that is in an address's way: one at its port. Until then the kernel
    /// would call the address taken, and by whom it does not say.
    fn is_closing(&self, address: SocketAddr) -> bool {
        self.closing.iter().any(|(port, held)| *port == address.port() && held.strong_count() > 0)
    }

    /// Whether another listener of ours has an address.
    pub fn is_anothers(&self, address: SocketAddr, listener: &Arc<Listener>) -> bool {
        self.bound.get(&address).is_some_and(|b| !Arc::ptr_eq(&b.listener, listener))
    }

    /// Listens on an address for a listener. Sockets that the same listener has there already are left as they are, unless
    /// they are to be made otherwise.
    pub fn bind(
        &mut self,
        address: SocketAddr,
        settings: &SocketSettings,
        listener: &Arc<Listener>,
    ) -> Result<(), BindError> {
        let mut before = None;
        if let Some(bound) = self.bound.get(&address) {
            if !Arc::ptr_eq(&bound.listener, listener) {
                let error = format!("the listener {} has it", bound.listener.name());
                return Err(BindError { address, source: std::io::Error::other(error) });
            }
            if bound.settings == *settings {
                return Ok(());
            }
            before = Some((bound.id, bound.held.clone()));
        }
        let mut id = None;
        let held = Arc::new(());
        if settings.bind {
            // All sockets are made before one is used: an address works on every worker or on none.
            let probe = before.is_none() && !self.is_closing(address);
            let first = open(address, settings, probe)?;
            let mut sockets = vec![first];
            while sockets.len() < self.workers.len() {
                sockets.push(open(address, settings, false)?);
            }
            id = Some(self.next);
            for (worker, socket) in self.workers.iter().zip(sockets) {
                // A worker that is gone ends the process by itself.
                let directory = self.directory.clone();
                let (id, held, listener) = (self.next, held.clone(), listener.clone());
                let _ = worker.send(WorkerCommand::Listen { id, held, socket, listener, directory });
            }
            self.next += 1;
        }
        if let Some((id, held)) = before {
            self.close(address, id, held);
        }
        let held = Arc::downgrade(&held);
        self.bound
            .insert(address, Bound { id, held, listener: listener.clone(), settings: settings.clone() });
        self.publish();
        Ok(())
    }

    fn close(&mut self, address: SocketAddr, id: Option<u64>, held: Weak<()>) {
        self.closing.retain(|(_, held)| held.strong_count() > 0);
        if let Some(id) = id {
            self.closing.push((address.port(), held));
            for worker in &self.workers {
                let _ = worker.send(WorkerCommand::Close(id));
            }
        }
    }

    fn publish(&self) {
        let all = self.bound.iter().map(|(address, bound)| (*address, bound.listener.clone())).collect();
        self.directory.0.store(Arc::new(all));
    }

    /// Closes every socket of a listener but those at `keep`.
    pub fn release(&mut self, listener: &Arc<Listener>, keep: &[SocketAddr]) {
        let stays = |address: &SocketAddr, bound: &Bound| {
            !Arc::ptr_eq(&bound.listener, listener) || keep.contains(address)
        };
        let gone: Vec<_> = self.bound.extract_if(|address, bound| !stays(address, bound)).collect();
        if !gone.is_empty() {
            gone.into_iter().for_each(|(address, bound)| self.close(address, bound.id, bound.held));
            self.publish();
        }
    }

    /// The addresses listened on.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.bound.keys().copied()
    }
}

fn open(
    address: SocketAddr,
    settings: &SocketSettings,
    probe: bool,
) -> Result<std::net::TcpListener, BindError> {
    let fail = |source| BindError { address, source };
    if probe {
        // SO_REUSEPORT would share the address with another process of ours without a word: without it, the kernel tells.
        socket(address, settings, false).map_err(fail)?;
    }
    socket(address, settings, true).map_err(fail)
}

/// A socket at an address: one that listens and shares the address, or one that only holds it.
fn socket(
    address: SocketAddr,
    settings: &SocketSettings,
    listen: bool,
) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(listen)?;
    let ipv4 = address.is_ipv4();
    if !ipv4 {
        socket.set_only_v6(true)?;
    }
    if settings.transparent {
        match ipv4 {
            true => socket.set_ip_transparent_v4(true)?,
            false => socket.set_ip_transparent_v6(true)?,
        }
    }
    if settings.freebind {
        match ipv4 {
            true => socket.set_freebind_v4(true)?,
            false => socket.set_freebind_v6(true)?,
        }
    }
    let set = |moment| SocketOption::set_all(&settings.options, moment, ipv4, &socket);
    set(Moment::Prebind)?;
    socket.bind(&address.into())?;
    set(Moment::Bound)?;
    if listen {
        socket.listen(settings.backlog)?;
        set(Moment::Listening)?;
    }
    Ok(socket.into())
}
