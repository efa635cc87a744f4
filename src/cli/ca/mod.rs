//! `weft ca`: the certificate authority of a control plane, by its state directory. Where a control plane runs on it, the
//! commands ask that one, over the socket that is in the directory; otherwise they work on the files.

mod client;
mod offline;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use weft_control::ca::rotation::Phase;
use weft_control::ca::status::{Shown, Status};
use weft_control::ca::store::Lock;
use weft_control::ca::{CertificateAuthority, Limits, State, backup};

use super::token::Output;
use client::Plane;

/// Looks at and changes the certificate authority of a control plane
#[derive(Subcommand, Debug)]
pub enum CaCommand {
    /// Shows the authority: roots, intermediate, what is under way, how far the proxies are
    Status(Common),
    /// Writes the authority's whole state, keys included, into one file that only its owner can read
    Backup(FileArgs),
    /// Puts a backup's state into a state directory on which no control plane runs
    Restore(RestoreArgs),
    /// Makes another intermediate, which signs from now on
    RotateIntermediate(Common),
    /// Writes the root and its key into one file, and takes the key from the control plane: the file belongs offline
    TakeRootOffline(FileArgs),
    /// Makes the key of another intermediate, and writes the request for its certificate, for a root whose key is offline
    RequestIntermediate(FileArgs),
    /// Signs such a request, where the root's key is; needs no control plane
    SignIntermediate(offline::SignArgs),
    /// Brings what was signed: another intermediate, which signs from now on
    TakeIntermediate(FileArgs),
    /// Replaces the root without an outage, and shows how far that is; run it again to go on watching
    RotateRoot(RotateArgs),
    /// Revokes a certificate by its serial number; every proxy refuses it from then on
    Revoke(RevokeArgs),
}

/// Which authority, and how to answer.
#[derive(Args, Debug)]
pub struct Common {
    /// The control plane's state directory, which holds the authority
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A file to be written or read.
#[derive(Args, Debug)]
pub struct FileArgs {
    /// The file; one that is written must not be there yet
    file: PathBuf,
    /// Which authority
    #[command(flatten)]
    common: Common,
}

/// A backup to be read.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The backup's file
    file: PathBuf,
    /// Overwrite an authority that is in the directory already
    #[arg(long)]
    replace: bool,
    /// Where to
    #[command(flatten)]
    common: Common,
}

/// Replacing the root.
#[derive(Args, Debug)]
pub struct RotateArgs {
    /// Which authority
    #[command(flatten)]
    common: Common,
    /// Begin it or say how far it is, and do not wait: the control plane goes on by itself
    #[arg(long, conflicts_with = "abort")]
    no_wait: bool,
    /// Give it up; possible while the old root still issues
    #[arg(long)]
    abort: bool,
}

/// What to revoke.
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// The serial number, hexadecimal, as a proxy's /certs and the audit log have it
    serial: String,
    /// Which authority
    #[command(flatten)]
    common: Common,
}

pub(super) fn main(command: CaCommand) -> anyhow::Result<()> {
    match command {
        CaCommand::Status(common) => {
            let status = match at(&common.state_dir)? {
                At::Running(plane) => plane.status()?,
                At::Files(_lock) => Status::of(&State::load(&common.state_dir)?),
            };
            print(&common, &json!(status), &text(&status));
        }
        CaCommand::Backup(args) => {
            let summary = backup::backup(&args.common.state_dir, &args.file, OffsetDateTime::now_utc())?;
            let words = format!(
                "{}: the authority with root {}; whoever has this file is the authority",
                summary.file.display(),
                &summary.root_sha256[..16]
            );
            print(&args.common, &json!(summary), &words);
        }
        CaCommand::Restore(args) => {
            let summary = backup::restore(&args.common.state_dir, &args.file, args.replace)?;
            let words = format!(
                "{}: restored the authority with root {}",
                args.common.state_dir.display(),
                &summary.root_sha256[..16]
            );
            print(&args.common, &json!(summary), &words);
        }
        CaCommand::RotateIntermediate(common) => {
            let answer = match at(&common.state_dir)? {
                At::Running(plane) => plane.post("/ca/rotate-intermediate")?,
                At::Files(_lock) => {
                    let signs = files(&common.state_dir)?.rotate_intermediate(OffsetDateTime::now_utc())?;
                    json!({"signs": signs})
                }
            };
            print(&common, &answer, signs(&answer));
        }
        CaCommand::TakeRootOffline(args) => offline::take_root(&args)?,
        CaCommand::RequestIntermediate(args) => offline::request(&args)?,
        CaCommand::SignIntermediate(args) => offline::sign(&args)?,
        CaCommand::TakeIntermediate(args) => offline::take(&args)?,
        CaCommand::RotateRoot(args) => rotate_root(&args)?,
        CaCommand::Revoke(args) => {
            let answer = match at(&args.common.state_dir)? {
                At::Running(plane) => plane.post(&format!("/ca/revoke?serial={}", args.serial))?,
                At::Files(_lock) => {
                    let new =
                        files(&args.common.state_dir)?.revoke(&args.serial, OffsetDateTime::now_utc())?;
                    json!({"serial": args.serial, "new": new})
                }
            };
            let words = match answer["new"].as_bool() {
                Some(true) => {
                    "revoked; its workload can still ask for another one, if its token is not withdrawn, too"
                }
                _ => "it was revoked already",
            };
            print(&args.common, &answer, words);
        }
    }
    Ok(())
}

