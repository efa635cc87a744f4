//! How operators write addresses, and the names of hosts.

use std::net::{IpAddr, SocketAddr};

use super::super::{FormatError, LogContext};
use super::{number, text};
use crate::codec::digits;

/// How an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Part {
    Whole,
    Ip,
    Port,
    /// The network of so many bits that it is in.
    Network(u8),
}

impl Part {
    /// Without the port, and without what is behind so many bits where arguments say so.
    pub(super) fn without_port(name: &str, arguments: Option<&str>) -> Result<Self, FormatError> {
        let Some(bits) = arguments.filter(|a| !a.is_empty()) else { return Ok(Self::Ip) };
        match bits.parse() {
            Ok(bits) if bits <= 128 => Ok(Self::Network(bits)),
            _ => Err(FormatError::Arguments(name.to_owned(), xds_protos::format::BITS)),
        }
    }
}

pub(super) fn address(out: &mut Vec<u8>, value: Option<SocketAddr>, part: Part) -> bool {
    let Some(address) = value else { return false };
    match part {
        Part::Whole => digits::socket(out, address),
        Part::Ip => digits::ip(out, address.ip()),
        Part::Port => digits::number(out, address.port()),
        // An IPv4 address has no more than 32 bits.
        Part::Network(bits) => match network(address.ip(), bits) {
            Some(network) => {
                digits::ip(out, network);
                out.push(b'/');
                digits::number(out, bits);
            }
            None => return false,
        },
    }
    true
}

fn network(address: IpAddr, bits: u8) -> Option<IpAddr> {
    ipnet::IpNet::new(address, bits).ok().map(|network| network.network())
}

/// How the upstream's hosts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum HostAs {
    Address,
    AddressWithoutPort,
    /// The host's name, or its address where it has none.
    Name,
    NameWithoutPort,
    /// The number of the connection to it.
    Connection,
}

/// One host.
pub(super) fn host(
    out: &mut Vec<u8>,
    context: &LogContext<'_>,
    host: Option<SocketAddr>,
    how: HostAs,
) -> bool {
    let Some(address) = host else { return false };
    let named = || context.configured?.host_name(address);
    match how {
        HostAs::Address | HostAs::Connection => digits::socket(out, address),
        HostAs::AddressWithoutPort => digits::ip(out, address.ip()),
        HostAs::Name => match named() {
            Some(name) => out.extend_from_slice(name.as_bytes()),
            None => digits::socket(out, address),
        },
        HostAs::NameWithoutPort => match named() {
            Some(name) => out.extend_from_slice(without_port(&name).as_bytes()),
            None => digits::ip(out, address.ip()),
        },
    }
    true
}

fn without_port(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => name,
    }
}

/// Every host that was tried, in the order of the tries; of connections those that were there.
pub(super) fn attempted(out: &mut Vec<u8>, context: &LogContext<'_>, how: HostAs) -> bool {
    let (stream, start) = (context.stream, out.len());
    let trail = &stream.trail;
    let before = trail.tries.iter().map(|one| (one.host, one.connection));
    // The last try is listed if it failed.
    let listed = trail.tries.len() as u64 >= u64::from(stream.attempts);
    let last = trail.line.as_deref().filter(|_| !listed).map(|line| (stream.upstream_host, Some(line.id)));
    for (address, connection) in before.chain(last) {
        let end = out.len();
        if end > start {
            out.push(b',');
        }
        let told = match how {
            HostAs::Connection => connection.is_some_and(|id| number(out, id)),
            how => host(out, context, address, how),
        };
        if !told {
            out.truncate(end);
        }
    }
    out.len() > start
}

/// The cluster's name in statistics, which is the one that Envoy tells; its own where there is no other.
pub(super) fn cluster(out: &mut Vec<u8>, context: &LogContext<'_>) -> bool {
    let own = context.stream.cluster.as_deref();
    let told = own.and_then(|_| context.configured?.stat_name());
    text(out, told.as_deref().or(own))
}
