//! Hosts as network namespaces: a client, a gateway with a proxy on it, a server, one veth pair between neighbours.
//!
//! ```text
//! client 10.77.0.1 ---- 10.77.0.2 gateway 10.78.0.2 ---- 10.78.0.3 server      (and fd77::/64, fd78::/64 alike)
//! ```

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::programs::peer;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// Where `ip netns exec` looks for files that a host has of its own.
const ETC: &str = "/etc/netns";
/// What the names of ours begin with; the process's number follows.
const PREFIX: &str = "weft-test-";

/// The client's address.
pub const CLIENT: IpAddr = ip4(77, 1);
/// The client's second address.
pub const CLIENT_TOO: IpAddr = ip4(77, 11);
/// The gateway's address towards the server.
pub const GATEWAY: IpAddr = ip4(78, 2);
/// The gateway's second address towards the server.
pub const GATEWAY_TOO: IpAddr = ip4(78, 22);
/// The server's address.
pub const SERVER: IpAddr = ip4(78, 3);
/// The client's address of IPv6.
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
/// The server's address of IPv6.
pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 3));

const fn ip4(net: u8, host: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, net, 0, host))
}

/// Runs a command; a failure is the test's, with what the command said and what it usually lacks.
pub fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run tests/peers/install"));
    assert!(
        output.status.success(),
        "{command:?}: {}(these tests make network namespaces: they need root, CAP_NET_ADMIN and CAP_SYS_ADMIN, and a \
         kernel with nf_tables, NAT and TPROXY)",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// One host. Its namespace, and everything in it, goes when this is dropped.
pub struct Host(String);

impl Host {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{PREFIX}{}-{}-{name}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        run("ip", &format!("netns add {name}"));
        let host = Self(name);
        // Addresses are ours alone, and need no time to be sure of it.
        for which in ["all", "default"] {
            host.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0");
            host.sysctl(&format!("net/ipv6/conf/{which}/dad_transmits"), "0");
        }
        host.ip("link set lo up");
        host
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// What programs started on this host find at `/etc/FILE`.
    pub fn etc(&self, file: &str, text: &str) {
        let directory = Path::new(ETC).join(&self.0);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
    }

    /// `ip ARGUMENTS` on this host.
    pub fn ip(&self, arguments: &str) {
        run("ip", &format!("-n {} {arguments}", self.0));
    }

    /// Sets a kernel parameter.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.inside(|| std::fs::write(Path::new("/proc/sys").join(path), value).unwrap());
    }

    /// Sends a signal to everything that runs on this host.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let output = Command::new("ip").args(["netns", "pids", &self.0]).output().unwrap();
        let pids = String::from_utf8_lossy(&output.stdout).into_owned();
        let pids: Vec<_> =
            pids.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)).collect();
        assert!(!pids.is_empty(), "nothing runs on {}", self.0);
        for pid in pids {
            // One that has ended meanwhile needs none.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Loads rules of the firewall.
    pub fn nft(&self, rules: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A statement ends with its line.
        std::fs::write(file.path(), rules.replace(" }", "\n}") + "\n").unwrap();
        let nft = peer("WEFT_NFT");
        run("ip", &format!("netns exec {} {} -f {}", self.0, nft.display(), file.path().display()));
    }

    /// Serves each connection to a port of this host in a thread of its own, until what is given back is dropped.
    pub fn serve<R>(
        &self,
        at: impl Into<IpAddr> + Send,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr) -> R + Send + Sync + 'static,
    ) -> Serving {
        let listener = self.inside(|| TcpListener::bind((at.into(), port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let serve = serve.clone();
                        std::thread::spawn(move || {
                            stream.set_nonblocking(false).unwrap();
                            drop(serve(stream, peer));
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Serving(stop)
    }

    /// A command that is to run on this host.
    pub fn command(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &self.0]).arg(command.get_program()).args(command.get_args());
        wrapped
    }

    /// Does something on this host, in a thread of its own: sockets that it makes are this host's.
    pub fn inside<R: Send>(&self, act: impl FnOnce() -> R + Send) -> R {
        inside(&self.0, act)
    }
}

/// Does something on the host of a name, as [`Host::inside`] does.
pub fn inside<R: Send>(name: &str, act: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let namespace = File::open(Path::new(NAMES).join(name)).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|e| panic!("entering a network namespace (needs CAP_SYS_ADMIN): {e}"));
            act()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A port that is served until this is dropped.
pub struct Serving(Arc<AtomicBool>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        forget(&self.0);
    }
}

fn forget(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).output();
    let _ = std::fs::remove_dir_all(Path::new(ETC).join(name));
}

/// The three hosts.
pub struct Net {
    /// Sends everything by way of the gateway.
    pub client: Host,
    /// Forwards, unless a rule or a proxy takes it.
    pub gateway: Host,
    /// Answers by way of the gateway.
    pub server: Host,
}

impl Net {
    /// The hosts, connected.
    pub fn new() -> Self {
        sweep();
        let net = Self { client: Host::new("c"), gateway: Host::new("g"), server: Host::new("s") };
        for (host, device, subnet) in [(&net.client, "lan", 77), (&net.server, "wan", 78)] {
            let (near, far) = (&net.gateway.0, &host.0);
            run("ip", &format!("link add name {device} netns {near} type veth peer name eth0 netns {far}"));
            let number = if subnet == 77 { 1 } else { 3 };
            net.gateway.ip(&format!("addr add 10.{subnet}.0.2/24 dev {device}"));
            net.gateway.ip(&format!("addr add fd{subnet}::2/64 dev {device} nodad"));
            host.ip(&format!("addr add 10.{subnet}.0.{number}/24 dev eth0"));
            host.ip(&format!("addr add fd{subnet}::{number}/64 dev eth0 nodad"));
            net.gateway.ip(&format!("link set {device} up"));
            host.ip("link set eth0 up");
            host.ip(&format!("route add default via 10.{subnet}.0.2"));
            host.ip(&format!("-6 route add default via fd{subnet}::2"));
        }
        net.client.ip("addr add 10.77.0.11/24 dev eth0");
        net.gateway.ip("addr add 10.78.0.22/24 dev wan");
        net.gateway.sysctl("net/ipv4/ip_forward", "1");
        net.gateway.sysctl("net/ipv6/conf/all/forwarding", "1");
        net
    }
}

/// Takes away what a test that was killed left behind.
pub(super) fn sweep() {
    for entry in std::fs::read_dir(NAMES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            forget(&name);
        }
    }
}
