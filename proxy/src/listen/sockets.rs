//! The socket table: listening sockets belong to addresses, not to listeners.
//!
//! Every worker has a socket of its own for each address (SO_REUSEPORT), made here on the control thread and sent to it. A
//! listener update swaps the policy under the same sockets: no connection attempt is ever refused for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::listener::Listener;

/// What the control thread tells a worker.
pub enum WorkerCommand {
    /// Accept on this socket for this listener until told otherwise.
    Listen {
        /// The socket's number in the table.
        id: u64,
        /// The socket.
        socket: std::net::TcpListener,
        /// Whose it is; its policy is looked up at each connection.
        listener: Arc<Listener>,
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
    id: u64,
    listener: Arc<Listener>,
}

/// All listening sockets.
pub struct SocketTable {
    workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    bound: HashMap<SocketAddr, Bound>,
    next: u64,
}

impl SocketTable {
    /// A table for these workers.
    pub fn new(workers: Vec<mpsc::UnboundedSender<WorkerCommand>>) -> Self {
        Self { workers, bound: HashMap::new(), next: 0 }
    }

    /// Whether an address could be listened on by a listener that does not have it yet.
    pub fn probe(&self, address: SocketAddr) -> Result<(), BindError> {
        match self.bound.contains_key(&address) {
            true => Ok(()),
            false => socket(address, None).map(drop).map_err(|source| BindError { address, source }),
        }
    }

    /// Whether another listener of ours has an address.
    pub fn is_anothers(&self, address: SocketAddr, listener: &Arc<Listener>) -> bool {
        self.bound.get(&address).is_some_and(|b| !Arc::ptr_eq(&b.listener, listener))
    }

    /// Listens on an address for a listener. An address that the same listener has already is left as it is.
    pub fn bind(
        &mut self,
        address: SocketAddr,
        backlog: i32,
        listener: &Arc<Listener>,
    ) -> Result<(), BindError> {
        if let Some(bound) = self.bound.get(&address) {
            if Arc::ptr_eq(&bound.listener, listener) {
                return Ok(());
            }
            let error = format!("the listener {} has it", bound.listener.name());
            return Err(BindError { address, source: std::io::Error::other(error) });
        }
        // All sockets are made before one is used: an address works on every worker or on none.
        let first = open(address, backlog, true)?;
        let mut sockets = vec![first];
        while sockets.len() < self.workers.len() {
            sockets.push(open(address, backlog, false)?);
        }
        let id = self.next;
        self.next += 1;
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone ends the process by itself.
            let _ = worker.send(WorkerCommand::Listen { id, socket, listener: listener.clone() });
        }
        self.bound.insert(address, Bound { id, listener: listener.clone() });
        Ok(())
    }

    /// Closes every socket of a listener but those at `keep`.
    pub fn release(&mut self, listener: &Arc<Listener>, keep: &[SocketAddr]) {
        let workers = &self.workers;
        self.bound.retain(|address, bound| {
            let stays = !Arc::ptr_eq(&bound.listener, listener) || keep.contains(address);
            if !stays {
                for worker in workers {
                    let _ = worker.send(WorkerCommand::Close(bound.id));
                }
            }
            stays
        });
    }

    /// Closes every socket: the first step of draining.
    pub fn close_all(&mut self) {
        for (_, bound) in self.bound.drain() {
            for worker in &self.workers {
                let _ = worker.send(WorkerCommand::Close(bound.id));
            }
        }
    }

    /// The addresses listened on.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.bound.keys().copied()
    }
}

fn open(address: SocketAddr, backlog: i32, probe: bool) -> Result<std::net::TcpListener, BindError> {
    let fail = |source| BindError { address, source };
    if probe {
        // SO_REUSEPORT would share the address with another process of ours without a word: without it, the kernel tells.
        socket(address, None).map_err(fail)?;
    }
    socket(address, Some(backlog)).map_err(fail)
}

/// A socket at an address: one that listens with a backlog and shares the address, or one that only holds it.
fn socket(address: SocketAddr, backlog: Option<i32>) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(backlog.is_some())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if let Some(backlog) = backlog {
        socket.listen(backlog)?;
    }
    Ok(socket.into())
}
