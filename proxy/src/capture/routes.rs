//! What the rules need beside them: an address to pass inbound connections on from, and, with TPROXY, the policy routing that
//! brings marked packets to this host's sockets. By netlink, so that no program is needed; the commands of `ip` that would
//! do the same are there to be printed.

use std::io;

use anyhow::Context;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::plan::{MARK, PASSTHROUGH_V6};
use super::rule::Family;

/// The routing table for marked packets.
const TABLE: u8 = 133;
/// The rule's place among the rules: before the main table. Without one the kernel takes the same rule again and again.
const PRIORITY: u32 = 32_000;

/// One thing that the kernel is told beside the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The address `::6` on the loopback. (Of IPv4 the loopback has all of 127.0.0.0/8.)
    PassthroughAddress,
    /// Everything in the table is for this host.
    Local(Family),
    /// What is marked asks that table.
    Marked(Family),
}

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

impl Route {
    /// What TPROXY needs, in the order in which it is made: nothing is sent to a table that has no route yet.
    pub(super) fn of_tproxy(ipv6: bool) -> Vec<Self> {
        let families = if ipv6 { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
        families.iter().flat_map(|family| [Self::Local(*family), Self::Marked(*family)]).collect()
    }

    /// The command that does the same.
    pub(super) fn command(self, change: Change) -> String {
        let word = if change == Change::Add { "add" } else { "del" };
        let flag = |family| if family == Family::V4 { "-4" } else { "-6" };
        match self {
            Self::PassthroughAddress => format!("ip -6 addr {word} {PASSTHROUGH_V6}/128 dev lo"),
            Self::Local(family) => {
                format!("ip {} route {word} local default dev lo table {TABLE}", flag(family))
            }
            Self::Marked(family) => {
                format!("ip {} rule {word} fwmark {MARK} lookup {TABLE} pref {PRIORITY}", flag(family))
            }
        }
    }

    /// Does it; says whether anything was changed by that.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn apply(self, change: Change) -> anyhow::Result<bool> {
        match self.ask(change) {
            // There may be more of them: others make it without a place, and so more than once.
            Ok(()) if change == Change::Remove && matches!(self, Self::Marked(_)) => self.apply(change).map(|_| true),
            Ok(()) => Ok(true),
            Err(error) if done_already(&error, change) => Ok(false),
            Err(error) => Err(error).with_context(|| {
                let command = self.command(change);
                format!("the kernel refuses what `{command}` asks of it; does it have policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)?")
            }),
        }
    }

    fn ask(self, change: Change) -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex("lo")?;
        let message = match (self, change) {
            (Self::PassthroughAddress, Change::Add) => RouteNetlinkMessage::NewAddress(address(index)),
            (Self::PassthroughAddress, Change::Remove) => RouteNetlinkMessage::DelAddress(address(index)),
            (Self::Local(family), Change::Add) => RouteNetlinkMessage::NewRoute(local(family, index)),
            (Self::Local(family), Change::Remove) => RouteNetlinkMessage::DelRoute(local(family, index)),
            (Self::Marked(family), Change::Add) => {
                let mut rule = marked(family);
                rule.attributes.push(RuleAttribute::Priority(PRIORITY));
                RouteNetlinkMessage::NewRule(rule)
            }
            (Self::Marked(family), Change::Remove) => RouteNetlinkMessage::DelRule(marked(family)),
        };
        let flags = match change {
            Change::Add => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            Change::Remove => NLM_F_REQUEST | NLM_F_ACK,
        };
        send(message, flags)
    }
}

/// Whether an error means that things are as they should be.
fn done_already(error: &io::Error, change: Change) -> bool {
    match change {
        Change::Add => error.raw_os_error() == Some(libc::EEXIST),
        // No such route, rule, address; no such table.
        Change::Remove => [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT]
            .iter()
            .any(|known| error.raw_os_error() == Some(*known)),
    }
}

fn send(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        // An acknowledgement is an error without a code.
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel answered with something else than an acknowledgement")),
    }
}

fn family_of(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn address(index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader { family: AddressFamily::Inet6, prefix_len: 128, index, ..message.header };
    message.attributes = vec![AddressAttribute::Local(PASSTHROUGH_V6.into())];
    message
}

fn local(family: Family, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family_of(family),
        table: TABLE,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..message.header
    };
    message.attributes = vec![RouteAttribute::Oif(index)];
    message
}

fn marked(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header =
        RuleHeader { family: family_of(family), table: TABLE, action: RuleAction::ToTable, ..message.header };
    message.attributes = vec![RuleAttribute::FwMark(MARK)];
    message
}
