//! The rules in the language of `nft`: one table of ours, replaced in one transaction.

use std::fmt::Write;

use super::rule::{Action, Chain, Family, Hook, Match, Rule, Ruleset, Table};

/// Our table. What is not in it is not ours.
pub(super) const TABLE: &str = "inet weft";

/// A transaction that puts these rules in the place of whatever our table held.
pub(super) fn install(rules: &Ruleset) -> String {
    let mut text = remove();
    let _ = writeln!(text, "table {TABLE} {{");
    // A chain that is jumped to must be there before.
    for chain in called_first(rules) {
        let _ = writeln!(text, "  chain {} {{", name(chain));
        rules.of(chain).for_each(|rule| write_rule(&mut text, rule));
        text.push_str("  }\n");
    }
    for (table, hook) in PLACES {
        let jumps: Vec<_> = rules.jumps.iter().filter(|(t, h, _)| (*t, *h) == (table, hook)).collect();
        if jumps.is_empty() {
            continue;
        }
        let (chain, definition) = place(table, hook);
        let _ = writeln!(text, "  chain {chain} {{\n    {definition}; policy accept;");
        jumps.iter().for_each(|(_, _, rule)| write_rule(&mut text, rule));
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

/// A transaction that removes our table, whether it is there or not.
pub(super) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// The chains that are used, those that are called before those that call.
fn called_first(rules: &Ruleset) -> Vec<Chain> {
    let calls = |chain: Chain| rules.of(chain).any(|rule| matches!(rule.action, Action::Jump(_)));
    let (callers, called): (Vec<_>, Vec<_>) =
        Chain::ALL.into_iter().filter(|chain| rules.has(*chain)).partition(|chain| calls(*chain));
    [called, callers].concat()
}

const PLACES: [(Table, Hook); 6] = [
    (Table::Raw, Hook::Prerouting),
    (Table::Raw, Hook::Output),
    (Table::Mangle, Hook::Prerouting),
    (Table::Mangle, Hook::Output),
    (Table::Nat, Hook::Prerouting),
    (Table::Nat, Hook::Output),
];

/// The chain in the kernel's place, and what makes it one.
fn place(table: Table, hook: Hook) -> (&'static str, &'static str) {
    match (table, hook) {
        (Table::Raw, Hook::Prerouting) => ("raw_prerouting", "type filter hook prerouting priority -300"),
        (Table::Raw, Hook::Output) => ("raw_output", "type filter hook output priority -300"),
        (Table::Mangle, Hook::Prerouting) => {
            ("mangle_prerouting", "type filter hook prerouting priority -150")
        }
        // A packet whose mark changes here is routed again.
        (Table::Mangle, Hook::Output) => ("mangle_output", "type route hook output priority -150"),
        (Table::Nat, Hook::Prerouting) => ("nat_prerouting", "type nat hook prerouting priority -100"),
        (Table::Nat, Hook::Output) => ("nat_output", "type nat hook output priority -100"),
    }
}

/// A chain's name: it must not be a word of the language.
fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Inbound => "inbound",
        Chain::InRedirect => "to_inbound_port",
        Chain::Output => "outbound",
        Chain::Redirect => "to_outbound_port",
        Chain::OutputDns => "dns",
        Chain::RawOutputDns => "dns_zones_out",
        Chain::RawInbound => "dns_zones_in",
        Chain::MangleInbound => "tproxy_inbound",
        Chain::MangleOutput => "tproxy_outbound",
        Chain::Divert => "to_transparent_socket",
        Chain::Tproxy => "to_transparent_port",
        Chain::Drop => "drop_invalid",
    }
}

fn write_rule(text: &mut String, rule: &Rule) {
    let mut words = Vec::new();
    // An address says its family itself.
    let says = |m: &Match| matches!(m, Match::Source(_) | Match::Destination(_) | Match::NotDestination(_));
    if let Some(family) = rule.family
        && !rule.matches.iter().any(says)
    {
        words.push(format!("meta nfproto {}", nfproto(family)));
    }
    words.extend(rule.matches.iter().map(matching));
    words.push(action(rule.action, rule.family));
    let _ = writeln!(text, "    {}", words.join(" "));
}

fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn matching(m: &Match) -> String {
    let ip = |net: &ipnet::IpNet| if net.addr().is_ipv4() { "ip" } else { "ip6" };
    match m {
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(name) => format!("oifname \"{name}\""),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        Match::Udp => "meta l4proto udp".to_owned(),
        Match::Dport(port) => format!("th dport {port}"),
        Match::NotDports(ports) => {
            format!("th dport != {{ {} }}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "))
        }
        Match::Sport(port) => format!("th sport {port}"),
        Match::Source(net) => format!("{} saddr {net}", ip(net)),
        Match::Destination(net) => format!("{} daddr {net}", ip(net)),
        Match::NotDestination(net) => format!("{} daddr != {net}", ip(net)),
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::NotUid(uid) => format!("meta skuid != {uid}"),
        Match::Gid(gid) => format!("meta skgid {gid}"),
        Match::NotGid(gid) => format!("meta skgid != {gid}"),
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::NotMark(mark) => format!("meta mark != {mark}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark}"),
        Match::Invalid => "ct state invalid".to_owned(),
        Match::Established => "ct state established,related".to_owned(),
        Match::Transparent => "socket transparent 1".to_owned(),
    }
}

fn action(action: Action, family: Option<Family>) -> String {
    match action {
        Action::Return => "return".to_owned(),
        Action::Jump(chain) => format!("jump {}", name(chain)),
        Action::Accept => "accept".to_owned(),
        Action::Drop => "drop".to_owned(),
        Action::Redirect(port) => format!("redirect to :{port}"),
        Action::Tproxy(port, mark) => {
            let ip = if family == Some(Family::V6) { "ip6" } else { "ip" };
            format!("tproxy {ip} to :{port} meta mark set {mark} accept")
        }
        Action::Zone(zone) => format!("ct zone set {zone} return"),
        Action::SetMark(mark) => format!("meta mark set {mark}"),
        Action::SaveMark => "ct mark set meta mark".to_owned(),
        Action::RestoreMark => "meta mark set ct mark".to_owned(),
    }
}
