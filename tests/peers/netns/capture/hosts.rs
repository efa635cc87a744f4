//! What listens on the hosts, and how something is done as another user.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_thread_gid,
    set_thread_groups, set_thread_uid,
};
use socket2::{Domain, SockRef, Socket, Type};

use super::super::hosts::Host;

/// The proxy's user.
const PROXY: Owner = Owner::new(1337, 1337);

/// A user and a group.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    pub const fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid }
    }

    /// Makes this thread theirs for good; what the network needs of capabilities stays.
    fn take_over(self) {
        set_keep_capabilities(true).unwrap();
        set_thread_groups(&[]).unwrap();
        set_thread_gid(Gid::from_raw(self.gid)).unwrap();
        set_thread_uid(Uid::from_raw(self.uid)).unwrap();
        let network = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE;
        let inheritable = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: network, permitted: network, inheritable })
            .unwrap();
    }
}

/// Does something on a host as somebody: sockets that it makes are theirs.
pub fn as_owner<R: Send>(host: &Host, owner: Owner, act: impl FnOnce() -> R + Send) -> R {
    host.inside(move || {
        owner.take_over();
        act()
    })
}

/// Has somebody stop when a test is done or has failed.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sockets, each with what it is.
type Kinds<T> = Vec<(&'static str, T)>;

/// Listeners on a host; each tells who comes what it is, where they were going, and who they are. Then it closes.
pub struct Listeners {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    /// Servers that are what was dialled.
    pub fn start(host: &Host, kind: &'static str, tcp: &[u16], udp: &[u16]) -> Self {
        Self::run(host.inside(|| {
            let streams = tcp.iter().flat_map(|port| listeners(*port, false)).map(|l| (kind, l));
            let datagrams = udp.iter().flat_map(|port| sockets(addresses(*port))).map(|s| (kind, s));
            (streams.collect(), datagrams.collect())
        }))
    }

    /// What stands in the proxy's place.
    pub fn of_proxy(host: &Host, transparent: bool) -> Self {
        let ports = [("out", 15001, false), ("in", 15006, transparent), ("dns", 15053, false)];
        let other = [("out", 25001, false), ("in", 25006, transparent)];
        let (tx, rx) = std::sync::mpsc::channel();
        // They are made by the proxy's user, because the rules look at that.
        as_owner(host, PROXY, || {
            let streams = ports.into_iter().chain(other).flat_map(|(kind, port, transparent)| {
                listeners(port, transparent).into_iter().map(move |l| (kind, l))
            });
            // The kernel redirects to the loopback, and an answer has to come from there.
            let datagrams = sockets(loopbacks(15053)).into_iter().map(|s| ("dns", s));
            tx.send((streams.collect(), datagrams.collect())).unwrap();
        });
        Self::run(rx.recv().unwrap())
    }

    fn run((streams, datagrams): (Kinds<TcpListener>, Kinds<UdpSocket>)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let mut idle = true;
                for (kind, listener) in &streams {
                    if let Ok((stream, peer)) = listener.accept() {
                        idle = false;
                        let _ = stream.set_nonblocking(false);
                        // One that goes away before its answer is none of this test.
                        let _ = answer(kind, stream, peer);
                    }
                }
                let mut bytes = [0; 100];
                for (kind, socket) in &datagrams {
                    if let Ok((_, peer)) = socket.recv_from(&mut bytes) {
                        idle = false;
                        let own = socket.local_addr().unwrap();
                        let _ = socket.send_to(told(kind, dialled(own, peer), peer).as_bytes(), peer);
                    }
                }
                if idle {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// A datagram's socket does not know which of its addresses was dialled; where there is one alone, it is that.
fn dialled(own: SocketAddr, peer: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match peer.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) => super::super::hosts::SERVER,
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => super::super::hosts::SERVER6,
    };
    SocketAddr::new(ip, own.port())
}

fn told(kind: &str, to: SocketAddr, peer: SocketAddr) -> String {
    format!("{kind} {to} {}", peer.ip())
}

fn answer(kind: &'static str, mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let to = destination(&stream)?;
    stream.write_all(told(kind, to, peer).as_bytes())
}

/// Where a connection was going, as a proxy finds out.
fn destination(stream: &TcpStream) -> std::io::Result<SocketAddr> {
    let own = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let before = if own.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    Ok(before.ok().and_then(|a| a.as_socket()).unwrap_or(own))
}

fn addresses(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]
}

fn socket(address: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Sockets that listen on a port, one for each family.
pub fn listeners(port: u16, transparent: bool) -> Vec<TcpListener> {
    let one = |address: SocketAddr| {
        let socket = socket(address, Type::STREAM);
        socket.set_reuse_address(true).unwrap();
        if transparent && address.is_ipv4() {
            socket.set_ip_transparent_v4(true).unwrap();
        } else if transparent {
            socket.set_ip_transparent_v6(true).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.listen(64).unwrap();
        socket.into()
    };
    addresses(port).map(one).into()
}

fn loopbacks(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)]
}

fn sockets(addresses: [SocketAddr; 2]) -> Vec<UdpSocket> {
    let one = |address: SocketAddr| {
        let socket = socket(address, Type::DGRAM);
        socket.bind(&address.into()).unwrap();
        socket.into()
    };
    addresses.map(one).into()
}
