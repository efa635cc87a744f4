//! What a directory is compared with: another directory, or what git has of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use weft_control::ingest::load_texts;
use weft_control::model::World;

use crate::configuration::{accepted, read};

/// Where the state before comes from.
#[derive(Clone, Debug)]
pub enum Base {
    /// Another directory.
    Directory(std::path::PathBuf),
    /// A revision of the directory's git repository.
    Revision(String),
}

impl Base {
    /// A directory, if there is one of that name; else a revision.
    pub fn parse(text: &str) -> Self {
        let path = Path::new(text);
        if path.is_dir() { Self::Directory(path.to_owned()) } else { Self::Revision(text.to_owned()) }
    }
}

/// The state before: what `base` says of `dir`.
///
/// # Errors
/// It cannot be had, or is refused.
pub fn read_base(dir: &Path, base: &Base) -> anyhow::Result<World> {
    match base {
        Base::Directory(base) => read(base),
        Base::Revision(revision) => {
            accepted(load_texts(&at_revision(dir, revision)?), &format!("{} of {revision}", dir.display()))
        }
    }
}

/// The configuration files that git has of a directory, by name.
fn at_revision(dir: &Path, revision: &str) -> anyhow::Result<Vec<(String, String)>> {
    // A revision that begins with a dash would be an option.
    if revision.starts_with('-') {
        bail!("{revision:?} is neither a directory nor a revision");
    }
    let commit = git(dir, &["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])
        .with_context(|| {
            format!("{revision:?} is neither a directory nor a revision of the repository of {}; --against takes either", dir.display())
        })?;
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    let names = git(dir, &["ls-tree", "-r", "-z", "--name-only", &commit, "--", "."])?;
    let names: Vec<_> = String::from_utf8(names)?.split('\0').map(str::to_owned).collect();
    let is_read = |name: &String| {
        let hidden = name.split('/').any(|part| part.starts_with('.'));
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        !hidden && extension.is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
    };
    names
        .into_iter()
        .filter(is_read)
        .map(|name| {
            let text = git(dir, &["show", &format!("{commit}:./{name}")])?;
            let text = String::from_utf8(text).with_context(|| format!("{name} is not UTF-8 text"))?;
            Ok((format!("{revision}:{name}"), text))
        })
        .collect()
}

fn git(dir: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output =
        Command::new("git").arg("-C").arg(dir).args(args).output().context(
            "git cannot be run; install it, or name a directory to compare with: --against DIRECTORY",
        )?;
    if !output.status.success() {
        bail!("git {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
