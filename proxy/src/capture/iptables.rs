//! The rules for `iptables-restore`, in chains with Istio's names, and the way from what is installed to what is to be.
//!
//! The program replaces a table in one step, but knows no table of ours: the kernel's own chains are shared with others. So
//! what is ours is read back first ([`Installed`]): chains whose names begin with `ISTIO_`, and jumps to them. Whatever the
//! flags were that made them, and whether it was us or istio-iptables, the same step takes them away and puts ours there.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::rule::{Action, Chain, Family, Hook, Match, Rule, Ruleset, Table};

/// What the names of chains begin with.
const PREFIX: &str = "ISTIO_";

const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

/// Chains and rules of one family as `iptables-save` writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed(BTreeMap<String, Ours>);

/// What is ours in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ours {
    chains: Vec<String>,
    /// Rules of the kernel's chains, without their `-A`.
    jumps: Vec<String>,
    /// Rules of the chains, without their `-A`.
    rules: Vec<String>,
}

impl Installed {
    /// What is ours of what `iptables-save` printed.
    pub(super) fn read(saved: &str) -> Self {
        let mut found: BTreeMap<String, Ours> = BTreeMap::new();
        let mut table = String::new();
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
                continue;
            }
            let chain = line.strip_prefix(':').and_then(|rest| rest.split_whitespace().next());
            if let Some(chain) = chain.filter(|chain| chain.starts_with(PREFIX)) {
                found.entry(table.clone()).or_default().chains.push(chain.to_owned());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let target = rule.split_whitespace().skip_while(|word| *word != "-j" && *word != "-g").nth(1);
                if rule.starts_with(PREFIX) {
                    found.entry(table.clone()).or_default().rules.push(rule.to_owned());
                } else if target.is_some_and(|chain| chain.starts_with(PREFIX)) {
                    found.entry(table.clone()).or_default().jumps.push(rule.to_owned());
                }
            }
        }
        Self(found)
    }

    /// These rules, for one family.
    ///
    /// # Errors
    ///
    /// The word for what iptables is not told here.
    pub(super) fn of(rules: &Ruleset, family: Family) -> Result<Self, &'static str> {
        let mut tables = BTreeMap::new();
        for table in TABLES {
            let mut ours = Ours::default();
            for chain in Chain::ALL.into_iter().filter(|c| c.table() == table && rules.has(*c)) {
                ours.chains.push(name(chain).to_owned());
                for rule in rules.of(chain).filter(|rule| rule.family.is_none_or(|f| f == family)) {
                    ours.rules.push(write_rule(name(chain), rule)?);
                }
            }
            for (_, hook, rule) in rules.jumps.iter().filter(|(of, _, _)| *of == table) {
                let place = match hook {
                    Hook::Prerouting => "PREROUTING",
                    Hook::Output => "OUTPUT",
                };
                ours.jumps.push(write_rule(place, rule)?);
            }
            if !ours.chains.is_empty() {
                tables.insert(table_name(table).to_owned(), ours);
            }
        }
        Ok(Self(tables))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `iptables-restore --noflush` is to be told so that these become `next`; each table is one transaction.
    pub(super) fn become_(&self, next: &Self) -> String {
        let mut text = String::new();
        let none = Ours::default();
        let tables: std::collections::BTreeSet<_> = self.0.keys().chain(next.0.keys()).collect();
        for table in tables {
            let old = self.0.get(table).unwrap_or(&none);
            let new = next.0.get(table).unwrap_or(&none);
            let _ = writeln!(text, "*{table}");
            // Declaring a chain empties it.
            let gone: Vec<_> = old.chains.iter().filter(|chain| !new.chains.contains(chain)).collect();
            for chain in new.chains.iter().chain(gone.iter().copied()) {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for jump in &old.jumps {
                let _ = writeln!(text, "-D {jump}");
            }
            for rule in new.rules.iter().chain(&new.jumps) {
                let _ = writeln!(text, "-A {rule}");
            }
            for chain in gone {
                let _ = writeln!(text, "-X {chain}");
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Raw => "raw",
        Table::Mangle => "mangle",
        Table::Nat => "nat",
    }
}

/// Istio's names.
fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Inbound | Chain::RawInbound | Chain::MangleInbound => "ISTIO_INBOUND",
        Chain::InRedirect => "ISTIO_IN_REDIRECT",
        Chain::Output | Chain::MangleOutput => "ISTIO_OUTPUT",
        Chain::Redirect => "ISTIO_REDIRECT",
        Chain::OutputDns | Chain::RawOutputDns => "ISTIO_OUTPUT_DNS",
        Chain::Divert => "ISTIO_DIVERT",
        Chain::Tproxy => "ISTIO_TPROXY",
        Chain::Drop => "ISTIO_DROP",
    }
}

