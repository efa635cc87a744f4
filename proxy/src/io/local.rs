//! This machine's own address.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

/// The first IPv4 address of this machine that is not a loopback's, by which others may know it; the loopback's if there is no
/// other. Looked up once, as Envoy does.
pub fn own_address() -> IpAddr {
    static OWN: OnceLock<IpAddr> = OnceLock::new();
    *OWN.get_or_init(|| {
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let mut addresses = interfaces.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()));
        addresses.find(|a| !a.is_loopback()).unwrap_or(Ipv4Addr::LOCALHOST).into()
    })
}
