//! The seal of what a proxy keeps: an authentication code by a key, so that a file that somebody has edited, or put back from
//! earlier, is not taken for what the control plane said.
//!
//! The key is in a file of its own (0600), made at the first use. Where it is in another place than the state (`--state-key`),
//! whoever can write the state cannot seal it. Which state was the last stands beside the state, sealed by the same key: it is
//! this proxy's own matter, and the key may be that of several.

mod key;

use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;

use self::key::{KeyFile, hex, unhex};
use crate::io::file::replace_private;

/// File of the key, unless it is elsewhere.
const KEY: &str = "configuration-key";
/// File of the last state's number.
const LAST: &str = "configuration-last";

/// A seal that is not right, in words.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be used.
    #[error("the key {path} cannot be used ({reason})")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The code is not by the key.
    #[error("it is not as this proxy wrote it: its code is not by the key {0}")]
    Broken(PathBuf),
    /// It is older than the last one.
    #[error("it is older than what this proxy kept last: somebody has put it back")]
    Old,
    /// Which one was the last cannot be told.
    #[error("{path}, which says what was kept last, cannot be used ({reason})")]
    Last {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What seals the states of one node in one directory.
#[derive(Clone, Debug)]
pub struct Seal {
    key: KeyFile,
    last: PathBuf,
    node: String,
}

impl Seal {
    /// By the key that an operator keeps in this file, or by one of the proxy's own in the directory.
    pub fn new(directory: &Path, key: Option<&Path>, node: &str) -> Self {
        let key = key.map_or_else(|| KeyFile::own(directory.join(KEY)), KeyFile::given);
        Self { key, last: directory.join(LAST), node: node.to_owned() }
    }

    /// Holds a state against its code (hexadecimal).
    ///
    /// # Errors
    /// [`SealError`]: the state is not to be used.
    pub fn check(&self, body: &[u8], code: &[u8]) -> Result<Checked<'_>, SealError> {
        let key = self.key.read()?;
        match is_by(&key, body, code) {
            true => Ok(Checked { seal: self, key }),
            false => Err(SealError::Broken(self.key.path().to_owned())),
        }
    }

    /// The code (hexadecimal) of a state. Makes the key where there is none, or none of the proxy's own that can be used.
    ///
    /// # Errors
    /// [`SealError::Key`]: nothing can be sealed.
    pub fn code(&self, body: &[u8]) -> Result<String, SealError> {
        Ok(hex(hmac::sign(&self.key.read_or_make()?, body).as_ref()))
    }

    /// The number that a state of this time (seconds) is to have: more than the last one's. The time makes it so even where
    /// nobody remembers that.
    pub fn next(&self, now: u64) -> u64 {
        let last = self.key.read().and_then(|key| self.last(&key)).unwrap_or_default();
        last.saturating_add(1).max(now)
    }

    /// Remembers the number of the state that was kept last.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn remember(&self, number: u64) -> Result<(), SealError> {
        let code = hex(hmac::sign(&self.key.read()?, &self.said(number)).as_ref());
        let text = format!("{number} {code}\n");
        replace_private(&self.last, &[text.as_bytes()]).map_err(|e| self.unknown(&e))
    }

    /// The number of the last state; 0 where there was none.
    fn last(&self, key: &hmac::Key) -> Result<u64, SealError> {
        let text = match std::fs::read_to_string(&self.last) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(self.unknown(&e)),
        };
        let parts = text.trim_end().split_once(' ');
        let number = parts.and_then(|(number, code)| {
            let number = number.parse().ok()?;
            is_by(key, &self.said(number), code.as_bytes()).then_some(number)
        });
        number.ok_or_else(|| self.unknown("it is not as this proxy wrote it"))
    }

    /// What the code of a number is of. No state begins like this, and no other node's number is the same.
    fn said(&self, number: u64) -> Vec<u8> {
        format!("last {number} {}", self.node).into_bytes()
    }

    fn unknown(&self, reason: &(impl std::fmt::Display + ?Sized)) -> SealError {
        SealError::Last { path: self.last.clone(), reason: reason.to_string() }
    }
}

fn is_by(key: &hmac::Key, body: &[u8], code: &[u8]) -> bool {
    unhex(code).is_some_and(|code| hmac::verify(key, body, &code).is_ok())
}

/// A state whose code is right.
#[derive(Debug)]
pub struct Checked<'a> {
    seal: &'a Seal,
    key: hmac::Key,
}

impl Checked<'_> {
    /// Whether it is the last one, or a later one, by its number. Where nobody can tell, it is taken for the last: whoever could spoil
    /// the number could as well have taken it away, and disks do such things, too.
    ///
    /// # Errors
    /// [`SealError::Old`].
    pub fn is_last(&self, number: u64) -> Result<(), SealError> {
        let last = self.seal.last(&self.key).unwrap_or_else(|error| {
            tracing::warn!(%error, "whether the stored configuration is the last one is not known; it is used");
            0
        });
        if number < last { Err(SealError::Old) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_sealed_opens_and_what_was_changed_or_is_older_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KEY);
        let seal = Seal::new(directory.path(), None, "me");
        assert!(matches!(seal.check(b"one", b"00"), Err(SealError::Key { .. })));
        let code = seal.code(b"one").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(seal.check(b"one", code.as_bytes()).unwrap().is_last(0).is_ok());
        for (body, code) in
            [(&b"two"[..], code.as_bytes()), (b"one", b"00"), (b"one", b""), (b"one", b"\xff\xffx")]
        {
            assert!(matches!(seal.check(body, code), Err(SealError::Broken(_))));
        }
        let number = seal.next(0);
        seal.remember(number).unwrap();
        assert_eq!((seal.next(0), seal.next(number + 9)), (number + 1, number + 9));
        let again = Seal::new(directory.path(), None, "me");
        let checked = again.check(b"one", code.as_bytes()).unwrap();
        assert!(matches!(checked.is_last(number - 1), Err(SealError::Old)));
        assert!(checked.is_last(number).is_ok() && checked.is_last(number + 1).is_ok());
        // Another key, and one that is none.
        std::fs::write(&path, "ab".repeat(32)).unwrap();
        assert!(matches!(seal.check(b"one", code.as_bytes()), Err(SealError::Broken(_))));
        std::fs::write(&path, "abcd").unwrap();
        assert!(matches!(seal.check(b"one", code.as_bytes()), Err(SealError::Key { .. })));
        let given = Seal::new(directory.path(), Some(&path), "me");
        assert!(matches!(given.code(b"one"), Err(SealError::Key { .. })), "an operator's stays");
        let code = seal.code(b"one").unwrap();
        assert!(seal.check(b"one", code.as_bytes()).is_ok(), "another key is made");
    }

    #[test]
    fn a_number_that_is_spoilt_or_another_nodes_makes_no_good_state_old() {
        let directory = tempfile::tempdir().unwrap();
        let seal = Seal::new(directory.path(), None, "me");
        let code = seal.code(b"one").unwrap();
        seal.remember(7).unwrap();
        let good = std::fs::read_to_string(&seal.last).unwrap();
        let is_old = || seal.check(b"one", code.as_bytes()).unwrap().is_last(6).is_err();
        assert!(is_old());
        for bad in ["", "7", "7 00", "9 not hexadecimal", &good.replacen('7', "8", 1)] {
            std::fs::write(&seal.last, bad).unwrap();
            assert!(!is_old(), "{bad:?}");
        }
        Seal::new(directory.path(), None, "another").remember(9).unwrap();
        assert!(!is_old());
        std::fs::write(&seal.last, good).unwrap();
        assert!(is_old());
    }
}
