//! The firewalls that can be told, and what each of them has of ours.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use super::args::BackendArg;
use super::iptables::Installed;
use super::program::{find, run};
use super::rule::{Family, Ruleset};
use super::{nft, steps::Step};

/// A form of iptables: its programs are called by these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// What the system has chosen.
    Plain,
    Nft,
    Legacy,
}

impl Form {
    const ALL: [Self; 3] = [Self::Plain, Self::Nft, Self::Legacy];

    /// The program's name: `verb` is `restore` or `save`.
    pub(super) fn program(self, family: Family, verb: &str) -> String {
        let six = if family == Family::V6 { "6" } else { "" };
        let form = match self {
            Self::Plain => "",
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        };
        format!("ip{six}tables{form}-{verb}")
    }

    fn find(self, family: Family, verb: &str) -> anyhow::Result<PathBuf> {
        let name = self.program(family, verb);
        find(&name).with_context(|| format!("there is no {name} in PATH or the directories for system programs; install iptables, or nftables instead"))
    }

    /// Whether it keeps its rules in nf_tables; before version 1.8 none did, and none said so.
    fn over_nf_tables(self) -> anyhow::Result<bool> {
        let version = run(&self.find(Family::V4, "save")?, &["--version"], "")?;
        Ok(version.contains("nf_tables"))
    }

    /// What is installed by it.
    fn installed(self, family: Family) -> anyhow::Result<Installed> {
        run(&self.find(family, "save")?, &[], "").map(|saved| Installed::read(&saved))
    }

    /// Brings it back to a state, if it is in another.
    fn put_back(self, family: Family, before: &Installed) -> anyhow::Result<()> {
        let now = self.installed(family)?;
        if now == *before { Ok(()) } else { self.transition(family, &now, before, false) }
    }

    /// Brings it from one state to another.
    fn transition(self, family: Family, from: &Installed, to: &Installed, test: bool) -> anyhow::Result<()> {
        let text = from.become_(to);
        if text.is_empty() {
            return Ok(());
        }
        let mut arguments = vec!["--noflush", "--wait=5"];
        arguments.extend(test.then_some("--test"));
        run(&self.find(family, "restore")?, &arguments, &text).map(drop)
    }
}

/// Which firewall is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Nft,
    Iptables(Form),
}

