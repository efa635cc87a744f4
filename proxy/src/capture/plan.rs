//! From what is to be captured to rules: which packets, in which order. The order is Istio's, because operators read these
//! rules with Istio's documentation beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::rule::Match::{
    ConnectionMark, Destination, Dport, Established, Gid, In, Invalid, Mark, NotDestination, NotDports,
    NotGid, NotMark, NotUid, Out, Source, Sport, Tcp, Transparent, Udp, Uid,
};
use super::rule::{Action, Chain, Family, Hook, Match, Ruleset};
use super::settings::{Mode, Settings, Which};

/// Inbound connections of Istio's tunnels (HBONE) know the way themselves.
const TUNNEL_PORT: u16 = 15008;
/// The proxy's port for DNS.
const DNS_PORT: u16 = 15053;
/// The mark of what is to be routed to this host whatever its address says: what TPROXY took, and what the proxy sends with
/// its client's address (`original_src`).
pub(super) const MARK: u32 = 1337;
/// With TPROXY, the mark of what the proxy sends to its own pod for its inbound side.
const OUTBOUND_MARK: u32 = 1338;
/// Zone of connection tracking of what the proxy asks DNS servers.
const SERVERS_ZONE: u16 = 1;
/// Zone of what applications ask, and of what the proxy answers them.
const CLIENTS_ZONE: u16 = 2;