fn write_rule(chain: &str, rule: &Rule) -> Result<String, &'static str> {
    let mut text = chain.to_owned();
    for m in &rule.matches {
        text.push(' ');
        text.push_str(&matching(m)?);
    }
    let _ = write!(text, " -j {}", action(rule.action)?);
    Ok(text)
}

fn matching(m: &Match) -> Result<String, &'static str> {
    Ok(match m {
        Match::In(name) => format!("-i {name}"),
        Match::Out(name) => format!("-o {name}"),
        Match::Tcp => "-p tcp".to_owned(),
        Match::Udp => "-p udp".to_owned(),
        Match::Dport(port) => format!("--dport {port}"),
        Match::NotDports(ports) => match ports.as_slice() {
            [port] => format!("! --dport {port}"),
            _ => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                format!("-m multiport ! --dports {}", ports.join(","))
            }
        },
        Match::Sport(port) => format!("--sport {port}"),
        Match::Source(net) => format!("-s {net}"),
        Match::Destination(net) => format!("-d {net}"),
        Match::NotDestination(net) => format!("! -d {net}"),
        Match::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        Match::NotUid(uid) => format!("-m owner ! --uid-owner {uid}"),
        Match::Gid(gid) => format!("-m owner --gid-owner {gid}"),
        Match::NotGid(gid) => format!("-m owner ! --gid-owner {gid}"),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
        Match::Mark(_)
        | Match::NotMark(_)
        | Match::ConnectionMark(_)
        | Match::Established
        | Match::Transparent => return Err("TPROXY"),
    })
}

