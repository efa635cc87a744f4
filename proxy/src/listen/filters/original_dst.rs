//! The destination that a connection had before a rule of the system's firewall redirected it here.

use std::net::SocketAddr;

use socket2::SockRef;

use super::Accepted;

/// Restores the destination of a connection that came by REDIRECT or DNAT (the connection tracker knows it) or by TPROXY (it
/// is the socket's own address). One that came directly keeps what it has.
pub(super) fn restore(connection: &mut Accepted) {
    if let Some(address) = destination(connection) {
        connection.local = address;
        connection.restored = true;
    }
}

fn destination(connection: &Accepted) -> Option<SocketAddr> {
    let socket = SockRef::from(connection.io.tcp_stream()?);
    let v4 = connection.local.is_ipv4();
    let tracked = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    if let Some(address) = tracked.ok().and_then(|a| a.as_socket()) {
        return Some(address);
    }
    let transparent = if v4 { socket.ip_transparent_v4() } else { socket.ip_transparent_v6() };
    transparent.unwrap_or_default().then_some(connection.local)
}