impl Backend {
    /// The one that was asked for, or the first that is there.
    ///
    /// # Errors
    ///
    /// None is there.
    pub(super) fn choose(arg: BackendArg) -> anyhow::Result<Self> {
        match arg {
            BackendArg::Nft => Ok(Self::Nft),
            BackendArg::Iptables => Ok(Self::Iptables(Form::Plain)),
            BackendArg::IptablesNft => Ok(Self::Iptables(Form::Nft)),
            BackendArg::IptablesLegacy => Ok(Self::Iptables(Form::Legacy)),
            BackendArg::Auto if find("nft").is_some() => Ok(Self::Nft),
            BackendArg::Auto => {
                let there = |form: &Form| find(&form.program(Family::V4, "restore")).is_some();
                let form = Form::ALL.into_iter().find(there);
                form.map(Self::Iptables).context(
                    "there is neither nft nor iptables-restore in PATH or the directories for system programs; install \
                     nftables (or iptables)",
                )
            }
        }
    }

    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables(Form::Plain) => "iptables",
            Self::Iptables(Form::Nft) => "iptables-nft",
            Self::Iptables(Form::Legacy) => "iptables-legacy",
        }
    }

    /// What it would be told where nothing is installed.
    ///
    /// # Errors
    ///
    /// It has no form of these rules.
    pub(super) fn steps(self, rules: &Ruleset, ipv6: bool) -> anyhow::Result<Vec<Step>> {
        let Self::Iptables(form) = self else {
            return Ok(vec![Step::run("nft", &["-f", "-"], nft::install(rules))]);
        };
        let families = families(ipv6).iter();
        families
            .map(|family| {
                let text = Installed::default().become_(&iptables_rules(rules, *family)?);
                Ok(Step::run(&form.program(*family, "restore"), &["--noflush"], text))
            })
            .collect()
    }

    /// Has the kernel look at the rules, and changes nothing.
    ///
    /// # Errors
    ///
    /// The program is not there, or the kernel would refuse.
    pub(super) fn check(self, rules: &Ruleset, ipv6: bool) -> anyhow::Result<()> {
        let Self::Iptables(form) = self else {
            return nft_program()
                .and_then(|nft| run(&nft, &["-c", "-f", "-"], &nft::install(rules)))
                .map(drop);
        };
        for family in families(ipv6) {
            let from = form.installed(*family)?;
            form.transition(*family, &from, &iptables_rules(rules, *family)?, true)?;
        }
        Ok(())
    }

    /// Puts the rules in the place of what it had of ours. If it cannot, what it had is there as before.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn install(self, rules: &Ruleset, ipv6: bool) -> anyhow::Result<()> {
        let Self::Iptables(form) = self else {
            return nft_program().and_then(|nft| run(&nft, &["-f", "-"], &nft::install(rules))).map(drop);
        };
        let before: Vec<_> = families(ipv6)
            .iter()
            .map(|family| form.installed(*family).map(|from| (*family, from)))
            .collect::<anyhow::Result<_>>()?;
        for (family, from) in &before {
            let outcome = form.transition(*family, from, &iptables_rules(rules, *family)?, false);
            if let Err(error) = outcome {
                for (family, from) in &before {
                    if let Err(also) = form.put_back(*family, from) {
                        bail!("{error:#}\nand what was installed before could not be put back: {also:#}");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes away what all the others have of ours. Gives what could not be done.
    pub(super) fn clean_others(self, ipv6: bool) -> Vec<anyhow::Error> {
        let keep = match self {
            Self::Nft => None,
            Self::Iptables(form) => match form.over_nf_tables() {
                Ok(nf_tables) => Some(nf_tables),
                Err(error) => return vec![error],
            },
        };
        let mut failed = Vec::new();
        if self != Self::Nft {
            failed.extend(clean_nft().err());
        }
        failed.extend(clean_iptables(keep, ipv6));
        failed
    }

    /// Takes away whatever is ours.
    ///
    /// # Errors
    ///
    /// There is no program to do it with, or something could not be taken away.
    pub(super) fn clean_all(ipv6: bool) -> anyhow::Result<()> {
        Self::choose(BackendArg::Auto)?;
        let failed: Vec<_> = clean_nft().err().into_iter().chain(clean_iptables(None, ipv6)).collect();
        ensure!(
            failed.is_empty(),
            "not everything could be taken away:\n{}",
            failed.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }
}

fn nft_program() -> anyhow::Result<PathBuf> {
    find("nft").context(
        "there is no nft in PATH or the directories for system programs; install nftables, or choose --backend iptables",
    )
}

fn families(ipv6: bool) -> &'static [Family] {
    if ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

fn iptables_rules(rules: &Ruleset, family: Family) -> anyhow::Result<Installed> {
    Installed::of(rules, family).map_err(|what| {
        anyhow::anyhow!(
            "{what} is installed by nftables only; use --backend nft (package nftables), or -m REDIRECT with iptables"
        )
    })
}

fn clean_nft() -> anyhow::Result<()> {
    match find("nft") {
        Some(nft) => run(&nft, &["-f", "-"], &nft::remove()).map(drop),
        None => Ok(()),
    }
}

/// Takes away what the forms of iptables have, except the one that keeps its rules where `keep` says.
fn clean_iptables(keep: Option<bool>, ipv6: bool) -> Vec<anyhow::Error> {
    let mut failed = Vec::new();
    for form in Form::ALL {
        if find(&form.program(Family::V4, "save")).is_none() {
            continue;
        }
        let outcome = form.over_nf_tables().and_then(|nf_tables| {
            if Some(nf_tables) == keep {
                return Ok(());
            }
            for family in families(ipv6) {
                let from = form.installed(*family)?;
                if !from.is_empty() {
                    form.transition(*family, &from, &Installed::default(), false)?;
                }
            }
            Ok(())
        });
        failed.extend(outcome.err());
    }
    failed
}