/// Both families, with the loopback's address and the one from which the proxy passes inbound connections on to
/// applications.
const FAMILIES: [(Family, IpAddr, IpAddr); 2] = [
    (Family::V4, IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
    (Family::V6, IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(PASSTHROUGH_V6)),
];

/// The IPv6 address from which the proxy passes inbound connections on; it has to be made.
pub(super) const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

fn lo_out() -> Match {
    Out("lo".to_owned())
}

fn lo_in() -> Match {
    In("lo".to_owned())
}

/// The rules for these settings.
pub(super) fn plan(settings: &Settings) -> Ruleset {
    let mut rules = Ruleset::default();
    drop_invalid(settings, &mut rules);
    if let Some(servers) = &settings.dns {
        zones(settings, servers, &mut rules);
    }
    if tproxy(settings) {
        tproxy_inbound(settings, &mut rules);
        tproxy_outbound(settings, &mut rules);
    }
    inbound(settings, &mut rules);
    outbound(settings, &mut rules);
    rules
}

/// Whether something is captured by TPROXY, which needs routes as well.
pub(super) fn tproxy(settings: &Settings) -> bool {
    settings.mode == Mode::Tproxy && !settings.inbound.is_none()
}

/// Nothing on these interfaces.
fn except(settings: &Settings, chain: Chain, on: fn(String) -> Match, rules: &mut Ruleset) {
    for name in &settings.interfaces_exclude {
        rules.rule(chain, &[on(name.clone())], Action::Return);
    }
}

fn drop_invalid(settings: &Settings, rules: &mut Ruleset) {
    if settings.drop_invalid {
        rules.jump(Hook::Prerouting, &[Invalid], Chain::Drop);
        except(settings, Chain::Drop, In, rules);
        rules.rule(Chain::Drop, &[], Action::Drop);
    }
}

/// Ports of inbound connections that are not captured; they count where all others are.
fn excluded(settings: &Settings) -> &[u16] {
    if settings.inbound == Which::All { &settings.inbound_exclude } else { &[] }
}

/// What asks for the ports of inbound connections that are captured.
fn included(settings: &Settings) -> Vec<Vec<Match>> {
    match &settings.inbound {
        Which::All => vec![vec![Tcp]],
        Which::These(ports) => ports.iter().map(|port| vec![Tcp, Dport(*port)]).collect(),
    }
}

/// Inbound connections by REDIRECT, and those of virtual machines, which are outbound.
fn inbound(settings: &Settings, rules: &mut Ruleset) {
    let captured = settings.mode == Mode::Redirect && !settings.inbound.is_none();
    if !captured && settings.virtual_interfaces.is_empty() {
        return;
    }
    let chain = Chain::Inbound;
    rules.jump(Hook::Prerouting, &[Tcp], chain);
    for name in &settings.virtual_interfaces {
        for (family, to) in networks(settings) {
            let matches = std::iter::once(In(name.clone())).chain(to.map(Destination)).collect::<Vec<_>>();
            rules.rule_for(family, chain, &matches, Action::Jump(Chain::Redirect));
        }
        rules.rule(chain, &[In(name.clone())], Action::Return);
    }
    if !captured {
        return;
    }
    except(settings, chain, In, rules);
    for port in std::iter::once(&TUNNEL_PORT).chain(excluded(settings)) {
        rules.rule(chain, &[Tcp, Dport(*port)], Action::Return);
    }
    for matches in included(settings) {
        rules.rule(chain, &matches, Action::Jump(Chain::InRedirect));
    }
}

/// Networks to which connections are captured, with their families; one without a network is everything.
fn networks(settings: &Settings) -> Vec<(Option<Family>, Option<IpNet>)> {
    match &settings.networks {
        Which::All => vec![(None, None)],
        Which::These(list) => list.iter().map(|net| (Some(Family::of(net.addr())), Some(*net))).collect(),
    }
}

/// Outbound connections: first what must not be captured, then what is to be.
fn outbound(settings: &Settings, rules: &mut Ruleset) {
    let chain = Chain::Output;
    rules.rule(Chain::Redirect, &[Tcp], Action::Redirect(settings.outbound_port));
    if settings.mode == Mode::Redirect {
        rules.rule(Chain::InRedirect, &[Tcp], Action::Redirect(settings.inbound_port));
    }
    rules.jump(Hook::Output, &[], chain);
    except(settings, chain, Out, rules);
    for port in &settings.outbound_ports_exclude {
        for protocol in [Tcp, Udp] {
            rules.rule(chain, &[protocol, Dport(*port)], Action::Return);
        }
    }
    // What the inbound side passes on has found its way.
    for (family, _, passthrough) in FAMILIES {
        rules.rule_for(Some(family), chain, &[lo_out(), Source(passthrough.into())], Action::Return);
    }
    let uid = (Uid(settings.uid), NotUid(settings.uid));
    let gid = (Gid(settings.gid), NotGid(settings.gid));
    for (owner, others) in [uid, gid] {
        of_proxy(settings, &owner, &others, rules);
    }
    if let Some(servers) = &settings.dns {
        dns(servers, rules);
    }
    // Who says localhost means this container's neighbours, and no service.
    for (family, loopback, _) in FAMILIES {
        rules.rule_for(Some(family), chain, &[Destination(loopback.into())], Action::Return);
    }
    for net in &settings.networks_exclude {
        rules.rule_for(Some(Family::of(net.addr())), chain, &[Destination(*net)], Action::Return);
    }
    for port in &settings.outbound_ports {
        rules.rule(chain, &[Tcp, Dport(*port)], Action::Jump(Chain::Redirect));
    }
    for (family, to) in networks(settings) {
        let matches: Vec<_> = to.map(Destination).into_iter().collect();
        rules.rule_for(family, chain, &matches, Action::Jump(Chain::Redirect));
    }
}

/// What the proxy itself sends, told by the user or the group that it runs as.
fn of_proxy(settings: &Settings, owner: &Match, others: &Match, rules: &mut Ruleset) {
    let chain = Chain::Output;
    let dns = settings.dns.is_some();
    // The outbound side has chosen this pod itself, as an endpoint of its own service: the inbound side is next. DNS over the
    // loopback goes to the server; with TPROXY the inbound side takes it from its mark, and with NONE there is no such side.
    if settings.mode == Mode::Redirect {
        let ports = if dns { vec![53, TUNNEL_PORT] } else { vec![TUNNEL_PORT] };
        for (family, loopback, _) in FAMILIES {
            let matches =
                [lo_out(), NotDestination(loopback.into()), Tcp, NotDports(ports.clone()), owner.clone()];
            rules.rule_for(Some(family), chain, &matches, Action::Jump(Chain::InRedirect));
        }
    }
    // An application that dials its own pod's address means itself.
    if !settings.captures_loopback() {
        let tcp = if dns { vec![Tcp, NotDports(vec![53])] } else { vec![] };
        let matches = [vec![lo_out()], tcp, vec![others.clone()]].concat();
        rules.rule(chain, &matches, Action::Return);
    }
    rules.rule(chain, std::slice::from_ref(owner), Action::Return);
}

/// The servers' addresses; one without an address is every server.
fn servers_of(servers: &Which<IpAddr>) -> Vec<(Option<Family>, Option<IpAddr>)> {
    match servers {
        Which::All => vec![(None, None)],
        Which::These(list) => list.iter().map(|ip| (Some(Family::of(*ip)), Some(*ip))).collect(),
    }
}

/// DNS of applications, to the proxy's port for it.
fn dns(servers: &Which<IpAddr>, rules: &mut Ruleset) {
    rules.rule(Chain::Output, &[], Action::Jump(Chain::OutputDns));
    for protocol in [Tcp, Udp] {
        for (family, server) in servers_of(servers) {
            let to = server.map(|ip| Destination(ip.into()));
            let matches: Vec<_> = [protocol.clone(), Dport(53)].into_iter().chain(to).collect();
            rules.rule_for(family, Chain::OutputDns, &matches, Action::Redirect(DNS_PORT));
        }
    }
}

/// What the proxy asks a server and what an application asks the same server are tracked apart: an application that happens
/// to ask from the port that the proxy asks from must not get the proxy's answer.
fn zones(settings: &Settings, servers: &Which<IpAddr>, rules: &mut Ruleset) {
    let (out, back) = (Chain::RawOutputDns, Chain::RawInbound);
    rules.jump(Hook::Output, &[Udp], out);
    rules.jump(Hook::Prerouting, &[Udp], back);
    for owner in [Uid(settings.uid), Gid(settings.gid)] {
        rules.rule(out, &[Udp, Dport(53), owner.clone()], Action::Zone(SERVERS_ZONE));
        rules.rule(out, &[Udp, Sport(DNS_PORT), owner], Action::Zone(CLIENTS_ZONE));
    }
    for (family, server) in servers_of(servers) {
        let with = |port, address: Option<Match>| [Udp, port].into_iter().chain(address).collect::<Vec<_>>();
        let to = with(Dport(53), server.map(|ip| Destination(ip.into())));
        rules.rule_for(family, out, &to, Action::Zone(CLIENTS_ZONE));
        let from = with(Sport(53), server.map(|ip| Source(ip.into())));
        rules.rule_for(family, back, &from, Action::Zone(SERVERS_ZONE));
    }
}

/// Inbound connections whose addresses stay as they are.
fn tproxy_inbound(settings: &Settings, rules: &mut Ruleset) {
    let chain = Chain::MangleInbound;
    rules.jump(Hook::Prerouting, &[Tcp], chain);
    except(settings, chain, In, rules);
    for name in &settings.virtual_interfaces {
        rules.rule(chain, &[In(name.clone())], Action::Return);
    }
    // What the proxy sends to the application with its client's address: the answer has to come back here.
    rules.rule(chain, &[Tcp, Mark(MARK)], Action::SaveMark);
    rules.rule(chain, &[Tcp, Mark(MARK)], Action::Return);
    for (family, _, passthrough) in FAMILIES {
        rules.rule_for(Some(family), chain, &[Tcp, lo_in(), Source(passthrough.into())], Action::Return);
    }
    // Over the loopback, nothing but what the outbound side sends to its own pod.
    rules.rule(chain, &[Tcp, lo_in(), NotMark(OUTBOUND_MARK)], Action::Return);
    for port in std::iter::once(&TUNNEL_PORT).chain(excluded(settings)) {
        rules.rule(chain, &[Tcp, Dport(*port)], Action::Return);
    }
    for matches in included(settings) {
        let with = |more| matches.iter().cloned().chain(more).collect::<Vec<_>>();
        rules.rule(chain, &with(Some(Transparent)), Action::Jump(Chain::Divert));
        // Answers to what went out uncaptured.
        rules.rule(chain, &with(Some(Established)), Action::Return);
        rules.rule(chain, &with(None), Action::Jump(Chain::Tproxy));
    }
    rules.rule(Chain::Divert, &[], Action::SetMark(MARK));
    rules.rule(Chain::Divert, &[], Action::Accept);
    for (family, loopback, _) in FAMILIES {
        let matches = [Tcp, NotDestination(loopback.into())];
        let action = Action::Tproxy(settings.inbound_port, MARK);
        rules.rule_for(Some(family), Chain::Tproxy, &matches, action);
        // While no proxy listens, nobody reaches the application past it.
        rules.rule_for(Some(family), Chain::Tproxy, &matches, Action::Drop);
    }
}

/// Marks of what goes out, where inbound connections come by TPROXY.
fn tproxy_outbound(settings: &Settings, rules: &mut Ruleset) {
    let chain = Chain::MangleOutput;
    rules.jump(Hook::Output, &[Tcp], chain);
    except(settings, chain, Out, rules);
    rules.rule(chain, &[Tcp, lo_out(), Mark(MARK)], Action::Return);
    for owner in [Uid(settings.uid), Gid(settings.gid)] {
        for (family, loopback, _) in FAMILIES {
            let matches = [Tcp, lo_out(), NotDestination(loopback.into()), owner.clone()];
            rules.rule_for(Some(family), chain, &matches, Action::SetMark(OUTBOUND_MARK));
        }
    }
    // The application's answer to a client whose address the proxy has borrowed.
    rules.rule(chain, &[Tcp, ConnectionMark(MARK)], Action::RestoreMark);
}
