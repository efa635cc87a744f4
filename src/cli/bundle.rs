//! `weft bundle`: configuration with a signature, for control planes that take no other (`--config-key`).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_control::ingest::bundle::{self, Files, SIGNATURE, SigningKey, Verified, VerifyingKey};
use weft_control::ingest::load_texts;

use super::token::Output;

/// Signs configuration, and checks signatures
#[derive(Subcommand, Debug)]
pub enum BundleCommand {
    /// Makes a key that signs (Ed25519, PEM; openssl genpkey -algorithm ed25519 makes the same), and beside it its public half
    Key(KeyArgs),
    /// Makes one file of a directory's configuration, with a signature: weft control --config-bundle takes it
    Create(CreateArgs),
    /// Signs a directory by a file in it (.weft-signature): weft control --config-dir takes it with --config-key
    Sign(SignArgs),
    /// Says whether a bundle, or a directory, is what was signed. Exit code 1: it is not
    Verify(VerifyArgs),
}

/// Makes a key
#[derive(Args, Debug)]
pub struct KeyArgs {
    /// The private key's file; the public one is beside it, as FILE.pub
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Makes a bundle
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The directory of YAML that describes the mesh
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The bundle
    #[arg(short = 'o', long, value_name = "FILE")]
    out: PathBuf,
    /// Which version it is, such as the commit; signed as well, and shown where it is taken
    #[arg(long, value_name = "TEXT", default_value = "")]
    revision: String,
}

/// Signs a directory
#[derive(Args, Debug)]
pub struct SignArgs {
    /// The directory of YAML that describes the mesh
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Which version it is, such as the commit; signed as well, and shown where it is taken
    #[arg(long, value_name = "TEXT", default_value = "")]
    revision: String,
}

/// Checks a signature
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A bundle, or a directory with its signature
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// A public key that counts; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Write the files into this directory, which must not be there yet; for weft analyze, weft plan, and whoever wants to look
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn main(command: &BundleCommand) -> anyhow::Result<()> {
    match command {
        BundleCommand::Key(args) => make_key(&args.file),
        BundleCommand::Create(args) => {
            let key = SigningKey::open(&args.key)?;
            let text = bundle::create(files(&args.dir)?, &args.revision, &now()?, &key)?;
            replace(&args.out, &text)?;
            println!("{} is signed by the key {}", args.out.display(), key.name());
            Ok(())
        }
        BundleCommand::Sign(args) => {
            let key = SigningKey::open(&args.key)?;
            let text = bundle::sign(files(&args.dir)?, &args.revision, &now()?, &key)?;
            replace(&args.dir.join(SIGNATURE), &text)?;
            println!("{} is signed by the key {}", args.dir.display(), key.name());
            Ok(())
        }
        BundleCommand::Verify(args) => verify(args),
    }
}

fn now() -> anyhow::Result<String> {
    Ok(OffsetDateTime::now_utc().replace_nanosecond(0)?.format(&Rfc3339)?)
}

/// What is signed is what a control plane would take.
fn files(dir: &Path) -> anyhow::Result<Files> {
    let files = bundle::files_of(dir)?;
    let label = |path: &String| dir.join(path).display().to_string();
    let texts: Vec<_> = files.iter().map(|(path, text)| (label(path), text.clone())).collect();
    let outcome = load_texts(&texts);
    if outcome.world.is_none() {
        for diagnostic in &outcome.diagnostics {
            eprintln!("{diagnostic}");
        }
        bail!("{}: the configuration is refused, and not signed", dir.display());
    }
    Ok(files)
}

fn make_key(file: &Path) -> anyhow::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".pub");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        bail!("{} is there already; choose another name", beside.display());
    }
    let (private, public) = SigningKey::generate()?;
    let out = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(file);
    let mut out =
        out.with_context(|| format!("{}: a key is not written over another file", file.display()))?;
    out.write_all(private.as_bytes())?;
    std::fs::write(&beside, public).with_context(|| beside.display().to_string())?;
    println!("{} signs, {} is for those who check", file.display(), beside.display());
    Ok(())
}

/// Whoever follows the file sees the old one or the new one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.file_name().context("the output needs a file's name")?.to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    written.with_context(|| path.display().to_string())
}

fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let keys = args.key.iter().map(|key| VerifyingKey::open(key)).collect::<Result<Vec<_>, _>>()?;
    let found = bundle::verify(&args.path, &keys).with_context(|| args.path.display().to_string())?;
    if let Some(directory) = &args.extract {
        extract(directory, &found)?;
    }
    match args.output {
        Output::Json => {
            let mut told = serde_json::to_value(&found)?;
            told["files"] = found.files.keys().cloned().collect::<Vec<_>>().into();
            println!("{told}");
        }
        Output::Text => {
            let Verified { revision, created, digest, key, files, .. } = &found;
            let revision = if revision.is_empty() { "no revision" } else { revision };
            println!("good: {revision}, made {created}, signed by the key {key}, {digest}");
            files.keys().for_each(|path| println!("  {path}"));
        }
    }
    Ok(())
}

/// The paths of what was verified stay below.
fn extract(directory: &Path, found: &Verified) -> anyhow::Result<()> {
    std::fs::create_dir(directory).with_context(|| directory.display().to_string())?;
    for (path, text) in &found.files {
        let file = directory.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
