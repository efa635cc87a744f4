//! What a rule of the redirection says, in no firewall's language: [`nft`](super::nft) and [`iptables`](super::iptables)
//! write it down, so that both say the same.

use std::net::IpAddr;

use ipnet::IpNet;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A place at which the kernel asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Packets that came by an interface, the loopback included, before they are routed.
    Prerouting,
    /// Packets that a process here sends.
    Output,
}

/// What a place is asked for; the order is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Before connections are tracked.
    Raw,
    /// Marks, by which packets are routed.
    Mangle,
    /// New destinations for new connections.
    Nat,
}

/// The chains, each a list of rules. All rules of ours stand in these; the kernel's own places get nothing but jumps to
/// them, by which they are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// What comes in.
    Inbound,
    /// To the proxy's port for inbound connections.
    InRedirect,
    /// What goes out.
    Output,
    /// To the proxy's port for outbound connections.
    Redirect,
    /// To the proxy's port for DNS.
    OutputDns,
    /// Zones of connection tracking for DNS packets that go out, and that come in.
    RawOutputDns,
    RawInbound,
    /// What comes in, where destinations stay as they are (TPROXY).
    MangleInbound,
    /// Marks, with TPROXY, of what goes out.
    MangleOutput,
    /// Packets of connections that the proxy's transparent sockets have.
    Divert,
    /// To the proxy's transparent socket.
    Tproxy,
    /// Packets that belong to no connection.
    Drop,
}

impl Chain {
    pub(super) const ALL: [Self; 12] = [
        Self::RawOutputDns,
        Self::RawInbound,
        Self::Drop,
        Self::Divert,
        Self::Tproxy,
        Self::MangleInbound,
        Self::MangleOutput,
        Self::Inbound,
        Self::InRedirect,
        Self::Output,
        Self::Redirect,
        Self::OutputDns,
    ];

    pub(super) fn table(self) -> Table {
        match self {
            Self::Inbound | Self::InRedirect | Self::Output | Self::Redirect | Self::OutputDns => Table::Nat,
            Self::RawOutputDns | Self::RawInbound => Table::Raw,
            _ => Table::Mangle,
        }
    }
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    In(String),
    Out(String),
    Tcp,
    Udp,
    /// Destination port.
    Dport(u16),
    NotDports(Vec<u16>),
    /// Source port.
    Sport(u16),
    Source(IpNet),
    Destination(IpNet),
    NotDestination(IpNet),
    /// The user that the sending process's socket belongs to.
    Uid(u32),
    NotUid(u32),
    Gid(u32),
    NotGid(u32),
    Mark(u32),
    NotMark(u32),
    /// The mark that the connection keeps.
    ConnectionMark(u32),
    /// Of no connection, or outside its window.
    Invalid,
    /// Of a connection that both sides know of, or about one.
    Established,
    /// A transparent socket has this connection.
    Transparent,
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Back to where this chain was called; in the kernel's own place: nothing.
    Return,
    Jump(Chain),
    Accept,
    Drop,
    /// To this port of this host.
    Redirect(u16),
    /// To this port's transparent socket, with this mark.
    Tproxy(u16, u32),
    /// Tracked in this zone; a packet that has one keeps it.
    Zone(u16),
    SetMark(u32),
    /// The packet's mark becomes the connection's.
    SaveMark,
    /// The connection's mark becomes the packet's.
    RestoreMark,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The one family that it is for.
    pub(super) family: Option<Family>,
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
}

/// The rules of a redirection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// Jumps from the kernel's places, in order.
    pub(super) jumps: Vec<(Table, Hook, Rule)>,
    /// The chains' rules, each chain's in order.
    pub(super) rules: Vec<(Chain, Rule)>,
}

impl Ruleset {
    /// One more jump.
    pub(super) fn jump(&mut self, hook: Hook, matches: &[Match], chain: Chain) {
        let rule = Rule { family: None, matches: matches.to_vec(), action: Action::Jump(chain) };
        self.jumps.push((chain.table(), hook, rule));
    }

    /// One more rule at a chain's end, for both families.
    pub(super) fn rule(&mut self, chain: Chain, matches: &[Match], action: Action) {
        self.rule_for(None, chain, matches, action);
    }

    /// One more rule at a chain's end, for one family.
    pub(super) fn rule_for(
        &mut self,
        family: Option<Family>,
        chain: Chain,
        matches: &[Match],
        action: Action,
    ) {
        self.rules.push((chain, Rule { family, matches: matches.to_vec(), action }));
    }

    /// A chain's rules.
    pub(super) fn of(&self, chain: Chain) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |(of, _)| *of == chain).map(|(_, rule)| rule)
    }

    /// Whether a chain is called or has rules.
    pub(super) fn has(&self, chain: Chain) -> bool {
        let calls = |rule: &Rule| rule.action == Action::Jump(chain);
        self.of(chain).next().is_some()
            || self.jumps.iter().any(|(_, _, rule)| calls(rule))
            || self.rules.iter().any(|(_, rule)| calls(rule))
    }
}
