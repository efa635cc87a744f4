//! Any number of hosts on one wire, as the pods of a cluster are; and others behind it, who are no part of it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::hosts::{Host, run, sweep};

/// The switch's own address in the cluster, where the control plane is.
pub const SWITCH: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 1));

/// The wire. It forwards between the cluster (10.88.0.0/16) and the world (10.99.0.0/24).
pub struct Switch {
    /// What the wire is in; everything that goes over it can be captured here.
    pub host: Host,
    ports: AtomicUsize,
}

impl Switch {
    /// Nobody on it yet.
    pub fn new() -> Self {
        sweep();
        let host = Host::new("sw");
        // An address of its own: else it takes that of one of its ports, another one when a port comes, and whoever has
        // learned the former one sends into the void.
        host.ip("link add wire address 02:00:00:00:00:01 type bridge");
        host.ip("addr add 10.88.0.1/16 dev wire");
        host.ip("addr add 10.99.0.1/24 dev wire");
        host.ip("link set wire up");
        host.sysctl("net/ipv4/ip_forward", "1");
        Self { host, ports: AtomicUsize::new(0) }
    }

    /// A new host with this address; the last part of its device's name on the switch is its number on it, from 0.
    pub fn attach(&self, name: &str, address: &str) -> Host {
        let host = Host::new(name);
        let port = format!("port{}", self.ports.fetch_add(1, Relaxed));
        let (near, far) = (self.host.name(), host.name());
        run("ip", &format!("link add name {port} netns {near} type veth peer name eth0 netns {far}"));
        self.host.ip(&format!("link set {port} master wire"));
        self.host.ip(&format!("link set {port} up"));
        let (length, router) = match address.starts_with("10.88.") {
            true => (16, "10.88.0.1"),
            false => (24, "10.99.0.1"),
        };
        host.ip(&format!("addr add {address}/{length} dev eth0"));
        host.ip("link set eth0 up");
        host.ip(&format!("route add default via {router}"));
        host
    }
}
