//! Looks, before anything starts, whether every address can be had; says who has it if not. Proxies share their ports
//! between workers (SO_REUSEPORT), so a second mesh on the same addresses would otherwise get half of the connections.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::bail;

use super::plan::Workload;

/// Where a proxy answers for its application: probes, and metrics of both (Istio's number).
pub(super) fn agent(workload: &Workload) -> SocketAddr {
    SocketAddr::new(workload.address, 15020)
}

/// Fails for the first address that cannot be bound. `what` says whose it is.
pub(super) fn check(addresses: impl IntoIterator<Item = (SocketAddr, String)>) -> anyhow::Result<()> {
    for (address, what) in addresses {
        let Err(error) = TcpListener::bind(address) else { continue };
        match error.kind() {
            ErrorKind::AddrInUse => bail!(
                "{address}, needed for {what}, is in use by {}; end it, or run this mesh on other addresses (--loopback N)",
                holder(address).unwrap_or_else(|| "another process (sudo ss -ltnp shows which)".to_owned())
            ),
            ErrorKind::AddrNotAvailable => bail!(
                "{}, needed for {what}, is not an address of this machine; on Linux all of 127.0.0.0/8 is there once the \
                 loopback interface is up (ip link set lo up)",
                address.ip()
            ),
            ErrorKind::PermissionDenied => bail!(
                "{address}, needed for {what}, may not be bound by this user; give the workload a port of 1024 or more"
            ),
            _ => bail!("{address}, needed for {what}, cannot be bound: {error}"),
        }
    }
    Ok(())
}

/// Whether the address belongs to this machine.
pub(super) fn is_local(address: IpAddr) -> bool {
    address.is_loopback()
        || !TcpListener::bind((address, 0)).is_err_and(|e| e.kind() == ErrorKind::AddrNotAvailable)
}

/// The process that listens on an address, as far as /proc lets this user see: `NAME (pid N)`.
fn holder(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    // Addresses stand there in the machine's byte order.
    let wanted = [u32::from_ne_bytes(ip.octets()), 0].map(|ip| format!("{ip:08X}:{:04X}", address.port()));
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let listens =
            fields.get(3) == Some(&"0A") && wanted.iter().any(|w| fields.get(1) == Some(&w.as_str()));
        listens.then(|| fields.get(9).map(|i| (*i).to_owned()))?
    })?;
    let link = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut files = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|f| std::fs::read_link(f.path()).is_ok_and(|l| l.as_os_str() == link.as_str()))?;
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("{} (pid {pid})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_with_the_name_of_who_has_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = check([(address, "the admin interface of a-1".to_owned())]).unwrap_err().to_string();
        let pid = format!("(pid {})", std::process::id());
        assert!(
            error.contains(&pid) && error.contains("a-1") && error.contains(&address.to_string()),
            "{error}"
        );
        drop(taken);
        assert!(check([(address, String::new())]).is_ok());
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let error = check([("192.0.2.1:80".parse().unwrap(), "x".to_owned())]).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1") && error.contains("not an address of this machine"), "{error}");
        assert!(!is_local("192.0.2.1".parse().unwrap()));
        assert!(is_local("127.77.1.1".parse().unwrap()));
    }
}
