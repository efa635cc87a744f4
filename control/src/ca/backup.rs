//! Backup and restore of the authority's state: one file, which only its owner can read, with a checksum over all of it. Whoever
//! has it is the authority; it belongs where the keys of the house are.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::store::{Bundle, Lock, State};

/// What the first field of a backup says.
const FORMAT: &str = "weft certificate authority, version 1";

#[derive(Serialize, Deserialize)]
struct Backup {
    format: String,
    made: i64,
    state: Bundle,
}

/// What was written or read.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The backup's file.
    pub file: PathBuf,
    /// When it was made, in seconds since 1970.
    pub made: i64,
    /// The root in it, by the SHA-256 of its certificate.
    pub root_sha256: String,
}

/// A state as the text of a backup.
pub(super) fn encode(state: &State, now: OffsetDateTime) -> anyhow::Result<Zeroizing<String>> {
    let backup =
        Backup { format: FORMAT.to_owned(), made: now.unix_timestamp(), state: Bundle::new(state.texts()) };
    Ok(Zeroizing::new(serde_json::to_string_pretty(&backup)?))
}

/// The state that such a text holds; everything of it is checked.
pub(super) fn decode(text: &str) -> anyhow::Result<State> {
    read_text(text).map(|(_, state)| state)
}

fn read_text(text: &str) -> anyhow::Result<(Backup, State)> {
    let backup: Backup =
        serde_json::from_str(text).map_err(|e| anyhow::anyhow!("is not a backup, or cut off: {e}"))?;
    if backup.format != FORMAT {
        bail!("says it is {:?}, and this version reads {FORMAT:?}", backup.format);
    }
    if !backup.state.is_whole() {
        bail!("is damaged: its checksum differs");
    }
    let state = State::from_all(&backup.state.files)?;
    Ok((backup, state))
}

/// Writes the state of a directory into `file`, which must not be there yet. A control plane may be running on it.
pub fn backup(directory: &Path, file: &Path, now: OffsetDateTime) -> anyhow::Result<Summary> {
    let state = read(directory)?;
    let backup =
        Backup { format: FORMAT.to_owned(), made: now.unix_timestamp(), state: Bundle::new(state.texts()) };
    let text = Zeroizing::new(serde_json::to_string_pretty(&backup)?);
    let written = (|| {
        let mut out = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(file)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    })();
    written.with_context(|| {
        format!("{}: the backup cannot be written there; an existing file is not replaced", file.display())
    })?;
    Ok(summary(file, &backup, &state))
}

/// Between two files of a change a reader without the lock may see the store half way.
fn read(directory: &Path) -> anyhow::Result<State> {
    let mut last = None;
    for _ in 0..20 {
        match State::peek(directory) {
            Ok(state) => return Ok(state),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(last.map_or_else(|| anyhow::anyhow!("nothing was read"), Into::into))
}

/// Puts a backup's state into a directory on which no control plane runs. Everything is checked before anything is written;
/// a state that is there is replaced only with `replace`.
pub fn restore(directory: &Path, file: &Path, replace: bool) -> anyhow::Result<Summary> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    let text = Zeroizing::new(text);
    let (backup, state) = read_text(&text).map_err(|why| {
        anyhow::anyhow!("{}: {why}; nothing was restored, take another backup", file.display())
    })?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("{}", directory.display()))?;
    let Some(_lock) = Lock::take(directory)? else {
        bail!("a control plane runs on {}; stop it before its state is replaced", directory.display());
    };
    let there = directory.join(super::store::ROOT_CERTIFICATE).exists();
    if there && !replace {
        bail!(
            "{} holds an authority's state already; --replace overwrites it, and every certificate of another root ends",
            directory.display()
        );
    }
    State::forget_journal(directory)?;
    state.save(directory)?;
    Ok(summary(file, &backup, &state))
}

fn summary(file: &Path, backup: &Backup, state: &State) -> Summary {
    Summary {
        file: file.to_owned(),
        made: backup.made,
        root_sha256: weft_certs::digest::sha256_hex(state.root.certificate()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ca::store::tests::SMALL;

    #[test]
    fn a_backup_brings_everything_back_and_a_damaged_one_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let (state, file) = (parent.path().join("state"), parent.path().join("backup.json"));
        let now = OffsetDateTime::now_utc();
        let mut made = State::open(&state, SMALL, now).unwrap();
        made.ledger.crl_number = 3;
        made.save(&state).unwrap();
        let written = backup(&state, &file, now).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(backup(&state, &file, now).is_err(), "an existing file is not replaced");

        let other = parent.path().join("other");
        let read = restore(&other, &file, false).unwrap();
        assert_eq!(read.root_sha256, written.root_sha256);
        let back = State::load(&other).unwrap();
        assert_eq!(back.root.certificate(), made.root.certificate());
        assert_eq!((back.token_key.as_str(), back.ledger.crl_number), (made.token_key.as_str(), 3));

        // Every byte counts.
        let text = std::fs::read_to_string(&file).unwrap();
        let empty = parent.path().join("empty");
        for damage in [
            text.replacen("MI", "MJ", 1),
            text.replacen("root_rotations", "root_rotation5", 1),
            text[..text.len() / 2].to_owned(),
            String::new(),
            text.replace("version 1", "version 9"),
        ] {
            assert_ne!(damage, text);
            let bad = parent.path().join("bad.json");
            std::fs::write(&bad, damage).unwrap();
            restore(&empty, &bad, false).unwrap_err();
            assert!(!empty.exists());
        }
    }

    #[test]
    fn a_state_that_is_there_or_in_use_is_not_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let (state, file) = (parent.path().join("state"), parent.path().join("backup.json"));
        let now = OffsetDateTime::now_utc();
        State::open(&state, SMALL, now).unwrap();
        backup(&state, &file, now).unwrap();
        let error = restore(&state, &file, false).unwrap_err().to_string();
        assert!(error.contains("--replace"), "{error}");
        let lock = Lock::take(&state).unwrap();
        let error = restore(&state, &file, true).unwrap_err().to_string();
        assert!(error.contains("stop it"), "{error}");
        drop(lock);
        restore(&state, &file, true).unwrap();
    }
}
