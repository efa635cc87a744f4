//! `weft init`: what the kernel does with connections after it, whatever the rules look like.
//!
//! The pod is the host `client`; behind a gateway stands a server. On the pod there are listeners in the places of the proxy's
//! ports, which say what comes to them and where it was going, and an application. Who dials is a user and a group on one of
//! the hosts.

mod cases;
mod errors;
mod hosts;
mod moments;
mod state;
mod tproxy;

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use self::hosts::{Listeners, Owner, as_owner};
use super::hosts::{Host, Net};
use crate::programs::weft;

/// No answer in this time is none.
const SILENCE: Duration = Duration::from_secs(3);

/// The backends, by the flag that chooses them.
const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];

/// Where a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// At what was dialled, outside of the pod.
    Direct,
    /// At what was dialled, the application in the pod.
    App,
    /// At the proxy's port for inbound connections.
    In,
    /// At the proxy's port for outbound connections.
    Out,
    /// At the proxy's port for DNS.
    Dns,
    /// Nobody answered.
    None,
}

/// One who dials something.
#[derive(Clone, Debug)]
struct Probe {
    who: String,
    udp: bool,
    to: SocketAddr,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.who, if self.udp { "udp" } else { "tcp" }, self.to)
    }
}

/// The three hosts with everything that listens.
struct World {
    net: Net,
    _listeners: Vec<Listeners>,
}

impl World {
    /// With a transparent socket for inbound connections, if that is how they come.
    fn new(transparent: bool) -> Self {
        let net = Net::new();
        // What only a virtual machine behind the pod would dial.
        net.gateway.ip("route add 10.99.0.0/24 via 10.77.0.1");
        net.gateway.ip("-6 route add fd99::/64 via fd77::1");
        let proxy = |transparent| Listeners::of_proxy(&net.client, transparent);
        let listeners = vec![
            proxy(transparent),
            Listeners::start(&net.client, "app", &[80, 81, 15008, 15020, 15021], &[9053]),
            Listeners::start(&net.server, "direct", &[53, 80, 81, 443], &[53, 54]),
            Listeners::start(&net.gateway, "direct", &[80], &[]),
        ];
        Self { net, _listeners: listeners }
    }

    fn pod(&self) -> &Host {
        &self.net.client
    }

    /// Runs `weft init` on the pod.
    fn init(&self, flags: &[&str]) -> Result<String, String> {
        init_on(self.pod(), flags)
    }

    fn probe(&self, probe: &Probe) -> Outcome {
        let mut words = probe.who.split('@');
        let name = words.next().unwrap();
        let (host, owner) = match name {
            "app" => (&self.net.client, Owner::new(1000, 1000)),
            "root" => (&self.net.client, Owner::new(0, 0)),
            "proxy" => (&self.net.client, Owner::new(1337, 1337)),
            "proxy-uid" => (&self.net.client, Owner::new(1337, 1000)),
            "proxy-gid" => (&self.net.client, Owner::new(0, 1337)),
            "other" => (&self.net.client, Owner::new(4321, 8765)),
            "other-gid" => (&self.net.client, Owner::new(1000, 8765)),
            "server" => (&self.net.server, Owner::new(0, 0)),
            "gateway" => (&self.net.gateway, Owner::new(0, 0)),
            _ => panic!("nobody is called {name}"),
        };
        let from: IpAddr = words.next().map_or(any(probe.to), |ip| ip.parse().unwrap());
        let said =
            as_owner(
                host,
                owner,
                || if probe.udp { ask_udp(from, probe.to) } else { ask_tcp(from, probe.to) },
            );
        let words: Vec<_> = said.split(' ').collect();
        let [kind, to, peer] = words[..] else { return Outcome::None };
        let outcome = match kind {
            "direct" => Outcome::Direct,
            "app" => Outcome::App,
            "in" => Outcome::In,
            "out" => Outcome::Out,
            "dns" => Outcome::Dns,
            _ => panic!("{probe}: {said}"),
        };
        // Whoever is captured must find out where it was going; for datagrams there is no asking.
        if !(probe.udp && outcome == Outcome::Dns) {
            assert_eq!(to, probe.to.to_string(), "{probe}: {said}");
        }
        if name == "server" {
            let own: [IpAddr; 2] = [super::hosts::SERVER, super::hosts::SERVER6];
            assert!(own.iter().any(|ip| ip.to_string() == peer), "{probe}: {said}");
        }
        outcome
    }
}

/// Runs `weft init` on a host: what it printed, or what it complained of.
pub fn init_on(host: &Host, flags: &[&str]) -> Result<String, String> {
    let mut command = weft();
    command.arg("init").args(flags);
    outcome(host.command(&command))
}

fn outcome(mut command: Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn ask_tcp(from: IpAddr, to: SocketAddr) -> String {
    let mut text = String::new();
    let _ = (|| -> std::io::Result<()> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&to.into(), SILENCE)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SILENCE))?;
        stream.read_to_string(&mut text).map(drop)
    })();
    text
}

/// Asks three times from one port: all answers must be alike, and come from where they were asked for.
fn ask_udp(from: IpAddr, to: SocketAddr) -> String {
    let ask = || -> std::io::Result<String> {
        let socket = UdpSocket::bind((from, 0))?;
        // An answer from elsewhere does not reach a connected socket.
        socket.connect(to)?;
        socket.set_read_timeout(Some(SILENCE))?;
        let mut answers = Vec::new();
        for _ in 0..3 {
            socket.send(b"?")?;
            let mut bytes = [0; 200];
            let count = socket.recv(&mut bytes)?;
            answers.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
        answers.dedup();
        Ok(answers.join("; "))
    };
    ask().unwrap_or_default()
}