fn action(action: Action) -> Result<String, &'static str> {
    Ok(match action {
        Action::Return => "RETURN".to_owned(),
        Action::Jump(chain) => name(chain).to_owned(),
        Action::Accept => "ACCEPT".to_owned(),
        Action::Drop => "DROP".to_owned(),
        Action::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        // The target lets a packet that has a zone keep it, so the first rule that matches decides.
        Action::Zone(zone) => format!("CT --zone {zone}"),
        Action::Tproxy(..) | Action::SetMark(_) | Action::SaveMark | Action::RestoreMark => {
            return Err("TPROXY");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISTIOS: &str = "# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [1:60]
:KUBE-X - [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -i eth1 -j RETURN
-A OUTPUT -j ISTIO_OUTPUT
-A OUTPUT -j KUBE-X
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -j ACCEPT
COMMIT
";

    /// Istio's order (tools/istio-iptables): who reads these rules has its documentation beside them.
    #[test]
    fn the_rules_for_what_goes_out_stand_in_istios_order() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            init: super::super::InitArgs,
        }
        let flags = "init -i 10.0.0.0/8 -x 10.1.0.0/16,fd00::/8 -q 443 -o 22 -b * -d 15021 --redirect-dns --capture-all-dns";
        let args = Cli::try_parse_from(flags.split(' ')).unwrap().init;
        let settings = super::super::settings::Settings::new(&args).unwrap();
        let rules = super::super::plan::plan(&settings);
        let v4 = Installed::of(&rules, Family::V4).unwrap();
        let of = |chain: &str| -> Vec<String> {
            let start = format!("{chain} ");
            v4.0["nat"].rules.iter().filter_map(|rule| rule.strip_prefix(&start)).map(str::to_owned).collect()
        };
        let proxys = |who: &str| {
            [
                format!(
                    "-o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --{who}-owner 1337 -j ISTIO_IN_REDIRECT"
                ),
                format!("-o lo -p tcp ! --dport 53 -m owner ! --{who}-owner 1337 -j RETURN"),
                format!("-m owner --{who}-owner 1337 -j RETURN"),
            ]
        };
        let words = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>();
        let before =
            ["-p tcp --dport 22 -j RETURN", "-p udp --dport 22 -j RETURN", "-o lo -s 127.0.0.6/32 -j RETURN"];
        let after = [
            "-j ISTIO_OUTPUT_DNS",
            "-d 127.0.0.1/32 -j RETURN",
            "-d 10.1.0.0/16 -j RETURN",
            "-p tcp --dport 443 -j ISTIO_REDIRECT",
            "-d 10.0.0.0/8 -j ISTIO_REDIRECT",
        ];
        assert_eq!(
            of("ISTIO_OUTPUT"),
            [words(&before), proxys("uid").into(), proxys("gid").into(), words(&after)].concat()
        );
        assert_eq!(
            of("ISTIO_INBOUND"),
            [
                "-p tcp --dport 15008 -j RETURN",
                "-p tcp --dport 15021 -j RETURN",
                "-p tcp -j ISTIO_IN_REDIRECT"
            ]
        );
        assert_eq!(of("ISTIO_REDIRECT"), ["-p tcp -j REDIRECT --to-ports 15001"]);
        assert_eq!(of("ISTIO_IN_REDIRECT"), ["-p tcp -j REDIRECT --to-ports 15006"]);
        let v6 = &Installed::of(&rules, Family::V6).unwrap().0["nat"].rules;
        for rule in ["-o lo -s ::6/128 -j RETURN", "-d ::1/128 -j RETURN", "-d fd00::/8 -j RETURN"] {
            assert!(v6.contains(&format!("ISTIO_OUTPUT {rule}")), "{rule} in {v6:#?}");
        }
        assert!(!v6.iter().any(|rule| rule.contains("10.0.0.0/8") || rule.contains("127.0.0")), "{v6:#?}");
    }

    #[test]
    fn only_what_is_ours_is_read() {
        let installed = Installed::read(ISTIOS);
        let nat = &installed.0["nat"];
        assert_eq!(installed.0.len(), 1);
        assert_eq!(nat.chains, ["ISTIO_INBOUND", "ISTIO_OUTPUT"]);
        assert_eq!(nat.jumps, ["PREROUTING -p tcp -j ISTIO_INBOUND", "OUTPUT -j ISTIO_OUTPUT"]);
        assert_eq!(nat.rules, ["ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN"]);
    }

    #[test]
    fn what_goes_is_emptied_before_it_is_deleted_and_nothing_else_is_touched() {
        let text = Installed::read(ISTIOS).become_(&Installed::default());
        let expected = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_OUTPUT - [0:0]\n-D PREROUTING -p tcp -j ISTIO_INBOUND\n\
                        -D OUTPUT -j ISTIO_OUTPUT\n-X ISTIO_INBOUND\n-X ISTIO_OUTPUT\nCOMMIT\n";
        assert_eq!(text, expected);
        assert_eq!(Installed::default().become_(&Installed::default()), "");
    }

    #[test]
    fn a_chain_that_stays_is_neither_deleted_nor_jumped_to_twice() {
        let installed = Installed::read(ISTIOS);
        let text = installed.become_(&installed);
        for jump in ["PREROUTING -p tcp -j ISTIO_INBOUND", "OUTPUT -j ISTIO_OUTPUT"] {
            assert_eq!(text.matches(&format!("-D {jump}\n")).count(), 1, "{text}");
            assert_eq!(text.matches(&format!("-A {jump}\n")).count(), 1, "{text}");
        }
        assert!(!text.contains("-X"), "{text}");
    }
}