/// Whether another intermediate signs, in words.
fn signs(answer: &Value) -> &'static str {
    match answer["signs"].as_bool() {
        Some(true) => "a new intermediate signs",
        _ => "a new intermediate is there; it signs as soon as every proxy has its revocation list",
    }
}

/// Where an authority is to be had.
enum At {
    /// A control plane works with it.
    Running(Plane),
    /// Nobody does; we hold its lock.
    Files(Lock),
}

fn at(directory: &Path) -> anyhow::Result<At> {
    if !directory.join(weft_control::ca::store::ROOT_CERTIFICATE).exists() {
        bail!(
            "{} holds no certificate authority; is it the directory that the control plane has as its --state-dir?",
            directory.display()
        );
    }
    if let Some(lock) = Lock::take(directory)? {
        return Ok(At::Files(lock));
    }
    Plane::connect(directory).map(At::Running).with_context(|| {
        format!(
            "{}: a control plane or another command works on it, and does not answer",
            directory.display()
        )
    })
}

/// The authority of files on which nobody works.
fn files(directory: &Path) -> anyhow::Result<std::sync::Arc<CertificateAuthority>> {
    let state = State::load(directory)?;
    // The trust domain plays no part in what can be done without a control plane.
    let domain = "cluster.local".parse()?;
    Ok(CertificateAuthority::new(state, Limits::default(), domain, Some(directory.to_owned()))?)
}

fn rotate_root(args: &RotateArgs) -> anyhow::Result<()> {
    let At::Running(plane) = at(&args.common.state_dir)? else {
        bail!(
            "no control plane runs on {}: only one that does can know when every proxy trusts the new root",
            args.common.state_dir.display()
        );
    };
    if args.abort {
        let answer = plane.post("/ca/rotate-root/abort")?;
        print(&args.common, &answer, "given up; the old root stays");
        return Ok(());
    }
    let before = plane.status()?.root_rotations;
    let answer = plane.post("/ca/rotate-root")?;
    let began = answer["began"].as_bool() == Some(true);
    progress::watch(&plane, before, began, args.no_wait, args.common.output)
}

fn print(common: &Common, value: &Value, words: &str) {
    match common.output {
        Output::Text => println!("{words}"),
        Output::Json => println!("{value}"),
    }
}

/// The status for people.
fn text(status: &Status) -> String {
    let mut lines = vec![format!("signer          {}", status.signer)];
    if let Some(domain) = &status.trust_domain {
        lines.push(format!("trust domain    {domain}"));
    }
    let certificate = |what: &str, c: &Shown| {
        format!("{what:15} {}, {}, until {}, sha256 {}", c.subject, c.key, c.not_after, &c.sha256[..16])
    };
    for (i, root) in status.roots.iter().enumerate() {
        lines.push(certificate(if i == 0 { "root" } else { "root, too" }, root));
    }
    if status.root_key_offline {
        lines.push(
            "root's key      offline; another intermediate needs it (weft ca request-intermediate)"
                .to_owned(),
        );
    }
    lines.extend(status.intermediate.as_ref().map(|c| certificate("intermediate", c)));
    if status.intermediate_requested {
        lines.push("requested       another intermediate, whose certificate has not come yet".to_owned());
    }
    if status.retired_intermediates > 0 {
        lines.push(format!(
            "retired         {} intermediates, whose leaves are alive",
            status.retired_intermediates
        ));
    }
    if status.intermediate_waits {
        lines
            .push("waits           a new intermediate, until every proxy has its revocation list".to_owned());
    }
    lines.extend(status.leaves_until.as_ref().map(|t| format!("leaves          alive until {t}")));
    for revoked in &status.revoked {
        lines.push(format!("revoked         {}", revoked.serial));
    }
    if let Some(proxies) = status.proxies {
        lines.push(format!(
            "proxies         {} follow the bundle, {} are behind, {} learn of it with their certificates",
            proxies.acknowledged, proxies.behind, proxies.by_certificate
        ));
    }
    lines.push(match &status.rotation {
        None => format!("root rotation   none under way, {} done", status.root_rotations),
        Some(r) => format!(
            "root rotation   step {} of 3: {}; since {}{}",
            step(r.phase),
            r.phase.words(),
            r.since,
            r.waiting.as_ref().map_or(String::new(), |w| format!("; {w}"))
        ),
    });
    lines.join("\n")
}

/// A phase's place, from 1.
fn step(phase: Phase) -> usize {
    Phase::ALL.iter().position(|p| *p == phase).unwrap_or_default() + 1
}
