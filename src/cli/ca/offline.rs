//! A root whose key is kept where no control plane is: taking it there, and having another intermediate signed.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use time::OffsetDateTime;
use weft_certs::authority::Authority;
use weft_control::ca::store::{ROOT_CERTIFICATE, ROOT_KEY};
use weft_control::ca::{State, offline};
use zeroize::Zeroizing;

use super::super::token::Output;
use super::{At, FileArgs, at, files, print, signs};

/// A request to be signed.
#[derive(Args, Debug)]
pub struct SignArgs {
    /// The request, as request-intermediate wrote it
    request: PathBuf,
    /// The file for the certificate; it must not be there yet
    certificate: PathBuf,
    /// The root's certificate and key in one file, as take-root-offline wrote it
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// How long the intermediate lives; not longer than the root
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = super::super::parse_duration)]
    ttl: std::time::Duration,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn take_root(args: &FileArgs) -> anyhow::Result<()> {
    let directory = &args.common.state_dir;
    let place = at(directory)?;
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path).map(Zeroizing::new).with_context(|| path.display().to_string())
    };
    if let At::Files(_) = &place {
        // Finishes what was cut off, and says if the store is damaged.
        State::load(directory)?;
    }
    let key =
        read(ROOT_KEY).context("the root's key is not in the state directory; is it offline already?")?;
    let root = Authority::load(&read(ROOT_CERTIFICATE)?, &key)?;
    let sha256 = weft_certs::digest::sha256_hex(root.key_pem().as_bytes());
    let both = Zeroizing::new(root.certificate_pem().to_owned() + root.key_pem());
    // There before it is gone.
    write_new(&args.file, &both, 0o600)?;
    let taken = match &place {
        At::Running(plane) => plane.post(&format!("/ca/take-root-offline?sha256={sha256}")).map(|_| ()),
        At::Files(_) => files(directory)?.take_root_offline(&sha256).map_err(Into::into),
    };
    if let Err(error) = taken {
        // The key stays where it was, so this copy is one too many.
        let _ = std::fs::remove_file(&args.file);
        return Err(error);
    }
    let words = format!(
        "{}: the root and its key, which the control plane has no more; move the file to where it is safe, and keep it well: \
         without it there is no other intermediate, and the root has to be replaced (weft ca rotate-root). Backups from \
         before have the key, too",
        args.file.display()
    );
    print(&args.common, &json!({"file": args.file, "offline": true}), &words);
    Ok(())
}

pub(super) fn request(args: &FileArgs) -> anyhow::Result<()> {
    // Before an earlier request loses its meaning.
    anyhow::ensure!(!args.file.exists(), "{}: is there already, and is not replaced", args.file.display());
    let request = match at(&args.common.state_dir)? {
        At::Running(plane) => {
            let answer = plane.post("/ca/request-intermediate")?;
            answer["request"].as_str().context("the control plane gave no request")?.to_owned()
        }
        At::Files(_lock) => files(&args.common.state_dir)?.request_intermediate()?,
    };
    write_new(&args.file, &request, 0o644)?;
    let words = format!(
        "{}: have it signed where the root's key is (weft ca sign-intermediate), and bring the certificate back (weft ca \
         take-intermediate); an earlier request is of no use any more",
        args.file.display()
    );
    print(&args.common, &json!({"file": args.file}), &words);
    Ok(())
}

pub(super) fn sign(args: &SignArgs) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map(Zeroizing::new).with_context(|| path.display().to_string())
    };
    let (root, request) = (read(&args.root)?, read(&args.request)?);
    let life = time::Duration::try_from(args.ttl)?;
    let certificate = offline::sign(&root, &request, OffsetDateTime::now_utc(), life)?;
    write_new(&args.certificate, &certificate, 0o644)?;
    match args.output {
        Output::Text => println!(
            "{}: bring it to the control plane (weft ca take-intermediate)",
            args.certificate.display()
        ),
        Output::Json => println!("{}", json!({"file": args.certificate})),
    }
    Ok(())
}

pub(super) fn take(args: &FileArgs) -> anyhow::Result<()> {
    let certificate = std::fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    let answer = match at(&args.common.state_dir)? {
        At::Running(plane) => plane.send("/ca/take-intermediate", &certificate)?,
        At::Files(_lock) => {
            let now = OffsetDateTime::now_utc();
            json!({"signs": files(&args.common.state_dir)?.take_requested(&certificate, now)?})
        }
    };
    print(&args.common, &answer, signs(&answer));
    Ok(())
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let written = (|| {
        let mut out = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    })();
    written
        .with_context(|| format!("{}: cannot be written; an existing file is not replaced", path.display()))
}
